"""``coord tasks submit``: submit one task, or one for each line of a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coord.cli import parse
from coord.cli.agents import warn_of_unknown
from coord.cli.commands import AsJson, Namespace, RedisUrl
from coord.cli.exit_codes import ExitCode
from coord.cli.explain import reasons_shown
from coord.cli.output import hint, interruptible, write_json, write_line
from coord.cli.parse import Duration, StrategyName
from coord.cli.session import ask
from coord.errors import ConfigError, CoordError, FactInvalid, IdInvalid, ResultTimeout
from coord.models.agents import AgentType
from coord.models.strategies import MODIFIERS
from coord.models.tasks import Priority

if TYPE_CHECKING:
    from coord import Client, TaskHandle

#: Seconds to wait until a distributor accepts a task.
ACCEPT_S = 5.0
#: Field of a task -> argument or option that sets it, for errors.
OPTION_OF = {
    "task_type": "TYPE",
    "payload": "PAYLOAD",
    "task_id": "--id",
    "timeout": "--timeout",
    "delay": "--delay",
    "run_at": "--run-at",
    "deadline": "--deadline",
    "strategy": "--strategy",
    "location": "--location",
    "location.lat": "--location lat",
    "location.lon": "--location lon",
    "affinity_key": "--affinity-key",
    "expected_ms": "--expected-ms",
    "traceparent": "--traceparent",
    "modifiers": "--modifier",
    "retry.max_attempts": "--max-attempts",
    "retry.backoff": "--backoff",
    "requirements.capabilities": "--capability",
    "requirements.agent_type": "--agent-type",
    "requirements.services": "--service",
    "requirements.tags": "--tag",
    "requirements.labels": "--label",
    "requirements.agent_id": "--agent",
    "requirements.min_health_score": "--min-health",
}
#: A field at the start of an error, and the place in it, such as ``requirements.tags[0]``.
_FIELD = re.compile(r"([a-z_]+(?:\.[a-z_]+)*)[^ ]*(?= )")
#: Maximum delay: a year.
_MAX_DELAY_S = 31_536_000


def submit(
    task_type: Annotated[str | None, typer.Argument(metavar="TYPE", help="Type of the task.")] = None,
    payload: Annotated[
        str | None, typer.Argument(metavar="PAYLOAD", help="Payload as JSON; - reads it from standard input.")
    ] = None,
    *,
    file: Annotated[
        Path | None,
        typer.Option(help="Submit one task per line of this file (JSON objects); - reads standard input."),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(help="With --file --wait: write each outcome to this file, one JSON object per line."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the outcome and print the result.")] = False,
    wait_timeout: Annotated[
        float | None,
        typer.Option(
            click_type=Duration(),
            metavar="TIME",
            help="With --wait: maximum time to wait; the task is not cancelled. --timeout does not limit the wait.",
        ),
    ] = None,
    task_id: Annotated[
        str | None,
        typer.Option("--id", help="Id of the task; a repeated id submits nothing.", show_default="a new id"),
    ] = None,
    priority: Annotated[Priority | None, typer.Option(help="Priority of the task.", show_default="normal")] = None,
    capability: Annotated[
        list[str] | None,
        typer.Option(help="Capability that the agent must have; repeatable.", show_default="TYPE"),
    ] = None,
    agent_type: Annotated[AgentType | None, typer.Option(help="Type that the agent must have.")] = None,
    service: Annotated[list[str] | None, typer.Option(help="Service that the agent must have; repeatable.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Tag that the agent must have; repeatable.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Label that the agent must have; repeatable.")
    ] = None,
    agent: Annotated[str | None, typer.Option(metavar="ID", help="Run the task on this agent only.")] = None,
    min_health: Annotated[float | None, typer.Option(min=0, max=1, help="Minimum health of the agent, 0 to 1.")] = None,
    strategy: Annotated[
        str | None, typer.Option(click_type=StrategyName(), metavar="NAME", help="Placement strategy for this task.")
    ] = None,
    location: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Where the task is best run: lat, lon, region or zone; repeatable."),
    ] = None,
    affinity_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Tasks with the same key prefer the same agent.")
    ] = None,
    expected_ms: Annotated[
        int | None,
        typer.Option(metavar="MS", help="Milliseconds that the task is expected to take; strategies may use it."),
    ] = None,
    traceparent: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Place in a distributed trace, as in the W3C Trace Context.")
    ] = None,
    modifier: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help=f"Turn a modifier of placement on or off for this task: {', '.join(MODIFIERS)}. Repeatable.",
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            click_type=Duration(above=True),
            metavar="TIME",
            help="Timeout of one attempt: 30s, 5m. It does not limit --wait; --wait-timeout does.",
        ),
    ] = None,
    delay: Annotated[
        float | None,
        typer.Option(click_type=Duration(0, _MAX_DELAY_S), metavar="TIME", help="Delay before the task may run."),
    ] = None,
    run_at: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="Time before which the task does not run: RFC 3339, or 5m, 2h, 1d."),
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="Time at which an unfinished task expires: RFC 3339, or 5m, 2h, 1d."),
    ] = None,
    max_attempts: Annotated[int | None, typer.Option(min=1, help="Number of attempts before the task fails.")] = None,
    backoff: Annotated[
        float | None,
        typer.Option(click_type=Duration(), metavar="TIME", help="Upper limit of the backoff before the first retry."),
    ] = None,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Submit a task, or one for each line of a file; prints the task id, with --wait the result.

    A line of --file is an object with task_type and payload, optionally task_id, priority, capabilities, requirements,
    timeout, deadline, delay, run_at, retry, strategy, modifiers, location, affinity_key, expected_ms, traceparent.
    Options of the command line apply to lines without that field. All lines are checked before any task is submitted.

    Exit code 0: submitted, with --wait completed; 1: refused or not completed; 3: timed out, the task goes on.

    Examples:
        coord tasks submit ocr '{"page": 1}'
        coord tasks submit report --id report-7 --priority high --timeout 60s --wait < /dev/null
        jq -c . order.json | coord tasks submit order - --tag eu --max-attempts 5
        coord tasks submit --file tasks.jsonl --wait --results results.jsonl
    """
    common: dict[str, Any] = {
        "priority": priority,
        "capabilities": capability,
        "requirements": _given(
            agent_type=agent_type,
            services=service,
            tags=tag,
            labels=parse.pairs(label, "--label") if label else None,
            agent_id=agent,
            min_health_score=min_health,
        ),
        "strategy": strategy,
        "location": parse.location(location) if location else None,
        "affinity_key": affinity_key,
        "expected_ms": expected_ms,
        "traceparent": traceparent,
        "modifiers": parse.switches(modifier, "--modifier", MODIFIERS) if modifier else None,
        "timeout": timeout,
        "delay": delay,
        "run_at": parse.moment(run_at, "--run-at", ahead=True) if run_at else None,
        "deadline": parse.upcoming(deadline, "--deadline") if deadline else None,
        "retry": _given(max_attempts=max_attempts, backoff=backoff),
    }
    common = _given(**common) or {}
    _refuse_if(wait_timeout is not None and not wait, "--wait-timeout needs --wait: it limits the time to wait")
    if file is not None:
        from coord.cli import bulk

        _refuse_if(payload is not None, "PAYLOAD is for one task; with --file each line has its own payload")
        _refuse_if(task_id is not None, "--id is for one task; with --file each line may have a task_id")
        _refuse_if(results is not None and not wait, "--results needs --wait: it gets the outcomes of the tasks")
        plan = bulk.SubmitPlan(
            file, common, task_type, wait=wait, wait_timeout=wait_timeout, results=results, json=json
        )
        code = ask(lambda client: bulk.run(client, plan), redis_url=redis_url, namespace=namespace)
    else:
        _refuse_if(task_type is None, "give a TYPE, as in `coord tasks submit echo '{\"n\": 1}'`, or --file")
        _refuse_if(results is not None, "--results is for --file; the result of one task is printed")
        spec = common | {"task_type": task_type, "payload": parse.payload(payload), "task_id": task_id}
        spec.setdefault("capabilities", [task_type])
        code = ask(
            lambda client: _submit_one(client, spec, wait=wait, wait_timeout=wait_timeout, json=json),
            redis_url=redis_url,
            namespace=namespace,
        )
    if code:
        raise typer.Exit(code)


async def _submit_one(
    client: Client, spec: dict[str, Any], *, wait: bool, wait_timeout: float | None, json: bool
) -> ExitCode:
    agent_id = (spec.get("requirements") or {}).get("agent_id")
    try:
        (handle,) = await client.submit_many([spec])
        if agent_id is not None:
            await warn_of_unknown(client, agent_id)
    except (FactInvalid, IdInvalid) as error:
        raise type(error)(option_error(str(error))) from None
    if wait:
        with interruptible(_continuation(handle.task_id)):
            return await outcome_of(client, handle, wait_timeout, json=json)
    is_late = False
    try:
        with interruptible(_continuation(handle.task_id)):
            await handle.accepted(timeout=ACCEPT_S)
    except ResultTimeout:
        is_late = True
        hint(f"no distributor accepted the task within {ACCEPT_S:g} s; it waits for one: see `coord ps`")
    if json:
        write_json({"task_id": handle.task_id, "entry_id": handle.entry_id, "accepted": not is_late})
    else:
        write_line(handle.task_id)
    return ExitCode.OPEN if is_late else ExitCode.OK


async def outcome_of(client: Client, handle: TaskHandle, wait_timeout: float | None, *, json: bool) -> ExitCode:
    """Print the result, or with ``json`` the record of the task, whatever its outcome; a hint says why it waits."""
    try:
        async with reasons_shown(client, handle.task_id):
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


def _continuation(task_id: str) -> str:
    return (
        f"task {task_id} goes on; `coord tasks watch {task_id}` follows it, `coord tasks cancel {task_id}` cancels it"
    )


def option_error(message: str) -> str:
    """Return the error of a field of a task as an error of the option that sets the field."""
    message = message.removeprefix("specs[0]: ")
    place, field = _FIELD.match(message), ""
    if place is not None:
        field = place[1]
        while field not in OPTION_OF and "." in field:
            field = field.rpartition(".")[0]
    return f"{OPTION_OF[field]}{message[len(place[0]) :]}" if place is not None and field in OPTION_OF else message


def _given(**options: Any) -> dict[str, Any] | None:
    """Return the options that were given; None without any."""
    return {name: value for name, value in options.items() if value is not None and value != []} or None


def _refuse_if(is_wrong: bool, sentence: str) -> None:
    if is_wrong:
        raise ConfigError(sentence)
