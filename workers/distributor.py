"""The distributor: which agent gets this task, and what became of it.

Any number of distributors share the work. Each plans on its own view of the fleet; the dispatch script alone decides.
A round trip carries what reports, losses, requests and submissions ask for and the assignments planned on top of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from random import Random
from typing import Any, ClassVar

from redis import exceptions as redis_errors

from coord import codec, logs, queries
from coord.background import keep
from coord.errors import FactInvalid
from coord.models.control import DeadPurged, EntryReplayed, SettingSet, StrategySet, TaskReplayed
from coord.models.facts import (
    AgentLost,
    Fact,
    LeaseLost,
    TaskCancelRequested,
    TaskCompleted,
    TaskFailed,
    TaskProgressed,
    TaskReleased,
    TasksCompleted,
    TaskStarted,
    parts_of,
)
from coord.models.memory import Memory
from coord.models.tasks import Pool, TasksSubmitted, TaskSubmitted
from coord.placement import STRATEGIES
from workers import control, reports
from workers.cell import WorkerContext
from workers.follower import Follower
from workers.planner import DEFINITIONS_KEPT, Planner, by_agents
from workers.pool_table import PoolTable
from workers.refusals import Refusal, find_refusals, refused_payloads
from workers.service import Failure, ReceivedFact, Service, Tick, end_tasks, failures_of, word_for_each
from workers.submissions import submission_of
from workers.transitions import Call, CancelRequest, LeaseLoss, Loss, Submission, TaskBatch
from workers.view import View

log = logs.get_logger()

#: A view that sees no room for a waiting pool may be this old, in seconds, before true loads are read.
UNHEARD_S = 0.05
#: Agents whose true loads are read at once.
REREAD = 1_000
#: Calls that free memory in one tick: as much as they can free is written in a tenth of a second by no one.
RELIEF_ROUNDS = 8
#: A server that refused an assignment for want of memory is asked again after so many seconds.
FULL_S = 1.0


class Distributor(Service):
    """Admits tasks, places them, settles what becomes of them."""

    kind: ClassVar[str] = "distributor"
    checked: ClassVar[frozenset[type[Fact]]] = frozenset({StrategySet, SettingSet, TaskSubmitted, TasksSubmitted})
    #: Each round trip's own facts are fenced by leases and ids, so their order does not matter. Four keep the server at
    #: work while this process packs and unpacks: the drain gains about a tenth over two; more were not tried.
    depth: ClassVar[int] = 4

    def __init__(self, cell: WorkerContext) -> None:
        super().__init__(cell)
        settings = cell.settings
        self.view = View(settings.health_threshold, settings.strategy, Random())  # noqa: S311 (no secret hangs on it)
        self.planner = Planner(self.view)
        self.table = PoolTable(cell.redis, cell.keys, self.planner)
        self.follower = Follower(cell, self._on_fleet)
        self._pools: dict[tuple[str, bytes, str | None], tuple[str, bytes]] = {}
        self.memory = Memory(0, 0)  #: of the server, ten times a second
        self._refused_at = -FULL_S
        self._refusals: dict[str, Refusal] = {}  # by lease, until their reports are settled
        self._wanted: set[str] = set()
        self._suspended: set[str] = set()
        self._kicked = asyncio.Event()
        self._pumping: asyncio.Task[None] | None = None

    def check(self, fact: Fact) -> None:
        """A task and an operator may only name a strategy that exists."""
        if isinstance(fact, StrategySet | SettingSet):
            control.check_setting(fact)
        for one in parts_of(fact):
            if isinstance(one, TaskSubmitted) and one.strategy is not None and one.strategy not in STRATEGIES:
                known = ", ".join(sorted(STRATEGIES))
                raise FactInvalid(f"field 'data': strategy {one.strategy!r} is not one of {known} - at `$.strategy`")

    async def handle(self, batch: list[ReceivedFact[Any]]) -> list[Failure]:
        """One call for each kind of fact in the batch, then the assignments, all in one round trip."""
        await self._read_refusals(batch)
        calls: list[Call[Any]] = []
        told_of: list[list[ReceivedFact[Any]]] = []
        by_handler = _by_handler(batch)
        for handler, told in by_handler.items():
            calls.append(handler(self, told))
            told_of.append(told)
        leases = reports.ending_leases(by_handler.get(Distributor.settle, []))
        room = self.planner.expect_room(leases)
        most = self.cell.settings.batch
        placements = self.planner.plan(max(most, len(leases))) if self._may_place() else []
        pieces = by_agents(placements, most)
        calls += [self.cell.scripts.dispatch(piece) for piece in pieces]
        try:
            answers: list[Any] = await self.cell.scripts.run(*calls)
        except BaseException as error:
            self.planner.unanswered(placements)
            self.planner.room_answered(room)
            # Reports are settled all the same, which makes room; assignments would take it, so they wait a while.
            if isinstance(error, redis_errors.OutOfMemoryError):
                self._refused_at = time.monotonic()
            raise
        self.planner.room_answered(room)
        failures: list[Failure] = []
        for told, answer in zip(told_of, answers, strict=False):
            words = self._hear(answer)
            self.hold(told, words)
            failures += failures_of(told, words)
        for piece, answer in zip(pieces, answers[len(told_of) :], strict=True):
            self._wanted |= self.planner.answered(piece, answer)
        if self._wanted or self._can_place() or self.planner.unread:
            self._kicked.set()
        if Distributor.configure in by_handler:
            await self.read_settings()
        return failures

    def _hear(self, answer: TaskBatch | list[str]) -> list[str]:
        """Take over what a script answered; its words."""
        if isinstance(answer, list):
            return answer
        self.planner.hear(answer)
        return answer.words

    def settle(self, batch: list[ReceivedFact[Any]]) -> Call[TaskBatch]:
        """``settle`` for a batch of reports."""
        return reports.settle(self.cell.scripts, batch, self._take_refusals(batch))

    async def _read_refusals(self, batch: list[ReceivedFact[Any]]) -> None:
        """Find where tasks wait whose payload their agent could not decode; there are few, and mostly none."""
        if refused := refused_payloads(batch):
            try:
                found = await find_refusals(self.cell, self.view, refused)
            except redis_errors.ResponseError as error:  # a foreign key in the place of a record: their tasks fail
                log.warning("refusals.unreadable", error=str(error))
                return
            for refusal in found.values():
                self.planner.define(refusal.pool, refusal.definition)
            self._refusals |= found

    def _take_refusals(self, batch: list[ReceivedFact[Any]]) -> dict[str, Refusal]:
        if not self._refusals:
            return {}
        leases = [one.lease for one in refused_payloads(batch)]
        return {lease: self._refusals.pop(lease) for lease in leases if lease in self._refusals}

    def reclaim(self, batch: list[ReceivedFact[AgentLost]]) -> Call[TaskBatch]:
        """``reclaim`` for a batch of ``AgentLost``."""
        losses: list[Loss] = []
        for entry, fact, _ in batch:
            losses.append(Loss(entry.id, fact.agent_id, fact.term))
        return self.cell.scripts.reclaim(losses)

    def forfeit(self, batch: list[ReceivedFact[LeaseLost]]) -> Call[TaskBatch]:
        """``forfeit`` for a batch of ``LeaseLost``."""
        losses: list[LeaseLoss] = []
        for entry, fact, _ in batch:
            losses.append(LeaseLoss(entry.id, fact.agent_id, fact.task_id, fact.lease))
        return self.cell.scripts.forfeit(losses)

    def cancel(self, batch: list[ReceivedFact[TaskCancelRequested]]) -> Call[TaskBatch]:
        """``cancel`` for a batch of ``TaskCancelRequested``."""
        requests: list[CancelRequest] = []
        for entry, fact, caller in batch:
            requests.append(CancelRequest(entry.id, fact.task_id, caller, fact.reason[: reports.MESSAGE_KEPT]))
        return self.cell.scripts.cancel(requests)

    def admit(self, batch: list[ReceivedFact[Any]]) -> Call[TaskBatch]:
        """``admit`` for a batch of submissions; the plan of this round trip counts on them already."""
        submissions: list[Submission] = []
        pools: dict[str, bytes] = {}
        for told in batch:
            for fact in parts_of(told.fact):
                pool, definition = self._pool_of(fact)
                submission = submission_of(told, fact, pool)
                submissions.append(submission)
                pools[pool] = definition
                if submission.run_at is None and not self.memory.is_nearly_full:
                    self.planner.expect(submission.pool, 1, submission.score)
        is_full = self.memory.is_nearly_full
        return word_for_each(batch, self.cell.scripts.admit(submissions, pools, nearly_full=is_full))

    def configure(self, batch: list[ReceivedFact[StrategySet | SettingSet]]) -> Call[list[str]]:
        """``configure`` for a batch of settings."""
        return control.configure(self.cell.scripts, batch)

    def replay(self, batch: list[ReceivedFact[TaskReplayed]]) -> Call[TaskBatch]:
        """``replay`` for a batch of ``TaskReplayed``."""
        return control.replay(self.cell.scripts, batch)

    def unbury(self, batch: list[ReceivedFact[EntryReplayed]]) -> Call[list[str]]:
        """``unbury`` for a batch of ``EntryReplayed``."""
        return control.unbury(self.cell.scripts, self.kind, batch)

    def purge(self, batch: list[ReceivedFact[DeadPurged]]) -> Call[list[str]]:
        """``purge`` for a batch of ``DeadPurged``."""
        return control.purge(self.cell.scripts, self.kind, "tasks", batch)

    def presence(self) -> dict[str, str]:
        """What its environment says of the settings that may be set live."""
        return queries.environment_fields(self.cell.settings)

    async def wake(self) -> None:
        """Do what is due by the clock."""
        due = 1
        while due:
            (answer,) = await self.cell.scripts.run(self.cell.scripts.wake())
            self.planner.hear(answer)
            due = answer.due
            for word in answer.words:
                if word.startswith("ERROR"):
                    log.error("task.wake_failed", why=word)
        if self._can_place():
            self._kicked.set()

    async def relieve(self) -> None:
        """Free memory where the server is nearly full, and learn how full it is."""
        scripts = self.cell.scripts
        for _ in range(RELIEF_ROUNDS):
            (relief,) = await scripts.run(scripts.relieve())
            before, self.memory = self.memory, relief.memory
            if relief.records:
                log.warning("memory.relieved", records=relief.records, bytes=relief.bytes)
            if before.is_too_full_to_place != self.memory.is_too_full_to_place:
                event = "placement.stopped" if self.memory.is_too_full_to_place else "placement.resumed"
                log.warning(event, used=self.memory.used, maximum=self.memory.maximum)
            if not relief.is_more:
                break
        if self._can_place():
            self._kicked.set()

    async def look_again(self) -> None:
        """Before the view may say that nobody has room: the true loads, and the table of waiting pools if it moved."""
        cell = self.cell
        if self.planner.is_stale:
            await self.table.look()
        starved = self.planner.starved_groups()
        if starved and (unheard := self.view.unheard(starved, UNHEARD_S, REREAD)):
            self.view.hear(await queries.get_loads(cell.redis, cell.keys, unheard))
        if self._can_place() or self.planner.unread:
            self._kicked.set()

    async def read_suspended(self) -> None:
        """Read the rows of suspended agents again: a fact of theirs may have ended that."""
        cell = self.cell
        before = self._suspended
        self._suspended = await queries.get_suspended_agents(cell.redis, cell.keys)
        if changed := before ^ self._suspended:
            await self._on_fleet(changed)

    async def read_pools(self) -> None:
        """The table of waiting pools as it is; now and then even when nothing says that it moved."""
        await self.table.check()
        if self.planner.broken:
            log.error("placement.failed", agents=sorted(self.planner.broken)[:20])
            self._wanted |= self.planner.broken
            self.planner.broken.clear()
            self._kicked.set()

    async def read_settings(self) -> None:
        """What operators have set."""
        cell = self.cell
        found = await queries.get_live_values(cell.redis, cell.keys)
        strategy = found.get("strategy", cell.settings.strategy)
        threshold = _share(found.get("health_threshold", ""), cell.settings.health_threshold)
        if self.view.configure(threshold, strategy if strategy in STRATEGIES else cell.settings.strategy):
            log.info("placement.configured", strategy=self.view.strategy, health_threshold=threshold)
            self._kicked.set()

    async def resync(self) -> None:
        """A new snapshot of everything that is planned on."""
        self._wanted.clear()
        self.planner.forget()
        await self.read_settings()
        await self.relieve()
        self.view.replace(await self.follower.resync())
        await self.read_pools()
        self._kicked.set()

    async def start(self) -> None:
        """Follow the fleet, and place what can be placed without waiting for the next fact."""
        self.follower.disturbed = self.disturbed
        self.follower.start()
        self._pumping = keep("placement.pump", self._pump)

    async def stop(self) -> None:
        """End what ``start`` began."""
        await self.follower.stop()
        if self._pumping is not None:
            await end_tasks(self._pumping)

    def ticks(self) -> dict[str, Tick]:
        """What is done by the clock."""
        return {name: Tick(every, getattr(self, name)) for name, every in TICKS.items()}

    async def _pump(self) -> None:
        """Rounds without new facts, whenever something became placeable."""
        while True:
            await self._kicked.wait()
            self._kicked.clear()
            try:
                if self._wanted:
                    wanted, self._wanted = self._wanted, set()
                    self.view.update(wanted, await queries.get_fleet(self.cell.redis, self.cell.keys, wanted))
                if self._can_place():
                    await self.handle([])
                if self.planner.unread:
                    await self.table.read_lengths()
                    self._kicked.set()
            except (redis_errors.RedisError, OSError) as error:
                log.warning("worker.interrupted", error=f"{type(error).__name__}: {error}")
                self.disturbed()
            except Exception:
                log.exception("placement.failed")
                self.disturbed()

    def _may_place(self) -> bool:
        return not self.memory.is_too_full_to_place and time.monotonic() - self._refused_at >= FULL_S

    def _can_place(self) -> bool:
        return self._may_place() and self.planner.is_ready()

    async def _on_fleet(self, changed: set[str]) -> None:
        rows = await queries.get_fleet(self.cell.redis, self.cell.keys, changed)
        self.view.update(changed, rows)
        self._kicked.set()

    def _pool_of(self, fact: TaskSubmitted) -> tuple[str, bytes]:
        """The task's pool and its definition; the planner gets to know it."""
        key = (fact.task_type, codec.encode(fact.requirements), fact.strategy)
        found = self._pools.get(key)
        if found is None:
            if len(self._pools) >= DEFINITIONS_KEPT:
                self._pools.clear()
            found = self._pools[key] = codec.pool_of(Pool(fact.task_type, fact.requirements, fact.strategy))
        if not self.planner.knows(found[0]):
            self.planner.define(found[0], Pool(fact.task_type, fact.requirements, fact.strategy))
        return found


def _share(raw: str, otherwise: float) -> float:
    """A share (0..1) as an operator has set it; what is none must not stop the placing."""
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(raw)) <= 1:
            return value
    return otherwise


def _by_handler(batch: list[ReceivedFact[Any]]) -> dict[Handler, list[ReceivedFact[Any]]]:
    """The facts of a batch that each handler is for, in the order of their calls."""
    found: dict[Handler, list[ReceivedFact[Any]]] = {handler: [] for handler in HANDLERS.values()}
    for one in batch:
        found[HANDLERS[type(one.fact)]].append(one)
    return {handler: told for handler, told in found.items() if told}


Handler = Callable[[Distributor, list[ReceivedFact[Any]]], Call[Any]]

#: In the order of the calls in a round trip.
HANDLERS: dict[type[Fact], Handler] = {
    TaskStarted: Distributor.settle,
    TaskProgressed: Distributor.settle,
    TaskCompleted: Distributor.settle,
    TasksCompleted: Distributor.settle,
    TaskFailed: Distributor.settle,
    TaskReleased: Distributor.settle,
    AgentLost: Distributor.reclaim,
    LeaseLost: Distributor.forfeit,
    StrategySet: Distributor.configure,
    SettingSet: Distributor.configure,
    TaskReplayed: Distributor.replay,
    EntryReplayed: Distributor.unbury,
    DeadPurged: Distributor.purge,
    TaskCancelRequested: Distributor.cancel,
    TaskSubmitted: Distributor.admit,
    TasksSubmitted: Distributor.admit,
}

#: What is done by the clock: seconds between two times.
TICKS = {
    "wake": 0.1,
    "relieve": 0.1,
    "look_again": 0.05,
    "try_held": 0.05,
    "read_suspended": 0.5,
    "read_pools": 1.0,
    "read_settings": 1.0,
}
