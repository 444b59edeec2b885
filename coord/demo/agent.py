"""An agent of ``coord demo``: ``python -m coord.demo.agent --id ocr-1 --type ocr --capacity 2``."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from coord import Agent, Message, Task, run


def make_agent(agent_id: str, task_type: str, capacity: int) -> Agent:
    """Return an agent that works for as long as the payload says, and answers requests."""
    agent = Agent(agent_id, capacity=capacity, heartbeat_interval=1)

    @agent.task(task_type)
    async def work(task: Task) -> dict[str, Any]:
        await asyncio.sleep(task.payload.get("seconds", 0.1))
        return {"done_by": agent_id, "attempt": task.attempt}

    @agent.on_request
    async def answer(message: Message) -> dict[str, Any]:
        return {"from": agent_id, "you_asked": message.payload}

    return agent


def main() -> None:
    """Run the agent until SIGTERM."""
    parser = argparse.ArgumentParser(prog="coord.demo.agent")
    parser.add_argument("--id", required=True)
    parser.add_argument("--type", required=True)
    parser.add_argument("--capacity", type=int, default=1)
    options = parser.parse_args()
    run(make_agent(options.id, options.type, options.capacity))


if __name__ == "__main__":
    main()
