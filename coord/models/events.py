"""Events: the entries of the logs, and the positions of a reader in all of them.

A position has a part for each log, in the order of ``LOGS``, with dots between: the id of the last entry that was read,
without ``-0`` at its end, or ``0`` if the log was empty. An entry of a batch holds several events. If only some of them
were read, an underscore and their number follow. So an event has one position, and what follows it is exact:

    0.1767225600000.1767225600123-2_17.0.1767225599980
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from msgspec import Struct

from coord.errors import CursorInvalid
from coord.models.ids import entry_ms

#: The logs, as in ``log:agents``. Events of the same ms are returned in this order.
LOGS = ("control", "agents", "tasks", "progress", "messages")

#: Type of the event that replaces entries which were trimmed before they were read; ``missed`` is their number, if it
#: is known. One entry may contain the events of a batch of tasks.
TRIMMED = "log.trimmed"
#: Type of the event that reports that a log was reset: Redis was emptied, or lost its last writes.
RESET = "log.reset"


class Event(Struct, frozen=True):
    """An event of a log; or ``TRIMMED`` or ``RESET``."""

    log: str  #: one of ``LOGS``
    id: str  #: id of the entry
    type: str  #: dotted: task.completed
    fields: dict[str, str]  #: its other fields: task_id, agent_id …

    @property
    def at(self) -> int:
        """The time of the event: ms since 1970 on the server's clock."""
        return entry_ms(self.id)


#: In place of an entry id: before the first entry.
EMPTY = "0-0"


class LogPlace(NamedTuple):
    """How far a log has been read."""

    entry: str  #: id of the last entry that was read; ``EMPTY``: the log was empty
    done: int = 0  #: number of its events that were read; 0: all


Position = Mapping[str, LogPlace]  #: log -> how far it has been read

_PART = re.compile(r"([0-9]{1,20})(?:-([0-9]{1,20}))?(?:_([0-9]{1,6}))?")
#: Longest position that is decoded.
_MOST = 400
#: Each number of an entry id is less than this.
_END = 2**64


def encode_place(place: LogPlace) -> str:
    """Return the part of one log in a position."""
    entry = place.entry.removesuffix("-0")
    return f"{entry}_{place.done}" if place.done else entry


def encode_position(position: Position) -> str:
    """Return a position as text."""
    return ".".join(encode_place(position[log]) for log in LOGS)


def decode_position(text: str) -> Position | str:
    """Return the position that a text holds; or the id of an entry, which holds for all logs.

    Raises:
        CursorInvalid: it is neither.
    """
    parts = text.split(".") if len(text) <= _MOST else ()
    found = [match for part in parts if (match := _PART.fullmatch(part)) is not None]
    is_whole = len(found) == len(parts) and len(found) in {1, len(LOGS)}
    if not is_whole or any(int(number or 0) >= _END for match in found for number in match.groups()):
        raise CursorInvalid(
            f"position {text[:80]!r} does not come from an event; leave it out to begin with the next event, "
            "or use 0 to begin with the oldest one"
        )
    places = [LogPlace(f"{ms}-{number or 0}", int(done or 0)) for ms, number, done in (one.groups() for one in found)]
    return places[0].entry if len(places) == 1 else dict(zip(LOGS, places, strict=True))
