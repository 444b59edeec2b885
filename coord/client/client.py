"""A client: submits tasks, waits for their results, cancels them, sends messages and reads records.

Every change is a fact that the client appends. Its connection repeats a command if the reply of Redis was lost, so a
fact may be appended twice. That is harmless: because of the id of the task or message, the second one changes nothing.

Errors of Redis become errors of ``coord.errors``, for reads and for writes (``coord.connection``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, aclosing
from types import TracebackType
from typing import Any, Self, Unpack

from msgspec.structs import replace

from coord import queries
from coord.agent_token import AgentToken
from coord.arguments import as_list, as_seconds
from coord.client.admin import Admin
from coord.client.agents import AgentReads
from coord.client.broadcasts import BroadcastOptions, BroadcastReceipt, broadcast_append, broadcast_receipt
from coord.client.connection import REACH_S, ClientConnection
from coord.client.events import follow_events
from coord.client.handle import CANCEL_ANSWER_S, CancelAnswer, TaskHandle, cancel_task, read_task
from coord.client.outcomes import closed
from coord.client.receipts import RECEIPT_S, Receipt, message_fields, receipt_of
from coord.client.requests import END_S, REPLY_S, request_append, unended, value_of
from coord.client.submission import (
    PriorityName,
    TaskOptions,
    TaskSpec,
    group_tasks,
    message_append,
    spec_of,
    task_append,
)
from coord.config import Settings
from coord.connection import reading
from coord.errors import (
    CoordError,
    EntryNotFound,
    FactInvalid,
    MessageNotFound,
    ResultTimeout,
    TaskNotFound,
)
from coord.models.cell import MemoryUse
from coord.models.dead_letters import DeadEntry, DeadKind, DeadLetter
from coord.models.events import Event
from coord.models.explanations import Explanation, WaitingCounts
from coord.models.ids import check_id
from coord.models.links import Links
from coord.models.messages import (
    INQUIRIES,
    Conversation,
    InquiryName,
    MessageRecord,
    MessageStatus,
    MessageType,
    MessageTypeName,
    Protocol,
    ProtocolName,
)
from coord.models.plans import Plans
from coord.models.tasks import Priority, TaskRecord, TaskState, TaskSubmitted
from coord.models.traces import Trace
from coord.streams import Append
from coord.suggestions import not_one_of

#: Maximum number of tasks appended in one round trip …
BATCH = 500
#: … and bytes of their payloads, about.
BATCH_BYTES = 1024 * 1024
#: Seconds that an agent has to answer a ping.
PING_S = 5.0


class Client(AgentReads):
    """One connection to a cell for any number of coroutines; use it as ``async with Client() as client``.

    Operations of operators (``drain``, ``retry``, ``set_strategy`` and so on) are in ``client.admin``.

    Args:
        url: URL of Redis (``redis://``, ``rediss://`` or ``unix://``); default: see ``coord.connection.locate``.
        settings: all settings; default: from the environment.
        reach_s: seconds that ``open`` waits for a server that does not answer or is loading its data.

    Raises:
        ConfigError: an argument has the wrong type.
    """

    def __init__(self, url: str | None = None, *, settings: Settings | None = None, reach_s: float = REACH_S) -> None:
        self.connection = ClientConnection(url, settings=settings, reach_s=reach_s)
        self._admin = Admin(self.connection)
        self._token: AgentToken | None = None  # read when the first message needs it

    async def open(self) -> None:
        """Connect; ``async with`` does this.

        Raises:
            ServerUnavailable: no Redis answers within ``reach_s`` seconds.
            ConfigError: the server refuses the credentials, or its certificate is not trusted; or the client is open
                in another event loop.
            ServerUnfit: the server refuses a PING permanently, for example to a user without the permission.
        """
        await self.connection.open()

    async def close(self) -> None:
        """Disconnect. Coroutines that wait get a ``ConfigError``; submitted tasks continue."""
        await self.connection.close()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def settings(self) -> Settings:
        """The settings of this client; after ``open`` with the URL and namespace that it uses."""
        return self.connection.settings

    @property
    def admin(self) -> Admin:
        """The operations of operators."""
        return self._admin

    @property
    def caller(self) -> str:
        """The id under which this client receives answers; a new one each time that it is opened again."""
        return self.connection.caller

    # Tasks.

    async def submit(self, task_type: str, payload: Any = None, **options: Unpack[TaskOptions]) -> TaskHandle:
        """Submit a task; returns when Redis has it.

        Args:
            task_type: type of the task. Without ``requirements`` or ``capabilities`` the agent must have the capability
                of this name, which every agent has that has a handler for it.
            payload: any value that msgspec can encode as JSON; default ``{}``.
            options: the other fields of ``TaskSpec``: ``task_id``, ``priority``, ``capabilities``, ``requirements``,
                ``timeout``, ``deadline``, ``delay``, ``run_at``, ``retry``, ``strategy``, ``location``,
                ``affinity_key``, ``notify``.

        Raises:
            FactInvalid, IdInvalid, FactTooLarge: it does not fit; nothing was appended.
            ServerUnavailable, ServerFull: Redis does not answer, or is out of memory.
        """
        spec = spec_of({"task_type": task_type, "payload": {} if payload is None else payload, **options})
        return (await self._submit([task_append(spec, self.caller, self.settings.max_entry_bytes)]))[0]

    async def submit_many(self, specs: Iterable[TaskSpec | Mapping[str, Any]]) -> list[TaskHandle]:
        """Submit many tasks, in round trips of limited size.

        Args:
            specs: each a ``TaskSpec`` or a mapping of its fields.

        Raises: as ``submit``. If one task does not fit, none is submitted. If Redis fails in between, some may be
            submitted; submitting all again with the same task ids is safe.
        """
        if not isinstance(specs, Iterable):
            raise FactInvalid(f"specs: expected tasks, each a TaskSpec or a mapping, not {type(specs).__name__}")
        batches: list[list[Append]] = []
        size = BATCH_BYTES
        for number, spec in enumerate(specs):
            try:
                append = task_append(spec_of(spec), self.caller, self.settings.max_entry_bytes)
            except CoordError as error:
                raise type(error)(f"specs[{number}]: {error}") from None
            if size >= BATCH_BYTES or len(batches[-1]) >= BATCH:
                if batches:
                    await asyncio.sleep(0)  # let other coroutines run
                batches.append([])
                size = 0
            batches[-1].append(append)
            size += len(append.data or b"")
        return [handle for batch in batches for handle in await self._submit(batch)]

    async def _submit(self, batch: Sequence[Append]) -> list[TaskHandle]:
        watcher = self.connection.watcher
        # Watched before they are appended: an outcome may arrive before the reply to the append.
        facts = [append.fact for append in batch if isinstance(append.fact, TaskSubmitted)]
        watches = watcher.watch_submissions(facts)
        entries = group_tasks(batch, self.settings.max_entry_bytes)
        try:
            entry_ids = await self.connection.append([entry.append for entry in entries])
        except BaseException:
            for watch in watches:
                watch.entry = ""
            raise
        handles: list[TaskHandle] = []
        rest = iter(watches)
        for entry, entry_id in zip(entries, entry_ids, strict=True):
            group = [next(rest) for _ in range(entry.tasks)]
            stream = entry.append.stream
            answers = watcher.expect_answers((stream, entry_id), [watch.task_id for watch in group])
            for watch, answer in zip(group, answers, strict=True):
                watch.stream, watch.entry = stream, entry_id
                handles.append(TaskHandle(self.connection, watch, entry_id, answer))
        return handles

    def handle(self, task_id: str) -> TaskHandle:
        """Return a handle of a task that was submitted before, by any client; its record is read for its outcome."""
        watch = self.connection.watcher.watch(check_id(task_id, "task_id"))
        return TaskHandle(self.connection, watch, "", None)

    async def as_completed(
        self, handles: Iterable[TaskHandle], timeout: float | None = None
    ) -> AsyncIterator[TaskHandle]:
        """Yield the handles in the order in which their tasks end, with whatever outcome.

        Args:
            handles: of this client.
            timeout: seconds to wait for the next one; None: no limit.

        Raises:
            ResultTimeout: no task ended within ``timeout`` seconds after the one before.
            ConfigError: the client was closed meanwhile.
        """
        waiting = dict.fromkeys(as_list(handles, TaskHandle, "handles"))
        timeout = None if timeout is None else as_seconds(timeout, "timeout")
        ready: asyncio.Queue[TaskHandle] = asyncio.Queue()
        ended: set[TaskHandle] = set()

        def add(handle: TaskHandle) -> None:
            if handle not in ended:
                ended.add(handle)
                ready.put_nowait(handle)

        with ExitStack() as stack:
            for handle in waiting:
                stack.enter_context(handle.notifying(add))
            for left in range(len(waiting), 0, -1):
                try:
                    handle = await asyncio.wait_for(ready.get(), timeout)
                except TimeoutError:
                    raise ResultTimeout(f"none of {left} tasks ended within {timeout:g} s; they go on") from None
                if handle.outcome is None:
                    raise closed()
                yield handle

    async def task(self, task_id: str) -> TaskRecord:
        """Read the record of a task; raises ``TaskNotFound``."""
        return await read_task(self.connection, task_id)

    async def tasks(self, task_ids: Iterable[str]) -> list[TaskRecord | None]:
        """Read the records of several tasks, in order; None for a task without a record.

        All are read in one round trip, so ask for some hundred at a time.
        """
        ids = [check_id(task_id, "task_id") for task_id in task_ids]
        with reading():
            return await queries.get_tasks(self.connection.redis, self.connection.keys, ids)

    async def list_tasks(
        self,
        *,
        states: Collection[TaskState] = (),
        task_type: str | None = None,
        agent_id: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> queries.TaskPage:
        """List tasks: those that agents hold, those that wait, those that failed, and the others that ended.

        The records have no payload, result, progress and attempts. A task that stays in its state is listed once; a
        task that moves meanwhile may be listed twice or not at all.

        Args:
            states: only these; empty: all.
            task_type: only this type.
            agent_id: only tasks that this agent holds or has ended.
            limit: maximum number of tasks, at least 1.
            cursor: continue after a page, from its ``next``.

        Raises:
            CursorInvalid: the cursor is not from a list of tasks.
        """
        found: list[TaskRecord] = []
        while True:
            with reading():
                page = await queries.list_tasks(
                    self.connection.redis,
                    self.connection.keys,
                    states=states,
                    task_type=task_type,
                    agent_id=agent_id,
                    limit=limit - len(found),
                    cursor=cursor,
                )
            found += page.tasks
            cursor = page.next
            if cursor is None or len(found) >= limit:
                return queries.TaskPage(tuple(found), cursor)

    async def count_tasks(self, states: Collection[TaskState] = ()) -> int | None:
        """Count the tasks whose records are kept, in constant time.

        Args:
            states: only these; empty: all.

        Returns: the number; None if it is not known without reading the tasks: completed, cancelled and expired
            tasks are only counted together.
        """
        with reading():
            return await queries.count_tasks(self.connection.redis, self.connection.keys, states)

    async def trace(self, begin: int, end: int | None = None) -> Trace:
        """Return what happened in the cell for a while, for a simulation: completed tasks, and the agents of the cell.

        Args:
            begin: the beginning, in ms since 1970 on the server's clock.
            end: the end; default: now.
        """
        connection = self.connection
        with reading():
            until = end if end is not None else await queries.get_time(connection.redis)
            return await queries.export_trace(connection.redis, connection.keys, connection.settings, begin, until)

    async def plans(self, begin: int, end: int | None = None) -> Plans:
        """Return what distributors recorded of their plans for a while, while the setting ``record_plans`` was on.

        Args:
            begin: the beginning, in ms since 1970 on the server's clock.
            end: the end; default: now.
        """
        connection = self.connection
        with reading():
            until = end if end is not None else await queries.get_time(connection.redis)
            return await queries.export_plans(connection.redis, connection.keys, begin, until)

    async def explain(self, task_id: str) -> Explanation:
        """Explain why a task waits, or why it went to its agent.

        A waiting task has the reason, the number of agents that fail each requirement, the agents that lack least, its
        position in its pool, and an estimate of its start if its pool has a recent rate. The command reads the whole
        fleet: with 10,000 agents it takes a fraction of a second.

        Args:
            task_id: id of the task.

        Returns: the explanation; ``waiting`` is None unless the task waits, ``placed`` is None unless an agent has it
            or had it at its end.

        Raises:
            TaskNotFound: there is no such task, or its submission has not been handled yet.
        """
        with reading():
            found = await queries.explain_task(
                self.connection.redis, self.connection.keys, self.connection.settings, check_id(task_id, "task_id")
            )
        if found is None:
            raise TaskNotFound(f"Task '{task_id}' not found")
        return found

    async def cancel(self, task_id: str, reason: str = "", *, timeout: float = CANCEL_ANSWER_S) -> CancelAnswer:
        """Request that a task is cancelled.

        Args:
            task_id: id of the task.
            reason: sent to the agent of the task and kept in its record; at most 4,096 characters.
            timeout: seconds to wait for the answer of a distributor.

        Returns:
            ``accepted``: it is cancelled, or its agent was asked to stop, and it is cancelled regardless if the agent
            does not;
            ``pending``: its submission has not been handled yet; it is cancelled when it is.

        Raises:
            TaskNotFound: there is no such task.
            TaskAlreadyFinished: it has another outcome.
            ResultTimeout: no distributor answered within ``timeout`` seconds; the request waits for one.
        """
        return await cancel_task(self.connection, task_id, reason, timeout=timeout)

    # Messages.

    async def send(
        self,
        receiver_id: str,
        payload: Any = None,
        *,
        sender_id: str | None = None,
        message_type: MessageTypeName | MessageType = MessageType.DIRECT,
        protocol: ProtocolName | Protocol | None = None,
        priority: PriorityName | Priority = Priority.NORMAL,
        ttl: float | None = None,
        correlation_id: str | None = None,
        reply_to: str | None = None,
        message_id: str | None = None,
        traceparent: str | None = None,
        wait: bool = True,
        token: str | None = None,
        timeout: float = RECEIPT_S,
    ) -> Receipt:
        """Send a message to an agent; returns when it is in the inbox of the agent.

        Args:
            receiver_id: id of the agent; with the protocol ``hierarchical`` also ``subordinates``: all agents of which
                the sender is the master.
            payload: any value that msgspec can encode as JSON.
            sender_id: id shown to the receiver; default: this client's caller id. To send as an agent needs its token,
                where ``COORD_REQUIRE_TOKENS`` is set.
            message_type: shown to the receiver: ``direct``, ``coordination``, ``consensus`` and so on.
            protocol: the rule that the message must meet: ``direct``, ``peer_to_peer`` (along an accepted link) or
                ``hierarchical`` (to the master, a subordinate or all of them); default: the one that the message type
                names, otherwise ``direct``.
            priority: ``urgent``, ``critical``, ``high``, ``normal`` or ``low``; urgent and critical share a lane.
            ttl: seconds to live; an expired message is not handled. Default: that of the routers.
            correlation_id: id of the conversation.
            reply_to: id of the message that this one answers.
            message_id: default: a new UUID; the same id with the same content is delivered once.
            traceparent: its place in a distributed trace; default: that of the message or task whose handler sends it.
            wait: False returns when Redis has the message; whether it was delivered is in its record.
            token: of the agent ``sender_id``; default: ``COORD_AGENT_TOKEN`` or ``COORD_AGENT_TOKEN_FILE``.
            timeout: seconds to wait for a router.

        Returns: to whom the message went, with the state of each receiver and the number of entries before the message
            in its inbox.

        Raises:
            AgentNotFound: there is no such receiver.
            AgentLeft: the receiver has left.
            MessageUndeliverable: its inbox is full.
            NotLinked, NotInHierarchy, NoSubordinates: its protocol does not allow it.
            MessageExpired: its time to live passed before it was delivered.
            TokenMissing, TokenInvalid: the sender is an agent, and this is not its token.
            HopLimitReached, ConversationFull: it goes beyond a limit of its conversation.
            IdConflict: the id was used before with other content.
            ResultTimeout: no router answered within ``timeout`` seconds; the message waits for one.
            FactInvalid, IdInvalid, FactTooLarge: it does not fit; nothing was sent.
        """
        timeout = as_seconds(timeout, "timeout")
        fields = message_fields(
            self.caller if sender_id is None else sender_id,
            receiver_id,
            payload,
            message_type=message_type,
            protocol=protocol,
            ttl=ttl,
            correlation_id=correlation_id,
            reply_to=reply_to,
            message_id=message_id,
            traceparent=traceparent,
            receipt=wait,
        )
        append = message_append(fields, priority, self.caller, self.settings.max_entry_bytes)
        if sender_id is not None or token is not None:
            append = replace(append, token=self._token_of_sender(token))
        if not wait:
            (entry_id,) = await self.connection.append([append])
            return receipt_of(fields, entry_id)
        return receipt_of(fields, *await self.connection.request(append, timeout, "router", "message"))

    def _token_of_sender(self, token: str | None) -> str:
        """Return the token to send with a message; the one of the settings unless ``token`` is given."""
        if token is not None:
            return AgentToken.of(self.settings, token).current()
        if self._token is None:
            self._token = AgentToken.of(self.settings)
        return self._token.current()

    async def broadcast(
        self,
        payload: Any = None,
        *,
        sender_id: str | None = None,
        token: str | None = None,
        timeout: float = RECEIPT_S,
        **options: Unpack[BroadcastOptions],
    ) -> BroadcastReceipt:
        """Send a message to every agent that matches; returns when it has been delivered to all of them.

        An agent matches if it has all properties that are given, at the moment when the router handles the broadcast;
        without any, every active agent matches. The sender never gets it. For an agent of which the inbox is full, it
        becomes a dead letter.

        Args:
            payload: any value that msgspec can encode as JSON.
            sender_id: id shown to the receivers; default: this client's caller id. To send as an agent needs its token,
                where ``COORD_REQUIRE_TOKENS`` is set.
            token: as for ``send``.
            timeout: seconds to wait for the router.
            options: ``agent_type``, ``capabilities``, ``services``, ``tags`` and ``labels`` that the agents must have
                (all of them), and ``statuses`` of which they must have one (default: ``active``); ``message_type``:
                ``broadcast`` or a topic (``coordination``, ``status_update``, ``heartbeat``, ``discovery``,
                ``consensus``); ``priority``, ``ttl``, ``correlation_id`` and ``message_id`` as in ``send``.

        Raises:
            MessageExpired: its time to live passed before the recipients were chosen.
            TokenMissing, TokenInvalid: the sender is an agent, and this is not its token.
            IdConflict: the id was used before with other content.
            ResultTimeout: the router did not answer within ``timeout`` seconds; it goes on.
            FactInvalid, IdInvalid, FactTooLarge: it does not fit; nothing was sent.
        """
        timeout = as_seconds(timeout, "timeout")
        sender = self.caller if sender_id is None else sender_id
        append, message_id = broadcast_append(payload, options, sender, self.caller, self.settings.max_entry_bytes)
        if sender_id is not None or token is not None:
            append = replace(append, token=self._token_of_sender(token))
        entry_id, answer = await self.connection.request(append, timeout, "router", "broadcast")
        return broadcast_receipt(message_id, entry_id, answer)

    async def request(
        self,
        receiver_id: str,
        payload: Any = None,
        *,
        timeout: float = REPLY_S,
        message_type: str = MessageType.DIRECT,
        priority: PriorityName | Priority = Priority.NORMAL,
        correlation_id: str | None = None,
        traceparent: str | None = None,
    ) -> Any:
        """Send a request to an agent and return the payload of its reply.

        The coordinator keeps the deadline: it ends the request also if the agent is gone.

        Args:
            receiver_id: id of the agent, or ``coordinator`` for a message of type ``discovery``.
            payload: any value that msgspec can encode as JSON.
            timeout: seconds to wait for the reply.
            message_type: ``direct``, or another ``coord.models.messages.MessageType``.
            priority: ``urgent``, ``critical``, ``high``, ``normal`` or ``low``; urgent and critical share a lane.
            correlation_id: id of the conversation; default: that of the message whose handler sends the request, or its
                own id.
            traceparent: its place in a distributed trace; default: that of what the handler works on.

        Raises:
            RequestTimedOut: the agent did not reply in time; has its last known state.
            RequestFailed: the agent replied that the request failed.
            AgentNotFound, MessageUndeliverable, MessageExpired, HopLimitReached, ConversationFull: it was
                not delivered.
            ResultTimeout: no router answered.
            FactInvalid, IdInvalid, FactTooLarge: it does not fit; nothing was sent.
        """
        append = request_append(
            self.caller,
            receiver_id,
            payload,
            timeout=timeout,
            message_type=message_type,
            priority=priority,
            correlation_id=correlation_id,
            traceparent=traceparent,
            caller=self.caller,
            max_bytes=self.settings.max_entry_bytes,
        )
        limit_s = timeout + END_S
        with self.connection.watcher.expecting_reply(append.fact.message_id) as reply:  # type: ignore[attr-defined]
            _, answer = await self.connection.request(append, min(limit_s, RECEIPT_S), "router", "request")
            if not answer.ok:
                raise answer.error
            try:
                message = await asyncio.wait_for(reply.future(), limit_s)
            except TimeoutError:
                raise ResultTimeout(unended(receiver_id, timeout)) from None
        return value_of(message)

    async def ping(self, agent_id: str, op: InquiryName = "ping", *, timeout: float = PING_S) -> dict[str, Any]:
        """Ask an agent whether it answers; its SDK does, without a handler.

        Args:
            agent_id: id of the agent.
            op: ``ping``; ``info``: what it is; ``stats``: what it does now.
            timeout: seconds to wait for the reply.

        Returns: the reply.

        Raises: as ``request``.
        """
        if op not in INQUIRIES:
            raise FactInvalid(not_one_of("op", op, INQUIRIES))
        reply = await self.request(
            agent_id, {"op": op}, timeout=timeout, message_type=MessageType.HEARTBEAT, priority=Priority.CRITICAL
        )
        return reply if isinstance(reply, dict) else {"reply": reply}

    async def conversation(self, conversation_id: str) -> Conversation:
        """Read the messages of a conversation that are still kept, without their payloads; raises ``MessageNotFound``.

        Args:
            conversation_id: its ``correlation_id``; or the id of one of its messages.
        """
        with reading():
            found = await queries.get_conversation(
                self.connection.redis, self.connection.keys, check_id(conversation_id, "conversation_id")
            )
        if found is None:
            raise MessageNotFound(f"Conversation '{conversation_id}' not found")
        return found

    async def message(self, message_id: str) -> MessageRecord:
        """Read the record of a message; raises ``MessageNotFound``."""
        with reading():
            record = await queries.get_message(
                self.connection.redis, self.connection.keys, check_id(message_id, "message_id")
            )
        if record is None:
            raise MessageNotFound(f"Message '{message_id}' not found")
        return record

    async def message_recipients(
        self, message_id: str, *, limit: int = 100, cursor: str | None = None
    ) -> queries.RecipientPage:
        """List what became of a message for each of its recipients, sorted by agent.

        Args:
            message_id: id of the message.
            limit: maximum number of recipients, at least 1.
            cursor: continue after a page, from its ``next``.

        Raises:
            MessageNotFound: there is no such message, or its record was removed.
            CursorInvalid: the cursor is not from a list of recipients.
        """
        with reading():
            page = await queries.list_recipients(
                self.connection.redis,
                self.connection.keys,
                check_id(message_id, "message_id"),
                limit=limit,
                cursor=cursor,
            )
        if page is None:
            raise MessageNotFound(f"Message '{message_id}' not found")
        return page

    async def list_messages(
        self,
        *,
        agent_id: str | None = None,
        conversation_id: str | None = None,
        status: MessageStatus | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> queries.MessagePage:
        """List messages, the newest first, without their payloads: those whose records are still kept.

        Args:
            agent_id: only messages that this agent sent or received; of these the newest 1,000 are listed.
            conversation_id: only messages with this correlation id, and the message with this id.
            status: only this status.
            limit: maximum number of messages, at least 1.
            cursor: continue after a page, from its ``next``.

        Raises:
            CursorInvalid: the cursor is not from a list of messages.
        """
        found: list[MessageRecord] = []
        while True:
            with reading():
                page = await queries.list_messages(
                    self.connection.redis,
                    self.connection.keys,
                    agent_id=agent_id,
                    conversation_id=conversation_id,
                    status=status,
                    limit=limit - len(found),
                    cursor=cursor,
                )
            found += page.messages
            cursor = page.next
            if cursor is None or len(found) >= limit:
                return queries.MessagePage(tuple(found), cursor)

    # Links.

    async def links(self, agent_id: str) -> Links:
        """Read the links of an agent, its master and its subordinates; all empty if it has none."""
        with reading():
            return await queries.get_links(self.connection.redis, self.connection.keys, check_id(agent_id, "agent_id"))

    async def list_links(self) -> list[Links]:
        """Read the links of all agents that have a link, a master or a subordinate, by id."""
        with reading():
            return await queries.list_links(self.connection.redis, self.connection.keys)

    # Dead letters.

    async def dead_letters(self, kind: DeadKind, *, limit: int = 100) -> list[DeadLetter]:
        """List dead letters of a kind, the newest first.

        Args:
            kind: ``task``, ``message`` or ``entry``.
            limit: maximum number, at least 1.
        """
        readers = {
            "task": queries.list_dead_tasks,
            "message": queries.list_dead_messages,
            "entry": queries.list_dead_entries,
        }
        if kind not in readers:
            raise FactInvalid(f"kind: expected one of {', '.join(readers)}, not {kind!r}")
        with reading():
            return await readers[kind](self.connection.redis, self.connection.keys, limit)

    async def count_dead_letters(self) -> dict[str, int]:
        """Return the number of dead letters of each kind."""
        with reading():
            return await queries.count_dead_letters(self.connection.redis, self.connection.keys)

    async def dead_entry(self, entry_id: str) -> DeadEntry:
        """Read an entry of ``dead:in``; raises ``EntryNotFound``."""
        with reading():
            entry = await queries.get_dead_entry(self.connection.redis, self.connection.keys, entry_id)
        if entry is None:
            raise EntryNotFound(f"entry '{entry_id}' is not in dead:in")
        return entry

    # The cell.

    async def backlog(self, max_pools: int | None = None) -> queries.Backlog:
        """Count the tasks that wait, by priority and by pool.

        Args:
            max_pools: maximum number of pools to list, first those that no agent may serve, then those that are placed
                next; None: all. With 0, no agent is read.
        """
        with reading():
            return await queries.get_backlog(
                self.connection.redis, self.connection.keys, max_pools, self.connection.settings
            )

    async def waiting_counts(self) -> WaitingCounts | None:
        """Return how many tasks wait for each reason; one round trip, whatever the number of pools.

        A distributor counts them about once a second; with very many pools less often, and ``age`` says when.

        Returns: None if no distributor has counted them in the last minutes.
        """
        with reading():
            return await queries.get_waiting_counts(self.connection.redis, self.connection.keys)

    async def workers(self) -> queries.WorkersSnapshot:
        """Return the workers that are present, and the length and age of every stream that they read."""
        with reading():
            return await queries.list_workers(self.connection.redis, self.connection.keys)

    async def count_workers(self) -> dict[str, int]:
        """Return how many workers of each kind are present; one round trip."""
        ttl_ms = int(self.settings.presence_ttl_s * 1000)
        with reading():
            return await queries.count_workers(self.connection.redis, self.connection.keys, ttl_ms)

    async def server_time(self) -> int:
        """Return the time of the server, in milliseconds since 1970: the clock that every record uses."""
        with reading():
            return await queries.get_time(self.connection.redis)

    async def counters(self) -> dict[str, int]:
        """Return every counter; ``{state}:{priority}`` is the number of tasks of a priority in a state."""
        with reading():
            return await queries.get_counters(self.connection.redis, self.connection.keys)

    async def write_refusal(self) -> str:
        """Return why Redis refuses every write at the moment, or ''."""
        with reading():
            return await queries.get_write_refusal(self.connection.redis)

    async def is_empty(self) -> bool:
        """Return True if no worker has started in the namespace and nothing was submitted to it; one round trip."""
        with reading():
            return await queries.is_empty_cell(self.connection.redis, self.connection.keys)

    async def memory_use(self) -> MemoryUse:
        """Measure the memory of the cell by kind of key; reads a sample of the keyspace."""
        with reading():
            return await queries.measure_memory(self.connection.redis, self.connection.keys)

    async def events(
        self,
        *,
        since: str | None = None,
        follow: bool = True,
        on_outage: Callable[[str], None] = lambda _message: None,
    ) -> AsyncGenerator[Event]:
        """Iterate over the events of the cell, in order, also across outages of Redis.

        Use ``contextlib.aclosing`` if you leave the loop early.

        Args:
            since: id of the entry after which to begin (``0-0``: the oldest that is kept); None: from now on.
            follow: continue for ever; if False, end with the events until now.
            on_outage: called with a message when Redis is unavailable and when it is back.

        Raises:
            ServerUnavailable: Redis is unavailable at the beginning, or at any time without ``follow``.
        """
        following = follow_events(
            self.connection.redis,
            self.connection.keys,
            since=since,
            follow=follow,
            block_ms=self.settings.read_block_ms,
            on_outage=on_outage,
        )
        with reading():
            async with aclosing(following) as events:
                async for event in events:
                    yield event
