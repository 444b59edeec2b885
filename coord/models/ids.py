"""Ids: 1 to 128 characters of ``A-Za-z0-9._@-``, so that no id can collide with a key, a lane or an ACL pattern."""

from __future__ import annotations

import re
from typing import Annotated

import uuid_utils
from msgspec import Meta

from coord.errors import IdInvalid

ID_PATTERN = r"^[A-Za-z0-9._@-]{1,128}\Z"

#: An agent's, task's, message's or caller's id as it travels on the wire.
Id = Annotated[str, Meta(pattern=ID_PATTERN)]

#: Path segments of the HTTP contract. No agent, task or message may be called so, or its path would be ambiguous.
RESERVED = frozenset(
    {
        "add",
        "batch",
        "broadcast",
        "capability",
        "discover",
        "history",
        "queues",
        "register",
        "remove",
        "send",
        "service",
        "status",
        "submit",
    }
)

_ID = re.compile(ID_PATTERN)


def check_id(value: object, field: str) -> str:
    """Return ``value`` if it may be an id.

    Raises:
        IdInvalid: it does not fit, or is a reserved word; the message names ``field``.
    """
    if not isinstance(value, str) or not _ID.match(value):
        shown = repr(value)[:60]
        raise IdInvalid(f"{field} must be 1 to 128 characters of A-Z a-z 0-9 . _ @ -, not {shown}")
    return not_reserved(value, field)


def not_reserved(value: str, field: str) -> str:
    """Return ``value`` unless it is a reserved word; raises ``IdInvalid`` naming ``field``."""
    if value in RESERVED:
        raise IdInvalid(f"{field} must not be {value!r}: the word is reserved for a path of the gateway")
    return value


def new_id() -> str:
    """A new UUIDv7 (RFC 9562), 36 characters, ascending with time."""
    return str(uuid_utils.uuid7())
