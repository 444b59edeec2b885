"""Reads what another process appends to its log: what `coord up` says of the ends of its own processes."""

from __future__ import annotations

from pathlib import Path

import msgspec


class Ended(msgspec.Struct, frozen=True):
    """A line that says that a process has ended and is started again."""

    event: str
    message: str = ""
    name: str = "redis"  #: of the server nothing else is said


#: The events that are passed on.
EVENTS = frozenset({"process.ended", "process.failed", "redis.ended"})


class Tail:
    """The ends that a log tells of, each once.

    Args:
        path: of JSON lines; other lines are passed by.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = 0

    def read(self) -> list[Ended]:
        """What was appended since the last look, as far as its lines are whole."""
        try:
            with self._path.open("rb") as log:
                log.seek(self._place)
                fresh = log.read()
        except OSError:
            return []
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self._place += len(whole)
        return [one for line in whole.splitlines() if (one := _ended(line)) is not None]


def _ended(line: bytes) -> Ended | None:
    try:
        found = msgspec.json.decode(line, type=Ended)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return found if found.event in EVENTS else None
