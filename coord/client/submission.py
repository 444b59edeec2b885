"""What a client submits or sends, checked by the same rules as the workers' before anything is appended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypedDict, cast

from msgspec import Struct

from coord import codec
from coord.arguments import check_finite, check_known, check_payload, encoded, listed
from coord.batching import SHORT, most
from coord.errors import FactInvalid
from coord.models.facts import TYPE_OF, Fact, MessageSent
from coord.models.ids import check_id, new_id
from coord.models.tasks import LANE, Priority, Requirements, Retry, TasksSubmitted, TaskSubmitted
from coord.streams import Append

#: Tasks in one entry at most.
MOST = 64

_PRIORITIES = {priority.value: priority for priority in Priority}
_STREAMS = {priority: f"in:tasks:{priority}" for priority in Priority}
#: The fields of a spec that are said only when they are given.
_OPTIONS = ("strategy", "timeout", "deadline", "delay", "run_at", "retry")


class TaskSpec(Struct, kw_only=True):
    """A task to submit.

    ``payload`` is any JSON, or whatever msgspec makes JSON of, such as a Struct. Where neither ``requirements`` nor
    ``capabilities`` are given, the task requires the capability named like its type, which an agent has that has a
    handler for it. Names that ``Requirements`` does not have are refused. ``timeout`` (seconds) bounds one attempt; at
    ``deadline`` the task expires whatever its state; ``delay`` (seconds) or ``run_at`` is when it may run first.
    """

    task_type: str
    payload: Any = {}
    task_id: str | None = None  #: default: a new one. The same id with the same content is submitted once
    priority: str = Priority.NORMAL
    capabilities: Iterable[str] | None = None  #: on top of those in ``requirements``
    requirements: Requirements | Mapping[str, Any] | None = None
    timeout: float | None = None
    deadline: datetime | None = None
    delay: float | None = None
    run_at: datetime | None = None
    retry: Retry | Mapping[str, Any] | None = None
    strategy: str | None = None
    notify: bool = True  #: tell this client the outcome; without, ``result`` looks at the records


class TaskOptions(TypedDict, total=False):
    """The fields of ``TaskSpec`` besides type and payload, for ``Client.submit``."""

    task_id: str | None
    priority: str
    capabilities: Iterable[str] | None
    requirements: Requirements | Mapping[str, Any] | None
    timeout: float | None
    deadline: datetime | None
    delay: float | None
    run_at: datetime | None
    retry: Retry | Mapping[str, Any] | None
    strategy: str | None
    notify: bool


def task_append(spec: TaskSpec, caller: str, max_bytes: int) -> Append:
    """The fact that a spec becomes, and its stream.

    Raises:
        IdInvalid: the task id does not fit.
        FactInvalid: anything else does not; the message names it.
        FactTooLarge: it is over ``max_bytes``.
    """
    priority = _priority(spec.priority)
    task_id = check_id(spec.task_id, "task_id") if spec.task_id is not None else new_id()
    check_payload(spec.payload)
    said = {
        "task_id": task_id,
        "task_type": spec.task_type,
        "payload": spec.payload,
        "requirements": _requirements(spec),
    }
    for name in _OPTIONS:
        if (value := getattr(spec, name)) is not None:
            check_finite(value, name)
            said[name] = value
    if spec.notify is not False:
        said["notify"] = spec.notify
    stream = _STREAMS[priority]
    fact, data = checked(stream, TaskSubmitted, said, max_bytes)
    return Append(stream, fact, caller, data)


class Parcel(NamedTuple):
    """What is appended as one entry."""

    append: Append
    tasks: int


def together(batch: Sequence[Append], max_bytes: int) -> list[Parcel]:
    """Tasks that follow one another on a stream share an entry, which costs everyone little more than one of them.

    An entry is taken whole or not at all, so what a worker might refuse that was taken here goes alone: a strategy of
    its own, which the worker may not know, and whatever is long (nothing short nests too deep to be read in a list). No
    id is twice in an entry, for an answer names the task that it is about. ``max_bytes``: what an entry may have.
    """
    limit = most(MOST, max_bytes)
    parcels: list[Parcel] = []
    some: list[Append] = []
    ids: set[str] = set()
    for one in batch:
        task = cast("TaskSubmitted", one.fact)
        is_alone = len(one.data or b"") > SHORT or task.strategy is not None
        if some and (is_alone or len(some) >= limit or one.stream != some[0].stream or task.task_id in ids):
            parcels.append(_parcel_of(some))
            some, ids = [], set()
        if is_alone:
            parcels.append(Parcel(one, 1))
        else:
            some.append(one)
            ids.add(task.task_id)
    if some:
        parcels.append(_parcel_of(some))
    return parcels


def _parcel_of(some: list[Append]) -> Parcel:
    if len(some) == 1:
        return Parcel(some[0], 1)
    fact = TasksSubmitted(tuple([cast("TaskSubmitted", one.fact) for one in some]))
    data = b'{"tasks":[%b]}' % b",".join([one.data or b"" for one in some])
    return Parcel(Append(some[0].stream, fact, some[0].caller, data), len(some))


def message_append(said: dict[str, Any], priority: str, caller: str, max_bytes: int) -> Append:
    """The fact that a message becomes, and its stream; ``said`` holds the fields of ``MessageSent``.

    Raises: as ``task_append``.
    """
    lane = LANE[_priority(priority)]
    for field in ("message_id", "sender_id", "receiver_id"):
        check_id(said[field], field)
    stream = f"in:messages:{lane}"
    check_finite(said.get("ttl"), "ttl")
    check_payload(said["payload"])
    fact, data = checked(stream, MessageSent, {k: v for k, v in said.items() if v is not None}, max_bytes)
    return Append(stream, fact, caller, data)


def _priority(given: str) -> Priority:
    try:
        return _PRIORITIES[given]
    except (KeyError, TypeError):
        raise FactInvalid(f"priority {given!r} is none of {', '.join(Priority)}") from None


def spec_of(given: TaskSpec | Mapping[str, Any]) -> TaskSpec:
    """What somebody wants to submit, by itself or as a mapping of its fields.

    Raises:
        FactInvalid: it is neither, or has another field.
    """
    if isinstance(given, TaskSpec):
        return given
    if not isinstance(given, Mapping):
        raise FactInvalid(f"expected a TaskSpec or a mapping of its fields, not {type(given).__name__}")
    try:
        return TaskSpec(**given)
    except TypeError as error:
        raise FactInvalid(f"task: {str(error).lower()}") from None


def _requirements(spec: TaskSpec) -> Any:
    capabilities = None if spec.capabilities is None else listed(spec.capabilities, "capabilities")
    given = spec.requirements
    if given is None:
        return {"capabilities": [spec.task_type] if capabilities is None else capabilities}
    if not isinstance(given, Requirements | Mapping):
        raise FactInvalid(f"requirements: expected Requirements or a mapping of its fields, not {type(given).__name__}")
    check_known(given, Requirements, "requirements")
    check_finite(given, "requirements")
    if capabilities is None:
        return given
    said = dict(given) if isinstance(given, Mapping) else codec.decode_json(codec.encode(given))
    required = listed(said.get("capabilities", ()), "requirements.capabilities")
    said["capabilities"] = [*required, *(one for one in capabilities if one not in required)]
    return said


def checked(stream: str, kind: type[Struct], said: Struct | Mapping[str, Any], max_bytes: int) -> tuple[Fact, bytes]:
    """The fact of type ``kind`` that has these fields, as the worker will read it, and its JSON.

    Raises: as ``task_append``.
    """
    data = encoded(said)
    return codec.fact_of(stream, {b"type": TYPE_OF[kind].encode(), b"data": data}, max_bytes), data
