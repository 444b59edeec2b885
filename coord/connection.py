"""Connections to Redis, and the meaning of their errors.

Clients of callers retry, clients of workers do not. redis-py repeats a command whose answer it missed, so the command
may run twice. Callers append facts, whose identity makes a repetition harmless. A repeated dispatch of a worker would
put two tasks under one lease, so workers connect with ``connect_worker``, which repeats nothing: after an error they
read their pending entries again.

Errors of redis-py become errors of ``coord.errors`` in one place: ``read_failure`` and ``write_failure`` for callers,
``permanent_failure`` for the first contact with a server. An error is permanent, or temporary (``is_temporary``), or
says that the server was demoted (``is_demoted``).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import re
import socket
import ssl
import time
from collections.abc import Iterator
from ipaddress import ip_address
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import msgspec
from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.maint_notifications import MaintNotificationsConfig

from coord.backoff import Backoff
from coord.config import Settings, source_of
from coord.endpoint import read_endpoint
from coord.errors import ConfigError, CoordError, ServerFull, ServerUnavailable, ServerUnfit
from coord.logs import get_logger
from coord.pipeline import CONNECTION_CLASSES, Pool, TimestampingParser

log = get_logger()

DEFAULT_URL = "redis://127.0.0.1:6379/0"
#: Retries of a caller: with full jitter up to 1 s each, they outlast a fail-over of a few seconds.
CALLER_RETRIES = 6
#: Errors of a server that is not, or no longer, the primary of the namespace. The address may lead to the new primary
#: by now, so the connection is closed as if it had been lost. A demoted server does not close it itself.
DEMOTED = (redis_errors.ReadOnlyError, redis_errors.MovedError, redis_errors.ClusterDownError)
#: Errors after which a caller's command is repeated.
RETRIED = (redis_errors.ConnectionError, redis_errors.TimeoutError, *DEMOTED)
#: Errors of a PING that did not reach a server.
UNREACHED = (redis_errors.ConnectionError, redis_errors.TimeoutError)
#: First words of error answers after which a retry may succeed.
TEMPORARY = (
    "OOM", "LOADING", "BUSY", "MISCONF", "READONLY", "MOVED", "ASK", "CLUSTERDOWN", "MASTERDOWN", "NOREPLICAS",
    "TRYAGAIN",
)  # fmt: skip
#: The classes that redis-py makes of some of these answers; it removes the first word.
TEMPORARY_CLASSES = (
    redis_errors.BusyLoadingError,
    redis_errors.OutOfMemoryError,
    redis_errors.ReadOnlyError,
    redis_errors.AskError,  # the base class of MovedError
    redis_errors.ClusterDownError,
    redis_errors.MasterDownError,
    redis_errors.TryAgainError,
)
#: The advice after a failed write.
REPEAT = "Repeating it with the same task_id or message_id is safe"
#: What may help if no server answers.
#: A process that waits longer than this for a server logs a warning.
QUIET_S = 2.0
#: First and longest wait between two attempts to reach a server, in seconds.
PING_WAIT_S = (0.02, 1.0)
#: Sockets per client; a further call waits for a socket instead of failing.
MAX_CONNECTIONS = 64
#: Options that the query of a URL may contain. Any other would change what this module promises.
URL_OPTIONS = frozenset({
    "db", "ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password",
    "ssl_cert_reqs", "ssl_check_hostname", "ssl_min_version", "ssl_ciphers",
})  # fmt: skip


#: The advice after an error about a server that is not there.
START_ADVICE = "Start one with `coord up`, or set COORD_REDIS_URL to a running server"
#: The same for a log, beside the address.
HINT = "is `coord up` running?"
#: Seconds between two lines of a process that waits for a server.
NOTICE_S = 4.5
#: Seconds of one attempt of such a process: longer than a connection and its answer may take.
ROUND_S = 6.0
#: Schemes of a Redis URL.
SCHEMES = ("redis", "rediss", "unix")


def locate(settings: Settings, url: str | None = None) -> tuple[str, Settings]:
    """Return the URL of the server, and the settings with the namespace of its cell.

    The server is ``url``, else COORD_REDIS_URL, else that of a running ``coord up`` by its endpoint file, else port
    6379 of this machine. A caller that finds the server through the endpoint file also uses the namespace of that
    ``coord up``, unless the settings name a namespace other than the default.
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
    """Return a client for callers: RESP3, answers in bytes. It opens no connection yet.

    Args:
        url: redis://, rediss:// or unix://; its query may name a db and TLS files (``ssl_ca_certs=…``).
        settings: for the timeouts. The socket timeout is longer than any BLOCK of ``read_block_ms``.
        retries: number of times that a command is repeated after a lost connection or a timeout. It may then run twice.
        name: shown by CLIENT LIST. It needs CLIENT in the user's ACL, so only coord's own processes set it.

    Raises:
        ConfigError: the URL is not a Redis URL; the message shows it without its password.
    """
    backoff = ExponentialWithJitterBackoff(base=0.05, cap=1.0)
    return _client(url, settings, Retry(backoff, retries, RETRIED), name)


def connect_worker(url: str, settings: Settings, *, name: str | None = None) -> Redis:
    """Return a client that sends each command at most once; a lost answer is an error. Otherwise like ``connect``."""
    return _client(url, settings, Retry(NoBackoff(), 0, RETRIED), name)


def is_demoted(error: BaseException) -> bool:
    """Return True if the server is not, or no longer, the primary of the namespace."""
    return isinstance(error, DEMOTED) or "UNBLOCKED" in str(error)


async def leave_server(redis: Redis) -> None:
    """Close every connection after its current command, so that new ones go where the address leads now.

    Used after the server was demoted. Such a server still answers reads, with data that is out of date. So a connection
    that is in use must not return to the pool either.
    """
    pool = redis.connection_pool
    # redis-py has no public access to these connections; the version is pinned below 9 and tests fail over through it.
    for connection in list(pool._in_use_connections):  # noqa: SLF001
        connection.mark_for_reconnect()
    with contextlib.suppress(redis_errors.RedisError, OSError):
        await pool.disconnect(inuse_connections=False)


def keepalive_options(silence_s: float) -> dict[int, int]:
    """Return the socket options with which the system detects that the other side is gone.

    They cover connections that wait for no answer, and written data that is not acknowledged. The timeout of an answer
    covers the rest.

    Args:
        silence_s: time for which the other side may send nothing, in seconds.
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
    """Return the URL with its password and its query replaced by ``***``, for logs and messages."""
    try:
        parts = urlsplit(url)
        password = parts.password
    except ValueError:
        return "(not a URL)"
    shown = parts.netloc if password is None else parts.netloc.replace(f":{password}@", ":***@")
    return f"{parts.scheme}://{shown}{parts.path}{'?***' if parts.query else ''}"


def check_url(url: str, option: str = "") -> None:
    """Check that this is a Redis URL.

    Args:
        url: the URL.
        option: the command line option that it came from, for the message; empty: none.

    Raises:
        ConfigError: the URL is not a Redis URL, or has an unknown option; the message shows it without its password.
    """
    variable = source_of("redis_url", url)
    given = f"{option} " if option else f"{variable}=" if variable else ""
    shown = f"{given}{_as_typed(url)!r}"
    help_ = "expected redis://[user:password@]host[:port][/db], rediss://… or unix:///path/to/socket"
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises if it is not a number or too large
        parse_url(url)
    except ValueError as error:
        # The reason may have a part of the password in it; and of a wrong scheme ``help_`` says enough.
        why = f" ({error})" if url.partition("://")[0] in SCHEMES and "@" not in url else ""
        raise ConfigError(f"{shown} is not a Redis URL{why}; {help_}") from None
    place = parts.path if parts.scheme == "unix" else parts.hostname
    database = "" if parts.scheme == "unix" else parts.path.strip("/")
    if not place or (database and not database.isdecimal()):
        raise ConfigError(f"{shown} is not a Redis URL; {help_}")
    for name in parse_qs(parts.query):
        if name not in URL_OPTIONS:
            raise ConfigError(f"{shown}: option {name!r} is unknown; known are {', '.join(sorted(URL_OPTIONS))}")


def _as_typed(url: str) -> str:
    """Return a URL that may be none as it was typed, without what may be a password, and without its query."""
    before, at, rest = url.rpartition("@")
    scheme, separator, user = before.rpartition("://")
    name, colon, _ = user.partition(":")
    address, question, _ = rest.partition("?")
    return f"{scheme}{separator}{name}{colon}{'***' if colon else ''}{at}{address}{question}{'***' if question else ''}"


async def wait_for_server(
    redis: Redis,
    url: str,
    *,
    limit_s: float = 30.0,
    logs: bool = True,
    refused_is_final: bool = False,
    advice: str = START_ADVICE,
) -> None:
    """Return once the server answers and has loaded its data; one that only refuses writes can be read.

    Args:
        redis: a client of either kind.
        url: the URL of that client, for the message.
        limit_s: seconds to retry while the server does not answer, loads its data, or refuses temporarily.
        logs: log a warning after ``QUIET_S``.
        refused_is_final: do not retry if this machine refuses the connection: nothing listens at the address.
        advice: what to do if there is no server, for the message.

    Raises:
        ServerUnavailable: the server was not usable within the limit; says where, why, and what to do.
        ConfigError: the server refuses the credentials or has no such database, or its certificate is not trusted.
            Waiting does not help.
        ServerUnfit: the server refuses a PING permanently.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    deadline, warn_at = started + limit_s, started + QUIET_S
    backoff = Backoff(*PING_WAIT_S)
    cause: Exception
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                await _ping_once(redis)
        except redis_errors.BusyLoadingError as error:
            why, cause, is_there = "it is loading its data", error, True
        except (redis_errors.RedisError, OSError) as error:
            if refuses_only_writes(error):
                return
            _raise_if_permanent(error, url)
            if refused_is_final and (refused := _local_refusal(error, url)):
                raise ServerUnavailable(f"no usable Redis at {safe_url(url)}: {refused}. {advice}") from error
            why, cause, is_there = str(error) or type(error).__name__, error, has_answered(error)
        else:
            return
        wait_s = backoff.next_s()
        if loop.time() + wait_s >= deadline:
            if is_there:
                raise ServerUnavailable(
                    f"Redis at {safe_url(url)} was not usable within {limit_s:g} s: {why.rstrip('.')}. Try again later"
                ) from cause
            raise ServerUnavailable(
                f"no usable Redis at {safe_url(url)} within {limit_s:g} s: {why.rstrip('.')}. {advice}"
            ) from cause
        if logs and loop.time() >= warn_at:
            warn_at = deadline
            log.warning(
                "redis.awaited", url=safe_url(url), seconds=limit_s, why=why, **({} if is_there else {"hint": HINT})
            )
        await asyncio.sleep(wait_s)


async def await_server(settings: Settings, url: str | None = None) -> tuple[str, Settings]:
    """Wait without a limit until a server answers at the address that ``locate`` returns, and return what it returns.

    For processes that run until they are stopped. The address may be published while they wait. They log every few
    seconds what they wait for.

    Raises: as ``wait_for_server``, except for ``ServerUnavailable``.
    """
    notice = WaitNotice()
    limit_s = QUIET_S
    while True:
        place, found = locate(settings, url)
        redis = connect_worker(place, found)
        try:
            await wait_for_server(redis, place, limit_s=limit_s, logs=False)
        except ServerUnavailable as error:
            notice.log(error, place)
            limit_s = ROUND_S
        else:
            return place, found
        finally:
            await redis.aclose()


class WaitNotice:
    """Logs that this process waits for a server: after a second, and again every ``NOTICE_S``.

    Several that wait in one process log once together.
    """

    _logged_at: ClassVar[float] = -math.inf

    def __init__(self) -> None:
        self._began = time.monotonic()

    def log(self, error: CoordError, place: str = "") -> None:
        """Log the error of an attempt to reach the server, unless it is too early.

        Args:
            error: of ``wait_for_server``.
            place: the URL of the server; empty: the error names it.
        """
        now = time.monotonic()
        if now - self._began < QUIET_S / 2 or now - WaitNotice._logged_at < NOTICE_S:
            return
        WaitNotice._logged_at = now
        fields = {"url": safe_url(place)} if place else {}
        cause = error.__cause__ if place and error.__cause__ is not None else error
        why = str(cause) or type(cause).__name__  # a TimeoutError has no text
        log.warning("redis.awaited", **fields, waited_s=round(now - self._began), why=why, hint=HINT)


def _local_refusal(error: Exception, url: str) -> str:
    """Return why nothing can listen at an address of this machine; '' if it is another one, or another error."""
    if url.startswith("unix://"):
        if _caused_by(error, (FileNotFoundError,)):
            return "there is no such socket"
        return "nothing listens on this socket" if _caused_by(error, (ConnectionRefusedError,)) else ""
    return "nothing listens on this port" if _is_loopback(url) and _is_refusal(error) else ""


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _is_refusal(error: Exception) -> bool:
    """Return True if every address of the host refuses the connection, or is none of this machine."""
    if _caused_by(error, (ConnectionRefusedError,)):
        return True
    # asyncio reports several addresses (127.0.0.1 and ::1 of localhost) as one OSError without a number.
    numbers = [int(number) for number in re.findall(r"\[Errno (\d+)\]", str(error))]
    return errno.ECONNREFUSED in numbers and set(numbers) <= {errno.ECONNREFUSED, errno.EADDRNOTAVAIL}


def is_temporary(error: BaseException) -> bool:
    """Return True if the server refuses the command only temporarily, so a retry may succeed."""
    return isinstance(error, TEMPORARY_CLASSES) or (
        isinstance(error, redis_errors.ResponseError) and server_text(error).startswith(TEMPORARY)
    )


def refuses_only_writes(error: BaseException) -> bool:
    """Return True if a server answers PING with an error only because it refuses writes: its disk is full or fails."""
    return isinstance(error, redis_errors.ResponseError) and server_text(error).startswith("MISCONF")


def has_answered(error: BaseException) -> bool:
    """Return True if a server answered, and refuses temporarily; another error may wrap the answer."""
    current: BaseException | None = error
    while current is not None:
        if is_temporary(current):
            return True
        current = current.__cause__ or current.__context__
    return False


def permanent_failure(error: BaseException, place: str, *, has_password: bool) -> str:
    """Return a sentence with the next step if retrying cannot help; otherwise ''.

    Args:
        error: raised by the first PING.
        place: the URL, safe to show.
        has_password: True if the URL has a password.
    """
    if _caused_by(error, (redis_errors.AuthenticationError, redis_errors.AuthorizationError)):
        if not has_password:
            return f"Redis at {place} asks for a password: redis://:PASSWORD@host, or redis://USER:PASSWORD@host"
        return f"Redis at {place} refuses the user or password: {error}"
    if _caused_by(error, (ssl.SSLCertVerificationError,)):
        return (
            f"Redis at {place} has a certificate that is not trusted: {error}. "
            "Name its authority: rediss://…?ssl_ca_certs=/path/to/ca.pem"
        )
    if "DB index" in str(error):
        return f"Redis at {place} has no database of this number: {error}; name another, such as 0"
    return ""


@contextlib.contextmanager
def reading(place: str = "") -> Iterator[None]:
    """Translate the errors of the reads in a ``with`` block; ``place`` is the server's URL, safe to show.

    Raises:
        ServerUnavailable: Redis does not answer, is loading its data, or refuses temporarily.
        ServerFull: Redis is out of memory.
        ServerUnfit: Redis refuses the command permanently, for example because the user has no permission.
    """
    try:
        yield
    except CoordError:
        raise
    except (redis_errors.RedisError, OSError) as error:
        raise read_failure(error, place) from error


def read_failure(error: Exception, place: str = "") -> CoordError:
    """Return coord's error for a failed read; ``place`` is the server's URL, safe to show."""
    server = f"Redis at {place}" if place else "Redis"
    why = _reason(error)
    if isinstance(error, redis_errors.BusyLoadingError):
        return ServerUnavailable(f"{server} is loading its data: {why}; try again in a moment")
    if _is_lost(error):
        return ServerUnavailable(f"{server} does not answer: {why}; try again when it is back")
    if isinstance(error, redis_errors.OutOfMemoryError):
        return ServerFull(f"{server} is full: {why}; try again later")
    if isinstance(error, DEMOTED) or is_temporary(error):
        return ServerUnavailable(f"{server} does not serve this for now: {why}; try again later")
    if isinstance(error, redis_errors.NoPermissionError):
        return ServerUnfit(f"{server} refuses this user: {why}; grant the permission in its ACL")
    return ServerUnfit(f"{server} answered: {why}; `coord fsck` checks its data")


def write_failure(error: Exception) -> Exception:
    """Return coord's error for a failed append, or the error itself if Redis refuses it permanently."""
    translated: CoordError
    if isinstance(error, redis_errors.BusyLoadingError):
        translated = ServerUnavailable(f"Redis is loading its data: {_reason(error)}. {REPEAT}")
    elif _is_lost(error):
        translated = ServerUnavailable(f"Redis did not answer, so the entry may exist or not: {error}. {REPEAT}")
    elif isinstance(error, DEMOTED):
        translated = ServerUnavailable(
            f"the server takes no writes of this namespace, so none or some of it may be written: {error}. "
            f"{REPEAT}; a fail-over is over when the address in COORD_REDIS_URL leads to the new primary"
        )
    elif isinstance(error, redis_errors.OutOfMemoryError):
        translated = ServerFull(
            f"Redis is full: {error} Try again later, with the same task_id or message_id: "
            "of several, some may have been accepted"
        )
    elif is_temporary(error):
        translated = ServerUnavailable(f"Redis takes no writes for now: {_reason(error)}. {REPEAT}")
    else:
        return error
    translated.__cause__ = error
    return translated


def server_text(error: BaseException) -> str:
    """Return the text of a server's error answer, without the words that redis-py adds to it in a pipeline."""
    return str(error).rpartition(" of pipeline caused error: ")[2].strip("(),'\"")


def _client(url: str, settings: Settings, retry: Retry, name: str | None) -> Redis:
    check_url(url)
    tcp = not url.startswith("unix://")
    answer_s = settings.answer_timeout_s + settings.read_block_ms / 1000
    pool = Pool.from_url(
        url,
        max_connections=MAX_CONNECTIONS,
        # A call that waits for a socket waits longer than a call on a half-open connection and its reconnect.
        timeout=answer_s + settings.connect_timeout_s,
        protocol=3,
        parser_class=TimestampingParser,
        decode_responses=False,
        retry=retry,
        retry_on_timeout=False,
        socket_timeout=answer_s,
        socket_connect_timeout=settings.connect_timeout_s,
        # A PING before a command after an idle time costs a round trip and proves nothing about the next moment.
        health_check_interval=0,
        client_name=name,
        # redis-py would send its name with two commands per connection, which a strict ACL refuses.
        driver_info=None,
        # Redis Enterprise's notices of moving nodes, on by default under RESP3, cost a command per connection and
        # disable the pool's check that an idle socket is open and holds no stray answer.
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
        **({"socket_keepalive": True, "socket_keepalive_options": keepalive_options(answer_s)} if tcp else {}),
    )
    pool.connection_class = CONNECTION_CLASSES[pool.connection_class]
    return Redis.from_pool(pool)


def _raise_if_permanent(error: Exception, url: str) -> None:
    """Raise coord's error for a failed PING if waiting does not help."""
    if failure := permanent_failure(error, safe_url(url), has_password=bool(urlsplit(url).password)):
        raise ConfigError(failure) from error
    if not isinstance(error, (*UNREACHED, OSError)) and not is_temporary(error):
        raise ServerUnfit(f"Redis at {safe_url(url)} answers PING with: {error}") from error


async def _ping_once(redis: Redis) -> None:
    """Send PING over a separate connection: a caller's client would repeat it and hide the reason of the failure."""
    connection = redis.connection_pool.make_connection()
    connection.retry = Retry(NoBackoff(), 0)
    try:
        await connection.connect()
        await connection.send_command("PING")
        await connection.read_response()
    finally:
        await connection.disconnect(nowait=True)


def _caused_by(error: BaseException, kinds: tuple[type[BaseException], ...]) -> bool:
    """Return True if the error is or wraps one of these. Over a unix socket redis-py wraps even a refused password."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, kinds):
            return True
        current = current.__cause__ or current.__context__
    return False


def _is_lost(error: Exception) -> bool:
    return isinstance(error, (redis_errors.ConnectionError, redis_errors.TimeoutError, OSError))


def _reason(error: Exception) -> str:
    return (server_text(error) or type(error).__name__).rstrip(".")
