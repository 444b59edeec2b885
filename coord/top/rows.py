"""The rows and lines of ``coord top``: records as text with styles. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.columns import Columns
from rich.console import Group
from rich.table import Table
from rich.text import Text

from coord.models.agents import AgentRecord, why_deaf
from coord.models.cell import WorkerRecord
from coord.models.explanations import REJECTED, Explanation
from coord.models.findings import BY_WEIGHT, Finding, Level
from coord.models.tasks import TaskRecord, TaskState
from coord.queries import Backlog, PoolBacklog
from coord.standard_streams import plain
from coord.styles import AGENT_STATUS, TASK_STATE
from coord.top.feed import Feed
from coord.units import duration

Row = tuple[Text | str, ...]

AGENTS = ("agent", "status", "health", "load", "", "type", "capabilities")
TASKS = ("task", "type", "state", "priority", "age", "agent", "attempt")
POOLS = ("type", "queued", "reason", "head waits", "priority", "head")
PROCESSES = ("kind", "name", "age", "per s", "lag", "progress", "host")

LEVEL: Mapping[str, str] = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "red"}
#: Cells of the bar of a load.
BAR = 10
#: Characters of a long id on a narrow screen.
SHORT = 13


def agent_row(agent: AgentRecord) -> Row:
    """Return the row of an agent."""
    status = f"{agent.status.value}{' deaf' if agent.deaf else ''}{' ejected' if agent.ejected else ''}"
    style = "red" if agent.deaf or agent.ejected else AGENT_STATUS.get(agent.status, "")
    health = "green" if agent.health_score >= 0.9 else "yellow" if agent.health_score >= 0.5 else "red"
    return (
        plain(agent.agent_id),
        Text(status, style),
        Text(f"{agent.health_score:.2f}", health),
        load_bar(agent.load, agent.capacity),
        f"{agent.load}/{agent.capacity}",
        plain(agent.agent_type),
        plain(" ".join(agent.capabilities)),
    )


def load_bar(load: int, capacity: int) -> Text:
    """Return a bar of the load of an agent against its capacity."""
    share = min(1.0, load / capacity) if capacity else 0.0
    filled = round(share * BAR) if not load else max(1, round(share * BAR))
    return Text("█" * filled, "red" if share >= 1 else "cyan") + Text("░" * (BAR - filled), "dim")


def short(task_id: str, *, is_narrow: bool) -> str:
    """Return the id of a task; on a narrow screen only the end of a long one, which differs from task to task."""
    return f"…{plain(task_id)[-SHORT:]}" if is_narrow and len(task_id) > SHORT + 6 else plain(task_id)


def task_row(task: TaskRecord, now: int, *, is_narrow: bool) -> Row:
    """Return the row of a task; ``now`` is the server's clock in ms."""
    return (
        short(task.task_id, is_narrow=is_narrow),
        plain(task.task_type),
        Text(task.state.value, TASK_STATE.get(task.state, "")),
        task.priority.value,
        duration(max(0, now - task.submitted_at)),
        plain(task.agent_id or ""),
        str(task.attempt),
    )


def pool_row(pool: PoolBacklog, *, is_narrow: bool) -> Row:
    """Return the row of a pool of waiting tasks."""
    reason = Text("")
    if pool.reason is not None:
        reason = Text(pool.reason.value, "red" if pool.reason.is_parked else "yellow")
    return (
        plain(pool.definition.task_type),
        f"{pool.length:,}",
        reason,
        "" if pool.head_age is None else duration(pool.head_age),
        "" if pool.head_priority is None else pool.head_priority.value,
        short(pool.head, is_narrow=is_narrow),
    )


def process_row(process: WorkerRecord, now: int) -> Row:
    """Return the row of a worker or gateway; ``now`` is the server's clock in ms."""
    idle = max(0, now - process.progress_at)
    return (
        process.kind,
        plain(process.name),
        duration(max(0, now - process.started_at)),
        f"{process.per_s:,.1f}",
        duration(process.lag_ms),
        Text(f"{duration(idle)} ago", "red" if idle > 10_000 else ""),
        plain(process.host),
    )


def summary(feed: Feed) -> Text:
    """Return the line with the most important numbers."""
    found = feed.statistics
    if found is None:
        return Text("reading …", "dim")
    running = found.total(TaskState.ASSIGNED) + found.total(TaskState.RUNNING)
    lag = max((stream.oldest_ms or 0 for stream in found.streams), default=0)
    dead = sum(number or 0 for number in found.dead_letters.values())
    parts: list[tuple[str, str, str]] = [
        ("agents", f"{found.active_agents:,}/{found.total_agents:,}", "green" if found.active_agents else "red"),
        ("queued", f"{found.total(TaskState.QUEUED):,}", "yellow" if found.total(TaskState.QUEUED) else ""),
        ("running", f"{running:,}", "cyan" if running else ""),
        ("dead", f"{dead:,}", "red" if dead else ""),
        ("lag", duration(lag), "red" if lag > 5_000 else ""),
    ]
    if found.memory is not None and found.memory.maximum:
        parts.append(("memory", f"{found.memory.share:.0%}", "red" if found.memory.is_nearly_full else ""))
    return _numbers(parts)


def rates(feed: Feed) -> Text:
    """Return what was submitted, has ended and has failed, a second."""
    return _numbers(
        [
            ("in", f"{feed.submitted_per_s:,.1f}/s", ""),
            ("out", f"{feed.rates[-1]:,.1f}/s", "green" if feed.rates[-1] else ""),
            ("failed", f"{feed.failed_per_s:,.1f}/s", "red" if feed.failed_per_s else ""),
        ]
    )


def _numbers(parts: Iterable[tuple[str, str, str]]) -> Text:
    line = Text(no_wrap=True, overflow="ellipsis")
    for number, (name, value, style) in enumerate(parts):
        line.append("  " if number else "").append(f"{name} ", "dim").append(value, style or "bold")
    return line


def queues(feed: Feed) -> Group:
    """Return the numbers of waiting tasks: a table by priority, and below it the reasons, as many as fit in a line."""
    return Group(_priorities(feed.backlog), "", _reasons(feed))


def _priorities(backlog: Backlog | None) -> Table:
    names = {"submitted": "new", "scheduled": "later", "queued": "queued", "assigned": "assigned", "running": "running"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("priority")
    for title in names.values():
        table.add_column(title, justify="right", no_wrap=True)
    for row in backlog.priorities if backlog is not None else ():
        table.add_row(row.priority.value, *(f"{getattr(row, name):,}" for name in names))
    return table


def _reasons(feed: Feed) -> Columns:
    found = feed.statistics
    counts = found.waiting if found is not None else None
    if found is not None and counts is None and found.total(TaskState.QUEUED):
        return Columns([Text("waiting for reasons that no distributor has counted within 5 minutes", "yellow")])
    shown = [
        Text(f"{reason.value} ", "red" if reason.is_parked else "yellow", no_wrap=True).append(f"{number:,}", "bold")
        for reason, number in (counts.reasons if counts is not None else {}).items()
        if number
    ]
    return Columns([Text("waiting for", "bold"), *(shown or [Text("nothing", "dim")])], padding=(0, 2))


def findings(found: Iterable[Finding]) -> Text:
    """Return the problems of a cell, the most serious first, each with its advice."""
    problems = sorted((one for one in found if one.level is not Level.OK), key=lambda one: BY_WEIGHT.index(one.level))
    if not problems:
        return Text("no problems found", "green")
    lines = [
        Text(f"{one.level.value} ", LEVEL[one.level])
        + Text(plain(one.message))
        + Text(f"\n  → {plain(one.advice)}", "dim")
        for one in problems
    ]
    return Text("\n").join(lines)


def agent_details(agent: AgentRecord, now: int) -> Text:
    """Return all about an agent that an operator may want to know; ``now`` is the server's clock in ms."""
    fields: dict[str, str] = {
        "status": agent.status.value + (f" (it reports {agent.drained_from})" if agent.drained_from else ""),
        "type": agent.agent_type,
        "health": f"{agent.health_score:.2f}",
        "load": f"{agent.load} of {agent.capacity}",
        "capabilities": ", ".join(agent.capabilities),
        "services": ", ".join(agent.services),
        "tags": ", ".join(agent.tags),
        "labels": ", ".join(f"{name}={value}" for name, value in agent.labels.items()),
        "version": agent.version,
        "last heartbeat": f"{duration(max(0, now - agent.last_heartbeat))} ago",
        "deaf": why_deaf(agent),
        "ejected": ", ".join(one.task_type for one in agent.ejected),
    }
    if (parts := agent.health) is not None:
        fields["health"] += f" (freshness {parts.freshness:.2f}, regularity {parts.regularity:.2f})"
    return _fields(f"agent {plain(agent.agent_id)}", fields)


def explanation(found: Explanation) -> Text:
    """Return why a task waits, or why it went to its agent."""
    fields: dict[str, str] = {"state": found.state.value}
    if found.waiting is None:
        fields["why"] = found.summary
        if found.placed is not None:
            fields["agent"] = found.placed.agent_id
            fields["strategy"] = found.placed.strategy or ""
            fields["eligible"] = "" if found.placed.eligible is None else f"{found.placed.eligible:,} agents"
        return _fields(f"task {plain(found.task_id)}", fields)
    waiting = found.waiting
    fields |= {"reason": waiting.reason.value, "why": waiting.text}
    if waiting.position:
        fields["position"] = f"{waiting.position:,} of {waiting.length:,} in its pool"
    fields["agents"] = f"{waiting.agents:,} examined, {waiting.eligible:,} may get the task now"
    text = _fields(f"task {plain(found.task_id)}", fields)
    for reason, number in waiting.rejected.items():
        text.append(f"\n{number:>6,}  {reason.value}: the agent {REJECTED[reason]}")
    for miss in waiting.nearest:
        text.append(f"\nnearest: {plain(miss.text)}", "cyan")
    for obstacle in waiting.obstacles:
        text.append(f"\nwarning: {plain(obstacle)}", "yellow")
    return text


def _fields(title: str, fields: Mapping[str, str]) -> Text:
    text = Text(title, "bold")
    width = max(map(len, fields))
    for name, value in fields.items():
        if value:
            text.append(f"\n{name:<{width}}  ", "cyan").append(plain(value))
    return text
