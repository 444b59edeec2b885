"""A pool of kept processes: one per concurrent task, which receive tasks as JSON lines.

To the program, one line for each task; the next one follows after its answer:

    {"task_id": "…", "task_type": "…", "payload": …, "attempt": 1}

From the program, any number of progress lines and then one answer:

    {"task_id": "…", "progress": …}
    {"task_id": "…", "result": …}
    {"task_id": "…", "error": {"message": "…", "code": "program_failed", "retryable": true}}
    {"task_id": "…", "release": "why the task is returned"}

A program that loads slowly may print a line once it has loaded:

    {"ready": true}

It gets no task before that if ``wait_ready`` is set, or once a program of the pool has printed this line. To stop a
task, such a program gets another line, and answers the task in any form:

    {"cancel": "the task's id", "attempt": 1}

Every field of an error is optional. A line that was meant as an answer and cannot be decoded (NaN, broken JSON, an
answer without ``task_id``) fails the task; any other line is logged and ignored. If a program ends, its task fails
retryably, and the program restarts with exponential backoff. To stop a task (cancelled or timed out), its program is
ended, first with SIGTERM, and restarts at once, unless it has printed that it is ready and answers the line above. The
time of a task begins when the program is ready, or has begun to read the line of the task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec

from coord.agent.task import NonRetryable, Retryable, Task
from coord.background import cancel_and_wait, retry
from coord.backoff import Backoff
from coord.codec import BAD_JSON, encode
from coord.errors import ConfigError
from coord.logs import get_logger
from coord.programs.command import Command, Limits
from coord.programs.kept_process import KeptProcess
from coord.programs.process import prepare
from coord.programs.reaper import Reaper

log = get_logger()

#: Seconds before a program that ended restarts; doubles with each further end …
FIRST_WAIT_S = 0.1
#: … up to here, so that a program that cannot run does not overload the machine.
LONGEST_WAIT_S = 10.0
#: After this many seconds of running, or after an answer, the backoff starts again from the first wait.
STABLE_S = 10.0
#: Seconds for which programs must load again before their slots are held: a program may end after each answer, and each
#: change of the capacity is an entry for the registry.
HOLD_AFTER_S = 0.5
#: Characters shown of the reasons for which programs ended, if the agent cannot start.
SHOWN_CHARACTERS = 1_000


class ProcessPool:
    """Keeps as many processes as there may be concurrent tasks.

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
        self._reaper: Reaper | None = None
        self._slots: list[_Slot] = []
        self._free: asyncio.LifoQueue[_Slot] = asyncio.LifoQueue()

    async def start(self) -> None:
        """Start all processes; call it before the first task.

        Raises:
            ConfigError: with ``wait_ready``, a program is not ready in time.
        """
        prepare()
        self._reaper = Reaper(self._limits.grace_s)
        self._free = asyncio.LifoQueue()
        self._slots = [
            _Slot(self._command, self._agent_id, self._limits, self._reaper, self._readiness)
            for _ in range(self._count)
        ]
        self._readiness.slots = self._slots
        for slot in self._slots:
            self._free.put_nowait(slot)
        if self._readiness.is_announced:
            await self._wait_until_ready()

    async def _wait_until_ready(self) -> None:
        limit_s = self._limits.load_timeout_s
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout(limit_s):
                await asyncio.gather(*(slot.wait_until_ready() for slot in self._slots))
        except TimeoutError:
            ends = "".join(f"; it ended: {slot.last_end}" for slot in self._slots if slot.last_end)[:SHOWN_CHARACTERS]
            raise ConfigError(
                f'program {self._command.name} did not print {{"ready": true}} within {limit_s:g} s; '
                f"set a longer time with --load-timeout{ends}"
            ) from None
        log.info(
            "programs.ready",
            program=self._command.name, count=self._count, after_s=round(loop.time() - started, 3),
        )  # fmt: skip

    async def stop(self) -> None:
        """Close the standard input of all processes, and end those that keep running."""
        await asyncio.gather(*(slot.stop() for slot in self._slots))
        self._readiness.close()
        if self._reaper is not None:
            await asyncio.to_thread(self._reaper.close)

    async def handle(self, task: Task) -> Any:
        """Run one task on a free process and return its result; on cancel, stop the task before returning."""
        slot = await self._take()
        try:
            return await slot.run(task)
        finally:
            self._free.put_nowait(slot)

    async def _take(self) -> _Slot:
        """Return a free slot: one that is ready if there is one and the programs print that they are ready."""
        slots = [await self._free.get()]
        if self._readiness.is_announced:
            while not slots[-1].is_ready and not self._free.empty():
                slots.append(self._free.get_nowait())
        chosen = slots.pop() if slots[-1].is_ready else slots.pop(0)
        for slot in reversed(slots):
            self._free.put_nowait(slot)
        return chosen


class Readiness:
    """Shows which programs of a pool are ready, if the program prints when it is.

    Args:
        wait_ready: the program prints it; otherwise this is known when the first one has printed it.
        hold_slots: called with the number of programs that are not ready; not for those that load again quickly.
    """

    def __init__(self, *, wait_ready: bool, hold_slots: Callable[[int], None] | None) -> None:
        self.is_announced = wait_ready  #: the program prints when it is ready
        self.slots: list[_Slot] = []
        self._hold_slots = hold_slots
        self._held = 0
        self._timer: asyncio.TimerHandle | None = None

    def announce(self) -> None:
        """Note that a program has printed that it is ready."""
        self.is_announced = True
        self.update()

    def update(self) -> None:
        """Count the programs that are not ready: free slots at once, hold others soon."""
        loading = self._count_loading()
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

    def _count_loading(self) -> int:
        return sum(not slot.is_ready for slot in self.slots)

    def _hold(self) -> None:
        self._timer = None
        loading = self._count_loading()
        if self._hold_slots is not None and loading != self._held:
            self._held = loading
            self._hold_slots(loading)


class _Slot:
    """One process of the pool, which restarts whenever it ends."""

    def __init__(self, command: Command, agent_id: str, limits: Limits, reaper: Reaper, readiness: Readiness) -> None:
        self.last_end = ""  #: how the last process ended that was not ended by the agent
        self._readiness = readiness
        self._command = command
        self._environ = command.environ(agent_id)
        self._limits = limits
        self._reaper = reaper
        self._loop = asyncio.get_running_loop()
        self._is_stopping = False
        #: The process that runs, or the next one.
        self._process: asyncio.Future[KeptProcess] = self._loop.create_future()
        self._keeping = retry("program.keep", self._keep)

    async def run(self, task: Task) -> Any:
        process: KeptProcess | None = None
        try:
            async with asyncio.timeout(self._limits.load_timeout_s) as limit:
                process = await asyncio.shield(self._process)
                if process.has_exited:  # while it was idle, which is no failure of this task
                    await process.wait()
                    self._replace(process)
                    process = None
                    process = await asyncio.shield(self._process)
                if self._readiness.is_announced and not await process.wait_until_ready():
                    end = await process.wait()
                    raise Retryable("program_died", f"the program ended before it was ready: {end}")
                if process.has_loaded:
                    self._start_timeout(limit)
                else:
                    process.on_loaded = partial(self._start_timeout, limit)
                return await process.run(task, _line(task))
        except TimeoutError:
            raise self._timeout_error(process) from None
        finally:
            if process is not None:
                process.on_loaded = None
                if process.has_open_task:
                    await process.stop_task(self._limits.grace_s)
                if process.has_ended:
                    self._replace(process)

    def _start_timeout(self, limit: asyncio.Timeout) -> None:
        """Start the timeout of the task, in place of that of the load."""
        timeout_s = self._limits.timeout_s
        with suppress(RuntimeError):  # the limit has passed at this very moment
            limit.reschedule(None if timeout_s is None else self._loop.time() + timeout_s)

    def _timeout_error(self, process: KeptProcess | None) -> Retryable:
        if process is not None and process.has_loaded and self._limits.timeout_s is not None:
            return Retryable("timed_out", f"the program had not answered after {self._limits.timeout_s:g} s")
        limit_s = self._limits.load_timeout_s
        log.warning("program.load_timed_out", program=self._command.name, limit_s=limit_s)
        return Retryable("load_timed_out", f"the program had not loaded after {limit_s:g} s")

    @property
    def is_ready(self) -> bool:
        """True while a process runs that has printed that it is ready."""
        running = self._process
        if not running.done() or running.cancelled() or running.exception() is not None:
            return False
        return running.result().is_ready and not running.result().has_exited

    async def wait_until_ready(self) -> None:
        """Wait until a process has printed that it is ready, however often it ends before."""
        while True:
            try:
                process = await asyncio.shield(self._process)
            except Retryable:  # it could not be started, and is started again
                continue
            if await process.wait_until_ready():
                return
            await process.wait()
            self._replace(process)

    async def stop(self) -> None:
        self._is_stopping = True
        if self._process.done():
            await self._process.result().close(self._limits.grace_s)
        await cancel_and_wait(self._keeping)

    async def _keep(self) -> None:
        backoff = Backoff(FIRST_WAIT_S, LONGEST_WAIT_S)
        while not self._is_stopping:
            started = self._loop.time()
            if self._process.done():  # left by a failed call of this function
                self._process = self._loop.create_future()
            try:
                process = await KeptProcess.start(
                    self._command, self._environ, self._reaper, self._limits, self._readiness.announce
                )
            except OSError as error:
                reason, is_ended_by_us = f"{self._command.path} cannot be started: {error.strerror}", False
                self._fail(Retryable("not_started", reason))
            else:
                self._process.set_result(process)
                loading = asyncio.create_task(self._limit_load(process))
                try:
                    reason = await process.wait()
                finally:
                    loading.cancel()
                    self._readiness.update()
                is_ended_by_us = process.is_ended_by_us
                self._replace(process)
                if process.has_answered:
                    backoff.reset()
            if is_ended_by_us or self._loop.time() - started >= STABLE_S:
                backoff.reset()
            if not is_ended_by_us:
                self.last_end = reason
                wait_s = backoff.next_s()
                log.warning("program.died", program=self._command.name, how=reason, again_in_s=wait_s)
                await asyncio.sleep(wait_s)

    async def _limit_load(self, process: KeptProcess) -> None:
        """End a process that is not ready in time, if the program prints when it is."""
        await asyncio.sleep(self._limits.load_timeout_s)
        if self._readiness.is_announced and not process.is_ready:
            log.warning("program.load_timed_out", program=self._command.name, limit_s=self._limits.load_timeout_s)
            await process.end(self._limits.grace_s)

    def _replace(self, process: KeptProcess) -> None:
        """Make the next task wait for the next process."""
        if self._process.done() and self._process.result() is process:
            self._process = self._loop.create_future()

    def _fail(self, error: Retryable) -> None:
        """Fail the task that waits for the process."""
        failed, self._process = self._process, self._loop.create_future()
        failed.set_exception(error)
        failed.exception()  # mark it as retrieved, so that asyncio does not warn if no task waits


class _TaskLine(msgspec.Struct):
    task_id: str
    task_type: str
    payload: msgspec.Raw
    attempt: int


def _line(task: Task) -> bytes:
    try:
        payload = msgspec.Raw(msgspec.json.format(task.payload_json, indent=-1))
    except BAD_JSON as error:
        raise NonRetryable("payload_invalid", f"payload: {error}") from None
    return encode(_TaskLine(task.task_id, task.task_type, payload, task.attempt)) + b"\n"
