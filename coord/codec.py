"""Encoding and decoding of entries, facts and packed record fields: the only module that reads or writes JSON.

Any entry of a caller results in a fact, or in ``FactInvalid``, ``FactTooLarge`` or ``IdInvalid`` with the name of the
field. No other error is raised for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from hashlib import blake2b
from typing import Annotated, Any, NamedTuple, Protocol, get_type_hints

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import astuple, replace

from coord.errors import CoordError, FactInvalid, FactTooLarge
from coord.models.facts import PARTS_OF, STREAM_FACTS, TYPE_OF, Fact
from coord.models.messages import AgentMessage
from coord.models.tasks import AttemptRecord, Pool, Preferences, TaskSubmitted

#: Errors of msgspec for invalid input: its own, and two more (deep nesting, invalid UTF-8).
BAD_JSON = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)

#: Bytes that the other fields of an entry may have in addition to its data.
SLACK = 4096

_encode = msgspec.json.Encoder().encode
_decode_attempt = msgspec.json.Decoder(AttemptRecord).decode
_decode_preferences = msgspec.json.Decoder(Preferences).decode
_encode_canonical = msgspec.json.Encoder(order="deterministic").encode

_DIGEST = blake2b(digest_size=12)
_ID_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._@-"
_ID_BYTES = frozenset(_ID_ALPHABET)
_LEASE_ALPHABET = b"0123456789abcdef"
_TASK = TYPE_OF[TaskSubmitted].encode()


class _FastDecoder(NamedTuple):
    """A decoder of facts about tasks that does not check the patterns of ids and leases."""

    fact: type[Any]
    twin: type[Struct]  #: the fact's fields without patterns
    decode: Callable[[bytes], Struct]
    has_lease: bool
    part: type[Any] | None = None  #: if the fact is a list: the facts that it lists


def _fast_decoder(fact: type[Struct]) -> _FastDecoder | None:
    """Return the decoder; None for a fact that does not start with a task id, because only those are frequent."""
    types = get_type_hints(fact, include_extras=True)
    names = fact.__struct_fields__
    if fact in PARTS_OF:
        part = _fast_decoder(PARTS_OF[fact])
        assert part is not None  # noqa: S101 (it starts with a task id)
        bounds = types[names[0]].__metadata__[0]
        twin = msgspec.defstruct(fact.__name__, [(names[0], Annotated[tuple[part.twin, ...], bounds])])  # type: ignore[name-defined]
        return _FastDecoder(fact, twin, msgspec.json.Decoder(twin).decode, part.has_lease, part.fact)
    if names[0] != "task_id":
        return None
    has_lease = names[1:2] == ("lease",)
    types["task_id"] = Annotated[str, Meta(min_length=1, max_length=128)]
    if has_lease:
        types["lease"] = Annotated[str, Meta(min_length=16, max_length=16)]
    needed = len(names) - len(fact.__struct_defaults__)
    fields: list[Any] = [(name, types[name]) for name in names[:needed]]
    fields += [
        (name, types[name], default) for name, default in zip(names[needed:], fact.__struct_defaults__, strict=True)
    ]
    twin = msgspec.defstruct(fact.__name__, fields)
    return _FastDecoder(fact, twin, msgspec.json.Decoder(twin).decode, has_lease)


@cache
def _decoders(stream: str) -> dict[bytes, msgspec.json.Decoder[Any]]:
    """Return type -> decoder of a stream. Built with its first entry: callers decode no facts, a worker few streams."""
    return {TYPE_OF[cls].encode(): msgspec.json.Decoder(cls) for cls in STREAM_FACTS[stream]}


@cache
def _fast_decoders(stream: str) -> dict[bytes, _FastDecoder]:
    """Return type -> decoder without patterns, for the facts that have one."""
    found = {TYPE_OF[cls].encode(): _fast_decoder(cls) for cls in STREAM_FACTS[stream]}
    return {kind: decoder for kind, decoder in found.items() if decoder is not None}


class RawEntry(Protocol):
    """An entry as it was read from a stream."""

    @property
    def stream(self) -> str:
        """The name of the stream, without the namespace."""

    @property
    def fields(self) -> Mapping[bytes, bytes]:
        """The fields as they are in the entry."""


class Assignment(NamedTuple):
    """The assignment of a task: one field of its record, its parts separated by spaces.

    Times are ms since 1970; ``start_by`` and ``timeout_at`` are ms on the clock of attempts.
    """

    lease: str
    agent_id: str
    entry: str  #: id of its entry in the agent's inbox
    has_alarm: bool  #: it may have an entry in ``deadlines`` or ``limits``
    term: int  #: of the agent
    attempt: int
    assigned_at: int
    start_by: int | None  #: limit for the claim; None: it is claimed, though perhaps not started
    timeout_at: int | None  #: None: no timeout
    placement: str  #: JSON: the reason for this agent


def parse_assignment(raw: str) -> Assignment:
    """Parse the field ``assignment`` of a record; raise ``ValueError`` if it is invalid."""
    lease, agent_id, entry, has_alarm, term, attempt, assigned_at, start_by, timeout_at, placement = raw.split(" ", 9)
    return Assignment(
        lease,
        agent_id,
        entry,
        has_alarm != "0",
        int(term),
        int(attempt),
        int(assigned_at),
        int(start_by) or None,
        int(timeout_at) or None,
        placement,
    )


class SubmissionRecord(NamedTuple):
    """The submission of a task without its body: one field of its record, its parts separated by spaces."""

    priority: str
    caller: str  #: caller that receives the outcome; empty: none
    has_extras: bool  #: the record may have fields that most records lack, such as ``deadline`` and ``attempt``
    submitted_at: int  #: ms since 1970
    score: str  #: position in the queue of its pool
    pool: str
    digest: str


def parse_submission(raw: str) -> SubmissionRecord:
    """Parse the field ``submission`` of a record; raise ``ValueError`` if it is invalid."""
    priority, caller, has_extras, submitted_at, score, pool, digest = raw.split(" ")
    return SubmissionRecord(priority, caller, has_extras != "0", int(submitted_at), score, pool, digest)


def parse_preferences(raw: bytes | str | None) -> Preferences:
    """Parse the field ``preferences`` of a record; one that is missing or invalid has none."""
    try:
        return _decode_preferences(raw) if raw else Preferences()
    except BAD_JSON:
        return Preferences()


def parse_attempts(raw: str) -> list[AttemptRecord]:
    """Return the attempts in the field ``attempts`` of a record, the latest first; what cannot be read is left out."""
    found = []
    for line in raw.split("\n"):  # not splitlines: a message may have one of the other ends of lines
        with suppress(*BAD_JSON):
            found.append(_decode_attempt(line))
    return found


def unpack_record(record: Mapping[str, str]) -> dict[str, str]:
    """Return the fields of a task's record, and the parts of ``submission`` and ``assignment`` as further fields.

    Raises:
        ValueError: one of the two is invalid.
    """
    parts: dict[str, Any] = {}
    if "submission" in record:
        parts |= parse_submission(record["submission"])._asdict()
    if "assignment" in record:
        parts |= parse_assignment(record["assignment"])._asdict()
    return {**record, **{name: str(value) for name, value in parts.items() if value not in {None, ""}}}


def encode(value: Any) -> bytes:
    """Return the JSON of any value that msgspec supports."""
    return _encode(value)


def decode_json(raw: bytes) -> Any:
    """Decode any JSON; raise one of ``BAD_JSON`` if it is invalid."""
    return msgspec.json.decode(raw)


def decode_message(fields: Mapping[bytes, bytes]) -> AgentMessage:
    """Return the message of an entry in an inbox, or in the replies of a client.

    Raises:
        KeyError, ValueError, or one of ``BAD_JSON``: it is not one.
    """
    text = {name.decode(): value.decode("utf-8", "replace") for name, value in fields.items() if name != b"data"}
    return AgentMessage(
        id=text["id"],
        sender_id=text["sender_id"],
        receiver_id=text["receiver_id"],
        message_type=text["message_type"],
        priority=text["priority"],
        timestamp=int(text["timestamp"]),
        expires_at=int(text["expires_at"]),
        payload=decode_json(fields[b"data"]),
        correlation_id=text.get("correlation_id"),
        reply_to=text.get("reply_to"),
        reply_by=int(text["reply_by"]) if "reply_by" in text else None,
        failed=text.get("failed") == "1",
        late=text.get("late") == "1",
        hops=int(text.get("hops", 0)),
        traceparent=text.get("traceparent"),
        protocol=text.get("protocol", "direct"),
    )


def encode_entry(
    fact: Struct, *, caller: str = "", data: bytes | None = None, token: str = "", by: str = ""
) -> dict[str, bytes | str]:
    """Return the fields of the entry for a fact.

    Args:
        fact: the fact.
        caller: where the answer goes; empty: no answer.
        data: the JSON of the fact, if the caller already has it.
        token: of the agent that the fact is about; empty: none. It is beside the data, so no record or dead letter has
            it.
        by: who asks for it, for the audit; empty: the caller.
    """
    fields: dict[str, bytes | str] = {"type": TYPE_OF[type(fact)], "data": _encode(fact) if data is None else data}
    if caller:
        fields["caller"] = caller
    if token:
        fields["token"] = token
    if by:
        fields["by"] = by
    return fields


def decode_fact(stream: str, fields: Mapping[bytes, bytes], max_bytes: int) -> Fact:
    """Decode the fact of an entry.

    Args:
        stream: the name of its stream, without the namespace.
        fields: of the entry.
        max_bytes: limit for its data.

    Raises:
        FactInvalid: a field is missing or invalid; the message names it.
        FactTooLarge: the entry's data is larger than ``max_bytes``.
    """
    kind = fields.get(b"type")
    if kind is None:
        raise FactInvalid("field 'type' is missing")
    decoders = _decoders(stream)
    decoder = decoders.get(kind)
    if decoder is None:
        known = ", ".join(sorted(name.decode() for name in decoders))
        raise FactInvalid(f"field 'type': {stream} does not carry {_shown(kind)}, only {known}")
    data = fields.get(b"data")
    if data is None:
        raise FactInvalid("field 'data' is missing")
    _check_size(fields, data, max_bytes)
    try:
        # Payloads and results are passed on undecoded, so their encoding is checked here.
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


def decode_facts(entries: Sequence[RawEntry], max_bytes: int) -> list[Fact | CoordError]:
    """Return the fact or the error of each entry: ``decode_fact`` for a batch, at less than half the cost.

    A pattern costs msgspec more than the rest of a small fact. So ids and leases are decoded with a check of their
    lengths only, and the alphabet of all ids of a batch is checked at once. Whatever fails is decoded again with the
    patterns, which decide and name the field.
    """
    found: list[Fact | CoordError] = []
    ids: list[str] = []
    leases: list[str] = []
    for entry in entries:
        fields = entry.fields
        decoder = _fast_decoders(entry.stream).get(fields.get(b"type", b""))
        if decoder is None:
            found.append(_fact_or_error(entry, max_bytes))
            continue
        try:
            data = fields[b"data"]
            _check_size(fields, data, max_bytes)
            if not data.isascii():
                data.decode()
            values = astuple(decoder.decode(data))
            if decoder.part is not None:
                parts = [decoder.part(*astuple(part)) for part in values[0]]
                found.append(decoder.fact(tuple(parts)))
                ids += [part.task_id for part in parts]
                if decoder.has_lease:
                    leases += [part.lease for part in parts]
                continue
            found.append(decoder.fact(*values))
            ids.append(values[0])
            if decoder.has_lease:
                leases.append(values[1])
        except Exception:  # noqa: BLE001 -- decoding with the patterns raises it again and names the field
            found.append(_fact_or_error(entry, max_bytes))
    if _is_of("".join(ids), _ID_ALPHABET) and _is_of("".join(leases), _LEASE_ALPHABET):
        return found
    return [_fact_or_error(entry, max_bytes) for entry in entries]


def decode_task(stream: str, data: bytes, max_bytes: int) -> TaskSubmitted | None:
    """Return the fact of a submitted task whose id is valid already, at half the cost of ``decode_fact``.

    Args:
        stream: the name of its stream, without the namespace.
        data: its JSON.
        max_bytes: limit for ``data``.

    Returns:
        None if a field does not fit: ``decode_fact`` names it.
    """
    if len(data) > max_bytes:
        return None
    try:
        if not data.isascii():
            data.decode()
        return TaskSubmitted(*astuple(_fast_decoders(stream)[_TASK].decode(data)))
    except Exception:  # noqa: BLE001 -- decoding with the patterns raises it again
        return None


def _check_size(fields: Mapping[bytes, bytes], data: bytes, max_bytes: int) -> None:
    if len(data) > max_bytes:
        raise FactTooLarge(f"field 'data': {len(data)} bytes are over the limit of {max_bytes}")
    # In addition to its data an entry has its type, which is valid here; only other fields can be long.
    if len(fields) > 2 and sum(map(len, fields.values())) > max_bytes + SLACK:
        raise FactTooLarge(f"the entry's fields together are over the limit of {max_bytes} bytes")


def _fact_or_error(entry: RawEntry, max_bytes: int) -> Fact | CoordError:
    try:
        return decode_fact(entry.stream, entry.fields, max_bytes)
    except CoordError as error:
        return error


def _is_of(text: str, alphabet: bytes) -> bool:
    return text.isascii() and not text.encode().translate(None, alphabet)


def caller_of(fields: Mapping[bytes, bytes]) -> str:
    """Return the caller that an entry names; '' if it names none, or not a valid id."""
    return _caller(fields.get(b"caller", b""))


@lru_cache(4096)
def _caller(raw: bytes) -> str:
    return raw.decode() if raw and len(raw) <= 128 and _ID_BYTES.issuperset(raw) else ""


def digest_of(fact: Struct) -> str:
    """Return 24 hex digits that are the same for the same content, in any order of its keys.

    Opaque parts (a payload) are compared byte by byte: a different order of keys in them is different content.
    """
    if getattr(fact, "traceparent", None) is not None:
        fact = replace(fact, traceparent=None)  # the same content, sent again by another part of a program
    digest = _DIGEST.copy()  # faster than a new one
    digest.update(_encode_canonical(fact))
    return digest.hexdigest()


def pool_of(pool: Pool) -> tuple[str, bytes]:
    """Return a pool's id (16 hex digits, the same in every process) and its definition as JSON."""
    definition = _encode_canonical(pool)
    return blake2b(definition, digest_size=8).hexdigest(), definition


def _shown(raw: bytes) -> str:
    return repr(raw[:64].decode("utf-8", "backslashreplace"))
