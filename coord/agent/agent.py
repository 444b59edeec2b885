"""An agent: what it is, what it can do, and its life from registration to the last report.

It claims by deleting, never runs more than its capacity, repeats its reports until Redis has them, and comes back by
itself after Redis was away without losing what it runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from coord import codec, config
from coord.agent.handlers import Handler, check_hook, check_message_handler, read_handler
from coord.agent.messages import MessageHandler
from coord.agent.session import Session
from coord.aio import CANCEL_S, end
from coord.arguments import check_finite, check_place, check_text, encoded, listed, mapped, seconds
from coord.config import Settings
from coord.connection import locate
from coord.errors import ConfigError, FactInvalid
from coord.models.agents import AgentStatus, Location
from coord.models.facts import TYPE_OF, AgentRegistered
from coord.models.ids import check_id

F = TypeVar("F", bound=Callable[..., Any])

#: What an agent may say of itself; it leaves by ``stop``.
STATUSES = (AgentStatus.ACTIVE, AgentStatus.BUSY, AgentStatus.MAINTENANCE, AgentStatus.ERROR, AgentStatus.DRAINING)
#: What handlers have to finish when the agent is told to stop.
DRAIN_TIMEOUT_S = 30.0


class Agent:
    """An agent and its handlers.

    It registers ``capabilities`` and, besides, the task type of each of its handlers: a task that is submitted
    without requirements asks for the capability named like its type.

    Args:
        agent_id: one process at a time has it; a newer process takes it over, and the older one stops.
        agent_type: what it is for, see ``coord.models.agents.AgentType``.
        capabilities: what it can do besides its task types.
        capacity: tasks at a time; default ``settings.capacity`` (8). Handlers that are not async have as many threads.
        heartbeat_interval: seconds; default ``settings.heartbeat_interval_s`` (5). After three missed it is lost.
        drain_timeout: seconds that handlers have to finish when the agent stops.
        url: where Redis is; default: see ``coord.connection.locate``.
        settings: default: from the environment.

    Raises:
        IdInvalid: the id does not fit.
        FactInvalid: something else does not; the message names it.
    """

    def __init__(
        self,
        agent_id: str,
        *,
        agent_type: str = "worker",
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
        drain_timeout: float = DRAIN_TIMEOUT_S,
        url: str | None = None,
        settings: Settings | None = None,
    ) -> None:
        check_place(url, settings)
        self.agent_id = check_id(agent_id, "agent_id")
        self.settings = settings if settings is not None else config.load_in_program()
        self.drain_timeout = seconds(drain_timeout, "drain_timeout")
        self.handlers: dict[str, Handler] = {}
        self.fallback: Handler | None = None
        self.message_handlers: list[MessageHandler] = []
        self._before: list[Callable[[], Awaitable[None]]] = []
        self._after: list[Callable[[], Awaitable[None]]] = []
        self._url = url
        self._capabilities = listed(capabilities, "capabilities")
        self._declared: dict[str, Any] = {
            "agent_id": agent_id,
            "agent_type": agent_type,
            "services": listed(services, "services"),
            "endpoints": mapped(endpoints, "endpoints"),
            "metadata": mapped(metadata, "metadata"),
            "tags": listed(tags, "tags"),
            "labels": mapped(labels, "labels"),
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
        self._leaving: asyncio.Task[None] | None = None  # lets go of the last session, hooks and all
        self.has_abandoned = False  #: a handler did not end when the agent stopped, and may still run
        self.fact("")  # says now what does not fit

    # What it can do.

    def task(self, task_type: str) -> Callable[[F], F]:
        """Decorates the handler of a task type: sync (it runs in a thread) or async.

        It takes the ``Task``; or, where its first parameter is annotated with what msgspec can decode (a Struct, a
        dict, a dataclass), the payload as that, and then, if it has a second parameter, the ``Task``. A payload that
        does not fit fails its task for good.

        What it returns is the result, any JSON. What it raises is a failure, tried again unless it is
        ``NonRetryable``; ``Retryable`` says with which code, ``Release`` gives the task back.

        Raises:
            FactInvalid: the type does not fit.
            ConfigError: the function does not, or there is another one.
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
        """Decorates the handler of every task whose type has none of its own.

        It makes the agent no more capable: it gets what its ``capabilities`` (and other properties) fit, whatever the
        type.
        """
        if self.fallback is not None:
            raise ConfigError(f"agent '{self.agent_id}' has a handler for any task already")
        self._check_not_running()
        self.fallback = read_handler(function)
        return function

    def on_start(self, function: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """Decorates what is awaited each time before the agent registers: make ready here what handlers share."""
        check_hook(function)
        self._before.append(function)
        return function

    def on_stop(self, function: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """Decorates what is awaited when the agent has left and no handler runs, also if it could not start."""
        check_hook(function)
        self._after.append(function)
        return function

    def on_message(self, function: F) -> F:
        """Decorates a handler of messages (``Message``): sync or async; several are called in order."""
        self._check_not_running()
        check_message_handler(function)
        self.message_handlers.append(function)
        return function

    def _check_not_running(self) -> None:
        if self._session is not None or self._starting is not None:
            raise ConfigError(f"agent '{self.agent_id}' is running: register its handlers before it is started")

    def fact(self, incarnation: str) -> AgentRegistered:
        """What it registers as."""
        capabilities = tuple(dict.fromkeys((*self._capabilities, *self.handlers)))
        declared = {**self._declared, "capabilities": capabilities, "incarnation": incarnation}
        fields = {b"type": TYPE_OF[AgentRegistered].encode(), b"data": encoded(declared)}
        fact = codec.fact_of("in:registry", fields, self.settings.max_entry_bytes)
        assert isinstance(fact, AgentRegistered)  # noqa: S101 -- for the type checker: the type says so
        if not fact.capacity:
            raise FactInvalid("capacity must be at least 1")
        return fact

    # Its life.

    @property
    def is_serving(self) -> bool:
        """Whether it has a place in the fleet."""
        return self._session is not None and self._session.is_registered

    @property
    def running(self) -> int:
        """Handlers that run at the moment."""
        return self._session.runner.running if self._session else 0

    @property
    def leases(self) -> int:
        """Leases that it holds, as its next beat will say."""
        return self._session.claims.leases if self._session else 0

    async def start(self) -> None:
        """Connect, register, and wait until the registry has answered; from then on it takes work.

        Raises:
            ServerUnavailable: no Redis answers.
            AgentSuperseded: a newer process has this agent id.
            ConfigError: it runs already, or was stopped before it had started.
        """
        if await self._start() is None:
            raise ConfigError(f"agent '{self.agent_id}' was stopped before it had started")

    async def stop(self, *, grace: float | None = None) -> None:
        """Drain and leave: give unstarted work back, finish what runs, report, deregister, close.

        One that is starting gives that up. Where whoever waits for this gives up, handlers have no more grace.

        Args:
            grace: seconds that handlers have to finish; default ``drain_timeout``. Then they are cancelled and their
                tasks given back.
        """
        grace = self.drain_timeout if grace is None else seconds(grace, "grace")
        if self._session is None:
            await end(self._starting, again_s=CANCEL_S)  # which may have been too late for it
        session = self._session
        if session is None:
            await self._left()
            return
        if session.is_within(asyncio.current_task()):
            raise ConfigError(
                "stop() waits for the handlers, so none can wait for it: asyncio.create_task(agent.stop())"
            )
        try:
            await session.drain(grace)
        finally:
            await asyncio.shield(self._leave(session))

    async def serve(self) -> None:
        """Start, and serve until ``stop`` is called; cancelled, it drains with no grace.

        Raises:
            AgentSuperseded: a newer process took this agent id; this one has stopped.
        """
        session = self._session or await self._start()
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
        await self._left()

    async def _start(self) -> Session | None:
        """The session, once it is registered; None when ``stop`` came first."""
        await self._left()
        if self._session is not None or self._starting is not None:
            raise ConfigError(f"agent '{self.agent_id}' is running already")
        starting = self._starting = asyncio.create_task(self._begin())
        try:
            await asyncio.wait([starting])
        except asyncio.CancelledError:
            await end(starting, again_s=CANCEL_S)
            if not starting.cancelled() and starting.exception() is None:
                await self.stop(grace=0)  # it was done in that very moment, and nobody would serve it
            raise
        finally:
            self._starting = None
        if not starting.cancelled() and starting.result().leaving is None:
            return starting.result()
        await self._left()
        return None

    async def _begin(self) -> Session:
        session = await Session.open(self, *locate(self.settings, self._url))
        try:
            for function in self._before:
                await function()
            self._session = session
            await session.begin()
        except BaseException:
            leaving = self._leave(session)
            while not leaving.done():
                with suppress(asyncio.CancelledError):  # whoever gives it up waits until all is let go of
                    await asyncio.wait([leaving])
            leaving.result()
            raise
        return session

    def _leave(self, session: Session) -> asyncio.Task[None]:
        """Let go of a session, to the end, whoever gives up waiting for it."""
        if session.leaving is None:
            self._session = None
            session.leaving = self._leaving = asyncio.create_task(self._let_go(session))
        return session.leaving

    async def _left(self) -> None:
        """Wait until the last session is let go of."""
        leaving = self._leaving
        if leaving is not None and leaving is not asyncio.current_task():
            await asyncio.wait([leaving])

    async def _let_go(self, session: Session) -> None:
        try:
            await session.close()
            self.has_abandoned = self.has_abandoned or session.has_abandoned
            await self._clean_up()
        finally:
            self._leaving = None

    async def _clean_up(self) -> None:
        failure: Exception | None = None
        for function in reversed(self._after):
            try:
                await function()
            except Exception as error:  # noqa: BLE001 -- the others have something to let go of as well
                failure = failure or error
        if failure is not None:
            raise failure

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain; a second signal ends the process at once. Blocks."""
        from coord.agent.run import run

        run(self)

    async def set_status(self, status: AgentStatus) -> None:
        """Say how it is: ``busy`` or ``maintenance`` gets nothing new, ``active`` does again."""
        if self._session is None:
            raise ConfigError(f"agent '{self.agent_id}' is not running")
        if status not in STATUSES:
            raise FactInvalid(f"status: expected one of {', '.join(STATUSES)}, not {status!r}")
        self._session.membership.change_status(AgentStatus(status))

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()
