"""Reads an agent's inbox, highest lane first, and the answers to what it said, on a connection of its own.

Nothing is deleted here: an assignment is deleted when it is claimed, a message when its handler is done. Cursors are
this process's own memory. After every reconnect it reads from the beginning again, since a fail-over may have rewound
the lanes; whoever takes the entries knows what it has seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from coord.agent.protocol import ConnectionLost, ErrorAnswer
from coord.agent.reconnect import ReconnectingConnection
from coord.background import call_safely
from coord.config import Settings
from coord.keys import Keys
from coord.logs import get_logger
from coord.models.tasks import Lane
from coord.pipeline import pack

log = get_logger()

#: Entries read at a time from each stream.
COUNT = 64
#: Before reading again after the server refused to.
REFUSED_WAIT_S = 0.5

Fields = Mapping[bytes, bytes]


class Inbox:
    """The lanes of one agent, and its replies.

    ``take`` is called with lane, entry id and fields of each entry; ``answered`` with the fields of each reply;
    ``read`` after each batch; ``up`` after each connect, before anything is read.
    """

    def __init__(
        self,
        agent_id: str,
        url: str,
        settings: Settings,
        *,
        take: Callable[[int, bytes, Fields], None],
        answered: Callable[[Fields], None],
        read: Callable[[], None],
        up: Callable[[], None],
    ) -> None:
        keys = Keys(settings.namespace)
        self._agent_id = agent_id
        self._take = take
        self._answered = answered
        self._read = read
        self._up = up
        self._streams = [*(keys.inbox(agent_id, lane) for lane in Lane), keys.replies(agent_id)]
        self._names = [stream.encode() for stream in self._streams]
        self._cursors = [b"0"] * len(self._streams)
        self._command = ("XREAD", "COUNT", COUNT, "BLOCK", settings.read_block_ms, "STREAMS", *self._streams)
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        self.rounds = 0  #: how often the reader got an answer and went on
        self._link = ReconnectingConnection(url, settings)
        self._link.on_up.append(self._came_up)

    async def open(self) -> None:
        """Connect and begin to read; raises as ``ReconnectingConnection.open``."""
        await self._link.open()

    def heal(self) -> None:
        """Give the connection up and come back with another: its reader does not come around any more."""
        if not self._is_closed:
            log.error("inbox.deaf", agent_id=self._agent_id, hint="it reconnects, and gets nothing new until it reads")
            self._link.drop()

    def rewind(self) -> None:
        """Read the lanes from the beginning, from the next read on: what was left there is wanted now."""
        self._cursors[:-1] = [b"0"] * (len(self._cursors) - 1)

    def stop(self) -> None:
        """Read nothing more, and take nothing of what is still to come."""
        self._is_closed = True

    async def close(self) -> None:
        """Stop reading and close the connection."""
        self.stop()
        await self._link.close()

    def _came_up(self) -> None:
        self._cursors = [b"0"] * len(self._streams)
        # A deletion of nothing: a replica, which would answer reads for ever, refuses it.
        self._link.send(pack(("XDEL", self._streams[0], "0-1")), self._proved)
        call_safely("inbox.up", self._up)
        self._ask()

    def _proved(self, _about: Any, answer: Any) -> None:
        if isinstance(answer, ErrorAnswer):
            self._link.drop_demoted(answer)

    def _ask(self) -> None:
        if not self._is_closed:
            self._link.send(pack((*self._command, *self._cursors)), self._arrived)

    def _arrived(self, _about: Any, answer: Any) -> None:
        if isinstance(answer, ConnectionLost) or self._is_closed:
            return  # reading begins anew when the connection is back
        if isinstance(answer, ErrorAnswer):
            log.warning("inbox.refused", agent_id=self._agent_id, error=str(answer))
            if not self._link.drop_demoted(answer):
                self._loop.call_later(REFUSED_WAIT_S, self._ask)
            return
        self.rounds += 1
        if answer:
            try:
                self._take_all(answer)
            except Exception:  # it must not end the reading
                log.exception("inbox.not_understood", agent_id=self._agent_id)
                self._loop.call_later(REFUSED_WAIT_S, self._ask)
                return
        self._ask()

    def _take_all(self, answer: Any) -> None:
        *lanes, replies = self._names
        for lane, name in enumerate(lanes):
            self._hand_on(lane, answer.get(name, ()))
        for entry, flat in answer.get(replies, ()):
            self._cursors[-1] = entry
            try:
                self._answered(_fields(flat))
            except Exception:
                log.exception("inbox.not_understood", agent_id=self._agent_id)
        self._read()

    def _hand_on(self, lane: int, entries: Any) -> None:
        for entry, flat in entries:
            self._cursors[lane] = entry
            try:  # one that cannot be understood must not keep us from the next
                self._take(lane, entry, _fields(flat))
            except Exception:
                log.exception("inbox.not_understood", agent_id=self._agent_id)


def _fields(flat: list[bytes]) -> dict[bytes, bytes]:
    pairs = iter(flat)
    return dict(zip(pairs, pairs, strict=False))  # the server says both of each; to check it takes half as long again
