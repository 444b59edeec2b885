"""What all tests share: real servers for the whole run, a clean client per test, and fakeredis beside them.

``redis_or_fake`` runs one test on all servers that coord must behave the same on; on fakeredis one test of each script
does. A server that is missing skips locally and fails in CI.
"""

from __future__ import annotations

import os
import shutil
import signal
import uuid
from collections.abc import AsyncIterator, Iterator
from itertools import zip_longest
from pathlib import Path

import fakeredis
import pytest
import structlog
from redis.asyncio import Redis

from coord.config import Settings
from coord.connection import connect_worker
from coord.embedded import EmbeddedServer
from tests.ports import unused_port
from tests.running import RunningCell, running_cell

pytest_plugins = ["tests.browser", "tests.limits"]

#: Data of a test run is worth nothing, so it is not written.
FAST = ("--appendonly", "no")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--long``."""
    parser.addoption("--long", action="store_true", help="also run the tests marked long (minutes)")


def pytest_configure() -> None:
    """Have Ctrl-C heard by what tests start, also where a shell started this in the background, and told it not to."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip the long tests unless ``--long`` is given, and mix tests that wait with tests that compute."""
    items[:] = _spread(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    if config.getoption("--long"):
        return
    skip = pytest.mark.skip(reason="long: runs with --long")
    for item in items:
        if item.get_closest_marker("long") is not None:
            item.add_marker(skip)


def _spread(items: list[pytest.Item], parts: int) -> list[pytest.Item]:
    """Return the tests in an order of which each part has an equal share of tests/system, mixed with the others.

    xdist gives each process one part of the list. The tests of tests/system mostly wait for processes, and one after
    the other they would leave the processor idle at the end. Files stay whole, because their tests share fixtures.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    found: list[pytest.Item] = []
    for part in range(parts):
        waiting = [tests for path, tests in files.items() if "system" in path.parts][part::parts]
        computing = [tests for path, tests in files.items() if "system" not in path.parts][part::parts]
        for some, others in zip_longest(waiting, computing, fillvalue=list[pytest.Item]()):
            found += [*some, *others]
    return found


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting, no named cell and no running ``coord up`` of the person who tests reaches a test."""
    for name in list(os.environ):
        if name.startswith(("COORD_", "AITBC_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture(autouse=True)
def _kept_log() -> Iterator[None]:
    """A test leaves structlog as it found it; after ``capture_logs`` it would stay configured, and write."""
    was_configured, before = structlog.is_configured(), structlog.get_config()
    yield
    if was_configured:
        structlog.configure(**before)
    else:
        structlog.reset_defaults()


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """The embedded Valkey that all tests of this run share; a test that kills a server starts its own."""
    running = EmbeddedServer.start(tmp_path_factory.mktemp("valkey"), extra=FAST)
    yield running
    running.stop(force=True)


@pytest.fixture(scope="session")
def server(valkey_server: EmbeddedServer) -> EmbeddedServer:
    """The server of a test that does not say otherwise."""
    return valkey_server


@pytest.fixture(scope="session")
def redis_server_binary() -> Path:
    """A ``redis-server`` from PATH (Debian's is 7.0, the oldest that coord accepts)."""
    found = shutil.which("redis-server")
    if found is None:
        reason = "no redis-server on PATH; apt-get install redis-server"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return Path(found)


@pytest.fixture(scope="session")
def debian_server(tmp_path_factory: pytest.TempPathFactory, redis_server_binary: Path) -> Iterator[EmbeddedServer]:
    """``redis-server`` from PATH, shared like ``server``."""
    running = EmbeddedServer.start(tmp_path_factory.mktemp("redis"), extra=FAST, binary=redis_server_binary)
    yield running
    running.stop(force=True)


@pytest.fixture(name="unused_port")
def _unused_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at the moment."""
    return unused_port()


@pytest.fixture
def namespace() -> str:
    """A namespace of this test's own."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def settings(namespace: str) -> Settings:
    """The defaults, in this test's namespace."""
    return Settings(namespace=namespace)


@pytest.fixture
async def redis(server: EmbeddedServer) -> AsyncIterator[Redis]:
    """A client of the embedded Valkey, emptied; answers in bytes, RESP3, repeats nothing."""
    async for client in _client_of(server):
        yield client


@pytest.fixture
async def fake() -> AsyncIterator[Redis]:
    """A client of a fakeredis of its own; answers as ``redis`` does."""
    client = fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer(), protocol=3)
    yield client
    await client.aclose()


@pytest.fixture
async def cell(server: EmbeddedServer, settings: Settings) -> AsyncIterator[RunningCell]:
    """A registry, a distributor and a router at work in this test's own namespace; checked when the test has ended."""
    async with running_cell(server.url, settings) as running:
        yield running


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test of ``redis_or_fake`` on both real servers, and on fakeredis if it is marked ``on_fakeredis``.

    The oldest server differs in its scripts and commands, which tests/scripts runs on it. Other tests run there with
    ``--long``.
    """
    if "redis_or_fake" in metafunc.fixturenames:
        is_marked = metafunc.definition.get_closest_marker("on_fakeredis") is not None
        is_of_scripts = "scripts" in metafunc.definition.path.parts
        redis7 = pytest.param("redis7", marks=[] if is_of_scripts else pytest.mark.long)
        metafunc.parametrize("redis_or_fake", ["fakeredis"] * is_marked + ["valkey", redis7], indirect=True)


@pytest.fixture
async def redis_or_fake(request: pytest.FixtureRequest) -> AsyncIterator[Redis]:
    """The same test on the embedded Valkey and on ``redis-server`` from PATH; marked ones on fakeredis as well."""
    if request.param == "fakeredis":
        imitation = fakeredis.FakeAsyncRedis(server=fakeredis.FakeServer(), protocol=3)
        yield imitation
        await imitation.aclose()
        return
    running = request.getfixturevalue("valkey_server" if request.param == "valkey" else "debian_server")
    async for client in _client_of(running):
        yield client


async def _client_of(server: EmbeddedServer) -> AsyncIterator[Redis]:
    client = connect_worker(server.url, Settings())
    await client.flushall()
    yield client
    await client.aclose()
