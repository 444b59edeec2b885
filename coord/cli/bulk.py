"""``coord tasks submit --file``: checks every line before it submits any, then submits a window of tasks at a time.

A line that is wrong is named by its number; the checks are those of a submission. Memory holds only the window: tasks
that were submitted and have not ended. Each outcome is written to the results file at once; then it is only counted.
"""

from __future__ import annotations

import asyncio
import difflib
import shutil
import sys
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec import Struct

from coord.cli.exit_codes import ExitCode
from coord.cli.explain import reasons_of_many_shown
from coord.cli.output import ProgressBar, duration, hint, write_fields, write_json
from coord.cli.parse import is_distance, moment, seconds, writable
from coord.errors import ConfigError, CoordError, FactInvalid, ResultTimeout
from coord.models.tasks import TaskState

if TYPE_CHECKING:
    from coord import Client, TaskHandle

#: Maximum open tasks: enough to keep a large fleet busy, few enough to leave room in the backlog.
WINDOW = 5_000
#: Maximum tasks in one call, and bytes of their lines.
BATCH = 500
BATCH_BYTES = 4 * 1024 * 1024
#: Lines that are checked before other tasks of the event loop (Ctrl-C) run.
CHECKED_AT_ONCE = 1_000
#: Seconds to wait until a distributor accepts a batch.
ACCEPT_S = 10.0
#: Maximum failed lines that are printed; the results file has all.
MAX_REPORTED = 5
#: Bytes that a line may have in addition to the size of its entry.
SLACK = 64 * 1024


class SubmitPlan(Struct, frozen=True):
    """The options of the command."""

    file: Path
    common: dict[str, Any]  #: fields of ``TaskSpec`` for lines without them
    task_type: str | None
    wait: bool
    wait_timeout: float | None  #: seconds
    results: Path | None
    json: bool


class Ended(Struct, frozen=True, omit_defaults=True):
    """One line of the results file."""

    line: int
    task_id: str
    state: str  #: completed, failed, cancelled, expired; refused: not accepted; unknown: its record is gone
    seconds: float  #: from its submission until its outcome was known here
    result: msgspec.Raw = msgspec.Raw(b"")
    error: msgspec.Raw = msgspec.Raw(b"")


class Latency(Struct, frozen=True):
    """Seconds from a task's submission until its outcome was known here."""

    p50: float
    p95: float
    longest: float


class Summary(Struct, frozen=True):
    """The outcomes of a file."""

    lines: int  #: tasks in the file
    submitted: int
    states: dict[str, int]  #: number of tasks by outcome; without --wait: ``accepted`` and ``refused``
    open: int  #: submitted, and not ended or not accepted yet
    seconds: float
    rate: float  #: tasks per second
    latency: Latency | None


async def run(client: Client, plan: SubmitPlan) -> ExitCode:
    """Submit the tasks of a file; return the exit code."""
    with ExitStack() as stack:
        file = stack.enter_context(opened(plan.file))
        progress = stack.enter_context(ProgressBar())
        count = await _check_all(client, plan, file, progress)
        results = stack.enter_context(writable(plan.results, "--results")) if plan.results else None
        return await _Run(client, plan, count, results, progress).run(file)


async def _check_all(client: Client, plan: SubmitPlan, file: IO[bytes], progress: ProgressBar) -> int:
    """Return the number of tasks; raise ``FactInvalid`` for the first invalid line."""
    max_bytes = client.settings.max_entry_bytes
    count = 0
    progress.start("checking", None)
    try:
        for line in read_lines(file, str(plan.file), plan.common, plan.task_type, max_bytes):
            check_line(line, str(plan.file), max_bytes)
            count += 1
            if count % CHECKED_AT_ONCE == 0:
                progress.update(count)
                await asyncio.sleep(0)
    except FactInvalid as error:
        raise FactInvalid(f"{error}; nothing was submitted") from None
    return count


class _Run:
    """The submission of one file."""

    def __init__(
        self, client: Client, plan: SubmitPlan, count: int, results: IO[bytes] | None, progress: ProgressBar
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
        self._reported = 0
        self._open: dict[TaskHandle, tuple[int, float, ExitStack]] = {}
        self._ended: asyncio.Queue[TaskHandle] = asyncio.Queue()
        self._unanswered = 0
        self._started = time.monotonic()

    async def run(self, file: IO[bytes]) -> ExitCode:
        """Submit all tasks, with --wait until they have ended."""
        self._progress.start("ended" if self._plan.wait else "submitted", self._count)
        try:
            async with self._reasons_shown():
                for batch in self._batches(file):
                    await self._submit(batch)
                while self._open:
                    await self._next()
        except TimeoutError:
            self._progress.end()
            hint(f"not all tasks ended within {self._plan.wait_timeout:g} s: {self._progress_text()}")
        except asyncio.CancelledError:
            self._progress.end()
            hint(f"interrupted: {self._progress_text()}")
            raise
        except CoordError as error:
            self._progress.end()
            raise type(error)(f"{error}. After line {self._last_line}: {self._progress_text()}") from None
        self._progress.end()
        self._write_summary()
        return self._exit_code()

    def _reasons_shown(self) -> AbstractAsyncContextManager[None]:
        if not self._plan.wait:
            return nullcontext()
        return reasons_of_many_shown(
            self._client,
            lambda: [handle.task_id for handle in self._open],
            lambda: len(self._seconds),
            self._progress.write,
        )

    def _batches(self, file: IO[bytes]) -> Iterator[list[Line]]:
        max_bytes = self._client.settings.max_entry_bytes
        batch: list[Line] = []
        size = 0
        for line in read_lines(file, str(self._plan.file), self._plan.common, self._plan.task_type, max_bytes):
            batch.append(line)
            size += line.size
            if len(batch) >= BATCH or size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    async def _submit(self, batch: list[Line]) -> None:
        wait = self._plan.wait
        started = time.monotonic()
        handles = await self._client.submit_many([{**line.spec, "notify": wait} for line in batch])
        self._submitted += len(batch)
        self._last_line = batch[-1].number
        if not wait:
            await self._accept(batch, handles)
            return
        for line, handle in zip(batch, handles, strict=True):
            waiting = ExitStack()
            waiting.enter_context(handle.notifying(self._ended.put_nowait))
            self._open[handle] = line.number, started, waiting
        while not self._ended.empty() or len(self._open) > WINDOW - BATCH:
            await self._next()

    async def _accept(self, batch: list[Line], handles: list[TaskHandle]) -> None:
        """Wait until a distributor has accepted or refused each task."""
        # After the first timeout there is no distributor, so further waits would time out too.
        timeout = 0.0 if self._unanswered else ACCEPT_S
        answers = await asyncio.gather(*(handle.accepted(timeout) for handle in handles), return_exceptions=True)
        for line, handle, error in zip(batch, handles, answers, strict=True):
            if error is None:
                self._states["accepted"] += 1
            elif isinstance(error, ResultTimeout):
                self._unanswered += 1
            elif isinstance(error, CoordError):
                self._states[TaskState.REFUSED] += 1
                self._report(line.number, handle.task_id, str(error))
            else:
                raise error
        self._progress.update(self._submitted)

    async def _next(self) -> None:
        """Record the next task that ends; raise ``TimeoutError`` after the time to wait."""
        limit = self._plan.wait_timeout
        left = None if limit is None else self._started + limit - time.monotonic()
        self._record(await asyncio.wait_for(self._ended.get(), left))

    def _record(self, handle: TaskHandle) -> None:
        outcome = handle.outcome
        if outcome is None or handle not in self._open:
            return  # reported twice
        number, started, waiting = self._open.pop(handle)
        waiting.close()
        seconds = time.monotonic() - started
        self._seconds.append(seconds)
        self._states[outcome.state] += 1
        completed = outcome.state == TaskState.COMPLETED
        if self._results is not None:
            data = msgspec.Raw(outcome.data)
            part = {"result": data} if completed and not outcome.is_dropped else {"error": data}
            ended = Ended(number, handle.task_id, outcome.state, round(seconds, 4), **part)
            self._results.write(msgspec.json.encode(ended) + b"\n")
        if not completed or outcome.is_dropped:
            self._report(number, handle.task_id, f"{outcome.state}: {_error_text(outcome.data)}")
        self._progress.update(len(self._seconds))

    def _report(self, number: int, task_id: str, problem: str) -> None:
        self._reported += 1
        if self._reported <= MAX_REPORTED:
            self._progress.write(f"line {number} (task {task_id}) {problem}")
        elif self._reported == MAX_REPORTED + 1:
            self._progress.write("there are more failures" + (f": see {self._plan.results}" if self._results else ""))

    def _progress_text(self) -> str:
        text = f"{len(self._seconds):,} of {self._count:,} tasks have ended, " if self._plan.wait else ""
        going_on = self._submitted - len(self._seconds)
        text += f"{going_on:,} submitted tasks go on, "
        text += f"{self._count - self._submitted:,} were not submitted"
        return text + (f"; outcomes so far are in {self._plan.results}" if self._results is not None else "")

    def _exit_code(self) -> ExitCode:
        failed = self._states.total() - self._states[TaskState.COMPLETED] - self._states["accepted"]
        if failed:
            return ExitCode.NO
        return ExitCode.OPEN if self._open or self._unanswered else ExitCode.OK

    def _write_summary(self) -> None:
        seconds = time.monotonic() - self._started
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
        fields = chain(
            [("tasks", f"{summary.lines:,}")],
            ((state, f"{number:,}") for state, number in sorted(summary.states.items())),
            [("open", f"{summary.open:,}" if summary.open else None)],
            [("took", f"{duration(seconds * 1000)}, {summary.rate:,.0f} per second")],
        )
        write_fields(
            dict(fields)
            | {
                "latency": None
                if latency is None
                else f"p50 {duration(latency.p50 * 1000)}, p95 {duration(latency.p95 * 1000)}, "
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


def _error_text(data: bytes) -> str:
    """Format an error as ``code: message``."""
    error = msgspec.json.decode(data)
    return f"{error.get('code', '')}: {error.get('message', '')}" if isinstance(error, dict) else "no details"


class _TaskLine(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One task, with the fields of ``coord.TaskSpec``."""

    task_type: str | None = None
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    task_id: str | None = None
    priority: str | None = None
    capabilities: list[str] | None = None
    requirements: dict[str, Any] | None = None
    strategy: str | None = None
    modifiers: dict[str, bool] | None = None
    timeout: float | str | None = None
    deadline: str | None = None
    delay: float | str | None = None
    run_at: str | None = None
    retry: dict[str, Any] | None = None
    location: dict[str, Any] | None = None
    affinity_key: str | None = None
    expected_ms: float | None = None
    traceparent: str | None = None


_decoder = msgspec.json.Decoder(_TaskLine)


class Line(NamedTuple):
    """A task and the number of its line."""

    number: int
    spec: dict[str, Any]  #: the fields of ``TaskSpec``
    size: int  #: bytes of the line


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open the file, which is read twice; ``-`` or a pipe is first copied to a temporary file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        if str(path) == "-":
            with tempfile.TemporaryFile() as copy:
                shutil.copyfileobj(sys.stdin.buffer, copy)
                yield copy
            return
        with path.open("rb") as file:
            if file.seekable():
                yield file
                return
            with tempfile.TemporaryFile() as copy:
                shutil.copyfileobj(file, copy)
                yield copy
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise ConfigError(f"--file: cannot read {path}: {error.strerror}") from None


def read_lines(
    file: IO[bytes], name: str, common: Mapping[str, Any], task_type: str | None, max_bytes: int
) -> Iterator[Line]:
    """Yield the tasks from the first line on; empty lines are skipped.

    Args:
        file: the file from ``opened``.
        name: its name, for errors.
        common: fields for lines without them.
        task_type: type of tasks for lines without one.
        max_bytes: maximum bytes of an entry.

    Raises:
        FactInvalid: a line is invalid; names the line and the problem.
    """
    file.seek(0)
    number = 0
    while raw := file.readline(max_bytes + SLACK):
        number += 1
        if len(raw) >= max_bytes + SLACK and not raw.endswith(b"\n"):
            raise FactInvalid(f"{name} line {number}: longer than {max_bytes} bytes, the maximum of an entry")
        if not raw.strip():
            continue
        try:
            line = _decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise FactInvalid(f"{name} line {number}: {_decode_error(str(error), raw)}") from None
        own = {field: value for field in _TaskLine.__struct_fields__ if (value := getattr(line, field)) is not None}
        spec = {**({"task_type": task_type} if task_type else {}), **common, **own}
        if "task_type" not in spec:
            raise FactInvalid(f"{name} line {number}: no task_type; add one, or give a TYPE before --file")
        try:
            _read_times(spec, own)
        except ConfigError as error:
            raise FactInvalid(f"{name} line {number}: {error}") from None
        if common.get("requirements") and line.requirements is not None:
            spec["requirements"] = {**common["requirements"], **line.requirements}
        if "capabilities" not in spec and line.requirements is None:
            spec["capabilities"] = [spec["task_type"]]
        yield Line(number, spec, len(raw))


def _read_times(spec: dict[str, Any], own: Mapping[str, Any]) -> None:
    """Replace the times in the fields of a line that are text, as the options of the command line take them."""
    spec |= {field: seconds(own[field], field) for field in ("timeout", "delay") if isinstance(own.get(field), str)}
    for field in ("run_at", "deadline"):
        if field in own and is_distance(own[field]):
            spec[field] = moment(own[field], field, ahead=True)
    if isinstance(backoff := own.get("retry", {}).get("backoff"), str):
        spec["retry"] = own["retry"] | {"backoff": seconds(backoff, "retry.backoff")}


def check_line(line: Line, name: str, max_bytes: int) -> None:
    """Check a task by the rules of a submission.

    Raises:
        FactInvalid: names the line and the field.
    """
    from coord.client.submission import TaskSpec, task_append

    try:
        task_append(TaskSpec(**line.spec), "", max_bytes)
    except CoordError as error:
        raise FactInvalid(f"{name} line {line.number}: {str(error).removeprefix('field ')}") from None


def _decode_error(error: str, raw: bytes) -> str:
    """Return an error of msgspec about a line, with the nearest known field for an unknown one."""
    from coord.arguments import describe_field_error

    unknown = error.removeprefix("Object contains unknown field `")
    if unknown == error:
        return describe_field_error(error, _TaskLine, raw).replace("`", "'")
    field = unknown.partition("`")[0]
    near = difflib.get_close_matches(field, _TaskLine.__struct_fields__, n=1)
    known = f"did you mean {near[0]!r}?" if near else f"the fields are {', '.join(_TaskLine.__struct_fields__)}"
    return f"unknown field {field!r}; {known}"
