"""Sends the heartbeats of many agents, evenly spread over their interval.

``python -m benchmarks.beater '{"agents": N, "interval_s": S}'``
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from coord.config import Settings
from coord.connection import connect
from coord.keys import Keys
from coord.models.facts import AgentHeartbeat
from coord.streams import Append, append

from .hops import agent_name
from .prompt import Prompt, main

#: Seconds between two writes.
STEP_S = 0.01


async def work(prompt: Prompt, options: dict[str, Any]) -> None:
    """Send heartbeats from the first command on, until the next one."""
    names = [agent_name(number) for number in range(options["agents"])]
    rate = len(names) / options["interval_s"]
    redis, keys = connect(os.environ["COORD_REDIS_URL"], Settings()), Keys("coord")
    await prompt.ready()
    sending = asyncio.create_task(_send(redis, keys, names, rate))
    await prompt.receive()
    sending.cancel()
    await redis.aclose()


async def _send(redis: Any, keys: Keys, names: list[str], rate: float) -> None:
    began, sent = time.monotonic(), 0
    while True:
        due = int((time.monotonic() - began) * rate)
        facts = [
            AgentHeartbeat(
                agent_id=name,
                incarnation=f"incarnation-of-{name}",
                load_metrics={"cpu": 0.1, "memory": 0.2},
                leases=0,
            )
            for name in (names[number % len(names)] for number in range(sent, due))
        ]
        if facts:
            await append(redis, keys, [Append("in:beats", fact) for fact in facts])
        sent = due
        await asyncio.sleep(STEP_S)


if __name__ == "__main__":
    main(work)
