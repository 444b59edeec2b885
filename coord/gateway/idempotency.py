"""Idempotency-Key: the same request twice has one effect, and a key is never good for two different ones.

For a task the key stands for a task id, so that holds in every gateway for as long as the task's record is kept. For
whatever else is posted (a registration, a beat: facts that may be told twice) this process remembers which body came
under which key, for as many of the latest keys as ``KEPT``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from uuid import UUID, uuid5

from falcon.asgi import Request

from coord.errors import IdConflict
from coord.gateway.errors import RequestError

HEADER = "Idempotency-Key"
#: Keys that are remembered.
KEPT = 100_000
#: Longer ones are no keys.
LONGEST = 255
#: The namespace of the task ids that keys stand for (RFC 9562, version 5).
TASKS = UUID("5b3c4f0e-8d0c-5f5e-9d57-0c6b0a2a7f11")


def key_of(req: Request) -> str | None:
    """The request's key, with or without the quotes that the header's draft standard has; None: it has none.

    Raises:
        Fault: it is empty or too long.
    """
    said: str | None = req.get_header(HEADER)
    if said is None:
        return None
    key = said.strip()
    if len(key) > 1 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not key or len(key) > LONGEST:
        raise RequestError("idempotency_key_invalid", f"{HEADER} must have 1 to {LONGEST} characters")
    return key


def task_id_of(req: Request) -> str | None:
    """The task id that the request's key stands for; the same in every gateway."""
    key = key_of(req)
    return None if key is None else str(uuid5(TASKS, key))


@contextmanager
def conflict_is_reuse(task_id: str | None, key_id: str | None) -> Iterator[None]:
    """A conflict over a task id that a key stands for is a conflict over the key."""
    try:
        yield
    except IdConflict:
        if task_id != key_id:
            raise
        raise reused() from None


class KeysSeen:
    """Which body came under which key."""

    def __init__(self) -> None:
        self._digests: dict[bytes, bytes] = {}  # of scope and key -> of the body

    def check(self, scope: str, key: str, body: bytes) -> None:
        """Remember the body of this key; ``scope`` is what it was posted to.

        Raises:
            Fault: another one came under it before.
        """
        digest = _digest(body)
        if self._digests.setdefault(_digest(f"{scope} {key}".encode()), digest) != digest:
            raise reused()
        if len(self._digests) > KEPT:
            del self._digests[next(iter(self._digests))]


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=16).digest()


def reused() -> RequestError:
    """The fault of a key that came with another body before."""
    return RequestError("idempotency_key_reused", f"this {HEADER} was used before with another body")
