"""The cell under the state machine and how things are done in it; the rules that say what happens are elsewhere."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from hypothesis.stateful import RuleBasedStateMachine
from msgspec.structs import replace
from redis.exceptions import ResponseError

from coord.models.tasks import HEAD_START_MS, Priority, TaskState
from tests.ledger import HELD
from tests.scripts.machine_agents import Distributor, Held, Process
from tests.scripts.machine_checks import (
    assert_books,
    assert_capacity,
    assert_claims,
    assert_heard,
    assert_kept,
    assert_moves,
    assert_order,
    assert_reports_read,
    assert_story,
    assert_suspended,
    assert_terms,
    assert_untouched,
    assert_visible,
)
from tests.scripts.machine_server import TASK_STREAMS, MachineServer, Snapshot
from workers.service import fold_words
from workers.transitions import (
    Call,
    CancelRequest,
    Departure,
    Heartbeat,
    LeaseList,
    LeaseLoss,
    Loss,
    Placement,
    Purge,
    Registration,
    Replay,
    Report,
    StatusChange,
    Submission,
    TaskBatch,
    TasksChange,
)

#: Scripts whose batch is tried again after an error, and may be repeated by a client that missed its answer.
HANDLERS = ("admit", "settle", "cancel", "reclaim", "reclaim_lease", "replay")


class World(RuleBasedStateMachine):
    """One cell and everyone who acts on it."""

    def __init__(self, server: MachineServer) -> None:
        super().__init__()
        self.server = server
        server.begin()
        self.scripts = server.scripts
        self.seen = server.picture()
        self.numbers = itertools.count(1)
        self.distributors = [Distributor(), Distributor()]
        self.processes: list[Process] = []
        self.leases: list[Held] = []  #: all that there ever were
        self.facts: dict[str, Any] = {}  #: entry -> what its worker makes of it
        self.submitted: dict[str, list[str]] = {}  #: acknowledged: task -> its entries
        self.repeatable: list[tuple[Call[Any], tuple[str, ...], tuple[str, ...]]] = []  #: call, streams, entries
        self.kept: tuple[Snapshot, dict[str, list[str]]] | None = None
        self.fail_at = 0
        self.put_off: dict[
            str, float
        ] = {}  #: tasks and agents that ``run_alarms`` could not handle: when it tries again
        self.trimmed = False  #: records of ended tasks were forgotten

    # What is appended.

    def append(self, stream: str, kind: str) -> str:
        """A fact, acknowledged."""
        entry = self.server.append(stream, kind)
        self.seen.facts[stream][entry] = {}
        return entry

    def submission(
        self, task: str, priority: Priority, pool: str, *, digest: str, delay: int, options: dict[str, int]
    ) -> str:
        """A submission, appended; its entry."""
        entry = self.append(f"in:tasks:{priority}", "task.submitted")
        now = int(entry.partition("-")[0])
        run_at = now + delay if delay else None
        score = (run_at or now) - HEAD_START_MS[priority]
        body = msgspec.json.encode({"task": task, "run_at": run_at})
        self.facts[entry] = Submission(entry, priority, task, digest, pool, score, run_at, "c1", True, body, options)
        self.submitted.setdefault(task, []).append(entry)
        return entry

    def submissions(self, tasks: Sequence[str], pool: str, *, digest: str, delay: int) -> str:
        """Several tasks in one entry, appended; the entry."""
        entry = self.submission(tasks[0], Priority.NORMAL, pool, digest=digest, delay=delay, options={})
        first: Submission = self.facts[entry]
        self.facts[entry] = [replace(first, task_id=task) for task in tasks]
        for task in tasks[1:]:
            self.submitted.setdefault(task, []).append(entry)
        return entry

    def request(self, task: str) -> None:
        """A request to cancel, appended."""
        entry = self.append("in:requests", "task.cancel_requested")
        self.facts[entry] = CancelRequest(entry, task, "c2", "not needed")

    def request_replay_of(self, task: str) -> None:
        """An operator's request to try a failed task again, appended."""
        entry = self.append("in:control:distributor", "task.replayed")
        self.facts[entry] = Replay(entry, task, "c3")

    def say(self, kind: str, held: Held) -> None:
        """A report, appended; most of the leases under which something fails may be tried again."""
        entry = self.append("in:reports", f"task.{kind}")
        number = int(held.lease, 16)
        code = "draining" if kind == "released" and number % 3 == 0 else "boom"
        started = 0 if kind == "started" or (kind == "released" and number % 2) else None
        self.facts[entry] = Report(
            entry, kind, *held, caller="a1", started_ms_ago=started, data=b"1", code=code, retryable=number % 4 > 0,
            pool="p9" if kind == "refused" else "", definition=b"{}",
        )  # fmt: skip

    def say_together(self, held: Sequence[Held]) -> None:
        """One entry in which several tasks are reported as completed."""
        entry = self.append("in:reports", "tasks.completed")
        self.facts[entry] = [Report(entry, "completed", *one, caller="a1", data=b"1") for one in held]

    def reports(self, entries: Iterable[str]) -> list[Report]:
        """The reports in these entries."""
        told = [self.facts[entry] for entry in entries]
        return [report for one in told for report in (one if isinstance(one, list) else [one])]

    # What agents do.

    def awake(self, which: int, *, holding: bool = False) -> list[Process]:
        """A process that is not paused (and has claimed something), if there is one."""
        found = [one for one in self.processes if not one.is_paused and (one.claimed or not holding)]
        return [found[which % len(found)]] if found else []

    def start(self, agent: str, *, has_incarnation: bool, capacity: int) -> None:
        """A process of an agent, perhaps beside another one of the same id."""
        incarnation = f"i{next(self.numbers)}" if has_incarnation else ""
        self.processes.append(Process(agent, incarnation, capacity))
        self.register(self.processes[-1])

    def register(self, process: Process) -> None:
        """It says who it is, and ends if it is told that it is nobody any more."""
        entry = self.append("in:registry", "agent.registered")
        one = Registration(
            entry, "", process.agent_id, process.incarnation, process.interval_ms, "", f"d{process.capacity}",
            "type:worker", {"agent_type": "worker", "capacity": process.capacity},
        )  # fmt: skip
        if self.run(self.scripts.register([one]), "in:registry") == ["SUPERSEDED"]:
            self.processes.remove(process)

    def change_status(self, process: Process, status: str) -> None:
        """It drains, comes back or leaves."""
        entry = self.append("in:registry", "agent.status_changed")
        if status == "inactive":
            gone = Departure(entry, "", process.agent_id, process.incarnation)
            self.run(self.scripts.deregister([gone]), "in:registry")
        else:
            changed = StatusChange(entry, "", process.agent_id, process.incarnation, status, {})
            self.run(self.scripts.change_status([changed]), "in:registry")

    def heartbeat(self) -> None:
        """Every process that is not paused gives a sign of life, and does as it is answered."""
        beating = [one for one in self.processes if not one.is_paused]
        beats = []
        for one in beating:
            entry = self.append("in:beats", "agent.heartbeat")
            leases = len(one.claimed) if one.incarnation else None
            beats.append(Heartbeat(entry, "", one.agent_id, one.incarnation, leases, False, False, {}))
        words = self.run(self.scripts.heartbeat(beats), "in:beats") if beats else []
        for process, word in zip(beating, words, strict=True):
            if word == "SUPERSEDED":
                self.processes.remove(process)
            elif word == "UNKNOWN":
                self.register(process)

    def look(self, process: Process, most: int) -> None:
        """It looks into its inbox and claims at most so many."""
        for held, kind in process.look(self.seen):
            self.say(kind, held)
        while process.orders:
            lane, entry = process.orders.pop()
            self.server.delete(process.agent_id, lane, [entry])
        while process.asks:
            entry = self.append("in:registry", "agent.leases_listed")
            leases = {held.lease: held.task_id for held in process.claimed}
            self.facts[entry] = LeaseList(entry, process.agent_id, process.incarnation, process.asks.pop(), leases)
        self.claim(process, most)

    def claim(self, process: Process, most: int) -> None:
        """It claims what it has seen, and gives back what is in doubt."""
        for held in process.claim(self.server, most):
            self.say("released", held)
        self.seen = self.server.picture()

    # What workers do.

    def admit(self, batch: Sequence[str], *, nearly_full: bool = False) -> None:
        """``admit`` for a batch of entries."""
        self.handle(batch, lambda facts: self._admit(facts, nearly_full=nearly_full), *TASK_STREAMS)

    def _admit(self, facts: Sequence[Submission | list[Submission]], *, nearly_full: bool = False) -> Call[TaskBatch]:
        lists = [one if isinstance(one, list) else [one] for one in facts]
        every = [one for some in lists for one in some]
        return folded(lists, self.scripts.admit(every, {one.pool: b"{}" for one in every}, nearly_full=nearly_full))

    def settle(self, batch: Sequence[str]) -> None:
        """``settle`` for a batch of entries; reports under dead or forged leases must change nothing."""
        facts = self.reports(batch)
        before = self.seen
        self.handle(batch, self._settle, "in:reports")
        alive = {one.task_id for one in facts if before.books.records.get(one.task_id, {}).get("lease") == one.lease}
        assert_untouched({one.task_id for one in facts} - alive, before, self.seen)

    def _settle(self, facts: Sequence[Report | list[Report]]) -> Call[TaskBatch]:
        lists = [one if isinstance(one, list) else [one] for one in facts]
        return folded(lists, self.scripts.settle([report for one in lists for report in one]))

    def pause_before(self, which: str, batch: Sequence[str]) -> None:
        """A worker has read a batch and stands still before its script; ``repeat`` lets it go on, much later."""
        calls: dict[str, tuple[Callable[[Any], Call[Any]], tuple[str, ...]]] = {
            "admit": (self._admit, tuple(TASK_STREAMS)),
            "settle": (self._settle, ("in:reports",)),
            "cancel": (self.scripts.cancel, ("in:requests",)),
            "replay": (self.scripts.replay, ("in:control:distributor",)),
        }
        make, streams = calls[which]
        facts: Any = [self.facts[entry] for entry in batch]
        self.repeatable.append((make(facts), streams, tuple(batch)))

    def purge(self, task: str) -> None:
        """An operator forgets the dead letters: one, or all that have been dead for a second."""
        entry = self.append("in:control:distributor", "dead.purged")
        one = Purge(entry, "c3", task, None) if task else Purge(entry, "c3", "", 1_000)
        self.run(self.scripts.purge("distributor", "tasks", [one]), "in:control:distributor")

    def change(self, requests: Sequence[tuple[str, Priority]], tasks: Sequence[str]) -> None:
        """Operators change the same tasks in one batch, whatever their states are; each request: action, priority."""
        changes: list[TasksChange] = []
        for action, priority in requests:
            entry = self.append("in:control:distributor", "tasks.change_requested")
            named = priority if action == "prioritize" else ""
            note = b'{"action":"any"'
            changes.append(TasksChange(entry, "c3", action, " ".join(tasks), named, "not needed", None, note))
        self.run(self.scripts.change_tasks(changes), "in:control:distributor")

    def reclaim(self, batch: Sequence[str]) -> None:
        """``reclaim`` for the lost agents in a batch of entries, ``reclaim_lease`` for the lost leases in it."""
        told = {entry: self.seen.facts["in:losses"][entry] for entry in batch}
        for entry, fields in told.items():
            loss = Loss if fields["type"] == "agent.lost" else LeaseLoss
            self.facts[entry] = loss(entry, **msgspec.json.decode(fields["data"]))
        agents = [entry for entry in batch if isinstance(self.facts[entry], Loss)]
        leases = [entry for entry in batch if isinstance(self.facts[entry], LeaseLoss)]
        before = self.seen
        self.handle(agents, self.scripts.reclaim, "in:losses")
        assert_terms([self.facts[entry] for entry in agents], before, self.seen)
        lost = [self.facts[entry] for entry in leases]
        assert_heard(
            [self.facts[entry] for entry in batch], self.reports(self.seen.waiting("in:reports")), before, self.seen
        )
        before = self.seen
        self.handle(leases, self.scripts.reclaim_lease, "in:losses")
        alive = {one.task_id for one in lost if before.books.records.get(one.task_id, {}).get("lease") == one.lease}
        assert_untouched({one.task_id for one in lost} - alive, before, self.seen)
        for process in self.processes:
            if before.agents[process.agent_id]["incarnation"] == process.incarnation != "":
                assert_kept(process.claimed, "lease_lost", before, self.seen)

    def check_leases(self, batch: Sequence[str]) -> None:
        """``check_leases`` for a batch of entries."""
        self.run(self.scripts.check_leases([self.facts[entry] for entry in batch]), "in:registry")

    def cancel(self, batch: Sequence[str]) -> None:
        """``cancel`` for a batch of entries."""
        self.handle(batch, self.scripts.cancel, "in:requests")

    def replay(self, batch: Sequence[str]) -> None:
        """``replay`` for a batch of entries; only what had failed is touched."""
        before = self.seen
        self.handle(batch, self.scripts.replay, "in:control:distributor")
        tasks = {self.facts[entry].task_id for entry in batch}
        assert_untouched({task for task in tasks if before.state(task) != TaskState.FAILED}, before, self.seen)

    def dispatch(
        self, pools: Sequence[str], seats: Sequence[tuple[str, int]], tasks: Mapping[str, Sequence[str]]
    ) -> None:
        """``dispatch`` of the next task of each pool to the agent beside it, as of its rev, under fresh leases.

        ``tasks``: named queue -> its tasks as they were seen; these are named in turn, some twice.
        """
        named = {pool: itertools.cycle(tasks) for pool, tasks in tasks.items()}
        plan = [
            Placement(pool, agent, rev, f"{next(self.numbers):016x}", b"{}", next(named[pool]) if pool in named else "")
            for pool, (agent, rev) in zip(pools, seats, strict=False)
        ]
        if plan:
            self.run(self.scripts.dispatch(plan))
            records = self.seen.books.records
            self.leases += [Held(task, one["lease"]) for task, one in records.items() if one["state"] in HELD]
            self.leases = list(dict.fromkeys(self.leases))

    def handle(self, batch: Sequence[str], make: Callable[[Any], Call[Any]], *streams: str) -> None:
        """As the worker's loop does: a batch, and what failed in it once more by itself."""
        facts = [self.facts[entry] for entry in batch]
        call = make(facts)
        self.repeatable.append((call, streams, tuple(batch)))
        answer = self.run(call, *streams)
        for n, fact in enumerate(facts):
            if isinstance(answer, ResponseError) or answer.words[n].startswith("ERROR"):
                again = self.run(make([fact]), *streams)
                assert not again.words[0].startswith("ERROR"), again.words

    def run_again(self, call: Call[Any], streams: Sequence[str], batch: Sequence[str]) -> None:
        """A call of before, again or at last; what was handled since has no effect."""
        here = {entry for entries in self.seen.facts.values() for entry in entries}
        before = self.seen
        self.run(call, *streams)
        if not here & set(batch):
            assert self.seen.books == before.books, f"{call.script} did again what was done"

    def run(self, call: Call[Any], *streams: str) -> Any:
        """One script, and everything that must hold after it."""
        fail_at = 0
        if call.script in {*HANDLERS, "dispatch", "run_alarms"}:
            fail_at, self.fail_at = self.fail_at, 0
        before = self.seen
        answer, self.seen = self.server.run(call, streams, fail_at)
        forgotten = assert_moves(call.script, before, self.seen)
        self._forget(forgotten)
        assert_capacity(before, self.seen)
        assert_claims(call.script, before, self.seen)
        assert_story(before, self.seen)
        if call.script == "run_alarms" and fail_at:
            for index, until in self.server.due_until().items():
                due: dict[str, float] = getattr(self.seen.books, index)
                self.put_off |= {name: at for name, at in due.items() if at - until > 50_000}
        assert_books(self.seen, self.put_off, trimmed=self.trimmed)
        assert_visible(self.submitted, self.seen)
        if call.script == "run_alarms":
            assert_reports_read(self.reports(before.waiting("in:reports")), before, self.seen)
        if call.script == "dispatch":
            assert_order(before, self.seen)
            assert_suspended(before, self.seen)
        return answer

    def _forget(self, tasks: Iterable[str]) -> None:
        """These tasks had ended, and nothing is known of them any more, but for what still waits in a stream."""
        for task in tasks:
            self.trimmed = True
            waits = [
                one for one in self.submitted.get(task, ()) if any(one in self.seen.facts[s] for s in TASK_STREAMS)
            ]
            self.submitted[task] = waits
            if not waits:
                del self.submitted[task]


def folded(lists: Sequence[Sequence[Any]], call: Call[TaskBatch]) -> Call[TaskBatch]:
    """A call of which each item of these entries is one, answering a word for each entry."""

    def parse(raw: Any) -> TaskBatch:
        answer = call.parse(raw)
        return replace(answer, words=fold_words([len(one) for one in lists], answer.words))

    return Call(call.script, call.limits, call.args, parse)
