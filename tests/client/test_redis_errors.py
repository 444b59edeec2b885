"""Errors of Redis become errors of coord, for reads and writes of callers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import exceptions as redis_errors

from coord import Client
from coord.client import client as client_module
from coord.config import Settings
from coord.connection import connect_worker, read_failure, wait_for_server, write_failure
from coord.embedded import EmbeddedServer
from coord.errors import CoordError, ServerFull, ServerUnavailable, ServerUnfit
from coord.gateway.backend import Backend
from tests.conftest import FAST
from tests.waiting import wait_until

#: What the server answers, or the connection raises -> what a caller gets of a read.
FAILURES = [
    (redis_errors.BusyLoadingError("Redis is loading the dataset in memory"), ServerUnavailable, "is loading its data"),
    (redis_errors.ConnectionError("lost"), ServerUnavailable, "does not answer: lost"),
    (redis_errors.TimeoutError("late"), ServerUnavailable, "does not answer: late"),
    (ConnectionResetError("reset"), ServerUnavailable, "does not answer: reset"),
    (redis_errors.ResponseError("MISCONF Errors writing to the AOF file"), ServerUnavailable, "for now: MISCONF"),
    (redis_errors.ResponseError("BUSY Redis is busy running a script"), ServerUnavailable, "for now: BUSY"),
    (redis_errors.ReadOnlyError("You can't write"), ServerUnavailable, "for now"),
    (redis_errors.ClusterDownError("CLUSTERDOWN The cluster is down"), ServerUnavailable, "for now"),
    (redis_errors.OutOfMemoryError("command not allowed"), ServerFull, "is full"),
    (redis_errors.NoPermissionError("this user has no permissions"), ServerUnfit, "refuses this user"),
    (redis_errors.ResponseError("WRONGTYPE Operation against a key"), ServerUnfit, "answered: WRONGTYPE"),
]
READS: dict[str, Callable[[Client], Awaitable[Any]]] = {
    "task": lambda client: client.task("t1"),
    "explanation": lambda client: client.explain("t1"),
    "agent": lambda client: client.agent("a1"),
    "agents": lambda client: client.agents(),
    "tasks": lambda client: client.tasks(["t1"]),
    "task list": lambda client: client.list_tasks(),
    "message": lambda client: client.message("m1"),
    "message list": lambda client: client.list_messages(),
    "dead letters": lambda client: client.dead_letters("task"),
    "number of dead letters": lambda client: client.count_dead_letters(),
    "dead entry": lambda client: client.dead_entry("1-1"),
    "backlog": lambda client: client.backlog(),
    "workers": lambda client: client.workers(),
    "number of workers": lambda client: client.count_workers(),
    "memory": lambda client: client.memory_use(),
    "events": lambda client: anext(client.events(follow=False)),
    "counters": lambda client: client.counters(),
    "live settings": lambda client: client.admin.live_settings(),
    "record": lambda client: client.handle("t1").record(),
    "replay": lambda client: client.admin.replay("entry", "1-1"),
}


class Recorder:
    """A logger that notes its severe events: how the process's own is set up depends on the tests before."""

    def __init__(self, logged: list[tuple[str, str]]) -> None:
        self._logged = logged

    def exception(self, event: str, **_fields: object) -> None:
        """Note it."""
        self._logged.append(("exception", event))

    def debug(self, _event: str, **_fields: object) -> None:
        """Leave it."""

    info = debug


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    """A server of the test's own."""
    server = EmbeddedServer.start(tmp_path / "own", extra=FAST)
    yield server
    server.kill()


@pytest.mark.guarantee("errors-of-calls")
@pytest.mark.parametrize(("error", "kind", "words"), FAILURES, ids=lambda one: getattr(one, "__name__", str(one)[:20]))
def test_what_a_read_meets_with(error: Exception, kind: type[CoordError], words: str) -> None:
    """Each has a sentence that names the problem."""
    failure = read_failure(error, "redis://here")
    assert type(failure) is kind
    assert words in str(failure)
    assert "redis://here" in str(failure)


@pytest.mark.parametrize(("error", "kind"), [(error, kind) for error, kind, _ in FAILURES if kind is not ServerUnfit])
def test_a_write_is_translated_likewise(error: Exception, kind: type[CoordError]) -> None:
    """A permanent refusal is passed on as it is."""
    assert type(write_failure(error)) is kind
    refused = redis_errors.NoPermissionError("no")
    assert write_failure(refused) is refused


@pytest.mark.guarantee("errors-of-calls")
@pytest.mark.parametrize("read", READS)
async def test_every_read_of_a_busy_server_says_so(alone: EmbeddedServer, settings: Settings, read: str) -> None:
    """A server in a script that does not end answers BUSY to whatever it is asked."""
    async with Client(alone.url, settings=settings) as client:
        await client.connection.redis.config_set("busy-reply-threshold", 1)
        async with connect_worker(alone.url, settings) as other:
            looping = asyncio.ensure_future(other.execute_command("EVAL", "while true do end", 0))

            async def is_busy() -> bool:
                try:
                    await client.connection.redis.ping()
                except redis_errors.ResponseError as error:
                    return str(error).startswith("BUSY")
                return False

            await wait_until(is_busy, "it is busy")
            with pytest.raises(ServerUnavailable, match="does not serve this for now: BUSY"):
                await READS[read](client)
            await client.connection.redis.script_kill()
            with pytest.raises(redis_errors.RedisError):
                await looping


async def test_a_server_that_refuses_ping_for_now_is_waited_for(
    server: EmbeddedServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MISCONF, BUSY and the like are temporary; another refusal is permanent, and raised at once."""
    answers: list[Exception] = [
        redis_errors.ResponseError("MISCONF Errors writing to the AOF file"),
        redis_errors.ResponseError("BUSY Redis is busy running a script"),
        redis_errors.BusyLoadingError("loading"),
        redis_errors.MasterDownError("MASTERDOWN Link with MASTER is down"),
        redis_errors.ConnectionError("reset"),
    ]

    async def ping(_redis: Any) -> None:
        if answers:
            raise answers.pop()

    monkeypatch.setattr("coord.connection._ping_once", ping)
    async with connect_worker(server.url, settings) as redis:
        await wait_for_server(redis, server.url, limit_s=30)
        assert answers == []
        answers.append(redis_errors.NoPermissionError("this user has no permissions to run the 'ping' command"))
        with pytest.raises(ServerUnfit, match="answers PING with: this user has no permissions"):
            await wait_for_server(redis, server.url, limit_s=30)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (redis_errors.ResponseError("BUSY Redis is busy running a script"), "BUSY Redis is busy running a script"),
        (redis_errors.BusyLoadingError("loading"), "it is loading its data"),
        (ConnectionError("BUSY Redis is busy"), ""),
    ],
)
async def test_a_server_that_answers_is_not_to_be_started(
    server: EmbeddedServer, settings: Settings, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    """One that refuses for longer than somebody waits is there: the advice is to wait, not to start another."""

    async def ping(_redis: Any) -> None:
        if not says:  # over a unix socket redis-py wraps what the server answers to the first commands
            raise redis_errors.ConnectionError(str(error)) from redis_errors.ResponseError(str(error))
        raise error

    monkeypatch.setattr("coord.connection._ping_once", ping)
    async with connect_worker(server.url, settings) as redis:
        with pytest.raises(ServerUnavailable, match=r"was not usable within 0\.05 s") as failure:
            await wait_for_server(redis, server.url, limit_s=0.05)
    assert f"{says or error}. Try again later" in str(failure.value)
    assert "coord up" not in str(failure.value)


async def test_the_gateway_s_client_is_opened_after_whatever_went_wrong(
    server: EmbeddedServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after an unexpected error: it is logged once with its traceback, and the client is opened again."""
    monkeypatch.setattr("coord.gateway.backend.OPEN_AGAIN_S", 0.001)
    errors = [
        RuntimeError("a defect"),
        RuntimeError("a defect"),
        ServerFull("full"),
        redis_errors.ResponseError("whatever"),
        ServerUnavailable("away"),
    ]
    opened = client_module.Client.open

    async def open_(client: Client) -> None:
        if errors:
            raise errors.pop()
        await opened(client)

    monkeypatch.setattr(client_module.Client, "open", open_)
    logged: list[tuple[str, str]] = []
    monkeypatch.setattr("coord.gateway.backend.log", Recorder(logged))
    failures: list[CoordError] = []
    backend = Backend(msgspec.structs.replace(settings, redis_url=server.url))
    backend.open(failures.append)

    def is_open() -> bool:
        try:
            return backend.client is not None
        except ServerUnavailable:
            return False

    await wait_until(is_open, "it is open")
    assert (failures, errors) == ([], [])
    assert logged == [("exception", "background.failed")] * 2, "each kind once, however often it was tried"
    await backend.close()


async def test_what_no_waiting_mends_ends_the_gateway_s_opening(settings: Settings) -> None:
    """Such as a URL that is none."""
    backend = Backend(msgspec.structs.replace(settings, redis_url="http://nowhere"))
    failures: list[CoordError] = []
    backend.open(failures.append)
    await wait_until(lambda: failures, "it is reported")
    assert failures[0].code == "config_invalid"
    await backend.close()
