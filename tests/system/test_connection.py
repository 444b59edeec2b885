"""Connections on real servers: what is repeated and what never, TLS, waiting, which servers are refused."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from coord.config import Settings
from coord.connection import (
    connect,
    connect_worker,
    leave_server,
    wait_for_server,
)
from coord.embedded import EmbeddedServer
from coord.errors import ConfigError, ServerUnavailable
from coord.pipeline import pack, send_and_read
from tests.waiting import wait_until


class Proxy:
    """A server in the middle that counts what passes and can swallow answers.

    Attributes:
        sent: every chunk that clients sent.
        links: connections accepted.
        drop_on: an answer to a chunk with this in it is not passed on; the connection is closed instead …
        hang: … or, when this is set, left open and silent.
    """

    def __init__(self, target: EmbeddedServer) -> None:
        self.target = target
        self.sent: list[bytes] = []
        self.links = 0
        self.drop_on = b"\0"
        self.hang = False
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection."""
        self.links += 1
        up_reader, up_writer = await asyncio.open_unix_connection(str(self.target.socket_path))
        try:
            while chunk := await reader.read(65_536):
                self.sent.append(chunk)
                up_writer.write(chunk)
                answer = await up_reader.read(65_536)
                if self.drop_on in chunk:
                    if self.hang:
                        await reader.read(1)
                    return
                writer.write(answer)
                await writer.drain()
        except ConnectionError:
            return
        finally:
            up_writer.close()
            writer.close()

    def times(self, word: bytes) -> int:
        """How often a command was sent."""
        return b"".join(self.sent).count(word)


@pytest.fixture
async def proxy(server: EmbeddedServer, redis: Redis) -> AsyncIterator[Proxy]:
    """A proxy before the (emptied) embedded server."""
    middle = Proxy(server)
    async with _listen(middle):
        yield middle


@asynccontextmanager
async def _listen(middle: Proxy) -> AsyncIterator[None]:
    listener = await asyncio.start_server(middle.serve, "127.0.0.1", 0)
    middle.port = listener.sockets[0].getsockname()[1]
    yield
    listener.close()


@pytest.mark.parametrize("hang", [False, True], ids=["closed", "silent"])
@pytest.mark.parametrize("pipelined", [False, True], ids=["command", "pipeline"])
async def test_a_worker_never_repeats_a_command(proxy: Proxy, redis: Redis, *, hang: bool, pipelined: bool) -> None:
    """The answer is lost, whether by a closed connection or by silence: one XADD was sent, one entry is there."""
    proxy.drop_on, proxy.hang = b"XADD", hang
    quick = Settings(answer_timeout_s=0.2, read_block_ms=1)
    async with connect_worker(f"redis://127.0.0.1:{proxy.port}", quick) as worker:
        pipe = worker.pipeline(transaction=False)
        pipe.xadd("s", {"n": 1})
        with pytest.raises(RedisTimeoutError if hang else RedisConnectionError):
            await (pipe.execute() if pipelined else worker.xadd("s", {"n": 1}))
        assert proxy.times(b"XADD") == 1
        assert await redis.xlen("s") == 1
        proxy.drop_on = b"\0"
        assert await worker.xlen("s") == 1


async def test_a_worker_s_script_and_group_read_are_not_repeated(proxy: Proxy, redis: Redis) -> None:
    """A repeated dispatch would put two tasks under one lease; a repeated read would hide a batch."""
    await redis.xgroup_create("s", "g", id="0", mkstream=True)
    await redis.xadd("s", {"n": 1})
    async with connect_worker(f"redis://127.0.0.1:{proxy.port}", Settings()) as worker:
        proxy.drop_on = b"EVAL"
        with pytest.raises(RedisConnectionError):
            await worker.eval("return redis.call('INCR', KEYS[1])", 1, "n")
        proxy.drop_on = b"XREADGROUP"
        with pytest.raises(RedisConnectionError):
            await worker.xreadgroup("g", "me", {"s": ">"}, block=100)
    assert (proxy.times(b"EVAL"), proxy.times(b"XREADGROUP")) == (1, 1)
    assert await redis.get("n") == b"1"


async def test_a_caller_s_command_is_repeated_until_it_is_answered(proxy: Proxy, redis: Redis) -> None:
    """Callers outlive a lost answer; what they append may then be there twice, and its identity makes that one."""
    proxy.drop_on = b"XADD"
    async with connect(f"redis://127.0.0.1:{proxy.port}", Settings(), retries=2) as caller:
        with pytest.raises(RedisConnectionError):
            await caller.xadd("s", {"n": 1})
    assert proxy.times(b"XADD") == 3
    assert await redis.xlen("s") == 3


async def test_a_connection_opens_with_hello_alone(proxy: Proxy) -> None:
    """No CLIENT SETINFO, no maintenance notices, no health PING: a tight ACL allows it and it costs one round trip."""
    async with connect(f"redis://127.0.0.1:{proxy.port}", Settings()) as caller:
        await caller.get("k")
    assert proxy.times(b"CLIENT") == 0
    assert proxy.times(b"PING") == 0
    assert b"".join(proxy.sent).split(b"\r\n")[2::2][:2] == [b"HELLO", b"3"]


async def test_a_block_is_longer_than_no_timeout(redis: Redis, server: EmbeddedServer) -> None:
    """BLOCK of read_block_ms ends in an empty answer, not in a timeout."""
    settings = Settings(read_block_ms=400, answer_timeout_s=0.2)
    async with connect_worker(server.url, settings) as worker:
        assert not await worker.xread({"s": "$"}, block=settings.read_block_ms)


async def test_more_calls_than_sockets_wait_their_turn(redis: Redis, server: EmbeddedServer) -> None:
    """A thousand calls at once are answered, over a bounded number of sockets."""
    async with connect(server.url, Settings()) as caller:
        assert await asyncio.gather(*(caller.incr("n") for _ in range(1000)))
    assert await redis.get("n") == b"1000"


@pytest.mark.on_fakeredis
async def test_answers_have_one_shape_everywhere(redis_or_fake: Redis) -> None:
    """fakeredis, Valkey and Redis 7.0 answer a group read alike, in bytes."""
    await redis_or_fake.xgroup_create("s", "g", id="0", mkstream=True)
    entry = await redis_or_fake.xadd("s", {"a": "1"})
    answer = await redis_or_fake.xreadgroup("g", "me", {"s": ">"}, count=1)
    assert answer == {b"s": [[(entry, {b"a": b"1"})]]}
    await redis_or_fake.hset("h", mapping={"f": "v"})
    assert await redis_or_fake.hgetall("h") == {b"f": b"v"}


@pytest.mark.parametrize("connecting", [connect, connect_worker])
async def test_nobody_there_is_said_with_the_next_step(connecting: Callable[..., Redis], unused_port: int) -> None:
    """The error names the URL without its password, the reason, and what to do; also if the client repeats itself."""
    url = f"redis://ann:hidden@127.0.0.1:{unused_port}"
    async with connecting(url, Settings()) as redis:
        with pytest.raises(ServerUnavailable, match=r"ann:\*\*\*@127\.0\.0\.1.*Connect call failed.*coord up"):
            await wait_for_server(redis, url, limit_s=1)


async def test_who_waits_for_long_is_told_what_for(
    unused_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, after two seconds: otherwise a person who forgot `coord up` sees a blank screen."""
    monkeypatch.setattr("coord.connection.QUIET_S", 0.05)
    url = f"redis://127.0.0.1:{unused_port}"
    with pytest.raises(ServerUnavailable):
        await wait_for_server(connect_worker(url, Settings()), url, limit_s=0.4)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("redis.awaited") == err.count(url) == 1


async def test_it_waits_for_a_server_that_comes_later(tmp_path: Path) -> None:
    """A server that starts a moment later is met."""
    server = EmbeddedServer.start(tmp_path / "d")
    server.stop()
    async with connect_worker(server.url, Settings()) as redis:
        waiting = asyncio.create_task(wait_for_server(redis, server.url, limit_s=20))
        await asyncio.sleep(0)
        await asyncio.to_thread(server.restart)
        await waiting
        assert await redis.ping()
    server.stop()


async def test_refused_credentials_are_not_waited_for(server: EmbeddedServer) -> None:
    """A wrong password is answered at once."""
    url = f"unix://nobody:wrong@{server.socket_path}"
    async with connect_worker(url, Settings()) as redis:
        with pytest.raises(ConfigError, match="refuses the user or password") as caught:
            await wait_for_server(redis, url, limit_s=60)
    assert "wrong@" not in str(caught.value)


async def test_a_server_that_asks_for_a_password_is_told_apart(tmp_path: Path) -> None:
    """A URL without one is answered with where it belongs, over a socket and over TCP alike."""
    server = EmbeddedServer.start(tmp_path / "d")
    async with connect(server.url, Settings()) as owner:
        await owner.config_set("requirepass", "open-sesame")
        async with connect_worker(server.url, Settings()) as redis:
            with pytest.raises(ConfigError, match=r"asks for a password: redis://:PASSWORD@host"):
                await wait_for_server(redis, server.url, limit_s=60)
    server.kill()


async def test_a_database_that_is_not_there_is_not_waited_for(server: EmbeddedServer) -> None:
    """The number is wrong, not the rights."""
    url = f"{server.url}?db=99"
    async with connect_worker(url, Settings()) as redis:
        with pytest.raises(ConfigError, match="has no database of this number: DB index is out of range"):
            await wait_for_server(redis, url, limit_s=60)


async def test_a_worker_leaves_a_demoted_server_and_repeats_nothing(tmp_path: Path) -> None:
    """The refusal is an error, and its connection is closed: the next one goes where the address leads by then."""
    server = EmbeddedServer.start(tmp_path / "d", extra=("--appendonly", "no"))
    async with connect(server.url, Settings()) as watcher, connect_worker(server.url, Settings(), name="w") as redis:
        await redis.ping()
        await watcher.execute_command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(ReadOnlyError):
            await redis.set("k", "v")
        assert "w" not in {client["name"] for client in await watcher.client_list()}
        assert (await watcher.info("errorstats"))["errorstat_READONLY"]["count"] == 1
        await redis.ping()
        reading = asyncio.ensure_future(redis.xread({"s": "$"}, block=300))  # in use while the server is left

        async def reads() -> bool:
            return any(one["name"] == "w" and "b" in one["flags"] for one in await watcher.client_list())

        await wait_until(reads, "a read blocks")
        await leave_server(redis)
        await reading
        assert "w" not in {client["name"] for client in await watcher.client_list()}
    server.stop(force=True)


async def test_a_caller_s_command_is_repeated_until_the_address_leads_to_a_primary(tmp_path: Path) -> None:
    """A demoted server refuses it again and again; then it is taken."""
    server = EmbeddedServer.start(tmp_path / "d", extra=("--appendonly", "no"))
    settings = Settings()
    async with connect(server.url, settings) as watcher, connect(server.url, settings, retries=10_000) as redis:
        await watcher.execute_command("REPLICAOF", "127.0.0.1", "1")
        setting = asyncio.ensure_future(redis.set("k", "v"))

        async def refused_twice() -> bool:
            stats = await watcher.info("errorstats")
            return bool(stats.get("errorstat_READONLY", {}).get("count", 0) >= 2)

        await wait_until(refused_twice, "it is refused twice")
        assert not setting.done()
        await watcher.execute_command("REPLICAOF", "NO", "ONE")
        assert await setting
    server.stop(force=True)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a self-signed certificate for 127.0.0.1: cert.pem, key.pem."""
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=coord-test"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder


async def test_tls_with_a_trusted_and_with_an_unknown_certificate(
    tmp_path: Path, certificate: Path, redis_server_binary: Path, unused_port: int
) -> None:
    """rediss:// works with the certificate's authority, and without it the error names at once what is missing."""
    options = {
        "--tls-port": str(unused_port),
        "--tls-auth-clients": "no",
        "--tls-cert-file": str(certificate / "cert.pem"),
        "--tls-key-file": str(certificate / "key.pem"),
        "--tls-ca-cert-file": str(certificate / "cert.pem"),
    }
    extra = [word for pair in options.items() for word in pair]
    server = EmbeddedServer.start(tmp_path / "d", binary=redis_server_binary, extra=extra)
    try:
        url = f"rediss://127.0.0.1:{unused_port}/0"
        trusting = f"{url}?ssl_ca_certs={certificate / 'cert.pem'}"
        async with connect_worker(trusting, Settings()) as redis:
            await wait_for_server(redis, trusting, limit_s=10)
            assert await redis.set("k", "v")
        async with connect_worker(url, Settings()) as redis:
            with pytest.raises(ConfigError, match=r"not trusted.*ssl_ca_certs"):
                await wait_for_server(redis, url, limit_s=60)
    finally:
        server.stop()


async def test_a_killed_server_is_an_error_and_then_a_new_connection(tmp_path: Path) -> None:
    """A worker's client sees the loss once and works again by itself when the server is back."""
    server = EmbeddedServer.start(tmp_path / "d")
    async with connect_worker(server.url, Settings()) as redis:
        await redis.set("k", "v")
        reading = asyncio.ensure_future(redis.xread({"s": "$"}, block=2_000))
        await wait_until(lambda: _blocked_clients(redis), "the read waits in the server")
        server.kill()
        with pytest.raises(RedisError):
            await reading
        await asyncio.to_thread(server.restart)
        await wait_for_server(redis, server.url, limit_s=10)
        assert await redis.get("k") == b"v"
    server.stop()


async def _blocked_clients(redis: Redis) -> int:
    return int((await redis.info("clients"))["blocked_clients"])


@pytest.mark.on_fakeredis
async def test_an_exchange_reads_every_answer_before_it_raises(redis_or_fake: Redis) -> None:
    """The first error of several commands is raised, the others are carried out, and no answer is left for the next."""
    commands = [("SET", "k", "1"), ("HGET", "k", "f"), ("INCR", "k")]
    with pytest.raises(ResponseError):
        await send_and_read(redis_or_fake, [pack(one) for one in commands], to_raise=True)
    assert await send_and_read(redis_or_fake, [pack(("GET", "k")), pack(("XLEN", "s"))], to_raise=True) == [b"2", 0]


async def test_an_exchange_with_a_replica_closes_its_connection(server: EmbeddedServer) -> None:
    """The address may lead to the primary by the next, which connects again; a worker repeats nothing."""
    redis = connect_worker(server.url, Settings())
    who, refused = pack(("CLIENT", "ID")), pack(("EVAL", "return redis.error_reply('READONLY No')", 0))
    try:
        (first,) = await send_and_read(redis, [who], to_raise=True)
        with pytest.raises(ReadOnlyError):
            await send_and_read(redis, [refused], to_raise=True)
        (second,) = await send_and_read(redis, [who], to_raise=True)
        assert second != first
    finally:
        await redis.aclose()
