"""``coord tasks explain``: why a task waits, or why it went to its agent. ``--wait`` of other commands shows it too."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from coord.cli.commands import AsJson, Namespace, RedisUrl
from coord.cli.exit_codes import ExitCode
from coord.cli.output import duration, hint, moment, write_candidates, write_fields, write_json, write_line, write_table
from coord.cli.session import ask
from coord.errors import ServerUnfit, TaskNotFound, Unavailable
from coord.models.explanations import REJECTED, Candidate, WaitingReason

if TYPE_CHECKING:
    from coord import Client
    from coord.models.explanations import Explanation, PlacedExplanation, StartEstimate, WaitingExplanation

#: Seconds until a command that waits for a task says why the task waits: the first time, and the longest between two
#: reads, each of which is twice as long as the one before. A read examines the whole fleet.
REASON_AFTER_S, REASON_AT_MOST_S = 2.0, 30.0


def explain(
    task_id: Annotated[str, typer.Argument(help="Id of the task.", show_default=False)],
    *,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Explain why a task waits, or why it went to its agent.

    For a waiting task: the reason, how many agents are rejected for which requirement, the agents that lack least, its
    position in its pool, and an estimate of its start.

    Exit code 0: an agent has it, or it has ended; 4: it waits; 1: it does not exist.

    Examples:
        coord tasks explain report-7
        coord tasks explain report-7 --json | jq -r .waiting.reason
    """

    async def work(client: Client) -> tuple[Explanation, int]:
        return await client.explain(task_id), await client.server_time()

    found, now = ask(work, redis_url=redis_url, namespace=namespace)
    if json:
        write_json(found)
    else:
        _write(found, now)
    if found.is_waiting:
        raise typer.Exit(ExitCode.WAITS)


@asynccontextmanager
async def reasons_shown(client: Client, task_id: str) -> AsyncIterator[None]:
    """Write to standard error why a task waits, and each new reason, while a ``with`` block waits for its outcome."""
    from coord.background import cancel_and_wait

    showing = asyncio.create_task(_show_reasons(client, task_id))
    try:
        yield
    finally:
        await cancel_and_wait(showing)


async def _show_reasons(client: Client, task_id: str) -> None:
    shown, pause = "", REASON_AFTER_S
    while True:
        await asyncio.sleep(pause)
        pause = min(2 * pause, REASON_AT_MOST_S)
        try:
            found = await client.explain(task_id)
        except ServerUnfit:
            return  # a user who may submit and not read
        except TaskNotFound:
            reason, line = "not accepted", "no distributor has accepted the task yet; `coord ps` shows the workers"
        except Unavailable:
            continue
        else:
            waiting = found.waiting
            if waiting is None or (waiting.reason is WaitingReason.NEXT_IN_LINE and not waiting.obstacles):
                continue
            reason = waiting.reason
            line = "; ".join((waiting.text, *waiting.obstacles, f"`coord tasks explain {task_id}` shows more"))
        if reason != shown:
            shown = reason
            hint(f"waiting: {line}")


@asynccontextmanager
async def reasons_of_many_shown(
    client: Client, open_ids: Callable[[], Sequence[str]], count_ended: Callable[[], int], write: Callable[[str], None]
) -> AsyncIterator[None]:
    """Write how many tasks wait for which reason while none ends, and each change of it, during a ``with`` block.

    Args:
        client: an open one.
        open_ids: returns the ids of the tasks that have not ended.
        count_ended: returns the number of the tasks that have ended.
        write: writes a line.
    """
    from coord.background import cancel_and_wait

    showing = asyncio.create_task(_show_reasons_of_many(client, open_ids, count_ended, write))
    try:
        yield
    finally:
        await cancel_and_wait(showing)


async def _show_reasons_of_many(
    client: Client, open_ids: Callable[[], Sequence[str]], count_ended: Callable[[], int], write: Callable[[str], None]
) -> None:
    shown, pause = "", REASON_AFTER_S
    while True:
        ended = count_ended()
        await asyncio.sleep(pause)
        pause = min(2 * pause, REASON_AT_MOST_S)
        if count_ended() != ended:
            continue
        try:
            reasons, line = await _read_reasons(client, open_ids())
        except ServerUnfit:
            return  # a user who may submit and not read
        except Unavailable:
            continue
        if reasons != shown:
            shown = reasons
            if line:
                write(f"waiting: {line}")


async def _read_reasons(client: Client, task_ids: Sequence[str]) -> tuple[str, str]:
    """Return how many of these tasks wait for which reason, and the line about it; both empty if there is none."""
    found = await client.waiting_reasons(task_ids)
    counts = Counter(reason for reason in found.values() if reason is not None)
    unaccepted = len(task_ids) - len(found)
    parts = [f"{number:,} {reason}" for reason, number in counts.most_common()]
    steps: list[str] = []
    if counts:
        example = next(task_id for task_id, reason in found.items() if reason is counts.most_common(1)[0][0])
        with suppress(TaskNotFound):  # it has ended, and its record is removed
            waiting = (await client.explain(example)).waiting
            steps += () if waiting is None else waiting.obstacles
        if not steps and not unaccepted and set(counts) == {WaitingReason.NEXT_IN_LINE}:
            return "", ""
        steps.append(f"`coord tasks explain {example}` shows more")
    if unaccepted:
        parts.append(f"{unaccepted:,} not accepted by a distributor")
        steps.append("`coord ps` shows the workers")
    waits = counts.total() + unaccepted
    reasons = ", ".join(parts)
    line = "; ".join((f"{waits:,} task{'' if waits == 1 else 's'}: {reasons}", *steps))
    return reasons, line if waits else ""


def _write(found: Explanation, now: int) -> None:
    fields: dict[str, object] = {"task": found.task_id, "state": found.state}
    if found.waiting is None:
        write_fields(fields | {"why": found.summary} | (_placed_fields(found.placed) if found.placed else {}))
        if found.placed is not None:
            _write_candidates(found.placed.decision)
        return
    waiting = found.waiting
    write_fields(fields | _waiting_fields(waiting, now))
    if waiting.rejected:
        write_line()
        rows = [(reason, number, f"the agent {REJECTED[reason]}") for reason, number in waiting.rejected.items()]
        write_table(("rejected for", "agents", "meaning"), rows, right=["agents"])
    if waiting.nearest:
        write_line()
        write_table(
            ("nearest agent", "reason", "fits except for"),
            [(miss.agent_id, miss.reason, ", ".join(miss.lacks)) for miss in waiting.nearest],
        )
    for obstacle in waiting.obstacles:
        hint(f"warning: {obstacle}")


def _placed_fields(placed: PlacedExplanation) -> dict[str, object]:
    decision = placed.decision if isinstance(placed.decision, dict) else {}
    return {
        "agent": placed.agent_id,
        "assigned": moment(placed.assigned_at),
        "attempt": placed.attempt,
        "agent's term": placed.term,
        "strategy": placed.strategy,
        "eligible agents": placed.eligible,
        "had waited": placed.waiting_reason,
        "view version": decision.get("view_version"),
        "seed": decision.get("seed"),
    }


def _write_candidates(decision: Any) -> None:
    """Write the scores of the agents that were considered, if the setting ``full_scores`` was on."""
    found = decision.get("candidates") if isinstance(decision, dict) else None
    with suppress(msgspec.ValidationError):  # a distributor of another version may have written it
        if candidates := msgspec.convert(found or [], list[Candidate]):
            write_line()
            write_candidates(candidates)


def _waiting_fields(waiting: WaitingExplanation, now: int) -> dict[str, object]:
    fields: dict[str, object] = {"reason": waiting.reason, "why": waiting.text}
    if waiting.run_at is not None:
        left = f" (in {duration(waiting.run_at - now)})" if waiting.run_at > now else ""
        return fields | {"runs at": f"{moment(waiting.run_at)}{left}", "pool": waiting.pool}
    return fields | {
        "pool": waiting.pool,
        "position": waiting.position and f"{waiting.position:,} of {waiting.length:,}",
        "starts": _start(waiting.estimate, now),
        "agents": f"{waiting.agents:,} examined, {waiting.eligible:,} may get the task now",
    }


def _start(estimate: StartEstimate | None, now: int) -> str:
    if estimate is None:
        return "not known"
    return f"in about {duration(max(0, estimate.at - now))}: {estimate.basis}"
