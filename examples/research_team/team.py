"""One agent of the team. Each role is a task type; an agent has one role.

    python -m examples.research_team.team reader --id reader-1

``coord up --agents examples/research_team/agents.toml`` starts the whole team.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from coord import Agent, Task
from coord.errors import CoordError
from examples.research_team.library import Library, Quote, cover, terms

DOCUMENTS = Path(__file__).parents[2] / "docs"
#: Maximum documents of a plan, quotes from one document, and points of a report.
READ, QUOTES, POINTS = 5, 3, 6
#: Maximum seconds of --think.
THINK_LIMIT_S = 3_600.0


class Question(msgspec.Struct):
    """The payload of ``research.plan``."""

    question: str


class Reading(msgspec.Struct):
    """The payload of ``research.read``."""

    path: str
    question: str


class Findings(msgspec.Struct):
    """The payload of ``research.write`` and ``research.review``."""

    topic: str
    quotes: list[Quote]


class Roles:
    """The work of each role.

    Args:
        library: the documents.
        think_s: seconds that a task takes, as with a real model.
        ledger: file that gets a line for each execution of a task; None: none.
    """

    def __init__(self, library: Library, think_s: float = 0.0, ledger: Path | None = None) -> None:
        self._library = library
        self._think_s = think_s
        self._ledger = ledger

    def planner(self, payload: Question, task: Task) -> list[str]:
        """Choose the documents to read."""
        self._begin(task)
        return self._library.relevant(payload.question, READ)

    def reader(self, payload: Reading, task: Task) -> list[Quote]:
        """Answer a question from one document."""
        self._begin(task)
        return self._library.best(payload.path, payload.question, QUOTES)

    def writer(self, payload: Findings, task: Task) -> list[Quote]:
        """Write the report: the findings that together say most."""
        self._begin(task)
        return cover(dict.fromkeys(payload.quotes), payload.topic, POINTS)

    def reviewer(self, payload: Findings, task: Task) -> dict[str, Any]:
        """Check each quote, and whether the report covers the topic."""
        self._begin(task)
        covered = {term for quote in payload.quotes for term in terms(quote.text)}
        return {
            "wrong": [quote for quote in payload.quotes if not self._library.has(quote)],
            "missing": sorted(terms(payload.topic) - covered),
        }

    def _begin(self, task: Task) -> None:
        if self._ledger is not None:
            with self._ledger.open("a") as ledger:  # one short write: lines of several agents do not mix
                ledger.write(f"{task.task_id} attempt {task.attempt}\n")
        time.sleep(self._think_s)


#: Role -> its task type.
TASK_TYPES = {
    "planner": "research.plan",
    "reader": "research.read",
    "writer": "research.write",
    "reviewer": "research.review",
}


def main() -> None:
    """Run an agent until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="Run one agent of the research team.")
    parser.add_argument("role", choices=TASK_TYPES, help="what it does")
    parser.add_argument("--id", required=True, help="id of this agent, such as reader-1")
    parser.add_argument("--documents", type=Path, default=DOCUMENTS, help="folder of Markdown files [docs]")
    parser.add_argument("--think", type=float, default=0.0, help="seconds that a task takes, as with a real model [0]")
    parser.add_argument("--ledger", type=Path, help="append a line to this file for each execution of a task")
    options = parser.parse_args()
    if not options.documents.is_dir():
        parser.error(f"--documents: {str(options.documents)!r} is not a folder")
    if not 0 <= options.think < THINK_LIMIT_S:
        parser.error(f"--think must be 0 to {THINK_LIMIT_S:g} s, got {options.think:g}")
    roles = Roles(Library(options.documents), options.think, options.ledger)
    agent = Agent(options.id, agent_type="worker", tags=["research"], capacity=2)
    agent.task(TASK_TYPES[options.role])(getattr(roles, options.role))
    agent.run()


if __name__ == "__main__":
    try:
        main()
    except CoordError as error:  # Redis is unavailable, or the id is invalid
        sys.exit(f"research_team: {error}")
