"""One run of an agent: its connections, what it holds, its place in the fleet; and how it ends."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from coord.agent.claims import Claims
from coord.agent.hearing import DEAF_BEATS, Hearing
from coord.agent.inbox import Fields, Inbox
from coord.agent.messages import MessageRunner
from coord.agent.reconnect import ReconnectingConnection, shared
from coord.agent.registration import Membership
from coord.agent.reports import Reports
from coord.agent.runner import Runner
from coord.aio import CANCEL_S
from coord.client.answers import Answers, read_answer
from coord.config import Settings
from coord.errors import CoordError
from coord.keys import Keys
from coord.logs import get_logger
from coord.models.ids import new_id
from coord.models.tasks import Lane
from coord.pipeline import pack

if TYPE_CHECKING:
    from coord.agent.agent import Agent

log = get_logger()

#: What Redis has to take the last reports, and the registry to answer the farewell.
FLUSH_S = 10.0


class Session:
    """An agent while it runs. ``ended`` is set when it is over; ``failure`` says why, if it had to stop.

    Made by ``open``; what it writes goes over ``link``, what it reads comes over a connection of its own.
    """

    def __init__(self, agent: Agent, url: str, settings: Settings, link: ReconnectingConnection) -> None:
        agent_id = agent.agent_id
        keys = Keys(settings.namespace)
        fact = agent.fact(new_id())  # the incarnation: drawn once for each run
        capacity = fact.capacity or settings.capacity
        interval_s = fact.heartbeat_interval or settings.heartbeat_interval_s
        self.ended = asyncio.Event()
        self.failure: CoordError | None = None
        self.leaving: asyncio.Task[None] | None = None  #: closes it and calls the agent's hooks, once
        self.incarnation = fact.incarnation
        self._agent_id = agent_id
        self._link = link
        self._lanes = [keys.inbox(agent_id, lane) for lane in Lane]
        self._answers = Answers()
        self._threads = ThreadPoolExecutor(capacity, thread_name_prefix=agent_id)
        self._is_draining = False
        self._is_closed = False
        self.reports = Reports(link, keys, settings.max_entry_bytes)
        self.runner = Runner(agent_id, agent.handlers, agent.fallback, self._threads, self.reports)
        self.inbox = Inbox(
            agent_id, url, settings, take=self._take, answered=self._answered, read=self._read, up=self._up
        )
        self._hearing = Hearing(
            lambda: self.inbox.rounds,
            max(DEAF_BEATS * interval_s, settings.read_block_ms / 1000 + settings.answer_timeout_s),
        )
        self.claims = Claims(
            agent_id,
            self.incarnation,
            capacity,
            link=link,
            keys=keys,
            reports=self.reports,
            start=self.runner.start,
            missed=self.inbox.rewind,
        )
        self._capacity = capacity
        self.runner.ended = self.claims.ended
        self.runner.stuck = self._stuck
        self.membership = Membership(
            fact,
            interval_s,
            link=link,
            keys=keys,
            answers=self._answers,
            leases=lambda: self.claims.leases,
            failed=self._failed,
            is_deaf=self._is_deaf,
        )
        self.mail = MessageRunner(
            agent_id,
            link,
            keys,
            handlers=agent.message_handlers,
            now_ms=self.membership.now_ms,
        )
        link.on_up.append(self._link_up)

    @classmethod
    async def open(cls, agent: Agent, url: str, settings: Settings) -> Session:
        """Connect; raises as ``ReconnectingConnection.open``. The caller begins the session, and always closes it."""
        link = await shared().join(url, settings)
        try:
            return cls(agent, url, settings, link)
        except BaseException:
            await shared().leave(link)
            raise

    @property
    def is_registered(self) -> bool:
        """Whether the registry has answered, and all is well."""
        return self.membership.is_registered.is_set() and self.failure is None and not self.ended.is_set()

    @property
    def has_abandoned(self) -> bool:
        """Whether a handler did not end when it was told to, and may still run in its thread."""
        return self.runner.has_abandoned or self.mail.has_abandoned

    def is_within(self, task: asyncio.Task[object] | None) -> bool:
        """Whether this is a task that runs one of the handlers, which a drain waits for."""
        return task is not None and (self.runner.runs(task) or self.mail.runs(task))

    async def begin(self) -> None:
        """Register and read; returns when the registry has answered, or the session has ended."""
        await self.inbox.open()
        waits = [asyncio.ensure_future(event.wait()) for event in (self.membership.is_registered, self.ended)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self.failure is not None:
            raise self.failure

    async def drain(self, grace_s: float) -> None:
        """End it in order: nothing new, unstarted work given back, the rest finished, all told; leave and close."""
        if self._is_draining:
            await self.ended.wait()
            return
        self._is_draining = True
        log.info("agent.draining", agent_id=self._agent_id, running=self.runner.running)
        if self.failure is None:
            self.membership.drain()
        self.claims.drain()
        gave_up: asyncio.CancelledError | None = None
        try:
            await asyncio.gather(self.runner.finish(grace_s, CANCEL_S), self.mail.close(grace_s))
        except asyncio.CancelledError as error:
            gave_up = error
            await asyncio.gather(self.runner.finish(0, CANCEL_S), self.mail.close(0))
        await self.claims.settled(FLUSH_S)
        if not await self.reports.flushed(FLUSH_S):
            log.error("reports.lost", agent_id=self._agent_id, reports=self.reports.unanswered)
        if self.failure is None:
            is_heard = self._link.is_up and self.membership.is_registered.is_set()
            await self.membership.leave(FLUSH_S if is_heard else 0)
        await self.close()
        log.info("agent.left", agent_id=self._agent_id)
        if gave_up is not None:
            raise gave_up

    async def close(self) -> None:
        """Let go of connections, timers and threads."""
        if self._is_closed:
            return
        self._is_closed = True
        self.membership.close()
        self.runner.close()
        await self.mail.close(0)
        await self.inbox.close()
        self._link.on_up.remove(self._link_up)
        await shared().leave(self._link)
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.ended.set()

    def _up(self) -> None:
        """The inbox's connection has come (again): whatever happened meanwhile, say who we are."""
        self.reports.learn_limit()
        self.membership.register()

    def _take(self, lane: int, entry: bytes, fields: Fields) -> None:
        kind = fields[b"message_type"]
        if kind == b"task_assignment":
            self.claims.offer(lane, entry, fields)
        elif kind == b"coordination" and fields.get(b"order") == b"list_leases":
            self._link.send_until_answered(pack(("XDEL", self._lanes[lane], entry)), _ignored)
            self.membership.list_leases(fields[b"ask"].decode(), self.claims.listed())
        elif kind == b"coordination" and fields.get(b"order") == b"stop_task":
            self._link.send_until_answered(pack(("XDEL", self._lanes[lane], entry)), _ignored)
            self._stop_task(fields[b"lease"].decode(), fields.get(b"reason", b"").decode("utf-8", "replace"))
        else:
            self.mail.take(lane, entry, fields)

    def _stop_task(self, lease: str, reason: str) -> None:
        attempt = self.claims.known(lease)
        if attempt is None:
            return  # it ended meanwhile
        if attempt.is_unclaimed:
            self.claims.give_back(attempt, reason)
        else:
            self.runner.stop(attempt, reason)

    def _stuck(self, count: int) -> None:
        """So many slots are taken for longer: nothing more is to be sent to them."""
        self.membership.change_room(self._capacity - count)
        self.claims.change_stuck(count >= self._capacity)

    def _answered(self, fields: Fields) -> None:
        if fields.get(b"type") == b"fact.answered":
            self._answers.receive(*read_answer(fields))

    def _read(self) -> None:
        self.claims.claim()

    def _link_up(self) -> None:
        self._hearing.reset()
        self._read()

    def _is_deaf(self) -> bool:
        """Return True if the reader of the inbox does not come around; heal that."""
        is_deaf = self._hearing.look()
        if is_deaf and self._hearing.is_to_heal():
            self.inbox.heal()
        return is_deaf

    def _failed(self, error: CoordError) -> None:
        """It must stop at once: what it runs is not its own any more."""
        self.failure = error
        self.inbox.stop()
        self.claims.drain()
        self.runner.stop_all(str(error))
        self.ended.set()


def _ignored(_about: object, _answer: object) -> None:
    pass
