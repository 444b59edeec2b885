"""``coord queues`` and ``coord pools``: waiting tasks, by priority and by pool, and why they wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from coord.cli.commands import AsJson, Namespace, RedisUrl
from coord.cli.output import duration, write_items, write_json, write_line, write_table
from coord.cli.session import ask

if TYPE_CHECKING:
    from coord.models.explanations import WaitingCounts
    from coord.models.tasks import Pool
    from coord.queries import Backlog


#: Maximum number of pools in readable output.
MAX_POOLS = 100


def queues(
    *,
    reasons: Annotated[
        bool, typer.Option("--reasons", help="Show only the number of waiting tasks by reason, as last counted.")
    ] = False,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Show waiting tasks: by priority, with scheduled and running ones, and by pool, with the reason why it waits.

    A pool is what interchangeable tasks share: type, requirements, strategy. Its head is placed next. Pools that no
    agent may serve come first; the others are served in the order shown. The first 100 are shown; --json lists all.

    --reasons costs one read, whatever the number of pools: a distributor counts about once a second.

    Examples:
        coord queues
        coord queues --reasons
        coord queues --json | jq '.pools[] | select(.head_age > 60000)'
    """
    if reasons:
        counts = ask(lambda client: client.waiting_counts(), redis_url=redis_url, namespace=namespace)
        if json:
            write_json(counts)
        else:
            _write_counts(counts)
        return
    found = _backlog(json=json, redis_url=redis_url, namespace=namespace)
    if json:
        write_json(found)
        return
    write_table(
        ("priority", "submitted", "scheduled", "queued", "assigned", "running"),
        [
            (row.priority, row.submitted, row.scheduled, row.queued, row.assigned, row.running)
            for row in found.priorities
        ],
        right=["submitted", "scheduled", "queued", "assigned", "running"],
    )
    write_line()
    _write_pools(found)


def pools(*, json: AsJson = False, redis_url: RedisUrl = None, namespace: Namespace = None) -> None:
    """Show the pools in which tasks wait, and why: first those that no agent may serve.

    The reason is that of the first task; `coord tasks explain ID` has the details. Agents that are ejected, because
    they fail this type of task, are counted. The first 100 pools are shown; --json lists all.

    Examples:
        coord pools
        coord pools --json | jq -r '.items[] | select(.reason == "no_capability") | .head'
    """
    found = _backlog(json=json, redis_url=redis_url, namespace=namespace)
    if json:
        write_items(found.pools)
    else:
        _write_pools(found)


def _backlog(*, json: bool, redis_url: str | None, namespace: str | None) -> Backlog:
    limit = None if json else MAX_POOLS
    return ask(lambda client: client.backlog(limit), redis_url=redis_url, namespace=namespace)


def _write_counts(counts: WaitingCounts | None) -> None:
    if counts is None:
        write_line("waiting tasks are not counted: no distributor has done it in the last minutes; see `coord ps`")
        return
    rows: list[tuple[str, int]] = [(reason, number) for reason, number in counts.reasons.items() if number]
    if counts.uncounted:
        rows.append(("came during the count" if counts.uncounted > 0 else "left during the count", counts.uncounted))
    write_table(("reason", "tasks"), [*rows, ("total", counts.total)], right=["tasks"])
    write_line(f"counted {duration(counts.age)} ago")


def _write_pools(found: Backlog) -> None:
    if not found.pools:
        write_line("no tasks are waiting")
        return
    write_table(
        ("pool", "type", "queued", "reason", "head waits", "head's priority", "head", "requirements"),
        [
            (
                pool.pool,
                pool.definition.task_type,
                pool.length,
                f"{pool.reason} ({pool.ejected} ejected)" if pool.ejected else pool.reason,
                duration(pool.head_age),
                pool.head_priority,
                pool.head,
                _requirements(pool.definition),
            )
            for pool in found.pools
        ],
        right=["queued"],
    )
    if found.unlisted:
        write_line(f"and {found.unlisted} more pools; --json lists all")


def _requirements(pool: Pool) -> str:
    """Format requirements as ``capabilities ocr, pdf; labels zone=eu``, with the strategy if the pool has its own."""
    values: dict[str, Any] = msgspec.to_builtins(pool.requirements)
    if pool.strategy:
        values["strategy"] = pool.strategy
    if pool.expected_ms is not None:
        values["expected to take about"] = duration(pool.expected_ms)
    if pool.unhandled_by:
        values["another agent than"] = list(pool.unhandled_by)
    if pool.refused_by:
        values["another version than"] = [version or "(none)" for version in pool.refused_by]
    return "; ".join(f"{name} {_text(value)}" for name, value in values.items()) or "none"


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}={item}" for name, item in value.items())
    return str(value)
