"""`coord ps` on a live cell: what it shows, as JSON and on the screen, and what it warns of."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable, Iterator

import msgspec
import pytest

from coord import __version__
from coord.cli import ps
from coord.cli.ps import worker_warnings
from coord.doctor import checks
from coord.embedded import EmbeddedServer
from coord.models.cell import StreamBacklog, WorkerRecord, WorkersReport
from coord.queries import WorkersSnapshot
from tests.living import LIMIT_S, CommandResult, Living, living, run_coord

#: typer 0.21 imports names from click that click 8.5 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in Click 9.0:DeprecationWarning")


NAMES = ("registry-1", "distributor-2", "router-3")


@pytest.fixture(scope="module")
def lives(server: EmbeddedServer) -> Iterator[Living]:
    """One cell for all these tests, its workers there."""
    with living(server.url) as found:
        found.agent("echo-1")
        workers = [found.cell.keys.worker(name.partition("-")[0], name) for name in NAMES]

        async def are_there() -> bool:
            return int(await found.cell.redis.exists(*workers)) == len(workers)

        found.until(are_there, "the workers have published their presence")
        yield found


@pytest.fixture
def coord(
    lives: Living, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., CommandResult]:
    """Runs a command on the cell."""
    return lambda *arguments: run_coord(capsys, monkeypatch, *arguments, *lives.options)


def test_a_cell_that_is_well(
    lives: Living, coord: Callable[..., CommandResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each worker with the number of entries that it has handled; no warning, exit code 0."""
    monkeypatch.setattr(ps, "LATE_MS", 60_000)  # a busy machine is slow, not ill
    monkeypatch.setattr(checks, "STUCK_MS", 60_000)

    async def has_rate() -> bool:
        per_s = await lives.cell.redis.hget(lives.cell.keys.worker("registry", "registry-1"), "per_s")
        return float(per_s or 0) > 0

    lives.until(has_rate, "the registry has published its rate")
    found = coord("ps", "--json")
    assert (found.code, found.err) == (0, "")
    picture = msgspec.json.decode(found.out, type=WorkersReport)
    assert [(one.kind, one.name) for one in picture.workers] == [
        ("registry", "registry-1"), ("distributor", "distributor-2"), ("router", "router-3"),
    ]  # fmt: skip
    registry = picture.workers[0]
    assert (registry.pid, registry.host, registry.version) == (os.getpid(), socket.gethostname(), __version__)
    assert registry.handled > 0
    assert registry.per_s > 0
    assert registry.started_at <= registry.progress_at <= picture.now
    assert picture.warnings == []


def test_the_screen(coord: Callable[..., CommandResult]) -> None:
    """A table that a person can read."""
    found = coord("ps")
    header, *rows = found.out.splitlines()
    assert header.split() == ["kind", "name", "host", "pid", "version", "age", "handled", "per", "s", "lag", "progress"]
    assert [row.split()[:2] for row in rows if row.endswith(" ago")] == [
        ["registry", "registry-1"], ["distributor", "distributor-2"], ["router", "router-3"],
    ]  # fmt: skip


def test_a_cell_without_workers(
    server: EmbeddedServer, namespace: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kind that is missing is named, with what it leaves undone and how to start one; exit code 1."""
    found = run_coord(capsys, monkeypatch, "ps", "--redis-url", server.url, "--namespace", namespace)
    first, memory = found.out.splitlines()
    assert (found.code, first) == (1, "no workers are running")
    assert memory.startswith("memory: ")
    empty, registry, distributor, router = found.err.splitlines()
    assert empty.startswith(f"namespace '{namespace}' is empty: ")
    no = "warning: no {0} is running, so {1} wait; start one: `coord worker {0}`"
    assert registry == no.format("registry", "registrations and heartbeats")
    assert distributor == no.format("distributor", "submitted tasks and results")
    assert router == no.format("router", "messages")


async def test_watch_goes_on_until_ctrl_c(lives: Living) -> None:
    """One object a line, again and again."""
    command = (sys.executable, "-m", "coord.cli", "ps", "--watch", "--json", *lives.options)
    process = await asyncio.create_subprocess_exec(*command, stdout=PIPE, limit=2**20)
    assert process.stdout is not None
    moments = [msgspec.json.decode(await asyncio.wait_for(process.stdout.readline(), LIMIT_S))["now"] for _ in range(2)]
    assert moments[0] < moments[1]
    process.send_signal(2)
    assert await asyncio.wait_for(process.wait(), LIMIT_S) == 130


NOW = 1_000_000


def _presence(*backlogs: StreamBacklog, progress_at: int = NOW) -> WorkersSnapshot:
    worker = WorkerRecord(
        kind="router", name="r1", pid=7, host="h", version="1", started_at=0, progress_at=progress_at, handled=1,
        per_s=0, lag_ms=0,
    )  # fmt: skip
    return WorkersSnapshot(NOW, [worker], list(backlogs))


def _backlog(length: int, waited_ms: int) -> StreamBacklog:
    return StreamBacklog(stream="in:messages:low", kind="router", length=length, oldest_at=NOW - waited_ms)


@pytest.mark.parametrize(
    ("before", "way"), [(5_000, "and it grows"), (7_000, "and it shrinks"), (6_000, "and it does not")]
)
def test_a_stream_in_which_entries_wait(before: int, way: str) -> None:
    """How many, for how long, and which way it goes."""
    (text,) = worker_warnings(_presence(_backlog(6_000, 65_000)), _presence(_backlog(before, 64_000)))
    assert text.startswith("in:messages:low: 6,000 entries wait, the oldest for 1 min 5 s, ")
    assert way in text


def test_what_is_handled_in_time_is_no_backlog() -> None:
    """A full stream is work; only one that waits is a warning."""
    assert worker_warnings(_presence(_backlog(6_000, 100))) == []


def test_a_worker_that_does_not_require_tokens_as_others_do() -> None:
    """Through it agents could speak for others; a distributor reads nothing that needs a token."""
    (router,) = _presence().workers
    registry = msgspec.structs.replace(router, kind="registry", name="g1", require_tokens=True)
    distributor = msgspec.structs.replace(router, kind="distributor", name="d1", require_tokens=False)
    (text,) = worker_warnings(WorkersSnapshot(NOW, [registry, distributor, router], []))
    assert text.startswith("r1 (pid 7 on h) requires no tokens of agents, and others do; start it with COORD_REQUIRE")
    assert worker_warnings(WorkersSnapshot(NOW, [distributor, router], [])) == []


def test_a_worker_that_stands_still() -> None:
    """Its presence goes on, its loop does not."""
    (text,) = worker_warnings(_presence(_backlog(0, 0), progress_at=NOW - 60_000))
    assert text == "r1 (pid 7 on h) has made no progress for 1 min 0 s; see its log"
