"""One typed function for each Lua script, and the only caller of them.

A function here builds a ``Call``; ``Scripts.run`` sends any number of calls in one round trip and gives back what
each answers. A script that the server does not know (it was restarted, or its scripts were flushed) raises
``NoScriptError`` after which ``Scripts.load`` and a re-read of the pending entries set things right: dispatch must
never be repeated blindly, since it pops anew.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, zip_longest
from typing import Any

from msgspec.structs import replace
from redis.asyncio import Redis

from coord.config import MIB, Settings, within_memory
from coord.keys import Keys
from coord.models.memory import RELIEVE_ABOVE, RELIEVE_DOWN_TO, Memory
from coord.models.tasks import BACKLOG_SHARE, Priority
from coord.pipeline import pack, send_and_read
from workers import lua
from workers.transitions.batches import (
    Arg,
    Beat,
    Call,
    CancelRequest,
    Change,
    DeadLetterEntry,
    Delivery,
    Departure,
    Expiry,
    LeaseList,
    LeaseLoss,
    Loss,
    Placement,
    Registration,
    Relief,
    Report,
    Submission,
    TaskBatch,
    read_task_batch,
    read_words,
)
from workers.transitions.control import ControlScripts

#: Records that give up their results in one call, and bytes, about: some milliseconds of the server's time.
RELIEVED_AT_ONCE, RELIEVED_BYTES = 200, 16 * MIB


class Scripts(ControlScripts):
    """The scripts on one connection.

    ``bare`` is for a server that does not know the ``#!lua`` line (fakeredis). ``now`` (ms) replaces the server's
    clock; only tests give it.
    """

    def __init__(self, redis: Redis, keys: Keys, settings: Settings, *, bare: bool = False) -> None:
        self.redis = redis
        self.keys = keys
        self.settings = settings
        self.now: int | None = None
        sources = [lua.load(name) for name in lua.NAMES]
        if bare:
            sources = [lua.without_shebang(source) for source in sources]
        self._sources = {source.name: source for source in sources}
        self._common = _common_of(settings)

    def fit_streams(self, maximum: int) -> None:
        """Cap streams by shares of the server's maxmemory (bytes; 0: none) as well, see ``within_memory``."""
        self.settings = within_memory(self.settings, maximum)
        self._common = _common_of(self.settings)

    async def load(self) -> None:
        """Make every script known to the server, in one round trip."""
        pipe = self.redis.pipeline(transaction=False)
        for source in self._sources.values():
            pipe.execute_command("SCRIPT LOAD", source.text)
        await pipe.execute()

    async def run(self, *calls: Call[Any]) -> list[Any]:
        """Send the calls in one round trip, in order; what each answers, parsed.

        Raises:
            redis.exceptions.RedisError: the first error that any of them had. Others may have been carried out.
        """
        if not calls:
            return []
        now: Arg = "" if self.now is None else self.now
        prefix, common = self.keys.prefix, self._common
        packed = [
            pack(("EVALSHA", self._sources[call.script].sha, 1, prefix, now, *common, *call.args)) for call in calls
        ]
        answers = await send_and_read(self.redis, packed, to_raise=True)
        return [call.parse(answer) for call, answer in zip(calls, answers, strict=True)]

    def settle(self, reports: Sequence[Report]) -> Call[TaskBatch]:
        """Settle agents' reports; words OK, DUPLICATE, STALE, GONE."""
        args = [*self._limits(), len(reports)]
        for (kind, caller, shared), run in groupby(_of_entries(reports), key=lambda one: one[0]):
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
        return Call("settle", args, read_task_batch)

    def admit(
        self, submissions: Sequence[Submission], pools: dict[str, bytes], *, nearly_full: bool
    ) -> Call[TaskBatch]:
        """Admit tasks; words QUEUED, SCHEDULED, REFUSED, CANCELLED, EXPIRED, DUPLICATE, CONFLICT, GONE.

        ``pools`` gives the definition of each pool that the submissions name; ``nearly_full`` refuses all of them.
        """
        s = self.settings
        args: list[Arg] = [
            s.max_backlog_tasks,
            s.max_backlog_bytes,
            "1" if nearly_full else "0",
            *(str(BACKLOG_SHARE[priority]) for priority in Priority),
            len(pools),
        ]
        for pool, definition in pools.items():
            args += (pool, definition)
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
        return Call("admit", args, read_task_batch)

    def dispatch(self, placements: Sequence[Placement]) -> Call[TaskBatch]:
        """Assign waiting tasks as planned; words ASSIGNED, EMPTY, INACTIVE, CHANGED, FULL. Never repeat a call."""
        groups: dict[tuple[str, str, int, bytes], list[int]] = {}
        for place, p in enumerate(placements):
            groups.setdefault((p.pool, p.agent_id, p.rev, p.explanation), []).append(place)
        explanations = {one: n for n, one in enumerate(dict.fromkeys(explanation for *_, explanation in groups), 1)}
        s = self.settings
        args: list[Arg] = [s.start_timeout_ms, s.default_timeout_no_incarnation_ms, len(explanations), *explanations]
        args.append(len(groups))
        for (pool, agent_id, rev, explanation), places in groups.items():
            leases = "".join([placements[place].lease for place in places])
            args += (pool, agent_id, rev, explanations[explanation], leases)
        turns = [place for turn in zip_longest(*groups.values()) for place in turn if place is not None]

        def parse(raw: Any) -> TaskBatch:
            batch = read_task_batch(raw)
            words = dict(zip(turns, batch.words, strict=True))
            return replace(batch, words=[words[place] for place in range(len(placements))])

        return Call("dispatch", args, parse)

    def reclaim(self, losses: Sequence[Loss]) -> Call[TaskBatch]:
        """Take back what lost agents had; words OK, WAIT, MORE (the last two: call again)."""
        args = [*self._limits(), 1000, len(losses)]
        for loss in losses:
            args += (loss.entry, loss.agent_id, loss.term)
        return Call("reclaim", args, read_task_batch)

    def forfeit(self, losses: Sequence[LeaseLoss]) -> Call[TaskBatch]:
        """Take back single tasks that their agents no longer hold; words OK, STALE, WAIT (call again)."""
        args = [*self._limits(), len(losses)]
        for loss in losses:
            args += (loss.entry, loss.agent_id, loss.task_id, loss.lease)
        return Call("forfeit", args, read_task_batch)

    def wake(self, most: int = 1000) -> Call[TaskBatch]:
        """Do what is due by the clock, ``most`` alarms at a time; words QUEUED, RECALLED, TIMED_OUT and so on."""
        s = self.settings
        kept = [int(seconds * 1000) for seconds in (s.terminal_ttl_s, s.dead_ttl_s, s.refused_ttl_s)]
        args = [*self._limits(), most, s.terminal_entries, s.refused_entries, *kept]
        return Call("wake", args, read_task_batch)

    def relieve(
        self, most: int = RELIEVED_AT_ONCE, most_bytes: int = RELIEVED_BYTES, *, memory: Memory | None = None
    ) -> Call[Relief]:
        """Free memory if the server is nearly full, ``most`` records at a time; tests say by ``memory`` how full."""
        args: list[Arg] = [str(RELIEVE_ABOVE), str(RELIEVE_DOWN_TO), most, most_bytes]
        args += ("", "") if memory is None else (memory.used, memory.maximum)

        def parse(raw: Any) -> Relief:
            used, maximum, records, freed, more = map(int, raw)
            return Relief(Memory(used, maximum), records, freed, is_more=more == 1)

        return Call("relieve", args, parse)

    def cancel(self, requests: Sequence[CancelRequest]) -> Call[TaskBatch]:
        """Cancel tasks; words CANCELLED, STOPPING, FINISHED, NOT_FOUND, PENDING."""
        args = [*self._limits(), self.settings.cancel_grace_ms, len(requests)]
        for r in requests:
            args += (r.entry, r.task_id, r.caller, r.reason)
        return Call("cancel", args, read_task_batch)

    def register(self, registrations: Sequence[Registration]) -> Call[list[str]]:
        """Register agents; words REGISTERED, REFRESHED, SUPERSEDED, STALE."""
        args = [*self._liveness(), len(registrations)]
        for r in registrations:
            interval: Arg = "" if r.interval_ms is None else r.interval_ms
            args += (r.entry, r.caller, r.agent_id, r.incarnation, interval, r.digest, r.facets, len(r.fields))
            for name, value in r.fields.items():
                args += (name, _number(value) if isinstance(value, float) else value)
        return Call("register", args, read_words)

    def beat(self, beats: Sequence[Beat]) -> Call[list[str]]:
        """Take heartbeats; words OK, UNKNOWN, SUPERSEDED, STALE."""
        args = [*self._liveness(), len(beats)]
        for b in beats:
            leases: Arg = "" if b.leases is None else b.leases
            deaf = "1" if b.deaf else ""
            args += (b.entry, b.caller, b.agent_id, b.incarnation, leases, deaf, *_metrics(b.metrics))
        return Call("beat", args, read_words)

    def audit(self, lists: Sequence[LeaseList]) -> Call[list[str]]:
        """Compare agents' leases with the records; words OK, SUSPECTED, LOST, OUTDATED, WAIT (call again)."""
        args = [*self._liveness(), len(lists)]
        for one in lists:
            args += (one.entry, one.agent_id, one.incarnation, one.ask, len(one.leases))
            for lease, task_id in one.leases.items():
                args += (task_id, lease)
        return Call("audit", args, read_words)

    def change(self, changes: Sequence[Change]) -> Call[list[str]]:
        """Change agents' status; words OK, UNKNOWN, SUPERSEDED, STALE."""
        args = [*self._liveness(), len(changes)]
        for c in changes:
            args += (c.entry, c.caller, c.agent_id, c.incarnation, c.status, *_metrics(c.metrics))
        return Call("change", args, read_words)

    def deregister(self, departures: Sequence[Departure], *, by_operator: bool = False) -> Call[list[str]]:
        """Let agents leave; words OK, UNKNOWN, SUPERSEDED, STALE. ``by_operator``: the facts are an operator's."""
        stream = "in:control:registry" if by_operator else "in:registry"
        args = [*self._liveness(), stream, len(departures)]
        for d in departures:
            args += (d.entry, d.caller, d.agent_id, d.incarnation)
        return Call("deregister", args, read_words)

    def expire(self, most: int = 256) -> Call[Expiry]:
        """Tick the observed clock and do what follows from it, ``most`` agents at a time."""
        args = [*self._liveness(), most, int(self.settings.departed_ttl_s * 1000)]
        return Call("expire", args, lambda raw: Expiry(*(int(n) for n in raw)))

    def deliver(self, deliveries: Sequence[Delivery]) -> Call[list[str]]:
        """Deliver direct messages; words DELIVERED, DUPLICATE, CONFLICT, EXPIRED, UNKNOWN, FULL."""
        args = [*self._inbox_limits(), len(deliveries)]
        for d in deliveries:
            args += (d.entry, d.lane, d.caller, d.message_id, d.digest, d.sender_id, d.receiver_id, d.message_type)
            args += (d.ttl_ms, d.payload, d.correlation_id, d.reply_to)
        return Call("deliver", args, read_words)

    def bury(self, group: str, burials: Sequence[DeadLetterEntry]) -> Call[int]:
        """Bury entries; the number that was still there."""
        s = self.settings
        args: list[Arg] = [f"{s.dead_in_entries} {s.dead_in_bytes}", group, len(burials)]
        for b in burials:
            args += (b.stream, b.entry, b.kind, b.data, "1" if b.whole else "0", b.caller, b.code, b.reason)
        return Call("bury", args, int)

    def present(
        self, kind: str, name: str, fields: dict[str, str | int | float], streams: Iterable[str]
    ) -> Call[list[str]]:
        """Say that a worker lives; the names of those of its kind that do."""
        args: list[Arg] = [kind, name, int(self.settings.presence_ttl_s * 1000), 3_600_000, len(fields)]
        for field, value in fields.items():
            args += (field, str(value))
        listed = list(streams)
        args += (len(listed), *listed)
        return Call("present", args, lambda raw: [one.decode() for one in raw])

    def _limits(self) -> list[Arg]:
        s = self.settings
        seed = random.getrandbits(31)  # the jitter of backoff; nothing secret hangs on it
        return [s.max_attempts, s.backoff_ms, s.backoff_max_ms, s.max_releases, seed]


def _common_of(s: Settings) -> list[Arg]:
    """The arguments of every script."""
    return [
        f"{s.log_entries} {s.log_bytes} {s.progress_log_bytes}",
        f"{s.replies_entries} {s.replies_bytes} {s.reply_data_bytes}",
        int(s.replies_ttl_s * 1000),
    ]


def _metrics(metrics: dict[str, float]) -> list[Arg]:
    args: list[Arg] = [len(metrics)]
    for name, value in metrics.items():
        args += (f"metric:{name}", _number(value))
    return args


def _number(value: float) -> str:
    return repr(value)


def _submission(t: Submission) -> str:
    submitted_at = t.entry.partition("-")[0]
    told, more = t.caller if t.notify else "", 1 if t.options else 0
    return f"{t.priority} {told} {more} {submitted_at} {t.score} {t.pool} {t.digest}"


def _of_entries(reports: Sequence[Report]) -> Iterator[tuple[tuple[str, str, str], Report]]:
    """Each report with its kind, its caller, and its entry where the report before or after it is of that as well."""
    for place, r in enumerate(reports):
        before, after = reports[place - 1 : place], reports[place + 1 : place + 2]
        is_shared = (before and before[0].entry == r.entry) or (after and after[0].entry == r.entry)
        yield (r.kind, r.caller, r.entry if is_shared else ""), r


def _started_at(report: Report) -> Arg:
    """When the attempt started, in ms; empty where the report does not say."""
    ago = report.started_ms_ago
    if ago is None and report.kind != "started":
        return ""
    return int(report.entry.partition("-")[0]) - (ago or 0)
