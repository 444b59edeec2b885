"""An SDK client that submits all tasks at once with ``submit_many``, or one by one at a steady rate.

``python -m benchmarks.submitter '{"tasks": N, "types": […], "per_s": null | N, "notify": false, …}'``
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from coord import Client, TaskSpec

from . import payload
from .prompt import Prompt, main

#: Tasks of one ``submit_many``.
CHUNK = 1_000


async def work(prompt: Prompt, options: dict[str, Any]) -> None:
    """Submit at the first command, answer with the seconds it took, and wait for the next command."""
    async with Client() as client:
        submit = at_once if options.get("per_s") is None else steadily
        prompt.send(await submit(prompt, client, options))
        await prompt.receive()


async def at_once(prompt: Prompt, client: Client, options: dict[str, Any]) -> float:
    """Submit as fast as possible; with ``notify``, wait for each outcome."""
    types, count, notify = options["types"], options["tasks"], bool(options.get("notify"))
    body = payload.payload()
    if options.get("apart"):
        types = [f"{types[0]}-{number}" for number in range(count)]  # each task in its own pool
    specs = [TaskSpec(task_type=types[i % len(types)], payload=body, notify=notify) for i in range(count)]
    await prompt.ready()
    begin = time.monotonic()
    handles = []
    for at in range(0, count, CHUNK):
        handles += await client.submit_many(specs[at : at + CHUNK])
    appended = time.monotonic() - begin
    if notify:
        for handle in handles:
            await handle.result()
    return appended


async def steadily(prompt: Prompt, client: Client, options: dict[str, Any]) -> float:
    """Submit at a fixed rate without waiting for earlier tasks, so the latency of slow moments is not hidden."""
    task_type, count, gap_s = options["types"][0], options["tasks"], 1 / options["per_s"]
    await prompt.ready()
    begin = time.monotonic()
    pending = []
    for number in range(count):
        await asyncio.sleep(begin + number * gap_s - time.monotonic())
        sent = payload.payload(sent=time.monotonic_ns())
        pending.append(asyncio.create_task(client.submit(task_type, sent)))
    await asyncio.gather(*pending)
    return time.monotonic() - begin


if __name__ == "__main__":
    main(work)
