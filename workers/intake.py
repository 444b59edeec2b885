"""What happens to a batch of entries between being read and being consumed.

Decoded, handled in one round trip; what failed in it is tried by itself, each try counted before it is made, and buried
after three. An entry that cannot be decoded is buried at once. Lost connections, a loading or a full server never
count: such an error is raised, and everything stays pending.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from redis import exceptions as redis_errors

from coord import codec, logs
from coord.errors import CoordError
from coord.models.facts import parts_of
from coord.streams import Consumer, Entry
from workers.service import Failure, ReceivedFact, Service
from workers.transitions import DeadLetterEntry

log = logs.get_logger()

#: Tries of an entry by itself before it is buried.
TRIES = 3
#: Bytes of a buried entry that are kept.
BURIED_BYTES = 4096
#: Bytes of its type that are.
BURIED_TYPE_BYTES = 128
#: Characters of the reason that are kept.
REASON_KEPT = 1000

#: Errors that say nothing about an entry: the server is away, loading, full, failing over, lost its scripts or its slot
#: (AskError is MovedError's base), or its operator took a permission away.
PASSING = (
    redis_errors.ConnectionError,
    redis_errors.TimeoutError,
    redis_errors.NoScriptError,
    redis_errors.ReadOnlyError,
    redis_errors.OutOfMemoryError,
    redis_errors.ClusterDownError,
    redis_errors.AskError,
    redis_errors.TryAgainError,
    redis_errors.NoPermissionError,
    OSError,
)
PASSING_WORDS = (
    "NOGROUP",
    "UNBLOCKED",
    "NOREPLICAS",
    "MASTERDOWN",
    "UNKILLABLE",
    "BUSY ",
    "MISCONF",
    "OOM ",
    "LOADING",
)


def is_passing(error: BaseException) -> bool:
    """Whether an error will pass by itself, so that no entry is to blame for it."""
    if isinstance(error, PASSING):
        return True
    # The words count in the server's mouth only: another error may quote what a caller wrote.
    return isinstance(error, redis_errors.RedisError) and any(word in str(error) for word in PASSING_WORDS)


class Intake:
    """Brings entries to one service."""

    def __init__(self, service: Service, consumer: Consumer) -> None:
        self.service = service
        self.consumer = consumer
        self.handled = 0  #: facts since the start
        self.lag_ms = 0  #: how old the last one was
        self._scripts = service.cell.scripts
        self._max_bytes = service.cell.settings.max_entry_bytes
        self._tries: dict[tuple[str, str], int] = {}

    async def handle(self, entries: Sequence[Entry]) -> None:
        """A batch in one round trip, then its failures one by one.

        Raises:
            redis.exceptions.RedisError: a passing one; everything that it concerned is still pending.
        """
        received = await self._decode(entries)
        if not received:
            return
        try:
            failures = await self.service.handle(received)
        except Exception as error:
            if is_passing(error):
                raise
            log.exception("worker.batch_failed", entries=len(received))
            failures = [Failure(one.entry, str(error)) for one in received]
        self._count(received, len(failures))
        if failures:
            await self.handle_alone([failure.entry for failure in failures])

    async def handle_alone(self, entries: Sequence[Entry]) -> None:
        """Each entry by itself. Raises as ``handle``."""
        for entry in entries:
            one = (entry.stream, entry.id)
            known = self._tries.get(one)
            tries = await self.consumer.count_try(entry, None if known is None else known + 1)
            self._tries[one] = tries
            if tries > TRIES:
                await self._bury([(entry, "entry_buried", "its worker ended three times while it was tried")])
                continue
            try:
                why = await self._try(entry, tries)
            except Exception as error:
                if is_passing(error):
                    await self._take_back(entry, tries)
                raise
            if one in self.service.held:
                # It waits for something else, which is no failing.
                await self._take_back(entry, tries)
            elif why is None:
                self._tries.pop(one, None)
            elif tries >= TRIES:
                await self._bury([(entry, "entry_buried", f"failed {tries} times by itself; last: {why}")])

    async def _take_back(self, entry: Entry, tries: int) -> None:
        """A try that was none: neither this process nor the next one, which asks the server, counts it."""
        self._tries[entry.stream, entry.id] = tries - 1
        with contextlib.suppress(redis_errors.RedisError, OSError):
            await self.consumer.count_try(entry, tries - 1)

    async def _try(self, entry: Entry, tries: int) -> str | None:
        """One entry by itself; why it failed, if it did. A passing error is raised."""
        received = await self._decode([entry])
        if not received:
            return None
        try:
            failures = await self.service.handle(received)
        except Exception as error:
            if is_passing(error):
                raise
            log.exception("worker.entry_failed", stream=entry.stream, entry=entry.id, tries=tries)
            return str(error) or type(error).__name__
        if failures:
            log.warning("worker.entry_failed", stream=entry.stream, entry=entry.id, tries=tries, why=failures[0].why)
            return failures[0].why
        self._count(received, 0)
        return None

    async def _decode(self, entries: Sequence[Entry]) -> list[ReceivedFact[Any]]:
        received: list[ReceivedFact[Any]] = []
        bad: list[tuple[Entry, str, str]] = []
        service, checked = self.service, self.service.checked
        for entry, fact in zip(entries, codec.facts_of(entries, self._max_bytes), strict=True):
            try:
                if isinstance(fact, CoordError):
                    raise fact
                if type(fact) in checked:
                    service.check(fact)
            except CoordError as error:
                bad.append((entry, error.code, str(error)))
            else:
                caller = codec.caller_of(entry.fields) if b"caller" in entry.fields else ""
                received.append(ReceivedFact(entry, fact, caller))
        if bad:
            await self._bury(bad)
        return received

    async def _bury(self, bad: Sequence[tuple[Entry, str, str]]) -> None:
        burials = [
            DeadLetterEntry(
                stream=entry.stream,
                entry=entry.id,
                kind=entry.fields.get(b"type", b"")[:BURIED_TYPE_BYTES],
                data=entry.fields.get(b"data", b"")[:BURIED_BYTES],
                whole=_is_kept_whole(entry),
                caller=codec.caller_of(entry.fields),
                code=code,
                reason=reason[:REASON_KEPT],
            )
            for entry, code, reason in bad
        ]
        await self._scripts.run(self._scripts.dead_letter(self.service.kind, burials))
        for burial in burials:
            self._tries.pop((burial.stream, burial.entry), None)
            log.warning(
                "entry.buried", stream=burial.stream, entry=burial.entry, code=burial.code, reason=burial.reason
            )

    def _count(self, received: Sequence[ReceivedFact[Any]], failed: int) -> None:
        self.handled += sum(len(parts_of(one.fact)) for one in received) - failed
        self.lag_ms = max(0, int(time.time() * 1000) - int(received[-1].entry.id.partition("-")[0]))


def _is_kept_whole(entry: Entry) -> bool:
    """Whether what is buried of an entry is all of it, so that it may be replayed."""
    kind, data = entry.fields.get(b"type"), entry.fields.get(b"data")
    return kind is not None and len(kind) <= BURIED_TYPE_BYTES and data is not None and len(data) <= BURIED_BYTES
