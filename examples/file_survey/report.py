"""The tables: findings, failures with their reasons, the work of each agent, durations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coord.standard_streams import plain
from examples.file_survey.findings import Duplicates, Findings, Module
from examples.file_survey.jobs import KINDS
from examples.file_survey.timing import Timing
from examples.file_survey.walk import Found

MAX_DUPLICATES = 5


def show_found(console: Console, found: Found, tasks: int) -> None:
    """Show the files, before any agent has examined them."""
    files, tasks_ = _count(len(found.files), "text file"), _count(tasks, "task")
    if tasks:
        tasks_ += f" (up to {len(KINDS)} a file)"
    whole = not console.is_terminal  # one line; line breaks are for terminals
    console.print(f"[bold]{_name(str(found.root))}[/]: {files}, {tasks_}", soft_wrap=whole)
    for title, counted in (("left out", found.left_out), ("not entered", found.not_entered)):
        if counted:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in counted.items())
            console.print(f"{title}: {reasons}", soft_wrap=whole)


def show_findings(console: Console, found: Findings) -> None:
    """Show the findings."""
    totals = _table("Findings", "", "total")
    for name, value in (
        ("files", f"{found.files:,}"),
        ("… of these empty", f"{found.empty_files:,}"),
        ("bytes", f"{found.bytes:,}"),
        ("lines", f"{found.lines:,}"),
        ("… of these blank", f"{found.blank_lines:,}"),
        ("words", f"{found.words:,}"),
        ("Python files that parse", f"{found.python_files:,}"),
        ("classes", f"{found.classes:,}"),
        ("functions", f"{found.functions:,}"),
        ("methods", f"{found.methods:,}"),
        ("public definitions with a docstring", _share(found.documented, found.public)),
    ):
        totals.add_row(name, value)
    console.print(totals)
    if found.biggest:
        console.print(_biggest(found.biggest))
    if found.imports:
        console.print(_counted("Most imported packages", "package", "files that import it", found.imports))
    if found.common_words:
        title = "Most common words"
        console.print(_counted(title, "word", "files with it among their top ten", found.common_words))
    if found.duplicates:
        console.print(_duplicates(found.duplicates))


def show_failures(console: Console, found: Findings) -> None:
    """Show each failure with its reason."""
    if not found.failures:
        console.print("\nNo task failed.")
        return
    codes = Counter(failure.code for failure in found.failures)
    counted = ", ".join(f"{count} {code}" for code, count in codes.most_common())
    table = _table(f"{len(found.failures):,} failed: {counted}", "task", words="file: reason")
    for failure in found.failures:
        reason = failure.message if failure.path in failure.message else f"{failure.path}: {failure.message}"
        table.add_row(failure.task_type, _name(reason))
    console.print(table)


def show_timing(console: Console, timing: Timing, ends: Mapping[str, int]) -> None:
    """Show the work of each agent, and durations."""
    agents = _table("Work of each agent", "agent", "done", "failed", "busy s", "p50 ms", "ended and restarted")
    for agent in timing.agents:
        busy = f"{agent.running_ms / 1000:,.1f}"
        restarts = str(ends.get(agent.agent_id, 0))
        agents.add_row(agent.agent_id, f"{agent.done:,}", f"{agent.failed:,}", busy, f"{agent.p50_ms:,}", restarts)
    console.print(agents)
    shown = {agent.agent_id for agent in timing.agents}
    others = ", ".join(f"{_name(name)} {count}" for name, count in sorted(ends.items()) if name not in shown)
    if others:
        console.print(f"also ended and restarted: {others}")
    spans = _table("Duration of a task, in milliseconds", "from … to", "p50", "p95", "p99", "longest")
    for span in timing.spans:
        spans.add_row(span.what, *(f"{ms:,}" for ms in (span.p50, span.p95, span.p99, span.longest)))
    console.print(spans)
    repeated = f"; {timing.repeated:,} took more than one attempt" if timing.repeated else ""
    console.print(
        f"\n[bold]{timing.tasks:,} tasks in {timing.seconds:.1f} s, {timing.per_second:,.0f} per second[/]{repeated}"
    )


def _biggest(modules: Sequence[Module]) -> Table:
    table = _table("Biggest modules", "file", "lines", "classes", "functions", "with docstring")
    for module in modules:
        documented = _share(module.documented, module.public)
        table.add_row(_name(module.path), f"{module.lines:,}", str(module.classes), str(module.functions), documented)
    return table


def _counted(title: str, name: str, count: str, rows: Sequence[tuple[str, int]]) -> Table:
    table = _table(title, name, count)
    for item, number in rows:
        table.add_row(_name(item), f"{number:,}")
    return table


def _duplicates(groups: Sequence[Duplicates]) -> Table:
    copies = sum(len(group.paths) - 1 for group in groups)
    wasted = sum(group.wasted for group in groups)
    title = f"Duplicates: {len(groups):,} contents, {copies:,} needless copies, {wasted:,} bytes"
    table = _table(title, "files", "bytes each")
    for group in groups[:MAX_DUPLICATES]:
        more = len(group.paths) - 4
        shown = [_name(path) for path in group.paths[:4]] + ([f"… and {more} more"] if more > 0 else [])
        table.add_row("\n".join(shown), f"{group.bytes:,}")
    return table


def _table(title: str, first: str, *numbers: str, words: str = "") -> Table:
    """Return a table of names and numbers, or of two columns of text."""
    table = Table(
        title=f"\n{title}",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    table.add_column(first, overflow="fold")
    for column in numbers:
        table.add_column(column, justify="right")
    if words:
        table.add_column(words, overflow="fold")
    return table


def plain_lines(text: str) -> str:
    """Escape every control character in a text except line ends."""
    return "\n".join(map(plain, text.split("\n")))


def _name(text: str) -> str:
    """Escape control characters and markup in a text that comes from files."""
    return escape(plain(text))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "-"
