"""Connections to Redis: for callers with retries, for workers with none.

redis-py repeats a command whose answer it missed, which may run it twice. Callers append facts whose identity makes a
second one harmless, so they may; a worker's dispatch would put two tasks under one lease, so workers connect with
``connect_worker``, which repeats nothing: after an error they look at what is theirs and go on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from urllib.parse import parse_qs, urlsplit

import msgspec
from redis import exceptions as redis_errors
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from coord.config import Settings, source_of
from coord.endpoint import read_endpoint
from coord.errors import ConfigError, ServerUnavailable, ServerUnfit
from coord.logs import get_logger
from coord.pipeline import PACKING, ListeningParser
from coord.refusals import answers, is_for_now, refusal, refuses_only_writes

log = get_logger()

DEFAULT_URL = "redis://127.0.0.1:6379/0"
#: Tries after the first for a caller: with full jitter up to 1 s each, a fail-over of a few seconds goes unseen.
CALLER_RETRIES = 6
#: What a server answers that is not the primary of our keys, or not any more. The address may lead to the one that is
#: by now, so the connection is closed as if it had been lost; of a server that is demoted nobody else closes it.
DEMOTED = (redis_errors.ReadOnlyError, redis_errors.MovedError, redis_errors.ClusterDownError)
#: Lost in these ways, a command of a caller's is repeated.
LOST = (redis_errors.ConnectionError, redis_errors.TimeoutError, *DEMOTED)
#: What a PING raises that did not reach a server.
UNREACHED = (redis_errors.ConnectionError, redis_errors.TimeoutError)
#: What may help where no server answers.
HINT = {"hint": "is `coord up` running?"}
#: Whoever waits longer for a server is told what for.
QUIET_S = 2.0
#: Sockets per client; a call beyond waits for one instead of failing.
MAX_CONNECTIONS = 64
#: What a URL's query may say; anything else would change what this module promises.
URL_OPTIONS = frozenset({
    "db", "ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password",
    "ssl_cert_reqs", "ssl_check_hostname", "ssl_min_version", "ssl_ciphers",
})  # fmt: skip


def locate(settings: Settings, url: str | None = None) -> tuple[str, Settings]:
    """Where the cell is, and the settings for it.

    The server: ``url``, else COORD_REDIS_URL, else that of a live ``coord up`` by its endpoint file, else this
    machine's port 6379. Who follows a ``coord up`` to its server means its cell: its namespace holds, unless the
    settings name one other than the default.
    """
    if chosen := url or settings.redis_url:
        return chosen, settings
    endpoint = read_endpoint(settings.endpoint_place)
    if endpoint is None:
        return DEFAULT_URL, settings
    if settings.namespace == Settings().namespace:
        settings = msgspec.structs.replace(settings, namespace=endpoint.namespace)
    return endpoint.url, settings


def connect(url: str, settings: Settings, *, retries: int = CALLER_RETRIES, name: str | None = None) -> Redis:
    """A client for callers; opens no connection yet. RESP3, answers in bytes.

    Args:
        url: redis://, rediss:// or unix://; its query may name a db and TLS files (``ssl_ca_certs=…``).
        settings: for the timeouts; the socket's is above any BLOCK of ``read_block_ms``.
        retries: how often a command is repeated after a lost connection or a timeout. It may then run twice.
        name: shown by CLIENT LIST; needs CLIENT in the user's ACL, so only our own processes set it.

    Raises:
        ConfigError: the URL is no Redis URL; names it, without its password.
    """
    backoff = ExponentialWithJitterBackoff(base=0.05, cap=1.0)
    return _client(url, settings, Retry(backoff, retries, LOST), name)


def connect_worker(url: str, settings: Settings, *, name: str | None = None) -> Redis:
    """A client that sends each command at most once: any lost answer is an error. Else like ``connect``."""
    return _client(url, settings, Retry(NoBackoff(), 0, LOST), name)


def is_demoted(error: BaseException) -> bool:
    """Whether an error says that the server is not the primary of our keys, or not any more."""
    return isinstance(error, DEMOTED) or "UNBLOCKED" in str(error)


async def leave_server(redis: Redis) -> None:
    """Close every connection, each once its command is done, so that the next ones go where the address leads now.

    For a server that was demoted: it still answers reads, perhaps for ever with what was true then. So a connection
    that is in use now must not return to the pool either.
    """
    pool = redis.connection_pool
    # redis-py has no public way to them; the version is pinned below 9 and tests fail over through it.
    for connection in list(pool._in_use_connections):  # noqa: SLF001
        connection.mark_for_reconnect()
    with contextlib.suppress(redis_errors.RedisError, OSError):
        await pool.disconnect(inuse_connections=False)


def _client(url: str, settings: Settings, retry: Retry, name: str | None) -> Redis:
    check_url(url)
    tcp = not url.startswith("unix://")
    answer_s = settings.answer_timeout_s + settings.read_block_ms / 1000
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=MAX_CONNECTIONS,
        # A call that waits for a socket outlives one whose connection is half-open and the connect after it.
        timeout=answer_s + settings.connect_timeout_s,
        protocol=3,
        parser_class=ListeningParser,
        decode_responses=False,
        retry=retry,
        retry_on_timeout=False,
        socket_timeout=answer_s,
        socket_connect_timeout=settings.connect_timeout_s,
        # A PING before a command after an idle time costs a round trip and proves nothing about the next moment.
        health_check_interval=0,
        client_name=name,
        # redis-py would announce itself with two commands per connection, which a tight ACL refuses.
        driver_info=None,
        # Redis Enterprise's notices of moving nodes: on by default under RESP3, they cost a command per connection
        # and switch off the pool's look at whether an idle socket was closed or holds a stray answer.
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
        **({"socket_keepalive": True, "socket_keepalive_options": keepalive_options(answer_s)} if tcp else {}),
    )
    pool.connection_class = PACKING[pool.connection_class]
    return Redis.from_pool(pool)


def keepalive_options(silence_s: float) -> dict[int, int]:
    """Return the socket options with which the system gives a connection up whose other side is gone.

    For connections that wait for no answer, and for what was written and is not acknowledged. The timeout of an answer
    does it for the others.

    Args:
        silence_s: how long the other side may be silent.
    """
    probe_s = max(1, int(silence_s / 3))
    wanted = {
        "TCP_KEEPIDLE": probe_s,
        "TCP_KEEPALIVE": probe_s,  # macOS: the name of TCP_KEEPIDLE there
        "TCP_KEEPINTVL": probe_s,
        "TCP_KEEPCNT": 2,
        "TCP_USER_TIMEOUT": int(silence_s * 1000),  # Linux
    }
    return {getattr(socket, name): value for name, value in wanted.items() if hasattr(socket, name)}


def safe_url(url: str) -> str:
    """The URL as it may be shown: a password is replaced by ``***``, and so is the query."""
    try:
        parts = urlsplit(url)
        password = parts.password
    except ValueError:
        return "(not a URL)"
    shown = parts.netloc if password is None else parts.netloc.replace(f":{password}@", ":***@")
    return f"{parts.scheme}://{shown}{parts.path}{'?***' if parts.query else ''}"


def check_url(url: str, option: str = "") -> None:
    """Raise ``ConfigError`` if this is no Redis URL; ``option``: how it was given, if not by a variable."""
    variable = source_of("redis_url", url)
    given = f"{option} " if option else f"{variable}=" if variable else ""
    shown = f"{given}{safe_url(url)!r}"
    help_ = "expected redis://[user:password@]host[:port][/db], rediss://… or unix:///path/to/socket"
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for one that is no number or too large
        parse_url(url)
    except ValueError as error:
        raise ConfigError(f"{shown} is not a Redis URL ({error}); {help_}") from None
    place = parts.path if parts.scheme == "unix" else parts.hostname
    database = "" if parts.scheme == "unix" else parts.path.strip("/")
    if not place or (database and not database.isdecimal()):
        raise ConfigError(f"{shown} is not a Redis URL; {help_}")
    for name in parse_qs(parts.query):
        if name not in URL_OPTIONS:
            raise ConfigError(f"{shown}: option {name!r} is not known; known are {', '.join(sorted(URL_OPTIONS))}")


async def wait_for_server(redis: Redis, url: str, *, limit_s: float = 30.0) -> None:
    """Return once the server answers and has loaded its data; one that only refuses writes can be read.

    Args:
        redis: a client of either kind.
        url: what it was made from, for the message.
        limit_s: seconds to go on trying while nobody answers, or while the server loads or refuses for now.

    Raises:
        ServerUnavailable: the server was not usable within the limit; says where, why, and what to do.
        ConfigError: the server refuses the credentials or has no such database, or its certificate is not trusted:
            waiting mends none of it.
        ServerUnfit: the server refuses a PING, and not only for now.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    deadline, say_at = began + limit_s, began + QUIET_S
    wait_s = 0.02
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                await _ping_once(redis)
        except redis_errors.BusyLoadingError:
            why, is_there = "it is loading its data", True
        except (redis_errors.RedisError, OSError) as error:
            if refuses_only_writes(error):
                return
            _raise_if_for_good(error, url)
            why = str(error) or type(error).__name__
            is_there = answers(error)
        else:
            return
        if loop.time() + wait_s >= deadline:
            if is_there:
                raise ServerUnavailable(
                    f"Redis at {safe_url(url)} was not usable within {limit_s:g} s: {why.rstrip('.')}. Try again later"
                )
            raise ServerUnavailable(
                f"no usable Redis at {safe_url(url)} within {limit_s:g} s: {why.rstrip('.')}. "
                "Start one with `coord up`, or set COORD_REDIS_URL to a running server"
            )
        if loop.time() >= say_at:
            say_at = deadline
            log.warning("redis.awaited", url=safe_url(url), seconds=limit_s, why=why, **({} if is_there else HINT))
        await asyncio.sleep(wait_s)
        wait_s = min(wait_s * 2, 1.0)


def _raise_if_for_good(error: Exception, url: str) -> None:
    """Raise what a PING met with if it is of no use to wait."""
    if said := refusal(error, safe_url(url), has_password=bool(urlsplit(url).password)):
        raise ConfigError(said) from error
    if not isinstance(error, (*UNREACHED, OSError)) and not is_for_now(error):
        raise ServerUnfit(f"Redis at {safe_url(url)} answers PING with: {error}") from error


async def _ping_once(redis: Redis) -> None:
    """PING over a connection of its own: a caller's client would repeat it, and keep the reason of the failure."""
    connection = redis.connection_pool.make_connection()
    connection.retry = Retry(NoBackoff(), 0)
    try:
        await connection.connect()
        await connection.send_command("PING")
        await connection.read_response()
    finally:
        await connection.disconnect(nowait=True)
