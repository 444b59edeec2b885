"""The tour of ``coord demo``: each step says what it shows, the command that a person would type, and its output."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable

from coord.demo.cell import DemoCell
from coord.models.tasks import TaskState

NEXT_STEPS = """\
What you have seen ran in a temporary folder, which is gone now. Next:

  coord up                     start a cell that stays; it prints the address of its dashboard
  coord top                    after `coord up`: watch it live; in a browser, http://127.0.0.1:9001/ui
  coord doctor                 after `coord up`: check it
  coord --help                 all commands, each with examples

docs/getting-started.md has a first agent in Python, docs/programs.md one in any language.
"""


class Tour:
    """The steps of the demo.

    Args:
        cell: the running cell.
        write: writes a line.
        fast: do not pause, and let tasks be short.
    """

    def __init__(self, cell: DemoCell, write: Callable[[str], None], *, fast: bool) -> None:
        self._cell = cell
        self._write = write
        self._fast = fast
        self._number = 0

    def run(self) -> None:
        """Show all steps."""
        for step in STEPS:
            self._number += 1
            step(self)
            self._pause()

    def fleet(self) -> None:
        """Show the agents that run."""
        self._title("Three agents of two kinds run in this cell", "coord up --agents agents.toml started them.")
        self._run("coord agents list")

    def placement(self) -> None:
        """Show where a task goes, and why."""
        self._title("coord chooses an agent for each task", "`coord tasks explain` says why this one.")
        self._run("""coord tasks submit ocr '{"page": 1}' --id page-1 --wait""")
        self._run("coord tasks explain page-1")

    def priorities(self) -> None:
        """Show that an urgent task overtakes others that wait."""
        self._title("Urgent tasks go first", "The reporter takes one task at a time, so three tasks compete for it.")
        work_s = 0.3 if self._fast else 1.5
        tasks = [("first", "normal"), ("relaxed", "low"), ("pressing", "urgent")]
        payload = f'"payload": {{"seconds": {work_s}}}'
        lines = [
            f'{{"task_id": "{name}", "task_type": "report", "priority": "{priority}", {payload}}}'
            for name, priority in tasks
        ]
        (self._cell.folder / "tasks.jsonl").write_text("".join(f"{line}\n" for line in lines))
        self._write("$ cat tasks.jsonl")
        self._output("\n".join(lines))
        self._run("coord tasks submit --file tasks.jsonl")
        records = []
        for name, _ in tasks:
            self._until(name, TaskState.COMPLETED)
            records.append(self._cell.client.task(name))
        order = sorted(records, key=lambda record: record.assigned_at or 0)
        self._say(f"They ran in this order: {', '.join(record.task_id for record in order)}.")

    def waiting(self) -> None:
        """Show why a task waits."""
        self._title("A task that waits says why", "No agent here has a gpu.")
        self._run("""coord tasks submit ocr '{"page": 2}' --id needs-gpu --capability gpu""")
        self._run("coord tasks explain needs-gpu")
        self._run("coord tasks cancel needs-gpu")

    def failure(self) -> None:
        """Kill an agent in the middle of a task."""
        self._title("An agent crashes, and its task goes on elsewhere", "Its process is killed while it works.")
        seconds = 1 if self._fast else 4
        self._run(f"""coord tasks submit ocr '{{"page": 3, "seconds": {seconds}}}' --id survivor""")
        self._until("survivor", TaskState.RUNNING)
        agent_id = self._cell.client.task("survivor").agent_id or ""
        self._write(f"$ kill -9 {self._cell.kill_agent(agent_id)}   # {agent_id}")
        self._until("survivor", TaskState.COMPLETED)
        self._run("coord tasks show survivor")
        self._say("`coord up` saw its process end and restarted it, so nothing had to wait for missed heartbeats.")

    def drain(self) -> None:
        """Take an agent out of service."""
        self._title(
            "Agents leave and return without losing work", "A drained agent finishes what it has and gets nothing new."
        )
        self._run("coord agents drain ocr-1")
        self._run("""coord tasks submit ocr '{"page": 4}' --id page-4 --wait""")
        self._run("coord agents resume ocr-1")

    def messages(self) -> None:
        """Ask an agent something."""
        self._title("Agents answer requests", "The coordinator keeps the deadline; in Python it is one call.")
        self._run("coord agents ping ocr-2")
        self._write(""">>> client.request("ocr-2", {"question": "are you there?"}, timeout=10)""")
        self._output(repr(self._cell.client.request("ocr-2", {"question": "are you there?"}, timeout=10)))

    def health(self) -> None:
        """Check the cell."""
        self._title("The doctor checks everything, and says what to do", "The crash above left no trace in the ledger.")
        self._run("coord doctor")

    def _title(self, title: str, text: str) -> None:
        self._write("")
        self._write(f"{self._number}. {title}")
        self._write(f"   {text}")
        self._write("")

    def _say(self, text: str) -> None:
        self._write(f"   {text}")

    def _run(self, line: str) -> None:
        self._write(f"$ {line}")
        self._output(self._cell.command(shlex.split(line)[1:]))

    def _output(self, text: str) -> None:
        for line in text.rstrip("\n").splitlines():
            self._write(f"  {line}")
        self._pause(0.5)

    def _until(self, task_id: str, *states: TaskState) -> None:
        self._cell.wait(lambda: self._cell.client.task(task_id).state in states, f"{task_id} is {states[0]}")

    def _pause(self, seconds: float = 3.0) -> None:
        if not self._fast:
            time.sleep(seconds)


#: The steps, in their order.
STEPS: tuple[Callable[[Tour], None], ...] = (
    Tour.fleet,
    Tour.placement,
    Tour.priorities,
    Tour.waiting,
    Tour.failure,
    Tour.drain,
    Tour.messages,
    Tour.health,
)
