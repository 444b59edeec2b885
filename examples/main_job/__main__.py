"""``scripts/run``: bring everything up, have agents look at every file of a folder, show what they found."""

from __future__ import annotations

import asyncio
import sys
import time

from coord.interrupts import end_on_interrupt

if __name__ == "__main__":
    end_on_interrupt()  # while the rest is imported, and until there is something to end

from rich.console import Console
from rich.markup import escape

from coord import Client, standard_streams
from coord.aio import end
from coord.cli.signals import stop_on_signals
from coord.config import load
from coord.errors import CoordError
from coord.up.shutdown import Stop
from coord.up.supervisor import GaveUp
from examples.main_job.findings import findings
from examples.main_job.fleet import Fleet
from examples.main_job.kinds import Job, jobs
from examples.main_job.options import Options, read_options, write_report
from examples.main_job.outcome import Outcome
from examples.main_job.progress import Live
from examples.main_job.report import plain_lines, show_failures, show_findings, show_found, show_timing
from examples.main_job.submit import AGAIN_S, AWAY, submit_all
from examples.main_job.timing import timing
from examples.main_job.unfinished import Unfinished
from examples.main_job.walk import Found, walk

#: Wide enough for the tables where there is no terminal to ask.
PLAIN_WIDTH = 110
#: How long an interrupted run may take to cancel what it has submitted.
CANCEL_S = 5.0


def main() -> int:
    """Read the command line and do the job; the exit code."""
    standard_streams.prepare()
    console = Console(highlight=False, emoji=False, soft_wrap=True)
    if not console.is_terminal:
        console = Console(highlight=False, emoji=False, width=PLAIN_WIDTH)
    try:
        options = read_options()
        job = _Job(options, console)
        found = walk(options.folder)
        return asyncio.run(job.run(found))
    except CoordError as error:
        standard_streams.tell(f"scripts/run: {plain_lines(str(error))}")
        return 2
    except KeyboardInterrupt:  # before there was anything to end
        return 130


class _Job:
    """The job from the first process to the last table; what stands in its way is found out before anything is done."""

    def __init__(self, options: Options, console: Console) -> None:
        self._options = options
        self._console = console
        self._stop = Stop()  #: what a person wishes
        self._over = Stop()  #: for the processes, once we need them no more
        self._is_submitting = False
        self._unfinished = Unfinished(options.data)
        self._fleet = Fleet(options.data, load(), options.agents, self._say)
        self._fleet.claim()

    async def run(self, found: Found) -> int:
        """Do it; the exit code."""
        work = jobs(found.files)
        show_found(self._console, found, len(work))
        if not work:
            self._say("nothing to do")
            self._write_report(found, [])
            return 0
        live = Live(self._console, work)
        with stop_on_signals(self._stop):
            keeping = asyncio.create_task(self._fleet.run(self._over))
            # However it ends: without it, the work would be waited for for ever.
            keeping.add_done_callback(lambda _: self._stop.ask_once())
            hurrying = asyncio.create_task(self._hurry())
            try:
                outcomes = await self._stop.unless_asked(self._work(found, work, live))
                if outcomes is None:
                    if not keeping.done():
                        await self._interrupted(live.done, len(work))
                    return 130
                code = self._report(found, outcomes)
                if not self._options.once:
                    self._console.print(self._fleet.hints(), soft_wrap=True, markup=False)
                    await self._stop.asked.wait()
                    if not keeping.done():
                        self._say(
                            "ending: agents finish what they hold, then coord up ends; Ctrl-C again ends all at once"
                        )
            finally:
                self._over.ask_once()
                try:
                    await self._ended(keeping)
                finally:
                    await end(hurrying)
        return 130 if self._stop.urgent.is_set() else code

    async def _hurry(self) -> None:
        """What becomes urgent for us is so for the processes."""
        await self._stop.urgent.wait()
        self._over.ask()
        self._over.ask()

    async def _interrupted(self, done: int, tasks: int) -> None:
        """Cancel what was submitted, while those are there who can."""
        self._say(f"ending in the middle; Ctrl-C again ends all at once; {done:,} of {tasks:,} tasks were done")
        if not self._is_submitting:
            return
        try:
            async with asyncio.timeout(CANCEL_S):
                cancelled = await self._stop.unless_urgent(self._cancel())
        except (*AWAY, CoordError):
            cancelled = None
        if cancelled is None:
            self._say("the other tasks are left; the next run with this data folder cancels them")
        elif cancelled:
            self._say(f"cancelled {cancelled:,} tasks that were not done")

    async def _cancel(self) -> int:
        async with Client(await self._fleet.url()) as client:
            return await self._unfinished.cancel(client)

    async def _cancel_earlier(self, client: Client) -> None:
        cancelled = None
        while cancelled is None:
            try:
                cancelled = await self._unfinished.cancel(client)
            except AWAY:
                await asyncio.sleep(AGAIN_S)
        if cancelled:
            self._say(f"cancelled {cancelled:,} unfinished tasks of a run that was ended in the middle")

    async def _ended(self, keeping: asyncio.Task[None]) -> None:
        try:
            await keeping
        except GaveUp as error:
            words = self._fleet.last_words(error.program.name)
            raise CoordError(f"{error.program.name} gave up: {words}") from None

    async def _work(self, found: Found, work: list[Job], live: Live) -> list[Outcome]:
        begin = time.monotonic()
        async with Client(await self._fleet.url()) as client:
            await self._cancel_earlier(client)
            there = await self._fleet.gather(client)
            self._say(
                f"{there} of {len(self._fleet.agent_ids)} agents are there after {time.monotonic() - begin:.1f} s"
            )
            self._is_submitting = True
            with live:
                return await submit_all(client, found.root, work, live, self._unfinished)

    def _report(self, found: Found, outcomes: list[Outcome]) -> int:
        """Show the tables; the exit code."""
        facts, times = findings(outcomes), timing(outcomes)
        show_findings(self._console, facts)
        show_failures(self._console, facts)
        show_timing(self._console, times, self._fleet.ends)
        self._write_report(found, outcomes)
        return 0 if all(one.is_done or one.is_unparsable for one in outcomes) else 1

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

    def _say(self, sentence: str) -> None:
        said = f"{time.strftime('%H:%M:%S')}  {escape(plain_lines(sentence))}"
        self._console.print(said, soft_wrap=not self._console.is_terminal)


if __name__ == "__main__":
    sys.exit(main())
