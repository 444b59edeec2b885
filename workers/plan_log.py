"""Records what a distributor plans on and what it chooses to ``log:plans``, while the setting ``record_plans`` is on.

Entries are made after each plan and appended a few times a second, apart from the round trips of tasks. A snapshot
begins a segment; the next one follows after some bytes, so a log that was trimmed can still be replayed. What a server
refuses is lost, and then a new segment begins too.
"""

from __future__ import annotations

import asyncio
import os
from random import Random

from redis import exceptions as redis_errors

from coord import logs
from coord.config import MIB
from coord.models.plans import PLANS_VERSION
from coord.placement import RecordedEntry, Recorder
from workers.service import WorkerContext
from workers.view import View

log = logs.get_logger()

#: A segment ends when it has this part of the log, so that a log that was trimmed begins with one soon. After a large
#: snapshot it ends when it is so many times as large.
SEGMENTS = 16
SNAPSHOTS = 4
#: A snapshot may have this part of the log; a larger fleet cannot be recorded.
LARGEST = 8
#: Bytes that are appended in one round trip.
MOST_BYTES = MIB


class PlanLog:
    """Records the plans of one distributor.

    Args:
        cell: of the worker.
        view: of the distributor.
    """

    def __init__(self, cell: WorkerContext, view: View) -> None:
        self.cell = cell
        self.view = view
        self.id = os.urandom(8).hex()  #: of this process
        self.is_wanted = False  #: the setting is on
        self._flushing = asyncio.Lock()
        self._recorder = Recorder(view.learned, Random())  # noqa: S311 -- no secret depends on it

    def configure(self, *, record: bool) -> None:
        """Start or stop recording. Call it also when the rules of the view have changed: a segment has one set."""
        if record and (self.view.recorder is not None or not self.is_wanted):
            self._begin()
        elif not record and self.view.recorder is not None:
            self._end()
            log.info("plans.recording_ended", by=self.id)
        self.is_wanted = record

    def cut(self) -> None:
        """Make an entry of a plan; begin a segment if this one is long enough."""
        recorder = self.view.recorder
        if recorder is not None:
            recorder.cut()
            usual = self.cell.settings.log_bytes // SEGMENTS
            if recorder.segment_bytes > max(usual, SNAPSHOTS * recorder.snapshot_bytes):
                self._begin()

    async def flush(self) -> None:
        """Append what was recorded. What the server refuses is lost, and a new segment begins."""
        scripts = self.cell.scripts
        try:
            async with self._flushing:
                for some in _pieces(self._recorder.take()):
                    await scripts.run(scripts.record_plans(PLANS_VERSION, self.id, some))
        except redis_errors.RedisError as error:
            if self.view.recorder is not None:
                self._begin()
            if not isinstance(error, redis_errors.OutOfMemoryError):
                raise

    def _begin(self) -> None:
        """Begin a segment with a snapshot."""
        view, recorder = self.view, self._recorder
        if view.recorder is None:
            log.info("plans.recording_started", by=self.id)
        recorder.begin(view.health_threshold, view.rules, view.type_rules, full_scores=view.full_scores)
        view.record(recorder)
        largest = self.cell.settings.log_bytes // LARGEST
        if recorder.snapshot_bytes > largest:
            self._end()
            recorder.take()
            log.warning("plans.not_recorded", snapshot_bytes=recorder.snapshot_bytes, maximum=largest)

    def _end(self) -> None:
        self._recorder.end()
        self.view.record(None)


def _pieces(entries: list[RecordedEntry]) -> list[list[RecordedEntry]]:
    """Cut entries into pieces of ``MOST_BYTES``; one that is larger is a piece of its own."""
    pieces: list[list[RecordedEntry]] = []
    left = 0
    for entry in entries:
        left -= len(entry.data)
        if left < 0:
            pieces.append([])
            left = MOST_BYTES - len(entry.data)
        pieces[-1].append(entry)
    return pieces
