"""One agent whose inbox is sent to its HTTP endpoint.

An entry stays in the inbox until the agent has responded. So if this process is killed, the worker that takes the agent
over sends what was under way again, under the same lease.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import msgspec
from msgspec import Struct
from redis import exceptions as redis_errors

from coord import background, codec, logs
from coord.backoff import Backoff
from coord.codec import BAD_JSON
from coord.errors import ServerUnavailable
from coord.inbox_watch import InboxEntry, InboxWatch
from coord.models.facts import AgentHeartbeat, TaskCompleted, TaskFailed, TaskReleased, TaskStarted
from coord.models.ids import entry_ms
from coord.models.messages import COORDINATOR
from coord.models.tasks import Lane
from coord.models.tracing import is_traceparent
from coord.streams import Append, append_command
from workers.endpoints import Endpoints, PushOutcome
from workers.service import WorkerContext, end_tasks

log = logs.get_logger()

#: Entries that one read returns of each lane.
READ = 64
#: Finished tasks whose outcome is remembered, for an entry that comes again.
REMEMBERED = 256
#: Messages that wait in memory until the agent has accepted those before them.
MESSAGES = 64
#: Seconds before a message that the agent did not accept is sent again.
MESSAGE_AGAIN_S = 5.0
#: Seconds between two looks whether an agent is reachable again: doubling.
FIRST_LOOK_S, LONGEST_LOOK_S = 1.0, 30.0
#: Seconds between two attempts to append a report while Redis is unavailable: doubling.
FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 1.0
#: Seconds between two signs of life of an agent that declares no interval of heartbeats.
BEAT_S = 60.0
#: Seconds that a message lives, as its receiver reads it.
TTL_S = 300
#: Paths at the endpoint of an agent.
EXECUTE = "/tasks/execute"
#: Orders that are for agents which read their inbox from Redis.
ANSWERED_HERE = frozenset({b"read_inbox", b"list_leases"})


@dataclass
class PushTools:
    """What all agents of a push worker share."""

    cell: WorkerContext
    watch: InboxWatch
    endpoints: Endpoints
    slots: asyncio.Semaphore  #: connections
    most_of_one: int  #: connections for one agent
    pushed: int = 0  #: tasks that were sent
    #: True while the shards of this worker are its own.
    is_current: bool = field(default=True)


class SubmittedTask(Struct):
    """What a push contains of the task as it was submitted."""

    task_type: str = ""
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    requirements: msgspec.Raw = msgspec.Raw(b"{}")
    timeout: float | None = None
    deadline: str | None = None
    traceparent: str | None = None


class PushedAgent:
    """Sends what is in the inbox of one agent to its endpoint.

    Args:
        agent_id: id of the agent.
        tools: of its worker.
    """

    def __init__(self, agent_id: str, tools: PushTools) -> None:
        self.agent_id = agent_id
        self._tools = tools
        self._endpoints: Mapping[str, str] = {}
        self._interval_s = BEAT_S
        self._most = 1
        self._cursors: dict[Lane, str] = {}
        self._generation = -1
        self._pushing: dict[str, asyncio.Task[None]] = {}  # by lease
        self._reported: OrderedDict[str, Struct] = OrderedDict()  # lease -> its outcome
        self._messages: OrderedDict[str, InboxEntry] = OrderedDict()  # by lane and entry
        self._has_skipped = False  # messages, because too many wait
        self._delivering: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._look = Backoff(FIRST_LOOK_S, LONGEST_LOOK_S)
        self._beat_at = 0.0
        self._signal = asyncio.Event()
        self._is_ending = False
        self._is_held_back = False  # entries wait that may not be sent now
        self._running = background.keep(f"push.{agent_id}", self._run)

    def look(self) -> None:
        """Try again to send what could not be sent before: the agent may have registered again."""
        if self._is_held_back:
            self._signal.set()

    def look_at_endpoint(self) -> None:
        """End that the agent gets nothing as soon as its endpoint responds, unless that is under way."""
        if not self._is_ending and (self._looking is None or self._looking.done()):
            self._looking = background.run_once("push.look", self._look_again)

    async def finish(self, limit_s: float) -> None:
        """Send nothing more, and wait until what is under way has ended, so many seconds at most."""
        self._is_ending = True
        await end_tasks(self._running, *([self._looking] if self._looking else []))
        tasks = [*self._pushing.values(), *([self._delivering] if self._delivering else [])]
        if tasks:
            await asyncio.wait(tasks, timeout=limit_s)
        await end_tasks(*tasks)

    async def _run(self) -> None:
        with self._tools.watch.watching(self.agent_id) as signal:
            self._signal = signal
            while True:
                signal.clear()
                with contextlib.suppress(ServerUnavailable):  # the next connection sets the signal
                    await self._take()
                await signal.wait()

    async def _take(self) -> None:
        """Read the entries after the last ones, and begin with each of them for which there is room."""
        watch = self._tools.watch
        if self._generation != watch.generation:
            self._generation = watch.generation
            self._cursors = {}  # a fail-over may have rewound the lanes
        while entries := await watch.read(self.agent_id, READ, after=self._cursors):
            self._is_held_back = not await self._refresh()
            if self._is_held_back:
                return
            full: set[Lane] = set()
            for entry in entries:
                if entry.lane not in full:
                    if self._begin(entry):
                        self._cursors[entry.lane] = entry.id
                    else:
                        full.add(entry.lane)
            if full:
                return  # the end of a push sets the signal

    async def _refresh(self) -> bool:
        """Read where the agent is; return True if something may be sent to it."""
        cell = self._tools.cell
        try:
            raw: list[bytes | None] = await cell.redis.execute_command(
                "HMGET", cell.keys.agent(self.agent_id), "endpoints", "capacity", "heartbeat_interval", "delivery"
            )
        except (redis_errors.RedisError, OSError) as error:
            raise ServerUnavailable(str(error)) from error
        endpoints, capacity, interval, delivery = raw
        try:
            self._endpoints = msgspec.json.decode(endpoints or b"{}", type=dict[str, str])
        except BAD_JSON:
            self._endpoints = {}
        self._most = max(1, min(int(capacity or 1), self._tools.most_of_one))
        self._interval_s = int(interval) / 1000 if interval else BEAT_S
        return delivery == b"push" and "http" in self._endpoints and self._tools.is_current and not self._is_ending

    def _begin(self, entry: InboxEntry) -> bool:
        """Begin with an entry; return False if there is no room for it now."""
        fields = entry.fields
        if b"lease" in fields and fields.get(b"message_type") == b"task_assignment":
            return self._begin_task(entry)
        if fields.get(b"order") in ANSWERED_HERE or "messages" not in self._endpoints:
            if b"order" in fields:
                self._spawn_delete(entry)
            return True
        if len(self._messages) >= MESSAGES or self._has_skipped:
            self._has_skipped = True
            return True
        self._messages.setdefault(f"{entry.lane}/{entry.id}", entry)
        if self._delivering is None or self._delivering.done():
            self._delivering = background.run_once("push.messages", self._deliver)
        return True

    def _begin_task(self, entry: InboxEntry) -> bool:
        lease = entry.fields[b"lease"].decode()
        if lease in self._pushing:
            return True
        if len(self._pushing) >= self._most:
            return False
        reported = self._reported.get(lease)
        work = self._push(entry, lease) if reported is None else self._append("in:reports", reported)
        task = background.run_once("push.task", lambda: work)
        self._pushing[lease] = task
        task.add_done_callback(lambda _: self._end_task(lease))
        return True

    def _end_task(self, lease: str) -> None:
        self._pushing.pop(lease, None)
        self._signal.set()

    async def _push(self, entry: InboxEntry, lease: str) -> None:
        """Send a task, and report what became of it."""
        task_id = entry.fields[b"task_id"].decode()
        try:
            message, headers = assignment_message(self.agent_id, entry)
        except BAD_JSON as error:
            outcome = PushOutcome("failed", code="payload_invalid", message=f"the task cannot be decoded: {error}")
            started = monotonic()
        else:
            async with self._tools.slots:
                started = monotonic()
                self._tools.pushed += 1
                url = self._endpoints["http"].rstrip("/") + EXECUTE
                outcome = await self._tools.endpoints.push(url, message, headers)
        ms = int((monotonic() - started) * 1000)
        report: Struct
        if outcome.kind == "accepted":
            await self._delete(entry)  # that claims it: the agent reports
            report = TaskStarted(task_id, lease, ms)
        elif outcome.kind == "completed":
            report = TaskCompleted(task_id, lease, msgspec.Raw(outcome.result), ms)
        elif outcome.kind == "failed":
            report = TaskFailed(task_id, lease, outcome.code, outcome.message[:4096], started_ms_ago=ms)
        else:
            report = TaskReleased(task_id, lease, outcome.message[:4096], outcome.code)
        if outcome.kind in {"failed", "released"}:
            log.info("push.failed", agent_id=self.agent_id, task_id=task_id, code=outcome.code, why=outcome.message)
        self._reported[lease] = report
        while len(self._reported) > REMEMBERED:
            self._reported.popitem(last=False)
        await self._append("in:reports", report)
        if outcome.kind in {"accepted", "completed"}:
            await self._note_life()
        elif not outcome.is_here:
            self.look_at_endpoint()

    async def _note_life(self) -> None:
        """Append a heartbeat of an agent that has responded, unless one was appended lately."""
        self._look.reset()
        if monotonic() - self._beat_at >= self._interval_s / 2:
            self._beat_at = monotonic()
            await self._append("in:beats", AgentHeartbeat(self.agent_id))

    async def _look_again(self) -> None:
        """Wait until the endpoint responds again, then end that the agent gets nothing: by its heartbeat."""
        while True:
            await asyncio.sleep(self._look.next_s())
            with contextlib.suppress(ServerUnavailable):
                await self._refresh()
            if await self._tools.endpoints.is_up(self._endpoints.get("http", "")):
                await self._append("in:beats", AgentHeartbeat(self.agent_id))
                return

    async def _deliver(self) -> None:
        """Send the messages that wait, one by one in their order; one that is not accepted is sent again."""
        while self._messages:
            key, entry = next(iter(self._messages.items()))
            async with self._tools.slots:
                accepted = await self._tools.endpoints.deliver(
                    self._endpoints.get("messages", ""), message_of(self.agent_id, entry)
                )
            if accepted:
                await self._delete(entry)
            elif b"order" not in entry.fields and not await self._is_gone(entry):
                await asyncio.sleep(MESSAGE_AGAIN_S)
                continue
            del self._messages[key]
        if self._has_skipped:
            self._has_skipped, self._generation = False, -1
            self._signal.set()

    async def _is_gone(self, entry: InboxEntry) -> bool:
        """Return True if a message is no longer in the inbox: it has expired."""
        cell = self._tools.cell
        try:
            key = cell.keys.inbox(self.agent_id, entry.lane)
            return not await cell.redis.execute_command("XRANGE", key, entry.id, entry.id)
        except (redis_errors.RedisError, OSError):
            return False

    def _spawn_delete(self, entry: InboxEntry) -> None:
        task = background.run_once("push.order", lambda: self._delete(entry))
        name = f"{entry.lane}/{entry.id}"
        self._pushing[name] = task
        task.add_done_callback(lambda _: self._end_task(name))

    async def _delete(self, entry: InboxEntry) -> None:
        await self._until_done("XDEL", self._tools.cell.keys.inbox(self.agent_id, entry.lane), entry.id)

    async def _append(self, stream: str, fact: Struct) -> None:
        await self._until_done(*append_command(self._tools.cell.keys, Append(stream, fact)))

    async def _until_done(self, *command: Any) -> None:
        """Send a command until Redis has answered it; each may be sent twice."""
        backoff = Backoff(FIRST_WAIT_S, LONGEST_WAIT_S)
        while True:
            try:
                await self._tools.cell.redis.execute_command(*command)
            except (redis_errors.RedisError, OSError) as error:
                log.warning("push.not_written", agent_id=self.agent_id, error=f"{type(error).__name__}: {error}"[-300:])
                await asyncio.sleep(backoff.next_s())
            else:
                return


def assignment_message(agent_id: str, entry: InboxEntry) -> tuple[bytes, dict[str, str]]:
    """Return the message for a task, and the headers that belong to it.

    Raises:
        one of ``BAD_JSON``: the task cannot be decoded.
    """
    fields = entry.fields
    task = msgspec.json.decode(fields[b"data"], type=SubmittedTask)
    task_id, lease = fields[b"task_id"].decode(), fields[b"lease"].decode()
    payload = {
        "task_id": task_id,
        "lease": lease,
        "attempt": int(fields.get(b"attempt", b"1")),
        "task_type": task.task_type,
        "task_data": task.payload,
        "requirements": task.requirements,
        "timeout": task.timeout,
        "deadline": task.deadline,
    }
    headers = {"Idempotency-Key": lease}
    if task.traceparent is not None and is_traceparent(task.traceparent):
        headers["traceparent"] = task.traceparent
    message = _message(
        id=lease, sender_id=COORDINATOR, receiver_id=agent_id, message_type="task_assignment",
        priority=entry.lane.value, timestamp=_iso(entry_ms(entry.id)), payload=payload, correlation_id=task_id,
    )  # fmt: skip
    return codec.encode(message), headers


def message_of(agent_id: str, entry: InboxEntry) -> bytes:
    """Return the message for any other entry: a message, or an order as one of type ``coordination``."""
    text = {name.decode(): value.decode("utf-8", "replace") for name, value in entry.fields.items() if name != b"data"}
    if "order" in text:
        payload: Any = {name: value for name, value in text.items() if name != "message_type"}
        return codec.encode(
            _message(
                id=entry.id, sender_id=COORDINATOR, receiver_id=agent_id, message_type="coordination",
                priority=entry.lane.value, timestamp=_iso(entry_ms(entry.id)), payload=payload,
            )
        )  # fmt: skip
    known = ("id", "sender_id", "receiver_id", "message_type", "priority", "correlation_id", "reply_to", "protocol")
    rest = {name: text[name] for name in known if name in text}
    sent, expires = int(text.get("timestamp", 0)), int(text.get("expires_at", 0))
    more: dict[str, Any] = {"ttl": max(0, (expires - sent) // 1000), "expires_at": _iso(expires)}
    if "reply_by" in text:
        more["reply_by"] = _iso(int(text["reply_by"]))
    return codec.encode(_message(timestamp=_iso(sent), payload=msgspec.Raw(entry.fields[b"data"]), **rest, **more))


def _message(**fields: Any) -> dict[str, Any]:
    return {"correlation_id": None, "reply_to": None, "ttl": TTL_S, **fields}


def _iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")
