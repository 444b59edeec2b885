"""Follows the registry's logs, so that a view of the fleet lags behind the last change by a moment at most.

It also follows what other distributors have learned, and the loads that they change. What was learned is read from its
beginning, so that a distributor that starts knows what the others know; the rest is read from a snapshot on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from redis import exceptions as redis_errors

from coord import logs, queries
from coord.background import keep
from coord.connection import is_demoted, leave_server
from coord.models.agents import FleetAgent, LoadReport
from coord.models.ids import entry_ms, entry_order
from workers.service import WorkerContext, end_tasks
from workers.shared_loads import LoadsEntry

log = logs.get_logger()

#: Log entries read at once.
COUNT = 1_000
#: Entries of ``log:learned`` read at once; each has up to 100 KiB.
LEARNED_COUNT = 50
#: Seconds between two checks that the log still holds the cursor.
CHECK_S = 1.0
#: Seconds after loads until the next read, so that a busy cell does not cost a read for each entry.
LOADS_PAUSE_S = 0.003


class Follower:
    """Reads ``log:agents``, ``log:reports``, ``log:learned`` and ``log:loads`` from cursors.

    Args:
        cell: of the worker.
        changed: called with the agents that changed; their records have to be read.
        reported: called with the loads that agents reported.
        learned: called with each entry of ``log:learned``: the process that wrote it, its data, and its age in seconds.
        loads: called with entries of ``log:loads``.
    """

    def __init__(
        self,
        cell: WorkerContext,
        changed: Callable[[set[str]], Awaitable[None]],
        reported: Callable[[list[LoadReport]], None] = lambda _: None,
        learned: Callable[[str, bytes, float], None] = lambda *_: None,
        loads: Callable[[list[LoadsEntry]], None] = lambda _: None,
    ) -> None:
        self.cell = cell
        self.request_recovery: Callable[[], None] = lambda: None
        self._changed = changed
        self._reported = reported
        self._learned = learned
        self._loads = loads
        self._key = cell.keys.of("log:agents")
        self._reports_key = cell.keys.of("log:reports")
        self._learned_key = cell.keys.of("log:learned")
        self._loads_key = cell.keys.of("log:loads")
        self._cursor: str | None = None
        self._reports_cursor = "0-0"
        self._learned_cursor = "0-0"
        self._loads_cursor = "0-0"
        self._added = 0  # entries ever added to the log, up to the cursor
        self._task: asyncio.Task[None] | None = None
        self._checked_at = 0.0

    def start(self) -> None:
        """Start to follow; there are no calls before the first ``resync``."""
        self._task = keep("fleet.follow", self._follow)

    async def stop(self) -> None:
        """Stop following."""
        if self._task is not None:
            await end_tasks(self._task)

    async def resync(self) -> dict[str, FleetAgent]:
        """Return a snapshot of the fleet, and set the cursor to a moment before it."""
        window = await queries.get_log_window(self.cell.redis, self._key)
        self._reports_cursor = (await queries.get_log_window(self.cell.redis, self._reports_key)).last
        self._loads_cursor = (await queries.get_log_window(self.cell.redis, self._loads_key)).last
        fleet = await queries.get_fleet(self.cell.redis, self.cell.keys)
        # Last, because following begins with it: what it reads is about agents of this snapshot. What was learned of
        # agents that the caller does not know yet would be lost.
        self._cursor, self._added = window.last, window.added
        log.info("fleet.snapshot", agents=len(fleet), cursor=window.last)
        return fleet

    async def read_learned(self) -> None:
        """Read what others have learned and what was not read yet: at first all that the log holds.

        The age of an entry is only the difference of two times of the server. If the server's clock was changed in
        between, what was learned counts as older than it is, or as new.
        """
        last = (await queries.get_log_window(self.cell.redis, self._learned_key)).last
        if entry_order(last) < entry_order(self._learned_cursor):
            self._learned_cursor = last  # the log was rewound: what it holds was read before
        seconds, _ = await self.cell.redis.time()
        while True:
            command = ("XRANGE", self._learned_key, f"({self._learned_cursor}", "+", "COUNT", LEARNED_COUNT)
            entries: list[Any] = await self.cell.redis.execute_command(*command)
            for entry_id, fields in entries:
                self._learned_cursor = entry_id.decode()
                self._learn(fields, max(0.0, seconds - entry_ms(self._learned_cursor) / 1000))
            if len(entries) < LEARNED_COUNT:
                return

    async def catch_up(self) -> None:
        """Call back with the agents whose changes are not read yet.

        Called before a decision that is final, which must not rest on a view that lags behind. The cursor stays: the
        follower reads these entries again, which does no harm.

        Raises:
            redis.exceptions.RedisError: the server does not answer.
        """
        cursor = self._cursor
        if cursor is None:  # it lost track of the log, and the next snapshot is still to come
            await self._changed(set(await queries.list_agent_ids(self.cell.redis, self.cell.keys)))
        while cursor is not None:
            command = ("XRANGE", self._key, f"({cursor}", "+", "COUNT", COUNT)
            entries: list[Any] = await self.cell.redis.execute_command(*command)
            changed = {fields[b"agent_id"].decode() for _, fields in entries if b"agent_id" in fields}
            if changed:
                await self._changed(changed)
            if len(entries) < COUNT:
                return
            cursor = entries[-1][0].decode()

    async def _follow(self) -> None:
        while True:
            try:
                if self._cursor is None:
                    await asyncio.sleep(0.05)
                    continue
                await self._read(self._cursor)
                await self._check()
            except (redis_errors.RedisError, OSError) as error:
                log.warning("fleet.interrupted", error=f"{type(error).__name__}: {error}")
                if is_demoted(error):
                    await leave_server(self.cell.redis)
                self._lose_track()
                await asyncio.sleep(0.2)
            except Exception:
                # Continue after any error: without a follower the view would become stale.
                log.exception("fleet.failed")
                self._lose_track()
                await asyncio.sleep(0.2)

    async def _read(self, cursor: str) -> None:
        block_ms = self.cell.settings.read_block_ms  # not longer: the answer timeout starts there
        cursors = (cursor, self._reports_cursor, self._learned_cursor, self._loads_cursor)
        streams = (self._key, self._reports_key, self._learned_key, self._loads_key, *cursors)
        command = ("XREAD", "COUNT", COUNT, "BLOCK", block_ms, "STREAMS", *streams)
        answer: dict[bytes, Any] = await self.cell.redis.execute_command(*command) or {}
        changed: set[str] = set()
        began, count = cursor, 0
        for entry_id, fields in _entries_of(answer, self._key):
            cursor = entry_id.decode()
            count += 1
            if agent_id := (fields or {}).get(b"agent_id"):
                changed.add(agent_id.decode())
        for entry_id, fields in _entries_of(answer, self._reports_key):
            self._reports_cursor = entry_id.decode()
            self._reported(_read_reports((fields or {}).get(b"reports", b"")))
        for entry_id, fields in _entries_of(answer, self._learned_key):
            if entry_order(entry_id.decode()) > entry_order(self._learned_cursor):  # not read by ``read_learned`` since
                self._learned_cursor = entry_id.decode()
                self._learn(fields or {}, 0.0)
        loads = [
            LoadsEntry(entry_order(entry_id.decode()), fields.get(b"by", b"").decode(), fields.get(b"loads", b""))
            for entry_id, fields in _entries_of(answer, self._loads_key)
            if fields
        ]
        if loads:
            self._loads_cursor = "{}-{}".format(*loads[-1].order)
            self._loads(loads)
        if changed:
            await self._changed(changed)
        if loads:
            await asyncio.sleep(LOADS_PAUSE_S)
        if self._cursor == began:  # otherwise there was a resync meanwhile
            self._cursor, self._added = cursor, self._added + count

    def _learn(self, fields: dict[bytes, bytes], age_s: float) -> None:
        self._learned(fields.get(b"by", b"").decode("utf-8", "replace"), fields.get(b"data", b""), age_s)

    async def _check(self) -> None:
        """Request recovery if entries were missed: the log was flushed, rewound, or trimmed beyond the cursor."""
        now = asyncio.get_running_loop().time()
        if now - self._checked_at < CHECK_S or self._cursor is None:
            return
        self._checked_at = now
        cursor = self._cursor
        window = await queries.get_log_window(self.cell.redis, self._key)
        if self._cursor == cursor and self._is_lost(window, entry_order(cursor)):
            log.warning("fleet.resync", cursor=cursor, first=window.first, last=window.last)
            self._lose_track()

    def _is_lost(self, window: queries.LogWindow, at: tuple[int, int]) -> bool:
        added = window.added - self._added
        if entry_order(window.last) <= at:
            return entry_order(window.last) < at or added != 0
        # If the first entry is unread, all entries are. Otherwise it is only known that there must be some.
        return added != window.length if entry_order(window.first) > at else added < 1

    def _lose_track(self) -> None:
        self._cursor = None
        self.request_recovery()


def _entries_of(answer: dict[bytes, Any], key: str) -> list[tuple[bytes, dict[bytes, bytes] | None]]:
    """Return the entries of one stream in the answer of XREAD."""
    return [entry for batch in answer.get(key.encode(), ()) for entry in batch]


def _read_reports(raw: bytes) -> list[LoadReport]:
    """Return the reports in an event ``agents.reported``."""
    words = raw.decode().split()
    return [
        LoadReport(agent_id, _share(cpu), _share(memory), float(outside), int(at))
        for agent_id, cpu, memory, outside, at in zip(*(words[i::5] for i in range(5)), strict=True)
    ]


def _share(word: str) -> float | None:
    return None if word == "-" else min(max(float(word), 0.0), 1.0)
