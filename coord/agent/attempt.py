"""One attempt at a task, from the moment that its inbox entry was read until its report was answered."""

from __future__ import annotations

import asyncio
from typing import Any

from msgspec import Raw, Struct


class Attempt(Struct, eq=False):
    """What the agent knows of it; its handler sees a ``Task``."""

    task_id: str
    lease: str
    number: int  #: 1 for the first
    lane: int  #: of the inbox
    entry: bytes  #: of the inbox
    raw: bytes | Raw  #: the task as submitted; its payload alone once it has begun
    task_type: str = ""
    is_unclaimed: bool = True
    started_at: float = 0.0  #: on the loop's clock; 0 until it has begun
    has_told: bool = False  #: that it started
    stop_reason: str | None = None  #: why it shall stop, once it shall
    future: asyncio.Future[Any] | None = None
    tells_progress: bool = False  #: a progress is on its way
    next_progress: bytes | None = None
