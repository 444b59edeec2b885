"""Whether the books of a cell balance: counters against records, records against every structure that names them.

For any test, at any moment between two scripts: ``await assert_ledger(redis, keys)``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from coord.keys import WITHOUT_TTL, Keys
from coord.models.tasks import LANE, TERMINAL, Priority, TaskState

Record = dict[str, str]
HELD = ("assigned", "running")
WAITING = ("scheduled", "queued")
#: The index of ended tasks that each end is listed in.
GRAVEYARD = {
    "completed": "tasks:terminal",
    "cancelled": "tasks:terminal",
    "expired": "tasks:terminal",
    "failed": "tasks:dead",
    "refused": "tasks:refused",
}


class Books(NamedTuple):
    """Everything that a cell knows of its tasks, read at one moment of quiet."""

    counters: dict[str, int]
    records: dict[str, Record]
    queues: dict[str, dict[str, float]]
    inflight: dict[str, set[str]]
    inboxes: dict[str, dict[str, Record]]
    pools: set[str]
    alarms: dict[str, float]
    graves: dict[str, set[str]]


async def assert_ledger(redis: Any, keys: Keys, *, trimmed: bool = False) -> None:
    """Fail unless the books balance exactly.

    Args:
        redis: any asyncio client that answers in bytes.
        keys: of the cell.
        trimmed: records of ended tasks were forgotten meanwhile, so the totals may be above what is left of them.
    """
    books = await read_books(redis, keys)
    _assert_counters(books, trimmed=trimmed)
    _assert_structures(books)
    _assert_alarms(books)
    _assert_ends(books)


async def assert_keys_end(redis: Any, keys: Keys) -> None:
    """Fail if a key that should end by itself has no TTL, or one of a living thing has one."""
    async for name in _names(redis, keys, ""):
        ttl = await redis.pttl(keys.of(name))
        if name.startswith("task:"):
            raw = await redis.hget(keys.of(name), "state")
            ends = raw is not None and (TaskState(raw.decode()) in TERMINAL or raw == b"refused")
        else:
            ends = not any(fnmatchcase(name, pattern) for pattern in WITHOUT_TTL)
        assert (ttl > 0) == ends, f"{name} has a TTL of {ttl} ms and should{'' if ends else ' not'} end by itself"


async def read_books(redis: Any, keys: Keys) -> Books:
    """Read all of it; records by task id, queues by pool, inflight sets by agent, inboxes by ``agent:lane``."""
    records = {n[5:]: _text(await redis.hgetall(keys.of(n))) async for n in _names(redis, keys, "task:")}
    queues = {n[6:]: _scores(await _zset(redis, keys.of(n))) async for n in _names(redis, keys, "queue:")}
    inflight = {
        n[9:]: {one.decode() for one in await redis.smembers(keys.of(n))}
        async for n in _names(redis, keys, "inflight:")
    }
    inboxes = {
        n[6:]: {entry.decode(): _text(fields) for entry, fields in await redis.xrange(keys.of(n))}
        async for n in _names(redis, keys, "inbox:")
    }
    counters = _text(await redis.hgetall(keys.of("counters")))
    graves = {index: set(_scores(await _zset(redis, keys.of(index)))) for index in set(GRAVEYARD.values())}
    return Books(
        counters={name: int(value) for name, value in counters.items()},
        records=records,
        queues=queues,
        inflight=inflight,
        inboxes=inboxes,
        pools={pool.decode() for pool in await redis.hkeys(keys.of("pools"))},
        alarms=_scores(await _zset(redis, keys.of("alarms"))),
        graves=graves,
    )


def _assert_counters(books: Books, *, trimmed: bool) -> None:
    counted = books.counters
    found = Counter(f"{record['state']}:{record['priority']}" for record in books.records.values())
    for priority in Priority:
        parts = {state: counted.get(f"{state}:{priority}", 0) for state in TaskState if state != TaskState.REFUSED}
        total = counted.get(f"submitted:{priority}", 0)
        assert total == sum(parts.values()), f"{priority}: {total} submitted are not {parts}"
        for state, number in parts.items():
            there = found[f"{state}:{priority}"]
            fits = number >= there if trimmed and state in TERMINAL else number == there
            assert fits, f"{state}:{priority} counts {number}, records say {there}"
    bodies = [one.get("body", "") for one in books.records.values() if one["state"] in WAITING]
    waiting = sum(len(body.encode("utf-8", "surrogateescape")) for body in bodies)
    assert counted.get("backlog_bytes", 0) == waiting, "backlog_bytes is not the size of the waiting bodies"


def _assert_structures(books: Books) -> None:
    records = books.records
    queued = {
        pool: {
            task: float(one["score"])
            for task, one in records.items()
            if one["state"] == "queued" and one["pool"] == pool
        }
        for pool in {one["pool"] for one in records.values() if one["state"] == "queued"}
    }
    assert books.queues == queued, "queues and queued records differ"
    assert books.pools == set(queued), "the table of pools and the queues differ"
    held = {task: one for task, one in records.items() if one["state"] in HELD}
    inflight = {
        agent: {task for task, one in held.items() if one["agent_id"] == agent}
        for agent in {one["agent_id"] for one in held.values()}
    }
    assert books.inflight == inflight, "inflight sets and held records differ"
    for inbox, entries in books.inboxes.items():
        for entry, fields in entries.items():
            if fields["message_type"] != "task_assignment":
                continue
            holder = held.get(fields["task_id"])
            assert holder, f"{inbox} assigns {fields['task_id']}, which nobody holds"
            lane = f"{holder['agent_id']}:{LANE[Priority(holder['priority'])]}"
            assert (lane, entry, fields["lease"]) == (inbox, holder["entry"], holder["lease"])


def _assert_alarms(books: Books) -> None:
    expected: dict[str, float] = {}
    for task, one in books.records.items():
        names = {"queued": ["deadline"], "scheduled": ["deadline", "run_at"]}.get(one["state"], [])
        if one["state"] in HELD:
            names = ["deadline", "start_by", "timeout_at", "cancel_by"]
        due = [float(one[name]) for name in names if name in one]
        if due:
            expected[task] = min(due)
    assert books.alarms == expected, "alarms are not the earliest due moments of the records"


def _assert_ends(books: Books) -> None:
    for index, listed in books.graves.items():
        ended = {task for task, one in books.records.items() if GRAVEYARD.get(one["state"]) == index}
        assert listed == ended, f"{index} and the ended records differ"


async def _names(redis: Any, keys: Keys, start: str) -> AsyncIterator[str]:
    async for raw in redis.scan_iter(match=f"{keys.prefix}{start}*", count=1000):
        yield raw.decode().removeprefix(keys.prefix)


async def _zset(redis: Any, key: str) -> list[tuple[bytes, float]]:
    return [(pair[0], float(pair[1])) for pair in await redis.zrange(key, 0, -1, withscores=True)]


def _scores(pairs: list[tuple[bytes, float]]) -> dict[str, float]:
    return {member.decode(): score for member, score in pairs}


def _text(raw: dict[bytes, bytes]) -> Record:
    return {name.decode(): value.decode("utf-8", "surrogateescape") for name, value in raw.items()}
