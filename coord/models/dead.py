"""Dead letters: what coord gave up on and keeps for a while, so that an operator can see why and replay it."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

#: A failed task; a message that could not be delivered; an entry that could not be handled.
DeadKind = Literal["task", "message", "entry"]


class DeadLetter(Struct, frozen=True, kw_only=True):
    """One of any kind, in a line. ``died_at`` is milliseconds since 1970 on the server's clock."""

    kind: DeadKind
    id: str  #: the task's or message's, or that of the entry in dead:in
    died_at: int
    what: str  #: the task's type, the message's two ends, the entry's stream and type
    code: str
    reason: str


class DeadEntry(Struct, frozen=True, kw_only=True):
    """An entry of ``dead:in``."""

    entry_id: str  #: its own
    buried_at: int  #: milliseconds since 1970 on the server's clock
    stream: str  #: the one that it came from, without the namespace
    id: str  #: the one that it had there
    type: str
    caller: str  #: who was told; empty: nobody
    code: str
    reason: str
    data: Any  #: JSON, or the text that it is
    is_whole: bool  #: nothing of it was cut off, so it can be replayed
