"""docs/protocol.md on a live cell: its examples are taken, and what it says of entries is what lies in the streams."""

from __future__ import annotations

from typing import Any

import msgspec

from coord.keys import CONSUMES
from tests.repo.protocol_document import examples, first_column, tables, words
from tests.running import RunningCell
from tests.waiting import wait_until

Fields = dict[str, str]
CALLER = "c-9"


async def say(cell: RunningCell, stream: str, kind: str, fact: dict[str, Any], caller: str = "") -> str:
    """Append a fact as a stranger would; its entry id."""
    fields = {"type": kind, "data": msgspec.json.encode(fact)} | ({"caller": caller} if caller else {})
    pairs = [part for pair in fields.items() for part in pair]
    return str((await cell.redis.execute_command("XADD", cell.keys.of(stream), "*", *pairs)).decode())


async def encode_entry(cell: RunningCell, key: str, **wanted: str) -> Fields:
    """The fields of the first entry of a stream that has these, once it is there."""

    async def found() -> Fields | None:
        for _, fields in await cell.redis.execute_command("XRANGE", key, "-", "+"):
            entry = {name.decode(): value.decode() for name, value in fields.items()}
            if wanted.items() <= entry.items():
                return entry
        return None

    entry = await wait_until(found, f"{wanted} is in {key}")
    assert entry is not None
    return entry


def described(heading: str) -> list[str]:
    """The fields that a table of the document lists."""
    return first_column(tables(heading)[0])


async def test_every_example_is_taken(cell: RunningCell) -> None:
    """Appended in the order of the page, not one is buried."""
    consumed = {stream for streams in CONSUMES.values() for stream in streams}
    for example in examples():
        if example.stream in consumed:
            await cell.redis.execute_command(
                "XADD", cell.keys.of(example.stream), "*", *[part for pair in example.fields.items() for part in pair]
            )

    async def all_taken() -> bool:
        return not any([await cell.redis.xlen(cell.keys.of(stream)) for stream in consumed])

    await wait_until(all_taken, "every example is handled")
    assert await cell.redis.execute_command("XRANGE", cell.keys.of("dead:in"), "-", "+") == []


async def test_entries_have_the_fields_that_are_listed(cell: RunningCell) -> None:
    """Every kind of entry that an agent or a client reads."""
    me = {"agent_id": "a-9", "incarnation": "i-9"}
    declared = me | {"agent_type": "worker", "heartbeat_interval": 60, "unheard": "of"}  # unknown fields are ignored
    fact = await say(cell, "in:registry", "agent.registered", declared, "a-9")
    replies, inbox = cell.keys.replies("a-9"), cell.keys.inbox("a-9", "critical")
    answer = await encode_entry(cell, replies, fact=fact, ok="1")

    task = {"task_id": "t-9", "task_type": "wait", "requirements": {"agent_id": "a-9"}, "notify": True}
    await say(cell, "in:tasks:urgent", "task.submitted", task, CALLER)
    assignment = await encode_entry(cell, inbox, message_type="task_assignment")
    assert list(assignment) == ["message_type", "data", *list(assignment)[2:]]
    assert sorted(assignment) == sorted(described("`task_assignment`"))
    assert msgspec.json.decode(assignment["data"]) == task
    assert (assignment["incarnation"], assignment["attempt"]) == ("i-9", "1")
    ((claimed, _),) = await cell.redis.execute_command("XRANGE", inbox, "-", "+")
    assert await cell.redis.xdel(inbox, claimed) == 1

    await say(cell, "in:registry", "agent.registered", {"agent_id": "a-8", "agent_type": "worker"}, "a-8")
    await encode_entry(cell, cell.keys.replies("a-8"), ok="1")
    await say(cell, "in:links", "link.requested", {"agent_id": "a-8", "peer_id": "a-9"})
    linked = await encode_entry(cell, inbox, order="link_changed")
    assert sorted(linked) == sorted(described("`link_changed`"))
    await say(cell, "in:links", "link.accepted", {"agent_id": "a-9", "peer_id": "a-8"}, CALLER)
    await encode_entry(cell, cell.keys.replies(CALLER), stream="in:links", ok="1")
    request = {"message_id": "m-8", "sender_id": "a-9", "receiver_id": "a-8", "reply_by": 0.01}
    await say(cell, "in:messages:low", "message.sent", request)

    async def has_timed_out() -> bool:
        return bool(await cell.redis.hget(cell.keys.message("m-8"), "request") == b"timed_out")

    await wait_until(has_timed_out, "the request has timed out")
    message = {
        "message_id": "m-9",
        "sender_id": "a-8",
        "protocol": "peer_to_peer",
        "receiver_id": "a-9",
        "correlation_id": "k",
        "reply_to": "m-8",
        "reply_by": 60,
        "failed": True,
        "traceparent": f"00-{'a' * 32}-{'b' * 16}-01",
    }
    await say(cell, "in:messages:high", "message.sent", message)
    letter = await encode_entry(cell, cell.keys.inbox("a-9", "high"))
    assert sorted(letter) == sorted(described("Messages"))

    await say(cell, "in:beats", "agent.heartbeat", me | {"leases": 7})
    asked = await encode_entry(cell, inbox, order="list_leases")
    assert sorted(asked) == sorted(described("`list_leases`"))

    await say(cell, "in:requests", "task.cancel_requested", {"task_id": "t-9", "reason": "enough"}, CALLER)
    order = await encode_entry(cell, inbox, order="stop_task")
    assert sorted(order) == sorted(described("`stop_task`"))
    assert (order["lease"], order["message_type"]) == (assignment["lease"], "coordination")
    released = {"task_id": "t-9", "lease": order["lease"], "reason": "stopped"}
    await say(cell, "in:reports", "task.released", released)
    outcome = await encode_entry(cell, cell.keys.replies(CALLER), task_id="t-9")
    assert sorted([*outcome, "at"]) == sorted(described("Outcomes"))
    assert outcome["type"] in words(tables("Outcomes")[0][0][1])

    refused = await say(cell, "in:requests", "task.cancel_requested", {"task_id": "t-0"}, CALLER)
    error = await encode_entry(cell, cell.keys.replies(CALLER), fact=refused, ok="0", code="task_not_found")
    assert {*answer, *error} <= set(described("Answers")) <= {*answer, *error, "data", "task_id"}


async def test_a_large_result_is_in_the_record_alone(cell: RunningCell) -> None:
    """The reply has the marker that is listed in place of the data."""
    me = {"agent_id": "a-9", "incarnation": "i-9"}
    await say(cell, "in:registry", "agent.registered", me | {"agent_type": "worker", "heartbeat_interval": 60}, "a-9")
    task = {"task_id": "t-8", "task_type": "wait", "requirements": {"agent_id": "a-9"}, "notify": True}
    await say(cell, "in:tasks:urgent", "task.submitted", task, CALLER)
    assignment = await encode_entry(cell, cell.keys.inbox("a-9", "critical"), message_type="task_assignment")
    done = {"task_id": "t-8", "lease": assignment["lease"], "result": "x" * 20_000}
    await say(cell, "in:reports", "task.completed", done)
    outcome = await encode_entry(cell, cell.keys.replies(CALLER), task_id="t-8")
    assert sorted([*outcome, "data"]) == sorted(described("Outcomes"))
    assert outcome["at"] == "record"
    assert await cell.redis.hstrlen(cell.keys.task("t-8"), "result") == 20_002


async def test_what_counts_as_the_same(cell: RunningCell) -> None:
    """The order of keys and the priority do not count, a payload counts byte by byte."""
    task = '{"task_id":"t-9","task_type":"wait","payload":{"n":1},"delay":600}'
    same = '{"delay":600.0,"payload":{"n":1},"task_type":"wait","task_id":"t-9","timeout":null,"new":1}'
    other = '{"task_id":"t-9","task_type":"wait","payload":{"n": 1},"delay":600}'
    codes: list[str] = []
    answer: dict[str, str] = {}
    for stream, data in [("in:tasks:low", task), ("in:tasks:high", same), ("in:tasks:low", other)]:
        command = ("XADD", cell.keys.of(stream), "*", "type", "task.submitted", "data", data, "caller", CALLER)
        fact = (await cell.redis.execute_command(*command)).decode()
        answer = await encode_entry(cell, cell.keys.replies(CALLER), fact=fact)
        codes.append(answer.get("code", ""))
    assert codes == ["", "", "id_conflict"]
    assert answer["task_id"] == "t-9"
    assert set(answer) <= set(described("Answers"))


async def test_an_agent_without_incarnation(cell: RunningCell) -> None:
    """It is asked for its leases only if it counts them, and what it leaves behind counts as a failed attempt."""
    await say(cell, "in:registry", "agent.registered", {"agent_id": "a-9", "agent_type": "worker"}, "a-9")
    task = {"task_id": "t-9", "task_type": "wait", "retry": {"backoff": 600}}
    await say(cell, "in:tasks:low", "task.submitted", task)
    lane, critical = cell.keys.inbox("a-9", "low"), cell.keys.inbox("a-9", "critical")
    assert (await encode_entry(cell, lane))["incarnation"] == ""
    await say(cell, "in:beats", "agent.heartbeat", {"agent_id": "a-9"})
    last = await say(cell, "in:beats", "agent.heartbeat", {"agent_id": "a-9", "leases": 7})
    assert (await encode_entry(cell, critical, order="list_leases"))["ask"] == last
    assert await cell.redis.xlen(critical) == 1
    await say(cell, "in:registry", "agent.deregistered", {"agent_id": "a-9"})
    failures = lambda: cell.redis.hget(cell.keys.task("t-9"), "failures")  # noqa: E731 -- awaited by wait_until
    assert await wait_until(failures, "the attempt has failed") == b"1"
    assert await cell.redis.xlen(lane) == 0
