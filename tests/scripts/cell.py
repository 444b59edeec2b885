"""A cell to test scripts on: its clock is set by hand, and every fact really lies in its ingress stream, pending."""

from __future__ import annotations

import itertools
from typing import Any

import fakeredis
import msgspec
from redis.asyncio import Redis

from coord.config import Settings
from coord.keys import CONSUMES, MESSAGE_STREAMS, Keys
from coord.models.tasks import HEAD_START_MS, LANE, Lane, Priority, TaskRecord, named_queue
from coord.streams import Consumer
from tests.scripts.records import Records
from workers import lua
from workers.transitions import (
    Call,
    CancelRequest,
    Delivery,
    Departure,
    Heartbeat,
    LinkChange,
    Loss,
    Placement,
    Registration,
    Report,
    Scripts,
    StatusChange,
    Submission,
    TaskBatch,
    metric_fields,
)

#: The moment at which every test begins, ms since 1970. In 2033: what scripts append by themselves bears an earlier id.
START = 2_000_000_000_000
DAY = 86_400_000  #: ms
#: The lease under which the router of a test delivers, by lane.
LEASES = {lane.value: "1/w1#test" for lane in Lane}
EXPLANATION = b'{"strategy":"test"}'


class Cell(Records):
    """One namespace with its scripts, groups and builders of facts. ``now`` is the time that scripts see."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        super().__init__(redis, Keys(settings.namespace))
        self.bare = isinstance(redis, fakeredis.FakeAsyncRedis)
        self.trimmed = False  #: records of ended tasks were forgotten in this test
        self.broken = False  #: this test leaves books that cannot balance
        self.appended: set[tuple[str, str]] = set()  #: stream and entry id of every fact
        self._sequence = itertools.count(1)
        self._leases = itertools.count(1)
        self.settings = settings
        self.scripts = self._scripts(settings)
        self.now = START

    def _scripts(self, settings: Settings) -> Scripts:
        scripts = Scripts(self.redis, self.keys, settings, bare=self.bare)
        scripts.leases = dict(LEASES)
        return scripts

    def change_settings(self, **changes: Any) -> None:
        """Go on with these settings changed."""
        now = self.now
        self.settings = msgspec.structs.replace(self.settings, **changes)
        self.scripts = self._scripts(self.settings)
        self.now = now

    @property
    def now(self) -> int:
        """The time that scripts see; ms since 1970."""
        assert self.scripts.now is not None
        return self.scripts.now

    @now.setter
    def now(self, value: int) -> None:
        self.scripts.now = value

    async def begin(self) -> None:
        """Load the scripts, make every group, and give all lanes to one router."""
        await self.scripts.load()
        await self.redis.hset(self.keys.of("lanes"), mapping=LEASES)
        for kind, streams in CONSUMES.items():
            await Consumer(self.redis, self.keys, kind, "w1", streams).make_groups()

    async def run(self, call: Call[Any]) -> Any:
        """What one script answers. It must make no move that its header does not declare."""
        before = await self._states()
        answer = (await self.scripts.run(call))[0]
        after = await self._states()
        made = {(before.get(task, "none"), state) for task, state in after.items() if before.get(task) != state}
        assert made <= lua.moves(call.script), f"{call.script} moved {made - lua.moves(call.script)}"
        return answer

    async def _states(self) -> dict[bytes, str]:
        if self.broken:
            return {}
        keys = [key async for key in self.redis.scan_iter(match=f"{self.keys.prefix}task:*", count=1000, _type="hash")]
        pipe = self.redis.pipeline(transaction=False)
        for key in keys:
            pipe.hget(key, "state")
        return {key: state.decode() for key, state in zip(keys, await pipe.execute(), strict=True)}

    async def word(self, call: Call[Any]) -> str:
        """The only word that a script answers."""
        answer = await self.run(call)
        words = answer.words if isinstance(answer, TaskBatch) else answer
        assert len(words) == 1
        return str(words[0])

    # Facts, appended and pending.

    async def append(self, stream: str, kind: str = "fact", *, at: int | None = None, **fields: str) -> str:
        """An entry in ``stream``, delivered to a worker and pending; its id, at ``now`` unless ``at`` is given."""
        entry = f"{self.now if at is None else at}-{next(self._sequence)}"
        key = self.keys.of(stream)
        await self.redis.xadd(key, {"type": kind, "data": "{}", **fields}, id=entry)
        self.appended.add((stream, entry))
        group = next(kind for kind, streams in CONSUMES.items() if stream in streams)
        await self.redis.xreadgroup(group, "w1", {key: ">"}, count=1000)
        return entry

    async def answers(self, caller: str = "c1") -> list[tuple[str, str]]:
        """As of any records; and each answer names the stream that its fact was appended to."""
        for one in await self.stream(f"replies:{caller}"):
            if one["type"] == "fact.answered":
                assert {(one["stream"], fact) for fact in one["fact"].split()} <= self.appended
        return await super().answers(caller)

    async def is_consumed(self, stream: str) -> bool:
        """Whether nothing is left of the stream's entries: neither the entry nor its place in the pending list."""
        key = self.keys.of(stream)
        groups = await self.redis.xinfo_groups(key)
        return await self.redis.xlen(key) == 0 and all(group["pending"] == 0 for group in groups)

    async def left(self, stream: str) -> list[str]:
        """The ids of the entries that are still in a stream."""
        return [entry.decode() for entry, _ in await self.redis.xrange(self.keys.of(stream))]

    async def registration(
        self,
        agent_id: str = "a1",
        *,
        incarnation: str = "i1",
        interval_ms: int | None = None,
        delivery: str = "",
        capacity: int = 2,
        digest: str = "d1",
        facets: str = "type:worker capability:echo",
        caller: str = "",
        **fields: str | float,
    ) -> Registration:
        """A registration of an agent, appended."""
        entry = await self.append("in:registry", "agent.registered")
        told: dict[str, str | bytes | int | float] = {"agent_type": "worker", "capacity": capacity, **fields}
        return Registration(entry, caller, agent_id, incarnation, interval_ms, delivery, digest, facets, told)

    async def register(self, agent_id: str = "a1", **options: Any) -> str:
        """Register an agent; the word."""
        return await self.word(self.scripts.register([await self.registration(agent_id, **options)]))

    async def heartbeat(
        self,
        agent_id: str = "a1",
        *,
        incarnation: str = "i1",
        leases: int | None = None,
        polled: bool = False,
        caller: str = "",
        **metrics: float,
    ) -> str:
        """One heartbeat; the word."""
        entry = await self.append("in:beats", "agent.heartbeat")
        return await self.word(
            self.scripts.heartbeat(
                [Heartbeat(entry, caller, agent_id, incarnation, leases, False, polled, metric_fields(metrics))]
            )
        )

    async def change_status(
        self, agent_id: str = "a1", status: str = "busy", *, incarnation: str = "i1", caller: str = "", **metrics: float
    ) -> str:
        """One change of status; the word."""
        entry = await self.append("in:registry", "agent.status_changed")
        return await self.word(
            self.scripts.change_status(
                [StatusChange(entry, caller, agent_id, incarnation, status, metric_fields(metrics))]
            )
        )

    async def deregister(self, agent_id: str = "a1", *, incarnation: str = "i1", caller: str = "") -> str:
        """Let an agent leave; the word."""
        entry = await self.append("in:registry", "agent.deregistered")
        return await self.word(self.scripts.deregister([Departure(entry, caller, agent_id, incarnation)]))

    async def submission(
        self,
        task_id: str = "t1",
        *,
        priority: str = "normal",
        pool: str = "p1",
        body: bytes = b'{"task_type":"echo","payload":{"n":1}}',
        digest: str = "d1",
        run_at: int | None = None,
        caller: str = "",
        notify: bool = False,
        at: int | None = None,
        **options: int,
    ) -> Submission:
        """A submission of a task, appended."""
        entry = await self.append(f"in:tasks:{priority}", "task.submitted", at=at)
        named = Priority(priority)
        score = (run_at or int(entry.split("-")[0])) - HEAD_START_MS[named]
        return Submission(entry, priority, task_id, digest, pool, score, run_at, caller, notify, body, options)

    async def admit(self, *submissions: Submission, nearly_full: bool = False) -> list[str]:
        """Admit submissions; the words."""
        pools = {one.pool: b'{"task_type":"echo"}' for one in submissions}
        answer: TaskBatch = await self.run(self.scripts.admit(submissions, pools, nearly_full=nearly_full))
        return answer.words

    async def submit(self, task_id: str = "t1", **options: Any) -> str:
        """Submit one task and admit it; the word."""
        return (await self.admit(await self.submission(task_id, **options)))[0]

    async def placement(self, agent_id: str = "a1", *, pool: str = "p1", rev: int | None = None) -> Placement:
        """A planned assignment with a fresh lease, by default on the agent as it is now.

        If only the named queue of the pool has tasks, the first of them is named.
        """
        if rev is None:
            rev = int(await self.redis.hget(self.keys.agent(agent_id), "rev") or 0)
        task_id, named = "", self.keys.queue(named_queue(pool))
        if not await self.redis.exists(self.keys.queue(pool)) and await self.redis.type(named) == b"zset":
            pool, task_id = named_queue(pool), (await self.redis.zrange(named, 0, 0))[0].decode()
        return Placement(pool, agent_id, rev, f"{next(self._leases):016x}", EXPLANATION, task_id)

    async def dispatch(self, agent_id: str = "a1", *, pool: str = "p1", rev: int | None = None) -> str:
        """Assign the next task of a pool; the word."""
        return await self.word(self.scripts.dispatch([await self.placement(agent_id, pool=pool, rev=rev)]))

    async def assign(
        self, task_id: str = "t1", agent_id: str = "a1", *, claimed: bool = True, **options: Any
    ) -> TaskRecord:
        """Submit a task and assign it to a registered agent, which claims it unless told otherwise; its record."""
        assert await self.submit(task_id, pool=f"p-{task_id}", **options) == "QUEUED"
        assert await self.dispatch(agent_id, pool=f"p-{task_id}") == "ASSIGNED"
        if claimed:
            assert await self.claim(task_id)
        return await self.task(task_id)

    async def claim(self, task_id: str = "t1") -> bool:
        """What an agent does before it starts a task: whether its deletion of the inbox entry won."""
        agent, priority, entry = await self.fields(task_id, "agent_id", "priority", "entry")
        assert agent is not None
        assert entry is not None
        return bool(await self.redis.xdel(self.keys.inbox(agent, LANE[Priority(priority or "normal")]), entry) == 1)

    async def lease(self, task_id: str = "t1") -> str:
        """A task's current lease."""
        lease = (await self.task(task_id)).lease
        assert lease
        return lease

    async def reported(self, kind: str, task_id: str = "t1", lease: str | None = None, **options: Any) -> Report:
        """A report under the current lease unless another is given, appended."""
        if lease is None:
            lease = await self.lease(task_id)
        entry = await self.append("in:reports", f"task.{kind}")
        if kind == "started":
            options.setdefault("started_ms_ago", 0)
        return Report(entry, kind, task_id, lease, **options)

    async def report(self, kind: str, task_id: str = "t1", lease: str | None = None, **options: Any) -> str:
        """Settle one report; the word."""
        return await self.word(self.scripts.settle([await self.reported(kind, task_id, lease, **options)]))

    async def complete(self, task_id: str = "t1", **options: Any) -> str:
        """Report a task completed; the word."""
        return await self.report("completed", task_id, data=b'{"ok":true}', **options)

    async def fail(self, task_id: str = "t1", *, retryable: bool = True, **options: Any) -> str:
        """Report that an attempt failed; the word."""
        return await self.report("failed", task_id, code="boom", message="it broke", retryable=retryable, **options)

    async def cancel(
        self,
        task_id: str = "t1",
        *,
        caller: str = "",
        reason: str = "not needed",
        is_operators: bool = False,
        by: str = "",
    ) -> str:
        """Cancel a task; the word."""
        stream = "in:control:distributor" if is_operators else "in:requests"
        entry = await self.append(stream, "task.cancel_requested", by=by)
        return await self.word(self.scripts.cancel([CancelRequest(entry, task_id, caller, reason, is_operators)]))

    async def loss(self, agent_id: str = "a1", term: int = 1) -> Loss:
        """A loss, appended."""
        return Loss(await self.append("in:losses", "agent.lost"), agent_id, term)

    async def reclaim(self, agent_id: str = "a1", term: int = 1) -> str:
        """Take back what an agent had in a term; the word."""
        return await self.word(self.scripts.reclaim([await self.loss(agent_id, term)]))

    async def run_alarms(self, most: int = 1000, *, absent: bool = False) -> list[str]:
        """Do what is due; the words.

        ``absent``: no distributor was at work since the last call. Otherwise the clock of attempts has gone on.
        """
        if not absent:
            await self.tick()
        answer: TaskBatch = await self.run(self.scripts.run_alarms(most))
        return answer.words

    async def tick(self) -> None:
        """Advance the clock of attempts as wakes in short intervals do: to now, or to the oldest report that waits."""
        key = self.keys.of("clock")
        attempts, at = await self.redis.hmget(key, ["attempts", "attempts_at"])
        waiting = await self.redis.xrange(self.keys.of("in:reports"), count=1)
        oldest = int(waiting[0][0].partition(b"-")[0]) if waiting else self.now
        until = min(self.now, oldest)
        if attempts is not None and until > int(at):
            await self.redis.hset(key, mapping={"attempts": int(attempts) + until - int(at), "attempts_at": until})

    async def delivery(
        self,
        message_id: str = "m1",
        *,
        lane: str = "normal",
        receiver: str = "a1",
        digest: str = "d1",
        ttl_ms: int = 60_000,
        caller: str = "",
        payload: bytes = b'{"n":1}',
        correlation_id: str = "",
        reply_to: str = "",
        sender: str = "s1",
        protocol: str = "direct",
        receipt: bool = False,
        at: int | None = None,
        **options: Any,
    ) -> Delivery:
        """A message to deliver, appended; ``options`` are the other fields of ``Delivery``."""
        entry = await self.append(f"in:messages:{lane}", "message.sent", at=at)
        to = (sender, receiver, protocol, ttl_ms, payload, correlation_id, reply_to, protocol, receipt)
        return Delivery(entry, lane, caller, message_id, digest, *to, **options)

    async def end_requests(self, most: int = 256, *, absent: bool = False) -> list[str]:
        """End the requests whose deadlines have passed; the words.

        ``absent``: no router was at work since the last call. Otherwise the clock of requests has gone on.
        """
        if not absent:
            await self._advance_requests()
        answer: list[str] = await self.run(self.scripts.end_requests(most))
        return answer

    async def _advance_requests(self) -> None:
        """Advance the clock of requests as ticks in short intervals do: to now, or to the oldest message that waits."""
        key = self.keys.of("clock")
        requests, at = await self.redis.hmget(key, ["requests", "requests_at"])
        waiting = [await self.redis.xrange(self.keys.of(stream), count=1) for stream in MESSAGE_STREAMS]
        oldest = [int(entries[0][0].partition(b"-")[0]) for entries in waiting if entries]
        until = min(self.now, *oldest) if oldest else self.now
        if requests is not None and until > int(at):
            await self.redis.hset(key, mapping={"requests": int(requests) + until - int(at), "requests_at": until})

    async def change_links(
        self, kind: str, agent_id: str, other_id: str = "", *, by_operator: bool = False, note: str = ""
    ) -> str:
        """Change a link or a master; the word. The caller is c1."""
        stream = "in:control:router" if by_operator else "in:links"
        entry = await self.append(stream)
        change = LinkChange(entry, stream, "c1", kind, agent_id, other_id, note)
        return await self.word(self.scripts.change_links([change]))

    async def expire_messages(self) -> tuple[int, int]:
        """Take expired messages out of inboxes; how many were examined, and how many had expired unread."""
        examined, expired = await self.run(self.scripts.expire_messages())
        return examined, expired

    async def deliver(self, message_id: str = "m1", **options: Any) -> str:
        """Deliver one message; the word."""
        return await self.word(self.scripts.deliver([await self.delivery(message_id, **options)]))
