"""A client: submits tasks, waits for what becomes of them, cancels, sends messages, looks things up.

Everything that it changes, it changes by appending a fact. Its connection repeats a command whose answer was lost, so
a fact may be appended twice: that is harmless, because the task's or message's id makes the second one change nothing.

What Redis fails with becomes an error of ``coord.errors``, for reads as for writes (``coord.connection``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, Unpack

from msgspec import Struct

from coord import queries
from coord.arguments import all_of, seconds
from coord.client.admin import Operator
from coord.client.handle import TaskHandle, closed
from coord.client.submission import TaskOptions, TaskSpec, checked, message_append, spec_of, task_append, together
from coord.connection import reading
from coord.errors import AgentNotFound, CoordError, FactInvalid, ResultTimeout, TaskNotFound
from coord.models.agents import AgentRecord
from coord.models.facts import TaskCancelRequested
from coord.models.ids import check_id, new_id
from coord.models.tasks import Priority, TaskRecord, TaskSubmitted
from coord.streams import Append

#: Tasks appended in one round trip at most …
BATCH = 500
#: … and bytes of their payloads, about.
BATCH_BYTES = 1024 * 1024
#: How long the router may take to answer for a message.
RECEIPT_S = 10.0

CancelAnswer = Literal["accepted", "pending", "sent"]


class Receipt(Struct, frozen=True):
    """A message was delivered into its receiver's inbox."""

    message_id: str
    receiver_id: str
    entry_id: str  #: of the fact


class Client(Operator):
    """One connection to a cell for any number of coroutines; use it as ``async with Client() as client``.

    ``url``, ``settings``, ``reach_s``: see ``Caller``, which opens and closes it. What only operators need
    (``drain``, ``retry``, ``set_strategy`` and so on) is inherited from ``Operator``.
    """

    # Tasks.

    async def submit(self, task_type: str, payload: Any = None, **options: Unpack[TaskOptions]) -> TaskHandle:
        """Submit a task; returns when Redis has it.

        Args:
            task_type: what is to be done; without ``requirements`` or ``capabilities`` an agent is required that has
                the capability of this name, as every agent has that has a handler for it.
            payload: any JSON, or what msgspec makes JSON of; default ``{}``.
            options: the other fields of ``TaskSpec``: ``task_id``, ``priority``, ``capabilities``, ``requirements``,
                ``timeout``, ``deadline``, ``delay``, ``run_at``, ``retry``, ``strategy``, ``notify``.

        Raises:
            FactInvalid, IdInvalid, FactTooLarge: it does not fit; nothing was appended.
            ServerUnavailable, ServerFull: Redis does not answer, or has no memory left.
        """
        spec = spec_of({"task_type": task_type, "payload": {} if payload is None else payload, **options})
        return (await self._submit([task_append(spec, self.caller, self.settings.max_entry_bytes)]))[0]

    async def submit_many(self, specs: Iterable[TaskSpec | Mapping[str, Any]]) -> list[TaskHandle]:
        """Submit many tasks, in bounded round trips; each is a ``TaskSpec`` or a mapping of its fields.

        Raises: as ``submit``. Where one does not fit, none is submitted; where Redis fails on the way, some may be, and
            submitting all again with the same task ids is safe.
        """
        if not isinstance(specs, Iterable):
            raise FactInvalid(f"specs: expected tasks, each a TaskSpec or a mapping, not {type(specs).__name__}")
        batches: list[list[Append]] = []
        size = BATCH_BYTES
        for number, given in enumerate(specs):
            try:
                one = task_append(spec_of(given), self.caller, self.settings.max_entry_bytes)
            except CoordError as error:
                raise type(error)(f"specs[{number}]: {error}") from None
            if size >= BATCH_BYTES or len(batches[-1]) >= BATCH:
                if batches:
                    await asyncio.sleep(0)  # others have their turn
                batches.append([])
                size = 0
            batches[-1].append(one)
            size += len(one.fact.payload) if isinstance(one.fact, TaskSubmitted) else 0
        return [handle for batch in batches for handle in await self._submit(batch)]

    async def _submit(self, batch: Sequence[Append]) -> list[TaskHandle]:
        # Watched before they are appended: an outcome may be told before the answer to the append is here.
        facts = [one.fact for one in batch if isinstance(one.fact, TaskSubmitted)]
        watches = self.watcher.watch_submissions(facts)
        parcels = together(batch, self.settings.max_entry_bytes)
        try:
            entries = await self._append([one.append for one in parcels])
        except BaseException:
            for watch in watches:
                watch.entry = ""
            raise
        handles: list[TaskHandle] = []
        rest = iter(watches)
        for parcel, entry in zip(parcels, entries, strict=True):
            some = [next(rest) for _ in range(parcel.tasks)]
            stream = parcel.append.stream
            answers = self.watcher.answers((stream, entry), [watch.task_id for watch in some])
            for watch, answer in zip(some, answers, strict=True):
                watch.stream, watch.entry = stream, entry
                handles.append(TaskHandle(self, watch, entry, answer))
        return handles

    def handle(self, task_id: str) -> TaskHandle:
        """A handle of a task that was submitted before, by whomever; its result is waited for by looking."""
        return TaskHandle(self, self.watcher.watch(check_id(task_id, "task_id")), "", None)

    async def as_completed(
        self, handles: Iterable[TaskHandle], timeout: float | None = None
    ) -> AsyncIterator[TaskHandle]:
        """The handles in the order in which their tasks end, however they end.

        Raises:
            ResultTimeout: the next one had no outcome within ``timeout`` seconds after the one before.
            ConfigError: the client was closed meanwhile.
        """
        waiting = dict.fromkeys(all_of(handles, TaskHandle, "handles"))
        timeout = None if timeout is None else seconds(timeout, "timeout")
        ready: asyncio.Queue[TaskHandle] = asyncio.Queue()
        ended: set[TaskHandle] = set()

        def tell(handle: TaskHandle) -> None:
            if handle not in ended:
                ended.add(handle)
                ready.put_nowait(handle)

        with ExitStack() as stack:
            for handle in waiting:
                stack.enter_context(handle.waited_for(tell))
            for left in range(len(waiting), 0, -1):
                try:
                    handle = await asyncio.wait_for(ready.get(), timeout)
                except TimeoutError:
                    raise ResultTimeout(f"none of {left} tasks ended within {timeout:g} s; they go on") from None
                if handle.outcome is None:
                    raise closed()
                yield handle

    async def task(self, task_id: str) -> TaskRecord:
        """A task's record; raises ``TaskNotFound``."""
        with reading():
            record = await queries.get_task(self.redis, self._keys, check_id(task_id, "task_id"))
        if record is None:
            raise TaskNotFound(f"Task '{task_id}' not found")
        return record

    async def cancel(self, task_id: str, reason: str = "", *, wait: float = 2.0) -> CancelAnswer:
        """Ask for a task to be cancelled.

        Returns:
            ``accepted``: it is cancelled, or its agent was told to stop and will be overruled if it does not;
            ``pending``: it is not known yet, and will be cancelled if its submission comes;
            ``sent``: nobody answered within ``wait`` seconds; the request waits for a distributor.

        Raises:
            TaskNotFound: no such task.
            TaskAlreadyFinished: it has another outcome.
        """
        wait = seconds(wait, "wait")
        if not isinstance(reason, str):
            raise FactInvalid(f"reason: expected text, not {type(reason).__name__}")
        said = TaskCancelRequested(check_id(task_id, "task_id"), reason[:4096])
        fact, data = checked("in:requests", TaskCancelRequested, said, self.settings.max_entry_bytes)
        one = Append("in:requests", fact, self.caller, data)
        (entry,) = await self._append([one])
        answer = await self._answer((one.stream, entry), wait)
        if answer is None:
            return "sent"
        if answer.ok:
            return "accepted"
        if answer.code == "pending":
            return "pending"
        raise answer.error

    # Messages.

    async def send(
        self,
        receiver_id: str,
        payload: Any = None,
        *,
        sender_id: str | None = None,
        priority: str = Priority.NORMAL,
        ttl: float | None = None,
        correlation_id: str | None = None,
        reply_to: str | None = None,
        message_id: str | None = None,
        timeout: float = RECEIPT_S,
    ) -> Receipt:
        """Send a message to an agent; returns when it lies in its inbox.

        Args:
            receiver_id: the agent.
            payload: any JSON, or what msgspec makes JSON of.
            sender_id: who sends; default: this client's caller id.
            priority: urgent, critical, high, normal or low; the first two share a lane.
            ttl: seconds; it is not handled after that.
            correlation_id: an id that tells what it belongs to.
            reply_to: the id of the message that it answers.
            message_id: default: a new one; the same id with the same content is delivered once.
            timeout: seconds to wait for the router.

        Raises:
            AgentNotFound: there is no such receiver.
            MessageUndeliverable: its inbox is full.
            MessageExpired: its time to live passed before it was delivered.
            IdConflict: the id was used before with other content.
            ResultTimeout: no router answered in time; the message waits for one.
            FactInvalid, IdInvalid, FactTooLarge: it does not fit; nothing was sent.
        """
        timeout = seconds(timeout, "timeout")
        said = {
            "message_id": new_id() if message_id is None else message_id,
            "sender_id": self.caller if sender_id is None else sender_id,
            "receiver_id": receiver_id,
            "payload": {} if payload is None else payload,
            "ttl": ttl,
            "correlation_id": correlation_id,
            "reply_to": reply_to,
        }
        one = message_append(said, priority, self.caller, self.settings.max_entry_bytes)
        (entry,) = await self._append([one])
        answer = await self._answer((one.stream, entry), timeout)
        if answer is None:
            raise ResultTimeout(f"no router answered within {timeout:g} s; the message waits for one")
        if not answer.ok:
            raise answer.error
        return Receipt(said["message_id"], receiver_id, entry)

    # What is.

    async def agents(self) -> list[AgentRecord]:
        """Every agent that has a record, by id."""
        with reading():
            return await queries.list_agents(self.redis, self._keys)

    async def agent(self, agent_id: str) -> AgentRecord:
        """An agent's record; raises ``AgentNotFound``."""
        with reading():
            record = await queries.get_agent(self.redis, self._keys, check_id(agent_id, "agent_id"))
        if record is None:
            raise AgentNotFound(f"Agent '{agent_id}' not found")
        return record

    async def counters(self) -> dict[str, int]:
        """Every counter; ``{state}:{priority}`` is how many tasks of a priority are in a state."""
        with reading():
            return await queries.get_counters(self.redis, self._keys)
