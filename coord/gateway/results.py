"""Handler of the outcomes of tasks, as a stream of JSON lines."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from msgspec import Struct

from coord import Client, codec
from coord.gateway.routes import Call, Stream
from coord.gateway.schemas import TaskSchema
from coord.models.query import Query
from coord.models.task_query import TASKS

#: Bytes that are collected before they are sent.
CHUNK = 32 * 1024


class ResultsQuery(Struct, frozen=True):
    """The query of GET /tasks/results."""

    q: str = ""  #: ``type:ocr since:1h``


async def results(call: Call[None, ResultsQuery]) -> Stream:
    """Stream the records of ended tasks that match a query, one JSON object a line; the first that ended first."""
    query = TASKS.parse(call.query.q)
    await call.backend.counters()  # raises if Redis is unavailable: after the first byte there is no status any more
    return Stream(_lines(call.backend.client, query), "application/x-ndjson")


async def _lines(client: Client, query: Query) -> AsyncGenerator[bytes]:
    collected = bytearray()
    async with aclosing(client.results(query)) as records:
        async for record in records:
            collected += codec.encode(TaskSchema.of(record)) + b"\n"
            if len(collected) >= CHUNK:
                yield bytes(collected)
                collected.clear()
    if collected:
        yield bytes(collected)
