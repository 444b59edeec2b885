"""One namespace under the state machine: the real scripts without an event loop, and everything it holds at a glance.

A script and a picture of what it left behind travel in one round trip, so that thousands of steps take seconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

from redis import Redis
from redis.exceptions import ResponseError

from coord.codec import unpack_record
from coord.config import Settings
from coord.keys import CONSUMES, Keys
from coord.models.tasks import Priority
from tests.ledger import END_INDEX, CellSnapshot, Record
from tests.scripts.cell import START
from workers import lua
from workers.transitions import Call, Scripts

#: Everything in a namespace but logs, replies and indexes of agents: name, type, content, TTL in ms.
PICTURE = """
local P, found = KEYS[1], {}
for _, key in ipairs(redis.call('KEYS', P .. '*')) do
  local name, kind, content = string.sub(key, #P + 1), redis.call('TYPE', key).ok, nil
  if string.find(name, '^log:') or string.find(name, '^replies:') or string.find(name, '^agents:by:') then
    kind = 'none'
  elseif kind == 'hash' then
    content = redis.call('HGETALL', key)
  elseif kind == 'set' then
    content = redis.call('SMEMBERS', key)
  elseif kind == 'zset' then
    content = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  elseif kind == 'stream' then
    content = redis.call('XRANGE', key, '-', '+')
  end
  if content then
    found[#found + 1] = { name, kind, content, redis.call('PTTL', key) }
  end
end
return found
"""
#: Every key as it is dumped, with the moment at which it ends (-1: never).
SNAPSHOT = """
local found = {}
for _, key in ipairs(redis.call('KEYS', KEYS[1] .. '*')) do
  found[#found + 1] = { key, redis.call('DUMP', key), redis.call('PEXPIRETIME', key) }
end
return found
"""
#: In front of a script: of the keys that it touches, KEYS[2] counts down to the one that is broken, as if it were of a
#: wrong type. Every command on it raises an error during this call, but for those that work on any type.
FAILING = """
local redis_call, met, keys_left, broken = redis.call, {}, tonumber(KEYS[2]), nil
local on_any_type = { DEL = true, EXISTS = true, PEXPIRE = true }
local function is_broken(command, key)
  if key and not on_any_type[command] and not met[key] then
    met[key], keys_left = true, keys_left - 1
    broken = broken or keys_left == 0 and key
  end
  return broken and key == broken and not on_any_type[command]
end
local function failing_call(command, key, ...)
  if is_broken(command, key) then
    error({ err = 'WRONGTYPE on purpose: ' .. command .. ' ' .. key })
  end
  return redis_call(command, key, ...)
end
local function failing_pcall(command, key, ...)
  -- Only dispatch reads records like this; one that cannot be read is no waiting task, and is dropped with the pop.
  met[key] = met[key] or command == 'HMGET'
  if is_broken(command, key) then
    return { err = 'WRONGTYPE on purpose: ' .. command .. ' ' .. key }
  end
  return redis.pcall(command, key, ...)
end
"""
TASK_STREAMS = [f"in:tasks:{priority}" for priority in Priority]

Snapshot = list[tuple[bytes, bytes, int]]


@dataclass
class Picture:
    """A namespace at one moment."""

    books: CellSnapshot
    agents: dict[str, Record]
    active: set[str]  #: agents that may be given work
    suspended: Record  #: agents that returned a task unstarted -> their last facts then
    facts: dict[str, dict[str, Record]]  #: ingress stream -> entry -> its fields
    ttls: dict[str, int]  #: task -> ms that its record lives on, -1 for ever

    def waiting(self, stream: str) -> list[str]:
        """The entries of an ingress stream that are not consumed, oldest first."""
        return list(self.facts.get(stream, ()))

    def state(self, task_id: str) -> str:
        """A task's state; ``none`` without a record."""
        record = self.books.records.get(task_id)
        return "none" if record is None else record["state"]


class MachineServer:
    """The scripts of one namespace on a server that nobody else uses meanwhile. ``now`` is the time that they see."""

    def __init__(self, url: str, settings: Settings) -> None:
        self.redis: Any = Redis.from_url(url, protocol=3)
        self.keys = Keys(settings.namespace)
        self.settings = settings
        self.scripts = Scripts(cast("Any", None), self.keys, settings)  # builds calls; this class sends them
        self.failing: dict[str, str] = {}
        for name, source in self.scripts._sources.items():
            self.redis.script_load(source.text)
            self.failing[name] = self.redis.script_load(failing(source.text))
        self._picture = self.redis.script_load(PICTURE)
        self._snapshot = self.redis.script_load(SNAPSHOT)

    def begin(self) -> None:
        """An empty namespace with every group, at ``START``."""
        self.now = self._latest = START
        self._sequence = itertools.count(100, 100)  # a script may append a few in between
        self._unsent: list[tuple[Any, ...]] = []
        self.redis.flushall()
        pipe = self.redis.pipeline(transaction=False)
        for kind, streams in CONSUMES.items():
            for stream in streams:
                pipe.xgroup_create(self.keys.of(stream), kind, id="0", mkstream=True)
        pipe.execute()

    def close(self) -> None:
        """End the connection."""
        self.redis.close()

    def append(self, stream: str, kind: str) -> str:
        """An entry of ``now`` in an ingress stream, not yet read; its id. It travels with what is sent next."""
        entry = self._next_id()
        self._unsent.append(("XADD", self.keys.of(stream), entry, "type", kind, "data", "{}"))
        return entry

    def _next_id(self) -> str:
        """An entry id of ``now``; ids never go back, whatever the clock does."""
        self._latest = max(self._latest, self.now)
        return f"{self._latest}-{next(self._sequence)}"

    def set_right(self) -> None:
        """Bring a clock that was set back up to the entries: a delay counts from its entry and waits for that."""
        self.now = max(self.now, self._latest)

    def due_until(self) -> dict[str, int]:
        """Return up to which moment each index is due, in ms, by the clock that the index goes by."""
        pipe = self._pipeline()
        pipe.hget(self.keys.of("clock"), "attempts")
        pipe.xrange(self.keys.of("in:reports"), count=1)
        *_, attempts, waiting = pipe.execute()
        oldest = int(waiting[0][0].partition(b"-")[0]) - 1 if waiting else self.now
        attempts = int(attempts or self.now)
        reported = min(self.now, oldest)
        return {"alarms": self.now, "deadlines": reported, "limits": attempts, "unclaimed": attempts}

    def tick(self) -> None:
        """Advance the clock of attempts as wakes in short intervals do: to now, or to the oldest report that waits."""
        key = self.keys.of("clock")
        pipe = self._pipeline()
        pipe.hmget(key, ["attempts", "attempts_at"])
        pipe.xrange(self.keys.of("in:reports"), count=1)
        *_, (attempts, at), waiting = pipe.execute()
        oldest = int(waiting[0][0].partition(b"-")[0]) if waiting else self.now
        until = min(self.now, oldest)
        if attempts is not None and until > int(at):
            self.redis.hset(key, mapping={"attempts": int(attempts) + until - int(at), "attempts_at": until})

    def _pipeline(self) -> Any:
        """A round trip, which begins with what was appended."""
        pipe = self.redis.pipeline(transaction=False)
        for command in self._unsent:
            pipe.execute_command(*command)
        self._unsent.clear()
        return pipe

    def delete(self, agent_id: str, lane: str, entries: list[str]) -> int:
        """What a claim sends; how many entries of the inbox were still there."""
        return int(self.redis.xdel(self.keys.inbox(agent_id, lane), *entries))

    def run(self, call: Call[Any], reads: tuple[str, ...], fail_at: int = 0) -> tuple[Any, Picture]:
        """Read what is new in the streams, run a script; its answer, or what it raised, and what it left behind.

        ``fail_at`` counts the keys that the script touches: this one is broken while it runs.
        """
        scripts, pipe = self.scripts, self._pipeline()
        if reads:
            group = next(kind for kind, streams in CONSUMES.items() if reads[0] in streams)
            named = [self.keys.of(stream) for stream in reads]
            pipe.execute_command("XREADGROUP", "GROUP", group, "w1", "STREAMS", *named, *([">"] * len(named)))
        # What a script appends there comes after this id, and so bears the machine's time instead of the server's.
        pipe.execute_command("XSETID", self.keys.of("in:losses"), self._next_id())
        sha, keys = scripts._sources[call.script].sha, [self.keys.prefix]
        if fail_at:
            sha, keys = self.failing[call.script], [*keys, str(fail_at)]
        pipe.execute_command("EVALSHA", sha, len(keys), *keys, self.now, *scripts.arguments(call)[1:])
        pipe.execute_command("EVALSHA", self._picture, 1, self.keys.prefix)
        *_, answer, raw = pipe.execute(raise_on_error=False)
        picture = _picture_of(raw)
        if isinstance(answer, ResponseError):
            assert "on purpose" in str(answer), f"{call.script} raised {answer}"
            return answer, picture
        return call.parse(answer), picture

    def picture(self) -> Picture:
        """Everything as it lies there."""
        return _picture_of(self._evaluate(self._picture))

    def snapshot(self) -> Snapshot:
        """The whole namespace, with TTLs, groups and pending entries."""
        return [(key, dumped, ends_at) for key, dumped, ends_at in self._evaluate(self._snapshot)]

    def _evaluate(self, sha: str) -> Any:
        pipe = self._pipeline()
        pipe.execute_command("EVALSHA", sha, 1, self.keys.prefix)
        return pipe.execute()[-1]

    def restore(self, snapshot: Snapshot) -> None:
        """The namespace as it was, and nothing else."""
        pipe = self._pipeline()
        pipe.flushall()
        for key, dumped, ends_at in snapshot:
            pipe.execute_command("RESTORE", key, max(0, ends_at), dumped, "ABSTTL")
        pipe.execute()

    def pending(self, stream: str) -> int:
        """Entries of an ingress stream that were read and not acknowledged."""
        (group,) = self.redis.xinfo_groups(self.keys.of(stream))
        return int(group["pending"])


def failing(text: str) -> str:
    """A script to which one key is broken."""
    shebang, body = text.split("\n", 1)
    assert "redis.call" in body
    body = body.replace("redis.call", "failing_call").replace("redis.pcall", "failing_pcall")
    return f"{shebang}\n{FAILING}\n{body}"


@cache
def header_moves(script: str) -> Mapping[str, frozenset[str]]:
    """Where a script may bring a task, by where it was: along any path of the edges that its header declares."""
    edges = lua.moves(script)
    reached: dict[str, frozenset[str]] = {}
    for start in {before for before, _ in edges}:
        found: set[str] = set()
        ahead = [start]
        while ahead:
            here = ahead.pop()
            new = {after for before, after in edges if before == here} - found
            found |= new
            ahead += new
        reached[start] = frozenset(found)
    return reached


def _picture_of(raw: Any) -> Picture:
    if isinstance(raw, Exception):
        raise raw
    kinds = {b"hash": _fields, b"set": _names, b"zset": _scores, b"stream": _entries}
    groups: dict[str, dict[str, Any]] = {head: {} for head in ("task", "queue", "inflight", "inbox", "agent", "in")}
    single: dict[str, Any] = {}
    ttls: dict[str, int] = {}
    for raw_name, kind, content, ttl in raw:
        name: str = raw_name.decode()
        head, _, rest = name.partition(":")
        group = groups.get(head)
        if group is None:
            single[name] = kinds[kind](content)
            continue
        group[rest] = kinds[kind](content)
        if head == "task":
            ttls[rest] = int(ttl)
    books = CellSnapshot(
        counters={name: int(value) for name, value in single.get("counters", {}).items()},
        records={task: unpack_record(one) for task, one in groups["task"].items()},
        queues=groups["queue"],
        inflight=groups["inflight"],
        inboxes=groups["inbox"],
        pools=set(single.get("pools", ())),
        alarms=single.get("alarms", {}),
        deadlines=single.get("deadlines", {}),
        limits=single.get("limits", {}),
        unclaimed=single.get("unclaimed", {}),
        ended={index: set(single.get(index, ())) for index in set(END_INDEX.values())},
    )
    facts = {f"in:{name}": entries for name, entries in groups["in"].items()}
    active, suspended = single.get("agents:active", set()), single.get("suspended", {})
    return Picture(books, groups["agent"], active, suspended, facts, ttls)


def _names(flat: list[bytes]) -> set[str]:
    return {one.decode() for one in flat}


def _fields(flat: list[bytes]) -> Record:
    texts = [one.decode() for one in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))


def _scores(flat: list[bytes]) -> dict[str, float]:
    return {one.decode(): float(score) for one, score in zip(flat[::2], flat[1::2], strict=True)}


def _entries(raw: list[Any]) -> dict[str, Record]:
    return {entry.decode(): _fields(fields) for entry, fields in raw}
