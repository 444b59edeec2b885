"""A Pydantic AI agent as a kept program: it turns the text of a report into a ticket with typed fields.

    coord agent --capability triage --keep-alive --wait-ready -- python examples/llm_agents/pydantic_ai/agent.py
    coord tasks submit triage '{"text": "The gateway is down. Nobody can submit tasks."}' --wait

``MODEL=openai:gpt-5`` (with its key) uses a language model. Without it, a ``FunctionModel`` of the framework answers
offline.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any, Literal

from pydantic import BaseModel, Field
from pydantic_ai import Agent
from pydantic_ai.exceptions import UnexpectedModelBehavior
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel


class Ticket(BaseModel):
    """What the agent returns; the framework asks the model again if the fields do not fit."""

    area: Literal["agents", "gateway", "messages", "tasks"]
    urgent: bool
    title: str = Field(min_length=3, max_length=80)


def offline(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Answer as a model would: the area is the first one that the text names."""
    text = str(messages[0].parts[-1].content)
    area = re.search("agents|gateway|messages|tasks", text.lower())
    ticket = {
        "area": area[0] if area else "unknown",
        "urgent": bool(re.search(r"\b(down|lost|nobody)\b", text.lower())),
        "title": re.split(r"[.!?\n]", text)[0],
    }
    return ModelResponse(parts=[ToolCallPart(info.output_tools[0].name, ticket)])


agent = Agent(os.environ.get("MODEL") or FunctionModel(offline), output_type=Ticket, instructions="Write a ticket.")


def answer(payload: Any) -> dict[str, Any]:
    """Return the answer to a task."""
    if not isinstance(payload, dict) or not isinstance(payload.get("text"), str):
        return {"error": {"code": "no_text", "message": "the payload has no field 'text'", "retryable": False}}
    try:
        return {"result": agent.run_sync(payload["text"]).output.model_dump()}
    except UnexpectedModelBehavior as error:  # no valid ticket after the retries of the framework
        return {"error": {"code": "no_ticket", "message": str(error), "retryable": False}}
    except Exception as error:  # noqa: BLE001 -- of the provider: coord tries again, with backoff
        return {"error": {"code": "model_failed", "message": str(error)}}


print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    task = json.loads(line)
    if "task_id" in task:
        print(json.dumps({"task_id": task["task_id"], **answer(task["payload"])}), flush=True)
