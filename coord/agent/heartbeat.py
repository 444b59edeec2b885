"""Heartbeats: what they report, and the thread that sends those of all agents of a process.

A heartbeat reports the leases, the load of the machine, and if the agent reads its inbox.

The thread has its own event loop and its own connections. A handler that blocks the event loop of its agent (a
synchronous HTTP client in an async handler) stops everything else on that loop. Heartbeats and lease lists do not
depend on it, so the agent is not declared lost. While the loop is blocked, its agents report that they are deaf: they
keep their tasks and get no new ones.

A thread cannot help if a C function holds the GIL, or if the process is stopped: then no heartbeat goes out.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil

from coord import codec
from coord.agent.loop_watch import PULSE_S, LoopWatch
from coord.background import call_safely, retry
from coord.config import Settings
from coord.keys import Keys
from coord.logs import get_logger
from coord.models.facts import AgentHeartbeat, AgentLeasesListed, AgentRegistered
from coord.models.tasks import Lane
from coord.pipeline import pack
from coord.reconnect import ReconnectingConnection, shared_connections
from coord.redis_protocol import ConnectionLost, ErrorAnswer, ignore_answer
from coord.streams import HEARTBEATS_KEPT

log = get_logger()

#: Seconds for which a measurement of the machine is reused.
_FRESH_S = 1.0
_measured_at = float("-inf")
_load: dict[str, float] = {}

#: Heartbeats in a row without an answer to the reader of the inbox, after which the agent is deaf.
DEAF_HEARTBEATS = 3


def system_load() -> dict[str, float]:
    """Return ``cpu`` and ``memory`` of the machine as fractions, measured once a second for all agents of a process.

    ``cpu`` is the mean since the previous measurement, 0 at the first. What cannot be measured is left out, with one
    warning: a service manager may hide ``/proc/stat``, and the process may have no file descriptor left.
    """
    global _measured_at, _load  # noqa: PLW0603 -- one machine, one measurement
    now = time.monotonic()
    if now - _measured_at >= _FRESH_S:
        _measured_at = now
        _load = {}
        for name, measure in _MEASURES.items():
            try:
                _load[name] = round(measure() / 100, 3)
            except Exception as error:  # noqa: BLE001 -- psutil raises anything if it cannot parse what the system returns
                _warn_once(name, error)
    return _load


#: The metrics of a heartbeat, in percent.
_MEASURES: dict[str, Callable[[], float]] = {
    "cpu": lambda: psutil.cpu_percent(None),
    "memory": lambda: psutil.virtual_memory().percent,
}
_unknown: set[str] = set()


def _warn_once(metric: str, error: Exception) -> None:
    if metric not in _unknown:
        _unknown.add(metric)
        log.warning(
            "agent.metric_unknown", metric=metric, error=f"{type(error).__name__}: {error}",
            hint="heartbeats go out without it, and placement does not take it into account",
        )  # fmt: skip


class ReaderCheck:
    """Detects that the reader of the inbox has stopped, so that the agent gets nothing new meanwhile.

    This is the second line of defence: the reader cannot end, because its connection reconnects by itself. The check
    compares the number of rounds of the reader from heartbeat to heartbeat. It counts heartbeats, not only time: a
    process that was stopped for a while sends one heartbeat, reads what has arrived, and is not deaf. The thread of the
    heartbeats calls it (``HeartbeatThread``).

    Args:
        rounds: returns how often the reader got an answer and continued.
        limit_s: minimum seconds without a round before the agent is deaf; also the time between two reconnects.
    """

    def __init__(self, rounds: Callable[[], int], limit_s: float) -> None:
        self._rounds = rounds
        self._limit_s = limit_s
        self._reconnected_at = time.monotonic()
        self.reset()

    def reset(self) -> None:
        """Start to count again, because Redis was unavailable until now, for the reader as well."""
        self._seen = self._rounds()
        self._silent_heartbeats = 0
        self._silent_since = time.monotonic()

    def is_deaf(self) -> bool:
        """Return True if the reader has stopped; call this once before each heartbeat."""
        if self._rounds() != self._seen:
            self.reset()
            return False
        self._silent_heartbeats += 1
        return self._silent_heartbeats >= DEAF_HEARTBEATS and time.monotonic() - self._silent_since >= self._limit_s

    def should_reconnect(self) -> bool:
        """Return True if it is time for another reconnect of a deaf agent."""
        now = time.monotonic()
        if now - self._reconnected_at < self._limit_s:
            return False
        self._reconnected_at = now
        return True


#: Seconds that the thread has to close the connection of an agent that leaves.
CLOSE_S = 5.0
#: Orders that are read at a time while the event loop of the agent is blocked.
ORDERS_READ = 100


class Heartbeats:
    """The heartbeats of one agent process. The public methods belong to the event loop of the agent.

    Args:
        fact: what the agent registers as.
        interval_s: seconds between heartbeats.
        url: URL of Redis.
        settings: for the namespace and the timeouts.
        leases: returns the number of leases that the agent holds; called in the thread, as are the next four.
        listed: returns the leases that the agent holds: lease -> task id.
        is_deaf: called before each heartbeat; returns True if the agent does not read its inbox.
        reset: called while Redis does not answer or the event loop is blocked: this time does not count as deafness.
        handler_of: returns the name of the handler that an asyncio task of the agent's event loop runs, or "".
        on_sent: called in the event loop of the agent with the entry id of a heartbeat and the time of its answer.
        token: returns the token of the agent; empty: none. Called in the thread.
    """

    def __init__(
        self,
        fact: AgentRegistered,
        interval_s: float,
        url: str,
        settings: Settings,
        *,
        leases: Callable[[], int],
        listed: Callable[[], dict[str, str]],
        is_deaf: Callable[[], bool],
        reset: Callable[[], None],
        handler_of: Callable[[asyncio.Task[Any] | None], str],
        on_sent: Callable[[bytes, float], None],
        token: Callable[[], str] = str,
    ) -> None:
        keys = Keys(settings.namespace)
        self.agent_id = fact.agent_id
        self.handler_of = handler_of
        self._incarnation = fact.incarnation
        self._interval_s = interval_s
        self._url = url
        self._settings = settings
        self._registry = keys.of("in:registry")
        self._heartbeats = keys.of("in:beats")
        self._orders = keys.inbox(fact.agent_id, Lane.CRITICAL)
        self._leases = leases
        self._listed = listed
        self._is_deaf = is_deaf
        self._reset = reset
        self._on_sent = on_sent
        self._token = token
        self._agent_loop = asyncio.get_running_loop()
        self._thread: HeartbeatThread | None = None
        self._watch: LoopWatch | None = None
        self._link: ReconnectingConnection | None = None
        self._opening: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_prepared = False
        self._is_started = False
        self._is_over = False
        self._has_reported_block = False
        self._unanswered = 0  # heartbeats that Redis has not answered

    def open(self) -> None:
        """Connect in the thread; no heartbeat goes out before ``start``."""
        self._thread = thread = join_thread()
        thread.call(self._open, thread, threading.get_ident())

    def prepare(self) -> None:
        """Send heartbeats from now on if the event loop is blocked, and cannot read the answer of the registry."""
        if not self._is_prepared:
            self._is_prepared = True
            if self._thread is not None:
                self._thread.call(self._begin)

    def start(self) -> None:
        """Send a heartbeat now, and at intervals from now on."""
        if not self._is_started:
            self._is_prepared = self._is_started = True
            if self._thread is not None:
                self._thread.call(self._begin_now)

    def stop(self) -> None:
        """Send no further heartbeat."""
        self._is_over = True

    async def close(self) -> None:
        """Stop, and close the connection; the thread ends with its last agent."""
        self.stop()
        thread, self._thread = self._thread, None
        if thread is not None:
            closing = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._close(thread), thread.loop))
            try:
                await asyncio.wait([closing], timeout=CLOSE_S)
                if not closing.done() or closing.exception() is not None:
                    log.warning("heartbeats.not_closed", agent_id=self.agent_id)
            finally:
                leave_thread(thread)

    # In the thread.

    def _open(self, thread: HeartbeatThread, agent_thread: int) -> None:
        self._watch = thread.watch(self._agent_loop, agent_thread)
        self._watch.agents.append(self)
        self._opening = retry("heartbeats.open", self._join)

    async def _join(self) -> None:
        self._link = await shared_connections().join(self._url, self._settings)
        self._link.on_up.append(self._link_up)
        self._begin()

    async def _close(self, thread: HeartbeatThread) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._watch is not None:
            self._watch.agents.remove(self)
            thread.unwatch(self._watch)
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait([self._opening])
        if self._link is not None:
            self._link.on_up.remove(self._link_up)
            await shared_connections().leave(self._link)

    def _link_up(self) -> None:
        self._reset()

    def _begin(self) -> None:
        """Start the timer as soon as the agent may send heartbeats and the connection is up."""
        if self._is_started and self._timer is None:
            self._begin_now()
        elif self._is_prepared and self._link is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._beat)

    def _begin_now(self) -> None:
        if self._link is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._beat()

    def loop_is_free(self) -> None:
        """Report at once that the agent can get tasks again."""
        if self._has_reported_block and self._is_started:
            self._begin_now()

    def _beat(self) -> None:
        if self._is_over or self._agent_loop.is_closed():
            return
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._beat)
        is_blocked = self._watch is not None and self._watch.is_blocked
        if self._agent_loop.is_running() and (self._is_started or is_blocked):
            call_safely("heartbeats.send", self._send)

    def _send(self) -> None:
        link, watch = self._link, self._watch
        if link is None or watch is None:
            return
        self._has_reported_block = watch.is_blocked
        if watch.is_blocked or self._unanswered:  # a Redis that does not answer keeps the reader waiting as well
            self._reset()
        if watch.is_blocked:
            self._ask_for_orders(link)
        deaf = watch.is_blocked or self._is_deaf()
        fact = AgentHeartbeat(self.agent_id, self._incarnation, system_load(), self._leases(), deaf)
        # No caller: only errors are answered, and those go to the replies of the agent.
        flat = [part for field in codec.encode_entry(fact, token=self._token()).items() for part in field]
        packed = pack(("XADD", self._heartbeats, "MAXLEN", "~", HEARTBEATS_KEPT, "*", *flat))
        self._unanswered += 1
        link.send(packed, self._sent)

    def _sent(self, _context: Any, answer: Any) -> None:
        self._unanswered -= 1
        if not isinstance(answer, ErrorAnswer | ConnectionLost):
            with suppress(RuntimeError):  # the loop of the agent is closed
                self._agent_loop.call_soon_threadsafe(self._on_sent, answer, time.monotonic())

    def _ask_for_orders(self, link: ReconnectingConnection) -> None:
        """Read the orders that wait for the blocked event loop: a request for the leases is answered here."""
        link.send(pack(("XREAD", "COUNT", ORDERS_READ, "STREAMS", self._orders, "0")), self._receive_orders)

    def _receive_orders(self, _context: Any, answer: Any) -> None:
        link, watch = self._link, self._watch
        if link is None or watch is None or not watch.is_blocked or self._is_over or not isinstance(answer, dict):
            return
        asks: list[tuple[bytes, str]] = []
        for entry, flat in answer.get(self._orders.encode(), ()):
            fields = dict(zip(flat[::2], flat[1::2], strict=False))
            if fields.get(b"message_type") == b"coordination" and fields.get(b"order") == b"list_leases":
                asks.append((entry, fields.get(b"ask", b"").decode()))
        if not asks:
            return
        # Only the latest request counts.
        fact = AgentLeasesListed(self.agent_id, self._incarnation, asks[-1][1], self._listed())
        flat = [part for field in codec.encode_entry(fact, token=self._token()).items() for part in field]
        link.send(pack(("XADD", self._registry, "*", *flat)), ignore_answer)
        link.send(pack(("XDEL", self._orders, *[entry for entry, _ask in asks])), ignore_answer)


class HeartbeatThread:
    """The thread, its event loop, and the watches of the event loops of the agents."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.users = 0  #: agents that use it; guarded by ``_lock``
        self._watches: dict[asyncio.AbstractEventLoop, LoopWatch] = {}
        # A daemon, because a program that forgets to stop its agent must be able to end.
        self._thread = threading.Thread(target=self._run, name="coord-heartbeats", daemon=True)
        self._thread.start()

    def call(self, function: Callable[..., object], *args: object) -> None:
        """Call a function in the thread."""
        self.loop.call_soon_threadsafe(call_safely, "heartbeats.call", function, *args)

    def end(self) -> None:
        """End the thread, which has nothing left to do."""
        self.loop.call_soon_threadsafe(self.loop.stop)

    def watch(self, loop: asyncio.AbstractEventLoop, thread: int) -> LoopWatch:
        """Return the watch of an event loop, which runs in the given thread; its agents share it."""
        if loop not in self._watches:
            self._watches[loop] = LoopWatch(loop, thread, self.loop)
        return self._watches[loop]

    def unwatch(self, watch: LoopWatch) -> None:
        """Forget a watch that no agent uses any more."""
        if not watch.agents:
            self._watches.pop(watch.loop, None)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.call_soon(self._pulse)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    def _pulse(self) -> None:
        self.loop.call_later(PULSE_S, self._pulse)
        for watch in list(self._watches.values()):
            call_safely("heartbeats.watch", watch.tick)


_lock = threading.Lock()
_current: HeartbeatThread | None = None
_of_parents: list[HeartbeatThread] = []  # kept, because closing such a loop would close the loop of the parent as well


def join_thread() -> HeartbeatThread:
    """Return the thread of this process, until ``leave_thread``."""
    global _current  # noqa: PLW0603 -- one thread for all agents of a process
    with _lock:
        if _current is None:
            _current = HeartbeatThread()
        _current.users += 1
        return _current


def leave_thread(thread: HeartbeatThread) -> None:
    """Stop using the thread; it ends when its last user leaves."""
    global _current  # noqa: PLW0603 -- same
    with _lock:
        thread.users -= 1
        if thread.users:
            return
        if _current is thread:
            _current = None
    thread.end()


def _forget_thread() -> None:
    """Start without a thread in a forked child: it does not exist there."""
    global _current, _lock
    if _current is not None:
        _of_parents.append(_current)
    _current, _lock = None, threading.Lock()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_thread)
