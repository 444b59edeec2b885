"""One run of an agent, from its connections to its deregistration.

A ``Session`` is the mediator between the parts of an agent. Each part gets what it needs in its constructor; what
concerns another part goes through a method here:

    open        connect for writes                                    ReconnectingConnection
    begin       connect for reads, register                           Inbox, Registration
    heartbeat   at intervals, with load, leases and reader check      Heartbeats, ReaderCheck
    receive     an assignment, an order or a message arrives          Inbox
    claim       delete the entry, as far as there is room             Claims
    run         call the handler                                      Runner, MessageRunner
    request     wait for the reply of another agent                   Requests, Inquiries
    link        answer requests of other agents for links             LinkOrders
    send        append messages and changes of links, await answers   Outgoing
    report      append the outcome until Redis has answered           Reports
    drain       no new tasks; finish, report, deregister
    close       release connections, timers and threads
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from msgspec import Struct

from coord.agent.claims import Claims
from coord.agent.handlers import Handler
from coord.agent.heartbeat import DEAF_HEARTBEATS, Heartbeats, ReaderCheck
from coord.agent.inbox import Fields, Inbox
from coord.agent.inquiries import Inquiries
from coord.agent.links import AgentLinks, LinkOrders, LinkRequestHandler
from coord.agent.messages import MessageHandlers, MessageRunner
from coord.agent.outgoing import Outgoing
from coord.agent.registration import Registration
from coord.agent.reports import Reports
from coord.agent.requests import Requests
from coord.agent.runner import Runner
from coord.agent.task import Attempt
from coord.background import CANCEL_S
from coord.client.answers import Answers, read_answer
from coord.config import Settings
from coord.errors import CoordError
from coord.keys import Keys
from coord.logs import get_logger
from coord.models.facts import AgentRegistered
from coord.models.tasks import Lane
from coord.pipeline import pack
from coord.reconnect import ReconnectingConnection, shared_connections
from coord.redis_protocol import ignore_answer

log = get_logger()

#: Seconds that Redis has to accept the last reports, and the registry to answer the deregistration.
FLUSH_S = 10.0


class AgentSpec(Struct, frozen=True):
    """What a session runs."""

    registration: AgentRegistered  #: its incarnation is new for each session
    handlers: Mapping[str, Handler]  #: by task type
    fallback: Handler | None  #: for task types without a handler
    message_handlers: MessageHandlers
    message_concurrency: int
    links: AgentLinks
    link_request_handler: LinkRequestHandler | None = None
    token: Callable[[], str] = str  #: returns the token of the agent; empty: none
    forget_after: float | None = None  #: seconds until the record of an agent that has left is removed


class Session:
    """An agent while it runs; made by ``open``.

    ``ended`` is set when the session is over; ``failure`` is the reason, if the agent had to stop.
    """

    def __init__(self, spec: AgentSpec, url: str, settings: Settings, link: ReconnectingConnection) -> None:
        fact = spec.registration
        agent_id = self._agent_id = fact.agent_id
        keys = self._keys = Keys(settings.namespace)
        interval_s = fact.heartbeat_interval or settings.heartbeat_interval_s
        self.ended = asyncio.Event()
        self.failure: CoordError | None = None
        self.leaving: asyncio.Task[None] | None = None  #: closes the session and calls the agent's hooks, once
        self._capacity = fact.capacity or settings.capacity
        self._loop = asyncio.get_running_loop()
        self._stuck = 0  # slots of handlers that must stop and still run
        self._held = 0  # slots that are not ready
        self._link = link
        self._lanes = [keys.inbox(agent_id, lane) for lane in Lane]
        self._answers = Answers()
        self._threads = ThreadPoolExecutor(self._capacity, thread_name_prefix=agent_id)
        self._is_draining = False
        self._finishing: asyncio.Future[Any] | None = None  # while a drain waits for the handlers
        self._is_grace_over = False
        self._is_closed = False
        self.reports = Reports(link, keys, settings.max_entry_bytes, self._report_answered)
        self.runner = Runner(
            agent_id,
            spec.handlers,
            spec.fallback,
            self._threads,
            self.reports,
            on_ended=self._attempt_ended,
            on_stuck=self._change_stuck,
        )
        self.inbox = Inbox(
            agent_id,
            url,
            settings,
            on_entry=self._receive,
            on_reply=self._receive_reply,
            on_read=self._claim,
            on_up=self._inbox_up,
        )
        self._reader_check = ReaderCheck(
            self._reader_rounds,
            max(DEAF_HEARTBEATS * interval_s, settings.read_block_ms / 1000 + settings.answer_timeout_s),
        )
        self.claims = Claims(
            agent_id,
            fact.incarnation,
            self._capacity,
            link=link,
            keys=keys,
            reports=self.reports,
            start=self.runner.start,
            reread=self.inbox.rewind,
        )
        self.heartbeats = Heartbeats(
            fact,
            interval_s,
            url,
            settings,
            leases=self._count_leases,
            listed=self.claims.listed,
            is_deaf=self._check_reader,
            reset=self._reader_check.reset,
            handler_of=self._handler_of,
            on_sent=self._heartbeat_sent,
            token=spec.token,
        )
        self.registration = Registration(
            fact,
            link=link,
            keys=keys,
            answers=self._answers,
            heartbeats=self.heartbeats,
            on_failed=self._fail,
            forget_after=spec.forget_after,
            token=spec.token,
        )
        self.outgoing = Outgoing(agent_id, link, keys, self._answers, spec.token)
        self.requests = Requests(agent_id, link, self.outgoing, settings.max_entry_bytes)
        self._inquiries = Inquiries(fact, self.requests, spec.handlers, stats=self._stats)
        self.messages = MessageRunner(
            agent_id,
            link,
            keys,
            handlers=spec.message_handlers,
            requests=self.requests,
            now_ms=self.registration.now_ms,
            concurrency=spec.message_concurrency,
        )
        self._link_orders = LinkOrders(spec.links, link, self._lanes, spec.link_request_handler)
        link.on_up.append(self._link_up)

    # Start and registration.

    @classmethod
    async def open(cls, spec: AgentSpec, url: str, settings: Settings) -> Session:
        """Connect; raises as ``ReconnectingConnection.open``. The caller begins the session and always closes it."""
        link = await shared_connections().join(url, settings)
        try:
            return cls(spec, url, settings, link)
        except BaseException:
            await shared_connections().leave(link)
            raise

    async def begin(self) -> None:
        """Register and read; returns when the registry has answered, or the session has ended."""
        self.heartbeats.open()
        await self.inbox.open()
        waits = [asyncio.ensure_future(event.wait()) for event in (self.registration.is_registered, self.ended)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self.failure is not None:
            raise self.failure

    def _inbox_up(self) -> None:
        """Register, at the start and after each reconnect."""
        self.reports.learn_limit()
        self.registration.register()

    def _link_up(self) -> None:
        self._reader_check.reset()
        self._claim()

    @property
    def is_draining(self) -> bool:
        """True from the moment at which the agent was asked to stop."""
        return self._is_draining

    @property
    def is_registered(self) -> bool:
        """True when the registry has answered, until the session fails or ends."""
        return self.registration.is_registered.is_set() and self.failure is None and not self.ended.is_set()

    # Heartbeats: the thread of the heartbeats calls these methods, except the last one.

    def _count_leases(self) -> int:
        return self.claims.leases

    def _reader_rounds(self) -> int:
        return self.inbox.rounds

    def _check_reader(self) -> bool:
        """Return True if the reader of the inbox has stopped, and reconnect it."""
        is_deaf = self._reader_check.is_deaf()
        if is_deaf and self._reader_check.should_reconnect():
            self._loop.call_soon_threadsafe(self.inbox.reconnect)
        return is_deaf

    def _handler_of(self, task: asyncio.Task[object] | None) -> str:
        return self.runner.handler_of(task) or self.messages.handler_of(task) if task is not None else ""

    def _heartbeat_sent(self, entry: bytes, answered_at: float) -> None:
        self.registration.heartbeat_sent(entry, answered_at)

    # Assignments, orders and messages.

    def _receive(self, lane: int, entry: bytes, fields: Fields) -> None:
        order = fields.get(b"order")
        if b"lease" in fields and fields[b"message_type"] == b"task_assignment":
            self.claims.offer(lane, entry, fields)
        elif b"id" in fields:
            self._receive_message(lane, entry, fields)
        elif order == b"list_leases":
            self._link.send_until_answered(pack(("XDEL", self._lanes[lane], entry)), ignore_answer)
            self.registration.list_leases(fields[b"ask"].decode(), self.claims.listed())
        elif order == b"stop_task":
            self._link.send_until_answered(pack(("XDEL", self._lanes[lane], entry)), ignore_answer)
            self._stop_task(fields[b"lease"].decode(), fields.get(b"reason", b"").decode("utf-8", "replace"))
        elif order == b"link_changed":
            self._link_orders.receive(lane, entry, fields)
        elif order is not None:
            if order != b"read_inbox":  # which asks for nothing else
                log.info("order.unknown", agent_id=self._agent_id, order=order.decode("utf-8", "replace"))
            self._link.send_until_answered(pack(("XDEL", self._lanes[lane], entry)), ignore_answer)
        else:
            raise ValueError(f"the entry {entry.decode()} is no task, no order and no message")

    def _receive_message(self, lane: int, entry: bytes, fields: Fields) -> None:
        if b"reply_to" in fields and self.requests.take(lane, entry, fields):
            return  # a handler waits for it
        if not self._inquiries.take(lane, entry, fields):
            self.messages.take(lane, entry, fields)

    def _stats(self) -> dict[str, Any]:
        """Return what the agent does now."""
        return {
            "running": self.runner.running,
            "leases": self.claims.leases,
            "capacity": self._capacity,
            "messages": self.messages.waiting,
            "reports": self.reports.unanswered,
            "is_draining": self._is_draining,
        }

    def _receive_reply(self, fields: Fields) -> None:
        if fields.get(b"type") == b"fact.answered":
            self._answers.receive(*read_answer(fields))

    def _claim(self) -> None:
        self.claims.claim()

    # Attempts.

    def is_within(self, task: asyncio.Task[object] | None) -> bool:
        """Return True if this is the asyncio task of a handler, for which a drain waits."""
        return task is not None and (self.runner.runs(task) or self.messages.runs(task))

    def _attempt_ended(self) -> None:
        self.claims.ended()

    def _report_answered(self, attempt: Attempt) -> None:
        self.claims.forget(attempt)

    def _stop_task(self, lease: str, reason: str) -> None:
        attempt = self.claims.known(lease)
        if attempt is None:
            return  # it ended meanwhile
        if attempt.is_unclaimed:
            self.claims.give_back(attempt, reason)
        else:
            self.runner.stop(attempt, reason)

    def _change_stuck(self, count: int) -> None:
        """Offer a smaller capacity while handlers that must stop occupy slots."""
        self._stuck = count
        self._change_room()

    def hold_slots(self, count: int) -> None:
        """Offer a smaller capacity while slots are not ready."""
        self._held = count
        self.claims.hold(count)
        self._change_room()

    def _change_room(self) -> None:
        unusable = self._stuck + self._held
        self.registration.change_room(self._capacity - unusable)
        self.claims.change_stuck(unusable >= self._capacity)

    # The end.

    def _fail(self, error: CoordError) -> None:
        """Stop at once: the tasks of this agent belong to others now."""
        self.failure = error
        self.inbox.stop()
        self.requests.close(error)
        self.claims.drain()
        self.runner.stop_all(str(error))
        self.ended.set()

    async def drain(self, grace_s: float | None) -> None:
        """Shut down: accept nothing new, give back unstarted tasks, finish and report the rest, deregister, close.

        Args:
            grace_s: seconds that handlers have to finish; None: as long as they take. A later call may shorten it.
        """
        if self._is_draining:
            limit = self._loop.call_later(grace_s, self._end_grace) if grace_s is not None else None
            await self.ended.wait()
            if limit is not None:
                limit.cancel()
            return
        self._is_draining = True
        log.info("agent.draining", agent_id=self._agent_id, running=self.runner.running)
        if self.failure is None:
            self.registration.drain()
        self.claims.drain()
        cancelled: asyncio.CancelledError | None = None
        try:
            self._finishing = asyncio.gather(self.runner.finish(grace_s, CANCEL_S), self.messages.close(grace_s))
            await self._finishing
        except asyncio.CancelledError as error:
            cancelled = error if not self._is_grace_over else None
            await asyncio.gather(self.runner.finish(0, CANCEL_S), self.messages.close(0))
        await self.claims.wait_until_claimed(FLUSH_S)
        if not await self.reports.flushed(FLUSH_S):
            log.error("reports.lost", agent_id=self._agent_id, reports=self.reports.unanswered)
        if self.failure is None:
            can_answer = self._link.is_up and self.registration.is_registered.is_set()
            await self.registration.leave(FLUSH_S if can_answer else 0)
        await self.close()
        log.info("agent.left", agent_id=self._agent_id)
        if cancelled is not None:
            raise cancelled

    def _end_grace(self) -> None:
        """Stop the handlers that a drain waits for."""
        if self._finishing is not None and not self._finishing.done():
            self._is_grace_over = True
            self._finishing.cancel()

    async def close(self) -> None:
        """Release connections, timers and threads."""
        if self._is_closed:
            return
        self._is_closed = True
        self.requests.close()
        self.registration.close()
        await self._link_orders.close()
        self.outgoing.close()
        await self.heartbeats.close()
        self.runner.close()
        await self.messages.close(0)
        await self.inbox.close()
        self._link.on_up.remove(self._link_up)
        await shared_connections().leave(self._link)
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.ended.set()

    @property
    def has_abandoned(self) -> bool:
        """True if a handler did not end when it had to stop, and may still run in its thread."""
        return self.runner.has_abandoned or self.messages.has_abandoned
