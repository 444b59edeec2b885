"""What a client submits or sends, checked by the same rules as the workers' before anything is appended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, TypedDict

from msgspec import Struct

from coord import codec
from coord.errors import FactInvalid
from coord.models.facts import TYPE_OF, Fact, MessageSent
from coord.models.ids import check_id, new_id
from coord.models.tasks import LANE, Lane, Priority, Requirements, Retry, TaskSubmitted
from coord.streams import Append


class TaskSpec(Struct, kw_only=True):
    """A task to submit.

    ``payload`` is any JSON, or whatever msgspec makes JSON of, such as a Struct. Where neither ``requirements`` nor
    ``capabilities`` are given, the task requires the capability named like its type, which an agent has that has a
    handler for it. ``timeout`` (seconds) bounds one attempt; at ``deadline`` the task expires whatever its state;
    ``delay`` (seconds) or ``run_at`` is when it may run first.
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
    try:
        priority = Priority(spec.priority)
    except ValueError:
        raise FactInvalid(f"priority {spec.priority!r} is none of {', '.join(Priority)}") from None
    task_id = check_id(spec.task_id, "task_id") if spec.task_id is not None else new_id()
    said = {
        "task_id": task_id,
        "task_type": spec.task_type,
        "payload": spec.payload,
        "requirements": _requirements(spec),
        "strategy": spec.strategy,
        "timeout": spec.timeout,
        "deadline": spec.deadline,
        "delay": spec.delay,
        "run_at": spec.run_at,
        "retry": spec.retry if spec.retry is not None else {},
        "notify": spec.notify,
    }
    stream = f"in:tasks:{priority}"
    return Append(stream, _checked(stream, TaskSubmitted, said, max_bytes), caller)


def message_append(said: dict[str, Any], priority: str, caller: str, max_bytes: int) -> Append:
    """The fact that a message becomes, and its stream; ``said`` holds the fields of ``MessageSent``.

    Raises: as ``task_append``.
    """
    try:
        lane = Lane(LANE[Priority(priority)])
    except ValueError:
        raise FactInvalid(f"priority {priority!r} is none of {', '.join(Priority)}") from None
    for field in ("message_id", "sender_id", "receiver_id"):
        check_id(said[field], field)
    stream = f"in:messages:{lane}"
    return Append(stream, _checked(stream, MessageSent, said, max_bytes), caller)


def _requirements(spec: TaskSpec) -> Any:
    if spec.requirements is None:
        return {"capabilities": list(spec.capabilities) if spec.capabilities is not None else [spec.task_type]}
    if spec.capabilities is None:
        return spec.requirements
    given = spec.requirements
    said = dict(given) if isinstance(given, Mapping) else codec.decode_json(codec.encode(given))
    said["capabilities"] = list(dict.fromkeys((*said.get("capabilities", ()), *spec.capabilities)))
    return said


def _checked(stream: str, kind: type[Struct], said: dict[str, Any], max_bytes: int) -> Fact:
    try:
        data = codec.encode(said)
    except Exception as error:
        # Whatever an object of the caller's raises when it is encoded: a TypeError, an overflow, its own.
        raise FactInvalid(f"payload: cannot be made JSON: {error}") from error
    return codec.fact_of(stream, {b"type": TYPE_OF[kind].encode(), b"data": data}, max_bytes)
