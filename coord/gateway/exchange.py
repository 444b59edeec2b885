"""What every handler begins and ends with: a body read and checked, an answer with its status."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from falcon.asgi import Request, Response
from msgspec import Struct

from coord.config import Settings
from coord.gateway.body import decode, give, read_body
from coord.gateway.idempotency import KeysSeen, key_of

T = TypeVar("T", bound=Struct)

#: The paths of the contract are answered without a prefix and under this one.
PREFIX = "/v1"


class RequestBody:
    """Reads requests and writes answers."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._keys = KeysSeen()

    async def read(self, req: Request, kind: type[T]) -> T:
        """The body of a request; where every field has a default it may be left out.

        Raises:
            Fault: it does not fit, is too large or too slow, or its Idempotency-Key came with another before.
        """
        key = key_of(req)
        body = await read_body(req, self._settings.max_entry_bytes, self._settings.gateway_body_s)
        decoded = decode(body or b"{}", kind)
        if key is not None:
            self._keys.check(req.path.removeprefix(PREFIX), key, body)
        return decoded

    def wait_s(self, req: Request) -> float:
        """How long the caller wants to wait for the worker's answer: not at all with ``Prefer: respond-async``."""
        wishes = (req.get_header("Prefer") or "").lower().split(",")
        return 0 if "respond-async" in (wish.strip() for wish in wishes) else self._settings.gateway_wait_s

    def give_written(self, req: Request, resp: Response, body: Struct, *, answered: bool, path: str) -> None:
        """Answer a write: 200 when its worker has taken it, else 202 and where to look."""
        if answered:
            give(resp, body)
            return
        resp.set_header("Location", (PREFIX if req.path.startswith(f"{PREFIX}/") else "") + path)
        give(
            resp, msgspec.structs.replace(body, status="accepted", message="Accepted; no worker has answered yet"), 202
        )
