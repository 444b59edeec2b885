"""A client without workers: the test writes what they would, or takes away what they wrote."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from coord import Client, TaskSpec
from coord.codec import caller_of, decode_fact, encode
from coord.config import MIB, Settings
from coord.context import acting_for
from coord.embedded import EmbeddedServer
from coord.errors import (
    ConfigError,
    FactInvalid,
    IdConflict,
    ResultInvalid,
    ResultTimeout,
    ServerUnavailable,
    TaskFailed,
    TaskNotFound,
    TaskRefused,
)
from coord.models.facts import parts_of
from coord.models.tasks import Requirements, TaskError, TaskSubmitted
from tests.client.played_workers import PlayedWorkers
from tests.waiting import wait_until


async def test_a_submission_is_one_entry_on_the_stream_of_its_priority(workers: PlayedWorkers) -> None:
    """The fact names the caller, and requires the capability named like the type."""
    handle = await workers.client.submit("echo", {"n": 1}, priority="urgent", timeout=5)
    entries: Any = await workers.redis.xrange(workers.keys.of("in:tasks:urgent"))
    ((entry, fields),) = entries
    fact = decode_fact("in:tasks:urgent", fields, MIB)
    assert isinstance(fact, TaskSubmitted)
    assert (entry.decode(), caller_of(fields)) == (handle.entry_id, workers.client.caller)
    assert (fact.task_id, fact.task_type, bytes(fact.payload)) == (handle.task_id, "echo", b'{"n":1}')
    assert (fact.requirements, fact.timeout, fact.notify) == (Requirements(capabilities=("echo",)), 5, True)


async def submitted(workers: PlayedWorkers, stream: str = "in:tasks:normal") -> list[list[str]]:
    """The ids of the tasks in each entry of a stream."""
    entries: Any = await workers.redis.xrange(workers.keys.of(stream))
    facts = [decode_fact(stream, fields, MIB) for _, fields in entries]
    return [[one.task_id for one in parts_of(fact)] for fact in facts]


async def test_many_submissions_share_entries(workers: PlayedWorkers) -> None:
    """At most 64 in one; what is long, names a strategy, or goes to another stream or has the same id does not join."""
    specs = [TaskSpec(task_type="echo", task_id=f"t{n}") for n in range(130)]
    specs += [TaskSpec(task_type="echo", task_id="long", payload="x" * 1_000), TaskSpec(task_type="echo", task_id="u1")]
    specs += [TaskSpec(task_type="echo", task_id="s", strategy="random"), TaskSpec(task_type="echo", task_id="u2")]
    specs += [TaskSpec(task_type="echo", task_id="high", priority="high"), TaskSpec(task_type="echo", task_id="u3")]
    specs += [TaskSpec(task_type="echo", task_id="u3", payload=1)]
    handles = await workers.client.submit_many(specs)
    assert [handle.task_id for handle in handles] == [spec.task_id for spec in specs]
    first = [f"t{n}" for n in range(130)]
    alone = [["long"], ["u1"], ["s"], ["u2"], ["u3"], ["u3"]]
    assert await submitted(workers) == [first[:64], first[64:128], first[128:], *alone]
    assert await submitted(workers, "in:tasks:high") == [["high"]]
    entries: Any = await workers.redis.xrange(workers.keys.of("in:tasks:normal"))
    assert [handle.entry_id for handle in handles[::64]][:3] == [entry.decode() for entry, _ in entries[:3]]


async def test_where_one_of_many_does_not_fit_none_is_submitted(workers: PlayedWorkers) -> None:
    """The error names it; so all can be submitted again after a fix, and no handle is lost."""
    specs: list[Any] = [TaskSpec(task_type="echo", payload="x" * 100_000) for _ in range(30)]
    odds: list[Any] = [{"task_type": 5}, {"task_type": "e", "x": 1}, 5]
    for odd in odds:
        with pytest.raises(FactInvalid, match=re.escape("specs[30]: ")):
            await workers.client.submit_many([*specs, odd])
    with pytest.raises(FactInvalid, match="specs: expected tasks"):
        await workers.client.submit_many(None)  # type: ignore[arg-type]
    with pytest.raises(FactInvalid, match="unexpected keyword argument 'timeot'"):
        await workers.client.submit("echo", timeot=5)  # type: ignore[call-arg]
    assert await submitted(workers) == []


async def test_a_list_is_no_longer_than_an_entry_may_be(
    server: EmbeddedServer, redis: Redis, settings: Settings
) -> None:
    """Where little fits, little travels together, or nothing does."""
    for max_bytes, sizes in ((4_200, [3, 3, 1]), (2_000, [1] * 7)):
        small = msgspec.structs.replace(settings, max_entry_bytes=max_bytes)
        async with Client(server.url, settings=small) as client:
            workers = PlayedWorkers(redis, client)
            await client.submit_many([TaskSpec(task_type="echo")] * 7)
            assert [len(one) for one in await submitted(workers)] == sizes
            await redis.delete(workers.keys.of("in:tasks:normal"))


async def test_of_many_in_an_entry_each_has_its_own_answer(workers: PlayedWorkers) -> None:
    """One was turned down, early or late; the others were taken; nothing is mixed up."""
    early, late, *rest = await workers.client.submit_many([TaskSpec(task_type="echo")] * 5)
    entry = early.entry_id
    answered = {"type": "fact.answered", "stream": "in:tasks:normal", "fact": entry, "ok": "0", "code": "id_conflict"}
    await workers.reply(**answered, message="m", task_id=early.task_id)
    with pytest.raises(IdConflict):
        await early.accepted(timeout=5)
    with pytest.raises(ResultTimeout):
        await rest[0].accepted(timeout=0.05)
    await workers.reply(**answered, message="m", task_id=late.task_id)
    await workers.answer(entry)
    for handle in rest:
        await handle.accepted(timeout=5)
    with pytest.raises(IdConflict):
        await late.accepted(timeout=5)
    assert not workers.client.connection.watcher._answers._expected


async def test_entries_of_two_streams_may_have_one_id(workers: PlayedWorkers) -> None:
    """⚠ Appended in one millisecond: what is answered to one is not taken for the other's."""
    watcher, entry = workers.client.connection.watcher, "9-0"
    streams = ("in:tasks:normal", "in:messages:normal", "in:requests", "in:control:registry")
    codes = ("", "agent_not_found", "pending", "")
    await workers.answer(entry, codes[0], stream=streams[0])  # early
    asking = asyncio.gather(*(watcher.wait_for_answer((stream, entry), 5) for stream in streams))
    for stream, code in zip(streams[1:], codes[1:], strict=True):
        await workers.answer(entry, code, stream=stream)
    answered = [(one.ok, one.code) for one in await asking if one is not None]
    assert answered == [(not code, code) for code in codes]
    assert not watcher._answers._expected
    assert not watcher._answers._early


async def test_an_entry_that_was_buried_is_the_end_of_all_in_it(workers: PlayedWorkers) -> None:
    """None was taken, and each says so."""
    handles = await workers.client.submit_many([TaskSpec(task_type="echo")] * 3)
    await workers.answer(handles[0].entry_id, "fact_invalid")
    for handle in handles:
        with pytest.raises(FactInvalid):
            await handle.result(timeout=5)


async def test_an_outcome_comes_through_the_replies(workers: PlayedWorkers) -> None:
    """The coordinator's word is enough; no record is needed."""
    handle = await workers.client.submit("echo")
    await workers.answer(handle.entry_id)
    await handle.accepted(timeout=5)
    assert not handle.done
    await workers.reply(type="task.completed", task_id=handle.task_id, data=b'{"n":2}')
    assert await handle.result(timeout=5) == {"n": 2}


async def test_an_outcome_that_was_never_told_is_found_in_the_record(workers: PlayedWorkers) -> None:
    """Replies are a hint, records are the truth."""
    good, bad, refused = [await workers.client.submit("echo") for _ in range(3)]
    for handle in (good, bad, refused):
        await workers.consume(handle.entry_id)
    await workers.record(good.task_id, "completed", result=b"[1]")
    await workers.record(bad.task_id, "failed", error=encode({"code": "no_luck", "message": "m"}), attempt="3")
    await workers.record(refused.task_id, "refused", error=encode({"code": "backlog_full", "message": "full"}))
    assert await good.result(timeout=5) == [1]
    with pytest.raises(TaskFailed, match="at attempt 3: no_luck: m"):
        await bad.result(timeout=5)
    with pytest.raises(TaskRefused, match="full"):
        await refused.accepted(timeout=5)


@pytest.mark.parametrize("number", [b"1e999", b"7" * 5_000], ids=["large", "digits"])
async def test_what_cannot_be_decoded_is_shown_as_its_text(workers: PlayedWorkers, number: bytes) -> None:
    """A payload and a result of another language's: the record shows type and text, the result is an error."""
    handle = await workers.client.submit("echo")
    await workers.consume(handle.entry_id)
    value = b'{"n":%b}' % number
    body = b'{"task_id":"%b","task_type":"echo","payload":%b}' % (handle.task_id.encode(), value)
    await workers.record(handle.task_id, "completed", result=value, body=body)
    with pytest.raises(ResultInvalid, match=r"its result cannot be decoded.*its record shows the text") as raised:
        await handle.result(timeout=5)
    assert raised.value.code == "result_invalid"
    record = await handle.record()
    assert (record.task_type, record.payload, record.result) == ("echo", value.decode(), value.decode())


@pytest.mark.parametrize("way", ["replies", "record"])
async def test_a_failure_has_the_code_and_the_detail_of_its_handler(workers: PlayedWorkers, way: str) -> None:
    """So that a program can tell one failure from another without reading its text; however the outcome is learned."""
    handle = await workers.client.submit("echo")
    error = encode({"code": "unreadable", "message": "page 13 is blank", "detail": {"page": 13}})
    await workers.record(handle.task_id, "failed", error=error, attempt="2")
    await workers.answer(handle.entry_id)
    if way == "replies":
        await workers.reply(type="task.failed", task_id=handle.task_id, data=error)
    else:
        await workers.consume(handle.entry_id)
    with pytest.raises(TaskFailed, match="at attempt 2: unreadable: page 13 is blank") as raised:
        await handle.result(timeout=5)
    failed = raised.value
    assert (failed.code, failed.message, failed.detail) == ("unreadable", "page 13 is blank", {"page": 13})
    assert (failed.task_id, failed.attempt) == (handle.task_id, 2)
    record = await handle.record()
    assert record.error == TaskError("unreadable", "page 13 is blank", {"page": 13})
    assert TaskFailed.code == TaskFailed("x").code == "task_failed"


async def test_a_refusal_of_an_earlier_submission_is_not_this_ones(workers: PlayedWorkers) -> None:
    """The record still says refused, but of before: the new submission waits in its stream."""
    await workers.record("again", "refused", submitted_at=1_000, error=encode({"code": "backlog_full", "message": "f"}))
    handle = await workers.client.submit("echo", task_id="again")
    with pytest.raises(ResultTimeout, match="does a distributor run"):
        await handle.result(timeout=0.3)


async def test_a_task_that_vanished_is_said_to_be_gone(workers: PlayedWorkers) -> None:
    """Neither in its stream nor recorded: Redis lost it, and no caller waits for ever."""
    handle = await workers.client.submit("echo")
    waiting = asyncio.create_task(handle.result(timeout=10))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(waiting), 0.2)  # while it lies in its stream it is awaited
    await workers.consume(handle.entry_id)
    with pytest.raises(TaskNotFound, match="lost its data"):
        await waiting


async def test_an_answer_may_come_before_the_entry_id_is_known(workers: PlayedWorkers) -> None:
    """Two connections: the answer is kept until the append has returned the entry id."""
    client = workers.client
    await client.submit("echo")  # begins to read replies
    stream = workers.keys.of("in:tasks:normal")
    added: Any = await workers.redis.xadd(stream, {"type": "x"})
    entry = added.decode()
    await workers.answer(entry, "id_conflict")
    last = (await client.submit("echo")).entry_id
    await workers.answer(last)
    await wait_until(lambda: client.connection.watcher._answers._early, "the answer is here")
    answer = await client.connection.watcher.wait_for_answer(("in:tasks:normal", entry), 5)
    assert answer is not None
    assert isinstance(answer.error, IdConflict)


async def test_an_outcome_of_another_submission_with_the_same_id_is_not_taken_for_this_ones(
    workers: PlayedWorkers,
) -> None:
    """Two submissions of one client under one id: each waits for its own answer first."""
    first = await workers.client.submit("echo", 1, task_id="same")
    second = await workers.client.submit("echo", 2, task_id="same")
    await workers.answer(first.entry_id)
    await workers.reply(type="task.completed", task_id="same", data=b"1")
    assert await first.result(timeout=5) == 1
    await workers.answer(second.entry_id, "id_conflict")
    with pytest.raises(IdConflict):
        await second.result(timeout=5)
    handles = [handle async for handle in workers.client.as_completed([first, second], timeout=5)]
    assert set(handles) == {first, second}


async def test_who_asks_again_and_again_for_a_moment_finds_the_outcome(workers: PlayedWorkers) -> None:
    """The look that is due is not put off by each new wait."""
    handle = workers.client.handle("t-1")
    await workers.record("t-1", "completed", result=b"7")

    async def found() -> Any:
        try:
            return await handle.result(timeout=0.01)
        except ResultTimeout:
            return None

    assert await wait_until(found, "the outcome is found") == 7


async def test_a_submission_is_not_told_the_outcome_of_an_earlier_one(workers: PlayedWorkers) -> None:
    """Though its handle is still held: other content under the same id is a conflict, however it is asked for."""
    client = workers.client
    first = await client.submit("echo", 1, task_id="same")
    await workers.answer(first.entry_id)
    await workers.reply(type="task.completed", task_id="same", data=b"1")
    assert await first.result(timeout=5) == 1
    second = await client.submit("echo", 2, task_id="same")
    with pytest.raises(ResultTimeout):
        await second.accepted(timeout=0.05)
    await workers.answer(second.entry_id, "id_conflict")
    with pytest.raises(IdConflict):
        await second.result(timeout=5)
    assert await first.result(timeout=5) == 1
    await workers.consume(second.entry_id)
    await workers.record("same", "completed", result=b"3")
    assert await client.handle("same").result(timeout=5) == 3, "another client retried it: its record is read"


async def test_a_task_of_someone_else_may_still_wait_for_a_distributor(workers: PlayedWorkers) -> None:
    """Its record is not there yet: it is waited for until all that lay in the streams was taken, and no longer."""
    stream = workers.keys.of("in:tasks:low")
    before: Any = await workers.redis.xadd(stream, {"type": "x"})
    handles = [workers.client.handle("t-1"), workers.client.handle("t-2")]
    for handle in handles:
        with pytest.raises(ResultTimeout):
            await handle.result(timeout=0.5)
    await workers.redis.xadd(stream, {"type": "x"})
    await workers.record("t-1", "completed", result=b"1")
    await workers.consume(before.decode(), "in:tasks:low")
    assert await handles[0].result(timeout=5) == 1
    with pytest.raises(TaskNotFound):
        await handles[1].result(timeout=5)


async def test_as_completed_wants_handles(workers: PlayedWorkers) -> None:
    """Of what it was given instead, the type is named."""
    for odd, name in ((["t1"], "str"), ([{}], "dict"), (5, "int"), (None, "NoneType")):
        with pytest.raises(FactInvalid, match=f"handles: expected a list of TaskHandle, not {name}"):
            await anext(workers.client.as_completed(odd))  # type: ignore[arg-type]


async def test_as_completed_gives_up_when_nothing_ends(workers: PlayedWorkers) -> None:
    """The patience is for the next one."""
    handles = await workers.client.submit_many([TaskSpec(task_type="echo")] * 3)
    await workers.answer(handles[2].entry_id)
    await workers.reply(type="task.completed", task_id=handles[2].task_id, data=b"1")
    completed = workers.client.as_completed(handles, timeout=0.2)
    assert await anext(completed) is handles[2]
    with pytest.raises(ResultTimeout, match="none of 2 tasks"):
        await anext(completed)


async def test_a_cancel_says_what_the_coordinator_said(workers: PlayedWorkers) -> None:
    """Pending is not an error; no answer is a timeout."""
    client = workers.client
    with pytest.raises(ResultTimeout, match=r"no distributor answered within 0\.05 s; the request waits for one"):
        await client.cancel("t-1", timeout=0.05)
    asking = asyncio.create_task(client.cancel("t-2", "why not", timeout=20))

    async def requests() -> list[Any]:
        found: Any = await workers.redis.xrange(workers.keys.of("in:requests"))
        return found if len(found) == 2 else []

    entries = await wait_until(requests, "the request is there")
    await workers.answer(entries[-1][0].decode(), "pending", stream="in:requests")
    assert await asking == "pending"


async def test_a_cancel_for_an_operator_is_an_operators_request(workers: PlayedWorkers) -> None:
    """⚠ Clients may not append to that stream, so nobody else can write such a name into the audit."""
    client = workers.client
    for by, stream in (("ann@host", "in:control:distributor"), ("", "in:requests")):
        token = acting_for.set(by)
        try:
            with pytest.raises(ResultTimeout):
                await client.cancel("t-1", timeout=0.05)
            await client.cancel_many(["t-2"], timeout=0.05)
        finally:
            acting_for.reset(token)
        found: Any = await workers.redis.xrange(workers.keys.of(stream))
        assert [fields.get(b"by", b"").decode() for _, fields in found] == [by, by]


async def test_a_client_that_is_not_open_says_so(settings: Settings) -> None:
    """The remedy is in the message."""
    with pytest.raises(ConfigError, match="async with"):
        await Client(settings=settings).submit("echo")


async def test_no_server_is_said_so(settings: Settings, unused_port: int) -> None:
    """With where it was looked for, and what to do."""
    with pytest.raises(ServerUnavailable, match="coord up"):
        await Client(f"redis://127.0.0.1:{unused_port}", settings=settings, reach_s=0.1).open()
