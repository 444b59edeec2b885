"""Idempotency-Key: a repeated POST has one effect and gets the first response; a key with another body is refused.

A key is kept in Redis for a day, with the digest of its request and the response once there is one. So it holds in
every gateway and after a restart. Keys of different callers and of different paths are different keys.

The ids of tasks and messages are derived from the key, so these requests may run again at any time: their effect stays
the same. Any other request is claimed while it runs; the same one gets a 409 meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any
from uuid import UUID, uuid5

from msgspec import Struct

from coord import codec, logs
from coord.errors import CoordError, IdConflict, ServerFull, ServerUnavailable
from coord.gateway.errors import RequestError
from coord.gateway.routes import Answer, Call, Handler, Stream

log = logs.get_logger()

HEADER = "Idempotency-Key"
#: The same, as the headers of a call have it.
IDEMPOTENCY_KEY = b"idempotency-key"
#: Time for which a key is kept, in ms.
KEPT_MS = 24 * 3600 * 1000
#: Maximum length of a key.
LONGEST = 255
#: Maximum size of a response that is kept, in bytes.
LARGEST = 16 * 1024
#: Namespace of the ids that are derived from keys (RFC 9562, version 5).
IDS = UUID("5b3c4f0e-8d0c-5f5e-9d57-0c6b0a2a7f11")
#: Paths of requests whose effect has an id that is derived from the key.
WITH_IDS = frozenset({"/tasks/submit", "/tasks/batch", "/messages/send", "/messages/broadcast"})
#: Responses under this path have credentials, and are not kept.
WITH_CREDENTIALS = "/auth/"


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


def id_of(call: Call[Any, Any], number: int | None = None) -> str | None:
    """Return the id derived from the key of a request, the same in every gateway; None without a key.

    Args:
        call: the request.
        number: of the task in a batch.
    """
    key = key_of(call.header(IDEMPOTENCY_KEY))
    if key is None:
        return None
    parts = (_caller(call), key, "" if number is None else str(number))
    return str(uuid5(IDS, " ".join(part for part in parts if part)))


@contextmanager
def conflict_is_reuse(own_id: str | None, key_id: str | None) -> Iterator[None]:
    """Turn a conflict over an id that was derived from a key into an error about the key."""
    try:
        yield
    except IdConflict:
        if own_id != key_id:
            raise
        raise reused() from None


def reused() -> RequestError:
    """Return the error for a key that was used before with another body."""
    return RequestError("idempotency_key_reused", f"this {HEADER} was used before with another body")


async def run_once(call: Call[Any, Any], key: str, handle: Handler) -> Struct | Answer | Stream | None:
    """Handle a request with a key, or return the response that an earlier one with this key got.

    Args:
        call: the request, with its body.
        key: its key.
        handle: the handler.

    Raises:
        RequestError: the key was used before with another body, or the same request is being handled.
    """
    if call.path.startswith(WITH_CREDENTIALS):
        return await handle(call)
    name = f"idempotency:{_digest(f'{_caller(call)} {call.path} {key}'.encode())}"
    digest = _digest(call.connection.scope.get("query_string", b"") + b"\n" + call.raw).encode()
    first = await _claim(call, name, digest)
    if first is not None:
        return first
    has_id = call.path in WITH_IDS
    try:
        answer = await handle(call)
    except Exception as error:
        if not (has_id and isinstance(error, ServerUnavailable | ServerFull)):
            await _release(call, name)
        raise
    response = _response_of(answer)
    if response is None and not has_id:
        await _release(call, name)
    # A repeated request with an id of its own may get a better response than 202.
    is_final = not isinstance(answer, Answer) or (answer.is_final and answer.status != 202)
    if response is not None and (is_final or not has_id):
        try:
            await _set(call, name, digest + b" " + response, "PX", KEPT_MS)
        except CoordError as error:
            log.warning("idempotency.response_not_kept", error=str(error))
    return answer


async def _claim(call: Call[Any, Any], name: str, digest: bytes) -> Answer | None:
    """Claim a key; return the response that an earlier request with it got, if there is one."""
    has_id = call.path in WITH_IDS
    try:
        kept = await _set(call, name, digest, "NX", "GET", "PX", KEPT_MS if has_id else _claim_ms(call))
    except ServerUnavailable as error:
        raise ServerUnavailable(f"{error}; nothing was done, repeat the request with the same {HEADER}") from error
    if kept is None:
        return None
    first, _, response = kept.partition(b" ")
    if first != digest:
        raise reused()
    if response:
        return _replayed(response)
    if has_id:
        return None
    message = f"the request with this {HEADER} is not finished; repeat it in a second"
    raise RequestError("idempotency_key_in_use", message, headers={"Retry-After": "1"})


async def _set(call: Call[Any, Any], name: str, value: bytes, *options: str | int) -> bytes | None:
    """Set the record of a key; return the one that was there, with the option GET."""
    gets = "GET" in options
    async with call.backend.reading() as (redis, keys):
        found = await redis.execute_command("SET", keys.of(name), value, *options, get=gets)
    return found if gets and isinstance(found, bytes) else None


async def _release(call: Call[Any, Any], name: str) -> None:
    """Forget a key whose request had no effect."""
    try:
        async with call.backend.reading() as (redis, keys):
            await redis.execute_command("GETDEL", keys.of(name))
    except CoordError as error:
        log.warning("idempotency.key_not_released", error=str(error))


def _claim_ms(call: Call[Any, Any]) -> int:
    """Return the time after which a request whose gateway crashed may be repeated, in ms."""
    settings = call.gateway.settings
    return int(1000 * (10 + 2 * (settings.gateway_wait_s + settings.gateway_redis_s)))


def _response_of(answer: Struct | Answer | Stream | None) -> bytes | None:
    """Return a response as it is kept: status, Location or ``-``, body; None for one that is not kept."""
    found = answer if isinstance(answer, Answer) else Answer(None if isinstance(answer, Stream) else answer)
    if found.body is None or isinstance(found.body, bytes):
        return None
    body = codec.encode(found.body)
    head = f"{found.status} {found.headers.get('Location', '-')} "
    return head.encode() + body if len(body) <= LARGEST else None


def _replayed(response: bytes) -> Answer:
    status, location, body = response.split(b" ", 2)
    headers = {"Idempotency-Replayed": "true"}
    if location != b"-":
        headers["Location"] = location.decode()
    return Answer(body, int(status), headers)


def _caller(call: Call[Any, Any]) -> str:
    """Return who calls; empty without a credential."""
    return "" if call.credential is None else str(call.credential.subject)


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()
