"""Calls of the Lua scripts, and the only caller of them.

Most scripts are one row in ``Scripts``: name, Struct of an entry, reader of the answer. admit, dispatch and settle pack
their arguments by hand, because packing is a large part of their cost. A row or a method returns a ``Call``;
``Scripts.run`` sends any number of calls in one round trip and returns their answers.

If the server does not know a script (it was restarted, or its scripts were flushed), a call raises ``NoScriptError``.
The caller then runs ``Scripts.load`` and reads its pending entries again. dispatch must never be repeated blindly: it
would pop other tasks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby, zip_longest
from types import MappingProxyType
from typing import Any, Generic, Literal, Self, TypeVar, overload

from msgspec import Struct
from msgspec.structs import astuple, replace
from redis.asyncio import Redis

from coord.config import MIB, Settings, within_memory
from coord.keys import CONSUMES, Keys
from coord.models.cell import LETTERS_DOWN_TO, REFUSE_ABOVE, RELIEVE_ABOVE, RELIEVE_DOWN_TO, Memory
from coord.models.explanations import WaitingReason
from coord.models.tasks import BACKLOG_SHARE, HEAD_START_MS, Priority
from coord.pipeline import pack, send_and_read
from coord.placement import RecordedEntry
from workers import lua
from workers.transitions.batches import (
    ApiKeyChange,
    Arg,
    Broadcast,
    Call,
    CancelRequest,
    DeadLetterEntry,
    Delivery,
    Departure,
    DrainRequest,
    EjectionNotice,
    EntryReplay,
    Heartbeat,
    LaneShare,
    LeaseList,
    LeaseLoss,
    Limits,
    LinkChange,
    LivenessTick,
    Loss,
    Placement,
    Pruning,
    Purge,
    PushShare,
    Redelivery,
    Registration,
    Relief,
    Replay,
    Report,
    SettingChange,
    SpokenFact,
    StatusChange,
    Submission,
    TaskBatch,
    TasksChange,
    TokenChange,
    WaitingCount,
    read_task_batch,
    read_words,
)

#: Records that lose their results in one call, and bytes, about: some milliseconds of the server's time.
RELIEVED_AT_ONCE, RELIEVED_BYTES = 200, 16 * MIB
#: Dead letters removed by one request: some milliseconds of the server's time.
PURGED_AT_ONCE = 1_000
#: Agents removed by one request: each takes some ten commands.
PRUNED_AT_ONCE = 200
#: Tasks of a lost agent that are reclaimed in one call.
RECLAIMED_AT_ONCE = 1_000
#: Reports of agents that one event shows: some 100 KiB.
REPORTS_AT_ONCE = 2_000
#: Requests without a reply that are ended in one call.
REQUESTS_AT_ONCE = 256
#: ms after which a loss is announced again while tasks are still in flight.
REPEAT_LOSS_MS = 5_000
#: ms that a message's record is kept after its time to live.
MESSAGE_KEPT_MS = 3_600_000
#: Recipients to which one call delivers a broadcast, and bytes, about: a millisecond of the server's time.
RECIPIENTS_AT_ONCE, BROADCAST_BYTES = 16, MIB
#: Messages in the history of an agent, about.
HISTORY_ENTRIES = 1_000
#: ms that a history is kept after its last message.
HISTORY_KEPT_MS = 86_400_000
#: Links and requests of an agent.
LINKS_PER_AGENT = 1_000
#: Subordinates of an agent: a message to all of them is delivered at one moment.
SUBORDINATES_PER_AGENT = 100
#: Masters above an agent.
HIERARCHY_DEPTH = 32
#: Expired messages examined in one call.
EXPIRED_AT_ONCE = 100
#: ms of idleness after which a consumer of a worker that is gone is removed.
CONSUMER_IDLE_MS = 3_600_000

#: ms without a sign of life, on the clock of lanes, after which a router has lost its lanes.
LANE_LEASE_MS = 2_000
#: ms that the clock of lanes advances at most between two calls of ``hold_lanes``.
LANE_STEP_MS = 500

#: Parts of the agents to which tasks are pushed. Push workers share the parts.
PUSH_SHARDS = 64
#: ms without a sign of life, on the clock of pushes, after which a push worker has lost its shards.
PUSH_LEASE_MS = 3_000
#: ms that the clock of pushes advances at most between two calls of ``share_pushes``.
PUSH_STEP_MS = 1_000

#: ms of silence of the process that counts waiting tasks, after which another one does.
COUNTER_SILENCE_MS = 5_000
#: ms that the numbers of waiting tasks are kept while no process counts them.
WAITING_KEPT_MS = 300_000

#: Maximum number of values of live settings: most of them of single types of tasks. Distributors read all of them.
LIVE_SETTINGS = 4_000
#: Maximum number of keys of the HTTP API.
API_KEYS = 10_000

E = TypeVar("E", bound=Struct)
T = TypeVar("T")


def _attempt_limits(s: Settings) -> Limits:
    """Return the limits of ``lib/attempts.lua``."""
    return {
        "max_attempts": s.max_attempts,
        "backoff_ms": s.backoff_ms,
        "backoff_max_ms": s.backoff_max_ms,
        "max_releases": s.max_releases,
        "jitter_seed": random.getrandbits(31),  # no secret depends on it
    }


def _liveness_limits(s: Settings) -> Limits:
    """Return the limits of ``lib/agents.lua``."""
    return {
        "missed_beats": s.missed_beats,
        "agent_timeout_ms": int(s.agent_timeout_s * 1000),
        "repeat_loss_ms": REPEAT_LOSS_MS,
    }


def _departure_limits(s: Settings) -> Limits:
    return _liveness_limits(s) | {"departed_ttl_ms": int(s.departed_ttl_s * 1000)}


def _prune_limits(_: Settings) -> Limits:
    return {"removals": PRUNED_AT_ONCE}


def _inbox_limits(s: Settings) -> Limits:
    """Return the limits of ``lib/messages.lua``."""
    return {
        "inbox_entries": s.inbox_entries,
        "inbox_critical_extra": s.inbox_critical_extra,
        "message_kept_ms": MESSAGE_KEPT_MS,
        "dead_kept_ms": int(s.dead_ttl_s * 1000),
        "dead_entries": s.dead_in_entries,
        "history_entries": HISTORY_ENTRIES,
        "history_kept_ms": HISTORY_KEPT_MS,
    }


def _link_limits(s: Settings) -> Limits:
    """Return the limits of ``change_links``."""
    return {
        "inbox_entries": s.inbox_entries,
        "links": LINKS_PER_AGENT,
        "subordinates": SUBORDINATES_PER_AGENT,
        "hierarchy_depth": HIERARCHY_DEPTH,
    }


def _conversation_limits(s: Settings) -> Limits:
    """Return the limits of ``lib/conversations.lua`` too."""
    return _inbox_limits(s) | {"hop_limit": s.hop_limit, "conversation_messages": s.conversation_messages}


def _reclaim_limits(s: Settings) -> Limits:
    return _attempt_limits(s) | {"tasks_per_loss": RECLAIMED_AT_ONCE}


def _cancel_limits(s: Settings) -> Limits:
    return _attempt_limits(s) | {"cancel_grace_ms": s.cancel_grace_ms}


def _dead_in_limits(s: Settings) -> Limits:
    return {"dead_in_entries": s.dead_in_entries, "dead_in_bytes": s.dead_in_bytes}


def _head_starts(_: Settings) -> Limits:
    return {f"head_start_{priority.value}": ms for priority, ms in HEAD_START_MS.items()}


def _change_limits(s: Settings) -> Limits:
    """Return the limits of ``change_tasks``."""
    return _cancel_limits(s) | _head_starts(s)


def _backlog_limits(s: Settings) -> Limits:
    shares = {f"share_{priority.value}": share for priority, share in BACKLOG_SHARE.items()}
    return {"backlog_tasks": s.max_backlog_tasks, "backlog_bytes": s.max_backlog_bytes, **shares}


def _setting_limits(_: Settings) -> Limits:
    return {"live_settings": LIVE_SETTINGS}


def _token_limits(s: Settings) -> Limits:
    return {"revoked_ttl_ms": int(s.departed_ttl_s * 1000)}


def _api_key_limits(_: Settings) -> Limits:
    return {"api_keys": API_KEYS}


def _no_limits(_: Settings) -> Limits:
    return {}


class BatchScript(Generic[E, T]):
    """A script that handles a batch of entries, as an attribute of ``Scripts``: a call takes the entries.

    Args:
        name: of the script.
        entry: the Struct of an entry. Its fields, in their order, are the arguments of an entry.
        read: reads the answer.
        limits: returns the limits of the script.
    """

    def __init__(
        self,
        name: str,
        entry: type[E],
        read: Callable[[Any], T],
        limits: Callable[[Settings], Limits] = _no_limits,
    ) -> None:
        self.name = name
        self.entry = entry
        self.read = read
        self.limits = limits

    def call(self, settings: Settings, entries: Sequence[E], *options: Arg) -> Call[T]:
        """Return the call for a batch.

        Args:
            settings: determine the limits.
            entries: of the batch.
            options: arguments before the entries.
        """
        args: list[Arg] = [*options, len(entries)]
        for entry in entries:
            _add_arguments(args, entry)
        return Call(self.name, self.limits(settings), args, self.read)

    @overload
    def __get__(self, scripts: None, owner: type[Scripts]) -> Self: ...

    @overload
    def __get__(self, scripts: Scripts, owner: type[Scripts]) -> Callable[[Sequence[E]], Call[T]]: ...

    def __get__(self, scripts: Scripts | None, owner: type[Scripts]) -> Self | Callable[[Sequence[E]], Call[T]]:
        return self if scripts is None else partial(self.call, scripts.settings)


class Scripts:
    """The scripts on one connection.

    ``bare`` is for a server that does not know the ``#!lua`` line (fakeredis). ``now`` (ms) replaces the server's
    clock; only tests set it.
    """

    # Tasks.

    #: Reclaim the tasks of lost agents. Words OK, WAIT, MORE (the last two: call again).
    reclaim = BatchScript("reclaim", Loss, read_task_batch, _reclaim_limits)
    #: Reclaim single tasks of which the agents no longer hold the leases. Words OK, STALE, WAIT (call again).
    reclaim_lease = BatchScript("reclaim_lease", LeaseLoss, read_task_batch, _attempt_limits)
    #: Cancel tasks. Words CANCELLED, STOPPING, FINISHED, NOT_FOUND, PENDING.
    cancel = BatchScript("cancel", CancelRequest, read_task_batch, _cancel_limits)
    #: Replay failed tasks. Words REPLAYED, DUPLICATE, NOT_FOUND, NOT_DEAD, EXPIRED.
    replay = BatchScript("replay", Replay, read_task_batch, _head_starts)
    #: Cancel, replay or prioritize many tasks. Word OK; the answer has the numbers.
    change_tasks = BatchScript("change_tasks", TasksChange, read_task_batch, _change_limits)
    #: Change live settings. Words OK, FULL.
    configure = BatchScript("configure", SettingChange, read_words, _setting_limits)

    # Agents.

    #: Register agents. Words REGISTERED, REFRESHED, SUPERSEDED, STALE.
    register = BatchScript("register", Registration, read_words, _liveness_limits)
    #: Record heartbeats. Words OK, UNKNOWN, SUPERSEDED, STALE.
    heartbeat = BatchScript("heartbeat", Heartbeat, read_words, _liveness_limits)
    #: Change the status of agents. Words OK, UNKNOWN, SUPERSEDED, STALE.
    change_status = BatchScript("change_status", StatusChange, read_words, _liveness_limits)
    #: Compare agents' leases with the records. Words OK, SUSPECTED, LOST, OUTDATED, WAIT (call again).
    check_leases = BatchScript("check_leases", LeaseList, read_words, _liveness_limits)
    #: Drain agents, put them into maintenance, or resume them. Words OK, UNKNOWN, STALE.
    drain = BatchScript("drain", DrainRequest, read_words, _liveness_limits)
    #: Remove the records of agents that left. Word OK.
    prune = BatchScript("prune", Pruning, read_words, _prune_limits)

    #: Change the tokens of agents. Words OK, DUPLICATE, ENROLLED, NOT_ENROLLED, STALE.
    change_token = BatchScript("change_token", TokenChange, read_words, _token_limits)

    #: Create and revoke keys of the HTTP API. Words OK, DUPLICATE, TAKEN, FULL, NOT_FOUND.
    change_api_key = BatchScript("change_api_key", ApiKeyChange, read_words, _api_key_limits)

    # Messages.

    #: Deliver dead messages again. Words DELIVERED, NOT_FOUND, NOT_DEAD, EXPIRED, UNKNOWN, LEFT, FULL, FORBIDDEN.
    redeliver = BatchScript("redeliver", Redelivery, read_words, _inbox_limits)
    #: Change links and the hierarchy. Words OK, SAME, UNKNOWN, LEFT, NOT_REQUESTED, FULL, CYCLE.
    change_links = BatchScript("change_links", LinkChange, read_words, _link_limits)

    # Scripts with options, which the methods of the same names pass.

    _deliver = BatchScript("deliver", Delivery, read_words, _conversation_limits)
    _deregister = BatchScript("deregister", Departure, read_words, _departure_limits)
    _check_tokens = BatchScript("check_tokens", SpokenFact, read_words)
    _dead_letter = BatchScript("dead_letter", DeadLetterEntry, int, _dead_in_limits)
    _requeue = BatchScript("requeue", EntryReplay, read_words)
    _purge = BatchScript("purge", Purge, read_words)

    def __init__(self, redis: Redis, keys: Keys, settings: Settings, *, bare: bool = False) -> None:
        self.redis = redis
        self.keys = keys
        self.settings = settings
        self.now: int | None = None
        #: lane -> the lease under which messages of that lane are delivered.
        self.leases: dict[str, str] = {}
        sources = [lua.load(name) for name in lua.NAMES]
        if bare:
            sources = [lua.without_shebang(source) for source in sources]
        self._sources = {source.name: source for source in sources}
        self._loads_by = ""
        self._common = _common_of(settings, "")

    def fit_streams(self, maximum: int) -> None:
        """Also cap streams by shares of the server's maxmemory (bytes; 0: none), see ``within_memory``."""
        self.settings = within_memory(self.settings, maximum)
        self._common = _common_of(self.settings, self._loads_by)

    def share_loads(self, by: str) -> None:
        """Let every script that changes loads append them to ``log:loads``.

        Args:
            by: identifies the process; empty: append nothing.
        """
        if by != self._loads_by:
            self._loads_by = by
            self._common = _common_of(self.settings, by)

    @property
    def is_sharing(self) -> bool:
        """True while changed loads are appended to ``log:loads``."""
        return bool(self._loads_by)

    async def load(self) -> None:
        """Load every script into the server, in one round trip."""
        pipe = self.redis.pipeline(transaction=False)
        for source in self._sources.values():
            pipe.execute_command("SCRIPT LOAD", source.text)
        await pipe.execute()

    async def run(self, *calls: Call[Any]) -> list[Any]:
        """Send the calls in one round trip, in order; return their answers, parsed.

        Raises:
            redis.exceptions.RedisError: the first error of any call. Other calls may have been carried out.
        """
        if not calls:
            return []
        prefix = self.keys.prefix
        packed = [pack(("EVALSHA", self._sources[call.script].sha, 1, prefix, *self.arguments(call))) for call in calls]
        answers = await send_and_read(self.redis, packed, to_raise=True)
        return [call.parse(answer) for call, answer in zip(calls, answers, strict=True)]

    def arguments(self, call: Call[Any]) -> list[Arg]:
        """Return the arguments of a call as its script takes them: the time, all limits as one text, and its own."""
        now: Arg = "" if self.now is None else self.now
        limits = " ".join([self._common, *[f"{name}={value}" for name, value in call.limits.items()]])
        return [now, limits, *call.args]

    def settle(self, reports: Sequence[Report]) -> Call[TaskBatch]:
        """Settle agents' reports; words OK, DUPLICATE, STALE, GONE."""
        args: list[Arg] = [len(reports)]
        for (kind, caller, shared), run in groupby(_of_entries(reports), key=lambda item: item[0]):
            alike = [report for _, report in run]
            args += (kind, caller, shared, len(alike))
            for r in alike:
                if not shared:
                    args.append(r.entry)
                args += (r.task_id, r.lease, _started_at(r), r.data)
                if kind in {"failed", "released", "refused"}:
                    args += (r.code, r.message, "1" if r.retryable else "0")
                if kind == "refused":
                    args += (r.pool, r.definition)
        return Call("settle", _attempt_limits(self.settings), args, read_task_batch)

    def admit(
        self,
        submissions: Sequence[Submission],
        pools: Mapping[str, bytes],
        types: Mapping[str, str] = MappingProxyType({}),
        *,
        nearly_full: bool,
    ) -> Call[TaskBatch]:
        """Admit tasks; words QUEUED, SCHEDULED, REFUSED, CANCELLED, EXPIRED, DUPLICATE, CONFLICT, GONE.

        Args:
            submissions: the tasks; those of one entry follow one another.
            pools: the definition of each pool that the submissions name.
            types: the type of the tasks of each of these pools.
            nearly_full: refuse all of them.
        """
        args: list[Arg] = ["1" if nearly_full else "0", len(pools)]
        for pool, definition in pools.items():
            args += (pool, definition, types.get(pool, ""))
        groups: dict[tuple[str, ...], int] = {}
        tasks: list[Arg] = []
        for t in submissions:
            options = t.options if t.run_at is None else {**t.options, "run_at": t.run_at}
            group = (t.priority, t.pool, t.caller, *options)
            tasks += (groups.setdefault(group, len(groups) + 1), t.entry, t.task_id, t.score, _submission(t), t.body)
            tasks += options.values()
        args.append(len(groups))
        for priority, pool, caller, *names in groups:
            args += (priority, pool, caller, len(names), *names)
        args += (len(submissions), *tasks)
        return Call("admit", _backlog_limits(self.settings), args, read_task_batch)

    def dispatch(self, placements: Sequence[Placement]) -> Call[TaskBatch]:
        """Assign tasks as planned; words ASSIGNED, MOVED, EMPTY, GONE, INACTIVE, CHANGED, FULL. Never repeat a call."""
        groups: dict[tuple[str, str, int, bytes], list[int]] = {}
        for place, p in enumerate(placements):
            groups.setdefault((p.pool, p.agent_id, p.rev, p.explanation), []).append(place)
        explanations = {text: n for n, text in enumerate(dict.fromkeys(explanation for *_, explanation in groups), 1)}
        s = self.settings
        limits = {
            "claim_within_ms": s.start_timeout_ms,
            "unlisted_timeout_ms": s.default_timeout_no_incarnation_ms,
            **_head_starts(s),
        }
        args: list[Arg] = [len(explanations), *explanations, len(groups)]
        for (pool, agent_id, rev, explanation), places in groups.items():
            leases = "".join([placements[place].lease for place in places])
            if placements[places[0]].task_id:
                leases = " ".join([leases, *[placements[place].task_id for place in places]])
            args += (pool, agent_id, rev, explanations[explanation], leases)
        last = [placements[places[-1]] for places in groups.values()]
        others = [(n, p) for n, p in enumerate(last, 1) if p.other_id]
        args.append(len(others))
        for n, p in others:
            args += (n, p.other_id, p.other_rev)
        turns = [place for turn in zip_longest(*groups.values()) for place in turn if place is not None]

        def parse(raw: Any) -> TaskBatch:
            batch = read_task_batch(raw)
            words = dict(zip(turns, batch.words, strict=True))
            return replace(batch, words=[words[place] for place in range(len(placements))])

        return Call("dispatch", limits, args, parse)

    def deliver(self, deliveries: Sequence[Delivery]) -> Call[list[str]]:
        """Deliver messages under ``leases``.

        Words DELIVERED, DUPLICATE, CONFLICT, EXPIRED, UNKNOWN, LEFT, FULL, FORBIDDEN, LOOP, OVER_BUDGET, NOT_HELD,
        BEHIND.
        """
        return self._with_leases(Scripts._deliver.call(self.settings, deliveries))

    def freeze_recipients(self, broadcast: Broadcast, recipients: Sequence[str]) -> Call[list[str]]:
        """Record a broadcast under ``leases``, with the list of its recipients in chunks of bounded bytes.

        Words MORE (it is to be delivered), DUPLICATE, CONFLICT, EXPIRED, LOOP, OVER_BUDGET, GONE, NOT_HELD, BEHIND.
        """
        size = max(1, min(RECIPIENTS_AT_ONCE, BROADCAST_BYTES // max(1, len(broadcast.payload))))
        chunks = [" ".join(recipients[i : i + size]) for i in range(0, len(recipients), size)]
        args: list[Arg] = [1]
        _add_arguments(args, broadcast)
        args += (len(recipients), size, len(chunks), *chunks)
        return self._with_leases(Call("freeze_recipients", _conversation_limits(self.settings), args, read_words))

    def deliver_broadcast(self, broadcast: Broadcast, router: str) -> Call[list[str]]:
        """Deliver a broadcast under ``leases`` to the next of its recipients.

        Words MORE (call again), DELIVERED, DUPLICATE, GONE, NOT_HELD, BEHIND.

        Args:
            broadcast: that ``freeze_recipients`` has recorded.
            router: the consumer for which its entry is pending.
        """
        args: list[Arg] = [1, broadcast.entry, broadcast.lane, broadcast.caller, broadcast.message_id, router]
        return self._with_leases(Call("deliver_broadcast", _inbox_limits(self.settings), args, read_words))

    def _with_leases(self, call: Call[T]) -> Call[T]:
        call.limits.update({f"lease_{lane}": lease for lane, lease in self.leases.items()})
        return call

    def hold_lanes(
        self, router: str, *, mode: Literal["", "started", "leaves"] = "", give: Sequence[str] = ()
    ) -> Call[LaneShare]:
        """Renew the leases of a router, and share the lanes among the routers.

        Args:
            router: its name, ``#``, and what tells its process from others of the same name.
            mode: ``started`` in its first call, ``leaves`` in its last one.
            give: lanes that it gives up.
        """

        def parse(raw: Any) -> LaneShare:
            leases, excess, behind = ([word.decode() for word in part] for part in raw)
            return LaneShare(dict(zip(leases[::2], leases[1::2], strict=True)), tuple(excess), tuple(behind))

        limits: Limits = {"lane_lease_ms": LANE_LEASE_MS, "lane_step_ms": LANE_STEP_MS}
        return Call("hold_lanes", limits, [router, mode, len(give), *give], parse)

    def share_pushes(self, worker: str, *, give: Sequence[int] = (), leaves: bool = False) -> Call[PushShare]:
        """Renew the shards of a push worker, and share them among the push workers.

        Args:
            worker: its name, ``#``, and what tells its process from others of the same name.
            give: shards that it gives up.
            leaves: it gives up all.
        """
        limits: Limits = {"shards": PUSH_SHARDS, "push_lease_ms": PUSH_LEASE_MS, "push_step_ms": PUSH_STEP_MS}
        args: list[Arg] = [worker, "1" if leaves else "0", len(give), *give]
        return Call("share_pushes", limits, args, lambda raw: PushShare(frozenset(map(int, raw[0])), int(raw[1])))

    def deregister(self, departures: Sequence[Departure], *, by_operator: bool = False) -> Call[list[str]]:
        """Deregister agents; words OK, UNKNOWN, SUPERSEDED, STALE.

        Args:
            departures: the agents.
            by_operator: the facts are an operator's, not the agents' own.
        """
        stream = "in:control:registry" if by_operator else "in:registry"
        return Scripts._deregister.call(self.settings, departures, stream)

    def check_tokens(self, kind: str, facts: Sequence[SpokenFact]) -> Call[list[str]]:
        """Refuse the facts of agents without the agent's token; words OK, MISSING, INVALID, GONE."""
        return Scripts._check_tokens.call(self.settings, facts, kind)

    def dead_letter(self, kind: str, entries: Sequence[DeadLetterEntry]) -> Call[int]:
        """Move entries that a kind of worker cannot handle to ``dead:in``; answers how many were still there."""
        return Scripts._dead_letter.call(self.settings, entries, kind)

    def requeue(self, kind: str, replays: Sequence[EntryReplay]) -> Call[list[str]]:
        """Append dead-lettered entries of a kind of worker again; words OK, NOT_FOUND, FOREIGN, TRUNCATED."""
        streams = CONSUMES[kind]
        return Scripts._requeue.call(self.settings, replays, kind, len(streams), *streams)

    def purge(
        self,
        kind: str,
        of: Literal["tasks", "messages", "entries"],
        purges: Sequence[Purge],
        most: int = PURGED_AT_ONCE,
    ) -> Call[list[str]]:
        """Remove dead letters; words OK, NOT_FOUND, NOT_DEAD.

        Args:
            kind: of the worker that received the requests.
            of: what the dead letters are.
            purges: the requests.
            most: dead letters removed for each request at most.
        """
        call = Scripts._purge.call(self.settings, purges, of, kind)
        call.limits["removals"] = most
        return call

    def run_alarms(self, most: int = 1000) -> Call[TaskBatch]:
        """Do what is due by the clocks, at most ``most`` alarms; words QUEUED, RECALLED, TIMED_OUT and so on."""
        s = self.settings
        limits = _attempt_limits(s) | {
            "alarms": most,
            "terminal_entries": s.terminal_entries,
            "refused_entries": s.refused_entries,
            "terminal_ttl_ms": int(s.terminal_ttl_s * 1000),
            "dead_ttl_ms": int(s.dead_ttl_s * 1000),
            "refused_ttl_ms": int(s.refused_ttl_s * 1000),
        }
        return Call("run_alarms", limits, [], read_task_batch)

    def learn(self, by: str, data: bytes, ejections: Sequence[EjectionNotice] = ()) -> Call[list[str]]:
        """Share what a distributor has learned with the others; words OK, and for each ejection OK, KNOWN, UNKNOWN.

        Args:
            by: identifies the process.
            data: JSON; empty: nothing was learned.
            ejections: to record.
        """
        args: list[Arg] = [by, data, len(ejections)]
        for ejection in ejections:
            _add_arguments(args, ejection)
        return Call("learn", {}, args, read_words)

    def count_waiting(
        self,
        by: str,
        counted: Mapping[WaitingReason, int],
        queues: Mapping[WaitingReason, Sequence[str]],
        *,
        is_last: bool,
    ) -> Call[WaitingCount]:
        """Count the tasks in queues, unless another process counts them.

        Args:
            by: identifies the process.
            counted: tasks that earlier calls of this count found.
            queues: to count, by the reason why their tasks wait.
            is_last: record the numbers.
        """
        reasons = [reason for reason in WaitingReason if reason in counted or reason in queues]
        args: list[Arg] = [by, "1" if is_last else "0", " ".join(Priority), len(reasons)]
        for reason in reasons:
            some = queues.get(reason, ())
            args += (reason, counted.get(reason, 0), len(some), *some)

        def parse(raw: Any) -> WaitingCount:
            word, *numbers = raw
            if word == b"OTHER":
                return WaitingCount({}, int(numbers[0]))
            return WaitingCount(dict(zip(reasons, map(int, numbers), strict=True)))

        limits: Limits = {"silence_ms": COUNTER_SILENCE_MS, "kept_ms": WAITING_KEPT_MS}
        return Call("count_waiting", limits, args, parse)

    def record_plans(self, version: int, by: str, entries: Sequence[RecordedEntry]) -> Call[list[str]]:
        """Append what a distributor has recorded of its plans; the word OK.

        Args:
            version: of the format.
            by: identifies the process.
            entries: to append.
        """
        args: list[Arg] = [version, by, len(entries)]
        for entry in entries:
            args += (entry.segment, entry.number, entry.data)
        return Call("record_plans", {}, args, read_words)

    def end_requests(self, most: int = REQUESTS_AT_ONCE) -> Call[list[str]]:
        """End the waits of requests that got no reply in time, at most ``most``; words TIMED_OUT, UNHEARD, GONE."""
        return Call("end_requests", _conversation_limits(self.settings) | {"requests": most}, [], read_words)

    def relieve(
        self, most: int = RELIEVED_AT_ONCE, most_bytes: int = RELIEVED_BYTES, *, memory: Memory | None = None
    ) -> Call[Relief]:
        """Free memory if the server is nearly full.

        Args:
            most: records checked at most.
            most_bytes: bytes freed, about.
            memory: replaces what the server reports; only tests set it.
        """
        limits: Limits = {
            "relieve_above": RELIEVE_ABOVE,
            "relieve_down_to": RELIEVE_DOWN_TO,
            "letters_above": REFUSE_ABOVE,
            "letters_down_to": LETTERS_DOWN_TO,
            "records": most,
            "bytes": most_bytes,
        }
        if memory is not None:
            limits |= {"used": memory.used, "maximum": memory.maximum}

        def parse(raw: Any) -> Relief:
            used, maximum, records, freed, letters, more = map(int, raw)
            return Relief(Memory(used, maximum), records, freed, is_more=more == 1, letters=letters)

        return Call("relieve", limits, [], parse)

    def expire_messages(self, most: int = EXPIRED_AT_ONCE) -> Call[tuple[int, int]]:
        """Take expired messages out of inboxes; answers how many were examined, and how many had expired unread."""
        return Call("expire_messages", {"messages": most}, [], lambda raw: (int(raw[0]), int(raw[1])))

    def tick_liveness(self, most: int = 256) -> Call[LivenessTick]:
        """Tick the observed clock and declare agents stale, at most ``most`` at a time."""
        limits = _departure_limits(self.settings) | {"agents": most, "reports": REPORTS_AT_ONCE}
        return Call("tick_liveness", limits, [], _read_liveness_tick)

    def worker_heartbeat(
        self,
        kind: str,
        name: str,
        fields: dict[str, str | int | float],
        streams: Iterable[str],
        *,
        is_leaving: bool = False,
    ) -> Call[list[str]]:
        """Record that a worker is alive, or leaves; answers the names of the workers of its kind that are alive.

        Args:
            kind: of the worker.
            name: of the worker.
            fields: of its record; of one that leaves ``pid``, ``host`` and ``started_at``.
            streams: that its kind reads.
            is_leaving: remove its record, if it is that of this process; answers nothing.
        """
        limits = {"presence_ttl_ms": int(self.settings.presence_ttl_s * 1000), "consumer_idle_ms": CONSUMER_IDLE_MS}
        args: list[Arg] = [kind, name, "1" if is_leaving else "0", len(fields)]
        for field, value in fields.items():
            args += (field, str(value))
        listed = list(streams)
        args += (len(listed), *listed)
        return Call("worker_heartbeat", limits, args, lambda raw: [worker.decode() for worker in raw])


def _common_of(s: Settings, loads_by: str) -> str:
    """Return the limits of every script."""
    shared = f" loads_by={loads_by}" if loads_by else ""
    return (
        f"log_entries={s.log_entries} log_bytes={s.log_bytes} progress_log_bytes={s.progress_log_bytes}"
        f" replies_entries={s.replies_entries} replies_bytes={s.replies_bytes} reply_data_bytes={s.reply_data_bytes}"
        f" replies_ttl_ms={int(s.replies_ttl_s * 1000)}{shared}"
    )


def _read_liveness_tick(raw: Any) -> LivenessTick:
    stale, repeated, forgotten, observed, lost = raw
    return LivenessTick(int(stale), int(repeated), int(forgotten), int(observed), tuple(lost.decode().split()))


def _submission(t: Submission) -> str:
    submitted_at = t.entry.partition("-")[0]
    caller, has_extras = t.caller if t.notify else "", 1 if t.options else 0
    return f"{t.priority} {caller} {has_extras} {submitted_at} {t.score} {t.pool} {t.digest}"


def _of_entries(reports: Sequence[Report]) -> Iterator[tuple[tuple[str, str, str], Report]]:
    """Yield each report with its kind, its caller, and its entry if the report before or after it has the same one."""
    for place, r in enumerate(reports):
        before, after = reports[place - 1 : place], reports[place + 1 : place + 2]
        is_shared = (before and before[0].entry == r.entry) or (after and after[0].entry == r.entry)
        yield (r.kind, r.caller, r.entry if is_shared else ""), r


def _started_at(report: Report) -> Arg:
    """Return when the attempt started, in ms; empty if the report does not say."""
    ago = report.started_ms_ago
    if ago is None and report.kind != "started":
        return ""
    return int(report.entry.partition("-")[0]) - (ago or 0)


def _add_arguments(args: list[Arg], entry: Struct) -> None:
    """Add the fields of an entry to the arguments: None as empty, a flag as 1 or 0, a dict as its length and items."""
    for value in astuple(entry):
        if value is None:
            args.append("")
        elif isinstance(value, bool):
            args.append("1" if value else "0")
        elif isinstance(value, dict):
            args.append(len(value))
            for name, item in value.items():
                args += (name, repr(item) if isinstance(item, float) else item)
        else:
            args.append(value)


#: The rows of ``Scripts``, by the name of the script.
BATCH_SCRIPTS: dict[str, BatchScript[Any, Any]] = {
    row.name: row for row in vars(Scripts).values() if isinstance(row, BatchScript)
}
