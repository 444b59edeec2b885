"""Programs that are kept: one for each task at a time, spoken to in JSON lines.

To the program, one line for each task, the next one after its answer:

    {"task_id": "…", "task_type": "…", "payload": …, "attempt": 1}

From the program, any number of progress lines and then one answer:

    {"task_id": "…", "progress": …}
    {"task_id": "…", "result": …}
    {"task_id": "…", "error": {"message": "…", "code": "program_failed", "retryable": true}}
    {"task_id": "…", "release": "why it is given back"}

Of an error everything may be left out. A line that was to be an answer and cannot be read (NaN, broken JSON, an answer
without ``task_id``) fails the task; any other line is logged and passed over. A program that ends fails the task
that it had, retryably, and is started again, later and later while it keeps ending. One that shall stop a task
(cancelled, over its time) is ended, SIGTERM first, and started again at once.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from coord.agent.task import NonRetryable, Retryable, Task
from coord.aio import end
from coord.background import retry
from coord.codec import BAD_JSON, encode
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


class ProcessPool:
    """As many programs as there may be tasks at a time."""

    def __init__(self, command: Command, agent_id: str, limits: Limits, count: int) -> None:
        self._command = command
        self._agent_id = agent_id
        self._limits = limits
        self._count = count
        self._guard: Guard | None = None
        self._slots: list[_Slot] = []
        self._free: asyncio.LifoQueue[_Slot] = asyncio.LifoQueue()

    async def start(self) -> None:
        """Start them all; before the first task."""
        prepare()
        self._guard = Guard(self._limits.grace_s)
        self._free = asyncio.LifoQueue()
        self._slots = [_Slot(self._command, self._agent_id, self._limits, self._guard) for _ in range(self._count)]
        for slot in self._slots:
            self._free.put_nowait(slot)

    async def stop(self) -> None:
        """End them: each sees the end of its input, and is ended if it goes on."""
        await asyncio.gather(*(slot.stop() for slot in self._slots))
        if self._guard is not None:
            await asyncio.to_thread(self._guard.close)

    async def handle(self, task: Task) -> Any:
        """Have one of them do one task; cancelled, it ends that program before it returns."""
        slot = await self._free.get()
        try:
            return await slot.run(task)
        finally:
            self._free.put_nowait(slot)


class _Slot:
    """One program, started again whenever it has ended."""

    def __init__(self, command: Command, agent_id: str, limits: Limits, guard: Guard) -> None:
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
            async with asyncio.timeout(self._limits.timeout_s):
                life = await asyncio.shield(self._life)
                if life.has_exited:  # while it had nothing to do: its end is no failure of this task
                    await life.over()
                    self._forget(life)
                    life = await asyncio.shield(self._life)
                return await life.ask(task, _line(task))
        except TimeoutError:
            said = f"the program had not answered after {self._limits.timeout_s:g} s"
            raise Retryable("timed_out", said) from None
        finally:
            if life is not None and life.has_open_task:
                await life.end(self._limits.grace_s)
            if life is not None and life.is_over:
                self._forget(life)

    async def stop(self) -> None:
        self._is_stopping = True
        if self._life.done():
            await self._life.result().leave(self._limits.grace_s)
        await end(self._keeping)

    async def _keep(self) -> None:
        wait_s = FIRST_WAIT_S
        while not self._is_stopping:
            begun = self._loop.time()
            if self._life.done():  # of a program whose keeping failed
                self._life = self._loop.create_future()
            try:
                life = await KeptProcess.start(self._command, self._environ, self._guard, self._limits)
            except OSError as error:
                why, is_ours = f"{self._command.path} cannot be started: {error.strerror}", False
                self._fail(Retryable("not_started", why))
            else:
                self._life.set_result(life)
                why = await life.over()
                is_ours = life.is_ended_by_us
                self._forget(life)
                if life.has_answered:
                    wait_s = FIRST_WAIT_S
            if is_ours or self._loop.time() - begun >= WELL_S:
                wait_s = FIRST_WAIT_S
            if not is_ours:
                log.warning("program.died", program=self._command.name, how=why, again_in_s=wait_s)
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, LONGEST_WAIT_S)

    def _forget(self, life: KeptProcess) -> None:
        """The next task waits for the next program."""
        if self._life.done() and self._life.result() is life:
            self._life = self._loop.create_future()

    def _fail(self, error: Retryable) -> None:
        """Whoever waits for the program has failed."""
        failed, self._life = self._life, self._loop.create_future()
        failed.set_exception(error)
        failed.exception()  # looked at, so that nobody warns of it when no task waits


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
