"""Between entries and facts: the only place where JSON is read or written.

Whatever a caller may put into an entry ends in a fact or in ``FactInvalid``, ``FactTooLarge`` or ``IdInvalid`` naming
the field; nothing else is raised for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from coord.errors import FactInvalid, FactTooLarge
from coord.models.facts import STREAM_FACTS, TYPE_OF, Fact
from coord.models.tasks import Pool

#: What msgspec raises for bad input: its own errors, and these two besides (deep nesting, invalid UTF-8).
BAD_JSON = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)

#: Bytes that an entry's other fields may have beside its data.
SLACK = 4096

_encode = msgspec.json.Encoder().encode
_encode_canonical = msgspec.json.Encoder(order="deterministic").encode

_DECODERS: dict[str, dict[bytes, msgspec.json.Decoder[Any]]] = {
    stream: {TYPE_OF[cls].encode(): msgspec.json.Decoder(cls) for cls in classes}
    for stream, classes in STREAM_FACTS.items()
}
_ID_BYTES = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._@-")


class Assignment(NamedTuple):
    """Who has, or had, a task: one field of its record, its parts with spaces between. Times are ms since 1970."""

    lease: str
    agent_id: str
    entry: str  #: in the agent's inbox
    term: int  #: of the agent
    attempt: int
    assigned_at: int
    start_by: int | None  #: until it is claimed; None: it was claimed, and need not have started
    timeout_at: int | None  #: None: it may take any time
    placement: str  #: JSON: why this agent


def assignment_of(raw: str) -> Assignment:
    """The parts of a record's ``assignment``; raises ``ValueError`` when it is none."""
    lease, agent_id, entry, term, attempt, assigned_at, start_by, timeout_at, placement = raw.split(" ", 8)
    return Assignment(
        lease,
        agent_id,
        entry,
        int(term),
        int(attempt),
        int(assigned_at),
        int(start_by) or None,
        int(timeout_at) or None,
        placement,
    )


def unpack_assignment(record: Mapping[str, str]) -> dict[str, str]:
    """A task's fields with the parts of its ``assignment`` beside them; raises ``ValueError`` when that is none."""
    if "assignment" not in record:
        return dict(record)
    parts = assignment_of(record["assignment"])._asdict()
    return {**record, **{name: str(value) for name, value in parts.items() if value is not None}}


def encode(value: Any) -> bytes:
    """JSON of any value that msgspec knows."""
    return _encode(value)


def decode_json(raw: bytes) -> Any:
    """Any JSON; raises one of ``BAD_JSON``."""
    return msgspec.json.decode(raw)


def entry_of(fact: Struct, *, caller: str = "", data: bytes | None = None) -> dict[str, bytes | str]:
    """The fields of the entry that tells ``fact``; ``caller`` is where the answer goes, empty for none."""
    fields: dict[str, bytes | str] = {"type": TYPE_OF[type(fact)], "data": _encode(fact) if data is None else data}
    if caller:
        fields["caller"] = caller
    return fields


def fact_of(stream: str, fields: Mapping[bytes, bytes], max_bytes: int) -> Fact:
    """The fact that an entry of ``stream`` (its name without namespace) tells.

    Raises:
        FactInvalid: a field is missing or does not fit; the message names it.
        FactTooLarge: the entry's data is over ``max_bytes``.
    """
    kind = fields.get(b"type")
    if kind is None:
        raise FactInvalid("field 'type' is missing")
    decoder = _DECODERS[stream].get(kind)
    if decoder is None:
        known = ", ".join(sorted(name.decode() for name in _DECODERS[stream]))
        raise FactInvalid(f"field 'type': {stream} does not carry {_shown(kind)}, only {known}")
    data = fields.get(b"data")
    if data is None:
        raise FactInvalid("field 'data' is missing")
    if len(data) > max_bytes:
        raise FactTooLarge(f"field 'data': {len(data)} bytes are over the limit of {max_bytes}")
    if sum(map(len, fields.values())) > max_bytes + SLACK:
        raise FactTooLarge(f"the entry's fields together are over the limit of {max_bytes} bytes")
    try:
        # What is passed on as it is (payloads, results) is not looked into, so its encoding is checked here.
        if not data.isascii():
            data.decode()
        fact: Fact = decoder.decode(data)
    except RecursionError:
        raise FactInvalid("field 'data' is nested too deeply") from None
    except UnicodeDecodeError:
        raise FactInvalid("field 'data' is not valid UTF-8") from None
    except msgspec.DecodeError as error:
        raise FactInvalid(f"field 'data': {error}") from None
    return fact


def caller_of(fields: Mapping[bytes, bytes]) -> str:
    """The caller that an entry names, or '' when it names none that may be a caller id."""
    return _caller(fields.get(b"caller", b""))


@lru_cache(4096)
def _caller(raw: bytes) -> str:
    return raw.decode() if raw and len(raw) <= 128 and _ID_BYTES.issuperset(raw) else ""


def digest_of(fact: Struct) -> str:
    """24 hex digits that are the same for the same content, whatever the order of its keys.

    What is opaque (a payload) counts byte by byte: another order of keys in there is other content.
    """
    return blake2b(_encode_canonical(fact), digest_size=12).hexdigest()


def pool_of(pool: Pool) -> tuple[str, bytes]:
    """A pool's id (16 hex digits, the same in every process) and its definition as JSON."""
    definition = _encode_canonical(pool)
    return blake2b(definition, digest_size=8).hexdigest(), definition


def _shown(raw: bytes) -> str:
    return repr(raw[:64].decode("utf-8", "backslashreplace"))
