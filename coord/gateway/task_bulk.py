"""Handler of operations on all tasks that match a query."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct
from msgspec.structs import replace

from coord.client.bulk import BulkOperation
from coord.client.handle import MAX_REASON
from coord.gateway.errors import Problem, RequestError
from coord.gateway.routes import Answer, Call
from coord.gateway.schemas import now
from coord.models.operations import BulkAction, BulkResult
from coord.models.query import MAX_LENGTH
from coord.models.tasks import Priority

#: Tasks that one request changes or counts: the default, and the limit of the limit.
TASKS, MOST_TASKS = 1_000, 10_000


class ChangeTasks(Struct, frozen=True, kw_only=True):
    """POST /tasks/bulk."""

    action: BulkAction
    q: Annotated[str, Meta(min_length=1, max_length=MAX_LENGTH)]  #: all tasks that match it, in a state for the action
    dry_run: bool = False  #: only count them
    priority: Priority | None = None  #: the new one; with prioritize
    reason: Annotated[str, Meta(max_length=MAX_REASON)] = ""  #: of a cancel
    limit: Annotated[int, Meta(ge=1, le=MOST_TASKS)] = TASKS
    cursor: str | None = None  #: ``next`` of the response before
    operation: str | None = None  #: of the response before


class TasksChanged(Struct, frozen=True, kw_only=True):
    """POST /tasks/bulk."""

    status: str = "success"
    message: str = "The tasks were changed"
    action: BulkAction
    query: str  #: with the states that the action needs
    matched: int
    done: int
    stopping: int  #: of those, tasks that still run: a cancel has asked their agents to stop
    skipped: dict[str, int]  #: code -> tasks that were not changed: they had changed meanwhile
    unanswered: int  #: tasks of a request that waits for a distributor
    next: str | None  #: cursor that continues; null: the operation is complete
    operation: str | None  #: its id; null: tasks were only counted
    timestamp: str

    @classmethod
    def of(cls, found: BulkResult) -> TasksChanged:
        """Build it from a result."""
        return cls(
            message="The tasks were changed" if found.operation else "The tasks were counted",
            action=found.action,
            query=found.query,
            matched=found.matched,
            done=found.done,
            stopping=found.stopping,
            skipped=found.skipped,
            unanswered=found.unanswered,
            next=found.next,
            operation=found.operation or None,
            timestamp=now(),
        )


async def change(call: Call[ChangeTasks, None]) -> Struct | Answer:
    """Cancel, retry or prioritize all tasks that match a query; 202 if some wait for a distributor, or it broke off."""
    body = call.body
    if (body.action == "prioritize") != (body.priority is not None):
        message = "priority is needed with the action prioritize, and with no other"
        raise RequestError("body_invalid", message, [Problem(["body", "priority"], message, "value_error")])
    operation = BulkOperation(
        call.backend.client.connection,
        body.action,
        body.q,
        priority=body.priority,
        reason=body.reason,
        operation=body.operation,
    )
    found, interruption = await call.backend.bulk(
        operation,
        dry_run=body.dry_run,
        limit=body.limit,
        cursor=body.cursor,
        wait_s=call.gateway.settings.gateway_wait_s,
    )
    changed = TasksChanged.of(found)
    if interruption:
        message = f"The operation was interrupted: {interruption}; repeat the request with cursor and operation"
    elif found.unanswered:
        message = "Some tasks wait for a distributor"
    else:
        return changed
    return Answer(replace(changed, status="accepted", message=message), 202, is_final=False)
