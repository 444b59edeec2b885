"""Reads the inboxes of many agents on one connection, and tells who waits for them when something arrives.

The connection tracks the keys that it reads (``CLIENT TRACKING``): the server sends one notice when a lane that was
read changes. So thousands of idle inboxes cost no command, and an entry wakes only those who wait for its inbox.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from coord import logs
from coord.background import cancel_and_wait, keep
from coord.config import Settings
from coord.connection import safe_url
from coord.errors import ServerUnavailable
from coord.keys import Keys
from coord.models.tasks import Lane
from coord.pipeline import pack
from coord.reconnect import ReconnectingConnection
from coord.redis_protocol import ConnectionLost, ErrorAnswer

log = logs.get_logger()

#: Seconds between two checks that the connection works, and that its server is the primary.
CHECK_S = 2.0
_TRACKING = pack(("CLIENT", "TRACKING", "ON"))
NO_CURSORS: Mapping[Lane, str] = {}
_INVALIDATE = b"invalidate"
#: An id that no agent has: its inbox is never there.
_NOBODY = "~"


class InboxEntry(NamedTuple):
    """An entry of an inbox."""

    lane: Lane
    id: str
    fields: Mapping[bytes, bytes]


class InboxWatch:
    """The inboxes of any number of agents.

    Args:
        url: URL of Redis.
        settings: for the namespace and the timeouts.
    """

    def __init__(self, url: str, settings: Settings) -> None:
        self._url = url
        self._keys = Keys(settings.namespace)
        self._prefix = self._keys.of("inbox:").encode()
        self._sockets = self._keys.socket("").encode()
        self._signals: dict[str, set[asyncio.Event]] = {}
        self._socket_signals: dict[str, set[asyncio.Event]] = {}
        self._link = ReconnectingConnection(url, settings)
        self._link.on_up.append(self._begin)
        self._link.on_push = self._pushed
        self._checking: asyncio.Task[None] | None = None
        self.generation = 0  #: rises with each new connection

    async def open(self) -> None:
        """Connect; several callers may wait for this. Raises as ``ReconnectingConnection.open``."""
        await self._link.open()
        if self._checking is None:
            self._checking = keep("inboxes.check", self._check)

    async def close(self) -> None:
        """Disconnect."""
        await cancel_and_wait(self._checking)
        await self._link.close()

    @contextmanager
    def watching(self, agent_id: str) -> Iterator[asyncio.Event]:
        """Give an event that is set when the inbox has changed since it was last read, or may have.

        The caller clears it before each read; only changes after a read are noticed.
        """
        with _signal(self._signals, agent_id) as signal:
            yield signal

    @contextmanager
    def watching_socket(self, agent_id: str) -> Iterator[asyncio.Event]:
        """Give an event that is set as that of ``watching``, when ``socket`` may have another answer."""
        with _signal(self._socket_signals, agent_id) as signal:
            yield signal

    async def socket(self, agent_id: str) -> str | None:
        """Return the id of the WebSocket that receives an inbox; None: none, or it was long ago. Raises as ``read``."""
        found: bytes | None = await self._ask(("GET", self._keys.socket(agent_id)))
        return None if found is None else found.decode()

    async def read(self, agent_id: str, limit: int, after: Mapping[Lane, str] = NO_CURSORS) -> list[InboxEntry]:
        """Return the first entries of an inbox, the highest lane first, the oldest of a lane first; none is deleted.

        Args:
            agent_id: of the agent; a valid id.
            limit: maximum number of entries.
            after: lane -> id of the last entry that is left out.

        Raises:
            ServerUnavailable: the connection is lost; it is opened again, and sets the event of every watcher.
        """
        lanes = [self._keys.inbox(agent_id, lane) for lane in Lane]
        if not await self._ask(("EXISTS", *lanes)):
            return []
        begins = [f"({after[lane]}" if lane in after else "-" for lane in Lane]
        commands = [("XRANGE", lane, begin, "+", "COUNT", limit) for lane, begin in zip(lanes, begins, strict=True)]
        answers = await asyncio.gather(*map(self._ask, commands))
        found = [
            InboxEntry(lane, entry.decode(), dict(zip(flat[::2], flat[1::2], strict=True)))
            for lane, entries in zip(Lane, answers, strict=True)
            for entry, flat in entries
        ]
        return found[:limit]

    async def _ask(self, command: tuple[str | int, ...]) -> Any:
        answered: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._link.send(pack(command), _answer, answered)
        answer = await answered
        if isinstance(answer, ErrorAnswer):
            self._link.drop_demoted(answer)
            raise ServerUnavailable(f"Redis at {safe_url(self._url)} refuses to read an inbox: {answer}")
        if isinstance(answer, ConnectionLost):
            raise ServerUnavailable(f"Redis at {safe_url(self._url)} does not answer")
        return answer

    def _begin(self) -> None:
        """Track what is read on the new connection; what changed meanwhile was not noticed."""
        self.generation += 1
        self._link.send(_TRACKING, self._check_tracking)
        self._check_primary()
        self._wake_all()

    async def _check(self) -> None:
        while True:
            await asyncio.sleep(CHECK_S)
            if self._link.is_up:
                self._check_primary()

    def _check_primary(self) -> None:
        # Deletes nothing: a replica refuses this command, but would answer reads for ever.
        self._link.send(pack(("XDEL", self._keys.inbox(_NOBODY, Lane.LOW), "0-1")), self._check_answer)

    def _check_answer(self, _context: Any, answer: Any) -> None:
        if isinstance(answer, ErrorAnswer):
            self._link.drop_demoted(answer)

    def _check_tracking(self, _context: Any, answer: Any) -> None:
        if isinstance(answer, ErrorAnswer) and not self._link.drop_demoted(answer):
            log.error("inboxes.refused", error=str(answer), hint="this Redis user needs the command CLIENT TRACKING")

    def _pushed(self, notice: list[Any]) -> None:
        if not notice or notice[0] != _INVALIDATE:
            return
        if notice[1] is None:  # the server was flushed
            self._wake_all()
            return
        for key in notice[1]:
            if key.startswith(self._prefix):
                agent_id = key[len(self._prefix) :].rpartition(b":")[0].decode()
                for signal in self._signals.get(agent_id, ()):
                    signal.set()
            elif key.startswith(self._sockets):
                for signal in self._socket_signals.get(key[len(self._sockets) :].decode(), ()):
                    signal.set()

    def _wake_all(self) -> None:
        for signals in (*self._signals.values(), *self._socket_signals.values()):
            for signal in signals:
                signal.set()


@contextmanager
def _signal(signals: dict[str, set[asyncio.Event]], agent_id: str) -> Iterator[asyncio.Event]:
    signal = asyncio.Event()
    of_agent = signals.setdefault(agent_id, set())
    of_agent.add(signal)
    try:
        yield signal
    finally:
        of_agent.discard(signal)
        if not of_agent and signals.get(agent_id) is of_agent:
            del signals[agent_id]


def _answer(answered: asyncio.Future[Any], answer: Any) -> None:
    if not answered.done():
        answered.set_result(answer)


async def wait_for(signal: asyncio.Event, seconds: float) -> bool:
    """Wait until an inbox has changed; return False if it has not within so many seconds."""
    if seconds > 0:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await signal.wait()
    return signal.is_set()
