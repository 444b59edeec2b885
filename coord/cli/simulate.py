"""``coord trace`` and ``coord simulate``: record a stretch of a cell, try other ways to run it, and replay plans."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import to_builtins

from coord.cli import parse
from coord.cli.commands import AsJson, Namespace, RedisUrl, group, register
from coord.cli.exit_codes import ExitCode
from coord.cli.output import hint, write_candidates, write_fields, write_items, write_json, write_line, write_table
from coord.cli.parse import StrategyName
from coord.cli.session import ask
from coord.cli.spans import spans
from coord.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from coord import Client
    from coord.models.plans import Plans
    from coord.models.traces import Trace
    from coord.placement import Strategy
    from coord.simulation import Advice, Replayed, Result, Scenario

#: Ways to run the fleet that ``recommend`` shows for each number of agents.
SHOWN = 5

File = Annotated[Path, typer.Argument(metavar="FILE", help="A trace (.jsonl), or a fleet (.toml).", show_default=False)]
Strategies = Annotated[
    list[str] | None,
    typer.Option(
        "--strategy",
        click_type=StrategyName(),
        metavar="NAME",
        help="Only this strategy; repeatable.",
        show_default="all",
    ),
]
Seeds = Annotated[int, typer.Option(min=1, max=100, help="Number of seeds of a fleet; the results are their means.")]

Since = Annotated[str, typer.Option(metavar="START", help="Date and time, or how long ago (5m, 2h).")]
Until = Annotated[str | None, typer.Option(metavar="END", help="Date and time, or how long ago.", show_default="now")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="File to write.", show_default="standard output")]


def export(
    *,
    since: Since = "1h",
    until: Until = None,
    output: Output = None,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Write what happened in the cell: tasks that completed, their times and agents, and the agents of the cell.

    The file has one JSON object on each line and no payloads. `coord simulate` reads it.

    Examples:
        coord trace export --since 2h -o trace.jsonl
    """
    begin, end = _span(since, until)

    async def read(client: Client) -> Trace:
        return await client.trace(begin, end)

    trace = ask(read, redis_url=redis_url, namespace=namespace)
    from coord.simulation import write_trace

    _write(write_trace(trace), output)
    skipped = f"; {trace.header.skipped} more were removed or replayed since" if trace.header.skipped else ""
    hint(f"{len(trace.tasks)} completed tasks of {len(trace.agents)} agents{skipped}")


def plans(
    *,
    since: Since = "1h",
    until: Until = None,
    output: Output = None,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Write what the distributors planned on and what they chose, as far as it was recorded.

    `coord settings set record_plans on` starts the recording in every distributor, and `off` ends it. The file has one
    JSON object on each line, with the properties of agents and the types, places and keys of tasks, and no payloads.
    `coord simulate replay` reads it.

    Examples:
        coord trace plans --since 10m -o plans.jsonl
    """
    begin, end = _span(since, until)

    async def read(client: Client) -> Plans:
        return await client.plans(begin, end)

    found = ask(read, redis_url=redis_url, namespace=namespace)
    from coord.simulation import write_plans

    _write(write_plans(found), output)
    distributors = len({entry.by for entry in found.entries})
    hint(f"entries: {len(found.entries)}; distributors: {distributors}")
    if not found.entries:
        hint("nothing was recorded in this time; start it with coord settings set record_plans on")


def compare(
    file: File,
    *,
    strategy: Strategies = None,
    seeds: Seeds = 3,
    svg: Annotated[Path | None, typer.Option(help="Also write a picture to this file.")] = None,
    json: AsJson = False,
) -> None:
    """Compare strategies on a trace or a synthetic fleet, on a virtual clock; needs no server.

    Rows: each strategy, then next-free-worker pull (a task queue without placement), then two greedy oracles that know
    all times beforehand, if slots are independent and agents do not change. The regret is the mean response time over
    that of the better oracle. Neither oracle is the optimum. The first quarter of the tasks does not count: nothing
    is learned yet.

    Examples:
        coord simulate compare trace.jsonl
        coord simulate compare fleet.toml --strategy predictive --strategy least_connections --svg fleet.svg
    """
    from coord.placement import Rules
    from coord.simulation import compare as run
    from coord.simulation import draw

    strategies = _strategies()
    rules = {name: Rules(name) for name in strategy or sorted(strategies)}
    results = run(_scenarios(file, seeds), rules, strategies)
    if svg is not None:
        with parse.writable(svg, "--svg") as picture:
            picture.write(draw(results, f"Simulation of {file.name}").encode())
    if json:
        write_items(results)
        return
    _write_results(results)


def recommend(
    file: File,
    *,
    strategy: Strategies = None,
    seeds: Seeds = 3,
    fewer: Annotated[int, typer.Option(min=0, max=100, help="Try to do without up to this many agents.")] = 2,
    json: AsJson = False,
) -> None:
    """Try strategies, weights, rare_skills_first and fewer agents on a trace or a fleet, and rank them.

    Weights "by speed" are what each agent can do in a second. The agents that can do least are left out first.

    Examples:
        coord simulate recommend trace.jsonl
        coord simulate recommend fleet.toml --fewer 4 --json
    """
    from coord.simulation import recommend as run

    strategies = _strategies()
    advice = run(_scenarios(file, seeds), strategy or sorted(strategies), fewer, strategies)
    if json:
        write_items(advice)
        return
    _write_advice(advice)


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Recorded plans (.jsonl).", show_default=False)],
    *,
    json: AsJson = False,
) -> None:
    """Replay recorded plans through the strategies, and compare each choice with the recorded one; needs no server.

    The first difference is shown with the scores of both agents. A replay begins at the first snapshot in the file, and
    skips what comes before it. Distributors make a snapshot after every MiB.

    Exit code 0: all choices are equal; 1: one differs; 2: the file has no choices, or does not fit.

    Examples:
        coord simulate replay plans.jsonl
    """
    from coord.simulation import read_plans
    from coord.simulation import replay as run

    try:
        recorded = read_plans(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    found = run(recorded, _strategies())
    if not found.decisions:
        raise ConfigError(
            f"{file} has no choices that can be replayed ({found.skipped} entries without a snapshot before them); "
            "record plans while tasks are placed: coord settings set record_plans on"
        )
    if json:
        write_json(found)
    else:
        _write_replayed(found)
    if not found.is_equal:
        raise typer.Exit(ExitCode.NO)


def _span(since: str, until: str | None) -> tuple[int, int | None]:
    """Return the begin and the end of a time, in ms since 1970."""
    begin = int(parse.moment(since, "--since", ahead=False).timestamp() * 1000)
    return begin, int(parse.moment(until, "--until", ahead=False).timestamp() * 1000) if until else None


def _write(data: bytes, output: Path | None) -> None:
    if output is None:
        typer.echo(data.decode(), nl=False)
        return
    with parse.writable(output, "--output") as file:
        file.write(data)


def _write_replayed(found: Replayed) -> None:
    write_line(f"{found.equal:,} of {found.decisions:,} choices are equal")
    hint(
        f"distributors: {found.distributors}; snapshots: {found.segments}; "
        + (f"skipped entries: {found.skipped}; " if found.skipped else "")
        + ", ".join(f"{name} {number:,}" for name, number in found.of_strategies.items())
    )
    first = found.first
    if first is None:
        return
    write_line()
    task = {name: value for name, value in to_builtins(first.task).items() if name != "task_type"}
    write_fields(
        {
            "first difference": first.text,
            "choice": f"{first.decision:,} of the file",
            "distributor": f"{first.by}, segment {first.segment}, entry {first.entry}",
            "strategy": first.strategy,
            "task type": first.task.task_type or "(any)",
            "task": ", ".join(f"{name} {value}" for name, value in task.items()) or None,
        }
    )
    if first.candidates:
        write_line()
        write_candidates(first.candidates)


def _strategies() -> Mapping[str, type[Strategy]]:
    from coord.logs import get_logger
    from coord.plugins import load_strategies

    return load_strategies(get_logger())


def _scenarios(file: Path, seeds: int) -> list[Scenario]:
    """Return the scenarios of a file.

    Raises:
        ConfigError: it cannot be read, or does not fit; names what.
    """
    from coord.simulation import read_fleet, read_trace, scenario_of

    try:
        data = file.read_bytes()
        if file.suffix != ".toml":
            return [scenario_of(read_trace(data))]
        return [read_fleet(data.decode(), seed + 1) for seed in range(seeds)]
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not UTF-8") from None


def _write_results(results: list[Result]) -> None:
    columns = ("strategy", "mean s", "p99 wait s", "makespan s", "p99 slowdown", "imbalance", "regret")
    write_table(columns, [_row(result) for result in results], right=columns[1:], free="strategy")
    write_line()
    write_line("regret: mean ÷ mean of the better oracle; neither oracle is the optimum")


def _row(result: Result) -> tuple[str, ...]:
    return (
        result.name,
        f"{result.mean_s:.3f}",
        f"{result.p99_wait_s:.3f}",
        f"{result.makespan_s:.1f}",
        f"{result.p99_slowdown:.2f}",
        f"{result.imbalance:.2f}",
        "" if result.regret is None else f"{result.regret:.3f}",
    )


def _write_advice(advice: list[Advice]) -> None:
    first = advice[0].result.mean_s
    columns = ("left out", "strategy", "rare skills first", "weights", "mean s", "p99 wait s", "against the best")
    rows = [
        (
            ", ".join(without) or "none",
            one.strategy,
            "on" if one.rare_skills_first else "off",
            one.weights,
            f"{one.result.mean_s:.3f}",
            f"{one.result.p99_wait_s:.3f}",
            f"{one.result.mean_s / first - 1:+.1%}",
        )
        for without in dict.fromkeys(one.without for one in advice)
        for one in [one for one in advice if one.without == without][:SHOWN]
    ]
    write_table(columns, rows, right=columns[4:], free="left out")


trace = group("trace", "Record what happened in a cell.")
register(trace, export)
register(trace, plans)
register(trace, spans)
simulate = group("simulate", "Try strategies, weights and fleets on a virtual clock; replay recorded plans.")
register(simulate, compare)
register(simulate, recommend)
register(simulate, replay)
