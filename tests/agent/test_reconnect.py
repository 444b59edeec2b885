"""The link: answers in order, lasting commands until they are answered, shared by the agents of a loop."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from redis.asyncio import Redis

from coord import reconnect as link_module
from coord.background import cancel_and_wait
from coord.config import Settings
from coord.connection import connect
from coord.embedded import EmbeddedServer
from coord.errors import ConfigError
from coord.pipeline import pack
from coord.reconnect import ReconnectingConnection, shared_connections
from coord.redis_protocol import ConnectionLost, ErrorAnswer
from tests.conftest import FAST
from tests.waiting import wait_until


@pytest.fixture
async def link(server: EmbeddedServer, redis: Redis) -> AsyncIterator[ReconnectingConnection]:
    """An open one."""
    link = ReconnectingConnection(server.url, Settings())
    await link.open()
    yield link
    await link.close()


async def test_answers_go_to_their_commands_in_order(link: ReconnectingConnection) -> None:
    """Many commands in one turn; an error answer is an answer."""
    got: list[tuple[int, Any]] = []
    for n in range(100):
        link.send(pack(("ECHO", str(n))), lambda about, answer: got.append((about, answer)), n)
    link.send(pack(("NOSUCH",)), lambda about, answer: got.append((about, answer)), 100)
    await wait_until(lambda: len(got) == 101, "all are answered")
    assert got[:100] == [(n, str(n).encode()) for n in range(100)]
    assert isinstance(got[100][1], ErrorAnswer)


async def test_a_callback_that_raises_does_not_misplace_the_answers_after_it(link: ReconnectingConnection) -> None:
    """One defect is one defect."""
    got: list[Any] = []

    def bad(_about: Any, _answer: Any) -> None:
        raise RuntimeError("defect")

    link.send(pack(("ECHO", "a")), bad)
    link.send(pack(("ECHO", "b")), lambda _about, answer: got.append(answer))
    await wait_until(lambda: got == [b"b"], "the second is answered")


async def test_after_a_lost_connection_only_lasting_commands_are_sent_again(
    link: ReconnectingConnection, redis: Redis
) -> None:
    """The others get ``ConnectionLost``: sent or not, executed or not."""
    got: dict[str, Any] = {}
    ups: list[int] = []
    link.on_up.append(lambda: ups.append(1))
    link.send(pack(("XREAD", "BLOCK", "60000", "STREAMS", "nothing", "$")), got.__setitem__, "blocking")
    link.send_until_answered(pack(("XADD", "s", "*", "f", "v")), got.__setitem__, "lasting")
    link.send(pack(("ECHO", "x")), got.__setitem__, "once")

    async def is_blocked() -> bool:
        return any(client["cmd"] == "xread" for client in await redis.client_list())

    await wait_until(is_blocked, "the read blocks")
    await redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await wait_until(lambda: len(got) == 3, "all are answered")
    assert isinstance(got["blocking"], ConnectionLost)
    assert isinstance(got["once"], ConnectionLost)
    assert isinstance(got["lasting"], bytes)
    assert (link.is_up, ups) == (True, [1])
    assert await redis.xlen("s") == 1


async def test_what_the_server_refuses_for_now_is_sent_again(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full server refuses a report; when there is room again it takes it."""
    monkeypatch.setattr(link_module, "REFUSED_WAIT_S", 0.02)
    running = EmbeddedServer.start(tmp_path / "own", extra=FAST)
    redis = connect(running.url, Settings())
    link = ReconnectingConnection(running.url, Settings())
    got: list[Any] = []
    try:
        await link.open()
        await redis.config_set("maxmemory", 1)
        link.send_until_answered(pack(("XADD", "s", "*", "f", "v")), lambda _about, answer: got.append(answer))

        async def is_refused() -> bool:
            stats: Any = await redis.info("errorstats")
            return int(stats.get("errorstat_OOM", {}).get("count", 0)) >= 2

        await wait_until(is_refused, "it was refused twice")
        assert got == []
        await redis.config_set("maxmemory", 0)
        await wait_until(lambda: got, "it is taken")
        assert isinstance(got[0], bytes)
    finally:
        await link.close()
        await redis.aclose()
        running.stop(force=True)


async def test_a_demoted_server_is_left_and_what_it_refused_is_sent_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may keep connections open for ever. What waited goes out in its order once the address leads to a primary."""
    monkeypatch.setattr(link_module, "REFUSED_WAIT_S", 0.02)
    running = EmbeddedServer.start(tmp_path / "own", extra=FAST)
    redis = connect(running.url, Settings())
    link = ReconnectingConnection(running.url, Settings())
    ups: list[int] = []
    got: list[tuple[int, Any]] = []
    try:
        await link.open()
        link.on_up.append(lambda: ups.append(1))
        await redis.execute_command("REPLICAOF", "127.0.0.1", "1")
        for n in range(3):
            link.send_until_answered(
                pack(("XADD", "s", "*", "n", n)), lambda about, answer: got.append((about, answer)), n
            )
        await wait_until(lambda: len(ups) >= 2, "it came back twice")
        assert got == []
        await redis.execute_command("REPLICAOF", "NO", "ONE")
        await wait_until(lambda: len(got) == 3, "all are taken")
        assert [n for n, _ in got] == [0, 1, 2]
        assert [entry[b"n"] for _, entry in await redis.execute_command("XRANGE", "s", "-", "+")] == [b"0", b"1", b"2"]
    finally:
        await link.close()
        await redis.aclose()
        running.stop(force=True)


@pytest.mark.parametrize("word", ["MOVED 14041 127.0.0.1:7001", "CLUSTERDOWN The cluster is down"])
async def test_a_cluster_s_redirection_is_no_answer(link: ReconnectingConnection, redis: Redis, word: str) -> None:
    """It says where the slot went, not that an agent may not speak: the command is sent again on a new connection."""
    code, _, message = word.partition(" ")
    # A script in place of a cluster: it answers so once, and then as the primary would.
    script = f"""
    if redis.call('INCR', 'asked') == 1 then return redis.error_reply('{code} {message}') end
    return redis.call('XADD', 's', '*', 'f', 'v')"""
    ups: list[int] = []
    got: list[Any] = []
    link.on_up.append(lambda: ups.append(1))
    link.send_until_answered(pack(("EVAL", script, 0)), lambda _about, answer: got.append(answer))
    await wait_until(lambda: got, "it is answered")
    assert isinstance(got[0], bytes)
    assert ups == [1]
    assert await redis.xlen("s") == 1


async def test_an_error_that_no_repeating_mends_is_an_answer(link: ReconnectingConnection, redis: Redis) -> None:
    """It must not be repeated for ever."""
    await redis.set("s", "no stream")
    got: list[Any] = []
    link.send_until_answered(pack(("XADD", "s", "*", "f", "v")), lambda _about, answer: got.append(answer))
    await wait_until(lambda: got, "it is answered")
    assert "WRONGTYPE" in str(got[0])


async def test_a_silent_server_is_given_up(server: EmbeddedServer, redis: Redis) -> None:
    """A half-open connection says nothing: after the patience it is replaced."""
    link = ReconnectingConnection(server.url, Settings(read_block_ms=10, answer_timeout_s=0.2))
    got: list[Any] = []
    await link.open()
    link.send(pack(("XREAD", "BLOCK", "60000", "STREAMS", "nothing", "$")), lambda _about, answer: got.append(answer))
    await wait_until(lambda: got, "it was given up")
    assert isinstance(got[0], ConnectionLost)
    await wait_until(lambda: link.is_up, "it is back")
    await link.close()


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_the_transport_is_taken_over_under_tls_too(
    tmp_path: Path, redis_server_binary: Path, unused_port: int, loop_factory: Callable[[], Any]
) -> None:
    """redis-py makes the connection, with TLS and all; both event loops let the protocol be changed afterwards."""
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=coord-test"
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([*command.split(), *files], cwd=tmp_path, check=True, capture_output=True)
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    options = ["--tls-port", str(unused_port), "--tls-auth-clients", "no"]
    options += ["--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert]
    server = EmbeddedServer.start(tmp_path / "d", binary=redis_server_binary, extra=[*FAST, *options])

    async def talk() -> None:
        link = ReconnectingConnection(f"rediss://127.0.0.1:{unused_port}/0?ssl_ca_certs={cert}", Settings())
        await link.open()
        got: list[int] = []
        large = "x" * 1_000_000
        for _ in range(5):
            link.send(pack(("ECHO", large)), lambda _about, answer: got.append(len(answer)))
        await wait_until(lambda: got == [1_000_000] * 5, "all is answered")
        link.drop()
        await wait_until(lambda: link.is_up, "it is back")
        await link.close()

    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(talk())
    finally:
        server.stop(force=True)


async def test_the_last_to_leave_closes_a_shared_link(server: EmbeddedServer, redis: Redis) -> None:
    """Those of one loop and one cell share one; one that fails to open is not kept."""
    settings = Settings()
    first, second = await asyncio.gather(*(shared_connections().join(server.url, settings) for _ in range(2)))
    assert first is second
    ups = [second.is_up]
    for link in (first, second):
        await shared_connections().leave(link)
        ups.append(second.is_up)
    assert ups == [True, True, False]
    with pytest.raises(ConfigError):
        await shared_connections().join("redis://user:wrong@" + "/var/none", settings)
    third = await shared_connections().join(server.url, settings)
    assert third is not first
    await shared_connections().leave(third)


async def test_a_task_that_swallows_a_cancel_is_cancelled_again() -> None:
    """As one does that waits through asyncio.wait_for before Python 3.12, in the wrong moment."""
    swallowed: list[int] = []

    async def deaf() -> None:
        while True:
            try:
                await asyncio.sleep(5)  # has an end, also if the test fails and nothing cancels it three times
            except asyncio.CancelledError:
                swallowed.append(1)
                if len(swallowed) == 3:
                    raise
            else:
                return

    task = asyncio.create_task(deaf())
    await asyncio.wait([task], timeout=0.01)
    await cancel_and_wait(task, None)
    assert task.cancelled()
    assert len(swallowed) == 3
