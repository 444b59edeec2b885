"""A key of the HTTP API: how one is made and what it looks like.

``coord_key_ID_SECRET``: the id names its record, the secret is 32 random bytes. The cell stores the SHA-256 of the
whole key; nobody can guess the key behind it, so it needs no salt.
"""

from __future__ import annotations

import re
import secrets

PREFIX = "coord_key_"

_KEY = re.compile(r"coord_key_([0-9a-f]{12})_[A-Za-z0-9_-]{43}")
_SECRET = re.compile(r"coord_key_([0-9a-f]{12})_[A-Za-z0-9_-]+")


def new_key_id() -> str:
    """Return the id of a new key."""
    return secrets.token_hex(6)


def new_key(key_id: str) -> str:
    """Return a new key with this id."""
    return f"{PREFIX}{key_id}_{secrets.token_urlsafe(32)}"


def id_of_key(text: str) -> str | None:
    """Return the id in a key; None if the text is no key."""
    found = _KEY.fullmatch(text)
    return found.group(1) if found else None


def redacted(text: str) -> str:
    """Return a text in which of each API key only the public part is left."""
    return _SECRET.sub(r"coord_key_\1_…", text)
