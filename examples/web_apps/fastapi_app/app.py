"""A FastAPI app that submits tasks and streams their progress to the browser as server-sent events.

    uvicorn --app-dir examples/web_apps/fastapi_app app:app

The id of a task follows from the request. So a second click, a retry of the browser and a second visitor get the same
task.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Path, Request
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from coord import Client, TaskHandle
from coord.errors import CoordError, Unavailable
from coord.models.tasks import TERMINAL, TaskState

#: Seconds between two looks at a task.
POLL_S = 0.2
#: Seconds that a distributor has to admit a task.
ADMIT_S = 10.0
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Primes</title>
<form><label>Primes below <input name="below" type="number" min="0" max="1000000000" value="200000000" required></label>
<button>Count</button></form><progress value="0" aria-label="Progress"></progress> <output></output>
<script>
const [form, bar, out] = ["form", "progress", "output"].map(name => document.querySelector(name))
form.onsubmit = async event => {
  event.preventDefault()
  const url = `/primes/${form.below.value}`
  const answer = await fetch(url, {method: "POST"})
  if (!answer.ok) return out.value = (await answer.json()).message
  const source = new EventSource(`${url}/events`)
  source.addEventListener("progress", ({data}) => { bar.value = JSON.parse(data).examined / form.below.value })
  for (const end of ["completed", "failed", "cancelled", "expired"])
    source.addEventListener(end, ({data}) => { source.close(); bar.value = 1; out.value = `${end}: ${data}` })
}
</script>
"""
Below = Annotated[int, Path(ge=0, le=1_000_000_000)]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the client with the app; all requests share its connection."""
    async with Client() as client:
        app.state.client = client
        yield


app = FastAPI(title="Primes", lifespan=lifespan)


@app.exception_handler(CoordError)
async def on_error(_request: Request, error: CoordError) -> JSONResponse:
    """Answer with the status that belongs to an error: 404 for no such task, 503 while Redis is unavailable."""
    return JSONResponse({"code": error.code, "message": str(error)}, error.http_status)


@app.get("/", response_class=HTMLResponse)
async def page() -> str:
    """Return the page."""
    return PAGE


@app.post("/primes/{below}", status_code=202)
async def submit(below: Below, request: Request) -> dict[str, str]:
    """Submit the task, or find it, and return when it is admitted."""
    handle = await request.app.state.client.submit("primes", {"below": below}, task_id=task_id(below), timeout=600)
    await handle.accepted(timeout=ADMIT_S)
    return {"task_id": handle.task_id, "events": f"/primes/{below}/events"}


async def submitted(below: Below, request: Request) -> TaskHandle:
    """Return the task of a request; it is an error if there is none, before the stream begins."""
    handle: TaskHandle = request.app.state.client.handle(task_id(below))
    await handle.record()
    return handle


@app.get("/primes/{below}/events", response_class=EventSourceResponse)
async def events(handle: Annotated[TaskHandle, Depends(submitted)]) -> AsyncIterator[ServerSentEvent]:
    """Stream the progress of the task, and then its outcome."""
    last: Any = None
    while True:
        try:
            record = await handle.record()
        except Unavailable:
            return  # the browser connects again
        if record.progress not in (None, last):
            last = record.progress
            yield ServerSentEvent(event="progress", data=last)
        if record.state in TERMINAL:
            is_done = record.state is TaskState.COMPLETED
            outcome = record.result if is_done else record.error and record.error.message
            yield ServerSentEvent(event=record.state.value, data=outcome)
            return
        await asyncio.sleep(POLL_S)


def task_id(below: int) -> str:
    """Return the id of the task for a request."""
    return f"primes-{below}"
