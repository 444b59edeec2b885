"""Reports that the agents of a process complete in one turn of the loop, in as few entries as possible.

An append and its handling costs Redis and the distributor the same for one task as for fifty.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from coord.agent.reconnect import ReconnectingConnection
from coord.agent.task import Attempt
from coord.logs import get_logger
from coord.models.facts import TYPE_OF, TaskCompleted, TasksCompleted
from coord.pipeline import pack
from coord.streams import MAX_BATCHED_BYTES, max_facts_per_entry

log = get_logger()

#: Maximum number of tasks in one entry, as many as possible: the first entry wakes a distributor, which takes what is
#: in the stream at that time.
MAX_TASKS_PER_ENTRY = 256

#: Called with an attempt and the answer of Redis to the entry with its report.
AnswerCallback = Callable[[Attempt, Any], None]


class Completions:
    """The ``task.completed`` facts of one connection."""

    def __init__(self, link: ReconnectingConnection, stream: str, max_bytes: int) -> None:
        self._link = link
        self._single = command_head(stream, TYPE_OF[TaskCompleted])
        self._many = command_head(stream, TYPE_OF[TasksCompleted])
        self._loop = asyncio.get_running_loop()
        #: Waiting for the end of this turn: the JSON of each fact, its callback and its attempt.
        self._facts: list[bytes] = []
        self._callbacks: list[AnswerCallback] = []
        self._attempts: list[Attempt] = []
        self._limit = max_facts_per_entry(MAX_TASKS_PER_ENTRY, max_bytes)

    def add(self, data: bytes, callback: AnswerCallback, attempt: Attempt) -> None:
        """Send a report with the others of this turn; ``callback(attempt, answer)`` gets the answer to their entry."""
        if len(data) > MAX_BATCHED_BYTES or self._limit < 2:
            self._link.send_until_answered(command(self._single, data), callback, attempt)
            return
        if not self._facts:
            self._loop.call_soon(self._send)
        self._facts.append(data)
        self._callbacks.append(callback)
        self._attempts.append(attempt)
        if len(self._facts) == self._limit:
            self._send()

    def _send(self) -> None:
        facts, callbacks, attempts = self._facts, self._callbacks, self._attempts
        self._facts, self._callbacks, self._attempts = [], [], []
        if len(facts) == 1:
            self._link.send_until_answered(command(self._single, facts[0]), callbacks[0], attempts[0])
        elif facts:
            data = b'{"completed":[%b]}' % b",".join(facts)
            self._link.send_until_answered(command(self._many, data), _pass_on, (callbacks, attempts))


def command_head(stream: str, kind: str) -> bytes:
    """Return the packed command that appends a fact of a kind, without its last argument, which is the fact."""
    return pack(("XADD", stream, "*", "type", kind, "data", b"")).removesuffix(b"$0\r\n\r\n")


def command(head: bytes, data: bytes) -> bytes:
    """Return the packed command that ``head`` begins, with its fact."""
    return b"%b$%d\r\n%b\r\n" % (head, len(data), data)


def _pass_on(context: tuple[list[AnswerCallback], list[Attempt]], answer: Any) -> None:
    for callback, attempt in zip(*context, strict=True):
        try:
            callback(attempt, answer)
        except Exception:  # the other callbacks must be called as well
            log.exception("sdk.defect", task_id=attempt.task_id)


_of_link: WeakKeyDictionary[ReconnectingConnection, Completions] = WeakKeyDictionary()


def shared(link: ReconnectingConnection, stream: str, max_bytes: int) -> Completions:
    """Return the completions of a connection, which all its agents share."""
    found = _of_link.get(link)
    if found is None:
        found = _of_link[link] = Completions(link, stream, max_bytes)
    return found
