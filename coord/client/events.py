"""Follows the logs of a cell as one, in order, across outages of Redis, and reports what was lost.

Logs are capped: a reader that is slow or absent finds entries gone. An event ``log.trimmed`` stands in their place, so
silence always means that nothing happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from redis import exceptions as redis_errors
from redis.asyncio import Redis

from coord import queries
from coord.backoff import Backoff
from coord.connection import is_demoted, leave_server
from coord.keys import Keys
from coord.models.events import EMPTY, LOGS, RESET, TRIMMED, Event, LogPlace, Position
from coord.models.ids import EntryOrder, entry_before, entry_order
from coord.queries import LogWindow

#: Entries of each log read in one round trip.
COUNT = 500
#: Seconds before the next try while Redis is unavailable: the first wait, doubled up to the second.
AWAY_S = (0.1, 2.0)


class LogEvent(NamedTuple):
    """An event, and how far its log has been read with it."""

    event: Event
    place: LogPlace
    number: int = 0  #: of the event in its entry, from 1; 0: the entry has no other


class LogCursor:
    """The position up to which one log has been read.

    Args:
        log: its name.
        window: its extent now.
        start: where to begin: after this entry, which another log may have; at a place of this log; None: now.
    """

    def __init__(self, log: str, window: LogWindow, start: str | LogPlace | None) -> None:
        self.log = log
        #: How far the entry after the cursor has been read already.
        self.part: LogPlace | None = None
        self._was_read = isinstance(start, LogPlace)
        #: Number of entries that the log had ever had at the cursor; None: unknown.
        self._passed: int | None = None
        if start is None:
            self.cursor, self._passed = window.last, window.added
        elif isinstance(start, LogPlace):
            self.cursor = start.entry
            if start.entry == EMPTY:
                self._passed = 0
            elif start.done:
                self.cursor, self.part = entry_before(start.entry), start
        else:
            self.cursor = start
            if start == EMPTY:
                self._passed = window.added - window.length
                if window.length:
                    self.cursor = entry_before(window.first)

    def advance(self, cursor: str, count: int) -> None:
        """Move to ``cursor``, after ``count`` entries."""
        self.cursor, self.part = cursor, None
        if self._passed is not None:
            self._passed += count

    def check(self, window: LogWindow) -> LogEvent | None:
        """Return an event for what was lost between the cursor and the next entry that can be read; move behind it."""
        passed, cursor = self._passed, self.cursor
        if entry_order(window.last) < entry_order(cursor) or (passed is not None and window.added < passed):
            # What was read does not exist any more; new entries have later ids as time passes.
            self._passed = None if entry_order(window.last) > entry_order(cursor) else window.added
            if passed is None and not self._was_read:
                return None
            self._move(min(cursor, window.last, key=entry_order))
            return self._lost(window.last, RESET, None)
        if entry_order(window.last) == entry_order(cursor):
            unread_from = window.added
        elif window.length == 0 or entry_order(entry_before(window.first)) > entry_order(cursor):
            unread_from = window.added - window.length
        else:
            return None
        self._passed = unread_from
        is_at_end = entry_order(window.last) == entry_order(cursor)
        missed = None if passed is None else unread_from - passed
        if missed == 0 or (missed is None and (is_at_end or not unread_from)):
            return None
        if not is_at_end:
            self._move(entry_before(window.first) if window.length else window.last)
        return self._lost(window.first if window.length else window.last, TRIMMED, missed)

    def _move(self, cursor: str) -> None:
        self.cursor, self.part = cursor, None

    def _lost(self, entry_id: str, kind: str, missed: int | None) -> LogEvent:
        fields = {} if missed is None else {"missed": str(missed)}
        return LogEvent(Event(self.log, entry_id, kind, fields), LogPlace(self.cursor))


class LogReader:
    """Reads logs as one, in the order of the entry ids.

    Args:
        redis: a client as of ``coord.connection.connect``.
        keys: of the cell.
        logs: those to read, of ``LOGS``.
        count: entries of each log in one read.
    """

    def __init__(self, redis: Redis, keys: Keys, logs: Sequence[str] = LOGS, count: int | None = None) -> None:
        self._redis = redis
        self._keys = {log: keys.of(f"log:{log}") for log in logs}
        self._count = COUNT if count is None else count
        self._cursors: dict[str, LogCursor] = {}
        self._ends: dict[str, EntryOrder] = {}
        self.is_full = False  #: whether the last read left entries behind

    async def open(self, start: str | Position | None) -> None:
        """Begin after an entry id (``0-0``: with the oldest entry that is kept), at a position, or now (None).

        Raises:
            redis.exceptions.RedisError: Redis is unavailable.
        """
        pipe = self._redis.pipeline(transaction=False)
        windows = await self._execute(pipe)
        for log, window in windows.items():
            begin = start if start is None or isinstance(start, str) else start[log]
            self._cursors[log] = LogCursor(log, window, begin)
            self._ends[log] = entry_order(window.last)

    @property
    def position(self) -> dict[str, LogPlace]:
        """How far each log has been read."""
        return {log: one.part or LogPlace(one.cursor) for log, one in self._cursors.items()}

    def is_before_end(self, event: Event) -> bool:
        """Return True for an event that existed when the reader was opened."""
        return event.type in {TRIMMED, RESET} or entry_order(event.id) <= self._ends[event.log]

    @property
    def has_ended(self) -> bool:
        """Whether all was read that existed when the reader was opened."""
        return all(entry_order(one.cursor) >= self._ends[log] for log, one in self._cursors.items())

    async def read(self, block_ms: int | None = None) -> list[LogEvent]:
        """Return the next events of all logs; events for lost entries stand before all others.

        Args:
            block_ms: the longest wait for an event, in milliseconds; None: do not wait.

        Raises:
            redis.exceptions.RedisError: Redis is unavailable; nothing is lost by it.
        """
        try:
            return await self._read(block_ms)
        except (redis_errors.RedisError, OSError) as error:
            if is_demoted(error):
                await leave_server(self._redis)
            raise

    async def _read(self, block_ms: int | None) -> list[LogEvent]:
        command: list[Any] = ["XREAD", "COUNT", self._count]
        if block_ms is not None:
            command += ["BLOCK", block_ms]
        command += ["STREAMS", *self._keys.values(), *(one.cursor for one in self._cursors.values())]
        pipe = self._redis.pipeline(transaction=False)
        pipe.execute_command(*command)
        answers: list[Any] = []
        windows = await self._execute(pipe, answers)
        # The extents are later than the entries: what they prove to be complete was complete when it was read.
        lost = [gap for log, cursor in self._cursors.items() if (gap := cursor.check(windows[log])) is not None]
        answer: dict[bytes, Any] = answers[0] or {}
        read: dict[str, list[tuple[str, Mapping[bytes, bytes]]]] = {}
        for log, cursor in self._cursors.items():
            batches = answer.get(self._keys[log].encode(), ())
            begin = entry_order(cursor.cursor)
            entries = [(entry_id.decode(), fields or {}) for batch in batches for entry_id, fields in batch]
            read[log] = [one for one in entries if entry_order(one[0]) > begin]
        # A log that has more entries holds the others back: their later entries are read again in the next step.
        lasts = (entry_order(entries[-1][0]) for entries in read.values() if len(entries) >= self._count)
        fence = min(lasts, default=None)
        self.is_full = fence is not None
        found: list[LogEvent] = []
        for log, entries in read.items():
            ready = [one for one in entries if fence is None or entry_order(one[0]) <= fence]
            if ready:
                part = self._cursors[log].part
                self._cursors[log].advance(ready[-1][0], len(ready))
                for entry_id, fields in ready:
                    begin_at = part.done if part is not None and part.entry == entry_id else 0
                    found += _unfold(log, entry_id, fields, begin_at)
        found.sort(key=lambda one: entry_order(one.event.id))
        return lost + found

    async def _execute(self, pipe: Any, answers: list[Any] | None = None) -> dict[str, LogWindow]:
        """Send what is in the pipeline; return the extents of the logs after it."""
        for key in self._keys.values():
            pipe.xinfo_stream(key)
        found = await pipe.execute(raise_on_error=False)
        first = found[: -len(self._keys)]
        for answer in first:
            if isinstance(answer, Exception):
                raise answer
        if answers is not None:
            answers += first
        windows = map(queries.parse_log_window, found[-len(self._keys) :])
        return dict(zip(self._keys, windows, strict=True))


async def follow_events(
    redis: Redis,
    keys: Keys,
    *,
    since: str | None = None,
    follow: bool = True,
    block_ms: int = 500,
    on_outage: Callable[[str], None] = lambda _message: None,
    logs: Sequence[str] = LOGS,
) -> AsyncGenerator[Event]:
    """Yield events in the order of their entry ids.

    Args:
        redis: a client as of ``coord.connection.connect``.
        keys: of the cell.
        since: id of the entry after which to begin (``0-0``: the oldest that is kept); None: from now on.
        follow: continue for ever, also across outages of Redis; if False, end with the events until now.
        block_ms: the longest wait of one read, in milliseconds; less than the socket timeout of the client.
        on_outage: called with a message when Redis is unavailable and when it is back.
        logs: those to follow, of ``LOGS``.

    Raises:
        redis.exceptions.RedisError: Redis is unavailable at the beginning, or at any time without ``follow``.
    """
    reader = LogReader(redis, keys, logs)
    await reader.open(since)
    backoff, is_away = Backoff(*AWAY_S), False
    while True:
        try:
            found = await reader.read(block_ms if follow else None)
        except (redis_errors.RedisError, OSError) as error:
            if not follow:
                raise
            if not is_away:
                on_outage(f"Redis is unavailable ({error}); the events of the outage follow when it is back")
            is_away = True
            await asyncio.sleep(backoff.next_s())
            continue
        if is_away:
            on_outage("Redis is back")
            is_away = False
            backoff.reset()
        for event, *_ in found:
            if follow or reader.is_before_end(event):
                yield event
        if not follow and (not found or reader.has_ended):
            return


def _unfold(log: str, entry_id: str, raw: Mapping[bytes, bytes], begin: int) -> list[LogEvent]:
    """Return the events of an entry from number ``begin`` on, with their places."""
    events = _events(log, entry_id, raw)
    if len(events) == 1:
        return [LogEvent(events[0], LogPlace(entry_id))]
    places = [LogPlace(entry_id, done) for done in range(1, len(events))] + [LogPlace(entry_id)]
    return [LogEvent(events[at], places[at], at + 1) for at in range(begin, len(events))]


def _events(log: str, entry_id: str, raw: Mapping[bytes, bytes]) -> list[Event]:
    """Return the events of an entry. For a batch of tasks each field holds one value per task, separated by spaces."""
    fields = {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in raw.items()}
    kind = fields.pop("type", "")
    fields.pop("seq", None)
    if " " not in fields.get("task_id", ""):
        return [Event(log, entry_id, kind, fields)]
    rows = zip(*(values.split(" ") for values in fields.values()), strict=False)
    return [Event(log, entry_id, kind, dict(zip(fields, values, strict=True))) for values in rows]
