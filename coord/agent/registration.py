"""The registration of an agent: it registers, starts its heartbeats, reports its status, and deregisters.

The answers of the registry arrive in the agent's replies. A heartbeat is answered only if something is wrong:
``unknown_agent`` makes the agent register again, ``superseded`` stops this process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from coord import codec
from coord.agent.heartbeat import Heartbeats
from coord.client.answers import Answer, Answers
from coord.clock import now_ms
from coord.errors import CoordError
from coord.keys import Keys
from coord.logs import get_logger
from coord.models.agents import AgentStatus
from coord.models.facts import (
    AgentDeregistered,
    AgentLeasesListed,
    AgentRegistered,
    AgentStatusChanged,
)
from coord.models.ids import entry_ms
from coord.pipeline import pack
from coord.reconnect import ReconnectingConnection
from coord.redis_protocol import ErrorAnswer, ignore_answer

log = get_logger()

#: Seconds that the registry has before the agent registers again: the fact may be lost with the data of a server.
PATIENCE_S = 10.0
#: A change of the clock difference by more milliseconds than this means another server, after a fail-over.
CLOCK_STEP_MS = 1_000
#: The streams for registration and status, and for heartbeats.
REGISTRY, HEARTBEATS = "in:registry", "in:beats"


class Registration:
    """The registration of one agent process.

    Args:
        fact: what the agent registers as.
        link: the connection for writes.
        keys: of the cell.
        answers: of the registry.
        heartbeats: start once the registry has answered, and stop when the agent leaves.
        on_failed: called once, with the reason, if the agent must stop.
        forget_after: seconds until its record is removed when it has left; None: as long as the settings say.
        token: returns the token of the agent; empty: none.
    """

    def __init__(
        self,
        fact: AgentRegistered,
        *,
        link: ReconnectingConnection,
        keys: Keys,
        answers: Answers,
        heartbeats: Heartbeats,
        on_failed: Callable[[CoordError], None],
        forget_after: float | None = None,
        token: Callable[[], str] = str,
    ) -> None:
        self.is_registered = asyncio.Event()
        self._token = token
        self._fact = fact
        self._link = link
        self._registry = keys.of(REGISTRY)
        self._heartbeats = heartbeats
        self._answers = answers
        self._on_failed = on_failed
        self._forget_after = forget_after
        self._loop = asyncio.get_running_loop()
        self._status: AgentStatus | None = None
        self._is_full = False
        self._is_draining = False
        self._retry_timer: asyncio.TimerHandle | None = None
        self._is_over = False
        self._is_registering = False  # True while the fact is on its way to Redis
        self._knows_time = False
        self._ahead_ms = now_ms() - self._loop.time() * 1000  # the server's clock minus the clock of the event loop

    def now_ms(self) -> float:
        """Return the server's time in ms since 1970, estimated from the entry id of the last heartbeat."""
        return self._loop.time() * 1000 + self._ahead_ms

    def register(self) -> None:
        """Register; with the same incarnation again it is a refresh."""
        if self._is_over or self._is_registering:
            return  # the fact that waits for Redis is enough
        self._is_registering = True
        self._send(self._fact, self._registered)
        if self._status is not None or self._is_full:
            self._send_status()
        self._wait_for_registry()

    def change_status(self, status: AgentStatus) -> None:
        """Report a status; once the agent drains, no other status is reported."""
        if self._is_draining:
            return
        self._status = status
        self._send_status()

    def drain(self) -> None:
        """Report ``draining``, and ignore later changes of the status."""
        self.change_status(AgentStatus.DRAINING)
        self._is_draining = True

    def change_room(self, room: int) -> None:
        """Report how many concurrent tasks the agent can have for now; without room it is busy."""
        if self._is_over:
            return
        was_full, self._is_full = self._is_full, room < 1
        self._fact = replace(self._fact, capacity=max(1, room))
        self._send(self._fact, self._check_answer)
        if self._is_full != was_full:
            self._send_status()

    def _send_status(self) -> None:
        status = self._status or AgentStatus.ACTIVE
        if self._is_full and status == AgentStatus.ACTIVE:
            status = AgentStatus.BUSY
        self._send(AgentStatusChanged(self._fact.agent_id, status, self._fact.incarnation), self._check_answer)

    def list_leases(self, ask: str, leases: dict[str, str]) -> None:
        """Answer the registry's request for the leases of this process. If the answer gets lost, it asks again.

        Args:
            ask: id of the request.
            leases: lease -> task id.
        """
        fact = AgentLeasesListed(self._fact.agent_id, self._fact.incarnation, ask, leases)
        flat = [part for field in codec.encode_entry(fact, token=self._token()).items() for part in field]
        self._link.send(pack(("XADD", self._registry, "*", *flat)), ignore_answer)

    async def leave(self, limit_s: float) -> bool:
        """Deregister and wait for the answer; return False if there is none within ``limit_s`` seconds."""
        self._end()
        answered = asyncio.Event()
        fact = AgentDeregistered(self._fact.agent_id, self._fact.incarnation, self._forget_after)
        self._send(fact, lambda _answer: answered.set())
        try:
            await asyncio.wait_for(answered.wait(), limit_s)
        except TimeoutError:
            log.warning("agent.leave_unanswered", agent_id=self._fact.agent_id)
            return False
        return True

    def close(self) -> None:
        """Cancel the timers."""
        self._end()

    def _end(self) -> None:
        self._is_over = True
        self._heartbeats.stop()
        if self._retry_timer:
            self._retry_timer.cancel()

    def _send(self, fact: Struct, callback: Callable[[Answer], None]) -> None:
        agent_id = self._fact.agent_id
        fields = codec.encode_entry(fact, caller=agent_id, token=self._token())
        flat = [part for field in fields.items() for part in field]
        self._link.send_until_answered(pack(("XADD", self._registry, "*", *flat)), self._sent, callback)

    def _sent(self, callback: Callable[[Answer], None], answer: Any) -> None:
        if isinstance(answer, ErrorAnswer):
            self._is_registering = False
            self._fail(CoordError(f"agent '{self._fact.agent_id}' may not write to {REGISTRY}: {answer}"))
            return
        if callback == self._registered:
            self._is_registering = False
            self._heartbeats.prepare()
        self._answers.expect((REGISTRY, self._learn_time(answer)), callback)

    def _learn_time(self, entry: bytes, late_s: float = 0.0) -> str:
        text = entry.decode()
        seen = entry_ms(text) - (self._loop.time() - late_s) * 1000
        if not self._knows_time or abs(seen - self._ahead_ms) > CLOCK_STEP_MS:
            self._ahead_ms, self._knows_time = seen, True
        else:
            # The entry is older than its answer by the way back, so the largest difference is the most exact. It fades
            # by a millisecond each time, because clocks drift.
            self._ahead_ms = max(seen, self._ahead_ms - 1)
        return text

    def _registered(self, answer: Answer) -> None:
        self._check_answer(answer)
        if not answer.ok:
            return
        if self._retry_timer:
            self._retry_timer.cancel()
            self._retry_timer = None
        if not self.is_registered.is_set():
            self.is_registered.set()
            log.info("agent.registered", agent_id=self._fact.agent_id, incarnation=self._fact.incarnation)
        if not self._is_over:
            self._heartbeats.start()

    def _check_answer(self, answer: Answer) -> None:
        """Log that the agent was lost, or register again or stop, if an answer requires it."""
        if answer.ok and answer.data != b"null":
            log.warning(
                "agent.was_lost", agent_id=self._fact.agent_id,
                hint="its heartbeats did not arrive in time, so its tasks went to other agents; it gets tasks again",
            )  # fmt: skip
        if answer.ok or self._is_over:
            return
        if answer.code in ("unknown_agent", "agent_not_found"):
            log.info("agent.registers_again", agent_id=self._fact.agent_id)
            self.register()
        else:
            self._fail(answer.error)

    def _fail(self, error: CoordError) -> None:
        if not self._is_over:
            self._end()
            log.error("agent.must_stop", agent_id=self._fact.agent_id, code=error.code, error=str(error))
            self._on_failed(error)

    def heartbeat_sent(self, entry: bytes, answered_at: float) -> None:
        """Expect an answer to a heartbeat, which comes only if something is wrong.

        Args:
            entry: its entry id.
            answered_at: when Redis had answered, on the monotonic clock.
        """
        if not self._is_over:
            late_s = time.monotonic() - answered_at
            self._answers.expect((HEARTBEATS, self._learn_time(entry, late_s)), self._check_answer)

    def _wait_for_registry(self) -> None:
        if self._retry_timer:
            self._retry_timer.cancel()
        self._retry_timer = self._loop.call_later(PATIENCE_S, self._unanswered)

    def _unanswered(self) -> None:
        log.warning(
            "agent.registry_silent", agent_id=self._fact.agent_id, seconds=PATIENCE_S, hint="does a registry run?"
        )
        self._retry_timer = None
        self.register()
