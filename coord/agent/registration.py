"""An agent's place in the fleet: it registers, beats, says how it is, and leaves.

The registry's answers come through the agent's own replies. A beat is answered only when something is wrong:
``unknown_agent`` makes it register again, ``superseded`` ends this process's part for good.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psutil
from msgspec import Struct
from msgspec.structs import replace

from coord import codec
from coord.agent.protocol import ConnectionLost, ErrorAnswer
from coord.agent.reconnect import ReconnectingConnection
from coord.agent.system_load import load_metrics
from coord.client.answers import Answer, Answers
from coord.clock import now_ms
from coord.errors import CoordError
from coord.keys import Keys
from coord.logs import get_logger
from coord.models.agents import AgentStatus
from coord.models.facts import (
    AgentDeregistered,
    AgentHeartbeat,
    AgentLeasesListed,
    AgentRegistered,
    AgentStatusChanged,
)
from coord.models.ids import entry_ms
from coord.pipeline import pack
from coord.streams import HEARTBEATS_KEPT

log = get_logger()

#: How long the registry may take before the agent registers again: the fact may be gone with a server's data.
PATIENCE_S = 10.0
#: A difference of clocks that changes by more than this was set anew: another server after a fail-over.
CLOCK_STEP_MS = 1_000
#: Where an agent says who it is and how, and where it beats.
REGISTRY, BEATS = "in:registry", "in:beats"


class Membership:
    """One agent process in the fleet.

    ``leases`` says how many leases it holds; ``failed`` is called once, with the reason why it must stop.

    Args:
        is_deaf: called before each beat; returns True if the agent does not read its inbox.
    """

    def __init__(
        self,
        fact: AgentRegistered,
        interval_s: float,
        *,
        link: ReconnectingConnection,
        keys: Keys,
        answers: Answers,
        leases: Callable[[], int],
        failed: Callable[[CoordError], None],
        is_deaf: Callable[[], bool] = lambda: False,
    ) -> None:
        self.is_registered = asyncio.Event()
        self._fact = fact
        self._interval_s = interval_s
        self._link = link
        self._registry = keys.of(REGISTRY)
        self._beats = keys.of(BEATS)
        self._answers = answers
        self._leases = leases
        self._failed = failed
        self._is_deaf = is_deaf
        self._loop = asyncio.get_running_loop()
        self._status: AgentStatus | None = None
        self._is_full = False
        self._is_draining = False
        self._timer: asyncio.TimerHandle | None = None
        self._again: asyncio.TimerHandle | None = None
        self._is_over = False
        self._is_registering = False  # the fact is on its way to Redis
        self._has_seen_time = False
        self._ahead_ms = now_ms() - self._loop.time() * 1000  # of the server's clock before the loop's

    def now_ms(self) -> float:
        """The server's time as far as we know: the id of an entry tells it, and each beat brings one."""
        return self._loop.time() * 1000 + self._ahead_ms

    def register(self) -> None:
        """Say what this agent is; again with the same incarnation it is a refresh."""
        if self._is_over or self._is_registering:
            return  # what waits for Redis to be back is enough
        self._is_registering = True
        self._say(self._fact, self._registered)
        if self._status is not None or self._is_full:
            self._say_status()
        self._wait_for_registry()

    def change_status(self, status: AgentStatus) -> None:
        """Say how this agent is; once it drains, nothing else is said."""
        if self._is_draining:
            return
        self._status = status
        self._say_status()

    def drain(self) -> None:
        """Say that it finishes what it has and takes nothing more, whatever handlers say of it meanwhile."""
        self.change_status(AgentStatus.DRAINING)
        self._is_draining = True

    def change_room(self, room: int) -> None:
        """Say how many tasks it can have at a time for now; with no room it is busy."""
        if self._is_over:
            return
        was_full, self._is_full = self._is_full, room < 1
        self._fact = replace(self._fact, capacity=max(1, room))
        self._say(self._fact, self._heard)
        if self._is_full != was_full:
            self._say_status()

    def _say_status(self) -> None:
        status = self._status or AgentStatus.ACTIVE
        if self._is_full and status == AgentStatus.ACTIVE:
            status = AgentStatus.BUSY
        self._say(AgentStatusChanged(self._fact.agent_id, status, self._fact.incarnation), self._heard)

    def list_leases(self, ask: str, leases: dict[str, str]) -> None:
        """Answer the question which leases this process holds: lease -> task id. Lost, it is asked again."""
        fact = AgentLeasesListed(self._fact.agent_id, self._fact.incarnation, ask, leases)
        flat = [part for field in codec.encode_entry(fact).items() for part in field]
        self._link.send(pack(("XADD", self._registry, "*", *flat)), _ignored)

    async def leave(self, limit_s: float) -> bool:
        """Leave, and wait for the answer; False if there was none within the limit."""
        self._end()
        answered = asyncio.Event()
        self._say(AgentDeregistered(self._fact.agent_id, self._fact.incarnation), lambda _answer: answered.set())
        try:
            await asyncio.wait_for(answered.wait(), limit_s)
        except TimeoutError:
            log.warning("agent.leave_unanswered", agent_id=self._fact.agent_id)
            return False
        return True

    def close(self) -> None:
        """Let go of the timers."""
        self._end()

    def _end(self) -> None:
        self._is_over = True
        for timer in (self._timer, self._again):
            if timer:
                timer.cancel()

    def _say(self, fact: Struct, take: Callable[[Answer], None]) -> None:
        agent_id = self._fact.agent_id
        fields = codec.encode_entry(fact, caller=agent_id)
        flat = [part for field in fields.items() for part in field]
        self._link.send_until_answered(pack(("XADD", self._registry, "*", *flat)), self._said, take)

    def _said(self, take: Callable[[Answer], None], answer: Any) -> None:
        if isinstance(answer, ErrorAnswer):
            self._is_registering = False
            self._fail(CoordError(f"agent '{self._fact.agent_id}' may not speak to the registry: {answer}"))
            return
        if take == self._registered:
            self._is_registering = False
        self._answers.expect((REGISTRY, self._saw_time(answer)), take)

    def _saw_time(self, entry: bytes) -> str:
        text = entry.decode()
        seen = entry_ms(text) - self._loop.time() * 1000
        if not self._has_seen_time or abs(seen - self._ahead_ms) > CLOCK_STEP_MS:
            self._ahead_ms, self._has_seen_time = seen, True
        else:
            # The entry is older than its answer by the way back, so the largest difference is the truest; it fades
            # by a millisecond each time, for clocks drift.
            self._ahead_ms = max(seen, self._ahead_ms - 1)
        return text

    def _registered(self, answer: Answer) -> None:
        if not answer.ok:
            self._heard(answer)
            return
        if self._again:
            self._again.cancel()
            self._again = None
        if not self.is_registered.is_set():
            self.is_registered.set()
            log.info("agent.registered", agent_id=self._fact.agent_id, incarnation=self._fact.incarnation)
        if self._timer is None and not self._is_over:
            self._beat()

    def _heard(self, answer: Answer) -> None:
        """An answer that may be bad news."""
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
            self._failed(error)

    def _beat(self) -> None:
        self._timer = self._loop.call_later(self._interval_s, self._beat)
        deaf = self._is_deaf()
        fact = AgentHeartbeat(self._fact.agent_id, self._fact.incarnation, _metrics(), self._leases(), deaf)
        # No caller: only bad news is answered, to the agent's own replies.
        data = codec.encode(fact)
        packed = pack(
            ("XADD", self._beats, "MAXLEN", "~", HEARTBEATS_KEPT, "*", "type", "agent.heartbeat", "data", data)
        )
        self._link.send(packed, self._beaten)

    def _beaten(self, _about: Any, answer: Any) -> None:
        if not isinstance(answer, ErrorAnswer | ConnectionLost):
            self._answers.expect((BEATS, self._saw_time(answer)), self._heard)

    def _wait_for_registry(self) -> None:
        if self._again:
            self._again.cancel()
        self._again = self._loop.call_later(PATIENCE_S, self._unanswered)

    def _unanswered(self) -> None:
        log.warning(
            "agent.registry_silent", agent_id=self._fact.agent_id, seconds=PATIENCE_S, hint="does a registry run?"
        )
        self._again = None
        self.register()


def _metrics() -> dict[str, float]:
    try:
        return load_metrics()
    except (OSError, psutil.Error):
        log.warning("agent.metrics_unknown", exc_info=True)
        return {}  # a beat without metrics is a sign of life all the same


def _ignored(_about: Any, _answer: Any) -> None:
    pass
