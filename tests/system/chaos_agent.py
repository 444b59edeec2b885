"""An agent to whom everything happens: its tasks say whether they are done, fail, hang, or take the process with them.

``python chaos_agent.py ID CAPACITY FILE``: each execution is a line of FILE, ``task attempt``, written before the work.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from pathlib import Path
from typing import Any

from coord import Agent, NonRetryable


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    """Serve until killed, or until whoever started it is gone."""
    agent_id, capacity, path = sys.argv[1:]
    threading.Thread(target=_end_with_parent, daemon=True).start()
    executions = os.open(Path(path), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    agent = Agent(agent_id, capabilities=["chaos"], capacity=int(capacity))

    @agent.task("chaos")
    async def _(task: Any) -> dict[str, Any]:
        os.write(executions, f"{task.task_id} {task.attempt}\n".encode())
        how = task.payload["how"]
        if how == "bad":
            raise NonRetryable("it will never work")
        if task.attempt == 1 and how == "hangs":
            await asyncio.Event().wait()
        if task.attempt == 1 and how == "dies":
            os._exit(1)
        await asyncio.sleep(task.payload["s"])
        if task.attempt == 1 and how == "fails":
            raise RuntimeError("it works the next time")
        return {"by": agent_id}

    agent.run()


if __name__ == "__main__":
    main()
