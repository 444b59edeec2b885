"""What an agent says of the tasks that it holds. Every report is repeated until Redis has answered it.

A report appended twice is harmless: the second finds its lease settled and gets the first outcome.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from msgspec import Raw, Struct, json
from msgspec.structs import replace

from coord import codec, values
from coord.agent import batching
from coord.agent.attempt import Attempt
from coord.agent.protocol import ErrorAnswer
from coord.agent.reconnect import ReconnectingConnection
from coord.keys import Keys
from coord.logs import get_logger
from coord.models.facts import (
    DETAIL_BYTES,
    TYPE_OF,
    TaskCompleted,
    TaskFailed,
    TaskProgressed,
    TaskReleased,
    TaskStarted,
)
from coord.pipeline import pack

log = get_logger()

#: Outcomes that are remembered to be told again, when a fail-over brings their assignments back: so many …
REMEMBERED = 1_000
#: … so many bytes of them …
REMEMBERED_BYTES = 8 * 1024 * 1024
#: … and so long.
REMEMBERED_S = 300.0
#: The longest error message that travels, as long as its fact may have it; what is above is cut.
LONGEST_MESSAGE = 4_096

#: Share of the server's maxmemory that a report may take at most, as a divisor. While a result is settled it is there
#: twice, in the report and in the record; and it needs room beside what waits.
PARTS_OF_MEMORY = 8

#: What ends an attempt.
OUTCOMES = (TaskCompleted, TaskFailed, TaskReleased)
COMPLETED = TYPE_OF[TaskCompleted]

_encode = codec.encode


class Reports:
    """An agent's reports; ``answered`` is called with each attempt whose outcome Redis has."""

    def __init__(self, link: ReconnectingConnection, keys: Keys, max_bytes: int) -> None:
        self.answered: Callable[[Attempt], None] = lambda _attempt: None
        self._link = link
        self._stream = keys.of("in:reports")
        self._completions = batching.shared(link, self._stream, max_bytes)
        self._max_bytes = max_bytes
        self._reason = "COORD_MAX_ENTRY_BYTES"  # what the limit is due to
        self._configured_bytes = max_bytes
        self._loop = asyncio.get_running_loop()
        #: By kind of outcome: the command that tells it, but for the fact itself.
        self._heads = {TYPE_OF[fact]: batching.head_of(self._stream, TYPE_OF[fact]) for fact in OUTCOMES}
        self._taken = self._told  # bound once
        self._unanswered = 0
        #: By lease: the outcomes that were told, as JSON, the oldest first; and when each was told. (An OrderedDict
        #: knows its first; a dict would look for it among the places of all that were deleted before.)
        self._finished: OrderedDict[str, bytes] = OrderedDict()
        self._kinds: dict[str, str] = {}  # of those that are not `task.completed`
        self._finished_at: deque[float] = deque()
        self._finished_bytes = 0
        self._flushed = asyncio.Event()
        self._flushed.set()

    @property
    def unanswered(self) -> int:
        """Outcomes that Redis has not answered yet."""
        return self._unanswered

    def learn_limit(self) -> None:
        """Ask the server for its maxmemory, which may bound results further; without INFO nothing changes."""
        self._link.send(pack(("INFO", "memory")), self._learned)

    def _learned(self, _about: Any, answer: Any) -> None:
        found = re.search(rb"^maxmemory:(\d+)", answer, re.MULTILINE) if isinstance(answer, bytes) else None
        if found is None:
            return
        share = int(found[1]) // PARTS_OF_MEMORY
        is_bound = 0 < share < self._configured_bytes
        self._max_bytes = share if is_bound else self._configured_bytes
        self._reason = "an eighth of the server's maxmemory" if is_bound else "COORD_MAX_ENTRY_BYTES"

    def completed(self, attempt: Attempt, result: Any) -> None:
        """It ended well; a result that cannot travel is a failure that no retry mends."""
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
        self._completions.add(data, self._taken, attempt)

    def failed(self, attempt: Attempt, code: str, message: str, *, retryable: bool, detail: Any = None) -> None:
        """It failed; a detail that cannot travel is left out."""
        ago = self._ago(attempt) if attempt.started_at else None
        fact = TaskFailed(attempt.task_id, attempt.lease, _text(code, 128), _text(message), retryable, ago)
        if detail is not None and (raw := _detail(attempt, detail)) is not None:
            fact = replace(fact, detail=raw)
        self._send(attempt, TYPE_OF[TaskFailed], _encode(fact))

    def released(self, attempt: Attempt, reason: str, code: str = "released") -> None:
        """Return it unfinished. ``code``: see ``TaskReleased``."""
        ago = self._ago(attempt) if attempt.started_at else None
        fact = TaskReleased(attempt.task_id, attempt.lease, _text(reason), code, ago)
        self._send(attempt, TYPE_OF[TaskReleased], _encode(fact))

    def started(self, attempt: Attempt) -> None:
        """It has been running for a while."""
        data = _encode(TaskStarted(attempt.task_id, attempt.lease, self._ago(attempt)))
        self._link.send_until_answered(
            pack(("XADD", self._stream, "*", "type", "task.started", "data", data)), _ignored
        )

    def progressed(self, attempt: Attempt, raw: bytes, done: Callable[[Any, Any], None]) -> bool:
        """How far it is; may be lost. False when it cannot travel: it is too large, or a ``Raw`` that is no JSON."""
        data = _encode(TaskProgressed(attempt.task_id, attempt.lease, Raw(raw)))
        try:
            _check(data, "progress", raw)
        except (ValueError, *codec.BAD_JSON):
            return False
        if len(data) > self._max_bytes:
            return False
        self._link.send(pack(("XADD", self._stream, "*", "type", "task.progressed", "data", data)), done, attempt)
        return True

    def tell_again(self, lease: str) -> bool:
        """Tell the outcome that this lease had once more; False if none is remembered."""
        data = self._finished.get(lease)
        if data is None:
            return False
        head = self._heads[self._kinds.get(lease, COMPLETED)]
        self._link.send_until_answered(batching.command(head, data), _ignored)
        return True

    async def flushed(self, limit_s: float) -> bool:
        """Wait until Redis has every outcome; False if it had not within the limit."""
        try:
            await asyncio.wait_for(self._flushed.wait(), limit_s)
        except TimeoutError:
            return False
        return True

    def _ago(self, attempt: Attempt) -> int:
        return int((self._loop.time() - attempt.started_at) * 1000)

    def _send(self, attempt: Attempt, kind: str, data: bytes) -> None:
        self._outcome(attempt, kind, data)
        self._link.send_until_answered(batching.command(self._heads[kind], data), self._taken, attempt)

    def _outcome(self, attempt: Attempt, kind: str, data: bytes) -> None:
        """Count an outcome as told, and remember it."""
        if not self._unanswered:
            self._flushed.clear()
        self._unanswered += 1
        self._remember(attempt.lease, kind, data)

    def _remember(self, lease: str, kind: str, data: bytes) -> None:
        finished, told_at = self._finished, self._finished_at
        if lease in finished:
            return  # the first outcome is the one that counts
        now = self._loop.time()
        finished[lease] = data
        if kind != COMPLETED:
            self._kinds[lease] = kind
        told_at.append(now)
        self._finished_bytes += len(data)
        while finished and (
            len(finished) > REMEMBERED or self._finished_bytes > REMEMBERED_BYTES or told_at[0] <= now - REMEMBERED_S
        ):
            forgotten, oldest = finished.popitem(last=False)
            self._kinds.pop(forgotten, None)
            told_at.popleft()
            self._finished_bytes -= len(oldest)

    def _told(self, attempt: Attempt, answer: Any) -> None:
        if isinstance(answer, ErrorAnswer):
            # No repeating mends it (an ACL that forbids the stream): the lease is no longer held, so it gets lost.
            log.error("report.refused", task_id=attempt.task_id, error=str(answer))
        self._unanswered -= 1
        if not self._unanswered:
            self._flushed.set()
        self.answered(attempt)


class _Passed(Struct):
    """What of a report is passed on as it is."""

    result: Raw = Raw(b"")
    progress: Raw = Raw(b"")


_passed = json.Decoder(_Passed).decode


def _check(data: bytes, field: str, raw: bytes) -> None:
    """Raise what the distributor would when it reads this: a ``Raw`` of the user's may hold anything."""
    if not data.isascii():
        data.decode()
    if bytes(getattr(_passed(data), field)) != raw.strip():
        raise ValueError("it is more than one value")  # and would be read as other fields of its report


def _detail(attempt: Attempt, detail: Any) -> Raw | None:
    """A handler's detail as JSON, or None for one that cannot travel."""
    try:
        raw = values.encode(detail, "detail")
    except values.ValueRefused as error:
        why = str(error)
    else:
        if len(raw) <= DETAIL_BYTES:
            return Raw(raw)
        why = f"it has {len(raw)} bytes, and {DETAIL_BYTES} are kept"
    log.warning("task.detail_refused", task_id=attempt.task_id, error=why)
    return None


def _ignored(_about: Any, _answer: Any) -> None:
    pass


def _text(said: object, longest: int = LONGEST_MESSAGE) -> str:
    """What a handler has said, whatever it is: cut, and without halves of surrogate pairs, which are no UTF-8."""
    text = said if isinstance(said, str) else str(said)
    return text[:longest].encode("utf-8", "replace").decode()
