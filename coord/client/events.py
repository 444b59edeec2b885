"""Follows the logs of a cell as one, in order, across outages of Redis, and reports what was lost.

Logs are capped: a reader that is slow or absent finds entries gone. An event ``log.trimmed`` stands in their place, so
silence always means that nothing happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from typing import Any

from redis import exceptions as redis_errors
from redis.asyncio import Redis

from coord import queries
from coord.backoff import Backoff
from coord.connection import is_demoted, leave_server
from coord.keys import Keys
from coord.models.events import LOGS, RESET, TRIMMED, Event
from coord.models.ids import entry_order
from coord.queries import LogWindow

#: Entries of each log read in one round trip.
COUNT = 500
#: Seconds before the next try while Redis is unavailable: the first wait, doubled up to the second.
AWAY_S = (0.1, 2.0)


class LogCursor:
    """The position up to which one log has been read."""

    def __init__(self, log: str, window: LogWindow, since: str | None) -> None:
        self.log = log
        self.cursor = window.last if since is None else since
        #: Number of entries that the log had ever had at the cursor; None: unknown.
        self._passed: int | None = window.added if since is None else None
        if since == "0-0":
            self._passed = window.added - window.length

    def advance(self, cursor: str, count: int) -> None:
        """Move to ``cursor``, after ``count`` entries."""
        self.cursor = cursor
        if self._passed is not None:
            self._passed += count

    def check(self, window: LogWindow) -> Event | None:
        """Return an event for what was lost between the cursor and the next entry that can be read."""
        passed, cursor = self._passed, self.cursor
        if entry_order(window.last) < entry_order(cursor) or (passed is not None and window.added < passed):
            # What was read does not exist any more; new entries have later ids as time passes.
            self._passed = None if entry_order(window.last) > entry_order(cursor) else window.added
            return None if passed is None else Event(self.log, window.last, RESET, {})
        if entry_order(window.last) == entry_order(cursor):
            unread_from = window.added
        elif window.length == 0 or entry_order(window.first) > entry_order(cursor):
            unread_from = window.added - window.length
        else:
            return None
        self._passed = unread_from
        if passed is None and entry_order(window.last) != entry_order(cursor):
            return Event(self.log, window.first, TRIMMED, {}) if unread_from else None
        missed = 0 if passed is None else unread_from - passed
        return Event(self.log, window.first, TRIMMED, {"missed": str(missed)}) if missed > 0 else None


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
    windows = await _windows(redis, keys, logs)
    cursors = {log: LogCursor(log, windows[log], since) for log in logs}
    ends = {log: entry_order(windows[log].last) for log in logs}
    backoff, is_away = Backoff(*AWAY_S), False
    while True:
        try:
            found = await _step(redis, keys, cursors, block_ms if follow else None)
            for event in found:
                if follow or event.type in {TRIMMED, RESET} or entry_order(event.id) <= ends[event.log]:
                    yield event
        except (redis_errors.RedisError, OSError) as error:
            if not follow:
                raise
            if not is_away:
                on_outage(f"Redis is unavailable ({error}); the events of the outage follow when it is back")
            if is_demoted(error):
                await leave_server(redis)
            is_away = True
            await asyncio.sleep(backoff.next_s())
            continue
        if is_away:
            on_outage("Redis is back")
            is_away = False
            backoff.reset()
        if not follow and (not found or all(entry_order(cursors[log].cursor) >= ends[log] for log in logs)):
            return


async def _step(redis: Redis, keys: Keys, cursors: Mapping[str, LogCursor], block_ms: int | None) -> list[Event]:
    """Read all logs once; an event for lost entries stands before what comes after them."""
    windows = await _windows(redis, keys, cursors)
    found = [lost for log, cursor in cursors.items() if (lost := cursor.check(windows[log])) is not None]
    command: list[Any] = ["XREAD", "COUNT", COUNT]
    if block_ms is not None and not found:
        command += ["BLOCK", block_ms]
    command += ["STREAMS", *(keys.of(f"log:{log}") for log in cursors), *(one.cursor for one in cursors.values())]
    answer: dict[bytes, Any] = await redis.execute_command(*command) or {}
    read: dict[str, list[tuple[str, Mapping[bytes, bytes]]]] = {}
    for log in cursors:
        batches = answer.get(keys.of(f"log:{log}").encode(), ())
        read[log] = [(entry_id.decode(), fields or {}) for batch in batches for entry_id, fields in batch]
    # A log that has more entries holds the others back: their later entries are read again in the next step.
    fence = min((entry_order(entries[-1][0]) for entries in read.values() if len(entries) >= COUNT), default=None)
    for log, entries in read.items():
        ready = [(entry_id, fields) for entry_id, fields in entries if fence is None or entry_order(entry_id) <= fence]
        if ready:
            cursors[log].advance(ready[-1][0], len(ready))
            found += (event for entry_id, fields in ready for event in _events(log, entry_id, fields))
    found.sort(key=lambda event: entry_order(event.id))
    return found


async def _windows(redis: Redis, keys: Keys, logs: Iterable[str]) -> dict[str, LogWindow]:
    return {log: await queries.get_log_window(redis, keys.of(f"log:{log}")) for log in logs}


def _events(log: str, entry_id: str, raw: Mapping[bytes, bytes]) -> list[Event]:
    """Return the events of an entry. For a batch of tasks each field holds one value per task, separated by spaces."""
    fields = {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in raw.items()}
    kind = fields.pop("type", "")
    fields.pop("seq", None)
    if " " not in fields.get("task_id", ""):
        return [Event(log, entry_id, kind, fields)]
    rows = zip(*(values.split(" ") for values in fields.values()), strict=False)
    return [Event(log, entry_id, kind, dict(zip(fields, values, strict=True))) for values in rows]
