"""Keys of the HTTP API: whom they stand for. The keys themselves are stored nowhere, only their digests."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

#: Id of a key: the part of it that everyone may see.
KeyId = Annotated[str, Meta(pattern=r"^[0-9a-f]{12}\Z")]


class CallerRole(StrEnum):
    """What a caller of the HTTP API may do; each role may do all that the roles before it may do.

    The exception is ``agent``: a caller with this role acts for one agent only.
    """

    READONLY = "readonly"  #: read everything
    CLIENT = "client"  #: submit tasks, send messages
    AGENT = "agent"  #: register, send heartbeats, do tasks: as one agent
    OPERATOR = "operator"  #: act for every agent, change the rules of placement
    ADMIN = "admin"  #: make and revoke keys

    @property
    def rank(self) -> int:
        """Its place among the roles, from 0."""
        return _RANKS[self]


_RANKS = {role: rank for rank, role in enumerate(CallerRole)}


class ApiKey(Struct, frozen=True, omit_defaults=True):
    """A key as the cell knows it."""

    key_id: str
    role: CallerRole
    agent_id: str | None = None  #: the only agent that it may act for
    name: str = ""
    created_at: int = 0  #: ms since 1970
    created_by: str = ""  #: the client that made it
    expires_at: int | None = None  #: ms since 1970
    used_at: int | None = None  #: ms since 1970, to the minute; None: never
