"""Idempotency-Key: a repeated request has one effect, and a key with a different body is refused.

For a task the key determines the task id, so this holds in every gateway for as long as the task's record is kept. For
other requests (a registration, a heartbeat: facts that may be repeated) this process remembers the body of each of the
latest ``KEPT`` keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from uuid import UUID, uuid5

from coord.errors import IdConflict
from coord.gateway.errors import RequestError

HEADER = "Idempotency-Key"
#: The same, as the headers of a call have it.
IDEMPOTENCY_KEY = b"idempotency-key"
#: Number of keys that are remembered.
KEPT = 100_000
#: Maximum length of a key.
LONGEST = 255
#: Namespace of the task ids that are derived from keys (RFC 9562, version 5).
TASKS = UUID("5b3c4f0e-8d0c-5f5e-9d57-0c6b0a2a7f11")


def key_of(header: str | None) -> str | None:
    """Return the key in the header, without the quotes of its draft standard; None without a header.

    Raises:
        RequestError: it is empty or too long.
    """
    if header is None:
        return None
    key = header.strip()
    if len(key) > 1 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not key or len(key) > LONGEST:
        raise RequestError("idempotency_key_invalid", f"{HEADER} must have 1 to {LONGEST} characters")
    return key


def task_id_of(header: str | None) -> str | None:
    """Return the task id derived from the key in the header, the same in every gateway; None without a key."""
    key = key_of(header)
    return None if key is None else task_id_of_key(key)


def task_id_of_key(key: str) -> str:
    """Return the task id derived from a key, the same in every gateway."""
    return str(uuid5(TASKS, key))


@contextmanager
def conflict_is_reuse(task_id: str | None, key_id: str | None) -> Iterator[None]:
    """Turn a conflict over a task id that was derived from a key into an error about the key."""
    try:
        yield
    except IdConflict:
        if task_id != key_id:
            raise
        raise reused() from None


class SeenKeys:
    """Remembers the body of each key."""

    def __init__(self) -> None:
        self._digests: dict[bytes, bytes] = {}  # digest of scope and key -> digest of the body

    def check(self, scope: str, key: str, body: bytes) -> None:
        """Remember the body of this key.

        Args:
            scope: the path that it was posted to.
            key: the key.
            body: the body.

        Raises:
            RequestError: the key was used before with another body.
        """
        digest = _digest(body)
        if self._digests.setdefault(_digest(f"{scope} {key}".encode()), digest) != digest:
            raise reused()
        if len(self._digests) > KEPT:
            del self._digests[next(iter(self._digests))]


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def reused() -> RequestError:
    """Return the error for a key that was used before with another body."""
    return RequestError("idempotency_key_reused", f"this {HEADER} was used before with another body")
