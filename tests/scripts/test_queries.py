"""``queries``: what callers and planners read of what the scripts have written."""

from __future__ import annotations

import pytest
from redis.exceptions import MovedError

from coord import queries
from coord.models.agents import FleetAgent, Location
from coord.models.tasks import TaskState
from tests.scripts.cell import START, Cell


async def test_what_is_not_there(cell: Cell) -> None:
    """None, zero or empty: never an error."""
    redis, keys = cell.redis, cell.keys
    assert await queries.get_task(redis, keys, "t") is None
    assert await queries.get_agent(redis, keys, "a") is None
    assert await queries.get_message(redis, keys, "m") is None
    assert await queries.get_tasks(redis, keys, ["t", "u"]) == [None, None]
    assert await queries.get_agents(redis, keys, []) == []
    assert await queries.list_agent_ids(redis, keys) == []
    assert await queries.get_fleet(redis, keys) == {}
    assert await queries.get_loads(redis, keys, ["a"]) == {"a": 0}
    assert await queries.get_counters(redis, keys) == {}
    assert await queries.get_live_values(redis, keys) == {}
    assert await queries.list_waiting_pools(redis, keys, {}) == (0, [])


async def test_an_agent_with_very_many_metrics_is_read_as_a_whole(cell: Cell) -> None:
    """Its record has more fields than are read at once; the agent beside it is in its place."""
    await cell.register("a")
    await cell.register("b")
    metrics = {f"m{number}": float(number) for number in range(5_000)}
    await cell.redis.hset(cell.keys.agent("a"), mapping={f"metric:{name}": value for name, value in metrics.items()})
    found = await queries.get_agents(cell.redis, cell.keys, ["a", "b"])
    assert [one and one.agent_id for one in found] == ["a", "b"]
    assert [one and one.load_metrics for one in found] == [metrics, {}]


async def test_a_log_whose_slot_has_moved_is_not_taken_for_an_empty_one(
    cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who follows it would tell of a loss that there was not; a log that is not there is empty."""
    log = cell.keys.of("log:agents")
    assert (await queries.get_log_window(cell.redis, log)).length == 0

    async def moved(_key: str) -> None:
        raise MovedError("14041 127.0.0.1:7001")

    monkeypatch.setattr(cell.redis, "xinfo_stream", moved)
    with pytest.raises(MovedError):
        await queries.get_log_window(cell.redis, log)


async def test_an_agent_with_everything(cell: Cell) -> None:
    """Each field in its own shape."""
    await cell.register(
        interval_ms=2_500, capabilities='["a","b"]', services='["s"]', tags='["t"]', labels='{"zone":"1"}',
        endpoints='{"http":"http://x"}', metadata='{"n":[1]}', location='{"lat":1.5,"region":"eu"}', version="3",
        weight=2.5,
    )  # fmt: skip
    await cell.heartbeat(cpu=0.5, active_connections=3.0, pending_tasks=2.0)
    await cell.assign()

    agent = await cell.agent()
    assert (agent.capabilities, agent.services, agent.tags, agent.labels) == (("a", "b"), ("s",), ("t",), {"zone": "1"})
    assert (agent.endpoints, agent.metadata) == ({"http": "http://x"}, {"n": [1]})
    assert agent.location == Location(lat=1.5, region="eu")
    assert (agent.version, agent.weight, agent.heartbeat_interval, agent.load) == ("3", 2.5, 2.5, 1)
    assert (agent.registration_time, agent.last_heartbeat) == (START, START)

    fleet = await queries.get_fleet(cell.redis, cell.keys)
    age = (await queries.get_time(cell.redis) - START) / 1000
    assert fleet["a1"].report_age == pytest.approx(max(0, age), abs=60)
    fleet["a1"].report_age = 0.0
    fleet["a1"].read_at = 0
    assert fleet == {
        "a1": FleetAgent(
            agent_id="a1", agent_type="worker", capabilities=frozenset({"a", "b"}), services=frozenset({"s"}),
            tags=frozenset({"t"}), labels={"zone": "1"}, version="3", capacity=2, weight=2.5, health_score=1.0, rev=1,
            active=True, load=1, outside_load=5, location=Location(lat=1.5, region="eu"), cpu=0.5,
            load_at_report=1, report_interval=2.5, term=1,
        )
    }  # fmt: skip


async def test_an_agent_that_gave_no_location(cell: Cell) -> None:
    """An empty field is none."""
    await cell.register(location="")
    assert (await cell.agent()).location is None


async def test_a_location_that_cannot_be_read_hides_no_agent(cell: Cell) -> None:
    """An agent's row is there without it, also if the agent declares no interval; any number is a fraction."""
    await cell.register()
    await cell.redis.hset(cell.keys.agent("a1"), mapping={"location": '{"lat":"north"}', "metric:memory": "7"})
    await cell.redis.hdel(cell.keys.agent("a1"), "heartbeat_interval", "last_heartbeat")
    row = (await queries.get_fleet(cell.redis, cell.keys))["a1"]
    assert (row.location, row.cpu, row.memory, row.report_age, row.report_interval) == (None, None, 1.0, 0.0, None)


async def test_the_fleet_of_some(cell: Cell) -> None:
    """Only the requested ones, only those that exist; an agent that is not placeable is marked as such."""
    for name in ("a1", "a2", "a3"):
        await cell.register(name)
    await cell.change_status("a2", "busy")
    rows = await queries.get_fleet(cell.redis, cell.keys, ["a2", "a3", "ghost"])
    assert {name: row.active for name, row in rows.items()} == {"a2": False, "a3": True}
    assert await queries.list_agent_ids(cell.redis, cell.keys) == ["a1", "a2", "a3"]
    assert [one and one.agent_id for one in await queries.get_agents(cell.redis, cell.keys, ["a3", "ghost"])] == [
        "a3",
        None,
    ]


async def test_many_tasks_in_order(cell: Cell) -> None:
    """In the order in which they were asked for, None where there is none."""
    await cell.register()
    await cell.assign("t1")
    await cell.fail("t1", retryable=False)
    await cell.submit("t2")
    found = await queries.get_tasks(cell.redis, cell.keys, ["t2", "ghost", "t1"])
    assert [one and one.state for one in found] == [TaskState.QUEUED, None, TaskState.FAILED]


async def test_counters_by_state(cell: Cell) -> None:
    """Sums over all priorities."""
    await cell.register()
    await cell.submit("t1", priority="low")
    await cell.assign("t2", priority="urgent")
    await cell.admit(await cell.submission("t3"), nearly_full=True)
    counted = await queries.get_counters(cell.redis, cell.keys)
    by_state = {state: number for state, number in queries.count_by_state(counted).items() if number}
    assert by_state == {TaskState.QUEUED: 1, TaskState.ASSIGNED: 1, TaskState.REFUSED: 1}
    assert queries.count_submitted(counted) == 2


async def test_a_body_that_is_no_json(cell: Cell) -> None:
    """A payload that cannot be decoded is returned as text; a record is never an error."""
    await cell.submit(body=b'{"task_type":"echo","payload":"\xff"}')
    assert (await cell.task()).task_type == "echo"
    await cell.register()
    await cell.deliver(payload=b"\xff{")
    message = await queries.get_message(cell.redis, cell.keys, "m1")
    assert message is not None
    assert isinstance(message.payload, str)
