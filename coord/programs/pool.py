"""A pool of kept processes: one per concurrent task, which receive tasks as JSON lines.

To the program, one line for each task; the next one follows after its answer:

    {"task_id": "…", "task_type": "…", "payload": …, "attempt": 1}

From the program, any number of progress lines and then one answer:

    {"task_id": "…", "progress": …}
    {"task_id": "…", "result": …}
    {"task_id": "…", "error": {"message": "…", "code": "program_failed", "retryable": true}}
    {"task_id": "…", "release": "why the task is returned"}

Every field of an error is optional. A line that was meant as an answer and cannot be decoded (NaN, broken JSON, an
answer without ``task_id``) fails the task; any other line is logged and ignored. If a program ends, its task fails
retryably, and the program restarts with exponential backoff. To stop a task (cancelled or timed out), its program is
ended, first with SIGTERM, and restarts at once.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from coord.agent.task import NonRetryable, Retryable, Task
from coord.aio import cancel_and_wait
from coord.background import retry
from coord.backoff import Backoff
from coord.codec import BAD_JSON, encode
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


class ProcessPool:
    """Keeps as many processes as there may be concurrent tasks."""

    def __init__(self, command: Command, agent_id: str, limits: Limits, count: int) -> None:
        self._command = command
        self._agent_id = agent_id
        self._limits = limits
        self._count = count
        self._reaper: Reaper | None = None
        self._slots: list[_Slot] = []
        self._free: asyncio.LifoQueue[_Slot] = asyncio.LifoQueue()

    async def start(self) -> None:
        """Start all processes; call it before the first task."""
        prepare()
        self._reaper = Reaper(self._limits.grace_s)
        self._free = asyncio.LifoQueue()
        self._slots = [_Slot(self._command, self._agent_id, self._limits, self._reaper) for _ in range(self._count)]
        for slot in self._slots:
            self._free.put_nowait(slot)

    async def stop(self) -> None:
        """Close the standard input of all processes, and end those that keep running."""
        await asyncio.gather(*(slot.stop() for slot in self._slots))
        if self._reaper is not None:
            await asyncio.to_thread(self._reaper.close)

    async def handle(self, task: Task) -> Any:
        """Run one task on a free process and return its result; on cancel, end that process before returning."""
        slot = await self._free.get()
        try:
            return await slot.run(task)
        finally:
            self._free.put_nowait(slot)


class _Slot:
    """One process of the pool, which restarts whenever it ends."""

    def __init__(self, command: Command, agent_id: str, limits: Limits, reaper: Reaper) -> None:
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
            async with asyncio.timeout(self._limits.timeout_s):
                process = await asyncio.shield(self._process)
                if process.has_exited:  # while it was idle, which is no failure of this task
                    await process.wait()
                    self._replace(process)
                    process = await asyncio.shield(self._process)
                return await process.run(task, _line(task))
        except TimeoutError:
            message = f"the program had not answered after {self._limits.timeout_s:g} s"
            raise Retryable("timed_out", message) from None
        finally:
            if process is not None and process.has_open_task:
                await process.end(self._limits.grace_s)
            if process is not None and process.has_ended:
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
                process = await KeptProcess.start(self._command, self._environ, self._reaper, self._limits)
            except OSError as error:
                reason, is_ended_by_us = f"{self._command.path} cannot be started: {error.strerror}", False
                self._fail(Retryable("not_started", reason))
            else:
                self._process.set_result(process)
                reason = await process.wait()
                is_ended_by_us = process.is_ended_by_us
                self._replace(process)
                if process.has_answered:
                    backoff.reset()
            if is_ended_by_us or self._loop.time() - started >= STABLE_S:
                backoff.reset()
            if not is_ended_by_us:
                wait_s = backoff.next_s()
                log.warning("program.died", program=self._command.name, how=reason, again_in_s=wait_s)
                await asyncio.sleep(wait_s)

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
