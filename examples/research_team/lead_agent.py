"""The orchestrator as an agent: coord starts it again when it is lost.

    python -m examples.research_team.lead_agent --id lead-1
    coord tasks submit research '"How are lost agents detected, and what becomes of their tasks?"' --wait

The id of its task is the id of the run. So the next attempt, on this agent or another one, continues where the last one
ended.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from coord import Agent, Client, NonRetryable, Task
from coord.errors import CoordError, TaskEnded
from examples.research_team.lead import Run, research


def lead_agent(agent_id: str) -> Agent:
    """Return the agent; each of its tasks is a run."""
    agent = Agent(agent_id, agent_type="orchestrator", capacity=20)
    client = Client()
    agent.on_start(client.open)
    agent.on_stop(client.close)

    @agent.task("research")
    async def lead(topic: str, task: Task) -> dict[str, Any]:
        try:
            quotes, missing = await research(Run(client, task.task_id), topic)
        except TaskEnded as error:  # a step has failed for good: so has the run
            raise NonRetryable(error.code, str(error)) from None
        return {"quotes": quotes, "missing": missing}

    return agent


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Run the orchestrator as an agent.")
    parser.add_argument("--id", required=True, help="id of this agent, such as lead-1")
    try:
        lead_agent(parser.parse_args().id).run()
    except CoordError as error:  # Redis is unavailable, or the id is invalid
        sys.exit(f"research_team: {error}")
