"""A distributed trace: from an HTTP request through the coordinator to the handler and what it submits."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from coord import Client, NonRetryable, Task, spans
from coord.client.coordination import CoordinationSpans, spans_of
from coord.errors import ConfigError, TaskFailed
from coord.gateway.app import make_app
from coord.gateway.backend import Backend
from coord.gateway.protocol import RESPOND
from coord.gateway.traced import TracedApp
from coord.models.tasks import AttemptRecord, Priority, TaskRecord, TaskState
from coord.otel import OtelRecorder
from tests.running import RunningCell
from tests.stories.conftest import MakeAgent
from tests.waiting import wait_until

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Collects the spans of this process."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(spans, "recorder", OtelRecorder(provider))
    return exporter


@pytest.fixture
async def coordination(client: Client, exporter: InMemorySpanExporter) -> AsyncIterator[None]:
    """Exports the spans of tasks that end, as ``coord trace spans`` does, from the begin of the test on."""
    assert spans.recorder is not None
    following = asyncio.create_task(CoordinationSpans(client.connection, spans.recorder).follow(since="0-0"))
    yield
    following.cancel()
    await asyncio.wait({following})


async def post(app: TracedApp, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    """POST to an ASGI app; status and body of the response."""
    data = json.dumps(body).encode()
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": data, "more_body": False}

    async def send(event: Any) -> None:
        sent.append(event)

    def respond(status: int, _headers: Any, body: bytes) -> bool:
        """As the gateway's own server, which sends a whole response in one write."""
        sent.extend(({"status": status}, {"body": body}))
        return True

    given = {"host": "localhost", "content-type": "application/json", "content-length": str(len(data)), **headers}
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"",
        "client": ("127.0.0.1", 1),
        RESPOND: respond,
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }
    await app(scope, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


def by_name(exporter: InMemorySpanExporter) -> dict[str, list[ReadableSpan]]:
    """The spans that have ended."""
    found: dict[str, list[ReadableSpan]] = {}
    for span in exporter.get_finished_spans():
        found.setdefault(span.name, []).append(span)
    return found


def ids(span: ReadableSpan) -> tuple[str, str, str]:
    """The trace, the span and its parent, in hex digits."""
    assert span.context is not None
    parent = f"{span.parent.span_id:016x}" if span.parent is not None else ""
    return f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}", parent


@pytest.mark.usefixtures("coordination")
async def test_one_trace_from_http_to_the_outcome(
    cell: RunningCell, make_agent: MakeAgent, exporter: InMemorySpanExporter
) -> None:
    """HTTP, submit, admit, wait, dispatch, handler and settle are one trace, and so is what the handler submits."""
    agent = make_agent("a1")

    async with Client(cell.url, settings=cell.settings) as inner:

        @agent.task("outer")
        async def outer(task: Task) -> str:
            await inner.submit("thread", task_id="t2")
            return str(task.traceparent)

        @agent.task("thread")
        def thread(task: Task) -> str:
            return "done in a thread"

        await agent.start()
        settings = replace(cell.settings, redis_url=cell.url)
        backend = Backend(settings)
        backend.open(lambda error: pytest.fail(str(error)))
        try:
            await wait_until(lambda: backend._client is not None, "the gateway has found Redis", 20)
            app = TracedApp(make_app(backend, settings))
            data = {"task_type": "outer", "task_id": "t1", "required_capabilities": ["outer"]}
            status, _ = await post(app, "/v1/tasks/submit", {"task_data": data}, traceparent=TRACEPARENT)
            assert status == 200
            await wait_until(lambda: len(by_name(exporter).get("coord.settle", ())) == 2, "both tasks have ended", 20)
        finally:
            await backend.close()
    found = by_name(exporter)
    names = ("coord.submit", "coord.admit", "coord.wait", "coord.dispatch", "coord.settle")
    assert {name: len(found[name]) for name in names} == dict.fromkeys(names, 2)
    assert {ids(span)[0] for of_name in found.values() for span in of_name} == {TRACE}
    (http,) = found["POST /tasks/submit"]
    assert http.attributes is not None
    assert (ids(http)[2], http.attributes["http.response.status_code"]) == (PARENT, 200)
    submit, child = found["coord.submit"]
    (outer_span,), (thread_span,) = found["coord.handle outer"], found["coord.handle thread"]
    assert ids(submit)[2] == ids(http)[1]
    assert ids(outer_span)[2] == ids(submit)[1]
    assert ids(child)[2] == ids(outer_span)[1]
    assert ids(thread_span)[2] == ids(child)[1]
    for name in names[1:]:
        assert {ids(span)[2] for span in found[name]} == {ids(submit)[1], ids(child)[1]}, name
    for span in (*found["coord.wait"], *found["coord.dispatch"], *found["coord.admit"]):
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.end_time >= span.start_time


@pytest.mark.usefixtures("coordination")
async def test_a_failure_is_in_the_trace(client: Client, make_agent: MakeAgent, exporter: InMemorySpanExporter) -> None:
    """The handler's exception and the outcome are errors; a task that was given its place keeps the trace."""
    agent = make_agent("a1")

    @agent.task("break")
    async def break_(_task: Task) -> None:
        raise NonRetryable("it_broke", "by design")

    await agent.start()
    handle = await client.submit("break", traceparent=TRACEPARENT)
    with pytest.raises(TaskFailed):
        await handle.result(20)
    await wait_until(lambda: "coord.settle" in by_name(exporter), "its spans are there", 20)
    found = by_name(exporter)
    assert {ids(span)[0] for of_name in found.values() for span in of_name} == {TRACE}
    assert ids(found["coord.submit"][0])[2] == PARENT
    for name in ("coord.handle break", "coord.settle"):
        assert found[name][0].status.status_code is StatusCode.ERROR
    assert found["coord.settle"][0].status.description == "it_broke: by design"


def test_each_attempt_has_its_spans() -> None:
    """A retry waits from the end of the attempt before it; an attempt that did not complete is an error."""
    record = TaskRecord(
        task_id="t1",
        state=TaskState.COMPLETED,
        priority=Priority.NORMAL,
        submitted_at=1_000,
        attempt=2,
        agent_id="a2",
        assigned_at=5_000,
        started_at=5_010,
        finished_at=6_000,
        attempts=(
            AttemptRecord(
                attempt=1, agent_id="a1", lease="", how="failed", code="x", message="broke", assigned_at=1_100,
                started_at=1_150, ended_at=2_000,
            ),
        ),
    )  # fmt: skip
    assert [(one.name, one.begin, one.end, one.error) for one in spans_of(record, 1_020)] == [
        ("coord.admit", 1_000, 1_020, None),
        ("coord.wait", 1_020, 1_100, None),
        ("coord.dispatch", 1_100, 1_150, "failed: x: broke"),
        ("coord.wait", 2_000, 5_000, None),
        ("coord.dispatch", 5_000, 5_010, None),
        ("coord.settle", 6_000, 6_000, None),
    ]


def test_without_tracing_nothing_imports_opentelemetry() -> None:
    """SDK, gateway and workers load where it is absent; where it is installed, redis-py imports it by itself."""
    code = (
        "import sys; sys.modules['opentelemetry'] = None;"
        "import coord, coord.client.client, coord.agent.agent, coord.gateway.server, workers.distributor;"
        "from coord import Agent, Client; Client(); Agent('a1');"
        "assert 'coord.otel' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


async def test_tracing_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the setting is refused, with the next step."""
    monkeypatch.setattr(spans, "recorder", None)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "coord.otel", raising=False)
    with pytest.raises(ConfigError, match=r"install coord\[otel\]"):
        spans.enable()
