"""``coord tasks``: submit, show, explain, list, watch, cancel, retry and prioritize tasks."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Annotated

import typer

from coord.cli.commands import AsJson, Namespace, RedisUrl, group, register
from coord.cli.exit_codes import ExitCode
from coord.cli.explain import explain
from coord.cli.output import (
    MAX_SHOWN,
    TASK_STATE,
    age,
    duration,
    hint,
    hint_next_page,
    moment,
    write_fields,
    write_items,
    write_json,
    write_line,
    write_table,
)
from coord.cli.parse import Duration
from coord.cli.query import QueryWords, query_of, words_of
from coord.cli.results import results
from coord.cli.session import Acted, act_on_each, ask
from coord.cli.submit import outcome_of, submit
from coord.cli.task_bulk import (
    DryRun,
    Operation,
    QueryOption,
    TaskIdsOrQuery,
    Yes,
    change_tasks,
    check_selection,
)
from coord.cli.watch import watch
from coord.errors import ConfigError, ResultTimeout, ServerUnfit, TaskNotFound, TaskRefused
from coord.models.query import Query
from coord.models.tasks import TERMINAL, AttemptRecord, Priority, TaskRecord, TaskState

if TYPE_CHECKING:
    from coord import Client
    from coord.models.explanations import WaitingExplanation
    from coord.queries import TaskPage

TaskId = Annotated[str, typer.Argument(help="Id of the task.", show_default=False)]


def show(task_id: TaskId, *, json: AsJson = False, redis_url: RedisUrl = None, namespace: Namespace = None) -> None:
    """Show a task: state, why it waits, agent, placement decision, attempts, result or error.

    Examples:
        coord tasks show report-7
        coord tasks show report-7 --json | jq .result
    """

    async def work(client: Client) -> tuple[TaskRecord, WaitingExplanation | None]:
        record = await client.task(task_id)
        waiting = None
        if record.state in {TaskState.QUEUED, TaskState.SCHEDULED} and not json:
            with contextlib.suppress(ServerUnfit):  # a user who may read tasks and not agents
                waiting = (await client.explain(task_id)).waiting
        return record, waiting

    record, waiting = ask(work, redis_url=redis_url, namespace=namespace)
    if json:
        write_json(record)
        return
    write_fields(_fields(record, waiting))
    if record.attempts:
        write_line()
        write_table(
            ("attempt", "outcome", "agent", "assigned", "duration", "code", "message"),
            [
                (
                    attempt.attempt,
                    attempt.how,
                    attempt.agent_id,
                    moment(attempt.assigned_at),
                    duration(attempt.ended_at - attempt.assigned_at),
                    attempt.code,
                    attempt.message,
                )
                for attempt in record.attempts
            ],
            right=["attempt"],
        )
        for attempt in record.attempts:
            _write_traceback(attempt)


def _write_traceback(attempt: AttemptRecord) -> None:
    """Write where a Python handler failed; other details are shown with --json only: they may be secret."""
    where = attempt.detail.get("traceback") if isinstance(attempt.detail, dict) else None
    if isinstance(where, str) and where:
        write_line()
        write_line(f"traceback of attempt {attempt.attempt}")
        for line in where[-MAX_SHOWN:].splitlines():
            write_line(line)


def _fields(record: TaskRecord, waiting: WaitingExplanation | None) -> dict[str, object]:
    ended = None if record.finished_at is None else duration(record.finished_at - record.submitted_at)
    return {
        "task": record.task_id,
        "type": record.task_type,
        "state": record.state,
        "reason": waiting and f"{waiting.reason}: {waiting.text}",
        "priority": record.priority,
        "submitted": moment(record.submitted_at),
        "runs at": moment(record.run_at),
        "deadline": moment(record.deadline),
        "agent": record.agent_id,
        "attempt": record.attempt or None,
        "assigned": moment(record.assigned_at),
        "started": moment(record.started_at),
        "cancel requested": moment(record.cancel_requested_at),
        "finished": moment(record.finished_at) + (f" ({ended} after submission)" if ended else ""),
        "pool": record.pool,
        "payload": record.payload,
        "progress": record.progress,
        "placement": record.placement,
        "result": _result(record),
        "error": None if record.error is None else f"{record.error.code}: {record.error.message}",
    }


def _result(record: TaskRecord) -> object:
    if record.dropped:
        return "dropped, like the payload, to free memory on the server"
    return "null" if record.state is TaskState.COMPLETED and record.result is None else record.result


def result(
    task_id: TaskId,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the outcome.")] = False,
    wait_timeout: Annotated[
        float | None,
        typer.Option(
            click_type=Duration(), metavar="TIME", help="With --wait: maximum time to wait; the task is not cancelled."
        ),
    ] = None,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Print the result of a task as JSON, with --json the whole record.

    Exit code 0: completed; 1: it has another outcome or does not exist; 3: it has not ended.

    Examples:
        coord tasks result report-7
        coord tasks result report-7 --wait --wait-timeout 5m | jq .pages
    """
    if wait_timeout is not None and not wait:
        raise ConfigError("--wait-timeout needs --wait")

    async def work(client: Client) -> ExitCode:
        record = await client.task(task_id)
        if record.state is TaskState.REFUSED:
            reason = f": {record.error.message}" if record.error else ""
            raise TaskRefused(f"task '{task_id}' was refused{reason}; submit it again later")
        if record.state not in TERMINAL and not wait:
            raise ResultTimeout(
                f"task '{task_id}' is {record.state} and has no result yet; "
                f"`coord tasks result {task_id} --wait` waits for it"
            )
        return await outcome_of(client, client.handle(task_id), wait_timeout, json=json)

    if code := ask(work, redis_url=redis_url, namespace=namespace):
        raise typer.Exit(code)


def list_(
    query: QueryWords = None,
    *,
    state: Annotated[list[TaskState] | None, typer.Option(help="Only tasks in this state; repeatable.")] = None,
    task_type: Annotated[str | None, typer.Option("--type", metavar="TYPE", help="Only tasks of this type.")] = None,
    agent: Annotated[str | None, typer.Option(metavar="ID", help="Only tasks of this agent.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Maximum number of tasks.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Continue from this cursor.")] = None,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """List tasks: first those that agents hold, then waiting, failed and other ended tasks.

    A query has terms such as state:failed, all of which have to hold: id, type, state, priority, pool, agent, reason,
    error, age, since, ended, attempts, capability, service, tag, label. `state:failed,expired` takes any of several,
    `-state:failed` excludes, `id:report-*` is a beginning, and a word alone is the beginning of an id, or a type. The
    options are terms as well.

    Waiting tasks are listed by pool, the next to be placed first; ended tasks are listed newest first.

    Examples:
        coord tasks list
        coord tasks list 'type:ocr state:failed age:>1h'
        coord tasks list reason:no_capability,no_agent_type
        coord tasks list --state failed --type ocr
        coord tasks list agent:ocr-1 --json | jq -r '.items[].task_id'
    """
    wanted = query_of(query, states=state or (), task_type=task_type, agent=agent)

    async def work(client: Client) -> tuple[TaskPage, int | None, int]:
        page = await client.list_tasks(wanted, limit=limit, cursor=cursor)
        if page.next is None and cursor is None:
            total: int | None = len(page.tasks)
        else:
            is_simple = all(term.field == "state" for term in wanted.terms)
            states = wanted.allowed("state", TaskState)
            total = await client.count_tasks([TaskState(one) for one in states]) if is_simple and states else None
        return page, total, await client.server_time()

    page, total, now = ask(work, redis_url=redis_url, namespace=namespace)
    if json:
        write_items(page.tasks, next=page.next, total=total)
        return
    if not page.tasks and page.next is None:
        what = f"task matches `{wanted}`" if wanted.terms else "task exists"
        hint(f"no {'more ' if cursor is not None else ''}{what}")
        return
    write_table(
        ("task", "type", "state", "priority", "agent", "attempt", "age", "duration", "error"),
        [
            (
                record.task_id,
                record.task_type,
                record.state,
                record.priority,
                record.agent_id,
                record.attempt,
                age(record.submitted_at, now),
                None if record.finished_at is None else duration(record.finished_at - record.submitted_at),
                None if record.error is None else f"{record.error.code}: {record.error.message}",
            )
            for record in page.tasks
        ],
        right=["attempt", "age", "duration"],
        styles={"state": TASK_STATE},
    )
    if total:
        hint(f"{len(page.tasks):,} of {total:,} task{'' if total == 1 else 's'}")
    if page.next is not None:
        filters = {"": words_of(wanted), "--limit": limit, "--namespace": namespace}
        hint_next_page("coord tasks list", filters, page.next)


def cancel(
    task_ids: TaskIdsOrQuery = None,
    *,
    query: QueryOption = None,
    reason: Annotated[str, typer.Option(help="Reason for the agent and the task's record.")] = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    operation: Operation = None,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Cancel tasks: a waiting task at once; a running task is asked to stop, and the cancel is forced if it does not.

    With --query, all tasks that match and have not ended: 200 in one request, after a confirmation. An interrupted
    command is repeated, and does the rest; tasks that were asked to stop are not asked again.

    Exit code 0: cancelled, or cancel requested; 1: the task has another outcome or does not exist; 3: no distributor
    answered in time, the request waits for one.

    Examples:
        coord tasks cancel report-7 --reason "submitted twice"
        coord tasks cancel --query 'type:ocr state:queued age:>1h' --dry-run
        coord tasks cancel --query reason:no_capability --yes
    """
    check_selection("coord tasks cancel", task_ids, query, dry_run=dry_run, yes=yes, operation=operation)
    if query is not None:
        change_tasks(
            "cancel",
            query,
            reason=reason,
            dry_run=dry_run,
            yes=yes,
            operation=operation,
            json=json,
            redis_url=redis_url,
            namespace=namespace,
        )
        return

    async def one(client: Client, task_id: str) -> Acted:
        before = await _state(client, task_id)
        try:
            answer: str = await client.cancel(task_id, reason)
        except ResultTimeout:
            answer = "sent"
        state = await _state(client, task_id)
        line = {
            "accepted": f"{task_id} {_outcome(state, was_cancelled=before is TaskState.CANCELLED)}",
            "pending": f"{task_id} does not exist yet; it will be cancelled when it is submitted",
            "sent": f"no distributor answered; the request to cancel {task_id} waits for one (see coord ps)",
        }[answer]
        code = ExitCode.OPEN if answer == "sent" else ExitCode.OK
        return Acted({"task_id": task_id, "answer": answer, "state": state}, line, code)

    act_on_each(task_ids or [], one, id_field="task_id", json=json, redis_url=redis_url, namespace=namespace)


async def _state(client: Client, task_id: str) -> TaskState | None:
    try:
        return (await client.task(task_id)).state
    except TaskNotFound:
        return None


def _outcome(state: TaskState | None, *, was_cancelled: bool) -> str:
    """Describe the effect of an accepted cancel, by the state in the record."""
    if state is TaskState.CANCELLED:
        return "was already cancelled" if was_cancelled else "is cancelled"
    if state in {TaskState.ASSIGNED, TaskState.RUNNING}:
        return f"is {state}; its agent was asked to stop"
    return "will be cancelled" if state is None else f"is {state}"


def retry(
    task_ids: TaskIdsOrQuery = None,
    *,
    query: QueryOption = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    operation: Operation = None,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Retry (replay) failed tasks: same id, new attempts, history kept.

    With --query, all failed tasks that match: 200 in one request, after a confirmation. An interrupted command is
    continued with --operation, so that tasks which have failed again since are not retried twice.

    Examples:
        coord tasks retry report-7
        coord tasks retry --query 'error:timeout ended:<1h' --dry-run
        coord tasks retry --query type:ocr --yes
    """
    check_selection("coord tasks retry", task_ids, query, dry_run=dry_run, yes=yes, operation=operation)
    if query is not None:
        change_tasks(
            "retry",
            query,
            dry_run=dry_run,
            yes=yes,
            operation=operation,
            json=json,
            redis_url=redis_url,
            namespace=namespace,
        )
        return

    async def one(client: Client, task_id: str) -> Acted:
        record = await (await client.admin.retry(task_id)).record()
        return Acted(record, f"{task_id} is {record.state} again; follow it with `coord tasks watch {task_id}`")

    act_on_each(task_ids or [], one, id_field="task_id", json=json, redis_url=redis_url, namespace=namespace)


def prioritize(
    priority: Annotated[Priority, typer.Argument(help="The new priority", show_default=False)],
    task_ids: TaskIdsOrQuery = None,
    *,
    query: QueryOption = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    operation: Operation = None,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Move waiting tasks to another priority; each waits as if it had been submitted with it.

    With --query, all waiting tasks that match and have another priority: 200 in one request, after a confirmation.

    Exit code 0: moved, or it has that priority already; 1: the task has ended, does not wait or does not exist.

    Examples:
        coord tasks prioritize urgent report-7
        coord tasks prioritize low --query 'type:ocr age:<10m' --yes
    """
    check_selection("coord tasks prioritize", task_ids, query, dry_run=dry_run, yes=yes, operation=operation)
    change_tasks(
        "prioritize",
        Query().with_term("id", task_ids or ()) if query is None else query,
        priority=priority,
        dry_run=dry_run,
        yes=yes or query is None,
        task_ids=task_ids or (),
        operation=operation,
        json=json,
        redis_url=redis_url,
        namespace=namespace,
    )


tasks = group(
    "tasks",
    "Submit, show, explain, list, watch, cancel, retry and prioritize tasks.",
    synonyms={"replay": "retry", "requeue": "retry"},
)
register(tasks, submit)
register(tasks, show)
register(tasks, explain)
register(tasks, result)
register(tasks, list_, "list")
register(tasks, results)
register(tasks, watch)
register(tasks, cancel)
register(tasks, retry)
register(tasks, prioritize)
