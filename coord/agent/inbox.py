"""Reads an agent's inbox, highest lane first, and the answers to its facts, on a connection of its own.

Nothing is deleted here: an assignment is deleted when it is claimed, a message when its handler is done. Cursors are
kept in memory only. After every reconnect the inbox is read from the beginning again, because a fail-over may have
rewound the lanes; the receivers of the entries know which they have seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from coord.background import call_safely
from coord.config import Settings
from coord.keys import Keys
from coord.logs import get_logger
from coord.models.tasks import Lane
from coord.pipeline import pack
from coord.reconnect import ReconnectingConnection
from coord.redis_protocol import ConnectionLost, ErrorAnswer

log = get_logger()

#: Entries read at a time from each stream.
COUNT = 64
#: Seconds before reading again after the server refused a read.
REFUSED_WAIT_S = 0.5

Fields = Mapping[bytes, bytes]


class Inbox:
    """The lanes of one agent, and its replies.

    Args:
        agent_id: id of the agent.
        url: URL of Redis.
        settings: for the namespace and the timeouts.
        on_entry: called with lane, entry id and fields of each entry.
        on_reply: called with the fields of each reply.
        on_read: called after each batch.
        on_up: called after each connect, before anything is read.
    """

    def __init__(
        self,
        agent_id: str,
        url: str,
        settings: Settings,
        *,
        on_entry: Callable[[int, bytes, Fields], None],
        on_reply: Callable[[Fields], None],
        on_read: Callable[[], None],
        on_up: Callable[[], None],
    ) -> None:
        keys = Keys(settings.namespace)
        self._agent_id = agent_id
        self._on_entry = on_entry
        self._on_reply = on_reply
        self._on_read = on_read
        self._on_up = on_up
        self._streams = [*(keys.inbox(agent_id, lane) for lane in Lane), keys.replies(agent_id)]
        self._names = [stream.encode() for stream in self._streams]
        self._cursors = [b"0"] * len(self._streams)
        self._command = ("XREAD", "COUNT", COUNT, "BLOCK", settings.read_block_ms, "STREAMS", *self._streams)
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        self.rounds = 0  #: how often the reader got an answer and continued
        self._link = ReconnectingConnection(url, settings)
        self._link.on_up.append(self._begin)

    async def open(self) -> None:
        """Connect and start to read; raises as ``ReconnectingConnection.open``."""
        await self._link.open()

    def reconnect(self) -> None:
        """Replace the connection, because its reader has stopped."""
        if not self._is_closed:
            log.error("inbox.deaf", agent_id=self._agent_id, hint="it reconnects, and gets nothing new until it reads")
            self._link.drop()

    def rewind(self) -> None:
        """Read the lanes from the beginning with the next read, because there is room for what was left there."""
        self._cursors[:-1] = [b"0"] * (len(self._cursors) - 1)

    def stop(self) -> None:
        """Read nothing more, and ignore answers that are still to come."""
        self._is_closed = True

    async def close(self) -> None:
        """Stop reading and close the connection."""
        self.stop()
        await self._link.close()

    def _begin(self) -> None:
        self._cursors = [b"0"] * len(self._streams)
        # Deletes nothing: a replica refuses this command, but would answer reads for ever.
        self._link.send(pack(("XDEL", self._streams[0], "0-1")), self._check_primary)
        call_safely("inbox.up", self._on_up)
        self._read()

    def _check_primary(self, _context: Any, answer: Any) -> None:
        if isinstance(answer, ErrorAnswer):
            self._link.drop_demoted(answer)

    def _read(self) -> None:
        if not self._is_closed:
            self._link.send(pack((*self._command, *self._cursors)), self._receive)

    def _receive(self, _context: Any, answer: Any) -> None:
        if isinstance(answer, ConnectionLost) or self._is_closed:
            return  # reading starts again when the connection is back
        if isinstance(answer, ErrorAnswer):
            log.warning("inbox.refused", agent_id=self._agent_id, error=str(answer))
            if not self._link.drop_demoted(answer):
                self._loop.call_later(REFUSED_WAIT_S, self._read)
            return
        self.rounds += 1
        if answer:
            try:
                self._handle(answer)
            except Exception:  # it must not stop the reader
                log.exception("inbox.not_understood", agent_id=self._agent_id)
                self._loop.call_later(REFUSED_WAIT_S, self._read)
                return
        self._read()

    def _handle(self, answer: Any) -> None:
        *lanes, replies = self._names
        for lane, name in enumerate(lanes):
            self._handle_lane(lane, answer.get(name, ()))
        for entry, flat in answer.get(replies, ()):
            self._cursors[-1] = entry
            try:
                self._on_reply(_fields(flat))
            except Exception:
                log.exception("inbox.not_understood", agent_id=self._agent_id)
        self._on_read()

    def _handle_lane(self, lane: int, entries: Any) -> None:
        for entry, flat in entries:
            self._cursors[lane] = entry
            try:  # an entry that cannot be decoded must not hold up the next
                self._on_entry(lane, entry, _fields(flat))
            except Exception:
                log.exception("inbox.not_understood", agent_id=self._agent_id)


def _fields(flat: list[bytes]) -> dict[bytes, bytes]:
    pairs = iter(flat)
    return dict(zip(pairs, pairs, strict=False))  # the server sends pairs; a check costs half as much again
