"""What redis-py raises, as an error of coord: the same for everything that callers read and write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redis import exceptions as redis_errors

from coord.connection import DEMOTED
from coord.errors import CoordError, ServerFull, ServerUnavailable, ServerUnfit
from coord.refusals import answer_of, is_for_now

#: The advice after a failed write.
REPEAT = "Repeating it with the same task_id or message_id is safe"


@contextmanager
def reading(place: str = "") -> Iterator[None]:
    """Translate what reads in its block raise; ``place``: the server's URL as it may be shown.

    Raises:
        ServerUnavailable: Redis does not answer, is loading its data, or does not serve for now.
        ServerUnfit: it refuses the command for good, such as for a user without the right.
    """
    try:
        yield
    except CoordError:
        raise
    except (redis_errors.RedisError, OSError) as error:
        raise read_failure(error, place) from error


def read_failure(error: Exception, place: str = "") -> CoordError:
    """Return the error of coord for what a read met with."""
    server = f"Redis at {place}" if place else "Redis"
    why = _why(error)
    if isinstance(error, redis_errors.BusyLoadingError):
        return ServerUnavailable(f"{server} is loading its data: {why}; try again in a moment")
    if _is_lost(error):
        return ServerUnavailable(f"{server} does not answer: {why}; try again when it is back")
    if isinstance(error, redis_errors.OutOfMemoryError):
        return ServerFull(f"{server} is full: {why}; try again later")
    if isinstance(error, DEMOTED) or is_for_now(error):
        return ServerUnavailable(f"{server} does not serve this for now: {why}; try again later")
    if isinstance(error, redis_errors.NoPermissionError):
        return ServerUnfit(f"{server} refuses this user: {why}; see to its rights")
    return ServerUnfit(f"{server} answered: {why}; `coord fsck` checks what lies there")


def write_failure(error: Exception) -> Exception:
    """Return the error of coord for what an append met with, or the error itself where Redis refuses it for good."""
    translated: CoordError
    if isinstance(error, redis_errors.BusyLoadingError):
        translated = ServerUnavailable(f"Redis is loading its data: {_why(error)}. {REPEAT}")
    elif _is_lost(error):
        translated = ServerUnavailable(f"Redis did not answer, so it may have the entry or not: {error}. {REPEAT}")
    elif isinstance(error, DEMOTED):
        translated = ServerUnavailable(
            f"the server takes no writes of this namespace, so it may have a part or nothing: {error}. "
            f"{REPEAT}; a fail-over is over when the address in COORD_REDIS_URL leads to the new primary"
        )
    elif isinstance(error, redis_errors.OutOfMemoryError):
        translated = ServerFull(
            f"Redis is full: {error} Try again later, with the same task_id or message_id: "
            "of several, some may have been taken"
        )
    elif is_for_now(error):
        translated = ServerUnavailable(f"Redis takes no writes for now: {_why(error)}. {REPEAT}")
    else:
        return error
    translated.__cause__ = error
    return translated


def _is_lost(error: Exception) -> bool:
    return isinstance(error, (redis_errors.ConnectionError, redis_errors.TimeoutError, OSError))


def _why(error: Exception) -> str:
    return (answer_of(error) or type(error).__name__).rstrip(".")
