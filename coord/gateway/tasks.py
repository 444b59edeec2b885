"""What is posted and asked about tasks."""

from __future__ import annotations

from falcon.asgi import Request, Response

from coord.gateway.backend import Backend
from coord.gateway.body import give
from coord.gateway.exchange import RequestBody
from coord.gateway.idempotency import conflict_is_reuse, task_id_of
from coord.gateway.requests import SubmitTask
from coord.gateway.schemas import Submitted, TaskFound


class SubmitResource:
    """``/tasks/submit``."""

    def __init__(self, desk: Backend, exchange: RequestBody) -> None:
        self._desk = desk
        self._exchange = exchange

    # POST {"task_data": {"task_type": "ocr", "required_capabilities": ["ocr"], "page": 7}, "priority": "high"}
    # 200 {"status": "success", "message": …, "task_id": "0199…", "priority": "high", "submitted_at": …}
    async def on_post(self, req: Request, resp: Response) -> None:
        """Submit a task."""
        asked, key_id = await self._exchange.read(req, SubmitTask), task_id_of(req)
        spec = asked.spec(key_id)
        with conflict_is_reuse(spec.task_id, key_id):
            at, answered = await self._desk.submit(spec, self._exchange.wait_s(req))
        body = Submitted.of(spec, at, paid=asked.payment is not None)
        self._exchange.give_written(req, resp, body, answered=answered, path=f"/tasks/{spec.task_id}")


class TaskResource:
    """``/tasks/{id}`` and ``/tasks/{id}/status``."""

    def __init__(self, desk: Backend) -> None:
        self._desk = desk

    # 200 {"status": "success", "task": {"task_id": "0199…", "state": "completed", "result": …, …}, "timestamp": …}
    async def on_get(self, _req: Request, resp: Response, task_id: str) -> None:
        """A task's record: everything, attempts, placement, result."""
        give(resp, TaskFound.of(await self._desk.task(task_id)))
