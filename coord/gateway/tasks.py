"""Handlers of tasks: submit one, return it, explain where it is; list the pools in which tasks wait."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from coord import codec
from coord.gateway.body import decode
from coord.gateway.errors import Problem, RequestError
from coord.gateway.idempotency import IDEMPOTENCY_KEY, conflict_is_reuse, task_id_of
from coord.gateway.routes import Answer, Call, written
from coord.gateway.schemas import PoolsFound, SubmitTask, Submitted, TaskData, TaskExplained, TaskFound
from coord.models.ids import new_id
from coord.models.tasks import Priority, Requirements, Retry, TaskSubmitted, check_moment
from coord.models.tracing import is_traceparent
from coord.values import why_undecodable

#: The type of a task whose ``task_data`` has none.
TASK_TYPE = "task"
#: Maximum number of pools in a response: the default, and the limit of the limit.
POOLS, MOST_POOLS = 100, 1_000


class PoolsQuery(Struct, frozen=True):
    """The query of GET /pools."""

    limit: Annotated[int, Meta(ge=1, le=MOST_POOLS)] = POOLS


async def submit(call: Call[SubmitTask, None]) -> Struct | Answer:
    """Submit a task."""
    body, key_id = call.body, task_id_of(call.header(IDEMPOTENCY_KEY))
    fact, priority = task_fact(body, key_id, call.header(b"traceparent"))
    with conflict_is_reuse(fact.task_id, key_id):
        at, answered = await call.backend.submit(fact, priority, call.wait_s)
    submitted = Submitted.of(fact.task_id, priority, at, paid=body.payment is not None)
    return written(call, submitted, answered=answered, path=f"/tasks/{fact.task_id}")


async def get(call: Call[None, None]) -> TaskFound:
    """Return a task's record: everything, attempts, placement, result."""
    return TaskFound.of(await call.backend.task(call.params["task_id"]))


async def explain(call: Call[None, None]) -> TaskExplained:
    """Return why the task waits, or why it went to its agent."""
    return TaskExplained.of(await call.backend.explain(call.params["task_id"]))


async def pools(call: Call[None, PoolsQuery]) -> PoolsFound:
    """Return the pools in which tasks wait, with the reason; first those that no agent may serve."""
    return PoolsFound.of(await call.backend.backlog(call.query.limit))


def task_fact(body: SubmitTask, key_id: str | None, traceparent: str | None = None) -> tuple[TaskSubmitted, Priority]:
    """Return the task to submit, and its priority.

    Args:
        body: the request.
        key_id: the task id derived from the request's Idempotency-Key; None without one.
        traceparent: the header of the request; one that is malformed is ignored, as the W3C Trace Context requires.

    Raises:
        RequestError: the priority is unknown, or a time or ``task_data`` is invalid.
    """
    raw = bytes(body.task_data)
    data = decode(raw, TaskData, at=("body", "task_data"))
    try:
        # The payload is passed on as it is, so its readers must be able to decode it.
        codec.decode_json(raw)
    except codec.BAD_JSON as error:
        why = why_undecodable(raw, "task_data", error)
        problem = Problem(["body", "task_data"], why.removeprefix("task_data: "), "value_error")
        raise RequestError("payload_invalid", why, [problem]) from None
    for field in ("deadline", "run_at"):
        _check_moment(getattr(body, field), field)
    try:
        fact = TaskSubmitted(
            task_id=data.task_id or key_id or new_id(),
            task_type=data.task_type or TASK_TYPE,
            payload=body.task_data,
            requirements=_requirements(body.requirements, data.required_capabilities),
            timeout=body.timeout,
            deadline=body.deadline,
            delay=body.delay,
            run_at=body.run_at,
            retry=body.retry or Retry(),
            location=body.location,
            affinity_key=body.affinity_key,
            expected_ms=body.expected_ms,
            traceparent=traceparent if is_traceparent(traceparent) else None,
        )
    except ValueError as error:  # of the fields together
        raise RequestError("fact_invalid", str(error), [Problem(["body"], str(error), "value_error")]) from None
    return fact, _priority(body.priority)


def _requirements(required: Requirements | None, capabilities: tuple[str, ...] | None) -> Requirements:
    """Return the requirements, with the capabilities in the task's data; without any, every agent may get the task."""
    if required is None:
        return Requirements(capabilities=tuple(capabilities)) if capabilities else Requirements()
    if not capabilities:
        return required
    more = (name for name in capabilities if name not in required.capabilities)
    return replace(required, capabilities=(*required.capabilities, *more))


def _check_moment(moment: datetime | None, field: str) -> None:
    if moment is not None:
        try:
            check_moment(moment, field)
        except ValueError as error:
            problem = Problem(["body", field], str(error), "value_error")
            raise RequestError("body_invalid", str(error), [problem]) from None


def _priority(name: str | None) -> Priority:
    try:
        return Priority(name.lower()) if name is not None else Priority.NORMAL
    except ValueError:
        raise RequestError("invalid_priority", f"Invalid priority: {name[:60] if name else name}") from None
