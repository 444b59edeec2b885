"""``coord tasks submit --file``: every line checked before any is submitted, then submitted a window at a time.

What is kept in memory is the window: tasks that were submitted and have not ended. Each outcome is written down as it
comes, and only counted afterwards.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from coord.cli import lines
from coord.cli.exit_codes import ExitCode
from coord.cli.lines import Numbered
from coord.cli.output import duration, hint, write_fields, write_json
from coord.cli.parse import writable
from coord.cli.progress import Progress
from coord.errors import CoordError, FactInvalid, ResultTimeout
from coord.models.tasks import TaskState

if TYPE_CHECKING:
    from coord import Client, TaskHandle

#: Tasks submitted and not ended, at most: enough to keep a large fleet busy, little enough to leave the backlog room.
WINDOW = 5_000
#: Tasks and bytes of their lines that one call submits.
BATCH = 500
BATCH_BYTES = 4 * 1024 * 1024
#: Lines that are checked before others (Ctrl-C) have their turn.
CHECKED_AT_ONCE = 1_000
#: Seconds that a distributor may take to say that it has a batch.
ACCEPT_S = 10.0
#: Lines that went wrong and are told at once; the results file has all.
TOLD = 5


class SubmitPlan(Struct, frozen=True):
    """What was asked for."""

    file: Path
    common: dict[str, Any]  #: fields of ``TaskSpec`` for lines that do not have them
    task_type: str | None
    wait: bool
    wait_timeout: float | None  #: seconds
    results: Path | None
    json: bool


class Ended(Struct, frozen=True, omit_defaults=True):
    """One line of the results file."""

    line: int
    task_id: str
    state: str  #: completed, failed, cancelled, expired; refused: not taken; unknown: its record is gone
    seconds: float  #: from its submission until its outcome was known here
    result: msgspec.Raw = msgspec.Raw(b"")
    error: msgspec.Raw = msgspec.Raw(b"")


class Latency(Struct, frozen=True):
    """Seconds from a task's submission until its outcome was known here."""

    p50: float
    p95: float
    longest: float


class Summary(Struct, frozen=True):
    """What became of a file."""

    lines: int  #: tasks in the file
    submitted: int
    states: dict[str, int]  #: how many ended how; without --wait: ``accepted`` and ``refused``
    open: int  #: submitted, and not ended or not answered yet
    seconds: float
    rate: float  #: tasks a second
    latency: Latency | None


async def run(client: Client, plan: SubmitPlan) -> ExitCode:
    """Submit the tasks of a file; the exit code."""
    with ExitStack() as stack:
        file = stack.enter_context(lines.opened(plan.file))
        progress = stack.enter_context(Progress())
        count = await _check(client, plan, file, progress)
        results = stack.enter_context(writable(plan.results, "--results")) if plan.results else None
        return await _Run(client, plan, count, results, progress).run(file)


async def _check(client: Client, plan: SubmitPlan, file: IO[bytes], progress: Progress) -> int:
    """How many tasks there are; raises ``FactInvalid`` for the first line that is none."""
    most = client.settings.max_entry_bytes
    count = 0
    progress.begin("checking", None)
    try:
        for one in lines.read(file, str(plan.file), plan.common, plan.task_type, most):
            lines.checked(one, str(plan.file), most)
            count += 1
            if count % CHECKED_AT_ONCE == 0:
                progress.to(count)
                await asyncio.sleep(0)
    except FactInvalid as error:
        raise FactInvalid(f"{error}; nothing was submitted") from None
    return count


class _Run:
    """One file on its way."""

    def __init__(
        self, client: Client, plan: SubmitPlan, count: int, results: IO[bytes] | None, progress: Progress
    ) -> None:
        self._client = client
        self._plan = plan
        self._count = count
        self._results = results
        self._progress = progress
        self._submitted = 0
        self._last_line = 0
        self._states: Counter[str] = Counter()
        self._seconds = array("d")
        self._told = 0
        self._open: dict[TaskHandle, tuple[int, float, ExitStack]] = {}
        self._ended: asyncio.Queue[TaskHandle] = asyncio.Queue()
        self._unanswered = 0
        self._began = time.monotonic()

    async def run(self, file: IO[bytes]) -> ExitCode:
        """Submit everything, and wait if that was asked for."""
        self._progress.begin("ended" if self._plan.wait else "submitted", self._count)
        try:
            for batch in self._batches(file):
                await self._submit(batch)
            while self._open:
                await self._next()
        except TimeoutError:
            self._progress.end()
            hint(f"not all ended within {self._plan.wait_timeout:g} s: {self._what_goes_on()}")
        except asyncio.CancelledError:
            self._progress.end()
            hint(f"interrupted: {self._what_goes_on()}")
            raise
        except CoordError as error:
            self._progress.end()
            raise type(error)(f"{error}. After line {self._last_line}: {self._what_goes_on()}") from None
        self._progress.end()
        self._tell()
        return self._exit_code()

    def _batches(self, file: IO[bytes]) -> Iterator[list[Numbered]]:
        most = self._client.settings.max_entry_bytes
        batch: list[Numbered] = []
        size = 0
        for one in lines.read(file, str(self._plan.file), self._plan.common, self._plan.task_type, most):
            batch.append(one)
            size += one.size
            if len(batch) >= BATCH or size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    async def _submit(self, batch: list[Numbered]) -> None:
        wait = self._plan.wait
        began = time.monotonic()
        handles = await self._client.submit_many([{**one.spec, "notify": wait} for one in batch])
        self._submitted += len(batch)
        self._last_line = batch[-1].number
        if not wait:
            await self._accept(batch, handles)
            return
        for one, handle in zip(batch, handles, strict=True):
            waiting = ExitStack()
            waiting.enter_context(handle.notifying(self._ended.put_nowait))
            self._open[handle] = one.number, began, waiting
        while not self._ended.empty() or len(self._open) > WINDOW - BATCH:
            await self._next()

    async def _accept(self, batch: list[Numbered], handles: list[TaskHandle]) -> None:
        """Wait until a distributor has said of each whether it is taken."""
        # Once nobody answered there is no distributor, and the others would be waited for in vain.
        patience = 0.0 if self._unanswered else ACCEPT_S
        answers = await asyncio.gather(*(one.accepted(patience) for one in handles), return_exceptions=True)
        for one, handle, error in zip(batch, handles, answers, strict=True):
            if error is None:
                self._states["accepted"] += 1
            elif isinstance(error, ResultTimeout):
                self._unanswered += 1
            elif isinstance(error, CoordError):
                self._states[TaskState.REFUSED] += 1
                self._say_wrong(one.number, handle.task_id, str(error))
            else:
                raise error
        self._progress.to(self._submitted)

    async def _next(self) -> None:
        """Note the next task that ends; raises ``TimeoutError`` when the time to wait is over."""
        limit = self._plan.wait_timeout
        left = None if limit is None else self._began + limit - time.monotonic()
        self._note(await asyncio.wait_for(self._ended.get(), left))

    def _note(self, handle: TaskHandle) -> None:
        outcome = handle.outcome
        if outcome is None or handle not in self._open:
            return  # told twice
        number, began, waiting = self._open.pop(handle)
        waiting.close()
        seconds = time.monotonic() - began
        self._seconds.append(seconds)
        self._states[outcome.state] += 1
        completed = outcome.state == TaskState.COMPLETED
        if self._results is not None:
            data = msgspec.Raw(outcome.data)
            part = {"result": data} if completed and not outcome.is_dropped else {"error": data}
            ended = Ended(number, handle.task_id, outcome.state, round(seconds, 4), **part)
            self._results.write(msgspec.json.encode(ended) + b"\n")
        if not completed or outcome.is_dropped:
            self._say_wrong(number, handle.task_id, f"{outcome.state}: {_why(outcome.data)}")
        self._progress.to(len(self._seconds))

    def _say_wrong(self, number: int, task_id: str, why: str) -> None:
        self._told += 1
        if self._told <= TOLD:
            self._progress.say(f"line {number} (task {task_id}) {why}")
        elif self._told == TOLD + 1:
            self._progress.say("more went wrong" + (f": see {self._plan.results}" if self._results else ""))

    def _what_goes_on(self) -> str:
        said = f"{len(self._seconds):,} of {self._count:,} tasks have ended, " if self._plan.wait else ""
        goes_on = self._submitted - len(self._seconds)
        said += f"{goes_on:,} that were submitted go on by themselves, "
        said += f"{self._count - self._submitted:,} were not submitted"
        return said + (f"; outcomes so far are in {self._plan.results}" if self._results is not None else "")

    def _exit_code(self) -> ExitCode:
        wrong = self._states.total() - self._states[TaskState.COMPLETED] - self._states["accepted"]
        if wrong:
            return ExitCode.NO
        return ExitCode.OPEN if self._open or self._unanswered else ExitCode.OK

    def _tell(self) -> None:
        seconds = time.monotonic() - self._began
        known = len(self._seconds) if self._plan.wait else self._submitted
        summary = Summary(
            lines=self._count,
            submitted=self._submitted,
            states=dict(self._states),
            open=len(self._open) + self._unanswered,
            seconds=round(seconds, 3),
            rate=round(known / seconds, 1) if seconds else 0.0,
            latency=_latency(self._seconds),
        )
        if self._plan.json:
            write_json(summary)
            return
        latency = summary.latency
        told = chain(
            [("tasks", f"{summary.lines:,}")],
            ((state, f"{number:,}") for state, number in sorted(summary.states.items())),
            [("open", f"{summary.open:,}" if summary.open else None)],
            [("took", f"{duration(seconds * 1000)}, {summary.rate:,.0f} a second")],
        )
        write_fields(
            dict(told)
            | {
                "latency": None
                if latency is None
                else f"half within {duration(latency.p50 * 1000)}, 95 % within {duration(latency.p95 * 1000)}, "
                f"longest {duration(latency.longest * 1000)}",
                "results": str(self._plan.results) if self._plan.results else None,
            }
        )


def _latency(seconds: array[float]) -> Latency | None:
    if not seconds:
        return None
    ordered = sorted(seconds)
    at = [ordered[min(len(ordered) - 1, int(len(ordered) * share))] for share in (0.5, 0.95)]
    return Latency(round(at[0], 4), round(at[1], 4), round(ordered[-1], 4))


def _why(data: bytes) -> str:
    """``code: message`` of an error."""
    error = msgspec.json.decode(data)
    return (
        f"{error.get('code', '')}: {error.get('message', '')}" if isinstance(error, dict) else "nothing is known of it"
    )
