"""What operators do with a cell: ``client.admin``.

Each change is a fact on ``in:control:{kind}``, answered by the worker that has made it. A fact that is appended twice,
because the first reply of Redis was lost, does no harm: the second one finds nothing left to do. ``retry`` and
``replay`` may then raise ``TaskNotDead`` and the like although their own first fact had its effect.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any, get_args

from msgspec import Struct

from coord import codec, config, queries
from coord.agent_token import check_token, digest_of_token, new_token
from coord.api_key import id_of_key, new_key, new_key_id
from coord.arguments import as_seconds, check_finite, decode_argument, encode_fields
from coord.client.answers import Answer
from coord.client.bulk import BulkOperation
from coord.client.connection import ClientConnection
from coord.client.handle import MAX_REASON, TaskHandle
from coord.client.submission import check_strategy
from coord.connection import reading
from coord.context import acting_for
from coord.errors import (
    AgentNotDraining,
    AgentNotFound,
    ApiKeyNotFound,
    ConfigError,
    EntryNotFound,
    FactInvalid,
    ResultTimeout,
)
from coord.keys import CONSUMES
from coord.models.agents import AgentStatus
from coord.models.api_keys import ApiKey, CallerRole
from coord.models.audit import AuditEntry
from coord.models.dead_letters import DeadKind
from coord.models.facts import (
    AgentDrained,
    AgentEnrolled,
    AgentMaintenanceBegun,
    AgentRemoved,
    AgentResumed,
    AgentsPruned,
    AgentTokenRevoked,
    AgentTokenRotated,
    ApiKeyCreated,
    ApiKeyRevoked,
    DeadPurged,
    EntriesPurged,
    EntryReplayed,
    LinkMade,
    LinkRemoved,
    MasterCleared,
    MasterSet,
    MessageReplayed,
    SettingSet,
    StrategySet,
    TaskReplayed,
    check_agent_id,
)
from coord.models.ids import check_id
from coord.models.operations import BulkAction, BulkResult
from coord.models.query import Query
from coord.models.strategies import MODIFIERS, Modifier, StrategyName
from coord.models.tasks import Priority
from coord.streams import Append
from coord.suggestions import not_one_of

#: Seconds that a worker has to answer.
ANSWER_S = 10.0
#: Seconds between two reads of an agent that drains.
POLL_S = 0.2
#: Seconds for which the earlier token of an agent stays valid when it is rotated.
GRACE_S = 3_600.0

_KINDS = get_args(DeadKind)


class Admin:
    """The operations of a client that are for operators; use it as ``client.admin``.

    Each method returns when a worker has done the request. ``timeout`` is how many seconds to wait for that (default
    10). In addition to its own errors, each method raises ``ResultTimeout`` if no worker answered in that time (the
    request waits for one), ``IdInvalid`` or ``FactInvalid`` for an argument that does not fit, and
    ``ServerUnavailable`` or ``ServerFull`` if Redis does not answer or is out of memory.
    """

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    # Settings.

    async def set_strategy(
        self,
        name: StrategyName | None,
        *,
        task_type: str | None = None,
        by: str | None = None,
        reason: str | None = None,
        timeout: float = ANSWER_S,
    ) -> None:
        """Choose agents by this strategy from now on; every distributor does so within a second.

        Args:
            name: of a placement strategy, see ``coord.models.strategies``; None resets it to what holds otherwise: for
                a task type the strategy of the cell, for the cell the environment of the distributors.
            task_type: only for tasks of this type; default: for all that set none.
            by: who makes the change, for the log; default: the id of this client.
            reason: why, for the audit; at most 128 characters.
            timeout: seconds to wait for the answer.

        Raises:
            ConfigError: there is no such strategy; names the strategies that there are.
        """
        await self.set_setting("strategy", name, task_type=task_type, by=by, reason=reason, timeout=timeout)

    async def set_modifier(
        self,
        name: Modifier,
        value: bool | None,
        *,
        task_type: str | None = None,
        by: str | None = None,
        reason: str | None = None,
        timeout: float = ANSWER_S,
    ) -> None:
        """Turn a modifier of placement on or off; every distributor uses it within a second.

        Args:
            name: ``ejection``, ``avoid_failed_agent`` or ``rare_skills_first``.
            value: True turns it on, False off; None resets it to what holds otherwise.
            task_type: only for tasks of this type; default: for all.
            by: who makes the change, for the log; default: the id of this client.
            reason: why, for the audit; at most 128 characters.
            timeout: seconds to wait for the answer.

        Raises:
            ConfigError: there is no such modifier; names the nearest.
        """
        if name not in MODIFIERS:
            raise ConfigError(not_one_of("modifier", name, MODIFIERS))
        await self.set_setting(name, value, task_type=task_type, by=by, reason=reason, timeout=timeout)

    async def set_setting(
        self,
        name: str,
        value: str | float | bool | None,
        *,
        task_type: str | None = None,
        by: str | None = None,
        reason: str | None = None,
        timeout: float = ANSWER_S,
    ) -> None:
        """Set one of ``coord.config.LIVE``; every distributor uses it within a second.

        Args:
            name: of the setting.
            value: None resets the setting to what holds otherwise: for a task type the value of the cell, for the cell
                the environment of the distributors.
            task_type: only for tasks of this type; possible for ``coord.config.PER_TYPE``.
            by: who makes the change, for the log; default: the id of this client.
            reason: why, for the audit; at most 128 characters.
            timeout: seconds to wait for the answer.

        Raises:
            ConfigError: it is not a live setting, or the value does not fit; names the valid ones.
        """
        # The worker's own checks, so that a mistake raises here and does not become a dead letter.
        config.check_live(name, task_type)
        if name == "strategy" and value is not None:
            check_strategy(value, ConfigError)
            await self._control("distributor", StrategySet(str(value), task_type, by, reason), timeout)
            return
        if value is not None:
            text = config.live_text(name, value, task_type)
            value = text if isinstance(value, bool) else value
        await self._control("distributor", SettingSet(name, value, task_type, by, reason), timeout)

    async def type_settings(self) -> dict[str, dict[str, str]]:
        """Return what is set for single types of tasks: task type -> setting -> value as text."""
        with reading():
            return await queries.get_type_values(self._connection.redis, self._connection.keys)

    async def setting_changes(self, limit: int = 100) -> list[queries.SettingChange]:
        """Return the latest changes of live settings, the latest first, as far as the log holds them.

        Args:
            limit: maximum number of changes.
        """
        with reading():
            return await queries.list_setting_changes(self._connection.redis, self._connection.keys, limit)

    async def live_settings(self) -> list[queries.LiveSetting]:
        """Return each live setting: its value, its source, and the value without it."""
        connection = self._connection
        with reading():
            return await queries.list_settings(connection.redis, connection.keys, connection.settings)

    # Agents.

    async def drain(self, agent_id: str, *, timeout: float = ANSWER_S) -> AgentStatus:
        """Let an agent finish its tasks and assign it nothing new, whatever it reports, until it is resumed.

        Returns: its status now: ``draining``, or ``stale`` if it is silent (it drains when it is back).

        Raises:
            AgentNotFound: there is no such agent, or it left.
        """
        return await self._change_agent(AgentDrained(check_id(agent_id, "agent_id")), timeout)

    async def wait_drained(
        self,
        agent_id: str,
        *,
        timeout: float | None = None,
        on_progress: Callable[[int], None] = lambda _left: None,
    ) -> None:
        """Wait until an agent that drains has no task left.

        Args:
            agent_id: id of the agent.
            timeout: seconds to wait; None: no limit.
            on_progress: called with the number of tasks left, at first and whenever it changes.

        Raises:
            AgentNotFound: there is no such agent.
            AgentNotDraining: the agent gets new tasks, so it never becomes empty.
            ResultTimeout: tasks were left after ``timeout`` seconds; the agent drains on.
        """
        connection, shown = self._connection, -1
        ends_at = math.inf if timeout is None else time.monotonic() + as_seconds(timeout, "timeout")
        while True:
            with reading():
                record = await queries.get_agent(connection.redis, connection.keys, check_id(agent_id, "agent_id"))
            if record is None and shown < 0:
                raise AgentNotFound(f"Agent '{agent_id}' not found")
            left = 0 if record is None else record.load  # a record is removed when nothing is left
            if left != shown:
                shown = left
                on_progress(shown)
            if record is None or not shown:
                return
            if record.status is AgentStatus.ACTIVE and not record.deaf:
                raise AgentNotDraining(
                    f"agent '{agent_id}' is active, so it gets new tasks; drain it first: coord agents drain {agent_id}"
                )
            if time.monotonic() >= ends_at:
                raise ResultTimeout(
                    f"agent '{agent_id}' has {shown} task{'s' * (shown != 1)} left after {timeout:g} s; it drains on"
                )
            await asyncio.sleep(POLL_S)

    async def maintain(self, agent_id: str, *, timeout: float = ANSWER_S) -> AgentStatus:
        """Put an agent into maintenance: as a drain, with a status of its own. The later of the two counts.

        Returns: its status now: ``maintenance``, or ``stale`` if it is silent (it is in maintenance when it is back).

        Raises:
            AgentNotFound: there is no such agent, or it left.
        """
        return await self._change_agent(AgentMaintenanceBegun(check_id(agent_id, "agent_id")), timeout)

    async def resume(self, agent_id: str, *, timeout: float = ANSWER_S) -> AgentStatus:
        """End the draining or the maintenance of an agent.

        Returns: its status now, as the agent itself reports it: ``active``, or another one that it has set.

        Raises:
            AgentNotFound: there is no such agent, or it left.
        """
        return await self._change_agent(AgentResumed(check_id(agent_id, "agent_id")), timeout)

    async def remove(self, agent_id: str, *, timeout: float = ANSWER_S) -> None:
        """Deregister an agent: its tasks go to others, its record stays like that of an agent that left.

        A process of the agent that still runs registers again with its next heartbeat: stop it first.

        Raises:
            AgentNotFound: there is no such agent.
        """
        await self._control("registry", AgentRemoved(check_id(agent_id, "agent_id")), timeout)

    async def prune_agents(self, older_than: float, *, timeout: float = ANSWER_S) -> int:
        """Remove the records of agents that left, or turned stale, at least ``older_than`` seconds ago.

        An agent whose tasks have not been taken back yet stays. A silent process that comes back registers again.

        Args:
            older_than: seconds; 0: all. Up to 200 are removed in one step.
            timeout: seconds to wait for the answer to each step.

        Returns: the number of removed records.
        """
        pruned = 0
        while True:
            step = _data(await self._control("registry", AgentsPruned(older_than), timeout))
            pruned += int(step["pruned"])
            if not step["left"] or not (step["pruned"] or step["unread"]):
                return pruned

    # Tokens of agents.

    async def enrol(self, agent_id: str, *, token: str | None = None, timeout: float = ANSWER_S) -> str:
        """Give an agent its first token, which it needs where ``COORD_REQUIRE_TOKENS`` is set.

        The token is made here, and only its SHA-256 is sent and stored: hand it to the agent, nobody can read it later.

        Args:
            agent_id: of the agent; it need not be registered yet.
            token: 16 to 512 visible ASCII characters that cannot be guessed; default: a new random one.
            timeout: seconds to wait for the answer.

        Returns: the token.

        Raises:
            AgentIsEnrolled: it has another token already: rotate or revoke that.
            ConfigError: the token does not fit.
        """
        token = new_token() if token is None else check_token(token, "token")
        await self._control("registry", AgentEnrolled(check_agent_id(agent_id), digest_of_token(token)), timeout)
        return token

    async def rotate(
        self, agent_id: str, *, token: str | None = None, grace: float = GRACE_S, timeout: float = ANSWER_S
    ) -> str:
        """Replace the token of an agent.

        Args:
            agent_id: of the agent.
            token: the new one, as for ``enrol``; default: a new random one.
            grace: seconds for which the earlier token stays valid, up to 30 days; 0: it is invalid at once.
            timeout: seconds to wait for the answer.

        Returns: the new token.

        Raises:
            AgentNotEnrolled: it has no token.
            ConfigError: the token does not fit.
        """
        token = new_token() if token is None else check_token(token, "token")
        grace = as_seconds(grace, "grace")
        fact = AgentTokenRotated(check_id(agent_id, "agent_id"), digest_of_token(token), grace)
        await self._control("registry", fact, timeout)
        return token

    async def tokens(self) -> list[queries.TokenState]:
        """Return for each registered agent if it has a token; read this before tokens are required."""
        with reading():
            return await queries.list_tokens(self._connection.redis, self._connection.keys)

    async def revoke(self, agent_id: str, *, timeout: float = ANSWER_S) -> None:
        """Revoke the token of an agent at once, and an earlier one that is still valid.

        Its process stops with its next heartbeat. It keeps its Redis user and the leases of tasks that it holds:
        ``remove`` gives its tasks to others.

        Raises:
            AgentNotEnrolled: it has no token.
        """
        await self._control("registry", AgentTokenRevoked(check_id(agent_id, "agent_id")), timeout)

    # Keys of the HTTP API.

    async def create_key(
        self,
        role: CallerRole | str,
        *,
        agent_id: str | None = None,
        name: str = "",
        lifetime: float | None = None,
        timeout: float = ANSWER_S,
    ) -> tuple[str, ApiKey]:
        """Make a key of the HTTP API.

        The key is made here, and only its SHA-256 is sent and stored: hand it out, nobody can read it later.

        Args:
            role: what its holder may do: ``readonly``, ``client``, ``agent``, ``operator`` or ``admin``.
            agent_id: with the role ``agent``: the only agent that it may act for.
            name: whom it is for, up to 128 characters.
            lifetime: seconds for which it is valid, up to ten years; None: until it is revoked.
            timeout: seconds to wait for the answer.

        Returns: the key, and what the cell knows of it.

        Raises:
            FactInvalid: an argument does not fit.
            ApiKeysFull: there are 10,000 keys.
        """
        if role not in set(CallerRole):
            raise FactInvalid(not_one_of("role", str(role), list(CallerRole)))
        if (role == CallerRole.AGENT) != (agent_id is not None):
            raise FactInvalid("agent_id is needed with the role agent, and with no other role")
        key_id = new_key_id()
        key = new_key(key_id)
        lifetime = None if lifetime is None else as_seconds(lifetime, "lifetime")
        owner = None if agent_id is None else check_id(agent_id, "agent_id")
        fact = ApiKeyCreated(key_id, digest_of_token(key), CallerRole(role), owner, name, lifetime)
        await self._control("registry", fact, timeout)
        with reading():
            found = await queries.get_api_key(self._connection.redis, self._connection.keys, key_id)
        if found is None:
            raise ApiKeyNotFound(f"API key '{key_id}' was revoked at once")
        return key, found[0]

    async def keys(self) -> list[ApiKey]:
        """Return the keys of the HTTP API, the oldest first, also those that have expired."""
        with reading():
            return await queries.list_api_keys(self._connection.redis, self._connection.keys)

    async def revoke_key(self, key_id: str, *, timeout: float = ANSWER_S) -> None:
        """Revoke a key of the HTTP API, and all JWTs that were issued for it; every gateway refuses them in a second.

        Args:
            key_id: its id, or the key itself.
            timeout: seconds to wait for the answer.

        Raises:
            ApiKeyNotFound: no key has this id.
        """
        found = id_of_key(key_id) or key_id
        if not re.fullmatch(r"[0-9a-f]{12}", found):
            raise ApiKeyNotFound("that is no id of an API key: `coord keys list` shows the ids")
        await self._control("registry", ApiKeyRevoked(found), timeout)

    # Links.

    async def link(self, agent_id: str, peer_id: str, *, timeout: float = ANSWER_S) -> None:
        """Link two agents, without their consent: messages of the protocol ``peer_to_peer`` pass between them.

        Raises:
            AgentNotFound: one of them has no record.
            LinksFull: one of them has as many links as it may have.
        """
        await self._control("router", LinkMade(*_pair(agent_id, peer_id, "peer_id")), timeout)

    async def unlink(self, agent_id: str, peer_id: str, *, timeout: float = ANSWER_S) -> None:
        """End the link between two agents, or the request of either of them."""
        await self._control("router", LinkRemoved(*_pair(agent_id, peer_id, "peer_id")), timeout)

    async def set_master(self, agent_id: str, master_id: str | None, *, timeout: float = ANSWER_S) -> None:
        """Set the master of an agent, in place of an earlier one.

        Args:
            agent_id: the subordinate.
            master_id: None: it has no master from now on.
            timeout: seconds to wait for the answer.

        Raises:
            AgentNotFound: one of them has no record.
            HierarchyCycle: the master is below the agent.
            LinksFull: the master has as many subordinates, or masters above it, as an agent may have.
        """
        if master_id is None:
            await self._control("router", MasterCleared(check_id(agent_id, "agent_id")), timeout)
        else:
            await self._control("router", MasterSet(*_pair(agent_id, master_id, "master_id")), timeout)

    # Dead letters.

    async def retry(self, task_id: str, *, timeout: float = ANSWER_S) -> TaskHandle:
        """Queue a failed task again: the same id, fresh attempts, its history kept.

        Returns: a handle that waits for the new outcome. The client that submitted the task gets that outcome as well.

        Raises:
            TaskNotFound: there is no such task, or its record was removed.
            TaskNotDead: it has not failed; names its state.
            TaskExpired: its deadline has passed; submit a new one.
        """
        await self._control("distributor", TaskReplayed(check_id(task_id, "task_id")), timeout)
        watcher = self._connection.watcher
        watcher.forget(task_id)
        return TaskHandle(self._connection, watcher.watch(task_id), "", None)

    async def replay(self, kind: DeadKind, dead_id: str, *, ttl: float | None = None, timeout: float = ANSWER_S) -> str:
        """Replay a dead letter.

        Args:
            kind: ``task`` (as ``retry``), ``message`` (delivered as if sent now), ``entry`` (of ``dead:in``, appended
                again to the stream that it came from, where it is handled like any other).
            dead_id: the task's or the message's id, or the id of the entry in ``dead:in``.
            ttl: of a message: its new time to live in seconds; default: that of the routers.
            timeout: seconds to wait for the answer.

        Returns: the id of what was replayed: the task's, the message's, or that of the new entry in its stream.

        Raises:
            TaskNotFound, MessageNotFound, EntryNotFound: it does not exist, or not any more.
            TaskNotDead, MessageNotDead: it is not a dead letter.
            TaskExpired: the deadline of the task has passed.
            EntryTruncated: only the first 4 KiB of the entry were kept.
            AgentNotFound, MessageUndeliverable: the message still cannot be delivered; it stays a dead letter.
            FactInvalid: ``kind``, ``dead_id`` or ``ttl`` does not fit.
        """
        if kind == "task":
            await self.retry(dead_id, timeout=timeout)
        elif kind == "message":
            await self._control("router", MessageReplayed(check_id(dead_id, "message_id"), ttl), timeout)
        elif kind == "entry":
            answer = await self._control(await self._worker_of_entry(dead_id), EntryReplayed(dead_id), timeout)
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
        timeout: float = ANSWER_S,
    ) -> int:
        """Delete dead letters: one, or all of a kind that are at least ``older_than`` seconds old.

        Args:
            kind: ``task``, ``message`` or ``entry``.
            dead_id: the id of one dead letter.
            older_than: seconds; 0: all. Up to 1,000 are deleted in one step.
            timeout: seconds to wait for the answer to each step.

        Returns: the number of deleted dead letters.

        Raises:
            TaskNotFound, MessageNotFound, EntryNotFound: there is none with this ``dead_id``.
            TaskNotDead, MessageNotDead: it is not a dead letter.
            FactInvalid: ``kind`` is unknown, or not exactly one of ``dead_id`` and ``older_than`` is set.
        """
        if (dead_id is None) == (older_than is None):
            raise FactInvalid("give either dead_id or older_than, in seconds (0 for all)")
        purged = 0
        while True:
            if kind == "entry":
                answer = await self._control("registry", EntriesPurged(dead_id, older_than), timeout)
            elif kind in _KINDS:
                if dead_id is not None:
                    check_id(dead_id, f"{kind}_id")
                authority = "distributor" if kind == "task" else "router"
                answer = await self._control(authority, DeadPurged(dead_id, older_than), timeout)
            else:
                raise _unknown_kind(kind)
            step = _data(answer)
            purged += int(step["purged"])
            if not step["left"]:
                return purged

    # The audit.

    async def audit(self, *, limit: int = 100, cursor: str | None = None) -> queries.AuditPage:
        """List what operators have changed, and who asked for it, the latest first, as far as the log holds it.

        Args:
            limit: maximum number of entries, at least 1.
            cursor: continue after a page, from its ``next``.

        Raises:
            CursorInvalid: the cursor is not from the audit.
        """
        with reading():
            return await queries.list_audit(self._connection.redis, self._connection.keys, limit=limit, cursor=cursor)

    async def follow_audit(self, since: str | None = None) -> AsyncGenerator[AuditEntry]:
        """Iterate over what operators change, in order, for ever; use ``contextlib.aclosing`` to leave early.

        Args:
            since: id of the entry after which to begin (``0-0``: the oldest that is kept); None: from now on.
        """
        connection = self._connection
        if since is None:
            with reading():
                latest = (await queries.list_audit(connection.redis, connection.keys, limit=1)).entries
            since = latest[0].id if latest else "0-0"
        while True:
            with reading():
                found = await queries.get_audit_since(connection.redis, connection.keys, since)
            for entry in found:
                since = entry.id
                yield entry
            if not found:
                await asyncio.sleep(POLL_S)

    # Many tasks.

    async def bulk(
        self,
        action: BulkAction,
        query: str | Query,
        *,
        priority: Priority | str | None = None,
        reason: str = "",
        dry_run: bool = False,
        limit: int | None = None,
        cursor: str | None = None,
        operation: str | None = None,
        timeout: float = ANSWER_S,
        on_progress: Callable[[BulkResult], None] = lambda _result: None,
    ) -> BulkResult:
        """Cancel, retry or prioritize all tasks that match a query, 200 in one request.

        Each request is one atomic step. If the program is killed, the same call does the rest: a task that was changed
        does not match any more, and a running task that was asked to stop is skipped as ``unchanged``. For a retry pass
        ``operation`` as well, or tasks that failed again are retried once more.

        Args:
            action: ``cancel``, ``retry`` (``replay`` is the same) or ``prioritize``.
            query: such as ``type:ocr age:>1h``, or ``id:*`` for all; only tasks in a state for the action are changed.
            priority: the new one; with ``prioritize``.
            reason: of a cancel; at most 4,096 characters.
            dry_run: only count the tasks.
            limit: stop after so many tasks, at least 1; None: all.
            cursor: continue after an earlier result, from its ``next``.
            operation: continue an operation, by the ``operation`` of its result.
            timeout: seconds to wait for the answer to each request.
            on_progress: called after each request with the result so far.

        Returns: the numbers; ``next`` is None when the operation is complete.

        Raises:
            QueryInvalid: the query is empty or does not fit; names the position and the nearest valid text.
            CursorInvalid: the cursor is not from a list of tasks.
            FactInvalid: another argument does not fit.
            ServerUnavailable, ServerFull: Redis does not answer, or is out of memory; the error names the ``operation``
                that continues.
        """
        bulk = BulkOperation(
            self._connection, action, query, priority=priority, reason=reason[:MAX_REASON], operation=operation
        )
        if dry_run:
            return await bulk.count(limit, cursor)
        return await bulk.run(timeout=timeout, limit=limit, cursor=cursor, on_progress=on_progress)

    # Requests.

    async def _control(self, worker: str, fact: Struct, timeout: float) -> Answer:
        """Send a request to a kind of worker and wait until it is done."""
        timeout = as_seconds(timeout, "timeout")
        append = Append(f"in:control:{worker}", fact, self._connection.caller, by=acting_for.get())
        _check(append, self._connection.settings.max_entry_bytes)
        answer = (await self._connection.request(append, timeout, worker)).answer
        if not answer.ok:
            raise answer.error
        return answer

    async def _change_agent(self, fact: Struct, timeout: float) -> AgentStatus:
        return AgentStatus(_data(await self._control("registry", fact, timeout))["status"])

    async def _worker_of_entry(self, entry_id: str) -> str:
        """Return the kind of worker that reads the stream from which an entry was moved to ``dead:in``."""
        connection = self._connection
        _check(Append("in:control:registry", EntryReplayed(entry_id)), connection.settings.max_entry_bytes)
        with reading():
            entry = await queries.get_dead_entry(connection.redis, connection.keys, entry_id)
        for worker, streams in CONSUMES.items():
            if entry is not None and entry.stream in streams:
                return worker
        raise EntryNotFound(f"entry '{entry_id}' is not in dead:in")


def _check(append: Append, max_bytes: int) -> None:
    """Apply the worker's own checks, so that a mistake raises here and does not become a dead letter."""
    check_finite(append.fact, "")
    decode_argument(append.stream, type(append.fact), encode_fields(append.fact), max_bytes)


def _pair(agent_id: str, other_id: str, name: str) -> tuple[str, str]:
    pair = check_id(agent_id, "agent_id"), check_id(other_id, name)
    if agent_id == other_id:
        raise FactInvalid(f"{name} must be another agent than agent_id, not also {other_id!r}")
    return pair


def _data(answer: Answer) -> Any:
    return codec.decode_json(answer.data)


def _unknown_kind(kind: str) -> FactInvalid:
    return FactInvalid(f"kind: expected one of {', '.join(_KINDS)}, not {kind!r}")
