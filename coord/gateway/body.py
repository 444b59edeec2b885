"""Bodies in and out: read within limits, decoded with the field named that does not fit, encoded."""

from __future__ import annotations

import asyncio
import re
from typing import Any, TypeVar

import falcon
import msgspec
from falcon.asgi import Request, Response
from msgspec import Struct

from coord import codec
from coord.gateway.errors import Problem, RequestError

T = TypeVar("T", bound=Struct)

#: Of a body that is too large, so much is read and thrown away: a client that is still sending would see a broken
#: connection instead of the answer.
DRAIN_BYTES = 8 * 1024 * 1024
#: How much is taken at a time.
CHUNK = 64 * 1024

_DECODERS: dict[type[Struct], msgspec.json.Decoder[Any]] = {}
_AT = re.compile(r" - at `\$(.*)`\Z", re.DOTALL)
_STEP = re.compile(r"\.([^.\[\]]+)|\[([^\]]*)\]")
_MISSING = re.compile(r"\AObject missing required field `(.+?)`")


async def read_body(req: Request, limit: int, seconds: float) -> bytes:
    """The whole body of a request.

    Raises:
        Fault: it is over ``limit`` bytes, not JSON by its content type, or not here after ``seconds``.
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
        raise _too_large(limit)
    return b"".join(chunks)


def decode(body: bytes, kind: type[T], at: tuple[str, ...] = ("body",)) -> T:
    """The Struct that a body, or the part ``at`` of it, is.

    Raises:
        Fault: it is no JSON, or does not fit; ``detail`` says where.
    """
    decoder = _DECODERS.get(kind)
    if decoder is None:
        decoder = _DECODERS[kind] = msgspec.json.Decoder(kind)
    try:
        if not body.isascii():
            body.decode()  # what is passed on as it is would not be looked at otherwise
        decoded: T = decoder.decode(body)
    except UnicodeDecodeError:
        raise not_json("not valid UTF-8") from None
    except RecursionError:
        raise not_json("nested too deeply") from None
    except msgspec.ValidationError as error:
        problem = problem_of(str(error), at)
        raise RequestError("body_invalid", _sentence(problem), [problem]) from None
    except msgspec.DecodeError as error:
        raise not_json(str(error)) from None
    return decoded


def not_json(why: str) -> RequestError:
    """The fault of a body that is no JSON."""
    return RequestError("body_invalid", f"the body is not JSON: {why}", [Problem(["body"], why, "json_invalid")])


def problem_of(said: str, at: tuple[str, ...]) -> Problem:
    """What msgspec said of a value, with the way to it: "Expected `str`, got `int` - at `$.capabilities[0]`"."""
    found = _AT.search(said)
    loc: list[str | int] = list(at)
    for name, index in _STEP.findall(found.group(1) if found else ""):
        loc.append(name or (int(index) if index.isdecimal() else index))
    message = _AT.sub("", said).replace("`", "'")
    missing = _MISSING.match(said)
    if missing:
        return Problem([*loc, missing.group(1)], "field required", "missing")
    return Problem(loc, message, "type_error" if ", got " in message else "value_error")


def give(resp: Response, body: Struct, status: int = 200) -> None:
    """Make ``resp`` this body."""
    resp.status = status
    resp.content_type = falcon.MEDIA_JSON
    resp.data = codec.encode(body)


def _sentence(problem: Problem) -> str:
    where = ".".join(str(step) for step in problem.loc[1:])
    return f"{where}: {problem.msg}" if where else problem.msg


def _too_large(limit: int) -> RequestError:
    return RequestError("body_too_large", f"the body is over the limit of {limit} bytes")
