"""The checks of a snapshot: counters, records, and every structure that names tasks. No I/O."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType

from coord.config import MIB
from coord.fsck.snapshot import END_INDEX, HELD, WAITING, CellSnapshot, Finding, Record
from coord.keys import WITHOUT_TTL
from coord.models.api_keys import CallerRole
from coord.models.tasks import LANE, TERMINAL, Priority, TaskState, is_named

#: index -> state -> the times that may become due; the earliest is the score of the task.
DUE: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType({
    "alarms": {"scheduled": ("deadline", "run_at"), "queued": ("deadline",)},
    "deadlines": {"assigned": ("deadline",), "running": ("deadline",)},
    "limits": {"assigned": ("timeout_at", "cancel_by"), "running": ("timeout_at", "cancel_by")},
})  # fmt: skip
#: structure -> texts about a task that is missing in it, and about a task that should not be in it.
TEXTS: Mapping[str, tuple[str, str]] = MappingProxyType({
    "queue": ("is queued", "has no record that waits in it"),
    "inflight": ("is held by the agent", "is not held by the agent"),
    "alarm": ("has something due", "has nothing due"),
    "request": ("is an open request", "is no open request"),
    "grave": ("has ended so", "has no record that ended so"),
})  # fmt: skip
#: The lease of a lane: an epoch, and the router that holds the lane, if one does.
LEASE_OF_LANE = re.compile(r"[0-9]+/([^/#]+#[^/#]+)?")
#: A stream counts as not capped above this multiple of its cap. Small entries take more memory than their content.
CAP_TOLERANCE = 2
COUNTED = tuple(state for state in TaskState if state != TaskState.REFUSED)


def check_sums(snapshot: CellSnapshot) -> Iterator[Finding]:
    """Check the counters against each other."""
    counted = snapshot.counters
    for priority in Priority:
        parts = {state: counted.get(f"{state}:{priority}", 0) for state in COUNTED}
        moved = counted.get(f"prioritized_to:{priority}", 0) - counted.get(f"prioritized_from:{priority}", 0)
        total = counted.get(f"submitted:{priority}", 0)
        if total + moved != sum(parts.values()):
            listed = ", ".join(f"{number} {state}" for state, number in parts.items() if number)
            of_others = f" and {moved:+d} of other priorities" if moved else ""
            why = f"{priority}: {total} submitted{of_others} are not {listed or 'none'}"
            yield Finding("counters.sum", "counters", why)
    for name, value in counted.items():
        if value < 0:
            yield Finding("counters.negative", "counters", f"{name} is {value}")


def check_counters(snapshot: CellSnapshot, *, trimmed: bool) -> Iterator[Finding]:
    """Check the counters against the records."""
    found = Counter(f"{record['state']}:{record['priority']}" for record in snapshot.records.values())
    for name in (f"{state}:{priority}" for priority in Priority for state in COUNTED):
        excess = snapshot.counters.get(name, 0) - found[name]
        if excess and not (trimmed and excess > 0 and name.partition(":")[0] in TERMINAL):
            yield Finding("counters.state", "counters", f"{name} is {abs(excess)} {_side(excess)} the records")
    waiting = sum(
        int(record.get("body_bytes", 0)) for record in snapshot.records.values() if record["state"] in WAITING
    )
    if excess := snapshot.counters.get("backlog_bytes", 0) - waiting:
        yield Finding("counters.backlog_bytes", "counters", f"it is {abs(excess)} {_side(excess)} the waiting bodies")


def check_structures(snapshot: CellSnapshot) -> Iterator[Finding]:
    """Check queues, pools, in-flight sets and inboxes against the records."""
    queued: dict[str, dict[str, float]] = {}
    inflight: dict[str, set[str]] = {}
    for task, record in snapshot.records.items():
        if (
            record["state"] in WAITING
            and not is_named(record.get("pool", ""))
            and {"preferences", "avoid"} & set(record)
        ):
            yield Finding(
                "queue.unnamed", f"task:{task}", "no plan sees what it prefers or avoids: its queue is popped"
            )
        if record["state"] == "queued":
            queued.setdefault(record.get("pool", ""), {})[task] = float(record.get("score", 0))
        elif record["state"] in HELD:
            inflight.setdefault(record.get("agent_id", ""), set()).add(task)
    for pool in sorted({*queued, *snapshot.queues}):
        yield from _compare("queue", f"queue:{pool}", queued.get(pool, {}), snapshot.queues.get(pool, {}))
    for pool in sorted(snapshot.pools ^ set(snapshot.queues)):
        kind, why = ("orphan", "nothing waits in it") if pool in snapshot.pools else ("missing", "tasks wait in it")
        yield Finding(f"pool.{kind}", "pools", f"{pool}: {why}")
    for agent in sorted({*inflight, *snapshot.inflight}):
        expected, actual = (dict.fromkeys(source.get(agent, ()), 0.0) for source in (inflight, snapshot.inflight))
        yield from _compare("inflight", f"inflight:{agent}", expected, actual)
    for inbox, entries in snapshot.inboxes.items():
        for entry, fields in entries.items():
            yield from _check_assignment(snapshot, inbox, entry, fields)


def check_leases(snapshot: CellSnapshot) -> Iterator[Finding]:
    """Check that a lease belongs to one task, and only while an agent holds the task."""
    held: dict[str, str] = {}
    for task, record in sorted(snapshot.records.items()):
        if record["state"] in HELD:
            first = held.setdefault(record.get("lease", ""), task)
            if first != task:
                yield Finding("lease.shared", f"task:{task}", f"it is held under the lease of {first}")
        elif record["state"] in WAITING and "lease" in record:
            yield Finding("lease.waiting", f"task:{task}", f"it is {record['state']} and has a lease")


def _check_assignment(snapshot: CellSnapshot, inbox: str, entry: str, fields: Record) -> Iterator[Finding]:
    task = fields.get("task_id", "")
    record = snapshot.records.get(task, {})
    lane = LANE.get(Priority(record["priority"])) if record.get("state") in HELD else None
    expected = (f"{record.get('agent_id')}:{lane}", record.get("entry"), record.get("lease"))
    if (inbox, entry, fields.get("lease")) != expected:
        why = f"the record of {task} differs" if lane else f"no agent holds {task}"
        yield Finding("inbox.orphan", f"inbox:{inbox}", f"{entry} is an assignment, and {why}")


def check_alarms(snapshot: CellSnapshot) -> Iterator[Finding]:
    """Check that each alarm, deadline and limit is the earliest time at which the task has something due."""
    for index, actual in (("alarms", snapshot.alarms), ("deadlines", snapshot.deadlines), ("limits", snapshot.limits)):
        expected: dict[str, float] = {}
        for task, record in snapshot.records.items():
            if due := [float(record[name]) for name in DUE[index].get(record["state"], ()) if name in record]:
                expected[task] = min(due)
        yield from _compare("alarm", index, expected, actual)


def check_claims(snapshot: CellSnapshot) -> Iterator[Finding]:
    """Check that the claims of every agent with an unclaimed task are watched."""
    assigned = {
        record["agent_id"]
        for record in snapshot.records.values()
        if record["state"] == "assigned" and "start_by" in record
    }
    for agent in sorted(assigned - set(snapshot.unclaimed)):
        yield Finding("unclaimed.missing", "unclaimed", f"{agent} has an assigned task and is not there")


def check_ends(snapshot: CellSnapshot) -> Iterator[Finding]:
    """Check the indexes of ended tasks against the records."""
    for index in sorted(snapshot.ended):
        ended = [task for task, record in snapshot.records.items() if END_INDEX.get(record["state"]) == index]
        expected = dict.fromkeys(ended, 0.0)
        actual = dict.fromkeys(snapshot.ended[index], 0.0)
        yield from _compare("grave", index, expected, actual)


def check_tokens(snapshot: CellSnapshot) -> Iterator[Finding]:
    """Check that each row of tokens is one that an operator's request makes: no other can be replaced or revoked."""
    for agent, row in sorted(snapshot.tokens.items()):
        if "fact_id" not in row:
            yield Finding("token.unknown", f"token:{agent}", "no request of an operator made it")
        elif ("previous" in row) != ("previous_until" in row) or ("previous" in row and "current" not in row):
            yield Finding("token.previous", f"token:{agent}", "its earlier token has no end, or no token after it")
        elif "current" in row and snapshot.token_agents.get(row["current"]) is None:
            yield Finding(
                "token.unlisted", "tokens", f"the token of {agent} is missing: the gateway does not accept it"
            )


def check_api_keys(snapshot: CellSnapshot) -> Iterator[Finding]:
    """Check that each key of the HTTP API can be used, listed and revoked."""
    for key_id, row in sorted(snapshot.api_keys.items()):
        if row.get("role") not in set(CallerRole) or not row.get("digest"):
            yield Finding("api_key.broken", f"api_key:{key_id}", "it has no digest or no role; revoke it")
        elif key_id not in snapshot.used_api_keys:
            yield Finding("api_key.unlisted", f"api_key:{key_id}", "it is not in api_keys, so no list shows it")
    for key_id in sorted(set(snapshot.used_api_keys) - set(snapshot.api_keys)):
        yield Finding("api_key.missing", "api_keys", f"{key_id} has no record")


def check_ttls(snapshot: CellSnapshot) -> Iterator[Finding]:
    """Check that keys have a TTL exactly if they should expire."""
    for name, ttl in snapshot.ttls.items():
        if name.startswith("task:"):
            state = snapshot.records.get(name[5:], {}).get("state")
            if state is None:
                continue  # removed during the snapshot
            should_expire = False  # a record is removed by the index of its end
        elif name.startswith("token:"):
            should_expire = "current" not in snapshot.tokens.get(name[6:], {"current": ""})
        elif name.startswith("message:"):
            should_expire = name[8:] not in snapshot.dead_messages and name[8:] not in snapshot.requests
        else:
            should_expire = not any(fnmatchcase(name, pattern) for pattern in WITHOUT_TTL)
        if should_expire and ttl == -1:
            yield Finding("ttl.missing", name, "it has no TTL and should expire")
        elif ttl >= 0 and not should_expire:
            yield Finding("ttl.unexpected", name, "it has a TTL and should not expire")


def check_lanes(snapshot: CellSnapshot) -> Iterator[Finding]:
    """Check that the leases of lanes can be read: without one, its lane has no router."""
    for lane, lease in snapshot.leases.items():
        if not LEASE_OF_LANE.fullmatch(lease):
            yield Finding("lane.lease", "lanes", f"{lane} has the lease {lease!r}, which is no epoch and router")


def check_broadcasts(snapshot: CellSnapshot) -> Iterator[Finding]:
    """Check that a broadcast is delivered to all of its recipients, or that a router goes on with it."""
    for message, (record, chunks, outcomes, is_waiting) in sorted(snapshot.broadcasts.items()):
        key, status = f"message:{message}", record.get("status")
        if not record:
            yield Finding("broadcast.orphan", f"recipients:{message}", "it has recipients and no record")
        elif status == "delivering" and not is_waiting:
            why = f"{outcomes} of {chunks} parts are delivered, and no router has it; send it again with the same id"
            yield Finding("broadcast.stuck", key, why)
        elif status == "delivered" and outcomes != chunks:
            yield Finding("broadcast.incomplete", key, f"it is delivered, but only {outcomes} of {chunks} parts are")
        elif status == "delivered":
            counts = [int(record.get(name, 0)) for name in ("recipients", "delivered", "dead")]
            if counts[0] != counts[1] + counts[2]:
                why = f"{counts[0]} recipients are not {counts[1]} delivered and {counts[2]} dead"
                yield Finding("broadcast.sum", key, why)


def check_requests(snapshot: CellSnapshot) -> Iterator[Finding]:
    """Check that exactly the open requests have a deadline."""
    expected = {message: 0.0 for message, record in snapshot.message_records.items() if record.get("request") == "open"}
    yield from _compare("request", "requests", expected, dict.fromkeys(snapshot.requests, 0.0))


def check_conversations(snapshot: CellSnapshot) -> Iterator[Finding]:
    """Check the indexes of conversations against the records of their messages."""
    for message, record in sorted(snapshot.message_records.items()):
        conversation = record.get("conversation", "")
        members = snapshot.conversations.get(conversation)
        # A dead letter beyond the budget is not in the index.
        if members is not None and message not in members and record.get("status") != "dead":
            yield Finding(
                "conversation.missing", f"conversation:{conversation}", f"{message} is part of it and not there"
            )
    for conversation, members in sorted(snapshot.conversations.items()):
        for message in sorted(members & set(snapshot.message_records)):
            named = snapshot.message_records[message].get("conversation", message)
            if snapshot.message_records[message] and named != conversation:
                why = f"{message} is there and part of the conversation {named}"
                yield Finding("conversation.orphan", f"conversation:{conversation}", why)


def check_caps(snapshot: CellSnapshot) -> Iterator[Finding]:
    """Check that streams which are capped by bytes do not exceed their caps by far."""
    for name, (size, cap) in snapshot.capped.items():
        if size > CAP_TOLERANCE * cap + MIB:
            why = f"it takes {size // MIB} MiB of memory, much more than its cap of {cap / MIB:.0f} MiB"
            yield Finding("stream.cap", name, why)


def check_messages(snapshot: CellSnapshot) -> Iterator[Finding]:
    """Check that a router will look at each unread message when it has expired."""
    for row in snapshot.messages:
        if row not in snapshot.expiring:
            inbox, entry, message = row.split(" ", 2)
            why = f"{entry} is the message {message}, which no router removes when it has expired"
            yield Finding("message.unwatched", f"inbox:{inbox}", why)


#: state of a link in the hash of one agent -> that in the hash of the other one.
MIRRORED: Mapping[str, str] = MappingProxyType({"linked": "linked", "requested": "asked", "asked": "requested"})


def check_links(snapshot: CellSnapshot) -> Iterator[Finding]:
    """Check that both agents of a link have it, and are registered."""
    for agent, links in snapshot.links.items():
        for other, state in links.items():
            mirrored = snapshot.links.get(other, {}).get(agent)
            if MIRRORED.get(state) != mirrored:
                yield Finding(
                    "link.differs", f"links:{agent}", f"{other} is {state}, and there it is {mirrored or 'none'}"
                )
        if agent not in snapshot.agents:
            yield Finding("link.orphan", f"links:{agent}", "the agent has no record")


def check_masters(snapshot: CellSnapshot) -> Iterator[Finding]:
    """Check that masters and subordinates agree, and that subordinates are registered."""
    for agent, master in snapshot.masters.items():
        if agent not in snapshot.subordinates.get(master, ()):
            yield Finding("master.missing", f"subordinates:{master}", f"{agent} has this master and is not there")
        if agent not in snapshot.agents:
            yield Finding("master.orphan", "masters", f"{agent} has no record")
    for master, agents in snapshot.subordinates.items():
        for agent in sorted(agents):
            if snapshot.masters.get(agent) != master:
                yield Finding(
                    "master.orphan", f"subordinates:{master}", f"{agent} is there and has another master, or none"
                )


def _compare(code: str, key: str, expected: Mapping[str, float], actual: Mapping[str, float]) -> Iterator[Finding]:
    missing, orphan = TEXTS[code]
    for task in sorted({*expected, *actual}):
        if task not in actual:
            yield Finding(f"{code}.missing", key, f"{task} {missing} and is not there")
        elif task not in expected:
            yield Finding(f"{code}.orphan", key, f"{task} is there and {orphan}")
        elif expected[task] != actual[task]:
            yield Finding(f"{code}.moment", key, f"{task} is at {actual[task]:.0f} instead of {expected[task]:.0f}")


def _side(excess: int) -> str:
    return "above" if excess > 0 else "below"
