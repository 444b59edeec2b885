"""Reports of an agent about its tasks. Every report of an outcome is repeated until Redis has answered it.

A report that is appended twice is harmless: the second finds its lease settled and gets the first outcome.

``Completions`` puts the tasks that the agents of a process complete in one turn of the loop in as few entries as
possible: an append and its handling costs Redis and the distributor the same for one task as for fifty.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from msgspec import Raw, Struct, json
from msgspec.structs import replace

from coord import codec, values
from coord.agent.task import Attempt
from coord.keys import Keys
from coord.logs import get_logger
from coord.models.facts import (
    DETAIL_BYTES,
    TYPE_OF,
    TaskCompleted,
    TaskFailed,
    TaskProgressed,
    TaskReleased,
    TasksCompleted,
    TaskStarted,
)
from coord.pipeline import pack
from coord.reconnect import ReconnectingConnection
from coord.redis_protocol import ErrorAnswer, ignore_answer
from coord.streams import MAX_BATCHED_BYTES, max_facts_per_entry

log = get_logger()

#: Maximum number of tasks in one entry, as many as possible: the first entry wakes a distributor, which takes what is
#: in the stream at that time.
MAX_TASKS_PER_ENTRY = 256

#: Called with an attempt and the answer of Redis to the entry with its report.
AnswerCallback = Callable[[Attempt, Any], None]


class Completions:
    """The ``task.completed`` facts of one connection."""

    def __init__(self, link: ReconnectingConnection, stream: str, max_bytes: int) -> None:
        self._link = link
        self._single = command_head(stream, TYPE_OF[TaskCompleted])
        self._many = command_head(stream, TYPE_OF[TasksCompleted])
        self._loop = asyncio.get_running_loop()
        #: Waiting for the end of this turn: the JSON of each fact, its callback and its attempt.
        self._facts: list[bytes] = []
        self._callbacks: list[AnswerCallback] = []
        self._attempts: list[Attempt] = []
        self._limit = max_facts_per_entry(MAX_TASKS_PER_ENTRY, max_bytes)

    def add(self, data: bytes, callback: AnswerCallback, attempt: Attempt) -> None:
        """Send a report with the others of this turn; ``callback(attempt, answer)`` gets the answer to their entry."""
        if len(data) > MAX_BATCHED_BYTES or self._limit < 2:
            self._link.send_until_answered(command(self._single, data), callback, attempt)
            return
        if not self._facts:
            self._loop.call_soon(self._send)
        self._facts.append(data)
        self._callbacks.append(callback)
        self._attempts.append(attempt)
        if len(self._facts) == self._limit:
            self._send()

    def _send(self) -> None:
        facts, callbacks, attempts = self._facts, self._callbacks, self._attempts
        self._facts, self._callbacks, self._attempts = [], [], []
        if len(facts) == 1:
            self._link.send_until_answered(command(self._single, facts[0]), callbacks[0], attempts[0])
        elif facts:
            data = b'{"completed":[%b]}' % b",".join(facts)
            self._link.send_until_answered(command(self._many, data), _pass_on, (callbacks, attempts))


def command_head(stream: str, kind: str) -> bytes:
    """Return the packed command that appends a fact of a kind, without its last argument, which is the fact."""
    return pack(("XADD", stream, "*", "type", kind, "data", b"")).removesuffix(b"$0\r\n\r\n")


def command(head: bytes, data: bytes) -> bytes:
    """Return the packed command that ``head`` begins, with its fact."""
    return b"%b$%d\r\n%b\r\n" % (head, len(data), data)


def _pass_on(context: tuple[list[AnswerCallback], list[Attempt]], answer: Any) -> None:
    for callback, attempt in zip(*context, strict=True):
        try:
            callback(attempt, answer)
        except Exception:  # the other callbacks must be called as well
            log.exception("sdk.defect", task_id=attempt.task_id)


_of_link: WeakKeyDictionary[ReconnectingConnection, Completions] = WeakKeyDictionary()


def shared_completions(link: ReconnectingConnection, stream: str, max_bytes: int) -> Completions:
    """Return the completions of a connection, which all its agents share."""
    found = _of_link.get(link)
    if found is None:
        found = _of_link[link] = Completions(link, stream, max_bytes)
    return found


#: Outcomes that are kept to be reported again if a fail-over restores their assignments: maximum number …
REMEMBERED = 1_000
#: … and bytes …
REMEMBERED_BYTES = 8 * 1024 * 1024
#: … and age in seconds.
REMEMBERED_S = 300.0
#: Maximum length of an error message, the limit of its fact; the rest is cut off.
MAX_MESSAGE = 4_096

#: A report may take the server's maxmemory divided by this. While a result is settled it is in memory twice, in the
#: report and in the record; and other data needs room as well.
PARTS_OF_MEMORY = 8

#: Facts that end an attempt.
OUTCOMES = (TaskCompleted, TaskFailed, TaskReleased)
COMPLETED = TYPE_OF[TaskCompleted]

_encode = codec.encode


class Reports:
    """The reports of one agent process.

    Args:
        link: the connection for writes.
        keys: of the cell.
        max_bytes: maximum size of an entry.
        on_answered: called with each attempt whose outcome Redis has answered.
    """

    def __init__(
        self, link: ReconnectingConnection, keys: Keys, max_bytes: int, on_answered: Callable[[Attempt], None]
    ) -> None:
        self._on_answered = on_answered
        self._link = link
        self._stream = keys.of("in:reports")
        self._completions = shared_completions(link, self._stream, max_bytes)
        self._max_bytes = max_bytes
        self._reason = "COORD_MAX_ENTRY_BYTES"  # where the limit comes from
        self._configured_bytes = max_bytes
        self._loop = asyncio.get_running_loop()
        #: By kind of outcome: the command that reports it, without the fact itself.
        self._heads = {TYPE_OF[fact]: command_head(self._stream, TYPE_OF[fact]) for fact in OUTCOMES}
        self._receive = self._answered  # bound once
        self._unanswered = 0
        #: By lease: the outcomes that were reported, as JSON, the oldest first; and the time of each. (An OrderedDict
        #: finds its first item at once; a dict searches past the slots of all deleted items.)
        self._finished: OrderedDict[str, bytes] = OrderedDict()
        self._kinds: dict[str, str] = {}  # by lease: the kind of outcomes that are not `task.completed`
        self._finished_at: deque[float] = deque()
        self._finished_bytes = 0
        self._flushed = asyncio.Event()
        self._flushed.set()

    @property
    def unanswered(self) -> int:
        """Number of outcomes that Redis has not answered yet."""
        return self._unanswered

    def learn_limit(self) -> None:
        """Read maxmemory of the server, which may limit results further; without INFO nothing changes."""
        self._link.send(pack(("INFO", "memory")), self._learned)

    def _learned(self, _context: Any, answer: Any) -> None:
        found = re.search(rb"^maxmemory:(\d+)", answer, re.MULTILINE) if isinstance(answer, bytes) else None
        if found is None:
            return
        share = int(found[1]) // PARTS_OF_MEMORY
        is_bound = 0 < share < self._configured_bytes
        self._max_bytes = share if is_bound else self._configured_bytes
        self._reason = "an eighth of the server's maxmemory" if is_bound else "COORD_MAX_ENTRY_BYTES"

    def completed(self, attempt: Attempt, result: Any) -> None:
        """Report the result of an attempt; a result that cannot be sent is a failure that no retry can fix."""
        try:
            raw = values.encode(result, "result")
            data = _encode(TaskCompleted(attempt.task_id, attempt.lease, Raw(raw), self._ago(attempt)))
            _check(data, "result", raw)
        except (ValueError, *codec.BAD_JSON) as error:
            message = f"{error}; the result was: {values.text_of(result)}"
            self.failed(attempt, "result_invalid", message, retryable=False)
            return
        if len(data) > self._max_bytes:
            limit = f"{self._max_bytes} bytes ({self._reason})"
            message = f"the result has {len(raw)} bytes; with its report it may have {limit}"
            self.failed(attempt, "result_too_large", message, retryable=False)
            return
        self._outcome(attempt, COMPLETED, data)
        self._completions.add(data, self._receive, attempt)

    def failed(self, attempt: Attempt, code: str, message: str, *, retryable: bool, detail: Any = None) -> None:
        """Report that an attempt failed; a detail that cannot be sent is left out."""
        ago = self._ago(attempt) if attempt.started_at else None
        fact = TaskFailed(attempt.task_id, attempt.lease, _text(code, 128), _text(message), retryable, ago)
        if detail is not None and (raw := _detail(attempt, detail)) is not None:
            fact = replace(fact, detail=raw)
        self._send(attempt, TYPE_OF[TaskFailed], _encode(fact))

    def released(self, attempt: Attempt, reason: str, code: str = "released") -> None:
        """Give a task back unfinished. ``code``: see ``TaskReleased``."""
        ago = self._ago(attempt) if attempt.started_at else None
        fact = TaskReleased(attempt.task_id, attempt.lease, _text(reason), code, ago)
        self._send(attempt, TYPE_OF[TaskReleased], _encode(fact))

    def started(self, attempt: Attempt) -> None:
        """Report that an attempt has been running for a while."""
        data = _encode(TaskStarted(attempt.task_id, attempt.lease, self._ago(attempt)))
        self._link.send_until_answered(
            pack(("XADD", self._stream, "*", "type", "task.started", "data", data)), ignore_answer
        )

    def progressed(self, attempt: Attempt, raw: bytes, callback: Callable[[Any, Any], None]) -> bool:
        """Report progress, which may be lost; return False if it is too large, or a ``Raw`` that is not JSON."""
        data = _encode(TaskProgressed(attempt.task_id, attempt.lease, Raw(raw)))
        try:
            _check(data, "progress", raw)
        except (ValueError, *codec.BAD_JSON):
            return False
        if len(data) > self._max_bytes:
            return False
        self._link.send(pack(("XADD", self._stream, "*", "type", "task.progressed", "data", data)), callback, attempt)
        return True

    def repeat(self, lease: str) -> bool:
        """Report the outcome of a lease again; return False if none is kept."""
        data = self._finished.get(lease)
        if data is None:
            return False
        head = self._heads[self._kinds.get(lease, COMPLETED)]
        self._link.send_until_answered(command(head, data), ignore_answer)
        return True

    async def flushed(self, limit_s: float) -> bool:
        """Wait until Redis has every outcome; return False if it has not within ``limit_s`` seconds."""
        try:
            await asyncio.wait_for(self._flushed.wait(), limit_s)
        except TimeoutError:
            return False
        return True

    def _ago(self, attempt: Attempt) -> int:
        return int((self._loop.time() - attempt.started_at) * 1000)

    def _send(self, attempt: Attempt, kind: str, data: bytes) -> None:
        self._outcome(attempt, kind, data)
        self._link.send_until_answered(command(self._heads[kind], data), self._receive, attempt)

    def _outcome(self, attempt: Attempt, kind: str, data: bytes) -> None:
        """Count an outcome as sent, and keep it."""
        if not self._unanswered:
            self._flushed.clear()
        self._unanswered += 1
        self._keep(attempt.lease, kind, data)

    def _keep(self, lease: str, kind: str, data: bytes) -> None:
        finished, times = self._finished, self._finished_at
        if lease in finished:
            return  # the first outcome is the one that counts
        now = self._loop.time()
        finished[lease] = data
        if kind != COMPLETED:
            self._kinds[lease] = kind
        times.append(now)
        self._finished_bytes += len(data)
        while finished and (
            len(finished) > REMEMBERED or self._finished_bytes > REMEMBERED_BYTES or times[0] <= now - REMEMBERED_S
        ):
            forgotten, oldest = finished.popitem(last=False)
            self._kinds.pop(forgotten, None)
            times.popleft()
            self._finished_bytes -= len(oldest)

    def _answered(self, attempt: Attempt, answer: Any) -> None:
        if isinstance(answer, ErrorAnswer):
            # No retry can fix it (an ACL that forbids the stream): the lease is not held any more, so it gets lost.
            log.error("report.refused", task_id=attempt.task_id, error=str(answer))
        self._unanswered -= 1
        if not self._unanswered:
            self._flushed.set()
        self._on_answered(attempt)


class _Embedded(Struct):
    """The parts of a report that are embedded without decoding."""

    result: Raw = Raw(b"")
    progress: Raw = Raw(b"")


_embedded = json.Decoder(_Embedded).decode


def _check(data: bytes, field: str, raw: bytes) -> None:
    """Raise what the distributor would raise when it reads this: a ``Raw`` of the user may hold anything."""
    if not data.isascii():
        data.decode()
    if bytes(getattr(_embedded(data), field)) != raw.strip():
        raise ValueError("it is more than one value")  # and would be read as other fields of its report


def _detail(attempt: Attempt, detail: Any) -> Raw | None:
    """Return the detail of a failure as JSON; None if it cannot be sent."""
    try:
        raw = values.encode(detail, "detail")
    except values.ValueRefused as error:
        why = str(error)
    else:
        if len(raw) <= DETAIL_BYTES:
            return Raw(raw)
        why = f"it has {len(raw)} bytes, and the limit is {DETAIL_BYTES}"
    log.warning("task.detail_refused", task_id=attempt.task_id, error=why)
    return None


def _text(value: object, max_length: int = MAX_MESSAGE) -> str:
    """Return the text of any value: cut, and without halves of surrogate pairs, which are not UTF-8."""
    text = value if isinstance(value, str) else str(value)
    return text[:max_length].encode("utf-8", "replace").decode()
