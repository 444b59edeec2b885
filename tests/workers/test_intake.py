"""What happens to bad entries and to entries whose handling fails: nothing to the others."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from redis import exceptions as redis_errors
from redis.asyncio import Redis

from coord import codec
from coord.config import Settings
from coord.keys import CONSUMES, MESSAGE_STREAMS, TASK_STREAMS, Keys
from coord.models import facts
from coord.models.agents import AgentType
from coord.models.facts import AgentDrained, MessageReplayed, TaskReplayed
from coord.models.ids import new_id
from coord.models.tasks import TaskSubmitted
from coord.streams import Append, Consumer, append
from tests.ledger import assert_keys_end, assert_ledger
from tests.running import RunningCell
from tests.waiting import wait_until
from tests.workers.raw import Caller, Wire, buried, entries
from workers.intake import TRIES, Intake, is_transient
from workers.service import Failure, ReceivedFact, Service, Tick, WorkerContext
from workers.transitions import Scripts

LEASE = "0123456789abcdef"
#: For each ingress stream, a fact that it carries and that is answered ok, whatever the state of the cell.
GOOD: dict[str, msgspec.Struct] = {
    "in:registry": facts.AgentRegistered(agent_id="good", agent_type=AgentType.WORKER),
    "in:beats": facts.AgentHeartbeat(agent_id="good"),
    "in:reports": facts.TaskStarted(task_id="none", lease=LEASE),
    "in:losses": facts.AgentLost(agent_id="nobody", term=1),
    "in:requests": facts.TaskCancelRequested(task_id="none"),
    "in:control:registry": AgentDrained(agent_id="nobody"),
    "in:control:distributor": TaskReplayed(task_id="none"),
    "in:control:router": MessageReplayed(message_id="none"),
}
GOOD |= {stream: TaskSubmitted(task_id=f"good-{stream[9:]}", task_type="t") for stream in TASK_STREAMS}
GOOD |= {
    stream: facts.MessageSent(message_id=f"good-{stream[12:]}", sender_id="s", receiver_id="r")
    for stream in MESSAGE_STREAMS
}
DEEP = b'{"task_id":"d","agent_id":"d","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
BIG = b'{"x":"' + b"x" * (1 << 20) + b'"}'


def poisons(stream: str) -> dict[str, tuple[Wire, str]]:
    """What an entry of this stream may look like at its worst, and the words that its reason has."""
    word = facts.TYPE_OF[type(GOOD[stream])]
    foreign = "task.submitted" if not stream.startswith("in:tasks") else "agent.lost"
    return {
        "no json": ({"type": word, "data": b"{no json"}, "field 'data'"),
        "empty": ({"type": word, "data": b""}, "field 'data'"),
        "no type": ({"data": b"{}"}, "field 'type' is missing"),
        "no data": ({"type": word}, "field 'data' is missing"),
        "not its type": ({"type": foreign, "data": b"{}"}, "field 'type'"),
        "binary type": ({"type": b"\xff\x00", "data": b"{}"}, "field 'type'"),
        "missing field": ({"type": word, "data": b"{}"}, "_id`"),
        "bad id": ({"type": word, "data": _with_bad_id(stream)}, "_id`"),
        "deep": ({"type": word, "data": DEEP}, "field 'data' is nested too deeply"),
        "utf-8": ({"type": word, "data": b'{"task_id":"\xff","agent_id":"\xff","message_id":"\xff"}'}, "UTF-8"),
        "too big": ({"type": word, "data": BIG}, "field 'data': 1048584 bytes are over the limit"),
    }


def _with_bad_id(stream: str) -> bytes:
    fields = msgspec.json.decode(codec.encode(GOOD[stream]))
    return msgspec.json.encode(
        {k: "a:b{c}" if k in {"task_id", "agent_id", "message_id"} else v for k, v in fields.items()}
    )


@pytest.mark.guarantee("poison-entries")
@pytest.mark.parametrize("stream", sorted(GOOD))
async def test_poison_in_every_ingress_stream_is_buried_and_told(
    cell: RunningCell, caller: Caller, stream: str
) -> None:
    """Each kind of poison lies in dead:in with stream, id and a reason naming the field; its neighbours are handled."""
    named = {b"caller": caller.id.encode()}
    good = {**codec.encode_entry(GOOD[stream], caller=caller.id)}
    told: list[tuple[str, Wire]] = []
    poisoned = poisons(stream)
    for fields, _ in poisoned.values():
        told += [(stream, {**fields, **named}), (stream, {**good})]
    ids = await caller.raws(told)
    for (name, (fields, reason)), entry in zip(poisoned.items(), ids[::2], strict=True):
        answer = await caller.answer(entry)
        assert answer["ok"] == "0", name
        assert answer["code"] == ("fact_too_large" if name == "too big" else "fact_invalid")
        assert reason in answer["message"], name
        grave = next(one for one in await buried(cell) if one["id"] == entry)
        assert (grave["stream"], grave["reason"]) == (stream, answer["message"])
        assert len(grave["data"]) <= max(4096, len(fields.get("data", b"")) * 3)
        assert len(grave["data"].encode()) <= 4096 * 3
    if stream != "in:losses":  # which nobody waits for
        for entry in ids[1::2]:
            assert (await caller.answer(entry)).get("code", "") in {
                "",
                "stale_lease",
                "task_not_found",
                "message_not_found",
                "agent_not_found",
                "unknown_agent",
            }
    await wait_until(lambda: _is_empty(cell, stream), f"{stream} is empty")
    assert len(await buried(cell)) == len(poisoned)
    await assert_ledger(cell.redis, cell.keys)
    await assert_keys_end(cell.redis, cell.keys)


async def test_an_unknown_strategy_is_answered_with_the_known_ones(cell: RunningCell, caller: Caller) -> None:
    """A task that names a strategy which does not exist is buried; the reason names the field and what there is."""
    entry = await caller.tell("in:tasks:high", TaskSubmitted(task_id="t1", task_type="t", strategy="best"))
    answer = await caller.answer(entry)
    assert answer["code"] == "fact_invalid"
    assert "strategy 'best' is not one of capability_based, consistent_hash" in answer["message"]


async def test_a_caller_that_is_no_id_is_never_a_key(cell: RunningCell, caller: Caller) -> None:
    """A caller with a colon or a brace gets no answer, and no key is made of what it says; its fact is handled."""
    for bad in (b"a:b", b"{x}", b"x" * 129, b"\xff", b"a b"):
        await caller.raw("in:tasks:low", {b"type": b"task.submitted", b"data": b"{", b"caller": bad})
    good = await caller.tell("in:tasks:low", TaskSubmitted(task_id="t1", task_type="t"))
    assert (await caller.answer(good))["ok"] == "1"
    replies = [key async for key in cell.redis.scan_iter(match=f"{cell.keys.prefix}replies:*")]
    assert replies == [cell.keys.replies(caller.id).encode()]


@pytest.mark.guarantee("poison-entries")
async def test_an_entry_whose_script_fails_is_tried_three_times_alone(cell: RunningCell, caller: Caller) -> None:
    """A record of a wrong type fails its own entry, three times by itself; then that one is buried, no other."""
    await cell.redis.set(cell.keys.task("broken"), "no hash")
    ids = [f"t{number}" for number in range(10)]
    told = [
        Append("in:tasks:normal", TaskSubmitted(task_id=one, task_type="t"), caller.id)
        for one in [*ids[:5], "broken", *ids[5:]]
    ]
    appended = await append(cell.redis, cell.keys, told)
    for entry in appended[:5] + appended[6:]:
        assert (await caller.answer(entry))["ok"] == "1"
    answer = await caller.answer(appended[5])
    assert answer["code"] == "entry_buried"
    assert "failed 3 times by itself" in answer["message"]
    assert "WRONGTYPE" in answer["message"]
    assert [one["id"] for one in await buried(cell)] == [appended[5]]
    await wait_until(lambda: _is_empty(cell, "in:tasks:normal"), "in:tasks:normal is empty")
    await cell.redis.delete(cell.keys.task("broken"))
    await assert_ledger(cell.redis, cell.keys)


class Stub(Service):
    """A router whose handling the test decides."""

    kind = "router"

    def __init__(self, cell: WorkerContext) -> None:
        super().__init__(cell)
        self.raises: list[BaseException | str | None] = []
        self.batches: list[int] = []

    async def handle(self, batch: list[ReceivedFact[Any]]) -> list[Failure]:
        """What the test says, else handled."""
        self.batches.append(len(batch))
        what = self.raises.pop(0) if self.raises else None
        if isinstance(what, BaseException):
            raise what
        return [Failure(one.entry, what) for one in batch] if what else []

    def ticks(self) -> dict[str, Tick]:
        """None."""
        return {}


class Bench:
    """An intake with a stub, one step at a time."""

    def __init__(self, redis: Redis, settings: Settings, name: str = "w1") -> None:
        keys = Keys(settings.namespace)
        self.redis, self.keys = redis, keys
        self.stub = Stub(WorkerContext(redis, keys, settings, Scripts(redis, keys, settings), ""))
        self.consumer = Consumer(redis, keys, "router", name, CONSUMES["router"])
        self.intake = Intake(self.stub, self.consumer)

    async def begin(self, count: int = 1) -> None:
        """Load, and append messages."""
        await self.stub.cell.scripts.load()
        await self.consumer.make_groups()
        sent = [facts.MessageSent(message_id=new_id(), sender_id="s", receiver_id="r") for _ in range(count)]
        await append(self.redis, self.keys, [Append("in:messages:low", one, "me") for one in sent])

    async def graves(self) -> list[dict[bytes, bytes]]:
        """What is buried."""
        return [fields for _, fields in await entries(self.redis, self.keys.of("dead:in"))]


TRANSIENT = [
    redis_errors.ConnectionError("lost"),
    redis_errors.TimeoutError("late"),
    redis_errors.BusyLoadingError("loading"),
    redis_errors.OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
    redis_errors.NoScriptError("No matching script"),
    redis_errors.ReadOnlyError("You can't write against a read only replica."),
    redis_errors.MovedError("14041 127.0.0.1:7001"),
    redis_errors.AskError("14041 127.0.0.1:7001"),
    redis_errors.TryAgainError("Multiple keys request during rehashing of slot"),
    redis_errors.NoPermissionError("this user has no permissions"),
    redis_errors.ResponseError("NOGROUP No such key"),
    redis_errors.ResponseError("MISCONF Redis is configured to save RDB snapshots"),
    redis_errors.ResponseError("NOREPLICAS Not enough good replicas to write."),
    redis_errors.ResponseError("UNBLOCKED the stream key no longer exists"),
    ConnectionResetError(),
    redis_errors.ResponseError("BUSY Redis is busy running a script"),
    redis_errors.ResponseError("MASTERDOWN Link with MASTER is down"),
    redis_errors.ResponseError("UNKILLABLE Sorry the script already executed write commands"),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=lambda error: type(error).__name__ + str(error)[:8])
async def test_passing_errors_never_count_as_tries(redis: Redis, settings: Settings, error: Exception) -> None:
    """However often the server is away, loading or full while an entry is tried, the entry outlives it."""
    bench = Bench(redis, settings)
    await bench.begin()
    (entry,) = await bench.consumer.read_new(10, None)
    bench.stub.raises = [error] * (3 * TRIES)
    for _ in range(3 * TRIES):
        with pytest.raises(type(error)):
            await bench.intake.handle_alone([entry])
    assert await bench.graves() == []
    bench.stub.raises = ["broken"] * TRIES
    for tried in range(TRIES):
        assert len(await bench.graves()) == 0, tried
        await bench.intake.handle_alone([entry])
    (grave,) = await bench.graves()
    assert b"failed 3 times by itself; last: broken" in grave[b"reason"]


@pytest.mark.parametrize("names", [("w1",), ("w1", "w2", "w3", "w4")], ids=["restarted", "siblings"])
async def test_whoever_tries_an_entry_next_counts_no_passing_error(
    redis: Redis, settings: Settings, names: tuple[str, ...]
) -> None:
    """⚠ A new process knows only what the server has counted: rolling restarts on a full server bury nobody."""
    bench = Bench(redis, settings)
    await bench.begin()
    await bench.consumer.read_new(10, None)
    for number in range(3 * TRIES):
        bench = Bench(redis, settings, names[number % len(names)])
        bench.stub.raises = [redis_errors.OutOfMemoryError("command not allowed when used memory > 'maxmemory'.")]
        claimed = await bench.consumer.claim_idle(0, 10)
        with pytest.raises(redis_errors.OutOfMemoryError):
            await bench.intake.handle_alone(claimed)
    assert await bench.graves() == []


def test_what_a_caller_wrote_is_no_passing_error() -> None:
    """Only the server's words make an error pass: a Python error that quotes an entry must not keep it for ever."""
    assert not is_transient(ValueError("task 'LOADING' is odd"))
    assert is_transient(redis_errors.ResponseError("LOADING Redis is loading the dataset in memory"))


async def test_a_batch_that_fails_is_handled_one_by_one(redis: Redis, settings: Settings) -> None:
    """A batch whose handling raises is tried entry by entry; only the one that fails again stays."""
    bench = Bench(redis, settings)
    await bench.begin(5)
    batch = await bench.consumer.read_new(10, None)
    bench.stub.raises = [RuntimeError("the batch"), None, None, RuntimeError("this one")]
    await bench.intake.handle(batch)
    assert bench.stub.batches == [5, 1, 1, 1, 1, 1]
    assert bench.intake._tries == {("in:messages:low", batch[2].id): 1}


async def test_a_killer_entry_is_counted_before_it_is_tried(redis: Redis, settings: Settings) -> None:
    """An entry that ends its worker is buried after three workers ended on it; the fourth lives."""
    first = Bench(redis, settings)
    await first.begin()
    (entry,) = await first.consumer.read_new(10, None)
    for number in range(TRIES + 1):
        bench = Bench(redis, settings, f"w{number}")
        bench.stub.raises = [KeyboardInterrupt("killed")]
        claimed = await bench.consumer.claim_idle(0, 10)
        assert claimed == [entry]
        if number < TRIES:
            with pytest.raises(KeyboardInterrupt):
                await bench.intake.handle_alone(claimed)
            assert await bench.graves() == []
        else:
            await bench.intake.handle_alone(claimed)
            (grave,) = await bench.graves()
            assert grave[b"reason"] == b"its worker ended three times while it was tried"
            assert bench.stub.batches == []


async def test_the_same_id_in_two_streams_is_two_entries(redis: Redis, settings: Settings) -> None:
    """Tries are counted for each entry: ids are unique within a stream only."""
    bench = Bench(redis, settings)
    await bench.begin(0)
    for lane in ("low", "high"):
        fact = facts.MessageSent(message_id=lane, sender_id="s", receiver_id="r")
        fields = codec.encode_entry(fact)
        parts = (part for pair in fields.items() for part in pair)
        await redis.execute_command("XADD", bench.keys.of(f"in:messages:{lane}"), "5-1", *parts)
    both = await bench.consumer.read_new(10, None)
    bench.stub.raises = ["broken"] * 4
    await bench.intake.handle_alone(both)
    await bench.intake.handle_alone(both)
    assert await bench.graves() == []
    assert set(bench.intake._tries.values()) == {2}


async def test_an_entry_that_waits_counts_no_try(redis: Redis, settings: Settings) -> None:
    """One that its service holds back (a loss behind older reports) is never buried, however many take it over."""
    await Bench(redis, settings).begin()
    bench = Bench(redis, settings)
    (entry,) = await Bench(redis, settings).consumer.read_new(10, None)
    for number in range(3 * TRIES):
        bench = Bench(redis, settings, f"w{number}")
        bench.stub.defer([ReceivedFact(entry, None, "")], ["WAIT"])
        await bench.intake.handle_alone(await bench.consumer.claim_idle(0, 10))
    assert await bench.graves() == []


async def _is_empty(cell: RunningCell, stream: str) -> bool:
    key = cell.keys.of(stream)
    return await cell.redis.xlen(key) == 0 and all(one["pending"] == 0 for one in await cell.redis.xinfo_groups(key))
