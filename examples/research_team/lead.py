"""The orchestrator of the research team. Kill it at any time and start it again: no task runs twice.

    python -m examples.research_team.lead "How are lost agents detected, and what becomes of their tasks?"

It keeps no state. Each task has an id that follows from the run and the step. So after a restart it submits the same
tasks again, coord returns the ones that exist, and the results of those that have ended arrive at once.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import sys
from collections.abc import Sequence
from typing import Any

from coord import Client, TaskSpec
from coord.errors import CoordError, TaskFailed
from coord.models.ids import check_id

#: Maximum rounds of plan, read, write and review.
ROUNDS = 3


class Run:
    """The steps of one run: submitted, or found if an earlier process has submitted them.

    Args:
        client: an open client.
        run_id: id of the run; the same id continues the run.
    """

    def __init__(self, client: Client, run_id: str) -> None:
        self._client = client
        self._run_id = run_id

    async def ask(self, step: str, task_type: str, payload: dict[str, Any]) -> Any:
        """Return the result of one task."""
        handle = await self._client.submit(task_type, payload, task_id=f"{self._run_id}.{step}")
        _say(handle.task_id)
        return await handle.result()

    async def read(self, step: str, paths: Sequence[str], question: str) -> list[Any]:
        """Fan out: one task for each document. Join: their results in the order of the plan."""
        handles = await self._client.submit_many(
            TaskSpec(
                task_id=f"{self._run_id}.{step}.{number}",
                task_type="research.read",
                payload={"path": path, "question": question},
            )
            for number, path in enumerate(paths, 1)
        )
        _say(f"{self._run_id}.{step}: {', '.join(paths) or 'no document'}")
        found: list[Any] = []
        for handle in handles:
            try:
                found += await handle.result()
            except TaskFailed as error:  # one document less; the failure is recorded, so a restart decides the same
                _say(str(error))
        return found


async def research(run: Run, topic: str) -> tuple[list[Any], list[str]]:
    """Return the report about a topic: its quotes, and the words of the topic that no quote mentions."""
    question, found, report, missing = topic, list[Any](), list[Any](), list[str]()
    for number in range(1, ROUNDS + 1):
        paths = await run.ask(f"{number}.plan", "research.plan", {"question": question})
        found += await run.read(f"{number}.read", paths, question)
        report = await run.ask(f"{number}.write", "research.write", {"topic": topic, "quotes": found})
        review = await run.ask(f"{number}.review", "research.review", {"topic": topic, "quotes": report})
        wrong, missing = review["wrong"], review["missing"]
        found, report = ([quote for quote in quotes if quote not in wrong] for quotes in (found, report))
        if not wrong and " ".join(missing) in ("", question):  # complete, or nothing new in this round
            break
        question = " ".join(missing) or topic
    return report, missing


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


async def _main() -> None:
    parser = argparse.ArgumentParser(description="Let the research team answer a question from the documents.")
    parser.add_argument("topic", help="the question")
    parser.add_argument("--run", metavar="ID", help="id of the run [a digest of the question]")
    options = parser.parse_args()
    if options.run:
        check_id(options.run, "--run")
    run_id = options.run or f"research-{hashlib.sha256(options.topic.encode()).hexdigest()[:8]}"
    async with Client() as client:
        report, missing = await research(Run(client, run_id), options.topic)
    for quote in report:
        print(f"{quote['text']}  [{quote['path']}:{quote['line']}]")
    if missing:
        print(f"no document mentions: {', '.join(missing)}")


if __name__ == "__main__":
    try:
        asyncio.run(_main())
    except CoordError as error:  # Redis is unavailable, or a step has failed for good
        sys.exit(f"research_team: {error}")
    except KeyboardInterrupt:
        sys.exit(130)  # the tasks go on; the same command continues the run
