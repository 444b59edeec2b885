"""Assignments, from the read of their inbox entry to the answer to their report; never more run than the capacity.

Deleting the inbox entry is the claim: the side whose deletion counts owns the task. A handler is started only if the
server answers that every entry of the batch was there. Otherwise the whole batch is given back, because the agent
cannot tell which of its entries the coordinator took first.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from coord.agent.reports import Reports
from coord.agent.task import Attempt
from coord.keys import Keys
from coord.logs import get_logger
from coord.models.tasks import Lane
from coord.pipeline import pack
from coord.reconnect import ReconnectingConnection
from coord.redis_protocol import ignore_answer

log = get_logger()


class Returned(NamedTuple):
    """Why an assignment is given back before its handler started."""

    code: str  #: as in ``TaskReleased``
    reason: str


IN_DOUBT = Returned("in_doubt", "claim_in_doubt")
DRAINING = Returned("draining", "the agent is draining")
NO_SLOT = Returned("no_slot", "no slot of the agent is free: handlers that must stop still run")


class Claims:
    """The assignments of one agent process.

    Args:
        agent_id: id of the agent.
        incarnation: of this process; assignments for another one are ignored.
        capacity: maximum number of attempts that are claimed or run.
        link: the connection for writes.
        keys: of the cell.
        reports: for assignments that are given back.
        start: called with each claimed attempt; ``ended`` is to be called when it has ended.
        reread: called when assignments were left in the inbox and there is room again.
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
        reread: Callable[[], None],
    ) -> None:
        self.is_draining = False
        self.is_stuck = False  #: no slot will be free soon: assignments are given back
        self._agent_id = agent_id
        self._incarnation = incarnation.encode()
        self._capacity = capacity
        self._link = link
        self._reports = reports
        self._start = start
        self._reread = reread
        self._lanes = [keys.inbox(agent_id, lane) for lane in Lane]
        #: By lease: every attempt, from the read of its entry to the answer to its report.
        self._known: dict[str, Attempt] = {}
        self._unclaimed_by_lane: list[deque[Attempt]] = [deque() for _ in Lane]
        self._unclaimed = 0
        self._busy = 0  # attempts that are being claimed or run
        self._held = 0  # slots that are not ready for an attempt
        self._has_left_some = False
        self._all_claimed: asyncio.Event | None = None

    @property
    def leases(self) -> int:
        """Number of leases held: each from before the deletion of its entry is sent until its report is answered."""
        return len(self._known) - self._unclaimed

    def listed(self) -> dict[str, str]:
        """Return the leases held, with their tasks: lease -> task id; may be called from any thread."""
        known = list(self._known.items())  # one step, because another thread may change it meanwhile
        return {lease: attempt.task_id for lease, attempt in known if not attempt.is_unclaimed}

    @property
    def busy(self) -> int:
        """Number of attempts that are being claimed or run; never more than the capacity."""
        return self._busy

    def known(self, lease: str) -> Attempt | None:
        """Return the attempt under a lease."""
        return self._known.get(lease)

    def offer(self, lane: int, entry: bytes, fields: Mapping[bytes, bytes]) -> None:
        """Keep an assignment that was read, unless it is known already or not for this process."""
        incarnation = fields.get(b"incarnation")
        if incarnation and incarnation != self._incarnation:
            return
        lease = fields[b"lease"].decode()
        if lease in self._known:
            return
        if self._reports.repeat(lease):
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
            self._unclaimed_by_lane[lane].append(attempt)

    def claim(self) -> None:
        """Claim waiting assignments, highest lane first, as far as there is room: one command for each lane."""
        room = self._capacity - self._held - self._busy
        if room <= 0 or not self._unclaimed or self.is_draining or not self._link.is_up:
            return
        for lane, queue in enumerate(self._unclaimed_by_lane):
            if not queue:
                continue
            batch = [queue.popleft() for _ in range(min(room, len(queue)))]
            for attempt in batch:
                attempt.is_unclaimed = False
            self._busy += len(batch)
            self._unclaimed -= len(batch)
            self._link.send(
                pack(("XDEL", self._lanes[lane], *[attempt.entry for attempt in batch])), self._claimed, batch
            )
            room -= len(batch)
            if not room:
                break
        if self._has_left_some and not self._unclaimed:
            self._has_left_some = False
            self._reread()

    def ended(self) -> None:
        """Note that an attempt has ended and its report is sent, so there is room for another."""
        self._leave(1)
        if self._unclaimed:
            self.claim()

    def give_back(self, attempt: Attempt, reason: str) -> None:
        """Give back an assignment that is not claimed yet."""
        self._unclaimed_by_lane[attempt.lane].remove(attempt)
        self._release(attempt, Returned("stopped", reason))

    async def wait_until_claimed(self, limit_s: float) -> None:
        """Wait until the claims in flight are answered, up to ``limit_s`` seconds."""
        if self._busy:
            self._all_claimed = asyncio.Event()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._all_claimed.wait(), limit_s)

    def forget(self, attempt: Attempt) -> None:
        """Forget an attempt whose report Redis has answered; its lease is not held any more."""
        self._known.pop(attempt.lease, None)

    def drain(self) -> None:
        """Claim nothing from now on, and give back what is not claimed yet."""
        self.is_draining = True
        self._give_back_all(DRAINING)

    def hold(self, slots: int) -> None:
        """Leave so many slots free until the next call."""
        self._held = slots
        self.claim()

    def change_stuck(self, is_stuck: bool) -> None:
        """Note if no slot will be free soon; then what is not claimed yet is given back."""
        self.is_stuck = is_stuck
        if is_stuck:
            self._give_back_all(NO_SLOT)

    def _give_back_all(self, why: Returned) -> None:
        for queue in self._unclaimed_by_lane:
            while queue:
                self._release(queue.popleft(), why)

    def _release(self, attempt: Attempt, why: Returned) -> None:
        attempt.is_unclaimed = False
        self._unclaimed -= 1
        self._delete(attempt.lane, attempt.entry)
        self._reports.released(attempt, why.reason, why.code)

    def _delete(self, lane: int, entry: bytes) -> None:
        self._link.send(pack(("XDEL", self._lanes[lane], entry)), ignore_answer)

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
        if self._all_claimed is not None and not self._busy:
            self._all_claimed.set()
