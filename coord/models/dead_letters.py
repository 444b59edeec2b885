"""Dead letters: items that coord gave up on and keeps for a while, so that an operator can inspect and replay them."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

#: A failed task, an undelivered message, or an entry that could not be handled.
DeadKind = Literal["task", "message", "entry"]


class DeadLetter(Struct, frozen=True, kw_only=True):
    """The summary of a dead letter of any kind. ``died_at`` is milliseconds since 1970 on the server's clock."""

    kind: DeadKind
    id: str  #: id of the task, of the message, or of the entry in dead:in
    died_at: int
    what: str  #: type of the task, sender and receiver of the message, stream and type of the entry
    code: str
    reason: str


class DeadEntry(Struct, frozen=True, kw_only=True):
    """An entry of ``dead:in``."""

    entry_id: str  #: in dead:in
    buried_at: int  #: milliseconds since 1970 on the server's clock
    stream: str  #: its original stream, without the namespace
    id: str  #: its id in the original stream
    type: str
    caller: str  #: caller that received the error; empty: none
    code: str
    reason: str
    data: Any  #: decoded JSON, or text if it is not JSON
    is_whole: bool  #: it was kept completely, so it can be replayed
