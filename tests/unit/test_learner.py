"""What a distributor learns from reports, and what it shares: counts, times, bounds."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest

from coord.models.agents import FleetAgent
from coord.models.facts import TaskCompleted, TaskFailed, TaskReleased
from workers import learner as learner_module
from workers.learner import Learner
from workers.planner import Planner
from workers.task_facts import Ending
from workers.transitions import Placement, TaskBatch
from workers.view import View


def learner_of(agents: int = 3) -> Learner:
    """A distributor's learner, with some agents in its view."""
    view = View(0.5, "predictive", Random(1))
    view.replace({f"a{n}": FleetAgent(agent_id=f"a{n}", agent_type="worker", capacity=8) for n in range(agents)})
    return Learner(view, Planner(view))


def place(
    learner: Learner,
    *leases: str,
    agent_id: str = "a0",
    load: float = 0,
    task_type: str = "t",
    expected_ms: float | None = None,
) -> None:
    """Remember assignments, as after a dispatch."""
    placements = [Placement("p", agent_id, 1, lease, b"{}", "", task_type, load, expected_ms) for lease in leases]
    learner.planner.answered(placements, TaskBatch(["ASSIGNED"] * len(leases), {}, {}, 0, 0))


def settle(learner: Learner, *endings: Ending, now: float = 0.0) -> None:
    """Settle reports, as after a round trip."""
    learner.settled(endings, learner.planner.end_leases([one.lease for one in endings]), now)


def completed(lease: str, ms: int | None = 2_000) -> TaskCompleted:
    """A result after some time."""
    return TaskCompleted(lease, lease, started_ms_ago=ms)


def failed(lease: str, code: str = "handler_failed") -> TaskFailed:
    """A failure."""
    return TaskFailed(lease, lease, code=code)


def exchange(learner: Learner, *others: Learner, now: float = 0.0) -> bytes | None:
    """Share what one learner has learned with others."""
    data = learner.take(now)
    if data is not None:
        for other in (learner, *others):
            other.receive(learner.id, data, now)
    return data


def test_successes_teach_times_and_failures_teach_rates() -> None:
    """By agent and task type; a release teaches nothing, and the lease of a report counts once."""
    learner = learner_of()
    place(learner, "1", "2", "3", "4")
    settle(learner, completed("1"), completed("2"), TaskReleased("4", "4"), completed("1"))
    assert len(learner.view.learned) == 0
    settle(learner, failed("3"))  # a failure is applied at once
    learned = learner.view.learned
    assert list(learned) == [("a0", ("t", None))]
    assert learned.service_s("a0", "t") == pytest.approx(2.0)
    assert learned.failure_rate("a0", "t") == pytest.approx(1 / 3, abs=0.01)


def test_tasks_of_a_known_size_teach_their_type_and_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also failures, and also those that others settle; an agent is ejected by its attempts, each counted once."""
    learner, other = learner_of(), learner_of()
    judged: list[int] = []
    monkeypatch.setattr(learner.view.ejections, "record", lambda *given: judged.append(given[2]))
    place(learner, "1", "2", "3", expected_ms=1024.0)
    place(learner, "4", "5")
    settle(learner, completed("1"), failed("2"), completed("4", 500))
    settle(other, completed("3"), failed("5"))
    exchange(other, learner)
    place(learner, "6", expected_ms=1024.0)
    learner.timed_out(["6"], 0.0)
    learner.apply(0.0)
    exchange(learner, other)
    assert sum(judged) == 6
    for one in (learner, other):
        of_type, sized = (one.view.learned.of_type("t", size) for size in (None, 1024.0))
        assert of_type is not None
        assert sized is not None
        assert (of_type.cells["a0"].sums.samples, of_type.cells["a0"].sums.attempts) == (3, 6)
        assert (sized.cells["a0"].sums.samples, sized.cells["a0"].sums.attempts) == (2, 4)
        assert sized.cells["a0"].sums.time == pytest.approx(4.0, rel=0.05)


def test_samples_wait_while_nothing_reads_them() -> None:
    """Adding costs something for each agent and task type, so it is done rarely until a strategy needs it."""
    learner = learner_of()
    learned = learner.view.learned
    learner.review(100.0)
    place(learner, "1", "2")
    settle(learner, completed("1"), now=100.0)
    learner.review(100.0 + 0.9 * learner_module.UNREAD_S)
    assert len(learned) == 0
    assert learned.service_s("a0", "t") is None  # as a strategy that scores
    learner.review(100.0 + 0.9 * learner_module.UNREAD_S)
    assert learned.service_s("a0", "t") == pytest.approx(2.0)
    learner.review(100.0 + learner_module.UNREAD_S)  # it was read
    settle(learner, completed("2", 8_000), now=106.0)
    learner.review(106.0)
    learner.review(100.0 + 2 * learner_module.UNREAD_S)
    assert learned.service_s("a0", "t") == pytest.approx(4.0, rel=0.1)


def test_a_failure_adds_the_attempts_of_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, because an agent may be ejected for it; other types wait, and their samples are counted."""
    monkeypatch.setattr(learner_module, "MOST_SAMPLES", 1)
    monkeypatch.setattr(learner_module, "MOST_UNREAD", 1)
    learner = learner_of()
    learner.review(100.0)
    place(learner, "1", "2")
    place(learner, "3", "4", task_type="u")
    settle(learner, completed("3"), completed("1"), failed("2"), now=100.0)
    assert list(learner.view.learned) == [("a0", ("t", None))]
    settle(learner, completed("4"), now=100.0)  # with "3" it is one more than may wait
    assert list(learner.view.learned) == [("a0", ("t", None)), ("a0", ("u", None))]


def test_the_load_at_the_start_is_known() -> None:
    """Times that grow with the load raise the exponent; times that do not, lower it."""
    shared, independent = learner_of(), learner_of()
    for n in range(200):
        for learner, ms in ((shared, 1_000 * (1 + n % 4)), (independent, 1_000)):
            place(learner, f"{n}", load=n % 4)
            settle(learner, completed(f"{n}", ms), now=n)
            learner.apply(n)
    assert shared.view.learned.exponent > 0.9
    assert independent.view.learned.exponent < 0.1


def test_a_report_without_a_time_counts_from_the_assignment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Agents in other languages need not report how long they took; it is never 0."""
    monkeypatch.setattr("workers.planner.time.monotonic", lambda: 100.0)
    learner = learner_of()
    place(learner, "1")
    settle(learner, completed("1", None), now=103.0)
    place(learner, "2", agent_id="a1")
    settle(learner, completed("2", 0), now=103.0)
    learner.apply(103.0)
    cells = {key: learner.view.learned.of_type("t").cells[key] for key in ("a0", "a1")}  # type: ignore[union-attr]
    assert cells["a0"].sums.time == pytest.approx(3.0)
    assert cells["a1"].sums.time == learner_module.LEAST_S


def test_a_payload_of_another_version_is_no_failure() -> None:
    """It goes to an agent of another version: neither agent fails."""
    learner, other = learner_of(), learner_of()
    place(learner, "1")
    settle(learner, failed("1", "payload_invalid"), failed("2", "payload_invalid"))
    learner.apply(0.0)
    assert learner.view.learned.failure_rate("a0", "t") == 0
    data = exchange(learner, other)
    assert data is None or b'"2"' not in data


def test_distributors_learn_from_each_other() -> None:
    """What one has settled, the others know after the exchange, and it counts once."""
    one, other = learner_of(), learner_of()
    for learner, agent_id, ms in ((one, "a0", 1_000), (other, "a1", 4_000)):
        leases = [f"{agent_id}-{n}" for n in range(50)]
        place(learner, *leases, agent_id=agent_id)
        settle(learner, *(completed(lease, ms) for lease in leases))
    exchange(one, other)
    exchange(other, one)
    for learner in (one, other):
        assert learner.view.learned.service_s("a0", "t") == pytest.approx(1.0, rel=0.05)
        assert learner.view.learned.service_s("a1", "t") == pytest.approx(4.0, rel=0.05)
    assert exchange(one, other) is None
    assert exchange(other, one) is None


def test_the_end_of_a_foreign_lease_reaches_the_distributor_that_placed_it() -> None:
    """Only that one knows the agent, the type and the load; it then shares what it learned."""
    placed, settled = learner_of(), learner_of()
    place(placed, "1", "2", "3")
    settle(settled, completed("1"), failed("2"), completed("3", None))
    assert len(settled.view.learned) == 0
    exchange(settled, placed)
    exchange(placed, settled)
    for learner in (placed, settled):
        cell = learner.view.learned.of_type("t").cells["a0"]  # type: ignore[union-attr]
        assert (cell.sums.samples, cell.sums.attempts) == (1, 3)
        assert cell.failure_rate == 0 or learner.view.learned.failure_rate("a0", "t") == pytest.approx(1 / 3, abs=0.01)
    assert placed.planner.end_leases(["1", "2", "3"]) == [None] * 3


def test_what_is_shared_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs that do not fit follow a second later; ends of foreign leases that do not fit are dropped."""
    monkeypatch.setattr(learner_module, "MOST_CHANGES", 2)
    monkeypatch.setattr(learner_module, "MOST_UNREAD_CHANGES", 3)
    monkeypatch.setattr(learner_module, "MOST_ENDINGS", 3)
    learner, other = learner_of(5), learner_of(5)
    for n in range(5):
        place(learner, f"{n}", agent_id=f"a{n}")
        settle(learner, completed(f"{n}"), completed(f"foreign-{n}"))
    sizes: list[tuple[int, int]] = []
    while (data := exchange(learner, other)) is not None:
        changes, *endings = msgspec.json.decode(data)
        sizes.append((len(changes), len(endings[0]) if endings else 0))
        assert learner.view.learned.of_type("t"), "as a strategy does"
    assert sizes == [(3, 3), (2, 0)]
    for n in range(5):
        place(learner, f"{n}", agent_id=f"a{n}")
        settle(learner, completed(f"{n}"))
    sizes.clear()
    while (data := exchange(learner, other)) is not None:
        sizes.append((len(msgspec.json.decode(data)[0]), 0))
    assert sizes == [(2, 0), (2, 0), (1, 0)]
    assert len(other.view.learned) == 5


def test_samples_are_applied_at_once_when_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """So they never take much memory, whatever comes between two ticks."""
    monkeypatch.setattr(learner_module, "MOST_SAMPLES", 10)
    learner = learner_of()
    place(learner, *(f"{n}" for n in range(20)))
    settle(learner, *(completed(f"{n}") for n in range(9)))
    assert len(learner.view.learned) == 0
    settle(learner, completed("9"), completed("10"))
    assert len(learner.view.learned) == 1


def test_agents_that_are_gone_teach_nothing() -> None:
    """Neither from own reports nor from those of others: their cells would never be dropped."""
    learner, other = learner_of(), learner_of()
    place(learner, "1", agent_id="a2")
    place(other, "2", agent_id="a2")
    for one in (learner, other):
        settle(one, completed("1" if one is learner else "2"))
    data = other.take(0.0)
    assert data is not None
    learner.view.update(["a2"], {})
    learner.apply(0.0)
    learner.receive(other.id, data, 0.0)
    assert len(learner.view.learned) == 0


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'[[["a0","t"]]]', b'[[["a0","t",["x"]]]]', b"\xff"])
def test_an_entry_that_cannot_be_read_is_skipped(data: bytes) -> None:
    """It changes nothing, and the next one is read."""
    learner = learner_of()
    learner.receive("other", data, 0.0)
    assert len(learner.view.learned) == 0


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_a_jump_of_the_clock_does_no_harm(jump: float) -> None:
    """An entry that seems to be a day old or new is merged; later samples count as usual."""
    learner, other = learner_of(), learner_of()
    place(other, *(f"{n}" for n in range(20)))
    settle(other, *(completed(f"{n}") for n in range(20)), now=1_000.0)
    data = other.take(1_000.0)
    assert data is not None
    learner.receive(other.id, data, 1_000.0 + jump)
    for n in range(60):
        place(learner, f"own-{n}")
        settle(learner, completed(f"own-{n}", 500), now=1_001.0 + n)
        learner.apply(1_001.0 + n)
    service_s: Any = learner.view.learned.service_s("a0", "t")
    assert 0.4 < service_s < 1.3


def test_an_attempt_that_took_too_long_is_a_failure() -> None:
    """An agent that never finishes is as bad as one that fails; another distributor may find out."""
    learner, other = learner_of(), learner_of()
    place(learner, "1", "2")
    learner.timed_out(["1"], 0.0)
    other.timed_out(["2", "unknown"], 0.0)
    exchange(other, learner)
    exchange(learner)
    cell = learner.view.learned.of_type("t").cells["a0"]  # type: ignore[union-attr]
    assert (cell.sums.attempts, cell.sums.samples) == (2, 0)
    assert learner.view.learned.failure_rate("a0", "t") > 0.9


def test_failures_eject_an_agent_and_the_others_adopt_nothing_old() -> None:
    """It is to be recorded once. What a log held before this process read it ejects, and is recorded already."""
    learner, late = learner_of(), learner_of()
    leases = [f"{n}" for n in range(8)]
    place(learner, *leases)
    settle(learner, *(failed(lease) for lease in leases))
    (ejection,) = learner.ejections
    assert (ejection.agent_id, ejection.task_type, ejection.for_s) == ("a0", "t", 30.0)
    assert learner.view.must_regroup
    data = learner.take(0.0)
    assert data is not None
    late.receive(learner.id, data, 0.0, is_old=True)
    assert late.view.ejections.has_ejected("t")
    assert late.ejections == []
    late.review(31.0)
    assert not late.view.ejections.has_ejected("t")
