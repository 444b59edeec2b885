"""The rules of the state machine: what may happen, in any order, and how everything is brought to an end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from coord.models.cell import Memory
from coord.models.tasks import Priority
from tests.scripts.machine_checks import ENDED
from tests.scripts.machine_server import TASK_STREAMS
from tests.scripts.machine_world import World

TASKS = [f"t{n}" for n in range(8)]
POOLS = ["p1", "p2", "p1.named"]
AGENTS = ["a1", "a2"]
SOME = st.integers(0, 99)
#: What a paused worker has read, by its script.
PAUSES: dict[str, list[str]] = {
    "admit": TASK_STREAMS,
    "settle": ["in:reports"],
    "cancel": ["in:requests"],
    "replay": ["in:control:distributor"],
}
REPORTS = ["started", "progressed", "completed", "completed", "failed", "released", "refused"]

OPTIONS: list[dict[str, int]] = [{}, {}, {"timeout": 3_000}, {"max_attempts": 2}, {"deadline": 4_000}]
JUMPS = [1, 1, 100, 1_000, 2_000, 5_000, 11_000, 61_000, 400_000]
LIVES = [*["start", "pause", "active"] * 2, "unnamed", "refresh", "crash", "forget", "draining", "inactive"]


def some(of: Sequence[Any], first: int, most: int) -> list[Any]:
    """At most so many, beginning anywhere and from there round; so any of them may come before any other."""
    return [of[(first + n) % len(of)] for n in range(min(most, len(of)))]


class Machine(World):
    """What may happen."""

    @initialize()
    def begin(self) -> None:
        """Two agents are there, a task that has failed for good, and three that wait."""
        for agent in AGENTS:
            self.start(agent, has_incarnation=True, capacity=2)
        once = {"max_attempts": 1}
        self.admit([self.submission(TASKS[3], Priority.LOW, "p2", digest="d1", delay=0, options=once)])
        self.dispatch_some(which=0, first=0, most=1, blind=0, fresh=True, claimed=True)
        for process in self.awake(0, holding=True):
            held = process.claimed[0]
            self.say("failed", held)
            process.finish(held, "failed")
        self.settle(self.seen.waiting("in:reports"))
        self.admit([self.submission(one, Priority.LOW, "p1", digest="d1", delay=0, options={}) for one in TASKS[:3]])

    @rule(
        task=st.sampled_from(TASKS),
        priority=st.sampled_from(list(Priority)),
        pool=st.sampled_from(POOLS),
        digest=st.sampled_from(["d1", "d1", "d1", "d2"]),
        delay=st.sampled_from([0, 0, 1_000]),
        option=st.sampled_from(OPTIONS),
        at_once=st.booleans(),
    )
    def submit(
        self,
        *,
        task: str,
        priority: Priority,
        pool: str,
        digest: str,
        delay: int,
        option: dict[str, int],
        at_once: bool,
    ) -> None:
        """A client submits a task: a new one, one that is known, or other content under a known id."""
        options = {name: ms + (self.server.now if name == "deadline" else 0) for name, ms in option.items()}
        entry = self.submission(task, priority, pool, digest=digest, delay=delay, options=options)
        if at_once:
            self.admit([entry])

    @rule(
        first=SOME,
        most=st.integers(2, 3),
        pool=st.sampled_from(POOLS),
        digest=st.sampled_from(["d1", "d1", "d2"]),
        delay=st.sampled_from([0, 0, 1_000]),
        at_once=st.booleans(),
    )
    def submit_together(self, *, first: int, most: int, pool: str, digest: str, delay: int, at_once: bool) -> None:
        """A client submits several tasks in one entry: new ones, known ones, other content under a known id."""
        entry = self.submissions(some(TASKS, first, most), pool, digest=digest, delay=delay)
        if at_once:
            self.admit([entry])

    @precondition(lambda self: self.submitted)
    @rule(which=st.integers(0, 9), at_once=st.booleans())
    def request_cancel(self, which: int, at_once: bool) -> None:
        """A client cancels a task that was submitted, perhaps not yet admitted, or one that nobody knows."""
        self.request("unknown" if which == 9 else list(self.submitted)[which % len(self.submitted)])
        if at_once:
            self.cancel(self.seen.waiting("in:requests")[-1:])

    @precondition(lambda self: any(self.seen.facts[stream] for stream in TASK_STREAMS))
    @rule(first=SOME, most=st.integers(1, 4), full=st.integers(0, 19))
    def admit_some(self, first: int, most: int, full: int) -> None:
        """Submissions of any streams in any order, now and then on a server that is nearly full."""
        waiting = [entry for stream in TASK_STREAMS for entry in self.seen.waiting(stream)]
        self.admit(some(waiting, first, most), nearly_full=full == 1)

    @precondition(lambda self: self.seen.books.pools or any(one.pools for one in self.distributors))
    @rule(
        which=st.integers(0, 1),
        first=SOME,
        most=st.integers(1, 4),
        blind=st.sampled_from([0, 0, 2]),
        fresh=st.booleans(),
        claimed=st.booleans(),
    )
    def dispatch_some(self, *, which: int, first: int, most: int, blind: int, fresh: bool, claimed: bool) -> None:
        """A distributor plans on what it saw when it last looked (``fresh``: now), or on more room than that."""
        view = self.distributors[which]
        if fresh:
            view.refresh(self.seen)
        seats = [(agent, rev) for agent, (rev, room) in view.fleet.items() for _ in range(room + blind)]
        wanted = [pool for pool, length in view.pools.items() for _ in range(length + blind)]
        self.dispatch(some(wanted, first, most), some(seats, first, most), view.named)
        for n in range(len(self.processes) if claimed else 0):
            for process in self.awake(n):
                self.look(process, 3)

    @precondition(lambda self: self.seen.facts["in:reports"])
    @rule(first=SOME, most=st.integers(1, 4))
    def settle_some(self, first: int, most: int) -> None:
        """Reports in any order."""
        self.settle(some(self.seen.waiting("in:reports"), first, most))

    @precondition(lambda self: self.seen.facts["in:losses"])
    @rule(first=SOME, most=st.integers(1, 2))
    def reclaim_some(self, first: int, most: int) -> None:
        """Losses, some long after the agent came back."""
        self.reclaim(some(self.seen.waiting("in:losses"), first, most))

    @precondition(lambda self: self.seen.facts["in:registry"])
    @rule(first=SOME, most=st.integers(1, 2))
    def audit_some(self, first: int, most: int) -> None:
        """Lists of leases, made a while ago."""
        self.check_leases(some(self.seen.waiting("in:registry"), first, most))

    @precondition(lambda self: self.seen.facts["in:requests"])
    @rule(first=SOME, most=st.integers(1, 3))
    def cancel_some(self, first: int, most: int) -> None:
        """Requests in any order."""
        self.cancel(some(self.seen.waiting("in:requests"), first, most))

    @precondition(lambda self: "failed" in map(self.seen.state, self.submitted))
    @rule(which=SOME, times=st.sampled_from([1, 1, 2]), at_once=st.booleans())
    def request_replay(self, which: int, times: int, at_once: bool) -> None:
        """An operator sets a failed task going again, twice when the client repeats the write, or any other task."""
        failed = [task for task in self.submitted if self.seen.state(task) == "failed"]
        tasks = failed if which % 4 else list(self.submitted)
        for _ in range(times):
            self.request_replay_of(tasks[which % len(tasks)])
        if at_once:
            self.replay(self.seen.waiting("in:control:distributor")[-times:])

    @precondition(lambda self: self.submitted)
    @rule(
        requests=st.lists(
            st.tuples(
                st.sampled_from(["cancel", "replay", "prioritize", "prioritize"]), st.sampled_from(list(Priority))
            ),
            min_size=1,
            max_size=3,
        ),
        first=SOME,
        most=st.integers(1, 4),
    )
    def change_tasks(self, requests: list[tuple[str, Priority]], first: int, most: int) -> None:
        """Operators change many tasks at once, also such as are not in a state for it."""
        tasks = list(self.submitted)
        self.change(requests, [tasks[(first + n) % len(tasks)] for n in range(most)])

    @precondition(lambda self: self.seen.facts["in:control:distributor"])
    @rule(first=SOME, most=st.integers(1, 3))
    def replay_some(self, first: int, most: int) -> None:
        """Operators' requests in any order, some long after."""
        self.replay(some(self.seen.waiting("in:control:distributor"), first, most))

    @rule(later=st.sampled_from(JUMPS), most=st.sampled_from([1, 1000, 1000]), absent=st.booleans())
    def run_alarms(self, *, later: int, most: int, absent: bool) -> None:
        """What is due, perhaps long after; the distributor was at work meanwhile, or it (or Redis) was away."""
        self.server.now += later
        if not absent:
            self.server.tick()
        self.run(self.scripts.run_alarms(most))

    @rule(by=st.sampled_from([-3_600_000, -5_000, -1, 5_000, 3_600_000]))
    def set_clock(self, by: int) -> None:
        """Somebody sets the server's clock."""
        self.server.now += by

    @rule(later=st.sampled_from(JUMPS), most=st.sampled_from([1, 3, 1000]))
    def relieve(self, later: int, most: int) -> None:
        """The server is nearly full: ended tasks that did not fail give up what they hold; no other record changes."""
        self.server.now += later
        before = self.seen.books.records
        self.run(self.scripts.relieve(most, memory=Memory(10**9, 10**9)))
        for task, one in before.items():
            if one["state"] not in {"completed", "cancelled", "expired"}:
                assert self.seen.books.records[task] == one

    @precondition(lambda self: self.repeatable)
    @rule(which=SOME)
    def repeat(self, which: int) -> None:
        """A call of before, again: its answer was lost; or one that its worker had not sent yet. Never dispatch."""
        self.run_again(*self.repeatable[-1 - which % len(self.repeatable)])

    @rule(what=st.sampled_from(sorted(PAUSES)), first=SOME, most=st.integers(1, 4))
    def pause(self, what: str, first: int, most: int) -> None:
        """A worker stands still between its read and its script; a sibling takes its entries over meanwhile."""
        waiting = [entry for stream in PAUSES[what] for entry in self.seen.waiting(stream)]
        if waiting:
            self.pause_before(what, some(waiting, first, most))

    @precondition(lambda self: self.seen.books.ended["tasks:dead"])
    @rule(which=SOME, every=st.booleans())
    def purge_some(self, *, which: int, every: bool) -> None:
        """An operator forgets dead letters."""
        dead = sorted(self.seen.books.ended["tasks:dead"])
        self.purge("" if every else dead[which % len(dead)])

    @rule(keys=st.integers(1, 20))
    def fail(self, keys: int) -> None:
        """The next script of tasks finds this one of the keys that it touches broken; afterwards it is whole again."""
        self.fail_at = keys

    @rule(which=SOME, what=st.sampled_from(LIVES))
    def live(self, which: int, what: str) -> None:
        """A process starts, says who it is, crashes, pauses or goes on, forgets what it has, drains, or leaves."""
        if what in {"start", "unnamed"} or not self.processes:
            if len(self.processes) < 5:
                self.start(AGENTS[which % 2], has_incarnation=what != "unnamed", capacity=1 + which % 3)
            return
        process = self.processes[which % len(self.processes)]
        if what == "refresh":
            self.register(process)
        elif what == "crash":
            self.processes.remove(process)
        elif what == "forget":
            process.claimed.clear()
        elif what == "pause":
            process.is_paused = not process.is_paused
        else:
            self.change_status(process, what)

    @rule(ticks=st.integers(1, 3), answered=st.booleans())
    def tick(self, ticks: int, answered: bool) -> None:
        """Two seconds at a time: whoever is not paused beats, and who has not for long is given up."""
        for _ in range(ticks):
            self.server.now += 2_000
            self.heartbeat()
            for process in self.processes if answered else ():
                if not process.is_paused:
                    self.look(process, 0)
            if answered:
                self.check_leases(self.seen.waiting("in:registry"))
            self.run(self.scripts.tick_liveness())

    @precondition(lambda self: any(self.seen.books.inboxes.values()) or any(one.read for one in self.processes))
    @rule(which=SOME, most=st.integers(0, 3), looks=st.sampled_from([True, True, False]))
    def claim_some(self, which: int, most: int, looks: bool) -> None:
        """An agent claims what it sees in its inbox, or saw there earlier and may have been recalled."""
        for process in self.awake(which):
            if looks:
                self.look(process, most)
            else:
                self.claim(process, most)

    @precondition(lambda self: self.awake(0, holding=True))
    @rule(which=SOME, kind=st.sampled_from(REPORTS), times=st.sampled_from([1, 1, 2]), at_once=st.booleans())
    def report(self, which: int, kind: str, times: int, at_once: bool) -> None:
        """An agent reports on a task that it has claimed, twice when its client repeats the write."""
        for process in self.awake(which, holding=True):
            held = process.claimed[which % len(process.claimed)]
            for _ in range(times):
                self.say(kind, held)
            if kind not in {"started", "progressed"}:
                process.finish(held, kind)
            if at_once:
                self.settle(self.seen.waiting("in:reports")[-1:])

    @precondition(lambda self: self.awake(0, holding=True))
    @rule(
        which=SOME, most=st.integers(1, 3), times=st.sampled_from([1, 1, 2]), stale=st.booleans(), at_once=st.booleans()
    )
    def report_together(self, *, which: int, most: int, times: int, stale: bool, at_once: bool) -> None:
        """An agent tells in one entry of several tasks that it has completed, perhaps of a lease that it has lost."""
        for process in self.awake(which, holding=True):
            held = process.claimed[:most]
            for _ in range(times):
                self.say_together([*held, self.leases[0]] if stale else held)
            for one in held:
                process.finish(one, "completed")
            if at_once:
                self.settle(self.seen.waiting("in:reports")[-1:])

    @precondition(lambda self: self.leases)
    @rule(which=SOME, kind=st.sampled_from(REPORTS), forged=st.sampled_from([False, False, True]))
    def report_late(self, which: int, kind: str, forged: bool) -> None:
        """A report under any lease there ever was, or under one that nobody was given."""
        held = self.leases[-1 - which % len(self.leases)]
        self.say(kind, held._replace(lease=f"f{next(self.numbers):015x}") if forged else held)

    @rule()
    def keep(self) -> None:
        """A replica has everything up to here."""
        self.kept = (self.server.snapshot(), {task: list(entries) for task, entries in self.submitted.items()})

    @precondition(lambda self: self.kept is not None)
    @rule()
    def fail_over(self) -> None:
        """The replica is promoted: what was written since is lost, and everyone but the server remembers it."""
        assert self.kept is not None
        self.server.restore(self.kept[0])
        self.seen = self.server.picture()
        self.submitted = {task: list(entries) for task, entries in self.kept[1].items()}
        self.repeatable.clear()

    def teardown(self) -> None:
        """Bring everything to an end: every task has an outcome, and nothing is left of it anywhere."""
        self.fail_at = 0
        self.server.set_right()
        self.processes.clear()
        for agent in AGENTS:
            self.start(agent, has_incarnation=True, capacity=3)
        # What they get now is theirs, though the losses of those before them are still to be heard of.
        self.dispatch_some(which=0, first=0, most=99, blind=0, fresh=True, claimed=False)
        self.finish_facts()
        for _ in range(40):
            if self.open_tasks():
                self.server.now += 400_000
                self.server.tick()
                self.run(self.scripts.run_alarms())
                self.heartbeat()
                self.dispatch_some(which=0, first=0, most=99, blind=0, fresh=True, claimed=False)
                for process in self.processes:
                    self.look(process, 9)
                    while process.read:
                        self.claim(process, 9)
                    while process.claimed:
                        self.say("completed", process.claimed.pop())
                self.finish_facts()
        assert not self.open_tasks()
        assert not self.seen.books.inflight
        assert not any(self.seen.facts.values())
        assert not any(self.server.pending(stream) for stream in self.seen.facts)

    def open_tasks(self) -> dict[str, str]:
        """Tasks that have no outcome yet."""
        states = {task: one["state"] for task, one in self.seen.books.records.items()}
        return {task: state for task, state in states.items() if state not in {*ENDED, "refused"}}

    def finish_facts(self) -> None:
        """Every fact that waits, in the order in which a distributor takes them."""
        waiting = self.seen.waiting
        self.settle(waiting("in:reports"))
        self.check_leases(waiting("in:registry"))
        if waiting("in:losses"):
            self.reclaim(waiting("in:losses"))
        self.replay(waiting("in:control:distributor"))
        self.cancel(waiting("in:requests"))
        self.admit([entry for stream in TASK_STREAMS for entry in waiting(stream)])
