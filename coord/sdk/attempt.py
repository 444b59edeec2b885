"""One attempt at a task, from the moment that its inbox entry was read until its report was answered."""

from __future__ import annotations

import asyncio
from typing import Any

from msgspec import Raw


class Attempt:
    """What the agent knows of it; its handler sees a ``Task``."""

    __slots__ = (
        "entry", "future", "has_told", "is_unclaimed", "lane", "lease", "next_progress", "number", "raw", "started_at",
        "stop_reason", "task_id", "task_type", "tells_progress",
    )  # fmt: skip

    def __init__(self, task_id: str, lease: str, number: int, *, lane: int, entry: bytes, raw: bytes) -> None:
        self.task_id = task_id
        self.task_type = ""
        self.lease = lease
        self.number = number  #: 1 for the first
        self.lane = lane  #: of the inbox
        self.entry = entry  #: of the inbox
        self.raw: bytes | Raw = raw  #: the task as submitted; its payload alone once it has begun
        self.is_unclaimed = True
        self.started_at = 0.0  #: on the loop's clock; 0 until it has begun
        self.has_told = False  #: that it started
        self.stop_reason: str | None = None  #: why it shall stop, once it shall
        self.future: asyncio.Future[Any] | None = None
        self.tells_progress = False  #: a progress is on its way
        self.next_progress: bytes | None = None
