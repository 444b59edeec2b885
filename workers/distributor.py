"""The distributor: decides which agent gets each task, and records the outcome.

Any number of distributors share the work. Each plans on its own view of the fleet; the dispatch script alone decides.
One round trip carries the scripts for reports, losses, requests and submissions, and the assignments planned on top of
them.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Collection, Mapping
from random import Random
from typing import Any, ClassVar

from msgspec.structs import asdict
from redis import exceptions as redis_errors

from coord import codec, config, logs, queries
from coord.background import keep
from coord.errors import ConfigError, FactInvalid
from coord.models.cell import Memory
from coord.models.facts import (
    AgentLost,
    DeadPurged,
    EntryReplayed,
    Fact,
    LeaseLost,
    SettingSet,
    StrategySet,
    TaskCancelRequested,
    TaskCompleted,
    TaskFailed,
    TaskProgressed,
    TaskReleased,
    TaskReplayed,
    TasksChangeRequested,
    TasksCompleted,
    TaskStarted,
    parts_of,
)
from coord.models.tasks import (
    Modifiers,
    NamedTask,
    Pool,
    TasksSubmitted,
    TaskSubmitted,
    is_named,
    named_queue,
    size_class,
)
from coord.plugins import load_strategies, strategy_packages
from coord.suggestions import not_one_of
from workers.agent_state import Withheld
from workers.follower import Follower
from workers.learner import Learner
from workers.live_rules import cell_rules, switch, type_rules
from workers.pieces import by_agents, by_changes
from workers.plan_log import PlanLog
from workers.planner import DEFINITIONS_KEPT, Planner
from workers.pool_table import PoolTable
from workers.refusals import Refusal, find_refusals, redirected, refused_tasks
from workers.service import (
    Failure,
    ReceivedFact,
    Service,
    Tick,
    WorkerContext,
    end_tasks,
    failures_of,
    ticks_of,
    word_for_each,
)
from workers.shared_loads import LoadsEntry, SharedLoads
from workers.task_facts import MESSAGE_KEPT, endings_of, named_task_of, reports_of, submissions_of
from workers.transitions import (
    Call,
    CancelRequest,
    EjectionNotice,
    LeaseLoss,
    Loss,
    Replay,
    SettingChange,
    Submission,
    TaskBatch,
    TasksChange,
)
from workers.view import View
from workers.waiting_counts import WaitingCounter

log = logs.get_logger()

#: Loads older than this, in seconds, are read again before the view concludes that no agent has room for a pool.
STALE_LOAD_S = 0.05
#: Agents whose true loads are read in one round trip.
REREAD = 1_000
#: Calls that free memory in one tick. What they free together is more than callers write in a tenth of a second.
RELIEF_ROUNDS = 8
#: Batches of tasks that one plan may place. With one, a plan that fills a fleet stops when each agent has got a part of
#: its room, and from then on each agent gets its tasks, reports them and is woken in these parts.
PLANNED_BATCHES = 4
#: Seconds without assignments after the server refused one for lack of memory.
FULL_S = 1.0


class Distributor(Service):
    """Admits tasks, places them, and settles their outcomes."""

    kind: ClassVar[str] = "distributor"
    checked: ClassVar[frozenset[type[Fact]]] = frozenset({StrategySet, SettingSet, TaskSubmitted, TasksSubmitted})
    #: Each round trip's own facts are fenced by leases and ids, so their order does not matter. Four keep the server
    #: busy while this process packs and unpacks: the drain gains about a tenth over two; more were not tried.
    depth: ClassVar[int] = 4

    def __init__(self, cell: WorkerContext) -> None:
        super().__init__(cell)
        settings = cell.settings
        self.strategies = load_strategies(log)
        if settings.strategy not in self.strategies:
            raise ConfigError(not_one_of(config.variable_of("strategy"), settings.strategy, sorted(self.strategies)))
        # Any random numbers do: no secret depends on them.
        self.view = View(settings.health_threshold, settings.strategy, Random(), self.strategies)  # noqa: S311
        self.planner = Planner(self.view)
        self.table = PoolTable(cell.redis, cell.keys, self.planner)
        self.learner = Learner(self.view, self.planner)
        self.counter = WaitingCounter(cell, self.view, self.planner, self.learner.id)
        self.plan_log = PlanLog(cell, self.view)
        self.shared_loads = SharedLoads(self.view, self.learner.id)
        self._share_loads(has_siblings=True)  # the first heartbeat shows whether there are any
        self.follower = Follower(
            cell, self._on_agents_changed, self.view.apply_reports, self._on_learned, self._on_loads
        )
        self._pools: dict[tuple[str, bytes, str | None, Modifiers | None, float | None], tuple[str, bytes]] = {}
        self.memory = Memory(0, 0)  #: of the server, ten times a second
        self._refused_at = -FULL_S
        self._refusals: dict[str, Refusal] = {}  # by lease, until their reports are settled
        self._outdated: set[str] = set()  # agents whose rows are read again before the next plan
        self._suspended: set[str] = set()  # agents whose row in the view says so, or whose row is about to be read
        self._warned_of: set[str] = set()  # strategies that are set and not installed here
        self._has_work = asyncio.Event()
        self._pumping: asyncio.Task[None] | None = None

    def check(self, fact: Fact) -> None:
        """Check that every strategy that a fact names exists, and that a setting may have its value.

        Raises:
            FactInvalid: a task names an unknown strategy.
            ConfigError: a setting is unknown, or may not have this value.
        """
        if isinstance(fact, StrategySet | SettingSet):
            _check_setting(fact, self.strategies)
        for part in parts_of(fact):
            if isinstance(part, TaskSubmitted) and part.strategy is not None and part.strategy not in self.strategies:
                problem = not_one_of("strategy", part.strategy, sorted(self.strategies))
                raise FactInvalid(f"field 'data': {problem} - at `$.strategy`")

    async def handle(self, batch: list[ReceivedFact[Any]]) -> list[Failure]:
        """Handle a batch in one round trip; if operators change many tasks, in several, so that other work goes on."""
        failures: list[Failure] = []
        for piece in by_changes(batch):
            failures += await self._handle_piece(piece)
        return failures

    async def _handle_piece(self, batch: list[ReceivedFact[Any]]) -> list[Failure]:
        """Make one call for each kind of fact, then the assignments, all in one round trip."""
        await self._read_refusals(batch)
        by_handler = _by_handler(batch)
        batches = list(by_handler.values())
        calls: list[Call[Any]] = [handler(self, facts) for handler, facts in by_handler.items()]
        endings = endings_of(by_handler.get(Distributor.settle, []))
        ended = self.planner.end_leases([report.lease for report in endings])
        room = self.planner.expect_room(ended)
        most = self.cell.settings.batch
        placements = self.planner.plan(max(PLANNED_BATCHES * most, len(endings))) if self._may_place() else []
        self.plan_log.cut()
        pieces = by_agents(placements, most)
        calls += [self.cell.scripts.dispatch(piece) for piece in pieces]
        began = time.monotonic()
        try:
            answers: list[Any] = await self.cell.scripts.run(*calls)
        except BaseException as error:
            self.planner.unanswered(placements)
            self.planner.room_answered(room)
            # Reports are settled all the same, which frees memory; assignments would take it, so they wait a while.
            if isinstance(error, redis_errors.OutOfMemoryError):
                self._refused_at = time.monotonic()
            raise
        self.planner.room_answered(room)
        self.learner.settled(endings, ended, time.monotonic())
        failures: list[Failure] = []
        for handler, facts, answer in zip(by_handler, batches, answers, strict=False):
            words = self._apply_answer(answer)
            if handler is Distributor.change_tasks:
                self.planner.reorder(answer.pools)
            self.defer(facts, words)
            failures += failures_of(facts, words)
        for piece, answer in zip(pieces, answers[len(batches) :], strict=True):
            self._outdated |= self.planner.answered(piece, answer)
        if placements:
            self.shared_loads.took(time.monotonic() - began)
        self._use_room_later()
        if self._outdated or self.learner.ejections or self._can_place() or self.planner.unread:
            self._has_work.set()
        if Distributor.configure in by_handler:
            await self.read_settings()
        return failures

    def _apply_answer(self, answer: TaskBatch | list[str]) -> list[str]:
        """Apply the answer of a script to the plan; return its words."""
        if isinstance(answer, list):
            return answer
        self.planner.apply(answer)
        return answer.words

    def settle(self, batch: list[ReceivedFact[Any]]) -> Call[TaskBatch]:
        """``settle`` for a batch of reports."""
        reports = reports_of(batch)
        if refusals := self._take_refusals(batch):
            reports = [redirected(report, refusals) for report in reports]
        return word_for_each(batch, self.cell.scripts.settle(reports))

    async def _read_refusals(self, batch: list[ReceivedFact[Any]]) -> None:
        """Find where tasks wait that their agent could not run; there are few, and mostly none."""
        if refused := refused_tasks(batch):
            try:
                found = await find_refusals(self.cell, self.view, self.follower, refused)
            except redis_errors.ResponseError as error:  # a foreign key in the place of a record: their tasks fail
                log.warning("refusals.unreadable", error=str(error))
                return
            for refusal in found.values():
                if refusal.pool:
                    self.planner.define(refusal.pool, refusal.definition)
            self._refusals |= found

    def _take_refusals(self, batch: list[ReceivedFact[Any]]) -> dict[str, Refusal]:
        if not self._refusals:
            return {}
        leases = [fact.lease for fact in refused_tasks(batch)]
        return {lease: self._refusals.pop(lease) for lease in leases if lease in self._refusals}

    def reclaim(self, batch: list[ReceivedFact[AgentLost]]) -> Call[TaskBatch]:
        """``reclaim`` for a batch of ``AgentLost``."""
        losses: list[Loss] = []
        for entry, fact, _ in batch:
            losses.append(Loss(entry.id, fact.agent_id, fact.term))
        return self.cell.scripts.reclaim(losses)

    def reclaim_lease(self, batch: list[ReceivedFact[LeaseLost]]) -> Call[TaskBatch]:
        """``reclaim_lease`` for a batch of ``LeaseLost``."""
        losses: list[LeaseLoss] = []
        for entry, fact, _ in batch:
            losses.append(LeaseLoss(entry.id, fact.agent_id, fact.task_id, fact.lease))
        return self.cell.scripts.reclaim_lease(losses)

    def cancel(self, batch: list[ReceivedFact[TaskCancelRequested]]) -> Call[TaskBatch]:
        """``cancel`` for a batch of ``TaskCancelRequested``."""
        requests: list[CancelRequest] = []
        for entry, fact, caller in batch:
            reason = fact.reason[:MESSAGE_KEPT]
            is_operators = entry.stream != "in:requests"
            requests.append(CancelRequest(entry.id, fact.task_id, caller, reason, is_operators))
        return self.cell.scripts.cancel(requests)

    def admit(self, batch: list[ReceivedFact[Any]]) -> Call[TaskBatch]:
        """``admit`` for a batch of submissions; the plan of this round trip already includes them."""
        definitions: dict[str, bytes] = {}
        types: dict[str, str] = {}

        def pool_of(fact: TaskSubmitted) -> str:
            pool, definition = self._pool_of(fact)
            definitions[pool], types[pool] = definition, fact.task_type
            return pool

        submissions = [submission for received in batch for submission in submissions_of(received, pool_of)]
        is_full = self.memory.is_nearly_full
        if not is_full:
            self._expect(submissions)
        return word_for_each(batch, self.cell.scripts.admit(submissions, definitions, types, nearly_full=is_full))

    def _expect(self, submissions: list[Submission]) -> None:
        """Let the planner know of tasks that are about to wait."""
        scores: dict[str, list[int]] = {}
        for submission in submissions:
            if submission.run_at is None:
                scores.setdefault(submission.pool, []).append(submission.score)
        named: dict[str, list[NamedTask]] = {}
        for pool, of_pool in scores.items():
            if is_named(pool):
                named[pool] = []
            else:
                self.planner.expect(pool, len(of_pool), min(of_pool))
        for submission in submissions if named else ():
            if submission.run_at is None and submission.pool in named:
                named[submission.pool].append(named_task_of(submission))
        for pool, tasks in named.items():
            self.planner.expect_named(pool, tasks)

    def configure(self, batch: list[ReceivedFact[StrategySet | SettingSet]]) -> Call[list[str]]:
        """``configure`` for a batch of settings that were checked."""
        changes: list[SettingChange] = []
        for entry, fact, caller in batch:
            name, value = _setting_of(fact)
            text = None if value is None else config.live_text(name, value)
            changes.append(SettingChange(entry.id, caller, name, fact.task_type, text, fact.by))
        return self.cell.scripts.configure(changes)

    def replay(self, batch: list[ReceivedFact[TaskReplayed]]) -> Call[TaskBatch]:
        """``replay`` for a batch of ``TaskReplayed``."""
        return self.cell.scripts.replay([Replay(entry.id, fact.task_id, caller) for entry, fact, caller in batch])

    def change_tasks(self, batch: list[ReceivedFact[TasksChangeRequested]]) -> Call[TaskBatch]:
        """``change_tasks`` for a batch of ``TasksChangeRequested``."""
        changes: list[TasksChange] = []
        for entry, fact, caller in batch:
            note = {
                "action": fact.action,
                "priority": fact.priority,
                "query": fact.query,
                "operation": fact.operation,
                "count": len(fact.task_ids),
            }
            changes.append(
                TasksChange(
                    entry.id,
                    caller,
                    fact.action,
                    " ".join(fact.task_ids),
                    fact.priority or "",
                    fact.reason[:MESSAGE_KEPT],
                    fact.before,
                    codec.encode(note)[:-1],
                )
            )
        return self.cell.scripts.change_tasks(changes)

    def purge(self, batch: list[ReceivedFact[DeadPurged]]) -> Call[list[str]]:
        """``purge`` for a batch of ``DeadPurged``."""
        return self.purge_dead("tasks", batch)

    def heartbeat_fields(self) -> dict[str, str]:
        """Return the environment values of the live settings, and the packages of strategies that are not coord's."""
        packages = {name: package for name, package in strategy_packages().items() if name in self.strategies}
        return queries.environment_fields(self.cell.settings) | queries.package_fields(packages)

    async def run_alarms(self) -> None:
        """Do what is due by the clocks."""
        due = 1
        while due:
            (answer,) = await self.cell.scripts.run(self.cell.scripts.run_alarms())
            self.planner.apply(answer)
            self.learner.timed_out(answer.timed_out, time.monotonic())
            self._use_room_later()
            due = answer.due
            for word in answer.words:
                if word.startswith("ERROR"):
                    log.error("task.wake_failed", why=word)
        if self._can_place():
            self._has_work.set()

    async def relieve(self) -> None:
        """Free memory if the server is nearly full, and learn how full it is."""
        scripts = self.cell.scripts
        for _ in range(RELIEF_ROUNDS):
            (relief,) = await scripts.run(scripts.relieve())
            before, self.memory = self.memory, relief.memory
            if relief.records or relief.letters:
                log.warning("memory.relieved", records=relief.records, dead_letters=relief.letters, bytes=relief.bytes)
            if before.is_too_full_to_place != self.memory.is_too_full_to_place:
                event = "placement.stopped" if self.memory.is_too_full_to_place else "placement.resumed"
                log.warning(event, used=self.memory.used, maximum=self.memory.maximum)
            if not relief.is_more:
                break
        if self._can_place():
            self._has_work.set()

    async def refresh_loads(self) -> None:
        """Read the true loads before the view concludes that no agent has room; and the table of pools if it moved."""
        cell = self.cell
        if self.planner.is_stale:
            await self.table.look()
        starved = self.planner.starved_groups()
        # The loads that are shared show more than a read does: whose room it is.
        old_s = 2 * self.shared_loads.room_delay_s if self.planner.has_siblings else 0.0
        if starved and (stale := self.view.stale_agents(starved, max(STALE_LOAD_S, old_s), REREAD)):
            began = time.monotonic()
            self.view.apply_read_loads(await queries.get_loads(cell.redis, cell.keys, stale), began)
        self.planner.unblock()
        if self._can_place() or self.planner.unread:
            self._has_work.set()

    async def read_suspended(self) -> None:
        """Read the rows of suspended agents again: a fact of theirs may have ended the suspension."""
        cell = self.cell
        before = self._suspended
        self._suspended = await queries.get_suspended_agents(cell.redis, cell.keys)
        if changed := before ^ self._suspended:  # rows that were read meanwhile are in ``before``
            await self._on_agents_changed(changed)

    async def read_pools(self) -> None:
        """Check the table of waiting pools, also when nothing indicates a change."""
        await self.table.check()
        if self.planner.broken:
            log.error("placement.failed", agents=sorted(self.planner.broken)[:20])
            self._outdated |= self.planner.broken
            self.planner.broken.clear()
            self._has_work.set()

    async def advance(self) -> None:
        """Apply the time that has passed to the view."""
        self.view.advance()

    async def apply_lessons(self) -> None:
        """Let the strategies know what was learned; record new ejections."""
        self.learner.review(time.monotonic())
        if self.learner.ejections or self._can_place():
            self._has_work.set()

    async def share_lessons(self) -> None:
        """Share what was learned with the other distributors. What a full server refuses is not shared."""
        data = self.learner.take(time.monotonic())
        if data is not None:
            await self._record_lessons(data)

    async def _record_lessons(self, data: bytes) -> None:
        ejections, self.learner.ejections = self.learner.ejections, []
        notices = [
            EjectionNotice(
                one.agent_id,
                one.task_type,
                round(one.for_s * 1000),
                f"{one.failure_rate:.2f}",
                f"{one.others_rate:.2f}",
                one.in_a_row,
            )
            for one in ejections
        ]
        for notice in notices:
            event = "agent.ejected" if notice.ms else "agent.readmitted"
            log.warning(event, agent_id=notice.agent_id, task_type=notice.task_type, failure_rate=notice.failure_rate)
        scripts = self.cell.scripts
        try:
            await scripts.run(scripts.learn(self.learner.id, data, notices))
        except redis_errors.RedisError as error:
            self.learner.ejections[:0] = ejections
            if not isinstance(error, redis_errors.OutOfMemoryError):
                raise

    async def count_waiting(self) -> None:
        """Count the waiting tasks by reason, unless another distributor does."""
        await self.counter.tick()

    async def read_settings(self) -> None:
        """Read the settings that operators have set, and apply them to the view."""
        cell = self.cell
        found = await queries.get_live_values(cell.redis, cell.keys)
        threshold = _share(found.get("health_threshold", ""), cell.settings.health_threshold)
        rules, of_types = cell_rules(found, cell.settings, self.strategies), type_rules(found)
        has_changed = self.view.configure(threshold, rules, of_types)
        self._configure_recording(found, has_changed=has_changed)
        if has_changed:
            log.info("placement.configured", health_threshold=threshold, **asdict(rules), types=sorted(of_types)[:20])
            self._has_work.set()
        set_for_cell = {found["strategy"]} if "strategy" in found else set()
        set_for_types = {own.strategy for own in of_types.values() if own.strategy is not None}
        await self._warn_of_missing((set_for_cell | set_for_types | self.view.missing) - self.strategies.keys())

    def _configure_recording(self, live: Mapping[str, str], *, has_changed: bool) -> None:
        """Apply whether plans are recorded, and full scores asked for; a segment has one set of rules."""
        settings, before = self.cell.settings, self.view.full_scores
        self.view.full_scores = switch(live, "full_scores", otherwise=settings.full_scores)
        record = switch(live, "record_plans", otherwise=settings.record_plans)
        if has_changed or self.view.full_scores is not before or record is not self.plan_log.is_wanted:
            self.plan_log.configure(record=record)

    async def record_plans(self) -> None:
        """Append what was recorded of the plans."""
        await self.plan_log.flush()

    async def _warn_of_missing(self, names: set[str]) -> None:
        """Warn once of each strategy that is set and not installed here; name the package that has it."""
        self.view.missing.clear()
        self._warned_of &= names
        if names <= self._warned_of:
            return
        packages = await queries.get_strategy_packages(self.cell.redis, self.cell.keys)
        for name in sorted(names - self._warned_of):
            package = packages.get(name)
            what = f"package {package}" if package else f"package with the entry point {name!r} of coord.strategies"
            log.warning("strategy.not_installed", strategy=name, instead=self.view.strategy, hint=f"install the {what}")
        self._warned_of |= names

    async def resync(self) -> None:
        """Take a new snapshot of everything that plans depend on."""
        self._outdated.clear()
        self.planner.forget()
        await self.read_settings()
        await self.relieve()
        fleet = await self.follower.resync()
        self._suspended.update(agent_id for agent_id, row in fleet.items() if row.suspended)
        self.view.replace(fleet)
        await self.follower.read_learned()
        await self.read_pools()
        self._has_work.set()

    async def start(self) -> None:
        """Follow the fleet, and place whatever can be placed without waiting for the next fact."""
        self.follower.request_recovery = self.request_recovery
        self.follower.start()
        self._pumping = keep("placement.pump", self._pump)

    async def stop(self) -> None:
        """Stop what ``start`` started."""
        await self.follower.stop()
        if self._pumping is not None:
            await end_tasks(self._pumping)
        with contextlib.suppress(redis_errors.RedisError, OSError):
            await self.plan_log.flush()

    def ticks(self) -> dict[str, Tick]:
        """Return what is done periodically, by name."""
        return ticks_of(self, TICKS)

    async def _pump(self) -> None:
        """Run rounds without new facts, whenever something can be placed."""
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            try:
                if self._outdated:
                    outdated, self._outdated = self._outdated, set()
                    await self._read_agents(outdated)
                if self.learner.ejections:
                    await self._record_lessons(b"")
                if self._can_place():
                    await self.handle([])
                if self.planner.unread:
                    await self.table.read_lengths()
                    self._has_work.set()
            except (redis_errors.RedisError, OSError) as error:
                log.warning("worker.interrupted", error=f"{type(error).__name__}: {error}")
                self.request_recovery()
            except Exception:
                log.exception("placement.failed")
                self.request_recovery()

    def _may_place(self) -> bool:
        return not self.memory.is_too_full_to_place and time.monotonic() - self._refused_at >= FULL_S

    def _can_place(self) -> bool:
        return self._may_place() and self.planner.is_ready()

    async def _on_agents_changed(self, changed: set[str]) -> None:
        await self._read_agents(changed)
        self._has_work.set()

    async def _read_agents(self, agent_ids: set[str]) -> None:
        """Read the rows of agents into the view.

        A suspension may begin and end between two calls of ``read_suspended``. So one that a row shows counts as known.
        """
        began = time.monotonic()
        rows = await queries.get_fleet(self.cell.redis, self.cell.keys, agent_ids)
        self._suspended.update(agent_id for agent_id, row in rows.items() if row.suspended)
        self.view.update(agent_ids, rows, began)

    def know_siblings(self, names: Collection[str]) -> None:
        """Share the loads while there are other distributors."""
        self._share_loads(has_siblings=bool(names))

    def _on_loads(self, entries: list[LoadsEntry]) -> None:
        if self.shared_loads.receive(entries):
            self._share_loads(has_siblings=True)  # also of one that has just started
            self._use_room_later()
            if self._can_place():
                self._has_work.set()

    def _share_loads(self, *, has_siblings: bool) -> None:
        self.planner.has_siblings = has_siblings
        self.cell.scripts.share_loads(self.learner.id if has_siblings else "")

    def _use_room_later(self) -> None:
        """Use room that others made when they have had time to use it; then place what still can be placed."""
        withheld = self.shared_loads.take_withheld()
        if withheld:
            asyncio.get_running_loop().call_later(self.shared_loads.next_delay_s(), self._use_room, withheld)

    def _use_room(self, ended: list[Withheld]) -> None:
        self.view.end_withholding(ended)
        self._use_room_later()
        if self._can_place():
            self._has_work.set()

    def _on_learned(self, by: str, data: bytes, age_s: float) -> None:
        self.learner.receive(by, data, time.monotonic() - age_s, is_old=age_s > 0)

    def _pool_of(self, fact: TaskSubmitted) -> tuple[str, bytes]:
        """Return the queue of the task's pool, and the definition of the pool; the planner learns it."""
        key = (fact.task_type, codec.encode(fact.requirements), fact.strategy, fact.modifiers, _size_of(fact))
        found = self._pools.get(key)
        if found is None:
            if len(self._pools) >= DEFINITIONS_KEPT:
                self._pools.clear()
            found = self._pools[key] = codec.pool_of(_definition_of(fact))
        if not self.planner.knows(found[0]):
            self.planner.define(found[0], _definition_of(fact))
        if fact.location is None and fact.affinity_key is None:
            return found
        named = named_queue(found[0])
        if not self.planner.knows(named):
            self.planner.define(named, _definition_of(fact))
        return named, found[1]


def _definition_of(fact: TaskSubmitted) -> Pool:
    return Pool(fact.task_type, fact.requirements, fact.strategy, fact.modifiers, expected_ms=_size_of(fact))


def _size_of(fact: TaskSubmitted) -> float | None:
    return None if fact.expected_ms is None else size_class(fact.expected_ms)


def _check_setting(fact: StrategySet | SettingSet, strategies: Collection[str]) -> None:
    """Check the name and the value of a setting; a value of None resets it to the environment.

    Raises:
        ConfigError: names the settings that exist, or the values that this one may have.
    """
    name, value = _setting_of(fact)
    config.check_live(name, fact.task_type)
    if value is None:
        return
    if name == "strategy" and value not in strategies:
        raise ConfigError(not_one_of("strategy", value, sorted(strategies)))
    config.live_text(name, value)


def _setting_of(fact: StrategySet | SettingSet) -> tuple[str, str | float | None]:
    return ("strategy", fact.strategy) if isinstance(fact, StrategySet) else (fact.name, fact.value)


def _share(raw: str, otherwise: float) -> float:
    """Return a share (0 to 1) that an operator set, or ``otherwise``: an invalid value must not stop placement."""
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(raw)) <= 1:
            return value
    return otherwise


def _by_handler(batch: list[ReceivedFact[Any]]) -> dict[Handler, list[ReceivedFact[Any]]]:
    """Return the facts of each handler, in the order in which the handlers are called."""
    found: dict[Handler, list[ReceivedFact[Any]]] = {handler: [] for handler in HANDLERS.values()}
    for received in batch:
        found[HANDLERS[type(received.fact)]].append(received)
    return {handler: facts for handler, facts in found.items() if facts}


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
    LeaseLost: Distributor.reclaim_lease,
    StrategySet: Distributor.configure,
    SettingSet: Distributor.configure,
    TaskReplayed: Distributor.replay,
    TasksChangeRequested: Distributor.change_tasks,
    EntryReplayed: Distributor.requeue,
    DeadPurged: Distributor.purge,
    TaskCancelRequested: Distributor.cancel,
    TaskSubmitted: Distributor.admit,
    TasksSubmitted: Distributor.admit,
}

#: What is done periodically: seconds between two calls.
TICKS = {
    "run_alarms": 0.1,
    "relieve": 0.1,
    "refresh_loads": 0.05,
    "retry_deferred": 0.05,
    "read_suspended": 0.5,
    "read_pools": 1.0,
    "read_settings": 1.0,
    "advance": 1.0,
    "apply_lessons": 0.25,
    "share_lessons": 1.0,
    "count_waiting": 1.0,
    "record_plans": 0.25,
}
