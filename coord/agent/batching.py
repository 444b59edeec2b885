"""What the agents of a process complete in one turn of the loop, told in as few entries as fit.

An append and all that becomes of it costs Redis and the distributor the same whether it tells of one task or of fifty.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from coord.agent.attempt import Attempt
from coord.agent.reconnect import ReconnectingConnection
from coord.logs import get_logger
from coord.models.facts import TYPE_OF, TaskCompleted, TasksCompleted
from coord.pipeline import pack
from coord.streams import MAX_BATCHED_BYTES, max_facts_per_entry

log = get_logger()

#: Tasks told of in one entry at most, as many as it may hold: the first entry wakes a distributor, which takes what is
#: there then.
MOST = 256

#: Called with an attempt and Redis' answer to the entry that told of it.
Answered = Callable[[Attempt, Any], None]


class Completions:
    """What is to be told on one link."""

    def __init__(self, link: ReconnectingConnection, stream: str, max_bytes: int) -> None:
        self._link = link
        self._alone = head_of(stream, TYPE_OF[TaskCompleted])
        self._together = head_of(stream, TYPE_OF[TasksCompleted])
        self._loop = asyncio.get_running_loop()
        #: What waits for the end of this turn: each fact's JSON, and who is to be told of the answer to its entry.
        self._facts: list[bytes] = []
        self._told: list[Answered] = []
        self._attempts: list[Attempt] = []
        self._most = max_facts_per_entry(MOST, max_bytes)

    def add(self, data: bytes, told: Answered, attempt: Attempt) -> None:
        """Tell of this one with this turn's others; ``told(attempt, answer)`` gets Redis' answer to their entry."""
        if len(data) > MAX_BATCHED_BYTES or self._most < 2:
            self._link.send_until_answered(command(self._alone, data), told, attempt)
            return
        if not self._facts:
            self._loop.call_soon(self._send)
        self._facts.append(data)
        self._told.append(told)
        self._attempts.append(attempt)
        if len(self._facts) == self._most:
            self._send()

    def _send(self) -> None:
        facts, told, attempts = self._facts, self._told, self._attempts
        self._facts, self._told, self._attempts = [], [], []
        if len(facts) == 1:
            self._link.send_until_answered(command(self._alone, facts[0]), told[0], attempts[0])
        elif facts:
            data = b'{"completed":[%b]}' % b",".join(facts)
            self._link.send_until_answered(command(self._together, data), _tell, (told, attempts))


def head_of(stream: str, kind: str) -> bytes:
    """The command that appends a fact of a kind, packed but for its last word, which is the fact."""
    return pack(("XADD", stream, "*", "type", kind, "data", b"")).removesuffix(b"$0\r\n\r\n")


def command(head: bytes, data: bytes) -> bytes:
    """The command that ``head`` begins, with its fact."""
    return b"%b$%d\r\n%b\r\n" % (head, len(data), data)


def _tell(about: tuple[list[Answered], list[Attempt]], answer: Any) -> None:
    for told, attempt in zip(*about, strict=True):
        try:
            told(attempt, answer)
        except Exception:  # the others are to be told as well
            log.exception("sdk.defect", task_id=attempt.task_id)


_of_link: WeakKeyDictionary[ReconnectingConnection, Completions] = WeakKeyDictionary()


def shared(link: ReconnectingConnection, stream: str, max_bytes: int) -> Completions:
    """Those of a link, whichever agents share it."""
    found = _of_link.get(link)
    if found is None:
        found = _of_link[link] = Completions(link, stream, max_bytes)
    return found
