"""Bodies: read them within limits, and decode them with an error that names the field."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from coord import codec
from coord.arguments import enum_values
from coord.gateway.errors import Problem, RequestError, problem_of, sentence
from coord.gateway.routes import JSON, Call
from coord.values import why_undecodable

T = TypeVar("T", bound=Struct)

#: How much of a body over the limit is read and discarded: a client that is still sending would see a broken connection
#: instead of the response.
DRAIN_BYTES = 8 * 1024 * 1024

_DECODERS: dict[type[Struct], msgspec.json.Decoder[Any]] = {}


async def read_body(call: Call[Any, Any], limit: int, seconds: float) -> bytes:
    """Read the whole body of a request.

    Args:
        call: the request.
        limit: maximum size in bytes.
        seconds: timeout for the whole body.

    Raises:
        RequestError: the body is over the limit, is not declared as JSON, or did not arrive in time.
    """
    try:
        with call.gateway.deadlines.limit(seconds):
            body = await _read(call, limit)
    except TimeoutError:
        raise RequestError("body_timeout", f"the body did not arrive within {seconds:g} s") from None
    if body:
        kind = (call.header(b"content-type") or "").partition(";")[0].strip().lower()
        if kind != JSON:
            # A web page may send any other type to this machine without asking the browser.
            problem = Problem(["header", "content-type"], "expected application/json", "value_error")
            raise RequestError("content_type_invalid", "Content-Type must be application/json", [problem])
    return body


async def _read(call: Call[Any, Any], limit: int) -> bytes:
    receive = call.connection.receive
    chunks: list[bytes] = []
    size = 0
    more = True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise RequestError("body_invalid", "the body ended before its Content-Length")
        chunk: bytes = event.get("body", b"")
        more = event.get("more_body", False)
        size += len(chunk)
        if size <= limit:
            chunks.append(chunk)
        elif size > limit + DRAIN_BYTES:
            break
        else:
            chunks.clear()
    if size > limit:
        raise RequestError("body_too_large", f"the body is over the limit of {limit} bytes")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


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
        raise RequestError("body_invalid", sentence(problem), [problem]) from None
    except msgspec.DecodeError as error:
        raise not_json(str(error)) from None
    return decoded


def check_decodable(raw: bytes, field: str) -> None:
    """Check that the readers of a value that is passed on as it is can decode it, such as no number over 1e308.

    Raises:
        RequestError: they cannot; ``detail`` names the field.
    """
    try:
        codec.decode_json(raw)
    except codec.BAD_JSON as error:
        why = why_undecodable(raw, field, error)
        problem = Problem(["body", field], why.removeprefix(f"{field}: "), "value_error")
        raise RequestError("payload_invalid", why, [problem]) from None


def not_json(reason: str) -> RequestError:
    """Return the error for a body that is not JSON."""
    problem = Problem(["body"], reason, "json_invalid")
    return RequestError("body_invalid", f"the body is not JSON: {reason}", [problem])
