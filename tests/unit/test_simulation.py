"""The simulation: what its engine, its oracles and its files do, and what the command prints."""

from __future__ import annotations

from pathlib import Path
from random import Random
from xml.etree import ElementTree as ET

import msgspec
import pytest
from msgspec.structs import replace

from coord.errors import ConfigError
from coord.models.agents import FleetAgent
from coord.models.traces import Trace, TraceAgent, TraceHeader, TraceTask
from coord.placement import ANY_TASK, STRATEGIES, Rules, TaskContext
from coord.simulation import (
    PULL,
    Change,
    Job,
    Scenario,
    SimulatedAgent,
    compare,
    draw,
    oracle_runs,
    read_fleet,
    read_trace,
    recommend,
    scenario_of,
    simulate,
    write_trace,
)
from coord.simulation.oracles import EARLIEST_END, EARLIEST_SLOT
from coord.simulation.pull import Pull
from tests.living import run_coord

#: typer 0.21 imports names from click that click 8.5 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in Click 9.0:DeprecationWarning")

FLEET = """
count = 400
load = 0.7

[[agents]]
name = "fast"
count = 2
speed = 8.0
capabilities = ["ocr", "gpu"]

[[agents]]
name = "slow"
count = 6
speeds = { train = 0.5 }
capabilities = ["ocr"]

[[tasks]]
type = "ocr"
share = 4
requires = ["ocr"]

[[tasks]]
type = "train"
sigma = 1.0
requires = ["gpu"]
"""
HEADER = TraceHeader(1, 0, 10_000, "least_connections")


def job(arrived: float, work: float, *capabilities: str) -> Job:
    """A task."""
    return Job(arrived=arrived, work=work, task=TaskContext("t"), capabilities=frozenset(capabilities))


def fleet(seed: int = 1) -> Scenario:
    """The scenario of the file above."""
    return read_fleet(FLEET, seed)


def test_a_run_by_hand() -> None:
    """Two agents, one twice as fast: each gets a task, the third one waits for the first slot that is free."""
    agents = (SimulatedAgent(agent_id="a", capacity=1, speed=2.0), SimulatedAgent(agent_id="b", capacity=1))
    scenario = Scenario(agents=agents, jobs=(job(0.0, 4.0), job(1.0, 4.0), job(1.5, 1.0)), warm_up=0.0)
    found = simulate(scenario, Rules("least_connections"), 1)
    assert (found.agents, found.starts, found.ends) == (("a", "b", "a"), (0.0, 1.0, 2.0), (2.0, 5.0, 2.5))


@pytest.mark.parametrize(("exponent", "ends"), [(0.0, (2.0, 3.0)), (1.0, (3.0, 4.0))])
def test_slots_are_independent_or_share_a_cpu(exponent: float, ends: tuple[float, float]) -> None:
    """Two tasks of two seconds, the second one a second later: alone each takes two, together each is half as fast."""
    agent = SimulatedAgent(agent_id="a", capacity=2, load_exponent=exponent)
    scenario = Scenario(agents=(agent,), jobs=(job(0.0, 2.0), job(1.0, 2.0)))
    assert simulate(scenario, Rules("random"), 1).ends == ends


def test_agents_slow_down_leave_and_return() -> None:
    """What an agent has it finishes; what comes waits for one that is present."""
    changes = (
        Change(at=1.0, agent_id="a", factor=0.5),
        Change(at=2.0, agent_id="a", factor=0.5, is_present=False),
        Change(at=9.0, agent_id="a"),
    )
    scenario = Scenario(agents=(SimulatedAgent(agent_id="a"),), jobs=(job(0.0, 2.0), job(2.5, 1.0)), changes=changes)
    found = simulate(scenario, Rules("least_connections"), 1)
    assert (found.starts, found.ends) == ((0.0, 9.0), (3.0, 10.0))
    gone = replace(scenario, changes=changes[:2])
    with pytest.raises(ValueError, match="still wait at the end"):
        simulate(gone, Rules("least_connections"), 1)
    with pytest.raises(ValueError, match="no agent has the capabilities gpu"):
        simulate(replace(scenario, jobs=(job(0.0, 1.0, "gpu"),)), Rules("random"), 1)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_run_can_be_repeated_and_breaks_no_requirement(name: str) -> None:
    """The same seed gives the same choices; each task ran on an agent that may do it, and no agent had too many."""
    scenario = fleet()
    found = simulate(scenario, Rules(name), 7)
    assert found == simulate(scenario, Rules(name), 7)
    agents = {agent.agent_id: agent for agent in scenario.agents}
    events: list[tuple[float, int, str]] = []
    for one, agent_id, start, end in zip(scenario.jobs, found.agents, found.starts, found.ends, strict=True):
        assert one.capabilities <= agents[agent_id].capabilities
        assert one.arrived <= start < end
        events += [(start, 1, agent_id), (end, -1, agent_id)]
    loads = dict.fromkeys(agents, 0)
    for _, change, agent_id in sorted(events, key=lambda event: event[:2]):
        loads[agent_id] += change
        assert loads[agent_id] <= agents[agent_id].capacity


def test_pull_serves_the_slot_that_has_been_free_for_longest() -> None:
    """Slots that were used go to the end of the line; an agent that is withdrawn leaves it."""
    pull = Pull(Random(1))
    agents = {name: FleetAgent(agent_id=name, agent_type="worker", capacity=2) for name in "ab"}

    def take() -> str | None:
        chosen = pull.choose(ANY_TASK)
        if chosen is not None:
            agents[chosen].load += 1
            pull.offer(agents[chosen])
        return chosen

    for one in agents.values():
        pull.offer(one)
    assert [take(), take(), take()] == ["a", "a", "b"]
    agents["a"].load = 1
    pull.offer(agents["a"])
    assert take() == "b"
    pull.withdraw("a")
    assert not pull.has_room
    assert take() is None
    pull.offer(agents["a"])
    assert [take(), take()] == ["a", None]


def test_the_oracles_by_hand() -> None:
    """One takes the slot that is free first, the other waits for the fast agent if its task ends earlier there."""
    agents = (
        SimulatedAgent(agent_id="slow", capacity=1),
        SimulatedAgent(agent_id="fast", capacity=1, speed=10.0),
    )
    scenario = Scenario(agents=agents, jobs=(job(0.0, 10.0), job(0.0, 10.0)), warm_up=0.0)
    runs = oracle_runs(scenario)
    assert runs[EARLIEST_SLOT].agents == ("fast", "slow")
    assert runs[EARLIEST_END].agents == ("fast", "fast")
    assert runs[EARLIEST_END].ends == (1.0, 2.0)
    assert oracle_runs(replace(scenario, changes=(Change(at=1.0, agent_id="slow"),))) == {}


def test_a_comparison_has_all_rows_and_the_best_comes_first() -> None:
    """Strategies by their mean; pull and the oracles last; the regret is against the better oracle."""
    rules = {name: Rules(name) for name in ("least_connections", "predictive", "random")}
    results = compare([fleet(1), fleet(2)], rules)
    names = [one.name for one in results]
    assert names[0] == "predictive"
    assert names[3:] == [PULL, EARLIEST_SLOT, EARLIEST_END]
    assert results[0].mean_s < results[1].mean_s <= results[2].mean_s
    assert min(one.regret or 0.0 for one in results[4:]) == pytest.approx(1.0, abs=0.05)
    assert all(one.imbalance >= 1 and one.p99_slowdown >= 1 for one in results)
    shared = replace(fleet(), agents=tuple(replace(one, load_exponent=1.0) for one in fleet().agents))
    assert [(one.name, one.regret) for one in compare([shared], {"random": Rules("random")})] == [
        ("random", None),
        (PULL, None),
    ]


def test_a_picture_is_svg_with_each_row() -> None:
    """Names are escaped, so any XML reader takes it."""
    results = compare([fleet()], {"a < b": Rules("random")})
    root = ET.fromstring(draw(results, "fleet & co"))  # noqa: S314 -- it was made here
    texts = [one.text for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"fleet & co", "a < b", PULL} <= set(texts)


def test_a_recommendation_leaves_out_the_agents_that_can_do_least() -> None:
    """Never the last one that can do a task; each number of agents is ranked for itself."""
    advice = recommend([fleet()], ["least_connections", "predictive"], 9)
    without = list(dict.fromkeys(one.without for one in advice))
    assert [len(one) for one in without] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert without[-1][:6] == tuple(f"slow-{number}" for number in range(1, 7))
    first = [one for one in advice if not one.without]
    assert [one.result.mean_s for one in first] == sorted(one.result.mean_s for one in first)
    ways = {(one.strategy, one.weights, one.rare_skills_first) for one in first}
    assert ("least_connections", "by speed", True) in ways
    assert ("predictive", "by speed", False) not in ways
    assert len(ways) == len(first) == 6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("agents = 1", "Expected `array`, got `int` - at `$.agents`"),
        ("a = [", "the fleet is not TOML"),
        (FLEET.replace("speed = 8.0", "sped = 8.0"), "unknown field `sped`"),
        (FLEET.replace('requires = ["gpu"]', 'requires = ["tpu"]'), "no agent has what train requires: tpu"),
        (FLEET.replace('name = "slow"', 'name = "fast"'), "two agents have the same id"),
        (FLEET + '[[changes]]\nagent = "x"\nfrom = 0.1\nuntil = 0.2\n', "there is no agent 'x'"),
        (FLEET + '[[changes]]\nagent = "fast-1"\nfrom = 0.3\nuntil = 0.2\n', "changes.until must be above"),
    ],
)
def test_a_fleet_that_does_not_fit_is_refused(text: str, words: str) -> None:
    """The message names the field."""
    with pytest.raises(ConfigError) as caught:
        read_fleet(text, 1)
    assert words in str(caught.value)


def test_the_changes_of_a_fleet_begin_and_end_with_tasks() -> None:
    """Shares of the tasks become times."""
    scenario = read_fleet(FLEET + '[[changes]]\nagent = "fast-1"\naway = true\nfrom = 0.25\nuntil = 0.5\n', 1)
    at = [scenario.jobs[100].arrived, scenario.jobs[200].arrived]
    assert [(one.at, one.is_present) for one in scenario.changes] == [(at[0], False), (at[1], True)]


def trace_of(scenario: Scenario) -> Trace:
    """The trace of a cell that did what a simulation did."""
    found = simulate(scenario, Rules("random"), 3)
    tasks = [
        TraceTask(
            f"t{number}",
            one.task.task_type,
            round(one.arrived * 1000),
            round(start * 1000),
            round(end * 1000),
            agent_id,
            capabilities=tuple(sorted(one.capabilities)),
        )
        for number, (one, agent_id, start, end) in enumerate(
            zip(scenario.jobs, found.agents, found.starts, found.ends, strict=True)
        )
    ]
    agents = [TraceAgent(one.agent_id, one.capacity, capabilities=tuple(one.capabilities)) for one in scenario.agents]
    return Trace(HEADER, tuple(agents), tuple(tasks))


def test_a_trace_keeps_expected_durations() -> None:
    """As submitted in the file, and as strategies see them in the scenario."""
    trace = trace_of(read_fleet(FLEET, 1))
    tasks = tuple(replace(task, expected_ms=1_500.5 if number % 2 else None) for number, task in enumerate(trace.tasks))
    read = read_trace(write_trace(replace(trace, tasks=tasks)))
    assert read.tasks == tasks
    assert {job.task.expected_ms for job in scenario_of(read).jobs} == {None, 1_024.0}


def test_a_trace_becomes_a_scenario_with_the_speeds_of_its_agents() -> None:
    """Fast agents are found to be fast, for each type; and simulating the trace gives about the times that it has."""
    original = read_fleet(FLEET.replace("count = 400", "count = 3000"), 1)
    trace = read_trace(write_trace(trace_of(original)))
    assert trace == trace_of(original)
    scenario = scenario_of(trace)
    speeds = {one.agent_id: one.speeds["ocr"] for one in scenario.agents}
    fast, slow = speeds["fast-1"] + speeds["fast-2"], speeds["slow-1"] + speeds["slow-2"]
    assert 5 < fast / slow < 11
    assert {one.load_exponent for one in scenario.agents} == {0.0}
    (before,) = compare([original], {"random": Rules("random")}, with_others=False)
    (after,) = compare([scenario], {"random": Rules("random")}, with_others=False)
    assert after.mean_s == pytest.approx(before.mean_s, rel=0.25)


def test_a_trace_says_how_load_slows_agents_down() -> None:
    """Of agents whose tasks share a CPU; no oracle is shown then."""
    original = read_fleet(FLEET.replace('capabilities = ["ocr', 'load_exponent = 1.0\ncapabilities = ["ocr'), 1)
    scenario = scenario_of(trace_of(original))
    (exponent,) = {one.load_exponent for one in scenario.agents}
    assert exponent > 0.4
    assert oracle_runs(scenario) == {}


def test_a_trace_has_agents_that_are_gone() -> None:
    """With the tasks that they had at once as their capacity, and what these required."""
    tasks = [TraceTask(f"t{n}", "t", 0, 0, 1000, "gone", capabilities=("ocr",)) for n in range(10)]
    (agent,) = scenario_of(Trace(HEADER, (), tuple(tasks))).agents
    assert (agent.agent_id, agent.capacity, agent.capabilities) == ("gone", 10, frozenset({"ocr"}))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it has no header; make one with coord trace export"),
        (b'{"line":"trace","version":2,"begin":0,"end":1,"strategy":"x"}', "version 2; this coord reads version 1"),
        (b"{}\n", "line 1 of the trace does not fit"),
        (msgspec.json.encode(HEADER) + b"\n\xff\n", "line 2 of the trace does not fit"),
    ],
)
def test_a_trace_that_does_not_fit_is_refused(data: bytes, words: str) -> None:
    """The message names the line, the version, or the next step."""
    with pytest.raises(ConfigError) as caught:
        read_trace(data)
    assert words in str(caught.value)


def test_a_trace_without_tasks_is_refused() -> None:
    """There is nothing to simulate."""
    with pytest.raises(ConfigError, match="0 completed tasks; a simulation needs 10 or more"):
        scenario_of(Trace(HEADER, (), ()))


def test_the_command_compares_and_recommends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a fleet and on a trace, without a server: a table, JSON, and a picture."""
    toml, trace, svg = tmp_path / "fleet.toml", tmp_path / "trace.jsonl", tmp_path / "picture.svg"
    toml.write_text(FLEET)
    trace.write_bytes(write_trace(trace_of(fleet())))
    for file in (toml, trace):
        shown = run_coord(capsys, monkeypatch, "simulate", "compare", str(file), "--seeds", "1", "--svg", str(svg))
        header, *rows = shown.out.splitlines()
        assert header.split()[:3] == ["strategy", "mean", "s"]
        assert {row.split()[0] for row in rows if row} >= {*STRATEGIES, "next-free-worker", "oracle:", "regret:"}
        assert svg.read_text().startswith("<svg")
    only = ("--strategy", "predictive", "--json")
    found = run_coord(capsys, monkeypatch, "simulate", "compare", str(toml), *only).json["items"]
    assert found[0]["name"] == "predictive"
    advice = run_coord(capsys, monkeypatch, "simulate", "recommend", str(trace), *only, "--fewer", "1").json["items"]
    assert [len(one["without"]) for one in advice] == [0, 0, 1, 1]
    shown = run_coord(capsys, monkeypatch, "simulate", "recommend", str(toml), "--seeds", "1", "--fewer", "0")
    assert shown.out.splitlines()[1].split()[0] == "none"
    assert "+0.0%" in shown.out


def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2."""
    missing = run_coord(capsys, monkeypatch, "simulate", "compare", str(tmp_path / "none.toml"))
    assert (missing.code, "none.toml: No such file" in missing.err) == (2, True)


def busy(count: int, **fields: float) -> Scenario:
    """Six agents with two slots each and enough tasks to keep them busy; the fields are those of agent a0."""
    agents = [SimulatedAgent(agent_id=f"a{number}", capacity=2) for number in range(6)]
    agents[0] = replace(agents[0], **fields)
    random, now, jobs = Random(3), 0.0, []
    for _ in range(count):
        now += random.expovariate(9.0)
        jobs.append(Job(arrived=now, work=random.expovariate(1.0), task=TaskContext("t")))
    return Scenario(agents=tuple(agents), jobs=tuple(jobs))


def test_one_distributor_is_never_refused_and_several_are() -> None:
    """Several have loads that are not true; an agent never has more tasks than slots, and all tasks end."""
    scenario = busy(600)
    assert simulate(scenario, Rules("least_connections"), 1).refused == 0
    for strategy in ("least_connections", "predictive", "consistent_hash"):
        found = simulate(scenario, Rules(strategy), 1, distributors=4)
        assert found.refused > 0
        assert sorted(found.placed) == list(range(600))
        for agent in scenario.agents:
            own = [index for index in range(600) if found.agents[index] == agent.agent_id]
            events = [(found.starts[index], 1) for index in own] + [(found.ends[index], -1) for index in own]
            load = most = 0
            for _, change in sorted(events):
                load += change
                most = max(most, load)
            assert most <= 2


def test_several_distributors_can_be_repeated() -> None:
    """The same seed gives the same run; another number of distributors another one."""
    scenario = busy(200)
    assert simulate(scenario, Rules("predictive"), 5, distributors=2) == simulate(
        scenario, Rules("predictive"), 5, distributors=2
    )
    assert simulate(scenario, Rules("predictive"), 5, distributors=2) != simulate(scenario, Rules("predictive"), 5)


@pytest.mark.parametrize("distributors", [1, 3])
def test_an_agent_that_fails_loses_few_tasks_with_ejection_and_many_without(distributors: int) -> None:
    """It fails at once, so it is always free: without ejection and avoidance it gets most attempts."""
    scenario = busy(600, failure_rate=1.0, failure_s=0.01)
    off = Rules("least_connections", ejection=False, avoid_failed_agent=False)
    without = simulate(scenario, off, 1, distributors=distributors)
    with_both = simulate(scenario, Rules("least_connections"), 1, distributors=distributors)
    assert len(without.lost) > 20
    assert len(with_both.lost) <= 2
    assert with_both.agents.count("a0") < without.agents.count("a0")


def test_a_failed_task_is_tried_again_after_a_delay_as_often_as_allowed() -> None:
    """With no other agent it is lost after its last attempt; until then it starts again later each time."""
    agent = SimulatedAgent(agent_id="a", failure_rate=1.0, failure_s=0.5)
    job = Job(arrived=0.0, work=9.0, task=TaskContext("t"))
    found = simulate(Scenario(agents=(agent,), jobs=(job,), max_attempts=4), Rules("random"), 1)
    assert found.placed == (0, 0, 0, 0)
    assert found.lost == {0}
    assert found.ends[0] == pytest.approx(found.starts[0] + 0.5)
    assert found.ends[0] > 4 * 0.5
