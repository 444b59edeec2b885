"""Ids of things and of stream entries.

An id is 1 to 128 characters of ``A-Za-z0-9._@-``, so that no id can collide with a key, a lane or an ACL pattern. An
entry id is given by the server: milliseconds since 1970 and a number within that millisecond, ``1700000000000-0``.
"""

from __future__ import annotations

import re
from typing import Annotated

import uuid_utils
from msgspec import Meta

from coord.errors import IdInvalid

ID_PATTERN = r"^[A-Za-z0-9._@-]{1,128}\Z"

#: An agent's, task's, message's or caller's id as it travels on the wire.
Id = Annotated[str, Meta(pattern=ID_PATTERN)]

#: The id of a stream entry as it travels on the wire.
EntryId = Annotated[str, Meta(pattern=r"^[0-9]{1,20}-[0-9]{1,20}\Z")]
ENTRY_ID = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")

#: An entry id as two numbers, which compare as the entries of a stream follow each other.
EntryOrder = tuple[int, int]

#: Path segments of the HTTP contract. No agent, task or message may have such a name, or its path would be ambiguous.
RESERVED = frozenset(
    {
        "add",
        "batch",
        "broadcast",
        "bulk",
        "capability",
        "discover",
        "history",
        "queues",
        "register",
        "remove",
        "results",
        "send",
        "service",
        "status",
        "submit",
    }
)

#: In place of a receiver: all subordinates of the sender. No agent has this id.
SUBORDINATES = "subordinates"

_ID = re.compile(ID_PATTERN)


def check_id(value: object, field: str) -> str:
    """Return ``value`` if it is a valid id.

    Raises:
        IdInvalid: the value does not fit, or is a reserved word; the message names ``field``.
    """
    if not isinstance(value, str) or not _ID.match(value):
        shown = repr(value)[:60]
        raise IdInvalid(f"{field} must be 1 to 128 characters of A-Z a-z 0-9 . _ @ -, not {shown}")
    return not_reserved(value, field)


def is_id(text: str) -> bool:
    """Return True if a text has the form of an id."""
    return _ID.match(text) is not None


def not_reserved(value: str, field: str) -> str:
    """Return ``value`` unless it is a reserved word.

    Raises:
        IdInvalid: the value is a reserved word; the message names ``field``.
    """
    if value in RESERVED:
        raise IdInvalid(f"{field} must not be {value!r}: the word is reserved for a path of the gateway")
    return value


def new_id() -> str:
    """Return a new UUIDv7 (RFC 9562): 36 characters, ascending with time."""
    return str(uuid_utils.uuid7())


def entry_ms(entry_id: str | bytes) -> int:
    """Return the time at which a stream entry was appended: milliseconds since 1970 on the server's clock."""
    ms = entry_id.partition(b"-")[0] if isinstance(entry_id, bytes) else entry_id.partition("-")[0]
    return int(ms)


def entry_order(entry_id: str) -> EntryOrder:
    """Return the key by which the entry ids of one stream are compared: the time and the number."""
    ms, _, number = entry_id.partition("-")
    return int(ms), int(number or 0)


def entry_before(entry_id: str) -> str:
    """Return the greatest id that is less than an entry id other than ``0-0``."""
    ms, number = entry_order(entry_id)
    return f"{ms}-{number - 1}" if number else f"{ms - 1}-{2**64 - 1}"
