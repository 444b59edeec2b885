"""Programs that are kept: one for each task at a time, spoken to in JSON lines.

To the program, one line for each task, the next one after its answer:

    {"task_id": "…", "task_type": "…", "payload": …, "attempt": 1}

From the program, any number of progress lines and then one answer:

    {"task_id": "…", "progress": …}
    {"task_id": "…", "result": …}
    {"task_id": "…", "error": {"message": "…", "code": "program_failed", "retryable": true}}
    {"task_id": "…", "release": "why it is given back"}

A program that loads slowly prints first, once it has loaded:

    {"ready": true}

It gets no task before if ``wait_ready`` is set, or once a program of the pool has printed this line. To stop a task,
such a program gets another line, and answers the task in any form:

    {"cancel": "the task's id", "attempt": 1}

Of an error everything may be left out. Any other line is logged and passed over. A program that ends fails the task
that it had, retryably, and is started again, later and later while it keeps ending. One that shall stop a task
(cancelled, over its time) and does not answer, or has never said that it is ready, is ended, SIGTERM first, and started
again at once. The time of a task begins when the program is ready, or has read the task's line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec

from coord.agent.task import NonRetryable, Retryable, Task
from coord.aio import cancel_and_wait
from coord.background import retry
from coord.backoff import Backoff
from coord.codec import BAD_JSON, encode
from coord.errors import ConfigError
from coord.logs import get_logger
from coord.programs.command import Command, Limits
from coord.programs.guard import Guard
from coord.programs.kept_process import KeptProcess
from coord.programs.process import prepare

log = get_logger()

#: Waits before a program that died is started again: doubling …
FIRST_WAIT_S = 0.1
#: … up to here, so that one that cannot run does not take the machine with it.
LONGEST_WAIT_S = 10.0
#: A program that lived this long, or answered, was well: its next end counts as the first one.
WELL_S = 10.0
#: Seconds for which programs must load again before their slots are held: a program may end after each answer, and each
#: change of the capacity is an entry for the registry.
HOLD_AFTER_S = 0.5
#: Characters of the reasons for which programs ended that are shown when the agent cannot start.
SHOWN = 1_000


class ProcessPool:
    """As many programs as there may be tasks at a time.

    Args:
        command: the program.
        agent_id: id of the agent.
        limits: of the program.
        count: number of processes.
        wait_ready: the program prints that it is ready; ``start`` waits for it.
        hold_slots: called with the number of programs that are not ready, if the program prints when it is.
    """

    def __init__(
        self,
        command: Command,
        agent_id: str,
        limits: Limits,
        count: int,
        *,
        wait_ready: bool = False,
        hold_slots: Callable[[int], None] | None = None,
    ) -> None:
        self._readiness = Readiness(wait_ready=wait_ready, hold_slots=hold_slots)
        self._command = command
        self._agent_id = agent_id
        self._limits = limits
        self._count = count
        self._guard: Guard | None = None
        self._slots: list[_Slot] = []
        self._free: asyncio.LifoQueue[_Slot] = asyncio.LifoQueue()

    async def start(self) -> None:
        """Start them all; before the first task.

        Raises:
            ConfigError: with ``wait_ready``, a program is not ready in time.
        """
        prepare()
        self._guard = Guard(self._limits.grace_s)
        self._free = asyncio.LifoQueue()
        self._slots = [
            _Slot(self._command, self._agent_id, self._limits, self._guard, self._readiness) for _ in range(self._count)
        ]
        self._readiness.slots = self._slots
        for slot in self._slots:
            self._free.put_nowait(slot)
        if self._readiness.is_announced:
            await self._wait_until_ready()

    async def _wait_until_ready(self) -> None:
        limit_s = self._limits.load_timeout_s
        begun = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(limit_s):
                await asyncio.gather(*(slot.wait_until_ready() for slot in self._slots))
        except TimeoutError:
            deaths = "".join(f"; it ended: {slot.last_death}" for slot in self._slots if slot.last_death)[:SHOWN]
            raise ConfigError(
                f'program {self._command.name} did not print {{"ready": true}} within {limit_s:g} s; '
                f"allow it more with --load-timeout{deaths}"
            ) from None
        log.info(
            "programs.ready",
            program=self._command.name, count=self._count, after_s=round(asyncio.get_running_loop().time() - begun, 3),
        )  # fmt: skip

    async def stop(self) -> None:
        """End them: each sees the end of its input, and is ended if it goes on."""
        await asyncio.gather(*(slot.stop() for slot in self._slots))
        self._readiness.close()
        if self._guard is not None:
            await asyncio.to_thread(self._guard.close)

    async def handle(self, task: Task) -> Any:
        """Have one of them do one task; cancelled, it ends that program before it returns."""
        slot = await self._take()
        try:
            return await slot.run(task)
        finally:
            self._free.put_nowait(slot)

    async def _take(self) -> _Slot:
        """Return a free slot; if the programs print that they are ready, one that is, if there is one."""
        slots = [await self._free.get()]
        if self._readiness.is_announced:
            while not slots[-1].is_ready and not self._free.empty():
                slots.append(self._free.get_nowait())
        chosen = slots.pop() if slots[-1].is_ready else slots.pop(0)
        for slot in reversed(slots):
            self._free.put_nowait(slot)
        return chosen


class Readiness:
    """Which programs of a pool are ready, if the program prints when it is.

    Args:
        wait_ready: it does; otherwise this is known when the first one has printed it.
        hold_slots: called with the number of programs that are not ready; not for those that load again quickly.
    """

    def __init__(self, *, wait_ready: bool, hold_slots: Callable[[int], None] | None) -> None:
        self.is_announced = wait_ready
        self.slots: list[_Slot] = []
        self._hold_slots = hold_slots
        self._held = 0
        self._timer: asyncio.TimerHandle | None = None

    def ready(self) -> None:
        """Note that a program has printed that it is ready."""
        self.is_announced = True
        self.changed()

    def changed(self) -> None:
        """Count the programs that are ready: free slots at once, hold others soon."""
        loading = self._loading
        if not self.is_announced or self._hold_slots is None or loading == self._held:
            return
        if loading < self._held:
            self._held = loading
            self._hold_slots(loading)
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(HOLD_AFTER_S, self._hold)

    def close(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def _loading(self) -> int:
        return sum(not slot.is_ready for slot in self.slots)

    def _hold(self) -> None:
        self._timer = None
        if self._hold_slots is not None and self._loading != self._held:
            self._held = self._loading
            self._hold_slots(self._held)


class _Slot:
    """One program, started again whenever it has ended."""

    def __init__(self, command: Command, agent_id: str, limits: Limits, guard: Guard, readiness: Readiness) -> None:
        self._readiness = readiness
        self.last_death = ""
        self._command = command
        self._environ = command.environ(agent_id)
        self._limits = limits
        self._guard = guard
        self._loop = asyncio.get_running_loop()
        self._is_stopping = False
        #: The program that lives, or will.
        self._life: asyncio.Future[KeptProcess] = self._loop.create_future()
        self._keeping = retry("program.keep", self._keep)

    async def run(self, task: Task) -> Any:
        life: KeptProcess | None = None
        try:
            async with asyncio.timeout(self._limits.load_timeout_s) as limit:
                life = await asyncio.shield(self._life)
                if life.has_exited:  # while it had nothing to do: its end is no failure of this task
                    await life.over()
                    self._forget(life)
                    life = None
                    life = await asyncio.shield(self._life)
                if self._readiness.is_announced and not await life.wait_until_ready():
                    raise Retryable("program_died", f"the program ended before it was ready: {await life.over()}")
                if life.has_loaded:
                    self._begin_time(limit)
                else:
                    life.on_loaded = partial(self._begin_time, limit)
                return await life.ask(task, _line(task))
        except TimeoutError:
            raise self._timed_out(life) from None
        finally:
            if life is not None:
                life.on_loaded = _nothing
                if life.has_open_task:
                    await life.let_go(self._limits.grace_s)
                if life.is_over:
                    self._forget(life)

    def _begin_time(self, limit: asyncio.Timeout) -> None:
        """Let the time of the task begin."""
        timeout_s = self._limits.timeout_s
        with suppress(RuntimeError):  # the limit has passed at this very moment
            limit.reschedule(None if timeout_s is None else self._loop.time() + timeout_s)

    def _timed_out(self, life: KeptProcess | None) -> Retryable:
        if life is not None and life.has_loaded and self._limits.timeout_s is not None:
            return Retryable("timed_out", f"the program had not answered after {self._limits.timeout_s:g} s")
        limit_s = self._limits.load_timeout_s
        log.warning("program.load_timed_out", program=self._command.name, limit_s=limit_s)
        return Retryable("load_timed_out", f"the program had not loaded after {limit_s:g} s")

    @property
    def is_ready(self) -> bool:
        """True while a program runs that has printed that it is ready."""
        life = self._life
        if not life.done() or life.cancelled() or life.exception() is not None:
            return False
        return life.result().is_ready and not life.result().has_exited

    async def wait_until_ready(self) -> None:
        """Wait until a program has printed that it is ready, however often it ends before."""
        while True:
            try:
                life = await asyncio.shield(self._life)
            except Retryable:  # it could not be started, and is started again
                continue
            if await life.wait_until_ready():
                return
            await life.over()
            self._forget(life)

    async def stop(self) -> None:
        self._is_stopping = True
        if self._life.done():
            await self._life.result().leave(self._limits.grace_s)
        await cancel_and_wait(self._keeping)

    async def _keep(self) -> None:
        backoff = Backoff(FIRST_WAIT_S, LONGEST_WAIT_S)
        while not self._is_stopping:
            begun = self._loop.time()
            if self._life.done():  # of a program whose keeping failed
                self._life = self._loop.create_future()
            try:
                life = await KeptProcess.start(
                    self._command, self._environ, self._guard, self._limits, self._readiness.ready
                )
            except OSError as error:
                why, is_ours = f"{self._command.path} cannot be started: {error.strerror}", False
                self._fail(Retryable("not_started", why))
            else:
                self._life.set_result(life)
                loading = asyncio.create_task(self._limit_load(life))
                try:
                    why = await life.over()
                finally:
                    loading.cancel()
                    self._readiness.changed()
                is_ours = life.is_ended_by_us
                self._forget(life)
                if life.has_answered:
                    backoff.reset()
            if is_ours or self._loop.time() - begun >= WELL_S:
                backoff.reset()
            if not is_ours:
                self.last_death = why
                wait_s = backoff.next_s()
                log.warning("program.died", program=self._command.name, how=why, again_in_s=wait_s)
                await asyncio.sleep(wait_s)

    async def _limit_load(self, life: KeptProcess) -> None:
        """End a program that is not ready in time, if the program prints when it is."""
        await asyncio.sleep(self._limits.load_timeout_s)
        if self._readiness.is_announced and not life.is_ready:
            log.warning("program.load_timed_out", program=self._command.name, limit_s=self._limits.load_timeout_s)
            await life.end(self._limits.grace_s)

    def _forget(self, life: KeptProcess) -> None:
        """The next task waits for the next program."""
        if self._life.done() and self._life.result() is life:
            self._life = self._loop.create_future()

    def _fail(self, error: Retryable) -> None:
        """Whoever waits for the program has failed."""
        failed, self._life = self._life, self._loop.create_future()
        failed.set_exception(error)
        failed.exception()  # looked at, so that nobody warns of it when no task waits


def _nothing() -> None:
    """Do nothing."""


class _Asked(msgspec.Struct):
    task_id: str
    task_type: str
    payload: msgspec.Raw
    attempt: int


def _line(task: Task) -> bytes:
    try:
        payload = msgspec.Raw(msgspec.json.format(task.payload_json, indent=-1))
    except BAD_JSON as error:
        raise NonRetryable("payload_invalid", f"payload: {error}") from None
    return encode(_Asked(task.task_id, task.task_type, payload, task.attempt)) + b"\n"
