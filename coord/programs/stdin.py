"""The standard input of a program: the payload as JSON, or as text."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from coord.agent.task import NonRetryable, Task
from coord.codec import BAD_JSON


class Input(StrEnum):
    """How the payload is written to standard input."""

    JSON = "json"  #: as JSON, followed by a newline
    TEXT = "text"  #: a payload that is text, unchanged: no quotes, no escapes, no added newline


def stdin_bytes(task: Task, input_format: Input) -> bytes:
    """Return the standard input of a program for one task.

    Raises:
        NonRetryable: ``input_format`` is text and the payload is not.
    """
    if input_format is Input.JSON:
        return task.payload_json + b"\n"
    try:
        payload = task.payload
    except BAD_JSON as error:
        raise NonRetryable("payload_invalid", f"payload: {error}") from None
    if not isinstance(payload, str):
        raise NonRetryable(
            "payload_invalid",
            f"this agent passes text to its program (--input text), so the payload must be text, "
            f"not {_type_name(payload)}; submit text, or start the agent with --input json",
        )
    return payload.encode()


def _type_name(value: Any) -> str:
    names = {dict: "an object", list: "an array", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
