"""Following what happens: all logs as one, in order, across the absences of Redis, and honest about what is lost.

Logs are capped: who reads slower than the cell works, or comes back late, finds entries gone. That is told in their
place (``log.trimmed``), so that silence always means that nothing happened.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
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
#: Seconds before the next try while Redis is away: the first, doubled up to the second.
AWAY_S = (0.1, 2.0)


class LogCursor:
    """Where one log has been read up to."""

    def __init__(self, log: str, window: LogWindow, since: str | None) -> None:
        self.log = log
        self.cursor = window.last if since is None else since
        #: How many entries the log had ever had at the cursor; None: not known.
        self._passed: int | None = window.added if since is None else None
        if since == "0-0":
            self._passed = window.added - window.length

    def advance(self, cursor: str, count: int) -> None:
        """So many entries were read, the last of them at ``cursor``."""
        self.cursor = cursor
        if self._passed is not None:
            self._passed += count

    def check(self, window: LogWindow) -> Event | None:
        """What the window shows to be lost between the cursor and the next entry that can be read."""
        passed, cursor = self._passed, self.cursor
        if entry_order(window.last) < entry_order(cursor) or (passed is not None and window.added < passed):
            # What was read is no longer there; what comes has later ids, as time goes on.
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


async def events(
    redis: Redis,
    keys: Keys,
    *,
    since: str | None = None,
    follow: bool = True,
    block_ms: int = 500,
    say: Callable[[str], None] = lambda _sentence: None,
) -> AsyncGenerator[Event]:
    """What happens, in the order of the entries' ids.

    Args:
        redis: a client of the caller's kind.
        keys: of the cell.
        since: the id of the entry after which to begin (``0-0``: with the oldest that there is); None: from now on.
        follow: go on for ever, also when Redis is away meanwhile; else end with what has happened by now.
        block_ms: the longest wait of one read; below the client's socket timeout.
        say: told in a sentence that Redis is away, and that it is back.

    Raises:
        redis.exceptions.RedisError: Redis is away at the beginning, or at any time without ``follow``.
    """
    windows = await _windows(redis, keys)
    places = {log: LogCursor(log, windows[log], since) for log in LOGS}
    ends = {log: entry_order(windows[log].last) for log in LOGS}
    backoff, is_away = Backoff(*AWAY_S), False
    while True:
        try:
            found = await _step(redis, keys, places, block_ms if follow else None)
            for event in found:
                if follow or event.type in {TRIMMED, RESET} or entry_order(event.id) <= ends[event.log]:
                    yield event
        except (redis_errors.RedisError, OSError) as error:
            if not follow:
                raise
            if not is_away:
                say(f"Redis is away ({error}); what happens meanwhile is told when it is back")
            if is_demoted(error):
                await leave_server(redis)
            is_away = True
            await asyncio.sleep(backoff.next_s())
            continue
        if is_away:
            say("Redis is back")
            is_away = False
            backoff.reset()
        if not follow and (not found or all(entry_order(place.cursor) >= ends[log] for log, place in places.items())):
            return


async def _step(redis: Redis, keys: Keys, places: Mapping[str, LogCursor], block_ms: int | None) -> list[Event]:
    """One read of all logs; what was lost stands before what comes after it."""
    windows = await _windows(redis, keys)
    found = [lost for log, place in places.items() if (lost := place.check(windows[log])) is not None]
    command: list[Any] = ["XREAD", "COUNT", COUNT]
    if block_ms is not None and not found:
        command += ["BLOCK", block_ms]
    command += ["STREAMS", *(keys.of(f"log:{log}") for log in LOGS), *(places[log].cursor for log in LOGS)]
    answer: dict[bytes, Any] = await redis.execute_command(*command) or {}
    read: dict[str, list[tuple[str, Mapping[bytes, bytes]]]] = {}
    for log in LOGS:
        batches = answer.get(keys.of(f"log:{log}").encode(), ())
        read[log] = [(entry_id.decode(), fields or {}) for batch in batches for entry_id, fields in batch]
    # A log that has more to tell holds the others back: their later entries are read again in the next step.
    fence = min((entry_order(some[-1][0]) for some in read.values() if len(some) >= COUNT), default=None)
    for log, some in read.items():
        told = [(entry_id, fields) for entry_id, fields in some if fence is None or entry_order(entry_id) <= fence]
        if told:
            places[log].advance(told[-1][0], len(told))
            found += (event for entry_id, fields in told for event in _events(log, entry_id, fields))
    found.sort(key=lambda event: entry_order(event.id))
    return found


async def _windows(redis: Redis, keys: Keys) -> dict[str, LogWindow]:
    return {log: await queries.get_log_window(redis, keys.of(f"log:{log}")) for log in LOGS}


def _events(log: str, entry_id: str, raw: Mapping[bytes, bytes]) -> list[Event]:
    """What an entry tells: of the tasks of a batch, each of its fields holds as many values, a space between them."""
    fields = {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in raw.items()}
    kind = fields.pop("type", "")
    fields.pop("seq", None)
    if " " not in fields.get("task_id", ""):
        return [Event(log, entry_id, kind, fields)]
    told = zip(*(values.split(" ") for values in fields.values()), strict=False)
    return [Event(log, entry_id, kind, dict(zip(fields, values, strict=True))) for values in told]
