"""``coord queues``: what waits, by priority and by pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from coord.cli.commands import AsJson, Namespace, RedisUrl
from coord.cli.output import duration, write_json, write_line, write_table
from coord.cli.session import ask

if TYPE_CHECKING:
    from coord.models.tasks import Pool


#: Pools that a person is shown.
POOLS_SHOWN = 100


def queues(*, json: AsJson = False, redis_url: RedisUrl = None, namespace: Namespace = None) -> None:
    """Show what waits: by priority with what is scheduled and in flight, and by pool with the age of its head.

    A pool is what interchangeable tasks share: type, requirements, strategy. Its head is placed next; pools are served
    in the order shown, those that an agent can serve. The first 100 are shown; --json lists all.

    Examples:
        coord queues
        coord queues --json | jq '.pools[] | select(.head_age > 60000)'
    """
    most = None if json else POOLS_SHOWN
    found = ask(lambda client: client.backlog(most), redis_url=redis_url, namespace=namespace)
    if json:
        write_json(found)
        return
    write_table(
        ("priority", "submitted", "scheduled", "queued", "assigned", "running"),
        [
            (one.priority, one.submitted, one.scheduled, one.queued, one.assigned, one.running)
            for one in found.priorities
        ],
        right=["submitted", "scheduled", "queued", "assigned", "running"],
    )
    write_line()
    if not found.pools:
        write_line("no task waits for an agent")
        return
    write_table(
        ("pool", "type", "queued", "head waits", "head's priority", "head", "an agent must have"),
        [
            (
                one.pool,
                one.definition.task_type,
                one.length,
                duration(one.head_age),
                one.head_priority,
                one.head,
                _needs(one.definition),
            )
            for one in found.pools
        ],
        right=["queued"],
    )
    if found.unlisted:
        write_line(f"and {found.unlisted} more pools; --json lists all")


def _needs(pool: Pool) -> str:
    """``capabilities ocr, pdf; labels {"zone":"eu"}``; the strategy, where the pool has its own."""
    said: dict[str, Any] = msgspec.to_builtins(pool.requirements)
    if pool.strategy:
        said["strategy"] = pool.strategy
    if pool.refused_by:
        said["another version than"] = [version or "(none)" for version in pool.refused_by]
    return "; ".join(f"{name} {_plainly(value)}" for name, value in said.items()) or "nothing in particular"


def _plainly(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}={one}" for name, one in value.items())
    return str(value)
