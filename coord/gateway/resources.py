"""Resources: register an agent, send its heartbeat, get it; submit a task, get it, explain it; list the pools."""

from __future__ import annotations

from datetime import datetime

from falcon.asgi import Request, Response

from coord import codec
from coord.client.submission import TaskSpec
from coord.gateway.backend import Backend
from coord.gateway.body import RequestReader, bearer_token, decode, respond, respond_to_write
from coord.gateway.errors import Problem, RequestError
from coord.gateway.idempotency import conflict_is_reuse, task_id_of
from coord.gateway.schemas import (
    AgentFound,
    HeartbeatBody,
    HeartbeatReceived,
    PoolsFound,
    RegisterAgent,
    Registered,
    SubmitTask,
    Submitted,
    TaskData,
    TaskExplained,
    TaskFound,
)
from coord.models.ids import new_id
from coord.models.tasks import Priority, Requirements, check_moment
from coord.models.tracing import is_traceparent
from coord.values import why_undecodable


class RegisterResource:
    """``/agents/register``."""

    def __init__(self, backend: Backend, reader: RequestReader) -> None:
        self._backend = backend
        self._reader = reader

    # POST {"agent_id": "a1", "agent_type": "worker", "capabilities": ["ocr"], "tags": ["fast"]}
    # 200 {"status": "success", "message": …, "agent_id": "a1", "registered_at": "2026-01-01T00:00:00.000+00:00"}
    async def on_post(self, req: Request, resp: Response) -> None:
        """Register an agent; an id that is registered already is updated."""
        body = await self._reader.read(req, RegisterAgent)
        at, answered = await self._backend.register(body.fact(), self._reader.wait_s(req), bearer_token(req))
        registered = Registered(agent_id=body.agent_id, registered_at=at)
        respond_to_write(req, resp, registered, answered=answered, path=f"/agents/{body.agent_id}")


class AgentResource:
    """``/agents/{id}``."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    # 200 {"status": "success", "agent": {"agent_id": "a1", "status": "active", …}, "timestamp": …}
    async def on_get(self, _req: Request, resp: Response, agent_id: str) -> None:
        """Return an agent's record."""
        respond(resp, AgentFound.of(await self._backend.agent(agent_id)))


class HeartbeatResource:
    """``/agents/{id}/heartbeat``."""

    def __init__(self, backend: Backend, reader: RequestReader) -> None:
        self._backend = backend
        self._reader = reader

    # POST without a body, or {"status": "busy", "load_metrics": {"cpu": 0.4}}
    # 200 {"status": "success", "message": …, "agent_id": "a1", "heartbeat_at": "2026-01-01T00:00:00.000+00:00"}
    async def on_post(self, req: Request, resp: Response, agent_id: str) -> None:
        """Record a heartbeat."""
        body, wait_s = await self._reader.read(req, HeartbeatBody), self._reader.wait_s(req)
        at, answered = await self._backend.heartbeat(
            agent_id, body.status, body.load_metrics, wait_s, bearer_token(req)
        )
        received = HeartbeatReceived(agent_id=agent_id, heartbeat_at=at)
        respond_to_write(req, resp, received, answered=answered, path=f"/agents/{agent_id}")


#: The type of a task whose ``task_data`` has none.
TASK_TYPE = "task"
#: Maximum number of pools in a response: the default, and the limit of the limit.
POOLS, MOST_POOLS = 100, 1_000


class SubmitResource:
    """``/tasks/submit``."""

    def __init__(self, backend: Backend, reader: RequestReader) -> None:
        self._backend = backend
        self._reader = reader

    # POST {"task_data": {"task_type": "ocr", "required_capabilities": ["ocr"], "page": 7}, "priority": "high"}
    # 200 {"status": "success", "message": …, "task_id": "0199…", "priority": "high", "submitted_at": …}
    async def on_post(self, req: Request, resp: Response) -> None:
        """Submit a task."""
        body, key_id = await self._reader.read(req, SubmitTask), task_id_of(req)
        spec = task_spec(body, key_id, req.get_header("traceparent"))
        with conflict_is_reuse(spec.task_id, key_id):
            at, answered = await self._backend.submit(spec, self._reader.wait_s(req))
        submitted = Submitted.of(spec, at, paid=body.payment is not None)
        respond_to_write(req, resp, submitted, answered=answered, path=f"/tasks/{spec.task_id}")


class TaskResource:
    """``/tasks/{id}`` and ``/tasks/{id}/status``."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    # 200 {"status": "success", "task": {"task_id": "0199…", "state": "completed", "result": …, …}, "timestamp": …}
    async def on_get(self, _req: Request, resp: Response, task_id: str) -> None:
        """Return a task's record: everything, attempts, placement, result."""
        respond(resp, TaskFound.of(await self._backend.task(task_id)))


class ExplainResource:
    """``/tasks/{id}/explain``."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    # 200 {"status": "success", "task_id": "0199…", "state": "queued", "summary": "the task waits: …",
    #      "waiting": {"reason": "no_capability", "rejected": {"no_capability": 3}, …}, "placed": null, "timestamp": …}
    async def on_get(self, _req: Request, resp: Response, task_id: str) -> None:
        """Return why the task waits, or why it went to its agent."""
        respond(resp, TaskExplained.of(await self._backend.explain(task_id)))


class PoolsResource:
    """``/pools``."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    # GET ?limit=20
    # 200 {"status": "success", "pools": [{"pool": "fba8…", "reason": "no_capability", "length": 3, …}], "count": 1, …}
    async def on_get(self, req: Request, resp: Response) -> None:
        """Return the pools in which tasks wait, with the reason; first those that no agent may serve."""
        limit = req.get_param_as_int("limit", min_value=1, max_value=MOST_POOLS, default=POOLS)
        respond(resp, PoolsFound.of(await self._backend.backlog(limit)))


def task_spec(body: SubmitTask, key_id: str | None, traceparent: str | None = None) -> TaskSpec:
    """Return the task to submit.

    Args:
        body: the request.
        key_id: the task id derived from the request's Idempotency-Key; None without one.
        traceparent: the header of the request; one that is malformed is ignored, as the W3C Trace Context requires.

    Raises:
        RequestError: the priority is unknown, or a time or ``task_data`` is invalid.
    """
    for field in ("deadline", "run_at"):
        _check_moment(getattr(body, field), field)
    raw = bytes(body.task_data)
    data = decode(raw, TaskData, at=("body", "task_data"))
    try:
        # The payload is passed on as it is, so its readers must be able to decode it.
        codec.decode_json(raw)
    except codec.BAD_JSON as error:
        why = why_undecodable(raw, "task_data", error)
        problem = Problem(["body", "task_data"], why.removeprefix("task_data: "), "value_error")
        raise RequestError("payload_invalid", why, [problem]) from None
    return TaskSpec(
        task_type=data.task_type or TASK_TYPE,
        payload=body.task_data,
        task_id=data.task_id or key_id or new_id(),
        priority=_priority(body.priority),
        capabilities=data.required_capabilities,
        requirements=body.requirements or Requirements(),  # without any, every agent may get the task
        timeout=body.timeout,
        deadline=body.deadline,
        delay=body.delay,
        run_at=body.run_at,
        retry=body.retry,
        location=body.location,
        affinity_key=body.affinity_key,
        expected_ms=body.expected_ms,
        traceparent=traceparent if is_traceparent(traceparent) else None,
        notify=False,
    )


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
