"""Between entries and facts: the only place where JSON is read or written.

Whatever a caller may put into an entry ends in a fact or in ``FactInvalid``, ``FactTooLarge`` or ``IdInvalid`` naming
the field; nothing else is raised for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Annotated, Any, NamedTuple, Protocol, get_type_hints

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import astuple

from coord.errors import CoordError, FactInvalid, FactTooLarge
from coord.models.facts import PARTS_OF, STREAM_FACTS, TYPE_OF, Fact
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
_DIGEST = blake2b(digest_size=12)
_ID_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._@-"
_ID_BYTES = frozenset(_ID_ALPHABET)
_LEASE_ALPHABET = b"0123456789abcdef"


class _Plain(NamedTuple):
    """How a fact about a task, or about several, is decoded without the patterns of its ids and leases."""

    fact: type[Any]
    twin: type[Struct]
    decode: Callable[[bytes], Struct]
    has_lease: bool
    part: type[Any] | None = None  #: of a fact that is nothing but a list: what it lists


def _plain_of(fact: type[Struct]) -> _Plain | None:
    """None for a fact that does not begin with a task's id: only those are many."""
    types = get_type_hints(fact, include_extras=True)
    names = fact.__struct_fields__
    if fact in PARTS_OF:
        part = _plain_of(PARTS_OF[fact])
        assert part is not None  # noqa: S101 (it begins with the task's id)
        bounds = types[names[0]].__metadata__[0]
        twin = msgspec.defstruct(fact.__name__, [(names[0], Annotated[tuple[part.twin, ...], bounds])])  # type: ignore[name-defined]
        return _Plain(fact, twin, msgspec.json.Decoder(twin).decode, part.has_lease, part.fact)
    if names[0] != "task_id":
        return None
    has_lease = names[1:2] == ("lease",)
    types["task_id"] = Annotated[str, Meta(min_length=1, max_length=128)]
    if has_lease:
        types["lease"] = Annotated[str, Meta(min_length=16, max_length=16)]
    needed = len(names) - len(fact.__struct_defaults__)
    fields: list[Any] = [(name, types[name]) for name in names[:needed]]
    fields += [(name, types[name], given) for name, given in zip(names[needed:], fact.__struct_defaults__, strict=True)]
    twin = msgspec.defstruct(fact.__name__, fields)
    return _Plain(fact, twin, msgspec.json.Decoder(twin).decode, has_lease)


#: stream -> type -> how it is decoded without patterns, where that is known.
_PLAIN: dict[str, dict[bytes, _Plain]] = {
    stream: {TYPE_OF[cls].encode(): plain for cls in classes if (plain := _plain_of(cls)) is not None}
    for stream, classes in STREAM_FACTS.items()
}


class Read(Protocol):
    """An entry as it was read from a stream."""

    @property
    def stream(self) -> str:
        """Without the namespace."""

    @property
    def fields(self) -> Mapping[bytes, bytes]:
        """As they are in the entry."""


class Assignment(NamedTuple):
    """Who has, or had, a task: one field of its record, its parts with spaces between. Times are ms since 1970."""

    lease: str
    agent_id: str
    entry: str  #: in the agent's inbox
    has_alarm: bool  #: whether it may have an alarm of its own
    term: int  #: of the agent
    attempt: int
    assigned_at: int
    start_by: int | None  #: until it is claimed; None: it was claimed, and need not have started
    timeout_at: int | None  #: None: it may take any time
    placement: str  #: JSON: why this agent


def assignment_of(raw: str) -> Assignment:
    """The parts of a record's ``assignment``; raises ``ValueError`` when it is none."""
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
    """What was submitted, but for its body: one field of a task's record, its parts with spaces between."""

    priority: str
    caller: str  #: whom its outcome is told; empty: nobody
    more: bool  #: whether the record may have fields that most have not, such as ``deadline`` and ``attempt``
    submitted_at: int  #: ms since 1970
    score: str  #: its place in its pool's queue
    pool: str
    digest: str


def submission_of(raw: str) -> SubmissionRecord:
    """The parts of a record's ``submission``; raises ``ValueError`` when it is none."""
    priority, caller, more, submitted_at, score, pool, digest = raw.split(" ")
    return SubmissionRecord(priority, caller, more != "0", int(submitted_at), score, pool, digest)


def unpack_record(record: Mapping[str, str]) -> dict[str, str]:
    """A task's fields with the parts of ``submission`` and ``assignment``; raises ``ValueError`` when one is none."""
    parts: dict[str, Any] = {}
    if "submission" in record:
        parts |= submission_of(record["submission"])._asdict()
    if "assignment" in record:
        parts |= assignment_of(record["assignment"])._asdict()
    return {**record, **{name: str(value) for name, value in parts.items() if value not in {None, ""}}}


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
    _check_size(fields, data, max_bytes)
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


def facts_of(entries: Sequence[Read], max_bytes: int) -> list[Fact | CoordError]:
    """What each entry tells, or why it tells nothing: ``fact_of`` for a batch, at less than half its cost.

    A pattern costs msgspec more than all the rest of a small fact. So ids and leases are decoded by their lengths
    alone, and the alphabet of a whole batch of them is looked at in one go. Whatever is not plainly right is decoded
    once more with the patterns, which decide and name the field.
    """
    found: list[Fact | CoordError] = []
    ids: list[str] = []
    leases: list[str] = []
    for entry in entries:
        fields = entry.fields
        plain = _PLAIN[entry.stream].get(fields.get(b"type", b""))
        if plain is None:
            found.append(_fact_or_error(entry, max_bytes))
            continue
        try:
            data = fields[b"data"]
            _check_size(fields, data, max_bytes)
            if not data.isascii():
                data.decode()
            values = astuple(plain.decode(data))
            if plain.part is not None:
                parts = [plain.part(*astuple(one)) for one in values[0]]
                found.append(plain.fact(tuple(parts)))
                ids += [one.task_id for one in parts]
                if plain.has_lease:
                    leases += [one.lease for one in parts]
                continue
            found.append(plain.fact(*values))
            ids.append(values[0])
            if plain.has_lease:
                leases.append(values[1])
        except Exception:  # noqa: BLE001 -- whatever it is, the other way meets it too and names it
            found.append(_fact_or_error(entry, max_bytes))
    if _is_of("".join(ids), _ID_ALPHABET) and _is_of("".join(leases), _LEASE_ALPHABET):
        return found
    return [_fact_or_error(entry, max_bytes) for entry in entries]


def _check_size(fields: Mapping[bytes, bytes], data: bytes, max_bytes: int) -> None:
    if len(data) > max_bytes:
        raise FactTooLarge(f"field 'data': {len(data)} bytes are over the limit of {max_bytes}")
    # Beside its data an entry has its type, which is known by now; only others can be long.
    if len(fields) > 2 and sum(map(len, fields.values())) > max_bytes + SLACK:
        raise FactTooLarge(f"the entry's fields together are over the limit of {max_bytes} bytes")


def _fact_or_error(entry: Read, max_bytes: int) -> Fact | CoordError:
    try:
        return fact_of(entry.stream, entry.fields, max_bytes)
    except CoordError as error:
        return error


def _is_of(text: str, alphabet: bytes) -> bool:
    return text.isascii() and not text.encode().translate(None, alphabet)


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
    digest = _DIGEST.copy()  # quicker than to make one
    digest.update(_encode_canonical(fact))
    return digest.hexdigest()


def pool_of(pool: Pool) -> tuple[str, bytes]:
    """A pool's id (16 hex digits, the same in every process) and its definition as JSON."""
    definition = _encode_canonical(pool)
    return blake2b(definition, digest_size=8).hexdigest(), definition


def _shown(raw: bytes) -> str:
    return repr(raw[:64].decode("utf-8", "backslashreplace"))
