"""Bodies: read requests within limits, decode them with an error that names the field, write responses."""

from __future__ import annotations

import asyncio
import re
from typing import Any, TypeVar

import falcon
import msgspec
from falcon.asgi import Request, Response
from msgspec import Struct

from coord import codec
from coord.agent_token import MAX_LENGTH
from coord.arguments import enum_values
from coord.config import Settings
from coord.gateway.errors import Problem, RequestError
from coord.gateway.idempotency import SeenKeys, key_of

T = TypeVar("T", bound=Struct)

#: Every path is served without a prefix and under this one.
PREFIX = "/v1"
#: How much of a body over the limit is read and discarded: a client that is still sending would see a broken connection
#: instead of the response.
DRAIN_BYTES = 8 * 1024 * 1024
#: Bytes of one read.
CHUNK = 64 * 1024

_DECODERS: dict[type[Struct], msgspec.json.Decoder[Any]] = {}
_AT = re.compile(r" - at `\$(.*)`\Z", re.DOTALL)
_STEP = re.compile(r"\.([^.\[\]]+)|\[([^\]]*)\]")
_MISSING = re.compile(r"\AObject missing required field `(.+?)`")


class RequestReader:
    """Reads the body and the headers that all POST paths share.

    Args:
        settings: the limits of a body, and how long to wait for a worker.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._seen_keys = SeenKeys()

    async def read(self, req: Request, kind: type[T]) -> T:
        """Return the decoded body of a request; it may be empty if every field has a default.

        Raises:
            RequestError: the body is invalid, too large or too slow, or its Idempotency-Key was used with another body.
        """
        key = key_of(req)
        body = await read_body(req, self._settings.max_entry_bytes, self._settings.gateway_body_s)
        decoded = decode(body or b"{}", kind)
        if key is not None:
            self._seen_keys.check(req.path.removeprefix(PREFIX), key, body)
        return decoded

    def wait_s(self, req: Request) -> float:
        """Return how many seconds to wait for the worker's answer: 0 with ``Prefer: respond-async``."""
        preferences = (req.get_header("Prefer") or "").lower().split(",")
        is_async = "respond-async" in (preference.strip() for preference in preferences)
        return 0 if is_async else self._settings.gateway_wait_s


def bearer_token(req: Request) -> str:
    """Return the token of an agent in the header ``Authorization: Bearer TOKEN``; empty without one."""
    scheme, _, token = (req.get_header("Authorization") or "").strip().partition(" ")
    return token.strip()[:MAX_LENGTH] if scheme.lower() == "bearer" else ""


def respond(resp: Response, body: Struct, status: int = 200) -> None:
    """Set the JSON body and the status of a response."""
    resp.status = status
    resp.content_type = falcon.MEDIA_JSON
    resp.data = codec.encode(body)


def respond_to_write(req: Request, resp: Response, body: Struct, *, answered: bool, path: str) -> None:
    """Respond to a write: 200 if its worker has answered, else 202 with the path of the record in Location."""
    if answered:
        respond(resp, body)
        return
    resp.set_header("Location", (PREFIX if req.path.startswith(f"{PREFIX}/") else "") + path)
    accepted = msgspec.structs.replace(body, status="accepted", message="Accepted; no worker has answered yet")
    respond(resp, accepted, 202)


async def read_body(req: Request, limit: int, seconds: float) -> bytes:
    """Read the whole body of a request.

    Args:
        req: the request.
        limit: maximum size in bytes.
        seconds: timeout for the whole body.

    Raises:
        RequestError: the body is over the limit, is not declared as JSON, or did not arrive in time.
    """
    declared = req.content_length
    try:
        async with asyncio.timeout(seconds):
            body = await _read(req, limit)
    except TimeoutError:
        raise RequestError("body_timeout", f"the body did not arrive within {seconds:g} s") from None
    if declared is not None and len(body) < declared:
        raise RequestError("body_invalid", "the body ended before its Content-Length")
    kind = (req.content_type or "").partition(";")[0].strip().lower()
    if body and kind != falcon.MEDIA_JSON:
        # A web page may send any other type to this machine without asking the browser.
        problem = Problem(["header", "content-type"], "expected application/json", "value_error")
        raise RequestError("content_type_invalid", "Content-Type must be application/json", [problem])
    return body


async def _read(req: Request, limit: int) -> bytes:
    stream = req.stream
    chunks: list[bytes] = []
    size = 0
    while chunk := await stream.read(CHUNK):
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        elif size > limit + DRAIN_BYTES:
            break
        else:
            chunks.clear()
    if size > limit:
        raise RequestError("body_too_large", f"the body is over the limit of {limit} bytes")
    return b"".join(chunks)


def decode(body: bytes, kind: type[T], at: tuple[str, ...] = ("body",)) -> T:
    """Decode a body, or a part of one, as a Struct.

    Args:
        body: JSON.
        kind: the Struct.
        at: the path of the part, for ``detail``.

    Raises:
        RequestError: it is not JSON or does not match the Struct; ``detail`` says where.
    """
    decoder = _DECODERS.get(kind)
    if decoder is None:
        decoder = _DECODERS[kind] = msgspec.json.Decoder(kind)
    try:
        if not body.isascii():
            body.decode()  # msgspec does not check the parts that stay Raw
        decoded: T = decoder.decode(body)
    except UnicodeDecodeError:
        raise not_json("not valid UTF-8") from None
    except RecursionError:
        raise not_json("nested too deeply") from None
    except msgspec.ValidationError as error:
        problem = problem_of(str(error), at)
        if problem.msg.startswith("Invalid enum value") and (known := enum_values(kind, problem.loc[len(at) :])):
            problem = Problem(problem.loc, f"{problem.msg}; valid are {', '.join(known)}", problem.type)
        raise RequestError("body_invalid", _sentence(problem), [problem]) from None
    except msgspec.DecodeError as error:
        raise not_json(str(error)) from None
    return decoded


def not_json(reason: str) -> RequestError:
    """Return the error for a body that is not JSON."""
    problem = Problem(["body"], reason, "json_invalid")
    return RequestError("body_invalid", f"the body is not JSON: {reason}", [problem])


def problem_of(error: str, at: tuple[str, ...]) -> Problem:
    """Parse an error of msgspec, such as "Expected `str`, got `int` - at `$.capabilities[0]`"."""
    found = _AT.search(error)
    loc: list[str | int] = list(at)
    for name, index in _STEP.findall(found.group(1) if found else ""):
        loc.append(name or (int(index) if index.isdecimal() else index))
    message = _AT.sub("", error).replace("`", "'")
    missing = _MISSING.match(error)
    if missing:
        return Problem([*loc, missing.group(1)], "field required", "missing")
    return Problem(loc, message, "type_error" if ", got " in message else "value_error")


def _sentence(problem: Problem) -> str:
    path = ".".join(str(step) for step in problem.loc[1:])
    return f"{path}: {problem.msg}" if path else problem.msg
