"""What an operator tells the workers: each a fact on ``in:control:{kind}``, answered by the worker that has done it.

A fact that is appended twice, because Redis' answer was lost, does no harm: the second one finds nothing left to do.
``retry`` and ``replay`` may be told just that (``TaskNotDead`` and the like) when it was their own first one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, get_args

from msgspec import Struct

from coord import codec, config, queries
from coord.arguments import check_finite, encoded, seconds
from coord.client.answers import Answer
from coord.client.connection import Caller
from coord.client.handle import TaskHandle
from coord.connection import reading
from coord.errors import EntryNotFound, FactInvalid, ResultTimeout
from coord.keys import CONSUMES
from coord.models.agents import AgentStatus
from coord.models.control import (
    AgentDrained,
    AgentRemoved,
    AgentResumed,
    DeadPurged,
    EntriesPurged,
    EntryReplayed,
    MessageReplayed,
    SettingSet,
    StrategySet,
    TaskReplayed,
)
from coord.models.dead import DeadKind
from coord.models.facts import TYPE_OF
from coord.models.ids import check_id
from coord.streams import Append

#: How long a worker may take to answer, in seconds.
ANSWER_S = 10.0

_KINDS = get_args(DeadKind)


class Operator(Caller, ABC):
    """The part of ``Client`` that is for operators.

    Each method returns when a worker has done what it asks for. Beside what it says itself, each raises
    ``ResultTimeout`` when no worker answered within ``wait`` seconds (the fact waits for one), ``IdInvalid`` or
    ``FactInvalid`` for what does not fit, and ``ServerUnavailable`` or ``ServerFull`` when Redis does not answer, or
    has no memory left.
    """

    # Settings.

    async def set_strategy(self, name: str, *, wait: float = ANSWER_S) -> None:
        """Choose agents by this strategy from now on; every distributor does within a second.

        Raises:
            ConfigError: no such strategy; names those that there are.
        """
        await self._control("distributor", StrategySet(name), wait)

    async def set_setting(self, name: str, value: str | float | None, *, wait: float = ANSWER_S) -> None:
        """Set one of ``coord.config.LIVE``; every distributor obeys within a second.

        Args:
            name: ``strategy`` or ``health_threshold``.
            value: None gives it back to the environment of the distributors.
            wait: seconds.

        Raises:
            ConfigError: it cannot be set live, or the value does not fit; says what does.
        """
        if name == "strategy" and value is not None:
            await self.set_strategy(str(value), wait=wait)
            return
        # By the worker's own rule, so that a slip is told at once and does not end among the dead letters.
        config.live_text(name, value if value is not None else getattr(self.settings, name, None))
        await self._control("distributor", SettingSet(name, value), wait)

    async def live_settings(self) -> list[queries.LiveSetting]:
        """Each setting that can be set live: its value, where that comes from, and what holds otherwise."""
        with reading():
            return await queries.list_settings(self.redis, self._keys, self.settings)

    # Agents.

    async def drain(self, agent_id: str, *, wait: float = ANSWER_S) -> AgentStatus:
        """Let an agent finish what it has and give it nothing new, whatever it says of itself, until it is resumed.

        Returns: its status now: ``draining``, or ``stale`` for one that is silent (and drains when it is back).

        Raises:
            AgentNotFound: no such agent, or it left.
        """
        return await self._status(AgentDrained(check_id(agent_id, "agent_id")), wait)

    async def resume(self, agent_id: str, *, wait: float = ANSWER_S) -> AgentStatus:
        """End the draining of an agent.

        Returns: its status now, which is what it says of itself: ``active``, or another one that it set by itself.

        Raises:
            AgentNotFound: no such agent, or it left.
        """
        return await self._status(AgentResumed(check_id(agent_id, "agent_id")), wait)

    async def remove(self, agent_id: str, *, wait: float = ANSWER_S) -> None:
        """Deregister an agent: what it has in flight goes to others, its record stays as those of agents that left.

        A process of it that still runs registers again with its next beat: stop it first.

        Raises:
            AgentNotFound: no such agent.
        """
        await self._control("registry", AgentRemoved(check_id(agent_id, "agent_id")), wait)

    # Dead letters.

    async def retry(self, task_id: str, *, wait: float = ANSWER_S) -> TaskHandle:
        """Try a failed task again: the same id, fresh attempts, its story kept.

        Returns: a handle that waits for the new outcome. Whoever submitted the task is told that as well.

        Raises:
            TaskNotFound: no such task, or it was forgotten.
            TaskNotDead: it has not failed; says what it is.
            TaskExpired: its deadline has passed; submit a new one.
        """
        await self._control("distributor", TaskReplayed(check_id(task_id, "task_id")), wait)
        self.watcher.begin_anew(task_id)
        return self.handle(task_id)

    async def replay(self, kind: DeadKind, dead_id: str, *, ttl: float | None = None, wait: float = ANSWER_S) -> str:
        """Set a dead letter going again.

        Args:
            kind: ``task`` (as ``retry``), ``message`` (delivered as if sent now), ``entry`` (of ``dead:in``, appended
                anew to the stream that it came from, where it is handled like any other).
            dead_id: the task's or the message's id, or the id of the entry in ``dead:in``.
            ttl: of a message: seconds to live from now on; default: the router's.
            wait: seconds.

        Returns: the id of what goes again: the task's, the message's, or of the entry in its stream.

        Raises:
            TaskNotFound, MessageNotFound, EntryNotFound: there is no such thing, or it was forgotten.
            TaskNotDead, MessageNotDead: it is no dead letter.
            TaskExpired: the task's deadline has passed.
            EntryTruncated: only the first 4 KiB of the entry were kept.
            AgentNotFound, MessageUndeliverable: the message still cannot be delivered; it stays a dead letter.
            FactInvalid: ``kind``, ``dead_id`` or ``ttl`` does not fit.
        """
        if kind == "task":
            await self.retry(dead_id, wait=wait)
        elif kind == "message":
            await self._control("router", MessageReplayed(check_id(dead_id, "message_id"), ttl), wait)
        elif kind == "entry":
            answer = await self._control(await self._kind_of_entry(dead_id), EntryReplayed(dead_id), wait)
            return str(_data(answer)["entry_id"])
        else:
            raise _unknown_kind(kind)
        return dead_id

    async def purge(
        self,
        kind: DeadKind,
        dead_id: str | None = None,
        *,
        older_than: float | None = None,
        wait: float = ANSWER_S,
    ) -> int:
        """Forget dead letters of a kind: one, or all that died ``older_than`` seconds ago or earlier (0: all).

        Many are forgotten 1,000 at a time, each step answered within ``wait`` seconds.

        Returns: how many were forgotten.

        Raises:
            TaskNotFound, MessageNotFound, EntryNotFound: there is none with this ``dead_id``.
            TaskNotDead, MessageNotDead: it is no dead letter.
            FactInvalid: ``kind`` is unknown, or not just one of ``dead_id`` and ``older_than`` was given.
        """
        if (dead_id is None) == (older_than is None):
            raise FactInvalid("give either dead_id or older_than, in seconds (0 for all)")
        purged = 0
        while True:
            if kind == "entry":
                answer = await self._control("registry", EntriesPurged(dead_id, older_than), wait)
            elif kind in _KINDS:
                if dead_id is not None:
                    check_id(dead_id, f"{kind}_id")
                authority = "distributor" if kind == "task" else "router"
                answer = await self._control(authority, DeadPurged(dead_id, older_than), wait)
            else:
                raise _unknown_kind(kind)
            told = _data(answer)
            purged += int(told["purged"])
            if not told["left"]:
                return purged

    # How it is told.

    @abstractmethod
    def handle(self, task_id: str) -> TaskHandle:
        """A handle of a task."""

    async def _control(self, kind: str, fact: Struct, wait: float) -> Answer:
        """Tell a kind of worker, and wait until one has answered that it is done."""
        wait = seconds(wait, "wait")
        one = Append(f"in:control:{kind}", fact, self.caller)
        _check(one, self.settings.max_entry_bytes)
        (entry,) = await self._append([one])
        answer = await self._answer((one.stream, entry), wait)
        if answer is None:
            raise ResultTimeout(f"no {kind} answered within {wait:g} s; the request waits for one")
        if not answer.ok:
            raise answer.error
        return answer

    async def _status(self, fact: Struct, wait: float) -> AgentStatus:
        return AgentStatus(_data(await self._control("registry", fact, wait))["status"])

    async def _kind_of_entry(self, entry_id: str) -> str:
        """The kind of worker that reads the stream from which an entry was buried."""
        _check(Append("in:control:registry", EntryReplayed(entry_id)), self.settings.max_entry_bytes)
        command = ("XRANGE", self._keys.of("dead:in"), entry_id, entry_id)
        with reading():
            found: list[tuple[bytes, dict[bytes, bytes]]] = await self.redis.execute_command(*command)
        stream = found[0][1].get(b"stream", b"").decode("utf-8", "replace") if found else ""
        for kind, streams in CONSUMES.items():
            if stream in streams:
                return kind
        raise EntryNotFound(f"entry '{entry_id}' is not in dead:in")


def _check(one: Append, max_bytes: int) -> None:
    """By the worker's own rules, so that a slip is told at once and does not end among the dead letters."""
    check_finite(one.fact, "")
    fields = {b"type": TYPE_OF[type(one.fact)].encode(), b"data": encoded(one.fact)}
    codec.decode_fact(one.stream, fields, max_bytes)


def _data(answer: Answer) -> Any:
    return codec.decode_json(answer.data)


def _unknown_kind(kind: str) -> FactInvalid:
    return FactInvalid(f"kind {kind!r} is none of {', '.join(_KINDS)}")
