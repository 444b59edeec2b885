"""The memory of the Redis server, and what coord does as it fills up."""

from __future__ import annotations

from msgspec import Struct

#: Shares of maxmemory, in the order in which they are reached. Above the first, ended tasks give up their results and
#: payloads, the oldest first, until …
RELIEVE_ABOVE = 0.75
#: … this share is in use: each pass frees a twentieth of the memory, so that passes are few.
RELIEVE_DOWN_TO = 0.70
#: Above it submissions are refused: what waits already needs room for its results.
REFUSE_ABOVE = 0.85
#: Above it nothing is placed: the rest is for the results of tasks that agents hold.
PLACE_UP_TO = 0.92


class Memory(Struct, frozen=True):
    """How full the server is; bytes, 0 for no maximum."""

    used: int
    maximum: int

    @property
    def share(self) -> float:
        """The used share of the maximum; 0 where there is none."""
        return self.used / self.maximum if self.maximum else 0.0

    @property
    def is_nearly_full(self) -> bool:
        """True while submissions are refused, so that reports have room."""
        return self.share > REFUSE_ABOVE

    @property
    def is_too_full_to_place(self) -> bool:
        """True while no task is placed, so that the results of those under way have room."""
        return self.share > PLACE_UP_TO


class MemoryPart(Struct, frozen=True, kw_only=True):
    """What the keys of one kind hold."""

    kind: str  #: ended tasks, log:tasks, …
    bytes: int
    keys: int
    is_estimate: bool = False  #: scaled up from a sample of the keys


class MemoryUse(Struct, frozen=True, kw_only=True):
    """Where the memory of a server has gone; bytes."""

    used: int  #: 0 where INFO is forbidden
    maximum: int  #: 0 for no limit
    parts: list[MemoryPart] = []  #: the largest first; empty where keys cannot be measured
    results_dropped: int = 0  #: ended tasks that gave up result and payload, since the cell began
    results_dropped_bytes: int = 0
    note: str = ""  #: what could not be read, and why

    @property
    def memory(self) -> Memory:
        """How full the server is."""
        return Memory(self.used, self.maximum)
