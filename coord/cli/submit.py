"""``coord tasks submit``: one task from the command line, or as many as a file has lines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coord.cli import parse
from coord.cli.commands import AsJson, Namespace, RedisUrl
from coord.cli.exit_codes import ExitCode
from coord.cli.output import hint, interruptible, write_json, write_line
from coord.cli.session import ask
from coord.errors import ConfigError, CoordError, ResultTimeout
from coord.models.tasks import Priority

if TYPE_CHECKING:
    from coord import Client, TaskHandle

#: Seconds that a distributor may take to say that it has a task.
ACCEPT_S = 5.0


def submit(
    task_type: Annotated[str | None, typer.Argument(metavar="TYPE", help="What is to be done.")] = None,
    payload: Annotated[str | None, typer.Argument(metavar="PAYLOAD", help="JSON; - for standard input.")] = None,
    *,
    file: Annotated[
        Path | None, typer.Option(help="Submit a task for each line of this file (JSON objects); - for standard input.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="With --file --wait: write each outcome to this file, one JSON object a line.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the outcome, and print the result.")] = False,
    wait_timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0, help="With --wait: no longer than this; the task goes on.")
    ] = None,
    task_id: Annotated[
        str | None,
        typer.Option("--id", help="The task's id; the same again submits nothing.", show_default="a new one"),
    ] = None,
    priority: Annotated[Priority | None, typer.Option(help="How soon it wants to run.", show_default="normal")] = None,
    capability: Annotated[
        list[str] | None, typer.Option(help="An agent must have this; repeat for more.", show_default="TYPE")
    ] = None,
    agent_type: Annotated[str | None, typer.Option(help="An agent must be of this type.")] = None,
    service: Annotated[list[str] | None, typer.Option(help="An agent must offer this.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="An agent must have this tag.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="… this label.")] = None,
    agent: Annotated[str | None, typer.Option(metavar="ID", help="This agent and no other.")] = None,
    min_health: Annotated[float | None, typer.Option(min=0, max=1, help="… at least this health.")] = None,
    strategy: Annotated[str | None, typer.Option(help="Choose the best agent this way.")] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="Bounds one attempt.")] = None,
    delay: Annotated[float | None, typer.Option(metavar="SECONDS", help="Run no sooner than so long from now.")] = None,
    run_at: Annotated[str | None, typer.Option(metavar="MOMENT", help="Run no sooner than then.")] = None,
    deadline: Annotated[
        str | None, typer.Option(metavar="MOMENT", help="Expires then, whatever its state: RFC 3339, or 5m, 2h, 1d.")
    ] = None,
    max_attempts: Annotated[int | None, typer.Option(min=1, help="Tries before it counts as failed.")] = None,
    backoff: Annotated[float | None, typer.Option(metavar="SECONDS", help="Rest before the second try.")] = None,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Submit a task, or one for each line of a file; prints its id, with --wait its result.

    A line of --file is an object: task_type, payload, and if need be task_id, priority, capabilities, requirements,
    timeout, deadline, delay, run_at, retry, strategy. What the command line says holds for lines that do not say it.
    All lines are checked before any is submitted.

    Exit code 0: submitted, with --wait completed; 1: refused or not completed; 3: the time to wait was over.

    Examples:
        coord tasks submit ocr '{"page": 1}'
        coord tasks submit report --id report-7 --priority high --timeout 60 --wait < /dev/null
        jq -c . order.json | coord tasks submit order - --tag eu --max-attempts 5
        coord tasks submit --file tasks.jsonl --wait --results results.jsonl
    """
    common: dict[str, Any] = {
        "priority": priority,
        "capabilities": capability,
        "requirements": _said(
            agent_type=agent_type,
            services=service,
            tags=tag,
            labels=parse.pairs(label, "--label") if label else None,
            agent_id=agent,
            min_health_score=min_health,
        ),
        "strategy": strategy,
        "timeout": timeout,
        "delay": delay,
        "run_at": parse.moment(run_at, "--run-at", ahead=True) if run_at else None,
        "deadline": parse.moment(deadline, "--deadline", ahead=True) if deadline else None,
        "retry": _said(max_attempts=max_attempts, backoff=backoff),
    }
    common = _said(**common) or {}
    if file is not None:
        from coord.cli import bulk

        _refuse(payload is not None, "PAYLOAD is for one task; with --file each line has its own")
        _refuse(task_id is not None, "--id is for one task; with --file each line may name its task_id")
        _refuse(results is not None and not wait, "--results is written as tasks end: give --wait too")
        plan = bulk.SubmitPlan(
            file, common, task_type, wait=wait, wait_timeout=wait_timeout, results=results, json=json
        )
        code = ask(lambda client: bulk.run(client, plan), redis_url=redis_url, namespace=namespace)
    else:
        _refuse(task_type is None, "give a TYPE, as in `coord tasks submit echo '{\"n\": 1}'`, or --file")
        _refuse(results is not None, "--results is for --file; the result of one task is printed")
        one = common | {"task_type": task_type, "payload": parse.payload(payload), "task_id": task_id}
        one.setdefault("capabilities", [task_type])
        code = ask(
            lambda client: _one(client, one, wait=wait, wait_timeout=wait_timeout, json=json),
            redis_url=redis_url,
            namespace=namespace,
        )
    if code:
        raise typer.Exit(code)


async def _one(client: Client, spec: dict[str, Any], *, wait: bool, wait_timeout: float | None, json: bool) -> ExitCode:
    (handle,) = await client.submit_many([spec])
    if wait:
        with interruptible(_goes_on(handle.task_id)):
            return await _outcome(handle, wait_timeout, json=json)
    late = False
    try:
        with interruptible(_goes_on(handle.task_id)):
            await handle.accepted(timeout=ACCEPT_S)
    except ResultTimeout:
        late = True
        hint(f"no distributor took it within {ACCEPT_S:g} s; it waits for one: `coord ps` shows who is there")
    if json:
        write_json({"task_id": handle.task_id, "entry_id": handle.entry_id, "accepted": not late})
    else:
        write_line(handle.task_id)
    return ExitCode.OPEN if late else ExitCode.OK


async def _outcome(handle: TaskHandle, wait_timeout: float | None, *, json: bool) -> ExitCode:
    """Print the result, or with ``json`` the record, however the task ended."""
    try:
        result = await handle.result(wait_timeout)
    except ResultTimeout as error:
        raise ResultTimeout(f"{error}: `coord tasks watch {handle.task_id}` follows it") from None
    except CoordError:
        if not json:
            raise
        write_json(await handle.record())
        return ExitCode.NO
    write_json(await handle.record() if json else result)
    return ExitCode.OK


def _goes_on(task_id: str) -> str:
    return (
        f"task {task_id} goes on; `coord tasks watch {task_id}` follows it, `coord tasks cancel {task_id}` cancels it"
    )


def _said(**options: Any) -> dict[str, Any] | None:
    """The options that were given; None for none."""
    return {name: value for name, value in options.items() if value is not None and value != []} or None


def _refuse(wrong: bool, sentence: str) -> None:
    if wrong:
        raise ConfigError(sentence)
