"""A closed transport is a lost connection, and a stall of this process is no silence of the server's."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from coord.config import Settings
from coord.connection import connect, connect_worker, keepalive_options
from coord.embedded import EmbeddedServer
from coord.pipeline import is_closed_transport, pack, send_and_read
from coord.reconnect import ReconnectingConnection
from coord.redis_protocol import ConnectionLost
from tests.system.faulty_proxy import faulty_proxy
from tests.waiting import wait_until

LOOPS = pytest.mark.parametrize(
    "loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)
#: A script that keeps the server busy for ARGV[1] ms.
BUSY = """
local began = os.clock()
while (os.clock() - began) * 1000 < tonumber(ARGV[1]) do end
return 'done'"""


def run(loop_factory: Callable[[], Any], work: Callable[[], Awaitable[None]]) -> None:
    """Run a test in a loop of this kind."""

    async def main() -> None:
        await work()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


async def _idle_connection(redis: Redis) -> Any:
    """An idle connection of the pool that has answered before."""
    await redis.ping()
    (connection,) = redis.connection_pool._available_connections
    return connection


async def _close_transport(connection: Any) -> None:
    """Close it as a reset does: below redis-py, which still takes it for connected."""
    writer = connection._writer
    writer.transport.abort()
    for _ in range(5):
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    assert connection._writer is writer


@LOOPS
def test_a_write_to_a_closed_transport_is_a_lost_connection(
    server: EmbeddedServer, loop_factory: Callable[[], Any]
) -> None:
    """Whichever loop it is, redis-py's error comes out, and the next command connects again."""

    async def work() -> None:
        async with connect_worker(server.url, Settings()) as redis:
            connection = await _idle_connection(redis)
            await _close_transport(connection)

            async def ask() -> None:
                await connection.send_packed_command(pack(("PING",)))
                await connection.read_response()  # asyncio's own loop notices at the read

            with pytest.raises(RedisConnectionError):
                await ask()
            assert await redis.ping()

    run(loop_factory, work)


@LOOPS
@pytest.mark.parametrize("connecting", [connect, connect_worker])
def test_an_idle_connection_that_was_reset_is_not_used(
    server: EmbeddedServer, loop_factory: Callable[[], Any], connecting: Callable[..., Redis]
) -> None:
    """A worker repeats nothing, and need not: the pool sees before the command that the connection is gone."""

    async def work() -> None:
        async with faulty_proxy(server) as proxy, connecting(proxy.url, Settings()) as redis:
            for use in (redis.ping, lambda: send_and_read(redis, [pack(("PING",))])):
                writer = (await _idle_connection(redis))._writer
                proxy.reset_all()
                await wait_until(writer.transport.is_closing, "the reset has arrived")
                assert await use()

    run(loop_factory, work)


@LOOPS
def test_a_connection_with_an_answer_that_nobody_asked_for_is_not_used(
    server: EmbeddedServer, loop_factory: Callable[[], Any]
) -> None:
    """Otherwise each command on it would get the answer of the command before."""

    async def work() -> None:
        async with connect_worker(server.url, Settings()) as redis:
            connection = await _idle_connection(redis)
            connection._writer.write(pack(("ECHO", "stray")))
            await wait_until(lambda: connection._reader._buffer, "the answer is there")
            assert await redis.execute_command("ECHO", "mine") == b"mine"
            assert await send_and_read(redis, [pack(("ECHO", "mine"))]) == [b"mine"]

    run(loop_factory, work)


@LOOPS
def test_callers_share_the_connections_of_a_full_pool(server: EmbeddedServer, loop_factory: Callable[[], Any]) -> None:
    """Each that waits gets one when another is done, and one that is cancelled while it waits takes none with it."""

    async def work() -> None:
        async with connect_worker(server.url, Settings()) as redis:
            pool = redis.connection_pool
            pool.max_connections = 2
            asked = [asyncio.create_task(redis.execute_command("ECHO", str(number))) for number in range(40)]
            await asyncio.sleep(0)
            for number in range(1, 40, 4):
                asked[number].cancel()
            answers = await asyncio.gather(*asked, return_exceptions=True)
            for number, answer in enumerate(answers):
                if not isinstance(answer, asyncio.CancelledError):
                    assert answer == str(number).encode()
            assert sum(isinstance(answer, bytes) for answer in answers) >= 30
            assert len(pool._available_connections) <= 2
            assert not pool._in_use_connections
            assert await redis.ping()

    run(loop_factory, work)


@LOOPS
def test_a_link_whose_transport_closes_gives_its_orders_back(
    server: EmbeddedServer, loop_factory: Callable[[], Any]
) -> None:
    """Nothing is raised in the event loop; lasting commands go out again on the next connection."""

    async def work() -> None:
        faults: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: faults.append(context))
        link = ReconnectingConnection(server.url, Settings())
        await link.open()
        got: list[Any] = []
        for _ in range(20):
            await wait_until(lambda: link.is_up, "it is up")
            del got[:]
            link.send(pack(("PING",)), lambda _about, answer: got.append(answer))
            link.send_until_answered(pack(("PING",)), lambda _about, answer: got.append(answer))
            wire = link._protocol
            assert wire is not None
            wire._transport.abort()
            await wait_until(lambda: len(got) == 2, "both are answered")
            assert isinstance(got[0], ConnectionLost)
            assert got[1] in (b"PONG", "PONG")
        assert faults == []
        await link.close()

    run(loop_factory, work)


def test_a_write_of_a_link_that_raises_makes_it_lost(server: EmbeddedServer) -> None:
    """Uvloop refuses the write before the loss of the connection is reported."""

    async def work() -> None:
        faults: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: faults.append(context))
        link = ReconnectingConnection(server.url, Settings())
        await link.open()
        wire = link._protocol
        assert wire is not None
        other: Any = asyncio.get_running_loop()
        closed, _ = await other.create_connection(asyncio.Protocol, sock=_socket_to(server))
        closed.abort()
        await asyncio.sleep(0.01)
        with pytest.raises(RuntimeError, match="the handler is closed") as caught:
            closed.write(b"x")
        assert is_closed_transport(caught.value)
        real, wire._transport = wire._transport, closed
        got: list[Any] = []
        link.send_until_answered(pack(("PING",)), lambda _about, answer: got.append(answer))
        await wait_until(lambda: got, "it is answered on the next connection")
        real.abort()
        assert faults == []
        await link.close()

    run(uvloop.new_event_loop, work)


def _socket_to(server: EmbeddedServer) -> Any:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(server.socket_path))
    sock.setblocking(False)
    return sock


@pytest.mark.guarantee("slow-server")
@LOOPS
def test_a_stall_of_this_process_is_no_silence_of_the_server(
    server: EmbeddedServer, loop_factory: Callable[[], Any]
) -> None:
    """The answer came long ago when this process goes on: timers are due first, and count for nothing."""

    async def work() -> None:
        quick = Settings(answer_timeout_s=0.6, read_block_ms=1)
        link = ReconnectingConnection(server.url, quick)
        async with connect_worker(server.url, quick) as redis:
            await redis.ping()
            await link.open()
            got: list[Any] = []
            link.send(pack(("EVAL", BUSY, 0, 50)), lambda _about, answer: got.append(answer))
            asking = asyncio.create_task(redis.execute_command("EVAL", BUSY, 0, 50))
            packed = asyncio.create_task(send_and_read(redis, [pack(("EVAL", BUSY, 0, 50))]))
            await asyncio.sleep(0.02)
            time.sleep(1.2)  # noqa: ASYNC251 -- the stall
            assert await asking == b"done"
            assert await packed == [b"done"]
            await wait_until(lambda: got, "the link has its answer")
            assert got == [b"done"]
        await link.close()

    run(loop_factory, work)


@LOOPS
def test_silence_is_noticed(server: EmbeddedServer, loop_factory: Callable[[], Any]) -> None:
    """By a command, a pipeline of packed ones, and a link; the connection is not used again."""

    async def work() -> None:
        quick = Settings(answer_timeout_s=0.2, read_block_ms=1)
        async with connect_worker(server.url, quick) as redis:
            for ask in (
                lambda: redis.execute_command("EVAL", BUSY, 0, 700),
                lambda: send_and_read(redis, [pack(("EVAL", BUSY, 0, 700))]),
            ):
                with pytest.raises(RedisTimeoutError):
                    await ask()
                await wait_until(lambda: _is_well(redis), "it goes on with another connection")

    run(loop_factory, work)


async def _is_well(redis: Redis) -> bool:
    try:
        return bool(await redis.ping())
    except (RedisConnectionError, RedisTimeoutError):
        return False


@LOOPS
def test_the_time_of_an_answer_counts_from_its_own_command(loop_factory: Callable[[], Any]) -> None:
    """A connection has one timer for all of its answers: that of an earlier answer ends no later one."""

    async def work() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1000)  # HELLO
            writer.write(b"%1\r\n$5\r\nproto\r\n:3\r\n")
            while await reader.read(1000):
                await asyncio.sleep(1.2)
                writer.write(b"+OK\r\n")
            writer.close()

        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        quick = Settings(answer_timeout_s=2.0, read_block_ms=1)
        async with connect_worker(f"redis://127.0.0.1:{port}", quick) as redis:
            for _ in range(3):
                assert await send_and_read(redis, [pack(("PING",))]) == [b"OK"]
        listener.close()

    run(loop_factory, work)


@LOOPS
def test_an_answer_that_arrives_piece_by_piece_is_not_silence(loop_factory: Callable[[], Any]) -> None:
    """Each piece counts: a long answer over a slow line may take longer than the timeout."""

    async def work() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1000)  # HELLO
            writer.write(b"%1\r\n$5\r\nproto\r\n:3\r\n")
            await reader.read(1000)
            writer.write(b"$8\r\n")
            for _ in range(8):
                await asyncio.sleep(0.2)
                writer.write(b"x")
            writer.write(b"\r\n")
            await reader.read(1)
            writer.close()

        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        quick = Settings(answer_timeout_s=1.0, read_block_ms=1)
        async with connect_worker(f"redis://127.0.0.1:{port}", quick) as redis:
            assert await redis.get("k") == b"x" * 8
        listener.close()

    run(loop_factory, work)


async def test_the_system_looks_whether_the_other_side_is_there() -> None:
    """A connection that waits for no answer is probed, and what is written and not acknowledged has a limit."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(b"%1\r\n$5\r\nproto\r\n:3\r\n")
        await reader.read(1000)
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with connect(f"redis://127.0.0.1:{port}", Settings()) as redis:
        connection = await redis.connection_pool.get_connection()
        sock: socket.socket = connection._writer.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        wanted = keepalive_options(2.9)
        assert {option: sock.getsockopt(socket.IPPROTO_TCP, option) for option in wanted} == wanted
        await redis.connection_pool.release(connection)
    listener.close()


@pytest.mark.guarantee("half-open-connections")
def test_every_process_notices_silence_within_three_seconds() -> None:
    """BLOCK and the timeout of an answer together; an answer that takes 2 s longer than its BLOCK is no alarm."""
    settings = Settings()
    assert settings.read_block_ms / 1000 + settings.answer_timeout_s + 0.05 < 3
    assert settings.answer_timeout_s > 2
    assert settings.connect_timeout_s > 2
    options = keepalive_options(2.9)
    assert all(value > 0 for value in options.values())
