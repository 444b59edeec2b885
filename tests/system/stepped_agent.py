"""An agent that dies at one step of a task's way: ``python stepped_agent.py STEP NTH AGENT_ID CAPACITY``.

Steps: ``before_claim`` (it has read an assignment and is about to claim it), ``claimed`` (the claim was answered, no
handler has started), ``mid_task`` (a handler runs), ``reported`` (Redis has the outcome, the agent has not taken note).
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any
from unittest.mock import patch

from coord import Agent, Task
from coord.agent.claims import Claims
from coord.agent.reports import Reports
from coord.agent.task import Attempt

STEPS = ("before_claim", "claimed", "mid_task", "reported")

_claim = Claims.claim
_claimed = Claims._claimed
_answered = Reports._answered


class Trap:
    """Kills this process the NTH time."""

    def __init__(self, step: str, nth: int) -> None:
        self.step, self.left = step, nth

    def pass_by(self, step: str) -> None:
        """This step is reached."""
        if step == self.step:
            self.left -= 1
            if not self.left:
                self.strike()

    def strike(self) -> None:
        """Now."""
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    trap = Trap(sys.argv[1], int(sys.argv[2]))
    agent = Agent(sys.argv[3], capabilities=["echo"], capacity=int(sys.argv[4]))

    def claim(claims: Claims) -> None:
        """In place of the method."""
        if claims._unclaimed and claims._capacity > claims.busy:
            trap.pass_by("before_claim")
        _claim(claims)

    def claimed(claims: Claims, batch: list[Attempt], answer: Any) -> None:
        """In place of the method."""
        trap.pass_by("claimed")
        _claimed(claims, batch, answer)

    def answered(reports: Reports, attempt: Attempt, answer: Any) -> None:
        """In place of the method."""
        trap.pass_by("reported")
        _answered(reports, attempt, answer)

    @agent.task("echo")
    async def echo(task: Task) -> dict[str, object]:
        """Take the time that it is told to."""
        if trap.step == "mid_task":
            asyncio.get_running_loop().call_later(task.payload["s"] / 2, trap.pass_by, "mid_task")
        await asyncio.sleep(task.payload["s"])
        return {"by": agent.agent_id, "pid": os.getpid()}

    with (
        patch.object(Claims, "claim", claim),
        patch.object(Claims, "_claimed", claimed),
        patch.object(Reports, "_answered", answered),
    ):
        agent.run()
