"""`coord up` as processes: what it starts, what it starts again, and what it leaves behind: nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from coord import Client
from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.endpoint import read_endpoint
from coord.queries import count_submitted
from tests.coord_up import DISTRIBUTOR, END_S, START_S, Start, accepted, runs
from tests.waiting import wait_until


async def test_it_starts_everything_and_ends_everything(start: Start) -> None:
    """One of each, announced and ready; after SIGTERM no process, no socket and no announcement is left."""
    up = start()
    endpoint = await up.ready()
    server = EmbeddedServer.find(up.data)
    assert server is not None
    assert (endpoint.url, endpoint.data_dir, endpoint.namespace) == (server.url, str(up.data), "coord")
    workers = up.workers()
    assert sorted(name.split("-")[0] for name in workers) == ["distributor", "push", "registry", "router"]
    await accepted(endpoint.url)
    up.process.terminate()
    assert await up.ended() == 0
    assert [process for process in workers.values() if process.is_running()] == []
    assert not runs(server.pid)
    assert not server.socket_path.exists()
    assert not Settings().endpoint_path.exists()
    assert [
        part for part in ("durability", "AOF, fsync every second", "ending", "ended") if part not in up.output
    ] == []


async def test_as_many_of_each_as_asked(start: Start) -> None:
    """The numbers are options; the endpoint file also contains the namespace, which clients then use."""
    up = start(
        "--registries", "2", "--distributors", "3", "--routers", "0", "--push-workers", "2", "--namespace", "cell-2"
    )
    endpoint = await up.announced()
    await wait_until(lambda: len(up.workers()) == 7, "all workers run")
    assert sorted(name.rpartition("-")[0] for name in up.workers()) == [
        "distributor-1", "distributor-2", "distributor-3", "push-1", "push-2", "registry-1", "registry-2",
    ]  # fmt: skip
    assert endpoint.namespace == "cell-2"
    (started,) = up.events("up.started")
    assert started["warning"] == ["no router here: messages wait unless one runs elsewhere"]
    await accepted(endpoint.url, namespace="cell-2")
    async with Client() as client:
        assert count_submitted(await client.counters()) == 1


async def test_a_killed_worker_is_started_again(start: Start) -> None:
    """Under its name, so that it takes over the entries that it had read; and it is logged."""
    up = start(*DISTRIBUTOR)
    endpoint = await up.announced()
    name, first = await up.worker("distributor")
    await accepted(endpoint.url)
    first.kill()
    await wait_until(lambda: up.workers().get(name, first).pid != first.pid, "it runs again")
    await accepted(endpoint.url)
    assert f"{name} (pid {first.pid}) has ended (killed by SIGKILL); it restarts in 0.1 s" in up.output


async def test_a_killed_server_is_started_again(start: Start) -> None:
    """At the same place, with what it had acknowledged; workers find it again by themselves."""
    up = start(*DISTRIBUTOR)
    endpoint = await up.announced()
    await accepted(endpoint.url)
    before = EmbeddedServer.find(up.data)
    assert before is not None
    workers = {name: process.pid for name, process in up.workers().items()}
    os.kill(before.pid, signal.SIGKILL)
    await wait_until(lambda: "the Redis server runs again" in up.output, "the server runs again", START_S)
    after = EmbeddedServer.find(up.data)
    assert after is not None
    assert (after.url, after.pid != before.pid) == (before.url, True)
    async with Client(endpoint.url, settings=Settings()) as client:
        assert await client.counters() != {}
    await accepted(endpoint.url)
    assert {name: process.pid for name, process in up.workers().items()} == workers
    up.process.terminate()
    assert await up.ended() == 0
    assert not runs(after.pid)


@pytest.mark.guarantee("killed-coord-up")
async def test_killed_it_leaves_no_worker_and_the_next_one_adopts_its_server(start: Start) -> None:
    """After kill -9 of `coord up` its workers end by themselves, its server stays, and the next `coord up` ends it."""
    first = start()
    endpoint = await first.ready()
    await accepted(endpoint.url)
    workers = first.workers()
    server = EmbeddedServer.find(first.data)
    assert server is not None
    first.process.kill()
    first.process.wait()
    await wait_until(lambda: not any(runs(one.pid) for one in workers.values()), "the workers have ended", END_S)
    assert runs(server.pid)
    assert read_endpoint(Settings().endpoint_path) is None
    second = start(*DISTRIBUTOR)
    assert (await second.announced()).url == endpoint.url
    await wait_until(lambda: f"pid {server.pid}, found running" in second.output, "it has logged the server")
    await accepted(endpoint.url)
    second.process.terminate()
    assert await second.ended() == 0
    assert not runs(server.pid)


async def test_a_given_server_is_used_and_left(start: Start, server: EmbeddedServer, namespace: str) -> None:
    """With --redis-url nothing is started but workers, and nothing but workers is ended."""
    up = start(*DISTRIBUTOR, "--redis-url", server.url, "--namespace", namespace)
    endpoint = await up.announced()
    assert (endpoint.url, endpoint.data_dir, endpoint.namespace) == (server.url, None, namespace)
    await accepted(server.url, namespace=namespace)
    up.process.terminate()
    assert await up.ended() == 0
    assert server.alive()
    assert not up.data.exists()


async def test_a_server_of_somebody_else_in_the_folder_stays(start: Start, tmp_path: Path) -> None:
    """Only a server that a `coord up` has started is ended by one."""
    running = EmbeddedServer.start(tmp_path / "data")
    try:
        up = start(*DISTRIBUTOR)
        await up.announced()
        up.process.terminate()
        assert await up.ended() == 0
        assert "keeps running: coord up has not started it" in up.output
        assert running.alive()
    finally:
        running.stop()


async def test_a_second_one_on_the_same_folder_is_refused(start: Start, tmp_path: Path) -> None:
    """Even when it would be announced elsewhere; the first one goes on."""
    first = start(*DISTRIBUTOR)
    endpoint = await first.announced()
    second = start(COORD_ENDPOINT_FILE=str(tmp_path / "other.json"))
    assert await second.ended() == 2
    assert second.output == (
        f"coord: another coord up (pid {first.process.pid}) uses {first.data}; "
        "stop it, or choose another folder with --data\n"
    )
    await accepted(endpoint.url)


async def test_settings_of_a_given_server_that_cost_memory_are_named(start: Start, tmp_path: Path) -> None:
    """The start shows the setting, the command that changes it, and what it saves."""
    stock = EmbeddedServer.start(tmp_path / "stock", extra=("--hash-max-listpack-value", "64"))
    try:
        up = start(*DISTRIBUTOR, "--redis-url", stock.url)
        (started,) = await wait_until(lambda: up.events("up.started"), "it has started", START_S)
        assert "CONFIG SET hash-max-listpack-value 1024" in started["advice"]
        assert "saves a quarter of the memory of each waiting task" in started["advice"]
        up.process.terminate()
        assert await up.ended() == 0
    finally:
        stock.stop()


async def test_an_unfit_server_is_refused(start: Start, tmp_path: Path) -> None:
    """One line that says what to change; no worker is started."""
    evicting = EmbeddedServer.start(tmp_path / "lru", extra=("--maxmemory-policy", "allkeys-lru"))
    try:
        up = start("--redis-url", evicting.url)
        assert await up.ended() == 2
        assert up.output.startswith("coord: maxmemory-policy is allkeys-lru")
        assert up.output.count("\n") == 1
        assert not Settings().endpoint_path.exists()
    finally:
        evicting.stop()


async def test_a_second_ctrl_c_does_not_wait(start: Start) -> None:
    """A worker that hangs holds nothing up; the server is still ended in order."""
    up = start("--registries", "0", "--distributors", "0")
    await up.announced()
    name, worker = await up.worker("router")
    server = EmbeddedServer.find(up.data)
    assert server is not None
    worker.suspend()
    await wait_until(lambda: worker.status() == psutil.STATUS_STOPPED, "it hangs")
    up.process.send_signal(signal.SIGINT)
    await wait_until(lambda: "stopping: " in up.output, "it has heard")
    up.process.send_signal(signal.SIGINT)
    assert await up.ended() == 130, up.output
    assert f"{name} (pid {worker.pid}) was killed" in up.output
    assert not runs(server.pid)


async def test_it_ends_with_the_process_that_started_it(start: Start) -> None:
    """--watch-stdin: the pipe closes with the process at its other end."""
    up = start(*DISTRIBUTOR, "--watch-stdin")
    await up.ready()
    workers = up.workers()
    assert up.process.stdin is not None
    up.process.stdin.close()
    assert await up.ended() == 0
    assert not any(runs(one.pid) for one in workers.values())


async def test_a_folder_called_workers_is_not_taken_for_ours(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands in the folder where the command is typed is not started."""
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "__main__.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    up = start(*DISTRIBUTOR)
    await accepted((await up.announced()).url)
    assert "not ours" not in up.output


async def test_a_package_called_workers_on_the_path_is_not_taken_for_ours(start: Start, tmp_path: Path) -> None:
    """What a user has on PYTHONPATH for the agents does not hide the workers."""
    (tmp_path / "mine" / "workers").mkdir(parents=True)
    (tmp_path / "mine" / "workers" / "__init__.py").write_text("raise SystemExit('not ours')")
    up = start(*DISTRIBUTOR, PYTHONPATH=str(tmp_path / "mine"))
    await accepted((await up.ready()).url)
    assert "not ours" not in up.output


@pytest.mark.parametrize("home", ["none", "not ours"])
async def test_without_a_home_it_works_on_a_folder_that_is_named(start: Start, tmp_path: Path, home: str) -> None:
    """It logs the address for clients, as no file has it; a random user id has no home, or one like /."""
    (tmp_path / "sitecustomize.py").write_text("import pwd\ndef no(uid): raise KeyError(uid)\npwd.getpwuid = no\n")
    without = ("HOME",) if home == "none" else ()
    up = start(*DISTRIBUTOR, unset=without, PYTHONPATH=str(tmp_path), XDG_RUNTIME_DIR="", HOME="/proc/1")
    await wait_until(lambda: up.lives() and up.events("up.ready"), "it is ready", START_S)
    server = EmbeddedServer.find(up.data)
    assert server is not None
    (ready,) = up.events("up.ready")
    assert f"clients and agents connect with COORD_REDIS_URL={server.url}; " in ready["message"]
    (started,) = up.events("up.started")
    assert started["announced"].startswith("nowhere: ")
    await accepted(server.url)
    up.process.terminate()
    assert await up.ended() == 0
