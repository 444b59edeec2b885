"""What must hold of a cell's books: counters, records, and every structure that names a task. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType

from coord.config import MIB
from coord.fsck.books import GRAVEYARD, HELD, WAITING, Books, Finding, Record
from coord.keys import WITHOUT_TTL
from coord.models.tasks import LANE, TERMINAL, Priority, TaskState

#: What may become due, by index and state; the earliest is the task's score.
DUE: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType({
    "alarms": {"scheduled": ("deadline", "run_at"), "queued": ("deadline",)},
    "deadlines": {"assigned": ("deadline",), "running": ("deadline",)},
    "limits": {"assigned": ("timeout_at", "cancel_by"), "running": ("timeout_at", "cancel_by")},
})  # fmt: skip
#: Of a task that a structure should name, and of one that it should not.
SAYS: Mapping[str, tuple[str, str]] = MappingProxyType({
    "queue": ("is queued", "has no record that waits in it"),
    "inflight": ("is held by the agent", "is not held by the agent"),
    "alarm": ("has something due", "has nothing due"),
    "grave": ("has ended so", "has no record that ended so"),
})  # fmt: skip
#: A stream that takes so many times its cap is not capped. Small entries take more memory than their names and values.
OVER = 2
COUNTED = tuple(state for state in TaskState if state != TaskState.REFUSED)


def sums(books: Books) -> Iterator[Finding]:
    """What must hold of the counters by themselves."""
    counted = books.counters
    for priority in Priority:
        parts = {state: counted.get(f"{state}:{priority}", 0) for state in COUNTED}
        total = counted.get(f"submitted:{priority}", 0)
        if total != sum(parts.values()):
            told = ", ".join(f"{number} {state}" for state, number in parts.items() if number)
            yield Finding("counters.sum", "counters", f"{priority}: {total} submitted are not {told or 'none'}")
    for name, value in counted.items():
        if value < 0:
            yield Finding("counters.negative", "counters", f"{name} is {value}")


def gauges(books: Books, *, trimmed: bool) -> Iterator[Finding]:
    """The counters against the records."""
    found = Counter(f"{one['state']}:{one['priority']}" for one in books.records.values())
    for name in (f"{state}:{priority}" for priority in Priority for state in COUNTED):
        more = books.counters.get(name, 0) - found[name]
        if more and not (trimmed and more > 0 and name.partition(":")[0] in TERMINAL):
            yield Finding("counters.state", "counters", f"{name} is {abs(more)} {_side(more)} the records")
    waiting = sum(int(one.get("body_bytes", 0)) for one in books.records.values() if one["state"] in WAITING)
    if more := books.counters.get("backlog_bytes", 0) - waiting:
        yield Finding("counters.backlog_bytes", "counters", f"it is {abs(more)} {_side(more)} the waiting bodies")


def structures(books: Books) -> Iterator[Finding]:
    """Queues, pools, in-flight sets and inboxes against the records."""
    queued: dict[str, dict[str, float]] = {}
    inflight: dict[str, set[str]] = {}
    for task, one in books.records.items():
        if one["state"] == "queued":
            queued.setdefault(one.get("pool", ""), {})[task] = float(one.get("score", 0))
        elif one["state"] in HELD:
            inflight.setdefault(one.get("agent_id", ""), set()).add(task)
    for pool in sorted({*queued, *books.queues}):
        yield from _differ("queue", f"queue:{pool}", queued.get(pool, {}), books.queues.get(pool, {}))
    for pool in sorted(books.pools ^ set(books.queues)):
        kind, why = ("orphan", "nothing waits in it") if pool in books.pools else ("missing", "tasks wait in it")
        yield Finding(f"pool.{kind}", "pools", f"{pool}: {why}")
    for agent in sorted({*inflight, *books.inflight}):
        wanted, there = (dict.fromkeys(of.get(agent, ()), 0.0) for of in (inflight, books.inflight))
        yield from _differ("inflight", f"inflight:{agent}", wanted, there)
    for inbox, entries in books.inboxes.items():
        for entry, fields in entries.items():
            yield from _assigned(books, inbox, entry, fields)


def leases(books: Books) -> Iterator[Finding]:
    """A lease is one task's, and only while an agent holds it."""
    held: dict[str, str] = {}
    for task, one in sorted(books.records.items()):
        if one["state"] in HELD:
            first = held.setdefault(one.get("lease", ""), task)
            if first != task:
                yield Finding("lease.shared", f"task:{task}", f"it is held under the lease of {first}")
        elif one["state"] in WAITING and "lease" in one:
            yield Finding("lease.waiting", f"task:{task}", f"it is {one['state']} and has a lease")


def _assigned(books: Books, inbox: str, entry: str, fields: Record) -> Iterator[Finding]:
    task = fields.get("task_id", "")
    one = books.records.get(task, {})
    lane = LANE.get(Priority(one["priority"])) if one.get("state") in HELD else None
    told = (f"{one.get('agent_id')}:{lane}", one.get("entry"), one.get("lease"))
    if (inbox, entry, fields.get("lease")) != told:
        why = f"the record of {task} says otherwise" if lane else f"nobody holds {task}"
        yield Finding("inbox.orphan", f"inbox:{inbox}", f"{entry} is an assignment, and {why}")


def alarms(books: Books) -> Iterator[Finding]:
    """Each alarm, deadline and limit is the earliest moment at which something is due."""
    for index, there in (("alarms", books.alarms), ("deadlines", books.deadlines), ("limits", books.limits)):
        wanted: dict[str, float] = {}
        for task, one in books.records.items():
            if due := [float(one[name]) for name in DUE[index].get(one["state"], ()) if name in one]:
                wanted[task] = min(due)
        yield from _differ("alarm", index, wanted, there)


def claims(books: Books) -> Iterator[Finding]:
    """Whoever has a task that it may not have claimed is looked after."""
    given = {one["agent_id"] for one in books.records.values() if one["state"] == "assigned" and "start_by" in one}
    for agent in sorted(given - set(books.unclaimed)):
        yield Finding("unclaimed.missing", "unclaimed", f"{agent} has an assigned task and is not there")


def ends(books: Books) -> Iterator[Finding]:
    """The indexes of ended tasks against the records."""
    for index in sorted(books.graves):
        ended = [task for task, one in books.records.items() if GRAVEYARD.get(one["state"]) == index]
        there = dict.fromkeys(books.graves[index], 0.0)
        wanted = dict.fromkeys(ended, 0.0)
        yield from _differ("grave", index, wanted, there)


def lifetimes(books: Books) -> Iterator[Finding]:
    """Keys that should end by themselves do, and no living thing does."""
    for name, ttl in books.ttls.items():
        if name.startswith("task:"):
            state = books.records.get(name[5:], {}).get("state")
            if state is None:
                continue  # gone meanwhile
            is_ending = False  # a record is forgotten by the index of its end
        elif name.startswith("message:"):
            is_ending = name[8:] not in books.dead_messages
        else:
            is_ending = not any(fnmatchcase(name, pattern) for pattern in WITHOUT_TTL)
        if is_ending and ttl == -1:
            yield Finding("ttl.missing", name, "it has no TTL and should end by itself")
        elif ttl >= 0 and not is_ending:
            yield Finding("ttl.unexpected", name, "it has a TTL and should live on")


def caps(books: Books) -> Iterator[Finding]:
    """Streams that are capped by bytes hold about as many at most."""
    for name, (size, cap) in books.capped.items():
        if size > OVER * cap + MIB:
            why = f"it takes {size // MIB} MiB of memory, far more than its cap of {cap / MIB:.0f} MiB"
            yield Finding("stream.cap", name, why)


def _differ(code: str, key: str, wanted: Mapping[str, float], there: Mapping[str, float]) -> Iterator[Finding]:
    is_wanted, is_not = SAYS[code]
    for task in sorted({*wanted, *there}):
        if task not in there:
            yield Finding(f"{code}.missing", key, f"{task} {is_wanted} and is not there")
        elif task not in wanted:
            yield Finding(f"{code}.orphan", key, f"{task} is there and {is_not}")
        elif wanted[task] != there[task]:
            yield Finding(f"{code}.moment", key, f"{task} is at {there[task]:.0f} instead of {wanted[task]:.0f}")


def _side(more: int) -> str:
    return "above" if more > 0 else "below"
