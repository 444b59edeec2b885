"""``coord tasks``: submit, look at, follow, cancel and try again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from coord.cli.commands import AsJson, Namespace, RedisUrl, group, register
from coord.cli.exit_codes import ExitCode
from coord.cli.output import duration, hint, moment, write_fields, write_json, write_line, write_table
from coord.cli.session import ask
from coord.cli.submit import submit
from coord.cli.watch import watch
from coord.errors import ResultTimeout, TaskNotFound
from coord.models.tasks import TaskRecord, TaskState

if TYPE_CHECKING:
    from coord import Client

TaskId = Annotated[str, typer.Argument(help="The task.", show_default=False)]


def show(task_id: TaskId, *, json: AsJson = False, redis_url: RedisUrl = None, namespace: Namespace = None) -> None:
    """Show a task: its state, where it ran and why there, every attempt, its result or error.

    Examples:
        coord tasks show report-7
        coord tasks show report-7 --json | jq .result
    """
    record = ask(lambda client: client.task(task_id), redis_url=redis_url, namespace=namespace)
    if json:
        write_json(record)
        return
    write_fields(_fields(record))
    if record.attempts:
        write_line()
        write_table(
            ("attempt", "how it ended", "agent", "assigned", "lasted", "code", "message"),
            [
                (
                    one.attempt,
                    one.how,
                    one.agent_id,
                    moment(one.assigned_at),
                    duration(one.ended_at - one.assigned_at),
                    one.code,
                    one.message,
                )
                for one in record.attempts
            ],
            right=["attempt"],
        )


def _fields(record: TaskRecord) -> dict[str, object]:
    ended = None if record.finished_at is None else duration(record.finished_at - record.submitted_at)
    return {
        "task": record.task_id,
        "type": record.task_type,
        "state": record.state,
        "priority": record.priority,
        "submitted": moment(record.submitted_at),
        "runs at": moment(record.run_at),
        "deadline": moment(record.deadline),
        "agent": record.agent_id,
        "attempt": record.attempt or None,
        "assigned": moment(record.assigned_at),
        "started": moment(record.started_at),
        "cancel asked": moment(record.cancel_requested_at),
        "finished": moment(record.finished_at) + (f" ({ended} after it was submitted)" if ended else ""),
        "pool": record.pool,
        "payload": record.payload,
        "progress": record.progress,
        "placement": record.placement,
        "result": _result(record),
        "error": None if record.error is None else f"{record.error.code}: {record.error.message}",
    }


def _result(record: TaskRecord) -> object:
    if record.dropped:
        return "dropped, as was the payload, to free memory on the server"
    return "null" if record.state is TaskState.COMPLETED and record.result is None else record.result


def list_(
    *,
    state: Annotated[list[TaskState] | None, typer.Option(help="Of this state; may be given more than once.")] = None,
    task_type: Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Of this type.")] = None,
    agent: Annotated[str | None, typer.Option(metavar="ID", help="Held or ended by this agent.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Go on after a list that named this.")] = None,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """List tasks: those that agents hold, those that wait, those that failed, and the others that ended.

    Waiting ones come pool by pool, the next to be placed first; ended ones with the last first.

    Examples:
        coord tasks list
        coord tasks list --state failed --type ocr
        coord tasks list --agent ocr-1 --json | jq -r '.tasks[].task_id'
    """
    page = ask(
        lambda client: client.list_tasks(
            states=state or (), task_type=task_type, agent_id=agent, limit=limit, cursor=cursor
        ),
        redis_url=redis_url,
        namespace=namespace,
    )
    if json:
        write_json(page)
        return
    write_table(
        ("task", "type", "state", "priority", "agent", "attempt", "submitted", "took", "error"),
        [
            (
                one.task_id,
                one.task_type,
                one.state,
                one.priority,
                one.agent_id,
                one.attempt,
                moment(one.submitted_at),
                None if one.finished_at is None else duration(one.finished_at - one.submitted_at),
                None if one.error is None else f"{one.error.code}: {one.error.message}",
            )
            for one in page.tasks
        ],
        right=["attempt"],
    )
    if page.next is not None:
        hint(f"there may be more: coord tasks list --cursor {page.next}")


def cancel(
    task_id: TaskId,
    *,
    reason: Annotated[str, typer.Option(help="Told to its agent, and kept in its record.")] = "",
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Cancel a task: one that waits at once; one that runs is told to stop, and overruled if it does not.

    Exit code 0: it is or will be cancelled; 1: it has another outcome, or there is no such task; 3: no distributor
    answered, and the request waits for one.

    Examples:
        coord tasks cancel report-7 --reason "asked for twice"
    """

    async def work(client: Client) -> tuple[str, TaskState | None, bool]:
        before = await _state(client, task_id)
        try:
            answer: str = await client.cancel(task_id, reason)
        except ResultTimeout:
            answer = "sent"
        return answer, await _state(client, task_id), before is TaskState.CANCELLED

    answer, state, was_so = ask(work, redis_url=redis_url, namespace=namespace)
    if json:
        write_json({"task_id": task_id, "answer": answer})
    else:
        write_line(
            {
                "accepted": f"{task_id} {_outcome(state, was_so=was_so)}",
                "pending": f"{task_id} is not known yet; it will be cancelled if it comes",
                "sent": f"no distributor answered; the request to cancel {task_id} waits for one (coord ps)",
            }[answer]
        )
    if answer == "sent":
        raise typer.Exit(ExitCode.OPEN)


async def _state(client: Client, task_id: str) -> TaskState | None:
    try:
        return (await client.task(task_id)).state
    except TaskNotFound:
        return None


def _outcome(state: TaskState | None, *, was_so: bool) -> str:
    """What an accepted cancel has come to, by the record."""
    if state is TaskState.CANCELLED:
        return "was cancelled already" if was_so else "is cancelled"
    if state in {TaskState.ASSIGNED, TaskState.RUNNING}:
        return f"is {state}; its agent was told to stop"
    return "is to be cancelled" if state is None else f"is {state} by now"


def retry(task_id: TaskId, *, json: AsJson = False, redis_url: RedisUrl = None, namespace: Namespace = None) -> None:
    """Try a failed task again: the same id, fresh attempts, its story kept.

    Examples:
        coord tasks retry report-7
        coord tasks list --state failed --json | jq -r '.tasks[].task_id' | xargs -n1 coord tasks retry
    """

    async def again(client: Client) -> TaskRecord:
        return await (await client.admin.retry(task_id)).record()

    record = ask(again, redis_url=redis_url, namespace=namespace)
    if json:
        write_json(record)
    else:
        write_line(f"{task_id} is {record.state} again; `coord tasks watch {task_id}` follows it")


tasks = group("tasks", "Submit tasks, look at them, follow them, cancel them, try them again.")
register(tasks, submit)
register(tasks, show)
register(tasks, list_, "list")
register(tasks, watch)
register(tasks, cancel)
register(tasks, retry)
