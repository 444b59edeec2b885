"""The inboxes of agents that poll, and their reports: what the handlers need besides the SDK's client.

All polls of a gateway share one connection that reads. A poll is a sign of life of its agent: a heartbeat is appended
for it when it begins, and at the agent's interval while it waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import NamedTuple

from msgspec import Struct

from coord.background import run_once
from coord.codec import Assignment, parse_assignment, parse_attempts
from coord.connection import locate
from coord.errors import AgentNotFound, ServerUnavailable, StaleLease, TaskNotFound, UnknownAgent
from coord.gateway.backend import Appended, Backend
from coord.gateway.errors import RequestError
from coord.inbox_watch import NO_CURSORS, InboxEntry, InboxWatch, wait_for
from coord.models.facts import (
    AgentHeartbeat,
    TaskCompleted,
    TaskFailed,
    TaskProgressed,
    TaskReleased,
    TaskStarted,
)
from coord.models.ids import entry_order
from coord.models.tasks import LANE, Lane, Priority

Report = TaskStarted | TaskProgressed | TaskCompleted | TaskFailed | TaskReleased

#: Seconds between two heartbeats of an agent that declares no interval.
BEAT_S = 60.0
#: Seconds for which it is known which WebSocket receives an inbox; it is set again then.
CLAIM_S = 3_600
#: Agents whose last heartbeat is remembered.
REMEMBERED = 20_000
#: Orders that only agents which read their inbox from Redis answer: a poll shows that this one reads.
_ANSWERED_HERE = frozenset({b"read_inbox", b"list_leases"})
#: report -> how an attempt ends by it.
_ENDS: Mapping[type[Struct], str] = {TaskFailed: "failed", TaskReleased: "released"}


class Beat(NamedTuple):
    """The last heartbeat that was appended for an agent that polls."""

    at: float
    token: str
    interval_s: float
    checked_at: float  #: when the registry last answered one, and so accepted the token


class AckItem(NamedTuple):
    """An entry of an inbox, as its agent names it: lane, entry id, and of a task its id and its lease."""

    lane: Lane
    entry: str
    task_id: str = ""
    lease: str = ""

    @classmethod
    def parse(cls, text: str) -> AckItem:
        """Parse the field ``ack`` of an entry; raise ``ValueError`` if it is invalid."""
        lane, entry, *task = text.split("/")
        first, dash, second = entry.partition("-")
        if not (dash and first.isdecimal() and second.isdecimal()) or len(entry) > 41 or len(task) not in {0, 2}:
            raise ValueError(f"{text[:60]!r} is not the field ack of an entry")
        return cls(Lane(lane), entry, *task)

    @classmethod
    def of(cls, entry: InboxEntry) -> AckItem:
        """Return what names an entry."""
        if b"lease" not in entry.fields or b"order" in entry.fields:
            return cls(entry.lane, entry.id)
        return cls(entry.lane, entry.id, entry.fields[b"task_id"].decode(), entry.fields[b"lease"].decode())

    def __str__(self) -> str:
        """Return the field ``ack``."""
        return "/".join(part for part in self if part)


class Inboxes:
    """Reads inboxes for their agents, and appends what agents report.

    Args:
        backend: the gateway's client.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._watch: InboxWatch | None = None
        self._beats: dict[str, Beat] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def watch(self) -> InboxWatch:
        """Return the connection that reads inboxes, opened by the first poll."""
        if self._watch is None:
            url, settings = locate(self._backend.settings)
            self._watch = InboxWatch(url, settings)
            self._backend.on_close.append(self._watch.close)
        async with self._backend.limited():
            await self._watch.open()
        return self._watch

    async def check(self, agent_id: str, token: str) -> float:
        """Check that an agent may poll, and append a heartbeat for it if one is due; return its interval in seconds.

        Raises:
            AgentNotFound: it is not registered, or has left.
            RequestError: it reads its inbox from Redis.
            TokenMissing, TokenInvalid: the cell requires its token.
            ServerUnavailable: the registry has not answered, so it is not known whether the cell does.
        """
        wait_s = self._backend.settings.gateway_wait_s  # also with respond-async: the answer is the check of the token
        async with self._backend.limited(wait_s):
            connection = self._backend.client.connection
            found: list[bytes | None] = await connection.redis.execute_command(
                "HMGET", connection.keys.agent(agent_id), "status", "delivery", "deaf", "heartbeat_interval"
            )
            status, delivery, deaf, interval = found
            if status in {None, b"inactive"}:
                raise AgentNotFound(f"Agent '{agent_id}' not found")
            if delivery is None:
                raise RequestError(
                    "inbox_elsewhere",
                    f"agent '{agent_id}' reads its inbox from Redis; register it over HTTP to poll its inbox",
                )
            interval_s = int(interval) / 1000 if interval else BEAT_S
            beat = self._beats.get(agent_id)
            is_known = beat is not None and beat.token == token and status != b"stale" and delivery == b"poll"
            is_due = beat is None or monotonic() - beat.checked_at >= beat.interval_s / 2
            if is_due or not is_known or deaf is not None:
                try:
                    await self._beat(agent_id, token, interval_s, wait_s, beat if is_known else None)
                except UnknownAgent:
                    raise AgentNotFound(f"Agent '{agent_id}' not found") from None
        return interval_s

    async def _beat(self, agent_id: str, token: str, interval_s: float, wait_s: float, known: Beat | None) -> None:
        """Append a heartbeat; ``known``: the last one, if its token was this one, which serves while none answers."""
        if len(self._beats) >= REMEMBERED:
            self._beats.clear()
        _, is_answered = await self._backend.append("in:beats", AgentHeartbeat(agent_id, polled=True), wait_s, token)
        if not is_answered and known is None:
            raise ServerUnavailable("the registry has not answered; try again")
        now_s = monotonic()
        checked_at = now_s if is_answered or known is None else known.checked_at
        self._beats[agent_id] = Beat(now_s, token, interval_s, checked_at)

    async def poll(
        self,
        agent_id: str,
        limit: int,
        *,
        until: float,
        gone: asyncio.Event,
        signal: asyncio.Event,
        sent: Mapping[Lane, str] = NO_CURSORS,
    ) -> list[InboxEntry]:
        """Return the first entries of an inbox, as soon as there is one.

        Args:
            agent_id: an agent that ``check`` has passed.
            limit: maximum number of entries, with those that are left out.
            until: when to return none, on the monotonic clock.
            gone: set when to return at once: the caller has gone, or the gateway closes.
            signal: of the watch for this agent; set by others together with ``gone``.
            sent: lane -> id of the last entry that is left out.

        Raises:
            ServerUnavailable: Redis is not available at the end of the wait.
        """
        watch = await self.watch()
        while True:
            signal.clear()
            lost: ServerUnavailable | None = None
            try:
                entries = await self._readable(agent_id, await watch.read(agent_id, limit))
                if found := [one for one in entries if one.lane not in sent or _is_after(one.id, sent[one.lane])]:
                    return found
            except ServerUnavailable as error:
                lost = error  # the signal is set when the connection is back
            left_s = until - monotonic()
            if left_s <= 0 or gone.is_set():
                if lost is not None:
                    raise lost
                return []
            beat = self._beats.get(agent_id)
            due_s = left_s if beat is None else max(0.05, beat.at + beat.interval_s - monotonic())
            if not await wait_for(signal, min(left_s, due_s)) and beat is not None and due_s <= left_s:
                self._beat_later(agent_id, beat)

    async def claim(self, agent_id: str, socket_id: str, *options: str) -> None:
        """Record which WebSocket receives an inbox; with the option ``NX``, only if none is recorded."""
        async with self._backend.limited():
            connection = self._backend.client.connection
            key = connection.keys.socket(agent_id)
            await connection.redis.execute_command("SET", key, socket_id, "EX", CLAIM_S, *options)

    def _beat_later(self, agent_id: str, beat: Beat) -> None:
        """Append a heartbeat without waiting for it: it may be lost."""
        self._beats[agent_id] = beat._replace(at=monotonic())
        heartbeat = AgentHeartbeat(agent_id, polled=True)
        task = run_once("inbox.beat", lambda: self._send(heartbeat, beat.token))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _send(self, heartbeat: AgentHeartbeat, token: str) -> None:
        await self._backend.append("in:beats", heartbeat, 0, token)

    async def _readable(self, agent_id: str, entries: list[InboxEntry]) -> list[InboxEntry]:
        """Return the entries that are for an agent over HTTP, and delete the orders that are for others."""
        orders = [entry for entry in entries if entry.fields.get(b"order") in _ANSWERED_HERE]
        if not orders:
            return entries
        await self.delete(agent_id, [AckItem(entry.lane, entry.id) for entry in orders])
        return [entry for entry in entries if entry not in orders]

    async def delete(self, agent_id: str, items: Sequence[AckItem]) -> list[bool]:
        """Delete entries of an inbox; return for each whether it was there, or is a task that the agent holds."""
        async with self._backend.limited():
            connection = self._backend.client.connection
            pipe = connection.redis.pipeline(transaction=False)
            for item in items:
                pipe.execute_command("XDEL", connection.keys.inbox(agent_id, item.lane), item.entry)
                if item.lease:
                    pipe.execute_command("HMGET", connection.keys.task(item.task_id), "state", "assignment")
            answers = iter(await pipe.execute())
            found: list[bool] = []
            for item in items:
                is_deleted = next(answers) == 1
                if item.lease:
                    state, raw = next(answers)
                    held = _assignment(raw)
                    # An acknowledgement may come twice; of the first one the response may be lost.
                    is_deleted = state in {b"assigned", b"running"} and (held.lease, held.agent_id) == (
                        item.lease,
                        agent_id,
                    )
                found.append(is_deleted)
        return found

    async def report(self, report: Report, wait_s: float) -> Appended:
        """Append a report; check that it has had its effect, if a worker has answered.

        Raises:
            TaskNotFound: there is no such task.
            StaleLease: the lease is not that of the attempt, or the attempt has ended otherwise before.
        """
        async with self._backend.limited(wait_s, "; it is safe to repeat the report"):
            connection = self._backend.client.connection
            key = connection.keys.task(report.task_id)
            if isinstance(report, TaskStarted | TaskProgressed):
                await self._claim(key, report.lease)
            try:
                return await self._append(key, report, wait_s)
            except StaleLease:
                if not await connection.redis.execute_command("EXISTS", key):
                    raise TaskNotFound(f"Task '{report.task_id}' not found") from None
                raise

    async def _append(self, key: str, report: Report, wait_s: float) -> Appended:
        appended = await self._backend.append("in:reports", report, wait_s)
        if appended.answered and (why := await self._effect(key, report)):
            raise StaleLease(why)
        return appended

    async def _claim(self, key: str, lease: str) -> None:
        """Acknowledge the task that is started, if its agent has not done so."""
        connection = self._backend.client.connection
        raw: list[bytes | None] = await connection.redis.execute_command("HMGET", key, "assignment", "submission")
        held, submission = _assignment(raw[0]), raw[1] or b""
        if held.lease == lease:
            lane = LANE[Priority(submission.partition(b" ")[0].decode())]
            await connection.redis.execute_command("XDEL", connection.keys.inbox(held.agent_id, lane), held.entry)

    async def _effect(self, key: str, report: Report) -> str:
        """Return why an accepted report has had no effect; empty: it has had one, now or before."""
        connection = self._backend.client.connection
        state, raw, attempts = await connection.redis.execute_command("HMGET", key, "state", "assignment", "attempts")
        ended = next((one for one in parse_attempts((attempts or b"").decode()) if one.lease == report.lease), None)
        if ended is not None:
            is_done = ended.how == _ENDS.get(type(report))
            why = f"the attempt of this lease has ended before: {ended.how}"
        elif _assignment(raw).lease != report.lease:
            is_done, why = False, "the lease of this task is not known; nothing changed"
        elif isinstance(report, TaskCompleted):
            is_done, why = state == b"completed", f"the task is {(state or b'').decode()}"
        else:
            is_ended = state in {b"completed", b"cancelled", b"expired"}
            is_done = isinstance(report, TaskStarted | TaskProgressed) or not is_ended
            why = f"the task is {(state or b'').decode()}"
        return "" if is_done else why


_NOBODY = Assignment("", "", "", False, 0, 0, 0, None, None, "")


def _is_after(entry: str, other: str) -> bool:
    return entry_order(entry) > entry_order(other)


def _assignment(raw: bytes | None) -> Assignment:
    try:
        return parse_assignment(raw.decode()) if raw else _NOBODY
    except ValueError:
        return _NOBODY
