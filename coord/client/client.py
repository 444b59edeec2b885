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

from coord import queries, spans
from coord.arguments import as_list, as_seconds, check_limit
from coord.client.admin import Admin
from coord.client.agents import AgentReads
from coord.client.connection import REACH_S, ClientConnection
from coord.client.events import follow_events
from coord.client.handle import CANCEL_ANSWER_S, CancelAnswer, TaskHandle, cancel_task, cancel_tasks, read_task
from coord.client.messages import Messaging
from coord.client.outcomes import closed
from coord.client.submission import (
    TaskOptions,
    TaskSpec,
    group_tasks,
    spec_of,
    task_append,
)
from coord.config import Settings
from coord.connection import reading
from coord.context import current_work
from coord.errors import (
    CoordError,
    EntryNotFound,
    FactInvalid,
    ResultTimeout,
    TaskNotFound,
)
from coord.models.cell import MemoryUse
from coord.models.dead_letters import DeadEntry, DeadKind, DeadLetter
from coord.models.events import Event
from coord.models.explanations import Explanation, WaitingCounts, WaitingReason
from coord.models.ids import check_id, entry_ms
from coord.models.plans import Plans
from coord.models.query import Query
from coord.models.statistics import CellStatistics
from coord.models.task_query import TASKS
from coord.models.tasks import TERMINAL, TaskRecord, TaskState, TaskSubmitted
from coord.models.traces import Trace
from coord.streams import Append

#: Maximum number of tasks appended in one round trip …
BATCH = 500
#: … and bytes of their payloads, about.
BATCH_BYTES = 1024 * 1024


#: Events of the end of a task.
_ENDED = frozenset(f"task.{state}" for state in TERMINAL)
#: ms by which the end of a task may be earlier than its event.
OVERLAP_MS = 1_000


class Client(AgentReads, Messaging):
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

    async def open(self) -> None:
        """Connect; ``async with`` does this.

        Raises:
            ServerUnavailable: no Redis answers within ``reach_s`` seconds.
            ConfigError: the server refuses the credentials, or its certificate is not trusted; or the client is open
                in another event loop; or ``settings.tracing`` is on and ``coord[otel]`` is not installed.
            ServerUnfit: the server refuses a PING permanently, for example to a user without the permission.
        """
        if self.settings.tracing:
            spans.enable()
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
        if spans.recorder is not None:
            return (await self._submit_traced(spans.recorder, [spec]))[0]
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
        if spans.recorder is not None:
            return await self._submit_traced(spans.recorder, [spec_of(spec) for spec in specs])
        return await self._submit_all(specs)

    async def _submit_traced(self, recorder: spans.Recorder, specs: list[TaskSpec]) -> list[TaskHandle]:
        """Submit tasks within a span, to which they belong; several that have a place in a trace already keep it."""
        parent = specs[0].traceparent if len(specs) == 1 else None
        if parent is None and (work := current_work.get()) is not None:
            parent = work.traceparent
        types = dict.fromkeys(str(spec.task_type) for spec in specs)
        attributes: spans.Attributes = {"coord.tasks": len(specs), "coord.task_types": " ".join([*types][:10])}
        with recorder.span("coord.submit", parent, "producer", attributes) as span:
            placed = [
                replace(spec, traceparent=span.traceparent)
                if span.traceparent is not None and (spec.traceparent is None or len(specs) == 1)
                else spec
                for spec in specs
            ]
            return await self._submit_all(placed)

    async def _submit_all(self, specs: Iterable[TaskSpec | Mapping[str, Any]]) -> list[TaskHandle]:
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
        query: str | Query = "",
        *,
        states: Collection[TaskState] = (),
        task_type: str | None = None,
        agent_id: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
        once: bool = False,
    ) -> queries.TaskPage:
        """List tasks: those that agents hold, those that wait, those that failed, and the others that ended.

        The records have no payload, result, progress and attempts. A task that stays in its state is listed once; a
        task that moves meanwhile may be listed twice or not at all.

        Args:
            query: only tasks that match it, such as ``type:ocr state:failed age:>1h``; empty: all.
            states: only these; empty: all.
            task_type: only this type.
            agent_id: only tasks that this agent holds or has ended.
            limit: maximum number of tasks, at least 1.
            cursor: continue after a page of the same query, from its ``next``.
            once: examine at most 10,000 tasks. The page may then be short, even empty, and its ``next`` continues.

        Raises:
            QueryInvalid: the query does not fit; names the position and the nearest valid text.
            CursorInvalid: the cursor is not from a list of tasks.
            FactInvalid: the limit is below 1.
        """
        check_limit(limit)
        wanted = TASKS.parse(query) if isinstance(query, str) else query
        wanted = wanted.with_term("state", tuple(states))
        wanted = wanted.with_term("type", () if task_type is None else (task_type,))
        wanted = wanted.with_term("agent", () if agent_id is None else (agent_id,))
        found: list[TaskRecord] = []
        while True:
            with reading():
                page = await queries.find_tasks(
                    self.connection.redis,
                    self.connection.keys,
                    wanted,
                    settings=self.connection.settings,
                    limit=limit - len(found),
                    cursor=cursor,
                )
            found += page.tasks
            cursor = page.next
            if cursor is None or len(found) >= limit or once:
                return queries.TaskPage(tuple(found), cursor)

    async def results(self, query: str | Query = "", *, follow: bool = False) -> AsyncGenerator[TaskRecord]:
        """Iterate over the records of ended tasks that match a query, with their results, the first that ended first.

        Use ``contextlib.aclosing`` if you leave the loop early.

        Args:
            query: such as ``type:ocr since:1h``; empty: all.
            follow: continue with the tasks that end later, for ever, also across outages of Redis. A task comes again
                if it is replayed and ends again. Ends that are trimmed from the log before they are read are missing.

        Raises:
            QueryInvalid: the query does not fit; names the position and the nearest valid text.
            ServerUnavailable: Redis is unavailable at the beginning, or at any time without ``follow``.
        """
        wanted = TASKS.parse(query) if isinstance(query, str) else query
        redis, keys = self.connection.redis, self.connection.keys
        with reading():
            since = f"{await queries.get_time(redis) - 1}-0"  # events from now on, so that none is lost in between
            seen: set[tuple[str, int | None]] = set()
            async with aclosing(queries.list_outcomes(redis, keys, wanted)) as outcomes:
                async for record in outcomes:
                    if follow and (record.finished_at or 0) >= entry_ms(since) - OVERLAP_MS:
                        seen.add((record.task_id, record.finished_at))
                    yield record
        if not follow:
            return
        async with aclosing(self.events(since=since)) as events:
            async for event in events:
                if event.type not in _ENDED:
                    continue
                with reading():
                    now = event.at
                    found = await queries.matching_outcomes(redis, keys, wanted, [event.fields["task_id"]], now)
                for record in found:
                    if (record.task_id, record.finished_at) not in seen:
                        yield record

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

    async def cancel_many(
        self, task_ids: Iterable[str], reason: str = "", *, timeout: float = CANCEL_ANSWER_S
    ) -> dict[str, CancelAnswer | CoordError | None]:
        """Request that many tasks are cancelled; a round trip for every 500.

        Args:
            task_ids: ids of the tasks.
            reason: as ``cancel``.
            timeout: seconds to wait for the answers to each round trip.

        Returns: task -> ``accepted`` or ``pending``, as ``cancel``; the error that ``cancel`` would raise; or None: no
            distributor answered in time, and the request waits for one.

        Raises:
            IdInvalid, FactInvalid: an id or the reason does not fit.
            ServerUnavailable, ServerFull: Redis does not answer, or is out of memory.
        """
        ids = list(dict.fromkeys(check_id(task_id, "task_id") for task_id in task_ids))
        found: dict[str, CancelAnswer | CoordError | None] = {}
        for at in range(0, len(ids), BATCH):
            some = ids[at : at + BATCH]
            found.update(zip(some, await cancel_tasks(self.connection, some, reason, timeout=timeout), strict=True))
        return found

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

    async def waiting_reasons(self, task_ids: Iterable[str]) -> dict[str, WaitingReason | None]:
        """Return why each of these tasks waits, None if it does not; a task without a record is left out.

        If one of them waits for an agent, it reads all pools and agents: ask for many tasks at once.
        """
        ids = [check_id(task_id, "task_id") for task_id in task_ids]
        connection = self.connection
        with reading():
            return await queries.get_task_reasons(connection.redis, connection.keys, self.settings, ids)

    async def workers(self) -> queries.WorkersSnapshot:
        """Return the workers that are present, and the length and age of every stream that they read."""
        with reading():
            return await queries.list_workers(self.connection.redis, self.connection.keys)

    async def count_workers(self) -> dict[str, int]:
        """Return how many workers of each kind are present; one round trip."""
        ttl_ms = int(self.settings.presence_ttl_s * 1000)
        with reading():
            return await queries.count_workers(self.connection.redis, self.connection.keys, ttl_ms)

    async def stats(self) -> CellStatistics:
        """Return the statistics of the cell: totals, queues, agents, workers, streams, histograms; two round trips.

        They cost the same however many tasks, pools and agents there are.

        Raises:
            ServerUnavailable: Redis is unavailable.
        """
        ttl_ms = int(self.settings.presence_ttl_s * 1000)
        with reading():
            return await queries.get_statistics(
                self.connection.redis, self.connection.keys, self.settings, presence_ttl_ms=ttl_ms
            )

    async def agent_weights(self) -> dict[str, float]:
        """Return the weight of each agent that may get work now; a round trip for every 1,000 agents."""
        with reading():
            return await queries.get_weights(self.connection.redis, self.connection.keys)

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
