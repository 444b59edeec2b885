"""``scripts/run``: bring everything up, have agents look at every file of a folder, show what they found."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from pathlib import Path

import msgspec
from rich.console import Console
from rich.markup import escape

from coord import Client
from coord.cli.signals import stop_on_signals
from coord.cli.stop import Stop
from coord.cli.supervisor import GaveUp
from coord.config import load
from coord.errors import CoordError
from examples.main_job.findings import Findings, findings
from examples.main_job.fleet import Fleet
from examples.main_job.kinds import Job, jobs
from examples.main_job.leftovers import cancel_leftovers
from examples.main_job.outcome import Outcome
from examples.main_job.progress import Live
from examples.main_job.report import show_failures, show_findings, show_found, show_timing
from examples.main_job.submit import submit_all
from examples.main_job.timing import Timing, timing
from examples.main_job.walk import Found, default_folder, walk

ROOT = Path(__file__).parents[2]
#: Wide enough for the tables where there is no terminal to ask.
PLAIN_WIDTH = 110


def main() -> int:
    """Read the command line and do the job; the exit code."""
    options = _options()
    root = default_folder() if options.folder is None else Path(options.folder).expanduser()
    if not root.is_dir() or options.folder == "":
        return _refused(f"{options.folder!r} is not a folder")
    report = options.report
    if report is not None and (report.is_dir() or not os.access(report.absolute().parent, os.W_OK)):
        return _refused(f"cannot write a report to {str(report)!r}; name another file with --report")
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)
    try:
        return asyncio.run(_run(options, console, walk(root.resolve())))
    except CoordError as error:
        return _refused(str(error))
    except KeyboardInterrupt:  # before there was anything to end
        return 130


def _refused(why: str) -> int:
    print(f"scripts/run: {why}", file=sys.stderr)
    return 2


async def _run(options: argparse.Namespace, console: Console, found: Found) -> int:
    return await _Job(options, console).run(found)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/run",
        description="Bring coord up, have example agents look at every file under FOLDER, and show what they found.",
    )
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="default: Python's standard library")
    parser.add_argument("--once", action="store_true", help="end after the job: 0 if only unparsable files failed")
    data = "folder for Redis and logs [.coord]"
    parser.add_argument("--data", type=Path, default=ROOT / ".coord", metavar="FOLDER", help=data)
    parser.add_argument("--agents", type=_agents, default=2, metavar="N", help="agents of each kind, 1 to 32 [2]")
    parser.add_argument("--report", type=Path, metavar="FILE", help="also write what was found as JSON")
    return parser.parse_args()


def _agents(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 32:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 32")
    return int(text)


class _Job:
    """The job from the first process to the last table."""

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self._options = options
        self._console = console
        self._stop = Stop()
        self._fleet = Fleet(options.data.expanduser().resolve(), load(), options.agents, self._say)

    async def run(self, found: Found) -> int:
        """Do it; the exit code."""
        work = jobs(found.files)
        show_found(self._console, found, len(work))
        if not work:
            self._console.print("nothing to do")
            self._write(found, findings([]), None)
            return 0
        with stop_on_signals(self._stop):
            keeping = asyncio.create_task(self._fleet.run(self._stop))
            keeping.add_done_callback(lambda _: self._stop.ask_once())  # without it nothing will come
            try:
                outcomes = await self._stop.unless_asked(self._work(found, work))
                if outcomes is None:
                    if not keeping.done():
                        self._say("ending in the middle; Ctrl-C again ends all at once")
                    return 130
                code = self._report(found, outcomes)
                if not self._options.once:
                    self._console.print(self._fleet.hints(), soft_wrap=True, markup=False)
                    await self._stop.asked.wait()
                    self._say("ending: agents finish what they hold, then coord up ends; Ctrl-C again ends all at once")
                return code
            finally:
                self._stop.ask_once()
                await self._ended(keeping)

    async def _ended(self, keeping: asyncio.Task[None]) -> None:
        try:
            await keeping
        except GaveUp as error:
            words = self._fleet.last_words(error.program.name)
            raise CoordError(f"{error.program.name} gave up: {words}") from None

    async def _work(self, found: Found, work: list[Job]) -> list[Outcome]:
        begin = time.monotonic()
        async with Client(await self._fleet.url()) as client:
            if self._fleet.has_own_cell and (left := await cancel_leftovers(client)):
                self._say(f"cancelled {left:,} unfinished tasks of a run that was ended in the middle")
            there = await self._fleet.gather(client)
            self._say(
                f"{there} of {len(self._fleet.agent_ids)} agents are there after {time.monotonic() - begin:.1f} s"
            )
            with Live(self._console, work) as live:
                return await submit_all(client, found.root, work, live)

    def _report(self, found: Found, outcomes: list[Outcome]) -> int:
        """Show the tables; the exit code."""
        facts, times = findings(outcomes), timing(outcomes)
        show_findings(self._console, facts)
        show_failures(self._console, facts)
        show_timing(self._console, times, self._fleet.ends)
        self._write(found, facts, times)
        return 0 if all(one.is_done or one.is_unparsable for one in outcomes) else 1

    def _write(self, found: Found, facts: Findings, times: Timing | None) -> None:
        if self._options.report:
            content = {"found": facts, "left_out": found.left_out, "timing": times, "ends": self._fleet.ends}
            self._options.report.write_bytes(msgspec.json.format(msgspec.json.encode(content)) + b"\n")

    def _say(self, sentence: str) -> None:
        self._console.print(f"{time.strftime('%H:%M:%S')}  {escape(sentence)}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
