"""Assignments from the moment that they are read until their reports are answered; never more run than the capacity.

Deleting the inbox entry is the claim. Whoever gets its deletion owns the task, so a handler is started only when the
server says that every entry of the batch was there; otherwise the whole batch is given back, for nobody can tell
which of its entries the coordinator took first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from coord.agent.attempt import Attempt
from coord.agent.reconnect import ReconnectingConnection
from coord.agent.reports import Reports
from coord.keys import Keys
from coord.logs import get_logger
from coord.models.tasks import Lane
from coord.pipeline import pack

log = get_logger()


class Returned(NamedTuple):
    """Why an assignment is returned unstarted."""

    code: str  #: as in ``TaskReleased``
    reason: str


IN_DOUBT = Returned("in_doubt", "claim_in_doubt")
DRAINING = Returned("draining", "the agent is draining")
NO_SLOT = Returned("no_slot", "no slot of the agent is free: handlers that were told to stop go on")


class Claims:
    """What one agent process was offered, and what it holds.

    ``start`` is called with each attempt that was claimed; it is told back with ``ended``. ``missed`` is called when
    assignments had to be left unread in the inbox and there is room again.
    """

    def __init__(
        self,
        agent_id: str,
        incarnation: str,
        capacity: int,
        *,
        link: ReconnectingConnection,
        keys: Keys,
        reports: Reports,
        start: Callable[[Attempt], None],
        missed: Callable[[], None],
    ) -> None:
        self.is_draining = False
        self.is_stuck = False  #: no slot will be free for long: what is assigned is given back
        self._agent_id = agent_id
        self._incarnation = incarnation.encode()
        self._capacity = capacity
        self._link = link
        self._reports = reports
        self._start = start
        self._missed = missed
        self._lanes = [keys.inbox(agent_id, lane) for lane in Lane]
        #: By lease: every attempt from the moment that it was read until its report was answered.
        self._known: dict[str, Attempt] = {}
        self._remembered: list[deque[Attempt]] = [deque() for _ in Lane]
        self._unclaimed = 0
        self._busy = 0  # being claimed, or running
        self._has_left_some = False
        self._settled: asyncio.Event | None = None
        reports.answered = self._answered

    @property
    def leases(self) -> int:
        """Leases held: each from before its entry's deletion is sent until its report was answered."""
        return len(self._known) - self._unclaimed

    def listed(self) -> dict[str, str]:
        """The leases held, with their tasks: lease -> task id."""
        return {lease: attempt.task_id for lease, attempt in self._known.items() if not attempt.is_unclaimed}

    @property
    def busy(self) -> int:
        """Attempts that are being claimed or run; never more than the capacity."""
        return self._busy

    def known(self, lease: str) -> Attempt | None:
        """The attempt under a lease."""
        return self._known.get(lease)

    def offer(self, lane: int, entry: bytes, fields: Mapping[bytes, bytes]) -> None:
        """Remember an assignment that was read, unless it is known already or not for this process."""
        incarnation = fields.get(b"incarnation")
        if incarnation and incarnation != self._incarnation:
            return
        lease = fields[b"lease"].decode()
        if lease in self._known:
            return
        if self._reports.tell_again(lease):
            self._delete(lane, entry)
            return
        if self._unclaimed >= self._capacity:
            self._has_left_some = True
            return
        task_id, number = fields[b"task_id"].decode(), int(fields[b"attempt"])
        attempt = Attempt(task_id, lease, number, lane=lane, entry=entry, raw=fields[b"data"])
        self._known[lease] = attempt
        self._unclaimed += 1
        if self.is_draining or self.is_stuck:
            self._release(attempt, DRAINING if self.is_draining else NO_SLOT)
        else:
            self._remembered[lane].append(attempt)

    def claim(self) -> None:
        """Claim what is remembered, highest lane first, as far as there is room: one command for each lane."""
        room = self._capacity - self._busy
        if room <= 0 or not self._unclaimed or self.is_draining or not self._link.is_up:
            return
        for lane, queue in enumerate(self._remembered):
            if not queue:
                continue
            batch = [queue.popleft() for _ in range(min(room, len(queue)))]
            for attempt in batch:
                attempt.is_unclaimed = False
            self._busy += len(batch)
            self._unclaimed -= len(batch)
            self._link.send(pack(("XDEL", self._lanes[lane], *[one.entry for one in batch])), self._claimed, batch)
            room -= len(batch)
            if not room:
                break
        if self._has_left_some and not self._unclaimed:
            self._has_left_some = False
            self._missed()

    def ended(self) -> None:
        """One attempt has ended and was reported: there is room for another."""
        self._leave(1)
        if self._unclaimed:
            self.claim()

    def give_back(self, attempt: Attempt, reason: str) -> None:
        """Give one back that is still remembered."""
        self._remembered[attempt.lane].remove(attempt)
        self._release(attempt, Returned("stopped", reason))

    async def settled(self, limit_s: float) -> None:
        """Wait until claims that are on their way have been answered."""
        if self._busy:
            self._settled = asyncio.Event()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._settled.wait(), limit_s)

    def drain(self) -> None:
        """Claim nothing from now on, and give back what is remembered."""
        self.is_draining = True
        self._give_back_all(DRAINING)

    def change_stuck(self, is_stuck: bool) -> None:
        """Whether no slot will be free for long; then what is remembered is given back."""
        self.is_stuck = is_stuck
        if is_stuck:
            self._give_back_all(NO_SLOT)

    def _give_back_all(self, why: Returned) -> None:
        for queue in self._remembered:
            while queue:
                self._release(queue.popleft(), why)

    def _release(self, attempt: Attempt, why: Returned) -> None:
        attempt.is_unclaimed = False
        self._unclaimed -= 1
        self._delete(attempt.lane, attempt.entry)
        self._reports.released(attempt, why.reason, why.code)

    def _delete(self, lane: int, entry: bytes) -> None:
        self._link.send(pack(("XDEL", self._lanes[lane], entry)), _ignored)

    def _claimed(self, batch: list[Attempt], answer: Any) -> None:
        if answer == len(batch):
            for attempt in batch:
                if self.is_draining or attempt.stop_reason is not None:
                    why = DRAINING if self.is_draining else Returned("stopped", attempt.stop_reason or "")
                    self._reports.released(attempt, why.reason, why.code)
                    self.ended()
                else:
                    self._start(attempt)
            return
        log.info("task.claim_in_doubt", agent_id=self._agent_id, tasks=len(batch), answer=repr(answer))
        for attempt in batch:
            self._reports.released(attempt, IN_DOUBT.reason, IN_DOUBT.code)
        self._leave(len(batch))
        self.claim()

    def _leave(self, count: int) -> None:
        self._busy -= count
        if self._settled is not None and not self._busy:
            self._settled.set()

    def _answered(self, attempt: Attempt) -> None:
        self._known.pop(attempt.lease, None)


def _ignored(_about: Any, _answer: Any) -> None:
    pass
