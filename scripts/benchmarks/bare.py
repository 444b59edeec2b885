"""The yardstick of ``scripts/bench gateway``: ``python -m benchmarks.bare '{"url": REDIS, "port": N}'``.

Bare Falcon on uvicorn with httptools, on the loop that the gateway uses. It decodes nothing, checks nothing and appends
each body with an XADD; the XADDs of requests that arrive during one round trip travel together in the next.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import falcon
import falcon.asgi
import uvicorn
import uvloop
from redis.asyncio import Redis

#: Entries that are kept.
KEPT = 100_000


class Stream:
    """Appends entries, with at most one round trip in flight."""

    def __init__(self, url: str) -> None:
        self._redis = Redis.from_url(url, protocol=3)
        self._waiting: list[tuple[bytes, asyncio.Future[bytes]]] = []
        self._sending: asyncio.Task[None] | None = None

    async def append(self, data: bytes) -> bytes:
        """Append one entry; return its id."""
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append((data, future))
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())
        return await future

    async def _send(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            pipe = self._redis.pipeline(transaction=False)
            for data, _ in batch:
                pipe.xadd("bare", {"data": data}, maxlen=KEPT)
            for (_, future), entry in zip(batch, await pipe.execute(), strict=True):
                future.set_result(entry)


class Submit:
    """``POST /tasks/submit``."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """Append the body."""
        entry = await self._stream.append(await req.stream.read())
        resp.status = 202
        resp.content_type = falcon.MEDIA_JSON
        resp.data = b'{"status":"accepted","entry":"%b"}' % entry


class Live:
    """``GET /health/live``."""

    async def on_get(self, _req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        """Respond at once."""
        resp.data = b"{}"


async def serve(options: dict[str, Any]) -> None:
    """Serve until SIGTERM."""
    app: falcon.asgi.App[Any, Any] = falcon.asgi.App()
    app.add_route("/tasks/submit", Submit(Stream(options["url"])))
    app.add_route("/health/live", Live())
    config = uvicorn.Config(app, port=options["port"], http="httptools", loop="none", access_log=False, log_config=None)
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    uvloop.run(serve(json.loads(sys.argv[1])))
