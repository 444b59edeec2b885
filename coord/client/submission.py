"""What a client submits or sends, checked and turned into facts before anything is appended.

The checks are those of the workers (``codec.decode_fact``), so an error is raised where it was made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any, Literal, NamedTuple, TypeAlias, TypedDict, cast

from msgspec import Struct

from coord import codec
from coord.arguments import as_words, check_finite, check_known, check_payload, decode_argument, encode_fields
from coord.context import current_work
from coord.errors import CoordError, FactInvalid, FactTooLarge
from coord.models.agents import AgentType, Location
from coord.models.facts import Fact, MessageSent
from coord.models.ids import check_id, new_id
from coord.models.messages import MessageType, Protocol
from coord.models.strategies import MODIFIERS, STRATEGY_NAMES, Modifier, StrategyName
from coord.models.tasks import LANE, Modifiers, Priority, Requirements, Retry, TasksSubmitted, TaskSubmitted
from coord.models.tracing import is_traceparent
from coord.plugins import strategy_names
from coord.streams import MAX_BATCHED_BYTES, Append, max_facts_per_entry
from coord.suggestions import not_one_of

#: Maximum number of tasks in one entry.
MAX_TASKS_PER_ENTRY = 64

#: The names of ``Priority``, most urgent first.
PriorityName: TypeAlias = Literal["urgent", "critical", "high", "normal", "low"]
#: The types that an agent can have.
AGENT_TYPES = tuple(str(kind.value) for kind in AgentType)

_PRIORITIES = {priority.value: priority for priority in Priority}
_STREAMS = {priority: f"in:tasks:{priority}" for priority in Priority}
#: The fields of a spec that are sent only if they are set.
_OPTIONS = (
    "strategy", "modifiers", "timeout", "deadline", "delay", "run_at", "retry", "location", "affinity_key",
    "expected_ms", "traceparent",
)  # fmt: skip
_options = attrgetter(*_OPTIONS)
_NO_OPTIONS = (None,) * len(_OPTIONS)


class TaskSpec(Struct, kw_only=True):
    """A task to submit.

    Args:
        task_type: type of the task; agents choose the handler by it. 1 to 128 characters.
        payload: input of the task: any value that msgspec can encode as JSON, such as a dict or a Struct.
        task_id: id of the task, 1 to 128 characters of ``A-Z a-z 0-9 . _ @ -``; default: a new UUID. Submitting the
            same id with the same content again has no further effect.
        priority: ``urgent``, ``critical``, ``high``, ``normal`` or ``low``.
        capabilities: capabilities that the agent must have, in addition to those in ``requirements``. Without
            ``capabilities`` and ``requirements`` the agent must have the capability named like the task type, which
            every agent has that has a handler for it.
        requirements: ``agent_type``, ``capabilities``, ``services``, ``tags``, ``labels``, ``agent_id`` and
            ``min_health_score`` (0 to 1) that the agent must meet. Unknown names are refused.
        timeout: seconds that one attempt may take; default: no limit.
        deadline: time at which the task expires, whatever its state; an aware datetime.
        delay: seconds before the task may start.
        run_at: time from which the task may start; an aware datetime. Not together with ``delay``.
        retry: ``max_attempts`` (1 to 1,000), ``backoff`` and ``backoff_max`` (seconds); default: those of the cell.
        strategy: name of a placement strategy, see ``coord.models.strategies``; default: that of the type or the cell.
        modifiers: ``ejection``, ``avoid_failed_agent``, ``rare_skills_first``: True or False; default: those of the
            type or the cell.
        location: where the task is best run: ``coord.models.agents.Location``, or a mapping with ``lat`` and ``lon``
            (degrees), ``region`` and ``zone``. Unknown names are refused. The strategy ``geographic`` prefers
            near agents.
        affinity_key: text of 1 to 128 characters. The strategy ``consistent_hash`` sends tasks with the same key to the
            same agent, as long as it has room.
        expected_ms: milliseconds that the task is expected to take, above 0 and at most a year; default: not known.
            Strategies that learn times learn them for each size (rounded to a power of 4).
        traceparent: place of the task in a distributed trace, as in the W3C Trace Context; default: that of the task or
            message whose handler submits it. The handler gets it.
        notify: send the outcome to this client. If False, ``TaskHandle.result`` reads the record instead.
    """

    task_type: str
    payload: Any = {}
    task_id: str | None = None
    priority: PriorityName | Priority = Priority.NORMAL
    capabilities: Iterable[str] | None = None
    requirements: Requirements | Mapping[str, Any] | None = None
    timeout: float | None = None
    deadline: datetime | None = None
    delay: float | None = None
    run_at: datetime | None = None
    retry: Retry | Mapping[str, Any] | None = None
    strategy: StrategyName | None = None
    modifiers: Modifiers | Mapping[Modifier, bool] | None = None
    location: Location | Mapping[str, Any] | None = None
    affinity_key: str | None = None
    expected_ms: float | None = None
    traceparent: str | None = None
    notify: bool = True


class TaskOptions(TypedDict, total=False):
    """The fields of ``TaskSpec`` except type and payload, for ``Client.submit``."""

    task_id: str | None
    priority: PriorityName | Priority
    capabilities: Iterable[str] | None
    requirements: Requirements | Mapping[str, Any] | None
    timeout: float | None
    deadline: datetime | None
    delay: float | None
    run_at: datetime | None
    retry: Retry | Mapping[str, Any] | None
    strategy: StrategyName | None
    modifiers: Modifiers | Mapping[Modifier, bool] | None
    location: Location | Mapping[str, Any] | None
    affinity_key: str | None
    expected_ms: float | None
    traceparent: str | None
    notify: bool


def task_append(spec: TaskSpec, caller: str, max_bytes: int) -> Append:
    """Return the fact of a task and its stream.

    Raises:
        IdInvalid: the task id does not fit.
        FactInvalid: another field does not fit; the message names it.
        FactTooLarge: the fact has more than ``max_bytes``.
    """
    priority = _priority(spec.priority)
    task_id = check_id(spec.task_id, "task_id") if spec.task_id is not None else new_id()
    check_payload(spec.payload)
    fields = {
        "task_id": task_id,
        "task_type": spec.task_type,
        "payload": spec.payload,
        "requirements": _requirements(spec),
    }
    options = _options(spec)
    if options != _NO_OPTIONS:
        _check_options(spec)
        for name, value in zip(_OPTIONS, options, strict=True):
            if value is not None:
                check_finite(value, name)
                fields[name] = value
    if spec.traceparent is None and (work := current_work.get()) is not None and work.traceparent is not None:
        fields["traceparent"] = work.traceparent
    if spec.notify is not False:
        fields["notify"] = spec.notify
    stream = _STREAMS[priority]
    data = encode_fields(fields)
    fact = codec.decode_task(stream, data, max_bytes) or decode_argument(stream, TaskSubmitted, data, max_bytes)
    return Append(stream, fact, caller, data)


def checked_append(priority: Priority, fact: TaskSubmitted, caller: str, max_bytes: int) -> Append:
    """Return the append of a fact that is already what a worker would decode: its parts were decoded from JSON.

    Raises:
        FactInvalid: no agent can have the required type.
        FactTooLarge: the fact has more than ``max_bytes``.
    """
    if fact.requirements.agent_type is not None:
        _check_agent_type(fact.requirements)
    if fact.strategy is not None:
        check_strategy(fact.strategy)
    data = codec.encode(fact)
    if len(data) > max_bytes:
        raise FactTooLarge(f"field 'data': {len(data)} bytes are over the limit of {max_bytes}")
    return Append(_STREAMS[priority], fact, caller, data)


def _check_options(spec: TaskSpec) -> None:
    """Check the names in the options of a task; the types of all fields are checked when the fact is decoded."""
    if spec.strategy is not None:
        check_strategy(spec.strategy)
    check_traceparent(spec.traceparent)
    if spec.location is not None:
        check_known(spec.location, Location, "location")
    if isinstance(spec.modifiers, Mapping):
        for modifier in spec.modifiers:
            if modifier not in MODIFIERS:
                raise FactInvalid(not_one_of("modifiers", modifier, MODIFIERS))


class TaskEntry(NamedTuple):
    """An entry to append, and the number of tasks in it."""

    append: Append
    tasks: int


def group_tasks(batch: Sequence[Append], max_bytes: int) -> list[TaskEntry]:
    """Let consecutive tasks of a stream share an entry, which costs little more than an entry with one task.

    An entry is accepted whole or not at all. So a task that a worker might refuse although it was accepted here goes
    alone: one with a strategy, which the worker may not know, and a long one (nothing short nests too deep to be read
    in a list). No id occurs twice in an entry, because an answer names its task by id.

    Args:
        batch: tasks, in the order in which they are to be appended.
        max_bytes: maximum size of an entry.
    """
    limit = max_facts_per_entry(MAX_TASKS_PER_ENTRY, max_bytes)
    entries: list[TaskEntry] = []
    group: list[Append] = []
    ids: set[str] = set()
    for append in batch:
        task = cast("TaskSubmitted", append.fact)
        is_alone = len(append.data or b"") > MAX_BATCHED_BYTES or task.strategy is not None
        if group and (is_alone or len(group) >= limit or append.stream != group[0].stream or task.task_id in ids):
            entries.append(_entry_of(group))
            group, ids = [], set()
        if is_alone:
            entries.append(TaskEntry(append, 1))
        else:
            group.append(append)
            ids.add(task.task_id)
    if group:
        entries.append(_entry_of(group))
    return entries


def _entry_of(group: list[Append]) -> TaskEntry:
    if len(group) == 1:
        return TaskEntry(group[0], 1)
    fact = TasksSubmitted(tuple([cast("TaskSubmitted", append.fact) for append in group]))
    data = b'{"tasks":[%b]}' % b",".join([append.data or b"" for append in group])
    return TaskEntry(Append(group[0].stream, fact, group[0].caller, data), len(group))


def message_append(fields: dict[str, Any], priority: str, caller: str, max_bytes: int) -> Append:
    """Return the fact of a message and its stream; ``fields`` are those of ``MessageSent``.

    Inside a handler the message carries on from what the handler works on (``coord.context``).

    Raises: as ``task_append``.
    """
    lane = LANE[_priority(priority)]
    for field in ("message_id", "sender_id", "receiver_id"):
        check_id(fields[field], field)
    stream = f"in:messages:{lane}"
    for field in ("ttl", "reply_by"):
        check_finite(fields.get(field), field)
    check_traceparent(fields.get("traceparent"))
    check_payload(fields["payload"])
    for field, names in (("message_type", MessageType), ("protocol", Protocol)):
        if fields.get(field) is not None and fields[field] not in tuple(names):
            raise FactInvalid(not_one_of(field, fields[field], names))
    if (work := current_work.get()) is not None:
        fields = {"caused_by": work.message_id, **fields}
        if fields.get("traceparent") is None:
            fields["traceparent"] = work.traceparent
    fact, data = build_fact(stream, MessageSent, {k: v for k, v in fields.items() if v is not None}, max_bytes)
    return Append(stream, fact, caller, data)


def lane_of(priority: str) -> str:
    """Return the lane of messages of a priority; raises ``FactInvalid`` if there is no such priority."""
    return LANE[_priority(priority)].value


def _priority(name: str) -> Priority:
    try:
        return _PRIORITIES[name]
    except (KeyError, TypeError):
        raise FactInvalid(f"priority: expected one of {', '.join(Priority)}, not {name!r}") from None


def check_strategy(name: object, error: type[CoordError] = FactInvalid) -> None:
    """Check that there is a placement strategy of this name: a worker would make a dead letter of a mistyped one.

    Strategies of packages that are installed here count as well.

    Raises:
        CoordError: there is none: an ``error`` that names the strategies that there are.
    """
    if name not in STRATEGY_NAMES and name not in (known := strategy_names()):
        raise error(not_one_of("strategy", name, known))


def check_traceparent(value: object) -> None:
    """Check that a value is None or a valid traceparent.

    Raises:
        FactInvalid: it is not.
    """
    if value is not None and not is_traceparent(value):
        raise FactInvalid(
            "traceparent must be version-trace_id-parent_id-flags in lower-case hex digits, such as "
            f"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01, got {str(value)[:80]!r}"
        )


def _check_agent_type(requirements: Requirements | Mapping[str, Any]) -> None:
    """Check that agents of the required type can exist: the task would wait for one forever."""
    name = requirements.agent_type if isinstance(requirements, Requirements) else requirements.get("agent_type")
    if name is not None and name not in AGENT_TYPES:
        raise FactInvalid(not_one_of("requirements.agent_type", name, AGENT_TYPES))


def spec_of(value: TaskSpec | Mapping[str, Any]) -> TaskSpec:
    """Return a ``TaskSpec``, also from a mapping of its fields.

    Raises:
        FactInvalid: the value is neither, or has an unknown field.
    """
    if isinstance(value, TaskSpec):
        return value
    if not isinstance(value, Mapping):
        raise FactInvalid(f"expected a TaskSpec or a mapping of its fields, not {type(value).__name__}")
    try:
        return TaskSpec(**value)
    except TypeError as error:
        raise FactInvalid(f"task: {str(error).lower()}") from None


def _requirements(spec: TaskSpec) -> Any:
    capabilities = None if spec.capabilities is None else as_words(spec.capabilities, "capabilities")
    given = spec.requirements
    if given is None:
        return {"capabilities": [spec.task_type] if capabilities is None else capabilities}
    if not isinstance(given, Requirements | Mapping):
        raise FactInvalid(f"requirements: expected Requirements or a mapping of its fields, not {type(given).__name__}")
    check_known(given, Requirements, "requirements")
    check_finite(given, "requirements")
    _check_agent_type(given)
    if capabilities is None:
        return given
    fields = dict(given) if isinstance(given, Mapping) else codec.decode_json(codec.encode(given))
    required = as_words(fields.get("capabilities", ()), "requirements.capabilities")
    fields["capabilities"] = [*required, *(name for name in capabilities if name not in required)]
    return fields


def build_fact(
    stream: str, kind: type[Struct], fields: Struct | Mapping[str, Any], max_bytes: int
) -> tuple[Fact, bytes]:
    """Return the fact of type ``kind`` with these fields, as the worker will decode it, and its JSON.

    Raises: as ``task_append``.
    """
    data = encode_fields(fields)
    return decode_argument(stream, kind, data, max_bytes), data
