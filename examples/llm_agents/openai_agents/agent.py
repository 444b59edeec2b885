"""An agent of the OpenAI Agents SDK as a kept program: it answers questions with a tool that searches documents.

    coord agent --capability ask --keep-alive --wait-ready -- python examples/llm_agents/openai_agents/agent.py docs
    coord tasks submit ask '{"question": "What is a dead letter?"}' --wait

``MODEL=gpt-5`` (with its key) uses a language model. Without it, a ``Model`` of this file answers offline.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from agents import Agent, Model, ModelResponse, RunConfig, Runner, Usage, function_tool
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

DOCUMENTS = sorted(Path(sys.argv[1] if len(sys.argv) > 1 else ".").rglob("*.md"))

#: A paragraph of sentences: no heading, list, table or code.
SENTENCES = re.compile(r"[A-Z].*[.!]\s*", re.DOTALL)


def words(text: str) -> set[str]:
    """Return the longer words of a text, without a plural's s."""
    return {word.rstrip("s") for word in re.findall(r"\w{4,}", text.lower())}


@function_tool
def search(question: str) -> str:
    """Return the paragraph of the documents that has most words of the question for its length."""
    texts = [text for path in DOCUMENTS for text in path.read_text().split("\n\n") if SENTENCES.fullmatch(text)]

    def score(text: str) -> float:
        return len(words(question) & words(text)) / (len(text) + 200)

    return " ".join(max(texts, key=score, default="").split())


class Offline(Model):
    """Answers as a model would: it calls the tool with the question, then repeats what the tool has found."""

    async def get_response(
        self,
        system_instructions: str | None,
        input: Any,
        *args: Any,
        **kwargs: Any,
    ) -> ModelResponse:
        """Return the call of the tool, or the answer."""
        last = input[-1]
        output: ResponseFunctionToolCall | ResponseOutputMessage
        if last.get("type") == "function_call_output":
            text = ResponseOutputText(type="output_text", text=last["output"], annotations=[])
            output = ResponseOutputMessage(
                id="answer", type="message", role="assistant", status="completed", content=[text]
            )
        else:
            arguments = json.dumps({"question": last["content"]})
            output = ResponseFunctionToolCall(type="function_call", call_id="1", name="search", arguments=arguments)
        return ModelResponse(output=[output], usage=Usage(requests=1), response_id=None)

    def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Refuse: this program does not stream."""
        raise NotImplementedError


agent = Agent(
    name="librarian",
    instructions="Search the documents, then answer in one sentence.",
    model=os.environ.get("MODEL") or Offline(),
    tools=[search],
)


def answer(payload: Any) -> dict[str, Any]:
    """Return the answer to a task."""
    if not isinstance(payload, dict) or not isinstance(payload.get("question"), str):
        return {"error": {"code": "no_question", "message": "the payload has no field 'question'", "retryable": False}}
    try:
        result = Runner.run_sync(agent, payload["question"], run_config=RunConfig(tracing_disabled=True))
    except Exception as error:  # noqa: BLE001 -- of the provider: coord tries again, with backoff
        return {"error": {"code": "model_failed", "message": str(error)}}
    return {"result": result.final_output}


print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    task = json.loads(line)
    if "task_id" in task:
        print(json.dumps({"task_id": task["task_id"], **answer(task["payload"])}), flush=True)
