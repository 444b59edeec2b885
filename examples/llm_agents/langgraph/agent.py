"""A LangGraph graph as a kept program: it summarizes a text, and reports each step as progress.

    coord agent --capability summarize --keep-alive --wait-ready -- python examples/llm_agents/langgraph/agent.py
    coord tasks submit summarize '{"path": "README.md"}' --wait

``ParrotFakeChatModel`` of langchain_core repeats its last message. Replace it by a chat model of a provider, such as
``ChatOpenAI`` of langchain_openai.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, TypedDict

from langchain_core.language_models.fake_chat_models import ParrotFakeChatModel
from langgraph.graph import END, START, StateGraph

model = ParrotFakeChatModel()


class State(TypedDict, total=False):
    """What the steps hand on."""

    path: str
    sections: list[str]
    summary: str


def read(state: State) -> State:
    """Split the file into its sections; the first sentence of each says what it is about."""
    sections = Path(state["path"]).read_text().split("\n## ")
    paragraphs = [section.partition("\n")[2].strip().partition("\n\n")[0] for section in sections]
    firsts = [re.split(r"[.:](?:\s|$)", paragraph)[0].replace("\n", " ") for paragraph in paragraphs]
    return {"sections": [first for first in firsts if first[:1].isalpha()]}


def write(state: State) -> State:
    """Let the model write the summary."""
    return {"summary": str(model.invoke(". ".join(state["sections"][:3]) + ".").content)}


steps = StateGraph(State)
steps.add_node("read", read)
steps.add_node("write", write)
steps.add_edge(START, "read")
steps.add_edge("read", "write")
steps.add_edge("write", END)
graph = steps.compile()


def answer(task_id: str, payload: Any) -> dict[str, Any]:
    """Return the answer to a task, and write its progress."""
    summary = ""
    try:
        for update in graph.stream({"path": payload["path"]}, stream_mode="updates"):
            for step, state in update.items():
                print(json.dumps({"task_id": task_id, "progress": {"done": step}}), flush=True)
                summary = state.get("summary", summary)
    except (KeyError, TypeError, OSError) as error:  # the payload has no path, or the file cannot be read
        problem = f"{type(error).__name__}: {error}"
        return {"error": {"code": "unreadable", "message": problem, "retryable": False}}
    except Exception as error:  # noqa: BLE001 -- of the provider: coord tries again, with backoff
        return {"error": {"code": "model_failed", "message": str(error)}}
    return {"result": summary}


print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    task = json.loads(line)
    if "task_id" in task:
        print(json.dumps({"task_id": task["task_id"], **answer(task["task_id"], task["payload"])}), flush=True)
