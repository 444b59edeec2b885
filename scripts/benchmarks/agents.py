"""SDK agents in one process: ``python -m benchmarks.agents '{"agents": N, "capacity": N, "types": […], …}'``.

Handlers do nothing. With "timed", they record the time from the submission to their start.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from coord import Agent

from .hops import agent_name
from .prompt import Prompt, main


async def work(prompt: Prompt, options: dict[str, Any]) -> None:
    """Start the agents at the first command; answer each further command with the latencies in ns."""
    waited: list[int] = []

    async def nothing(task: Any) -> None:
        pass

    async def timed(task: Any) -> None:
        waited.append(time.monotonic_ns() - task.payload["sent"])

    handler = timed if options.get("timed") else nothing
    agents = [Agent(agent_name(i), capacity=options["capacity"]) for i in range(options["agents"])]
    for agent in agents:
        for task_type in options["types"]:
            agent.task(task_type)(handler)
    await prompt.ready()
    await asyncio.gather(*(agent.start() for agent in agents))
    prompt.send("started")
    while await prompt.receive():
        prompt.send(waited)


if __name__ == "__main__":
    main(work)
