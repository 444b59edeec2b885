"""Named queues in the planner: which of their tasks is planned, what blocks one, and what an answer says of it."""

from __future__ import annotations

from random import Random

import pytest

from coord.models.agents import FleetAgent, Location
from coord.models.tasks import NamedTask, Pool, Preferences, Priority
from coord.placement import AVOIDED_S, STRATEGIES, TaskContext
from coord.placement.load import LeastConnections
from tests.unit.test_planner import ONE, read
from workers import planner as planner_module
from workers.planner import Planner
from workers.transitions import Placement, TaskBatch
from workers.view import View
from workers.waiting import avoided

QUEUE = "p1.named"


class Watched(LeastConnections):
    """Least connections that shows the tasks for which it chose."""

    name = "watched"
    seen: tuple[TaskContext, ...] = ()

    def choose(self, task: TaskContext) -> str | None:
        """Keep the task."""
        Watched.seen += (task,)
        return super().choose(task)


def planner_of(*capacities: int, strategy: str = "watched") -> Planner:
    """A planner on agents a0, a1 … of these capacities."""
    Watched.seen = ()
    view = View(0.5, strategy, Random(1), {**STRATEGIES, "watched": Watched})
    view.replace(
        {f"a{n}": FleetAgent(agent_id=f"a{n}", agent_type="worker", capacity=some) for n, some in enumerate(capacities)}
    )
    return Planner(view)


def task(score: float, task_id: str, *avoid: str, key: str | None = None) -> NamedTask:
    """A task of a named queue."""
    return NamedTask(score, task_id, preferences=Preferences(affinity_key=key), avoid=avoid)


def expect(planner: Planner, *tasks: NamedTask, pool: Pool = ONE) -> None:
    """Let tasks be about to be admitted."""
    planner.define(QUEUE, pool)
    planner.expect_named(QUEUE, list(tasks))


def heard(*words: str, length: int, head: float, rev: int = 1, loads: dict[str, int] | None = None) -> TaskBatch:
    """What a script answers that touched the queue."""
    return TaskBatch(list(words), loads or {}, {QUEUE: (length, head)}, rev, 0)


def named(placements: list[Placement]) -> list[tuple[str, str]]:
    """The tasks and agents of a plan."""
    return [(one.task_id, one.agent_id) for one in placements]


def test_a_strategy_sees_the_task() -> None:
    """Its type, priority, location and key; of a plain task only the type."""
    planner = planner_of(9)
    read(planner, 1, ("p1", ONE, 1, 1.0))
    expect(planner, NamedTask(5.0, "t1", Priority.HIGH, Preferences(Location(region="eu"), "k")))
    assert [one.task_id for one in planner.plan(9)] == ["", "t1"]
    assert Watched.seen[-1] == TaskContext("one", Priority.HIGH, Location(region="eu"), "k")
    assert Watched.seen[0] == TaskContext("one")


def test_the_two_heads_of_a_pool_are_merged_by_their_scores() -> None:
    """Neither queue has to wait for the other."""
    planner = planner_of(9)
    read(planner, 1, ("p1", ONE, 2, 5.0))
    expect(planner, task(7.0, "later"), task(3.0, "earlier"))
    assert [one.task_id for one in planner.plan(9)] == ["earlier", "later", "", ""]
    planner = planner_of(9)
    read(planner, 1, ("p1", ONE, 2, 5.0))
    expect(planner, task(7.0, "later"))
    assert [one.task_id for one in planner.plan(9)] == ["", "", "later"]


def test_a_task_does_not_go_to_an_agent_that_it_avoids() -> None:
    """While another eligible one is there, even if that one is full; then it goes there. It holds up no other task."""
    planner = planner_of(1, 5)
    expect(planner, task(1.0, "first"), task(2.0, "shy", "a1"), task(3.0, "any"))
    planner.view.apply_loads({"a0": 1})
    assert named(planner.plan(9)) == [("first", "a1"), ("any", "a1")]
    assert not planner.is_ready()
    planner.view.apply_loads({"a0": 0})
    assert planner.unblock()
    assert planner.is_ready()
    assert named(planner.plan(9)) == [("shy", "a0")]


def test_a_task_goes_to_an_agent_that_it_avoids_if_no_other_is_eligible() -> None:
    """A worse agent is better than none."""
    planner = planner_of(1)
    expect(planner, task(1.0, "t1", "a0", "gone"))
    assert named(planner.plan(9)) == [("t1", "a0")]


class Clock:
    """Takes the place of the module ``time`` in the planner."""

    now = 100.0

    def monotonic(self) -> float:
        """Return the time, in seconds."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the planner, which stands until a test moves it."""
    clock = Clock()
    monkeypatch.setattr(planner_module, "time", clock)
    return clock


@pytest.mark.guarantee("retry-elsewhere")
def test_a_task_waits_for_agents_that_it_does_not_avoid_for_a_while_only(clock: Clock) -> None:
    """⚠ They may be full for hours, and the slot of the avoided agent would stay free as long."""
    planner = planner_of(1, 9)
    planner.view.apply_loads({"a0": 1})
    expect(planner, task(1.0, "t1", "a1"), task(2.0, "t2", "a1"))
    assert planner.plan(9) == []
    clock.now += AVOIDED_S - 0.01
    assert planner.plan(9) == []
    clock.now += 0.01
    assert named(planner.plan(9)) == [("t1", "a1"), ("t2", "a1")]


def test_a_task_that_has_waited_still_prefers_other_agents(clock: Clock) -> None:
    """It does not go to an agent that it avoids if another one has room by then."""
    planner = planner_of(1, 9)
    planner.view.apply_loads({"a0": 1})
    expect(planner, task(1.0, "t1", "a1"), task(2.0, "t2", "a1"))
    assert planner.plan(9) == []
    clock.now += AVOIDED_S
    planner.view.apply_loads({"a0": 0, "a1": 0})
    assert named(planner.plan(9)) == [("t1", "a0"), ("t2", "a1")]


def test_the_wait_of_a_task_counts_from_when_it_could_have_gone_to_an_agent(clock: Clock) -> None:
    """Neither the time in which no agent has room counts, nor the wait before its last attempt."""
    planner = planner_of(1, 1)
    planner.view.apply_loads({"a0": 1, "a1": 1})
    expect(planner, task(1.0, "t1", "a1"))
    clock.now += AVOIDED_S
    planner.view.apply_loads({"a1": 0})
    assert planner.plan(9) == []
    clock.now += AVOIDED_S
    plan = planner.plan(9)
    assert named(plan) == [("t1", "a1")]
    planner.answered(plan, heard("ASSIGNED", loads={"a1": 0}, length=1, head=1.0))
    planner.measure_named(QUEUE, [task(1.0, "t1", "a1")], 1)
    assert planner.plan(9) == []


def test_the_wait_of_a_task_that_is_read_again_goes_on(clock: Clock) -> None:
    """Queues with tasks that wait are read each second; what another distributor has assigned is forgotten."""
    planner = planner_of(1, 1)
    planner.view.apply_loads({"a0": 1})
    expect(planner, task(1.0, "t1", "a1"), task(2.0, "t2", "a1"))
    assert planner.plan(9) == []
    clock.now += AVOIDED_S / 2
    planner.measure_named(QUEUE, [task(2.0, "t2", "a1")], 1)
    planner.measure_named(QUEUE, [task(1.0, "t1", "a1"), task(2.0, "t2", "a1")], 2)
    clock.now += AVOIDED_S / 2
    assert named(planner.plan(9)) == [("t2", "a1")]


@pytest.mark.parametrize(
    ("listed", "eligible", "found"),
    [
        (["a"], {"a", "b"}, {"a"}),
        (["a"], {"a"}, set()),
        (["gone", "a"], {"a"}, {"gone"}),
        (["a", "b"], {"a", "b"}, {"a"}),
        (["b", "a"], {"a", "b", "c"}, {"a", "b"}),
        (["a", "a", "b"], {"a", "b"}, {"a"}),
    ],
)
def test_the_last_agent_that_failed_is_avoided_first(listed: list[str], eligible: set[str], found: set[str]) -> None:
    """At least one eligible agent is left."""
    assert avoided(listed, eligible) == found


def test_a_group_that_is_full_sleeps() -> None:
    """A task that avoids an agent is not asked for again and again while no agent has room."""
    planner = planner_of(1, 1)
    expect(planner, task(1.0, "t1", "a0"), task(2.0, "t2", "a0"))
    planner.view.apply_loads({"a0": 1, "a1": 1})
    assert planner.plan(9) == []
    assert not planner.unblock()
    planner.view.apply_loads({"a1": 0})
    assert named(planner.plan(9)) == [("t1", "a1")]


@pytest.mark.parametrize("word", ["FULL", "CHANGED", "INACTIVE", "ERROR boom"])
def test_a_task_that_still_waits_is_planned_again(word: str) -> None:
    """In its place; a task that is gone is not."""
    planner = planner_of(9, 9)
    expect(planner, task(1.0, "t1"), task(2.0, "t2"), task(3.0, "t3"))
    plan = planner.plan(2)
    answer = heard(word, "GONE", rev=0, loads={"a0": 0, "a1": 0}, length=2, head=1.0)
    planner.answered(plan, answer)
    planner.view.apply_loads({"a0": 0, "a1": 0})
    assert [one.task_id for one in planner.plan(9)] == ["t1", "t3"]


def test_a_round_trip_that_failed_leaves_its_tasks_to_be_planned() -> None:
    """If they were assigned all the same, dispatch says that they are gone."""
    planner = planner_of(9)
    expect(planner, task(1.0, "t1"))
    planner.unanswered(planner.plan(9))
    plan = planner.plan(9)
    assert named(plan) == [("t1", "a0")]
    planner.answered(plan, heard("GONE", loads={"a0": 0}, length=0, head=0.0))
    assert planner.waiting == {}


def test_tasks_of_others_are_read() -> None:
    """When the known ones are planned, or one that is not known comes first; those in flight are not planned twice."""
    planner = planner_of(9)
    planner.define("p1", ONE)
    planner.apply(heard(length=2, head=1.0))
    assert not planner.is_ready()
    assert list(planner.unread) == [QUEUE]
    planner.measure_named(QUEUE, [task(1.0, "t1"), task(2.0, "t2")], 2)
    assert not planner.unread
    plan = planner.plan(1)
    assert named(plan) == [("t1", "a0")]
    planner.measure_named(QUEUE, [task(1.0, "t1"), task(2.0, "t2")], 3)
    assert [one.task_id for one in planner.plan(9)] == ["t2"]
    planner.answered(plan, heard("ASSIGNED", loads={"a0": 1}, length=2, head=2.0))
    assert not planner.is_ready()
    assert list(planner.unread) == [QUEUE]


def test_a_task_that_comes_first_is_read_before_the_known_ones() -> None:
    """Another distributor admitted an urgent one."""
    planner = planner_of(9)
    expect(planner, task(5.0, "t1"))
    planner.apply(heard(length=2, head=1.0))
    assert not planner.is_ready()
    assert list(planner.unread) == [QUEUE]


def test_a_task_behind_unknown_ones_waits_until_they_are_read() -> None:
    """A newer task does not overtake them because this distributor happens to know it."""
    planner = planner_of(9)
    expect(planner, task(5.0, "t1"))
    planner.measure(QUEUE, 3, 5.0)
    planner.expect_named(QUEUE, [task(9.0, "new"), task(1.0, "urgent")])
    assert [one.task_id for one in planner.plan(9)] == ["urgent", "t1"]


def test_a_task_that_comes_while_its_queue_is_read_is_read_as_well() -> None:
    """⚠ The answer that admitted it is newer than what was read: nothing else would ever name the task."""
    planner = planner_of(9)
    planner.define("p1", ONE)
    planner.apply(heard(length=1, head=1.0))
    assert not planner.is_ready()
    assert list(planner.unread) == [QUEUE]
    planner.expect_named(QUEUE, [task(2.0, "t2")])
    planner.apply(heard(length=1, head=2.0))
    planner.measure_named(QUEUE, [], None)
    assert not planner.is_ready()
    assert list(planner.unread) == [QUEUE]
    planner.measure_named(QUEUE, [task(2.0, "t2")], 1)
    assert named(planner.plan(9)) == [("t2", "a0")]


def test_a_queue_whose_order_has_changed_is_read_before_more_of_it_is_planned() -> None:
    """⚠ All its tasks are known, and its head may be the same: only the change itself shows it."""
    planner = planner_of(9)
    expect(planner, task(1.0, "t1"), task(2.0, "t2"), task(3.0, "t3"))
    planner.apply(heard(length=3, head=1.0))
    planner.reorder([QUEUE, "p1", "unknown"])
    planner.apply(heard(length=3, head=1.0))
    assert planner.plan(9) == []
    assert list(planner.unread) == [QUEUE]
    planner.measure_named(QUEUE, [task(1.0, "t1"), task(3.0, "t3"), task(9.0, "t2")], 3)
    assert [one.task_id for one in planner.plan(9)] == ["t1", "t3", "t2"]


def test_a_queue_whose_order_changes_while_it_is_read_is_read_again() -> None:
    """What was read is of the order before."""
    planner = planner_of(9)
    expect(planner, task(1.0, "t1"), task(2.0, "t2"))
    planner.reorder([QUEUE])
    order = planner.order_of(QUEUE)
    planner.reorder([QUEUE])
    planner.measure_named(QUEUE, [task(1.0, "t1"), task(2.0, "t2")], 2, order=order)
    assert planner.plan(9) == []
    assert list(planner.unread) == [QUEUE]
    planner.measure_named(QUEUE, [task(0.0, "t2"), task(1.0, "t1")], None, order=planner.order_of(QUEUE))
    assert [one.task_id for one in planner.plan(9)] == ["t2", "t1"]


def test_a_planned_task_that_comes_back_has_its_new_place() -> None:
    """It was read while it was planned; its agent was full."""
    planner = planner_of(9)
    expect(planner, task(1.0, "t1"), task(2.0, "t2"))
    plan = planner.plan(1)
    planner.reorder([QUEUE])
    planner.measure_named(QUEUE, [task(2.0, "t2"), task(9.0, "t1", key="new")], 2)
    planner.answered(plan, heard("FULL", loads={"a0": 0}, length=2, head=2.0))
    assert [one.task_id for one in planner.plan(9)] == ["t2", "t1"]
    assert Watched.seen[-1].affinity_key == "new"


def test_a_head_before_all_known_tasks_is_read() -> None:
    """Also if as many tasks are known as wait: another distributor may have had one exchanged."""
    planner = planner_of(9)
    expect(planner, task(5.0, "t1"), task(6.0, "t2"))
    planner.apply(heard(length=2, head=1.0))
    assert not planner.is_ready()
    assert list(planner.unread) == [QUEUE]


def test_a_queue_that_has_ended_is_forgotten() -> None:
    """Whatever was blocked in it."""
    planner = planner_of(1, 1)
    expect(planner, task(1.0, "t1", "a0"))
    planner.view.apply_loads({"a1": 1})
    assert planner.plan(9) == []
    planner.reread_blocked()
    assert list(planner.unread) == [QUEUE]
    planner.measure_named(QUEUE, [], 0)
    assert not planner.unblock()
    assert planner.waiting == {}
    assert planner.unread == {}
