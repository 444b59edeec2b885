"""What callers send: one Struct per body, with the same limits as the facts that they become."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from coord import codec
from coord.client.submission import TaskSpec
from coord.gateway.body import decode
from coord.gateway.errors import Problem, RequestError
from coord.models.agents import AgentStatus, AgentType, Location
from coord.models.facts import AgentRegistered, Metrics, Name, Names
from coord.models.ids import Id, new_id
from coord.models.tasks import Moment, Priority, Requirements, Retry, Seconds, Text, check_moment
from coord.values import why_undecodable

#: The type of a task that names none.
TASK_TYPE = "task"

Label = Annotated[str, Meta(max_length=256)]
Capacity = Annotated[int, Meta(ge=0, le=100_000)]
Weight = Annotated[float, Meta(ge=0, le=1_000_000)]
Interval = Annotated[float, Meta(ge=0.05, le=86_400)]
Delay = Annotated[float, Meta(ge=0, le=31_536_000)]


class RegisterAgent(Struct, frozen=True):
    """POST /agents/register; unknown keys are ignored."""

    agent_id: Id
    agent_type: AgentType
    capabilities: Names = ()
    services: Names = ()
    endpoints: dict[Text, str] = {}
    metadata: dict[str, Any] = {}
    tags: Names = ()
    labels: Annotated[dict[Text, Label], Meta(max_length=62)] = {}  #: the chain's and the island's go there too
    version: Name = ""
    location: Location | None = None
    capacity: Capacity | None = None  #: tasks at a time
    weight: Weight = 1.0
    heartbeat_interval: Interval | None = None  #: seconds
    chain_id: Label | int | None = None
    island_id: Label | int | None = None

    def fact(self) -> AgentRegistered:
        """What is told to the registry. An agent over HTTP has no incarnation: each registration is a refresh."""
        places = {"chain_id": self.chain_id, "island_id": self.island_id}
        labels = self.labels | {name: str(value) for name, value in places.items() if value is not None}
        same = {name: getattr(self, name) for name in self.__struct_fields__ if name not in (*places, "labels")}
        return AgentRegistered(**same, labels=labels)


class HeartbeatBody(Struct, frozen=True):
    """POST /agents/{id}/heartbeat; the body may be left out."""

    status: AgentStatus | None = None
    load_metrics: Metrics = {}
    running: Any = None  #: taken and not looked at: an agent without incarnation is not asked for its leases


class TaskData(Struct, frozen=True):
    """What of ``task_data`` counts; the whole of it is the task's payload."""

    task_id: Id | None = None
    task_type: Text | None = None
    required_capabilities: Names | None = None


class SubmitTask(Struct, frozen=True):
    """POST /tasks/submit; unknown keys are ignored."""

    task_data: msgspec.Raw
    priority: str | None = None
    requirements: Requirements | None = None
    timeout: Seconds | None = None  #: seconds, bounds one attempt
    deadline: Moment | None = None
    delay: Delay | None = None  #: seconds
    run_at: Moment | None = None
    retry: Retry | None = None
    chain_id: Any = None  #: taken and not looked at
    payment: Any = None  #: the same

    def spec(self, key_id: str | None) -> TaskSpec:
        """The task to submit; ``key_id`` is the task id that the request's Idempotency-Key stands for, if it has one.

        Raises:
            Fault: the priority is none, or ``task_data`` does not fit.
        """
        for field in ("deadline", "run_at"):
            _check_moment(getattr(self, field), field)
        raw = bytes(self.task_data)
        data = decode(raw, TaskData, at=("body", "task_data"))
        _check_whole(raw)
        return TaskSpec(
            task_type=data.task_type or TASK_TYPE,
            payload=self.task_data,
            task_id=data.task_id or key_id or new_id(),
            priority=_priority(self.priority),
            capabilities=data.required_capabilities,
            requirements=self.requirements or Requirements(),  # none said, none required: any agent may have it
            timeout=self.timeout,
            deadline=self.deadline,
            delay=self.delay,
            run_at=self.run_at,
            retry=self.retry,
            notify=False,
        )


def _priority(said: str | None) -> Priority:
    try:
        return Priority(said.lower()) if said is not None else Priority.NORMAL
    except ValueError:
        raise RequestError("invalid_priority", f"Invalid priority: {said[:60] if said else said}") from None


def _check_moment(moment: datetime | None, field: str) -> None:
    if moment is not None:
        try:
            check_moment(moment, field)
        except ValueError as error:
            raise RequestError(
                "body_invalid", str(error), [Problem(["body", field], str(error), "value_error")]
            ) from None


def _check_whole(raw: bytes) -> None:
    """What is passed on as it is must be what its reader can decode, and what can be shown again."""
    try:
        codec.decode_json(raw)
    except codec.BAD_JSON as error:
        why = why_undecodable(raw, "task_data", error)
        problem = Problem(["body", "task_data"], why.removeprefix("task_data: "), "value_error")
        raise RequestError("payload_invalid", why, [problem]) from None
