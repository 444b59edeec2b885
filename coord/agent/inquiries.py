"""Inquiries: requests about an agent itself, which the SDK answers before any handler.

An inquiry is a request of type ``heartbeat`` whose payload is ``{"op": "ping"}``, ``{"op": "info"}`` or
``{"op": "stats"}``. Any other message of this type is for the handlers of the agent.
"""

from __future__ import annotations

import asyncio
import os
import platform
import socket
from collections.abc import Callable, Collection, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from coord.agent.requests import Fields, Requests
from coord.codec import BAD_JSON, decode_message
from coord.models.facts import AgentRegistered
from coord.models.messages import INQUIRIES, MessageType

_HEARTBEAT = MessageType.HEARTBEAT.value.encode()


class Inquiries:
    """Answers the inquiries about one agent process.

    Args:
        fact: what the agent registered as.
        requests: sends the replies.
        task_types: of its handlers.
        stats: returns what it does now.
    """

    def __init__(
        self,
        fact: AgentRegistered,
        requests: Requests,
        task_types: Collection[str],
        *,
        stats: Callable[[], Mapping[str, Any]],
    ) -> None:
        self._fact = fact
        self._requests = requests
        self._task_types = sorted(task_types)
        self._stats = stats
        self._loop = asyncio.get_running_loop()
        self._started_at = self._loop.time()
        self._replying: set[tuple[int, bytes]] = set()

    def take(self, lane: int, entry: bytes, fields: Fields) -> bool:
        """Answer an inquiry and delete it; return False if the message is none."""
        if fields.get(b"message_type") != _HEARTBEAT or b"reply_by" not in fields:
            return False
        try:
            message = decode_message(fields)
        except (KeyError, ValueError, *BAD_JSON):
            return False
        op = message.payload.get("op") if isinstance(message.payload, dict) else None
        if op not in INQUIRIES:
            return False
        place = lane, entry
        if place not in self._replying and not self._requests.is_deleting(lane, entry):
            self._replying.add(place)
            reply = {"op": op, "agent_id": self._fact.agent_id, **self._answer(op)}
            self._requests.start_reply(message, reply, self._replied, place)
        return True

    def _replied(self, place: tuple[int, bytes], _answer: Any) -> None:
        self._replying.discard(place)
        self._requests.delete(*place)

    def _answer(self, op: str) -> Mapping[str, Any]:
        if op == "ping":
            return {}
        if op == "stats":
            return {"uptime_s": round(self._loop.time() - self._started_at, 3), **self._stats()}
        fact = self._fact
        return {
            "agent_type": fact.agent_type,
            "version": fact.version,
            "capabilities": fact.capabilities,
            "services": fact.services,
            "tags": fact.tags,
            "task_types": self._task_types,
            "incarnation": fact.incarnation,
            "sdk": f"coord {_version()}".rstrip(),
            "runtime": f"Python {platform.python_version()}",
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }


def _version() -> str:
    """Return the version of the installed package; empty if it runs from its sources without an installation."""
    try:
        return version("coord")
    except PackageNotFoundError:
        return ""
