"""Operators' facts at work: what is set holds everywhere, who is drained gets nothing, what died goes again."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from coord import queries
from coord.config import Settings
from coord.models.agents import AgentStatus
from coord.models.facts import (
    AgentDrained,
    AgentRemoved,
    AgentResumed,
    DeadPurged,
    EntriesPurged,
    EntryReplayed,
    MessageReplayed,
    MessageSent,
    SettingSet,
    StrategySet,
    TaskReplayed,
    TasksChangeRequested,
)
from coord.models.tasks import Modifiers, TaskState
from coord.placement import STRATEGIES, OwnRules
from coord.queries import LiveSetting, list_settings
from tests.ledger import assert_keys_end, assert_ledger
from tests.running import RunningCell
from tests.waiting import wait_until
from tests.workers.raw import Caller, await_quiet, await_state, buried, distributor, entries, fleet, working
from workers import distributor as distributor_module


async def test_a_strategy_that_nobody_knows_stops_nobody(cell: RunningCell, caller: Caller) -> None:
    """Set by a newer operator or by hand: the environment's holds."""
    (view,) = [distributor(one).view for one in cell.of_kind("distributor")]
    await cell.redis.hset(cell.keys.of("settings"), mapping={"strategy": "no_such", "health_threshold": "0.25"})
    await wait_until(lambda: view.health_threshold == 0.25, "the settings are read")
    assert view.strategy == "least_connections"
    await fleet(cell, 1)
    ((task_id, _),) = await caller.submit()
    await await_state(cell, task_id, TaskState.ASSIGNED)


async def settings_of(cell: RunningCell) -> dict[str, LiveSetting]:
    """The live settings by name, as a client with coord's defaults sees them."""
    found = await list_settings(cell.redis, cell.keys, Settings(namespace=cell.settings.namespace))
    return {one.name: one for one in found}


async def test_what_is_set_holds_in_every_distributor(cell: RunningCell, caller: Caller) -> None:
    """The strategy and the threshold, within a second; given back, the environment's hold again."""
    other = await cell.add("distributor")
    views = [distributor(one).view for one in (*cell.of_kind("distributor"), other)]
    for fact in (StrategySet("random"), SettingSet("health_threshold", 0.75)):
        assert (await caller.answer(await caller.tell("in:control:distributor", fact)))["ok"] == "1"
    await wait_until(
        lambda: all((one.strategy, one.health_threshold) == ("random", 0.75) for one in views), "it holds everywhere"
    )
    found = await settings_of(cell)
    assert (found["strategy"].value, found["strategy"].source) == ("random", "live")
    assert (found["health_threshold"].value, found["health_threshold"].otherwise) == ("0.75", ("0.5",))

    for name in ("strategy", "health_threshold"):
        answer = await caller.answer(await caller.tell("in:control:distributor", SettingSet(name, None)))
        assert answer["ok"] == "1"
    await wait_until(
        lambda: all((one.strategy, one.health_threshold) == ("least_connections", 0.5) for one in views),
        "the environment's hold again",
    )
    assert {one.source for one in (await settings_of(cell)).values()} == {"default"}


async def test_the_environment_of_the_distributors_is_told_not_the_callers(cell: RunningCell) -> None:
    """Where two are started apart, both values are shown, with the variable that says so."""
    cell.settings = msgspec.structs.replace(cell.settings, strategy="round_robin")
    await cell.add("distributor")
    await wait_until(lambda: _says(cell, "strategy", ("least_connections", "round_robin")), "both are told")
    found = (await settings_of(cell))["strategy"]
    assert (found.value, found.source) == ("least_connections | round_robin", "environment")
    assert (found.default, found.variable) == ("least_connections", "COORD_STRATEGY")


async def _says(cell: RunningCell, name: str, otherwise: tuple[str, ...]) -> bool:
    return (await settings_of(cell))[name].otherwise == otherwise


@pytest.mark.parametrize(
    ("fact", "words"),
    [
        (StrategySet("best"), "strategy 'best' is not one of capability_based, consistent_hash"),
        (SettingSet("strategy", "best"), "strategy 'best' is not one of capability_based, consistent_hash"),
        (
            SettingSet("batch", 7.0),
            "'batch' cannot be set live, only avoid_failed_agent, ejection, full_scores",
        ),
        (
            SettingSet("batch", None),
            "'batch' cannot be set live, only avoid_failed_agent, ejection, full_scores",
        ),
        (StrategySet("predictve", "t"), "did you mean 'predictive'?"),
        (SettingSet("ejecton", "on"), "did you mean 'ejection'?"),
        (SettingSet("ejection", "perhaps", "t"), "ejection='perhaps': expected on or off"),
        (SettingSet("health_threshold", 0.4, "t"), "'health_threshold' cannot be set for a task type, only"),
        (SettingSet("health_threshold", 1.5), "health_threshold=1.5: expected a number from 0 to 1"),
        (SettingSet("health_threshold", "high"), "health_threshold='high': expected a number from 0 to 1"),
    ],
)
async def test_what_cannot_be_set_is_answered_with_what_can(
    cell: RunningCell, caller: Caller, fact: msgspec.Struct, words: str
) -> None:
    """Nothing is changed, and the answer names the values or the range."""
    answer = await caller.answer(await caller.tell("in:control:distributor", fact))
    assert answer["code"] == "config_invalid"
    assert words in answer["message"]
    assert await queries.get_live_values(cell.redis, cell.keys) == {}


@pytest.mark.guarantee("audit")
async def test_a_refused_request_is_audited_with_who_asked(cell: RunningCell, caller: Caller) -> None:
    """⚠ Refused before any script of its own: an unknown value, and what is no fact. Replayed, it has the same name."""
    data = b'{"strategy":"best"}'
    for sent in ({"type": "strategy.set", "data": data}, {"type": "strategy.set", "data": b"["}):
        await caller.raw("in:control:distributor", {**sent, "by": "ann@host"})
    dead = await wait_until(lambda: _dead_control(cell), "both are dead letters")
    assert (await caller.answer(await caller.tell("in:control:distributor", EntryReplayed(dead))))["ok"] == "1"

    async def entries_of() -> list[tuple[str, str, str]]:
        page = await queries.get_audit_since(cell.redis, cell.keys, "0-0")
        return sorted((one.action, one.by, one.outcome) for one in page)

    by_caller = ("entries.replay", f"client {caller.id}", "ok")
    refused = [("strategy.set", "ann@host", code) for code in ("config_invalid", "config_invalid", "fact_invalid")]
    await wait_until(lambda: _are(entries_of, sorted([by_caller, *refused])), "each request is in the audit")


async def test_a_request_without_a_query_changes_the_named_tasks_alone(cell: RunningCell, caller: Caller) -> None:
    """⚠ Without terms, a query of a command is refused, as it is all tasks. Here the ids select, and there is one."""
    (named, _), (other, _) = [*await caller.submit(), *await caller.submit()]
    for task_id in (named, other):
        await await_state(cell, task_id, TaskState.QUEUED)
    for query in ("", " ", "id:*"):
        request = TasksChangeRequested("cancel", (), query=query)
        answer = await caller.answer(await caller.tell("in:control:distributor", request))
        assert answer["code"] == "fact_invalid", query
        assert "task_ids" in answer["message"], query
    answer = await caller.answer(await caller.tell("in:control:distributor", TasksChangeRequested("cancel", (named,))))
    assert msgspec.json.decode(answer["data"]) == {"done": 1, "stopping": 0, "skipped": {}}
    await await_state(cell, named, TaskState.CANCELLED)
    await await_state(cell, other, TaskState.QUEUED)
    (entry,) = [one for one in await queries.get_audit_since(cell.redis, cell.keys, "0-0") if one.outcome == "ok"]
    assert (entry.action, entry.query, entry.done) == ("tasks.cancel", "", 1)


async def _dead_control(cell: RunningCell) -> str:
    found = await entries(cell.redis, cell.keys.of("dead:in"))
    codes = {fields[b"code"]: one.decode() for one, fields in found}
    return codes[b"config_invalid"] if len(found) == 2 else ""


async def _are(read: Any, expected: Any) -> bool:
    return bool(await read() == expected)


@pytest.mark.guarantee("rules-under-load")
async def test_a_type_has_rules_of_its_own_in_every_distributor(cell: RunningCell, caller: Caller) -> None:
    """Also in one that starts later; a task's own strategy wins; records say by which rules a task was placed."""
    other = await cell.add("distributor")
    facts = (
        StrategySet("predictive", "summarize", by="ann@host"),
        SettingSet("rare_skills_first", "on", "summarize"),
        SettingSet("ejection", "off"),
    )
    for fact in facts:
        assert (await caller.answer(await caller.tell("in:control:distributor", fact)))["ok"] == "1"
    late = await cell.add("distributor")
    views = [distributor(one).view for one in (*cell.of_kind("distributor"), other, late)]
    own = OwnRules("predictive", rare_skills_first=True)
    await wait_until(
        lambda: all(one.type_rules == {"summarize": own} and not one.rules.ejection for one in views),
        "it holds everywhere",
    )
    await fleet(cell, 1, capacity=3)
    told = await caller.submit(task_type="summarize")
    told += await caller.submit(task_type="other")
    told += await caller.submit(task_type="summarize", strategy="random", modifiers=Modifiers(rare_skills_first=False))
    found = [(await await_state(cell, one.task_id, TaskState.ASSIGNED)).placement for one in told]
    assert [(one["strategy"], one.get("rare_skills_first", False)) for one in found] == [
        ("predictive", True),
        ("least_connections", False),
        ("random", False),
    ]


@pytest.mark.guarantee("rules-under-load")
async def test_a_strategy_that_is_not_installed_is_named_and_loses_nothing(
    cell: RunningCell, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """⚠ One of two distributors has the package: the other one names it once, and uses what holds otherwise."""
    packages = {"fewest_failures": "best-placement"}
    lacks = distributor(cell.of_kind("distributor")[0])
    monkeypatch.setattr(distributor_module, "strategy_packages", lambda: packages)
    monkeypatch.setattr(
        distributor_module, "load_strategies", lambda _log: {**STRATEGIES, "fewest_failures": STRATEGIES["random"]}
    )
    has = distributor(await cell.add("distributor"))

    async def found() -> bool:
        return await queries.get_strategy_packages(cell.redis, cell.keys) == packages

    await wait_until(found, "the package is known")
    with capture_logs() as logged:

        def warned() -> list[tuple[str, str]]:
            found = [one for one in logged if one["event"] == "strategy.not_installed"]
            return sorted((one["strategy"], one["hint"]) for one in found)

        values: dict[Any, Any] = {"strategy:t": "fewest_failures", "strategy": "nowhere"}
        await cell.redis.hset(cell.keys.of("settings"), mapping=values)
        await wait_until(lambda: len(warned()) >= 3, "both are warned of")
        await lacks.read_settings()
    assert has.view.type_rules["t"].strategy == "fewest_failures"
    assert lacks.view.type_rules["t"].strategy is None
    nowhere = ("nowhere", "install the package with the entry point 'nowhere' of coord.strategies")
    known = ("fewest_failures", "install the package best-placement")
    assert warned() == [known, nowhere, nowhere]
    await fleet(cell, 1, capacity=9)
    told = await caller.submit(3, task_type="t") + await caller.submit(3, task_type="u")
    for one in told:
        await await_state(cell, one.task_id, TaskState.ASSIGNED)


async def test_a_drained_agent_gets_nothing_until_it_is_resumed(cell: RunningCell, caller: Caller) -> None:
    """What it has it finishes; what comes goes to others, or waits."""
    (agent,) = await fleet(cell, 1)
    (first,) = await caller.submit()
    (held,) = await agent.await_inbox()
    assert await agent.claim(held)
    answer = await caller.answer(await caller.tell("in:control:registry", AgentDrained("a0")))
    assert msgspec.json.decode(answer["data"]) == {"status": "draining"}
    await agent.complete(held)
    await await_state(cell, first.task_id, TaskState.COMPLETED)
    (second,) = await caller.submit()
    await await_state(cell, second.task_id, TaskState.QUEUED)
    await await_quiet(cell)
    assert await agent.inbox() == []

    assert (await caller.answer(await caller.tell("in:control:registry", AgentResumed("a0"))))["ok"] == "1"
    async with working([agent]):
        await await_state(cell, second.task_id, TaskState.COMPLETED)


async def test_what_a_removed_agent_had_goes_to_others(cell: RunningCell, caller: Caller) -> None:
    """As if it had been lost: the attempt counts, and another agent does the task."""
    lost, other = await fleet(cell, 2)
    (told,) = await caller.submit()
    task = await await_state(cell, told.task_id, TaskState.ASSIGNED)
    if task.agent_id == "a1":
        lost, other = other, lost
    (held,) = await lost.await_inbox()
    assert await lost.claim(held)
    assert (await caller.answer(await caller.tell("in:control:registry", AgentRemoved(lost.agent_id))))["ok"] == "1"
    async with working([other]):
        task = await await_state(cell, told.task_id, TaskState.COMPLETED)
    assert (task.agent_id, task.attempts[0].how) == (other.agent_id, "agent_lost")
    record = await queries.get_agent(cell.redis, cell.keys, lost.agent_id)
    assert record is not None
    assert record.status is AgentStatus.INACTIVE


@pytest.mark.guarantee("operator-requests-once")
async def test_a_failed_task_goes_again_in_a_pool_that_had_gone(cell: RunningCell, caller: Caller) -> None:
    """No distributor has the pool in its table any more; the task is placed all the same."""
    (agent,) = await fleet(cell, 1)
    (told,) = await caller.submit(notify=True)
    (held,) = await agent.await_inbox()
    await agent.claim(held)
    await agent.fail(held, retryable=False)
    await await_state(cell, told.task_id, TaskState.FAILED)
    distributor(cell.of_kind("distributor")[0]).planner.definitions.clear()
    async with working([agent]):
        answer = await caller.answer(await caller.tell("in:control:distributor", TaskReplayed(told.task_id)))
        assert answer["ok"] == "1"
        task = await await_state(cell, told.task_id, TaskState.COMPLETED)
    assert (task.attempt, len(task.attempts)) == (2, 1)
    await wait_until(lambda: _is_told(caller, "task.completed"), "its caller is told the new outcome")
    assert not await queries.get_live_values(cell.redis, cell.keys)
    await assert_ledger(cell.redis, cell.keys)


async def _is_told(caller: Caller, kind: str) -> bool:
    return any(one["type"] == kind for one in await caller.replies())


async def test_every_kind_replays_what_it_buried(cell: RunningCell, caller: Caller) -> None:
    """A fact that failed three times is handled when its cause is gone, by the worker that reads its stream."""
    await cell.redis.set(cell.keys.agent("a0"), "no hash")
    await cell.redis.set(cell.keys.task("t1"), "no hash")
    await cell.redis.set(cell.keys.message("m1"), "no hash")
    data = '{"task_id":"t1","task_type":"echo","message_id":"m1","sender_id":"s","receiver_id":"r","agent_id":"a0"'
    streams = {
        "registry": ("in:registry", "agent.registered", data + ',"agent_type":"worker"}'),
        "distributor": ("in:tasks:low", "task.submitted", data + "}"),
        "router": ("in:messages:low", "message.sent", data + "}"),
    }
    for stream, kind, body in streams.values():
        entry = await caller.raw(stream, {"type": kind, "data": body, "caller": "sender"})
        assert entry
    dead = await wait_until(lambda: _buried_ids(cell, 3), "all three are buried")
    for name in (cell.keys.agent("a0"), cell.keys.task("t1"), cell.keys.message("m1")):
        await cell.redis.delete(name)

    sender = Caller(cell.redis, cell.keys, "sender")
    for kind, (stream, _, _) in streams.items():
        answer = await caller.answer(await caller.tell(f"in:control:{kind}", EntryReplayed(dead[stream])))
        assert answer["ok"] == "1", answer
        anew = msgspec.json.decode(answer["data"])["entry_id"]
        assert (await sender.answer(anew)).get("code", "") == ("agent_not_found" if kind == "router" else "")
    assert await buried(cell) == []


async def _buried_ids(cell: RunningCell, count: int) -> dict[str, str]:
    found = await entries(cell.redis, cell.keys.of("dead:in"))
    return {fields[b"stream"].decode(): one.decode() for one, fields in found} if len(found) == count else {}


async def test_what_was_buried_in_part_is_not_replayed(cell: RunningCell, caller: Caller) -> None:
    """Only the first 4 KiB of it were kept, and it says so."""
    await caller.raw("in:requests", {"type": "task.cancel_requested", "data": '{"x":"' + "y" * 5_000})
    dead = await wait_until(lambda: _buried_ids(cell, 1), "it is buried")
    answer = await caller.answer(await caller.tell("in:control:distributor", EntryReplayed(dead["in:requests"])))
    assert answer["code"] == "entry_truncated"
    assert len(await buried(cell)) == 1


async def test_a_dead_message_is_delivered_when_its_receiver_has_come(cell: RunningCell, caller: Caller) -> None:
    """With the router's own time to live where the operator names none."""
    sent = MessageSent(message_id="m1", sender_id="s", receiver_id="a0", ttl=0.01)
    assert (await caller.answer(await caller.tell("in:messages:low", sent)))["ok"] == "0"
    await fleet(cell, 1)
    assert (await caller.answer(await caller.tell("in:control:router", MessageReplayed("m1"))))["ok"] == "1"
    ((_, fields),) = await entries(cell.redis, cell.keys.inbox("a0", "low"))
    assert int(fields[b"expires_at"]) - int(fields[b"timestamp"]) == cell.settings.message_ttl_s * 1000


@pytest.mark.parametrize(
    ("kind", "fact"),
    [("distributor", DeadPurged("t1")), ("router", DeadPurged("m1")), ("registry", EntriesPurged(older_than=0.0))],
)
async def test_dead_letters_are_purged_by_their_authority(
    cell: RunningCell, caller: Caller, kind: str, fact: Any
) -> None:
    """Failed tasks, dead messages, buried entries: one each, and the answer says how many it was."""
    (agent,) = await fleet(cell, 1)
    data = b'{"task_id":"t1","task_type":"echo"}'
    await caller.raw("in:tasks:low", {b"type": b"task.submitted", b"data": data})
    (held,) = await agent.await_inbox()
    await agent.claim(held)
    await agent.fail(held, retryable=False)
    await caller.answer(await caller.tell("in:messages:low", MessageSent("m1", "s", "nobody")))
    await caller.raw("in:requests", {"type": "no.such", "data": "{}"})
    await await_state(cell, "t1", TaskState.FAILED)
    await wait_until(lambda: _buried_ids(cell, 1), "an entry is buried")
    answer = await caller.answer(await caller.tell(f"in:control:{kind}", fact))
    assert msgspec.json.decode(answer["data"]) == {"purged": 1, "left": 0}
    left = [
        await queries.get_task(cell.redis, cell.keys, "t1") is None,
        await queries.get_message(cell.redis, cell.keys, "m1") is None,
        await buried(cell) == [],
    ]
    assert left == [kind == "distributor", kind == "router", kind == "registry"]
    await assert_ledger(cell.redis, cell.keys, trimmed=True)
    await assert_keys_end(cell.redis, cell.keys)
