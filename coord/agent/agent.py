"""An agent: what it can do, and its life from registration to the last report.

An agent claims tasks by deleting their inbox entries, never runs more than its capacity, repeats its reports until
Redis has them, and reconnects by itself after an outage of Redis without losing the tasks that it runs.
``coord.agent.session`` shows the parts of an agent and how they work together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, TypeVar, Unpack

from coord import spans
from coord.agent.handlers import Handler, check_hook, check_message_handler, read_handler
from coord.agent.links import AgentLinks, LinkRequestHandler
from coord.agent.messages import MessageHandler, MessageHandlers
from coord.agent.outgoing import Outgoing
from coord.agent.run import run
from coord.agent.session import AgentSpec, Session
from coord.agent_token import AgentToken
from coord.arguments import (
    as_dict,
    as_seconds,
    as_words,
    check_connection_options,
    check_count,
    check_finite,
    check_text,
    decode_argument,
    encode_fields,
)
from coord.background import CANCEL_S, cancel_and_wait
from coord.client.broadcasts import BroadcastOptions, BroadcastReceipt, broadcast_append, broadcast_receipt
from coord.client.receipts import RECEIPT_S, Receipt, message_fields, receipt_of
from coord.client.requests import REPLY_S, RequestOptions, request_append
from coord.client.submission import PriorityName, message_append
from coord.config import Settings
from coord.connection import await_server, locate
from coord.errors import ConfigError, FactInvalid, ServerUnavailable
from coord.logs import get_logger
from coord.models.agents import AgentStatus, AgentType, Location
from coord.models.facts import AgentRegistered, check_agent_id
from coord.models.ids import new_id
from coord.models.messages import MessageType, MessageTypeName, Protocol, ProtocolName
from coord.models.tasks import Priority
from coord.program_settings import load_in_program

log = get_logger()

F = TypeVar("F", bound=Callable[..., Any])
Hook: TypeAlias = Callable[[], Awaitable[None]]

#: The names of ``AgentType``.
AgentTypeName: TypeAlias = Literal[
    "coordinator",
    "worker",
    "specialist",
    "monitor",
    "gateway",
    "orchestrator",
    "inference",
    "training",
    "processing",
    "provider",
    "consumer",
    "general",
]

#: Statuses that an agent may report; it leaves with ``stop``.
STATUSES = (AgentStatus.ACTIVE, AgentStatus.BUSY, AgentStatus.MAINTENANCE, AgentStatus.ERROR, AgentStatus.DRAINING)
#: Maximum number of messages, each of another sender, that are handled concurrently.
MESSAGE_CONCURRENCY = 32


class Agent:
    """An agent and its handlers.

    It registers ``capabilities`` and the task type of each of its handlers: a task without requirements needs the
    capability named like its type.

    Args:
        agent_id: 1 to 128 characters of ``A-Z a-z 0-9 . _ @ -``. One process at a time has an id; a newer process takes
            it over, and the older one stops.
        agent_type: ``worker``, ``specialist``, ``inference`` and so on; see ``coord.models.agents.AgentType``.
        capabilities: what the agent can do, in addition to the task types of its handlers; at most 256.
        services: services that it offers; at most 256.
        tags: at most 256.
        labels: at most 64, values up to 256 characters.
        endpoints: name -> address, stored in the record.
        metadata: any JSON object, stored in the record.
        location: ``coord.models.agents.Location``: ``lat`` and ``lon`` in degrees, ``region``, ``zone``.
        version: version of the agent, up to 128 characters. Agents of other versions get tasks whose payload this one
            cannot decode.
        capacity: maximum number of concurrent tasks, 1 to 100,000; default: ``settings.capacity`` (8). Handlers that
            are not async have as many threads.
        weight: share of the tasks compared with other agents; with 0 it gets tasks only when no other agent has room.
        heartbeat_interval: seconds between heartbeats, 0.05 to 86,400; default: ``settings.heartbeat_interval_s`` (5).
            After three missed ones the agent is lost and its tasks are reassigned.
        drain_timeout: seconds that running handlers have to finish at shutdown; default: as long as they take.
        forget_after: seconds until its record is removed when it has left; default: 30 days, or less if the registry's
            ``COORD_DEPARTED_TTL_S`` says so. Set an hour for agents whose ids are generated, such as autoscaled ones.
        message_concurrency: maximum number of messages, each of another sender, that are handled concurrently, 1 to
            10,000; as many replies are handled besides. With 1, messages and replies are handled one by one.
        token: proves that the process may speak for the agent, where ``COORD_REQUIRE_TOKENS`` is set; made by ``coord
            agents enrol``. Default: ``COORD_AGENT_TOKEN``, or the content of the file ``COORD_AGENT_TOKEN_FILE``, which
            is read again when it changes.
        url: URL of Redis; default: see ``coord.connection.locate``.
        settings: default: from the environment.

    Raises:
        IdInvalid: the id does not fit.
        FactInvalid: another argument does not fit; the message names it.
        ConfigError: ``url`` or ``settings`` has the wrong type; or the token does not fit, or its file cannot be read.
    """

    def __init__(
        self,
        agent_id: str,
        *,
        agent_type: AgentTypeName | AgentType = "worker",
        capabilities: Iterable[str] = (),
        services: Iterable[str] = (),
        tags: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        endpoints: Mapping[str, str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        location: Location | None = None,
        version: str = "",
        capacity: int | None = None,
        weight: float = 1.0,
        heartbeat_interval: float | None = None,
        drain_timeout: float | None = None,
        forget_after: float | None = None,
        message_concurrency: int = MESSAGE_CONCURRENCY,
        token: str | None = None,
        url: str | None = None,
        settings: Settings | None = None,
    ) -> None:
        check_connection_options(url, settings)
        self.agent_id = check_agent_id(agent_id)
        self.settings = settings if settings is not None else load_in_program(url)
        self._token = AgentToken.of(self.settings, token)
        self.drain_timeout = None if drain_timeout is None else as_seconds(drain_timeout, "drain_timeout")
        self._forget_after = None if forget_after is None else as_seconds(forget_after, "forget_after")
        check_count(message_concurrency, "message_concurrency", 10_000)
        self._message_concurrency = message_concurrency
        self._held_slots = 0
        self.handlers: dict[str, Handler] = {}
        self.fallback: Handler | None = None
        self.message_handlers: list[MessageHandler] = []
        self.reply_handlers: list[MessageHandler] = []
        self.request_handler: MessageHandler | None = None
        self.link_request_handler: LinkRequestHandler | None = None
        self.links = AgentLinks(agent_id, self._outgoing)  #: links with other agents, and the master
        self._start_hooks: list[Hook] = []
        self._stop_hooks: list[Hook] = []
        self._url = url
        self._capabilities = as_words(capabilities, "capabilities")
        self._declared: dict[str, Any] = {
            "agent_id": agent_id,
            "agent_type": agent_type,
            "services": as_words(services, "services"),
            "endpoints": as_dict(endpoints, "endpoints"),
            "metadata": as_dict(metadata, "metadata"),
            "tags": as_words(tags, "tags"),
            "labels": as_dict(labels, "labels"),
            "version": version,
            "location": location,
            "capacity": self.settings.capacity if capacity is None else capacity,
            "weight": weight,
            "heartbeat_interval": (
                self.settings.heartbeat_interval_s if heartbeat_interval is None else heartbeat_interval
            ),
        }
        for field in ("location", "capacity", "weight", "heartbeat_interval"):
            check_finite(self._declared[field], field)
        self._session: Session | None = None
        self._starting: asyncio.Task[Session] | None = None
        self._leaving: asyncio.Task[None] | None = None  # closes the last session and calls the hooks
        self.has_abandoned = False  #: a handler did not end when the agent stopped, and may still run
        self.capacity = self._registration("").capacity or self.settings.capacity  #: maximum concurrent tasks

    def _registration(self, incarnation: str) -> AgentRegistered:
        """Return the fact with which this agent registers.

        Raises:
            FactInvalid: an argument of the agent does not fit; the message names it.
        """
        capabilities = tuple(dict.fromkeys((*self._capabilities, *self.handlers)))
        declared = {**self._declared, "capabilities": capabilities, "incarnation": incarnation}
        data = encode_fields(declared)
        fact = decode_argument("in:registry", AgentRegistered, data, self.settings.max_entry_bytes)
        assert isinstance(fact, AgentRegistered)  # noqa: S101 -- for the type checker: the type says so
        if not fact.capacity:
            raise FactInvalid("capacity must be at least 1")
        return fact

    # Handlers.

    def task(self, task_type: str) -> Callable[[F], F]:
        """Register the decorated function as the handler of a task type: sync (it runs in a thread) or async.

        The handler takes the ``Task``. If its first parameter is annotated with a type that msgspec can decode (a
        Struct, a dict, a dataclass) or with a pydantic model, it takes the payload as that type, and the ``Task`` as an
        optional second parameter. A payload that does not fit fails its task without a retry, if no agent of another
        version is registered that can get it.

        The return value is the result, any JSON. An exception is a failure; the task is retried unless the exception is
        ``NonRetryable``. ``Retryable`` sets the error code, ``Release`` gives the task back.

        Args:
            task_type: 1 to 128 characters.

        Raises:
            FactInvalid: the type does not fit.
            ConfigError: the signature does not fit, the type has a handler already, or the agent runs.
        """
        if callable(task_type):
            raise ConfigError("name the task type: @agent.task('summarize')")
        check_text(task_type, "task_type")

        def register(function: F) -> F:
            self._check_not_running()
            if task_type in self.handlers:
                raise ConfigError(f"agent '{self.agent_id}' has a handler for task_type '{task_type}' already")
            self.handlers[task_type] = read_handler(function)
            return function

        return register

    def any_task(self, function: F) -> F:
        """Register the decorated function as the handler of every task whose type has no handler of its own.

        This adds no capability: the agent gets the tasks that its ``capabilities`` and other properties meet, of any
        type.
        """
        if self.fallback is not None:
            raise ConfigError(f"agent '{self.agent_id}' has a handler for any task already")
        self._check_not_running()
        self.fallback = read_handler(function)
        return function

    def on_start(self, function: Hook) -> Hook:
        """Await the decorated function each time before the agent registers, to prepare shared resources."""
        check_hook(function)
        self._start_hooks.append(function)
        return function

    def on_stop(self, function: Hook) -> Hook:
        """Await the decorated function when the agent has left and no handler runs, also if the start failed."""
        check_hook(function)
        self._stop_hooks.append(function)
        return function

    def on_message(self, function: F) -> F:
        """Register the decorated function as a message handler: sync or async; several are called in order.

        The messages of one sender are handled one after the other, those of different senders concurrently, up to
        ``message_concurrency``. A message with ``reply_to`` does not wait for the other messages of its sender, because
        a handler may be waiting for it. ``Retryable(after=5)`` puts a message off.
        """
        self._check_not_running()
        check_message_handler(function)
        self.message_handlers.append(function)
        return function

    def on_request(self, function: F) -> F:
        """Register the decorated function as the handler of requests: sync or async; its return value is the reply.

        It takes the ``Message`` and returns any JSON. An exception becomes a failed reply with its code and message:
        that of ``NonRetryable`` or ``Retryable``, ``handler_failed`` for any other. ``Retryable(after=5)`` puts the
        request off. A request that is handled again after a crash gets one reply. Without this handler, requests go to
        the handlers of ``on_message``; without those too, they fail with ``no_handler``.

        Raises:
            ConfigError: there is one already, the signature does not fit, or the agent runs.
        """
        self._check_not_running()
        if self.request_handler is not None:
            raise ConfigError(f"agent '{self.agent_id}' has a handler for requests already")
        check_message_handler(function)
        self.request_handler = function
        return function

    def on_reply(self, function: F) -> F:
        """Register the decorated function as a handler of replies that nobody awaits: sync or async.

        These are replies that come late (``message.late``), and all replies to requests of an earlier process of this
        agent, also the coordinator's (``message.failed``, with ``code`` ``request_timed_out`` in the payload). Without
        such a handler they go to the handlers of ``on_message``.
        """
        self._check_not_running()
        check_message_handler(function)
        self.reply_handlers.append(function)
        return function

    async def request(
        self, receiver_id: str, payload: Any = None, *, timeout: float = REPLY_S, **options: Unpack[RequestOptions]
    ) -> Any:
        """Send a request to another agent and return the payload of its reply.

        The coordinator keeps the deadline: it ends the request also if the other agent is gone, or waits for this one.
        A reply that nobody awaits any more goes to ``on_reply``.

        Args:
            receiver_id: id of the agent, or ``coordinator`` for a message of type ``discovery``.
            payload: any value that msgspec can encode as JSON.
            timeout: seconds to wait for the reply.
            options: ``message_type``, ``priority``, ``correlation_id`` and ``traceparent``, as of ``Client.request``.

        Raises:
            ConfigError: this agent does not run, or stopped meanwhile.
            TokenMissing, TokenInvalid: the cell requires the token of this agent.
            ResultTimeout: neither a reply nor the coordinator has ended it 10 s after the timeout.
            CoordError: the other errors of ``Client.request``.
        """
        session = self._session
        if session is None:
            raise ConfigError(f"agent '{self.agent_id}' is not running: start it before it sends a request")
        append = request_append(
            self.agent_id,
            receiver_id,
            payload,
            timeout=timeout,
            caller="",
            max_bytes=self.settings.max_entry_bytes,
            **options,
        )
        return await session.requests.send(append, receiver_id, timeout)

    def on_link_request(self, function: LinkRequestHandler) -> LinkRequestHandler:
        """Await the decorated function with each ``LinkRequest`` of another agent.

        It returns True to accept, False to decline, None to leave the request open: ``agent.links.accept`` may accept
        it later. Without this handler all requests stay open.

        Raises:
            ConfigError: the signature does not fit, there is one already, or the agent runs.
        """
        self._check_not_running()
        if self.link_request_handler is not None:
            raise ConfigError(f"agent '{self.agent_id}' has a handler for link requests already")
        check_hook(function, arguments=1)
        self.link_request_handler = function
        return function

    async def send(
        self,
        receiver_id: str,
        payload: Any = None,
        *,
        message_type: MessageTypeName | MessageType = MessageType.DIRECT,
        protocol: ProtocolName | Protocol | None = None,
        priority: PriorityName | Priority = Priority.NORMAL,
        ttl: float | None = None,
        correlation_id: str | None = None,
        reply_to: str | None = None,
        message_id: str | None = None,
        traceparent: str | None = None,
        wait: bool = True,
        timeout: float = RECEIPT_S,
    ) -> Receipt:
        """Send a message in the name of this agent; returns when it is in the inbox of the receiver.

        The arguments, the result and the errors are those of ``Client.send``. While Redis is unavailable, it waits.

        Raises:
            ConfigError: this agent does not run, or stopped meanwhile.
        """
        fields = message_fields(
            self.agent_id,
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
        outgoing = self._outgoing()
        append = message_append(fields, priority, self.agent_id, self.settings.max_entry_bytes)
        if not wait:
            return receipt_of(fields, await outgoing.append(append))
        return receipt_of(fields, *await outgoing.request(append, as_seconds(timeout, "timeout")))

    async def broadcast(
        self, payload: Any = None, *, timeout: float = RECEIPT_S, **options: Unpack[BroadcastOptions]
    ) -> BroadcastReceipt:
        """Send a message to every other agent that matches; returns when it has been delivered to all of them.

        Args:
            payload: any value that msgspec can encode as JSON.
            timeout: seconds to wait for the router.
            options: as in ``Client.broadcast``.

        Raises: as ``Client.broadcast``; ``ConfigError`` if the agent is not running.
        """
        outgoing = self._outgoing()
        timeout = as_seconds(timeout, "timeout")
        append, message_id = broadcast_append(
            payload, options, self.agent_id, self.agent_id, self.settings.max_entry_bytes
        )
        return broadcast_receipt(message_id, *await outgoing.request(append, timeout))

    def _outgoing(self) -> Outgoing:
        if self._session is None:
            raise ConfigError(f"agent '{self.agent_id}' is not running")
        return self._session.outgoing

    def _check_not_running(self) -> None:
        if self._session is not None or self._starting is not None:
            raise ConfigError(f"agent '{self.agent_id}' is running: register its handlers before it is started")

    # State.

    @property
    def is_serving(self) -> bool:
        """True while the agent is registered."""
        return self._session is not None and self._session.is_registered

    @property
    def is_draining(self) -> bool:
        """True while the agent shuts down."""
        return self._session is not None and self._session.is_draining

    @property
    def running(self) -> int:
        """Number of running handlers."""
        return self._session.runner.running if self._session else 0

    @property
    def leases(self) -> int:
        """Number of leases that the agent holds, as in its next heartbeat."""
        return self._session.claims.leases if self._session else 0

    async def set_status(self, status: AgentStatus) -> None:
        """Report a status: only an ``active`` agent gets new tasks.

        Args:
            status: ``active``, ``busy``, ``maintenance``, ``error`` or ``draining``.
        """
        if self._session is None:
            raise ConfigError(f"agent '{self.agent_id}' is not running")
        if status not in STATUSES:
            raise FactInvalid(f"status: expected one of {', '.join(STATUSES)}, not {status!r}")
        self._session.registration.change_status(AgentStatus(status))

    def hold_slots(self, count: int) -> None:
        """Offer ``count`` slots less than the capacity, for example while the resources that they need are loading.

        The agent claims no task for these slots; tasks that run already are not affected.

        Args:
            count: 0 to the capacity of the agent; replaces the count of the last call.

        Raises:
            FactInvalid: the count does not fit.
        """
        check_count(count, "count", self.capacity, least=0)
        if count == self._held_slots:
            return
        self._held_slots = count
        if self._session is not None:
            self._session.hold_slots(count)

    # Life.

    def run(self, *, configure_logging: bool = True) -> None:
        """Serve until SIGTERM or SIGINT, then shut down gracefully; a second signal gives running tasks back. Blocks.

        See ``coord.run``, which serves several agents.
        """
        run(self, configure_logging=configure_logging)

    async def serve(self) -> None:
        """Start, and serve until ``stop`` is called; if it is cancelled, it stops without grace.

        At the start it waits for a server without a limit, and logs a warning every few seconds; ``start`` gives up.

        Raises:
            AgentSuperseded: a newer process took this agent id; this agent has stopped.
        """
        session = self._session or await self._start(is_patient=True)
        if session is None:
            return
        try:
            await session.ended.wait()
        except asyncio.CancelledError:
            await self.stop(grace=0)
            raise
        if session.failure is not None:
            await self.stop(grace=0)
            raise session.failure
        await self._wait_until_left()

    async def start(self) -> None:
        """Connect, register, and wait until the registry has answered; the agent gets tasks from then on.

        Raises:
            ServerUnavailable: no Redis answers.
            AgentSuperseded: a newer process has this agent id.
            ConfigError: it runs already, or was stopped before it had started.
        """
        if await self._start() is None:
            raise ConfigError(f"agent '{self.agent_id}' was stopped before it had started")

    async def _start(self, *, is_patient: bool = False) -> Session | None:
        """Return the session once it is registered; None if ``stop`` was called first."""
        await self._wait_until_left()
        if self._session is not None or self._starting is not None:
            raise ConfigError(f"agent '{self.agent_id}' is running already")
        starting = self._starting = asyncio.create_task(self._begin(is_patient=is_patient))
        try:
            await asyncio.wait([starting])
        except asyncio.CancelledError:
            await cancel_and_wait(starting, again_s=CANCEL_S)
            if not starting.cancelled() and starting.exception() is None:
                await self.stop(grace=0)  # it started at that very moment, and no caller would serve it
            raise
        finally:
            self._starting = None
        if not starting.cancelled() and starting.result().leaving is None:
            return starting.result()
        await self._wait_until_left()
        return None

    def _warn_without_handlers(self) -> None:
        """Warn of an agent that can do nothing with what it gets."""
        if self.handlers or self.fallback is not None:
            return
        if self._capabilities:
            hint = "it gives back every task that it gets; register handlers with @agent.task('TYPE')"
        elif not (self.message_handlers or self.reply_handlers or self.request_handler):
            hint = "it gets no tasks; register handlers with @agent.task('TYPE') before it starts"
        else:
            return  # it handles messages
        log.warning("agent.no_handlers", agent_id=self.agent_id, capabilities=list(self._capabilities), hint=hint)

    async def _open(self, spec: AgentSpec, *, is_patient: bool) -> Session:
        """Connect; ``is_patient``: wait for a server without a limit."""
        while is_patient:
            with suppress(ServerUnavailable):  # lost again before the session was open
                return await Session.open(spec, *await await_server(self.settings, self._url))
        return await Session.open(spec, *locate(self.settings, self._url))

    async def _begin(self, *, is_patient: bool) -> Session:
        if self.settings.tracing:
            spans.enable()
        self._warn_without_handlers()
        spec = AgentSpec(
            self._registration(new_id()),
            self.handlers,
            self.fallback,
            MessageHandlers(tuple(self.message_handlers), tuple(self.reply_handlers), self.request_handler),
            self._message_concurrency,
            self.links,
            self.link_request_handler,
            self._token.current,
            self._forget_after,
        )
        session = await self._open(spec, is_patient=is_patient)
        try:
            for function in self._start_hooks:
                await function()
            self._session = session
            await session.begin()
            if self._held_slots:
                session.hold_slots(self._held_slots)
        except BaseException:
            leaving = self._leave(session)
            while not leaving.done():
                with suppress(asyncio.CancelledError):  # also a cancelled caller waits until all is released
                    await asyncio.wait([leaving])
            leaving.result()
            raise
        return session

    async def stop(self, *, grace: float | None = None) -> None:
        """Shut down gracefully: give back unstarted tasks, finish running ones, report, deregister, close.

        A start in progress is cancelled. If ``stop`` itself is cancelled, handlers have no more grace. A second call
        with ``grace`` shortens a shutdown in progress.

        Args:
            grace: seconds that handlers have to finish; default: ``drain_timeout``, or as long as they take. Then they
                are cancelled and their tasks given back.

        Raises:
            ConfigError: a handler of this agent waits for it.
        """
        grace = self.drain_timeout if grace is None else as_seconds(grace, "grace")
        if self._session is None:
            await cancel_and_wait(self._starting, again_s=CANCEL_S)  # it may start all the same
        session = self._session
        if session is None:
            await self._wait_until_left()
            return
        if session.is_within(asyncio.current_task()):
            raise ConfigError(
                "stop() waits for the handlers, so none can wait for it: asyncio.create_task(agent.stop())"
            )
        try:
            await session.drain(grace)
        finally:
            await asyncio.shield(self._leave(session))

    def _leave(self, session: Session) -> asyncio.Task[None]:
        """Close a session in a task that completes even if its waiters are cancelled."""
        if session.leaving is None:
            self._session = None
            session.leaving = self._leaving = asyncio.create_task(self._close(session))
        return session.leaving

    async def _close(self, session: Session) -> None:
        try:
            await session.close()
            self.has_abandoned = self.has_abandoned or session.has_abandoned
            await self._call_stop_hooks()
        finally:
            self._leaving = None

    async def _call_stop_hooks(self) -> None:
        failure: Exception | None = None
        for function in reversed(self._stop_hooks):
            try:
                await function()
            except Exception as error:  # noqa: BLE001 -- the other hooks have something to release as well
                failure = failure or error
        if failure is not None:
            raise failure

    async def _wait_until_left(self) -> None:
        """Wait until the last session is closed."""
        leaving = self._leaving
        if leaving is not None and leaving is not asyncio.current_task():
            await asyncio.wait([leaving])

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
