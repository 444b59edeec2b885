"""``scripts/run``: start a cell, let agents examine every file of a folder, show the findings."""

from __future__ import annotations

import asyncio
import sys
import time

from coord.interrupts import end_on_interrupt

if __name__ == "__main__":
    end_on_interrupt()  # during the other imports, and until there is a process to end

from rich.console import Console
from rich.markup import escape

from coord import Client, standard_streams
from coord.background import cancel_and_wait
from coord.config import load
from coord.errors import CoordError, Unavailable
from coord.up.shutdown import Shutdown, shutdown_on_signals
from examples.file_survey.findings import findings
from examples.file_survey.fleet import Fleet
from examples.file_survey.jobs import Job, Outcome, jobs
from examples.file_survey.options import Options, read_options, write_report
from examples.file_survey.progress import Live
from examples.file_survey.report import plain_lines, show_failures, show_findings, show_found, show_timing
from examples.file_survey.submit import RETRY_S, submit_all
from examples.file_survey.timing import timing
from examples.file_survey.unfinished import Unfinished
from examples.file_survey.walk import Found, walk

#: Width of the tables without a terminal.
PLAIN_WIDTH = 110
#: Seconds that an interrupted run gets to cancel its tasks.
CANCEL_S = 5.0


def main() -> int:
    """Read the command line and run the survey; return the exit code."""
    standard_streams.prepare()
    console = Console(highlight=False, emoji=False, soft_wrap=True)
    if not console.is_terminal:
        console = Console(highlight=False, emoji=False, width=PLAIN_WIDTH)
    try:
        options = read_options()
        survey = _Survey(options, console)
        found = walk(options.folder)
        return asyncio.run(survey.run(found))
    except CoordError as error:
        standard_streams.write_error(f"scripts/run: {plain_lines(str(error))}")
        return 2
    except KeyboardInterrupt:  # before any process was started
        return 130


class _Survey:
    """The survey, from the first process to the last table; every obstacle is reported before anything starts."""

    def __init__(self, options: Options, console: Console) -> None:
        self._options = options
        self._console = console
        self._shutdown = Shutdown()  #: requested by the user
        self._fleet_shutdown = Shutdown()  #: of the processes, once they are not needed
        self._is_submitting = False
        self._unfinished = Unfinished(options.data)
        self._fleet = Fleet(options.data, load(), options.agents, self._write)
        self._fleet.claim()

    async def run(self, found: Found) -> int:
        """Run the survey; return the exit code."""
        work = jobs(found.files)
        show_found(self._console, found, len(work))
        if not work:
            self._write("nothing to do")
            self._write_report(found, [])
            return 0
        live = Live(self._console, work)
        with shutdown_on_signals(self._shutdown):
            fleet = asyncio.create_task(self._fleet.run(self._fleet_shutdown))
            # Without the fleet, the work would never end.
            fleet.add_done_callback(lambda _: self._shutdown.request_once())
            forcing = asyncio.create_task(self._pass_on_force())
            try:
                outcomes = await self._shutdown.unless_requested(self._work(found, work, live))
                if outcomes is None:
                    if not fleet.done():
                        await self._cancel_open(live.done, len(work))
                    return 130
                code = self._report(found, outcomes)
                if not self._options.once:
                    self._console.print(self._fleet.hints(), soft_wrap=True, markup=False)
                    await self._shutdown.requested.wait()
                    if not fleet.done():
                        self._write(
                            "stopping: agents finish what they hold, then coord up stops; Ctrl-C again stops at once"
                        )
            finally:
                self._fleet_shutdown.request_once()
                try:
                    await fleet
                finally:
                    await cancel_and_wait(forcing)
        return 130 if self._shutdown.forced.is_set() else code

    async def _pass_on_force(self) -> None:
        """Force the shutdown of the processes when the user forces ours."""
        await self._shutdown.forced.wait()
        self._fleet_shutdown.force()

    async def _cancel_open(self, done: int, tasks: int) -> None:
        """Cancel the open tasks of an interrupted run, while there is a distributor."""
        self._write(f"interrupted: {done:,} of {tasks:,} tasks were done; press Ctrl-C again to stop at once")
        if not self._is_submitting:
            return
        try:
            async with asyncio.timeout(CANCEL_S):
                cancelled = await self._shutdown.unless_forced(self._cancel())
        except (TimeoutError, CoordError):
            cancelled = None
        if cancelled is None:
            self._write("the open tasks are not cancelled; the next run with this data folder cancels them")
        elif cancelled:
            self._write(f"cancelled {cancelled:,} open tasks")

    async def _cancel(self) -> int:
        async with Client(await self._fleet.url()) as client:
            return await self._unfinished.cancel(client)

    async def _cancel_earlier(self, client: Client) -> None:
        cancelled = None
        while cancelled is None:
            try:
                cancelled = await self._unfinished.cancel(client)
            except Unavailable:
                await asyncio.sleep(RETRY_S)
        if cancelled:
            self._write(f"cancelled {cancelled:,} open tasks of an interrupted run")

    async def _work(self, found: Found, work: list[Job], live: Live) -> list[Outcome]:
        begin = time.monotonic()
        async with Client(await self._fleet.url()) as client:
            await self._cancel_earlier(client)
            active = await self._fleet.gather(client)
            self._write(
                f"{active} of {len(self._fleet.agent_ids)} agents are active after {time.monotonic() - begin:.1f} s"
            )
            self._is_submitting = True
            with live:
                return await submit_all(client, found.root, work, live, self._unfinished)

    def _report(self, found: Found, outcomes: list[Outcome]) -> int:
        """Show the tables; return the exit code."""
        facts, times = findings(outcomes), timing(outcomes)
        show_findings(self._console, facts)
        show_failures(self._console, facts)
        show_timing(self._console, times, self._fleet.ends)
        self._write_report(found, outcomes)
        return 0 if all(outcome.is_done or outcome.is_unparsable for outcome in outcomes) else 1

    def _write_report(self, found: Found, outcomes: list[Outcome]) -> None:
        if self._options.report is None:
            return
        content = {
            "found": findings(outcomes),
            "left_out": found.left_out,
            "timing": timing(outcomes) if outcomes else None,
            "ends": self._fleet.ends,
        }
        write_report(self._options.report, content)

    def _write(self, sentence: str) -> None:
        line = f"{time.strftime('%H:%M:%S')}  {escape(plain_lines(sentence))}"
        self._console.print(line, soft_wrap=not self._console.is_terminal)


if __name__ == "__main__":
    sys.exit(main())
