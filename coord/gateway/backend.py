"""The gateway's SDK client: one client for all requests, with a timeout for Redis.

The client is opened in the background: a gateway that starts before Redis responds with 503 until Redis is available.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any, NamedTuple, TypeVar

from msgspec import Struct
from msgspec.structs import replace
from redis.asyncio import Redis

from coord import Client, logs, spans
from coord.api_key import id_of_key
from coord.background import cancel_and_wait, run_once
from coord.client.bulk import BulkOperation
from coord.client.connection import FactHandle
from coord.client.events import LogReader
from coord.client.gatherer import Gatherer
from coord.client.handle import CancelAnswer, TaskHandle
from coord.client.submission import checked_append
from coord.config import PER_TYPE, Settings
from coord.connection import WaitNotice, reading
from coord.doctor import Snapshot, read_snapshot
from coord.errors import (
    AgentNotFound,
    ConfigError,
    CoordError,
    ResultTimeout,
    ServerFull,
    ServerUnavailable,
    Unavailable,
    UnknownAgent,
)
from coord.gateway.deadlines import Deadlines
from coord.gateway.errors import RequestError
from coord.gateway.placement_rules import PlacementRules
from coord.gateway.redis_limit import RedisLimit
from coord.gateway.schemas import entry_time, iso
from coord.keys import Keys
from coord.models.agents import AgentRecord, AgentStatus
from coord.models.api_keys import ApiKey
from coord.models.events import Position
from coord.models.explanations import Explanation
from coord.models.facts import AgentDeregistered, AgentHeartbeat, AgentRegistered, AgentStatusChanged
from coord.models.links import Links
from coord.models.messages import Conversation, MessageRecord
from coord.models.operations import BulkResult
from coord.models.statistics import CellStatistics
from coord.models.tasks import Priority, TaskRecord, TaskSubmitted
from coord.queries import (
    AgentPage,
    AuditPage,
    Backlog,
    DeadMessagePage,
    MessageCopy,
    MessagePage,
    RecipientPage,
    RegistryStats,
    SettingChange,
    TaskPage,
    get_dead_message_page,
    get_message_copy,
)

log = logs.get_logger()

T = TypeVar("T")

#: Timeout of one attempt to open the client; the address of Redis may be published meanwhile.
OPEN_S = 2.0
#: Seconds between two attempts.
OPEN_AGAIN_S = 0.2
#: Additional seconds for a check of the ledger.
LEDGER_S = 30.0
#: The end of an error whose request may have had its effect, which a second one does not repeat.
SAFE = "; it is safe to repeat the request"
#: Statuses with which an agent leaves: no heartbeat is valid after one of them.
LEAVING = frozenset({AgentStatus.INACTIVE, AgentStatus.STALE})


class Appended(NamedTuple):
    """A fact that is in its stream."""

    at: str  #: ISO 8601, by Redis's clock
    answered: bool  #: whether a worker has handled it; else it waits for one


class Broadcast(NamedTuple):
    """A broadcast that is in its stream."""

    at: str  #: ISO 8601, by Redis's clock
    answered: bool  #: whether the router has delivered it to all
    recipients: int = 0  #: agents that matched
    delivered: int = 0  #: of these, agents that have it


class Changed(NamedTuple):
    """What was done of an operation on many tasks."""

    result: BulkResult
    interruption: str = ""  #: why it ended before its limit, after a part of it was done


class ClearedQueue(NamedTuple):
    """What was done of clearing a queue."""

    cancelled: int
    complete: bool  #: False: the time was over or Redis failed, and tasks may be left


class Backend:
    """The gateway's client."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.deadlines = Deadlines()
        self._client: Client | None = None
        self._gatherer: Gatherer | None = None
        self._opening: asyncio.Task[None] | None = None
        #: Called when the client disconnects.
        self.on_close: list[Callable[[], Awaitable[None]]] = []

    def open(self, failed: Callable[[CoordError], None]) -> None:
        """Start to connect in the background; ``failed`` is called with a permanent error, such as a wrong password."""
        self._opening = run_once("gateway.open", lambda: self._open(failed))

    async def close(self) -> None:
        """Disconnect."""
        await cancel_and_wait(self._opening)
        for function in self.on_close:
            await function()
        if self._gatherer is not None:
            await self._gatherer.close()
        if self._client is not None:
            await self._client.close()

    def end_waits(self) -> None:
        """End the waits for workers as if their times were over: the gateway shuts down."""
        if self._gatherer is not None:
            self._gatherer.end_waits()
        if self._client is not None:
            self._client.connection.watcher.end_waits()

    @property
    def client(self) -> Client:
        """The client; raises ``ServerUnavailable`` until the first connection to Redis."""
        if self._client is None:
            raise ServerUnavailable("Redis is not available yet")
        return self._client

    async def register(self, fact: AgentRegistered, wait_s: float, token: str = "") -> Appended:
        """Register an agent, or refresh its registration; ``token`` is the agent's."""
        async with self.limited(wait_s, SAFE):
            return await self.append("in:registry", fact, wait_s, token)

    async def heartbeat(
        self,
        agent_id: str,
        status: AgentStatus | None,
        load_metrics: Mapping[str, float],
        wait_s: float,
        token: str = "",
    ) -> Appended:
        """Send a heartbeat, and a change of status if the agent reports another status than its record has.

        Raises:
            AgentNotFound: the agent is not registered, or has left.
        """
        metrics = dict(load_metrics)
        async with self.limited(2 * wait_s, SAFE):
            if status is not None and status in LEAVING:
                return await self._change(agent_id, status, metrics, wait_s, token)
            try:
                heartbeat = AgentHeartbeat(agent_id, load_metrics=metrics)
                written = await self.append("in:beats", heartbeat, wait_s, token)
            except UnknownAgent:
                raise AgentNotFound(f"Agent '{agent_id}' not found") from None
            if status is not None and await self._is_change(agent_id, status):
                return await self._change(agent_id, status, metrics, wait_s, token)
        return written

    async def change_status(
        self, agent_id: str, status: AgentStatus, load_metrics: Mapping[str, float], wait_s: float, token: str = ""
    ) -> Appended:
        """Change the status of an agent; ``load_metrics`` are merged into those of its record.

        Raises:
            AgentNotFound: the agent is not registered.
        """
        async with self.limited(wait_s, SAFE):
            try:
                return await self._change(agent_id, status, dict(load_metrics), wait_s, token)
            except UnknownAgent:
                raise AgentNotFound(f"Agent '{agent_id}' not found") from None

    async def deregister(self, agent_id: str, wait_s: float, token: str = "") -> Appended:
        """Deregister an agent: its tasks go to others, its record stays for a while.

        Raises:
            AgentNotFound: the agent is not registered.
        """
        async with self.limited(wait_s, SAFE):
            try:
                return await self.append("in:registry", AgentDeregistered(agent_id), wait_s, token)
            except UnknownAgent:
                raise AgentNotFound(f"Agent '{agent_id}' not found") from None

    async def operate(self, agent_id: str, request: str, wait_s: float) -> AgentStatus | None:
        """Drain, maintain or resume an agent, as the method of ``Client.admin`` with this name.

        Returns: its status now; None: no registry has answered yet.

        Raises:
            AgentNotFound: the agent is not registered, or has left.
        """
        admin = self.client.admin
        call = {"drain": admin.drain, "maintain": admin.maintain, "resume": admin.resume}[request]
        return await self._ask(wait_s, lambda: call(agent_id, timeout=wait_s))

    async def _change(
        self, agent_id: str, status: AgentStatus, metrics: dict[str, float], wait_s: float, token: str
    ) -> Appended:
        change = AgentStatusChanged(agent_id, status, load_metrics=metrics)
        return await self.append("in:registry", change, wait_s, token)

    async def append(self, stream: str, fact: Struct, wait_s: float, token: str = "") -> Appended:
        """Append a fact, and wait for its worker for ``wait_s`` seconds; call it within ``limited``."""
        handle = await self.client.connection.append_fact(stream, fact, wants_answer=wait_s > 0, token=token)
        return Appended(entry_time(handle.entry_id), wait_s > 0 and await _is_accepted(handle, wait_s))

    async def _is_change(self, agent_id: str, status: AgentStatus) -> bool:
        """Return True if the status is news: an agent that an operator drains may go on reporting active."""
        recorded = (await self.client.agent(agent_id)).status
        return recorded != status and (recorded, status) != (AgentStatus.DRAINING, AgentStatus.ACTIVE)

    async def submit(self, fact: TaskSubmitted, priority: Priority, wait_s: float) -> Appended:
        """Submit a task; those of one turn of the event loop go together.

        Raises:
            TaskRefused: the backlog is full.
            IdConflict: the id was used before with other content.
            FactInvalid, FactTooLarge: the fact does not fit.
        """
        if spans.recorder is None:
            return await self._submit(fact, priority, wait_s)
        attributes: spans.Attributes = {"coord.task_id": fact.task_id, "coord.task_type": fact.task_type}
        with spans.recorder.span("coord.submit", fact.traceparent, "producer", attributes) as span:
            placed = fact if span.traceparent is None else replace(fact, traceparent=span.traceparent)
            return await self._submit(placed, priority, wait_s)

    async def _submit(self, fact: TaskSubmitted, priority: Priority, wait_s: float) -> Appended:
        client = self.client
        caller = client.connection.caller if wait_s > 0 else ""
        append = checked_append(priority, fact, caller, self.settings.max_entry_bytes)
        if self._gatherer is None:
            self._gatherer = Gatherer(client.connection)
        async with self.limited(wait_s, f"; it is safe to retry with task_data.task_id '{fact.task_id}'"):
            gathered = self._gatherer.add(append)
            if wait_s <= 0:
                await gathered.future
                return Appended(entry_time(gathered.entry_id), answered=False)
            try:
                with self.deadlines.limit(wait_s):
                    await gathered.future
            except TimeoutError:
                if not gathered.entry_id:  # Redis has not answered yet
                    await gathered.appended()
                return Appended(entry_time(gathered.entry_id), answered=False)
        return Appended(entry_time(gathered.entry_id), answered=True)

    async def agent(self, agent_id: str) -> AgentRecord:
        """Return an agent's record; raises ``AgentNotFound``."""
        async with self.limited():
            return await self.client.agent(agent_id)

    async def registry_stats(self) -> RegistryStats:
        """Return the numbers of agents, by status and type, and of the services and capabilities that they have."""
        async with self.limited():
            return await self.client.registry_stats()

    async def discover(self, **wanted: Any) -> AgentPage:
        """Return the agents that meet a filter, as ``Client.discover``; raises ``CursorInvalid``."""
        async with self.limited():
            return await self.client.discover(**wanted)

    async def task(self, task_id: str) -> TaskRecord:
        """Return a task's record; raises ``TaskNotFound``."""
        async with self.limited():
            return await self.client.task(task_id)

    async def submit_many(
        self, tasks: Sequence[tuple[TaskSubmitted, Priority]], wait_s: float
    ) -> list[Appended | CoordError]:
        """Submit tasks, as ``submit`` does each; an error stands for a task that was refused.

        Raises:
            ServerUnavailable, ServerFull: Redis took none of them.
        """
        outcomes = await asyncio.gather(
            *(self.submit(fact, priority, wait_s) for fact, priority in tasks), return_exceptions=True
        )
        found: list[Appended | CoordError] = []
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, CoordError):
                raise outcome
            found.append(outcome)
        first = found[0] if found else None
        if isinstance(first, ServerUnavailable | ServerFull) and all(map(_is_not_taken, found)):
            raise type(first)(str(first).partition("; it is safe")[0])  # which is advice for the first one only
        return found

    async def list_tasks(self, query: str, **wanted: Any) -> TaskPage:
        """Return a page of tasks, as ``Client.list_tasks``; raises ``QueryInvalid``, ``CursorInvalid``."""
        async with self.limited():
            return await self.client.list_tasks(query, **wanted)

    async def cancel(self, task_id: str, reason: str, wait_s: float) -> CancelAnswer | None:
        """Request that a task is cancelled, as ``Client.cancel``; None: no distributor has answered yet."""
        return await self._ask(wait_s, lambda: self.client.cancel(task_id, reason, timeout=wait_s))

    async def retry(self, task_id: str, wait_s: float) -> bool:
        """Queue a failed task again, as ``Client.admin.retry``; False: no distributor has answered yet."""
        advice = "; repeat the request: 409 task_not_dead means that the task is queued again"
        return await self._control(wait_s, lambda: self.client.admin.retry(task_id, timeout=wait_s), advice)

    async def bulk(
        self,
        operation: BulkOperation,
        *,
        dry_run: bool,
        limit: int,
        cursor: str | None,
        wait_s: float,
    ) -> Changed:
        """Change a bounded number of the tasks of an operation, or only count them; its ``next`` continues.

        Raises:
            CursorInvalid: the cursor is not from a list of tasks.
            ServerUnavailable: no task was counted, or no request was answered; the error has the id of the operation.
        """
        if dry_run:
            async with self.limited(3 * wait_s, SAFE):
                return Changed(await operation.count(limit, cursor, once=True))
        try:
            return await self._change_many(operation, wait_s, limit, cursor)
        except Unavailable as error:
            repeat = f" with operation '{operation.operation}'" if operation.operation else ""
            raise type(error)(f"{error}{SAFE}{repeat}") from error

    async def _change_many(
        self, operation: BulkOperation, wait_s: float, limit: int | None = None, cursor: str | None = None
    ) -> Changed:
        """Run an operation for a bounded time; a failure after a part of it was done does not lose the numbers."""
        try:
            async with self.limited(3 * wait_s):
                return Changed(await operation.run(timeout=wait_s, limit=limit, cursor=cursor, within=wait_s))
        except CoordError as error:
            message = str(error).removesuffix(operation.advice)
            if operation.result is not None:
                return Changed(operation.result, message)
            error.args = (message,)
            raise

    async def clear_queue(self, priority: Priority, wait_s: float) -> ClearedQueue:
        """Cancel the tasks of a priority that wait for an agent; stop after ``wait_s`` seconds.

        Tasks that come meanwhile may be cancelled too, or not.
        """
        query = f"state:queued priority:{priority}"
        operation = BulkOperation(self.client.connection, "cancel", query, reason="the queue was cleared")
        try:
            found, _ = await self._change_many(operation, wait_s)
        except Unavailable as error:
            advice = "; some tasks may be cancelled; it is safe to repeat the request, which cancels the others"
            raise type(error)(f"{error}{advice}") from error
        return ClearedQueue(found.done, complete=found.next is None and not found.unanswered)

    async def send(self, receiver_id: str, payload: Any, wait_s: float, options: Mapping[str, Any]) -> Appended:
        """Send a message, as ``Client.send``; ``options`` contain its id."""
        async with self.limited(
            wait_s, f"; it is safe to repeat the request with message_id '{options['message_id']}'"
        ):
            try:
                receipt = await self.client.send(
                    receiver_id, payload, wait=wait_s > 0, timeout=max(wait_s, 1.0), **options
                )
            except ResultTimeout:
                return Appended(iso(await self.client.server_time()), answered=False)
        return Appended(entry_time(receipt.entry_id), answered=wait_s > 0)

    async def broadcast(self, payload: Any, wait_s: float, options: Mapping[str, Any]) -> Broadcast:
        """Send a message to all agents that match, as ``Client.broadcast``; ``options`` contain its id."""
        async with self.limited(
            wait_s, f"; it is safe to repeat the request with message_id '{options['message_id']}'"
        ):
            try:
                receipt = await self.client.broadcast(payload, timeout=wait_s, **options)
            except ResultTimeout:
                return Broadcast(iso(await self.client.server_time()), answered=False)
        return Broadcast(entry_time(receipt.entry_id), True, receipt.recipients, receipt.delivered)

    async def message(self, message_id: str) -> MessageRecord:
        """Return a message's record; raises ``MessageNotFound``."""
        async with self.limited():
            return await self.client.message(message_id)

    async def message_recipients(self, message_id: str, *, limit: int, cursor: str | None = None) -> RecipientPage:
        """Return what became of a message for its recipients, as ``Client.message_recipients``."""
        async with self.limited():
            return await self.client.message_recipients(message_id, limit=limit, cursor=cursor)

    async def message_copy(self, message_id: str, agent_id: str | None) -> MessageCopy:
        """Return the copy of a message for an agent, or for its only receiver; raises ``MessageNotFound``."""
        async with self.limited():
            connection = self.client.connection
            return await get_message_copy(connection.redis, connection.keys, message_id, agent_id)

    async def list_messages(self, **wanted: Any) -> MessagePage:
        """Return a page of messages, as ``Client.list_messages``; raises ``CursorInvalid``."""
        async with self.limited():
            return await self.client.list_messages(**wanted)

    async def conversation(self, conversation_id: str) -> Conversation:
        """Return a conversation, by its id or that of a message of it; raises ``MessageNotFound``."""
        async with self.limited():
            return await self.client.conversation(conversation_id)

    async def dead_messages(self, *, limit: int, cursor: str | None) -> DeadMessagePage:
        """Return a page of undelivered messages, the latest first; raises ``CursorInvalid``."""
        async with self.reading() as (redis, keys):
            return await get_dead_message_page(redis, keys, limit=limit, cursor=cursor)

    async def replay_message(self, message_id: str, ttl: float | None, wait_s: float) -> bool:
        """Deliver a dead message, as ``Client.admin.replay``; False: no router has answered yet."""
        return await self._control(
            wait_s, lambda: self.client.admin.replay("message", message_id, ttl=ttl, timeout=wait_s)
        )

    async def purge_messages(self, message_id: str | None, older_than: float | None, wait_s: float) -> int | None:
        """Delete dead messages, as ``Client.admin.purge``; None: no router has answered yet, and some may be left."""
        admin = self.client.admin
        return await self._ask(
            wait_s,
            lambda: admin.purge("message", message_id, older_than=older_than, timeout=wait_s),
            steps=3,
        )

    async def links(self, agent_id: str) -> Links:
        """Return the links of an agent; raises ``AgentNotFound``."""
        async with self.limited():
            await self.client.agent(agent_id)
            return await self.client.links(agent_id)

    async def list_links(self) -> list[Links]:
        """Return the links of all agents that have one."""
        async with self.limited():
            return await self.client.list_links()

    async def link(self, agent_id: str, peer_id: str, wait_s: float) -> bool:
        """Link two agents, as ``Client.admin.link``; False: no router has answered yet."""
        return await self._control(wait_s, lambda: self.client.admin.link(agent_id, peer_id, timeout=wait_s))

    async def unlink(self, agent_id: str, peer_id: str, wait_s: float) -> bool:
        """End the link of two agents, as ``Client.admin.unlink``; False: no router has answered yet."""
        return await self._control(wait_s, lambda: self.client.admin.unlink(agent_id, peer_id, timeout=wait_s))

    async def set_master(self, agent_id: str, master_id: str | None, wait_s: float) -> bool:
        """Set the master of an agent, as ``Client.admin.set_master``; False: no router has answered yet."""
        return await self._control(wait_s, lambda: self.client.admin.set_master(agent_id, master_id, timeout=wait_s))

    async def _control(self, wait_s: float, request: Callable[[], Awaitable[object]], advice: str = SAFE) -> bool:
        """Make a request whose answer has no data, as ``_ask``; return False if no worker has answered it yet."""

        async def is_answered() -> bool:
            await request()
            return True

        return bool(await self._ask(wait_s, is_answered, advice))

    async def _ask(
        self, wait_s: float, request: Callable[[], Awaitable[T]], advice: str = SAFE, *, steps: int = 1
    ) -> T | None:
        """Make a request; return the answer of a worker, or None: none has answered yet, or the caller does not wait.

        What a caller gets that does not wait does not depend on how quick the worker is.

        Args:
            wait_s: seconds to wait for each answer.
            request: makes it, and raises ``ResultTimeout`` without an answer.
            advice: how to go on, the end of an error.
            steps: answers that it may wait for.
        """
        async with self.limited(steps * wait_s, advice):
            try:
                answer = await request()
            except ResultTimeout:
                return None
            return answer if wait_s > 0 else None

    async def counters(self) -> dict[str, int]:
        """Return every counter of the cell."""
        async with self.limited():
            return await self.client.counters()

    async def explain(self, task_id: str) -> Explanation:
        """Return why a task waits, or why it went to its agent; raises ``TaskNotFound``."""
        async with self.limited():
            return await self.client.explain(task_id)

    async def backlog(self, max_pools: int) -> Backlog:
        """Return the pools in which tasks wait, and why."""
        async with self.limited():
            return await self.client.backlog(max_pools)

    async def rules(self) -> PlacementRules:
        """Return the strategy and the modifiers, of the cell and of task types, and who changed them last."""
        async with self.limited():
            admin = self.client.admin
            live = {setting.name: setting for setting in await admin.live_settings() if setting.name in PER_TYPE}
            return PlacementRules(live, await admin.type_settings(), await admin.setting_changes())

    async def setting_changes(self, limit: int) -> list[SettingChange]:
        """Return the latest changes of live settings, the latest first."""
        async with self.limited():
            return await self.client.admin.setting_changes(limit)

    async def change_rules(
        self,
        changes: Mapping[str, str | bool | None],
        task_type: str | None,
        *,
        by: str,
        reason: str | None,
        wait_s: float,
    ) -> Appended:
        """Set strategy and modifiers, of the cell or of a task type; None resets one.

        Args:
            changes: name -> value.
            task_type: only for tasks of this type.
            by: who makes the change, for the log.
            reason: why, for the audit.
            wait_s: seconds to wait for the distributor, for all changes together.

        Raises:
            RequestError: the distributors refuse a value.
        """
        deadline = monotonic() + wait_s
        answered = True
        async with self.limited(wait_s, SAFE):
            for name, value in changes.items():
                left_s = max(0.0, deadline - monotonic())
                try:
                    await self.client.admin.set_setting(
                        name, value, task_type=task_type, by=by, reason=reason, timeout=left_s
                    )
                except ResultTimeout:
                    answered = False
                except ConfigError as error:
                    raise RequestError("setting_refused", str(error)) from None
            return Appended(iso(await self.client.server_time()), answered)

    async def open_logs(self, start: str | Position | None, count: int) -> LogReader:
        """Return a reader of the logs.

        Args:
            start: None: from now on; an entry id: after it, in all logs; else a position.
            count: entries of each log in one read.
        """
        async with self.limited():
            return await self.client.connection.open_logs(start, count)

    async def audit(self, *, limit: int, cursor: str | None) -> AuditPage:
        """Return what operators have changed, as ``Admin.audit``; raises ``CursorInvalid``."""
        async with self.limited():
            return await self.client.admin.audit(limit=limit, cursor=cursor)

    async def create_key(
        self, role: str, agent_id: str | None, name: str, lifetime: float | None
    ) -> tuple[str, ApiKey]:
        """Make an API key, as ``Admin.create_key``."""
        wait_s = self.settings.gateway_wait_s
        advice = "; a key that nobody knows may exist, `coord keys list` shows it and `coord keys revoke` ends it"
        async with self.limited(wait_s, f"{advice}; repeat the request for another one"):
            try:
                return await self.client.admin.create_key(
                    role, agent_id=agent_id, name=name, lifetime=lifetime, timeout=wait_s
                )
            except ResultTimeout as error:
                raise ResultTimeout(f"{error}{advice}; repeat the request for another one") from None

    async def revoke_key(self, key: str) -> str:
        """Revoke an API key, by its id or the key itself; return its id. Raises ``ApiKeyNotFound``."""
        wait_s = self.settings.gateway_wait_s
        async with self.limited(wait_s, SAFE):
            try:
                await self.client.admin.revoke_key(key, timeout=wait_s)
            except ResultTimeout as error:
                raise ResultTimeout(f"{error}{SAFE}") from None
        return id_of_key(key) or key

    async def workers(self) -> dict[str, int]:
        """Return the number of workers of each kind; raises ``ServerUnavailable`` and the like."""
        return await self.client.count_workers()

    async def stats(self) -> CellStatistics:
        """Return the statistics of the cell."""
        async with self.limited():
            return await self.client.stats()

    async def agent_weights(self) -> dict[str, float]:
        """Return the weight of each agent that may get work, if it is not 1."""
        async with self.limited():
            found = await self.client.agent_weights()
        return {agent_id: weight for agent_id, weight in sorted(found.items()) if weight != 1}

    async def system(self, *, checks_ledger: bool = False) -> Snapshot:
        """Return a snapshot of the cell for ``/system``; the check of the ledger reads every record."""
        async with self.limited(LEDGER_S if checks_ledger else 0):
            connection = self.client.connection
            with reading():
                return await read_snapshot(
                    connection.redis,
                    connection.keys,
                    connection.settings,
                    full=False,
                    checks_ledger=checks_ledger,
                )

    async def write_refusal(self) -> str:
        """Return why Redis refuses writes, or ''; raises ``ServerUnavailable`` and the like."""
        return await self.client.write_refusal()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[tuple[Redis, Keys]]:
        """Give the connection of the client and its keys; every failure of Redis raises a ``CoordError``."""
        connection = self.client.connection
        async with self.limited():
            with reading():
                yield connection.redis, connection.keys

    def limited(self, wait_s: float = 0, advice: str = "") -> RedisLimit:
        """Turn every failure and timeout of Redis into ``ServerUnavailable``."""
        return RedisLimit(self.deadlines, self.settings.gateway_redis_s + wait_s, advice)

    async def _open(self, failed: Callable[[CoordError], None]) -> None:
        logged = ""
        notice = WaitNotice()
        while True:
            client = Client(settings=self.settings, reach_s=OPEN_S)
            try:
                await client.open()
            except (ServerUnavailable, ServerFull) as error:
                notice.log(error)
            except CoordError as error:
                failed(error)
                return
            except Exception as error:
                # No error may leave the gateway without a client forever.
                if repr(error) != logged:
                    logged = repr(error)
                    log.exception("background.failed", task="gateway.open")
            else:
                self._client = client
                log.info("redis.found")
                return
            await asyncio.sleep(OPEN_AGAIN_S)


def _is_not_taken(outcome: Appended | CoordError) -> bool:
    return isinstance(outcome, ServerUnavailable | ServerFull)


async def _is_accepted(handle: TaskHandle | FactHandle, wait_s: float) -> bool:
    try:
        await handle.accepted(wait_s)
    except ResultTimeout:
        return False
    return True
