"""A client of /events, as a browser's EventSource: it keeps the last id, and connects again where the test says so."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp

from coord.background import cancel_and_wait
from tests.waiting import wait_until


class EventSource:
    """Listens to one gateway after another.

    Args:
        path: with the query, such as ``/events?type=task``.
    """

    def __init__(self, path: str = "/events") -> None:
        self.path = path
        self.events: list[dict[str, Any]] = []
        self.last_id = ""
        self.retry_ms = 0
        self.ends = 0  #: how often the gateway itself has ended the stream
        self._task: asyncio.Task[None] | None = None
        self._is_connected = asyncio.Event()

    async def connect(self, port: int) -> EventSource:
        """Listen to the gateway at a port from where the last one ended, once it has answered."""
        await self.disconnect()
        self._is_connected = asyncio.Event()
        self._task = asyncio.create_task(self._listen(f"http://127.0.0.1:{port}{self.path}"))
        waiting = asyncio.create_task(self._is_connected.wait())
        await asyncio.wait((self._task, waiting), timeout=30, return_when=asyncio.FIRST_COMPLETED)
        if self._task.done():
            self._task.result()
        assert self._is_connected.is_set()
        return self

    async def disconnect(self) -> None:
        """Close the connection."""
        await cancel_and_wait(self._task)
        self._task = None

    async def ended(self) -> None:
        """Wait until the connection has ended from the other side."""
        await wait_until(lambda: self._task is None or self._task.done(), "the stream has ended")

    @property
    def names(self) -> list[str]:
        """The events, by the task that each is about."""
        return [event["data"]["task_id"] for event in self.events if "task_id" in event["data"]]

    async def hears(self, name: str) -> None:
        """Wait for an event of a task."""
        await wait_until(lambda: name in self.names, f"{name} is received", 60)

    async def _listen(self, url: str) -> None:
        headers = {"Last-Event-ID": self.last_id} if self.last_id else {}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30)
        try:
            async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url, headers=headers) as answer:
                assert answer.status == 200, await answer.text()
                assert answer.content_type == "text/event-stream"
                await self._read(answer.content)
        except (aiohttp.ClientError, OSError):
            if not self._is_connected.is_set():
                raise

    async def _read(self, content: aiohttp.StreamReader) -> None:
        data, event_id = "", ""
        async for raw in content:
            name, _, value = raw.decode().rstrip("\n").partition(": ")
            if name == "id":
                event_id = value
            elif name == "data":
                data = value
            elif name == "retry":
                self.retry_ms = int(value)
            elif not name and not value:
                self.last_id = event_id
                if data:
                    self.events.append(json.loads(data))
                    assert self.events[-1]["position"] == event_id
                data = ""
                self._is_connected.set()
        self.ends += 1
