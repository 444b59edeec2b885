"""A limit of time for what a request does in Redis; all failures of Redis are one error that says how to go on."""

from __future__ import annotations

from types import TracebackType

from redis.exceptions import RedisError

from coord import logs
from coord.errors import CoordError, ServerUnavailable
from coord.gateway.deadlines import Deadlines

log = logs.get_logger()


class RedisLimit:
    """A block that talks to Redis: it has a limit of time, and all failures of Redis are ``ServerUnavailable``.

    Args:
        deadlines: of the event loop.
        seconds: the limit.
        advice: the end of each error: what the caller may do; empty: nothing.
    """

    __slots__ = ("_advice", "_limit", "_seconds")

    def __init__(self, deadlines: Deadlines, seconds: float, advice: str) -> None:
        self._limit = deadlines.limit(seconds)
        self._seconds = seconds
        self._advice = advice

    async def __aenter__(self) -> None:
        self._limit.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        advice = self._advice
        try:
            self._limit.__exit__(kind, error, at)
        except TimeoutError:
            raise ServerUnavailable(f"Redis did not answer within {self._seconds:g} s{advice}") from None
        if isinstance(error, ServerUnavailable):
            raise ServerUnavailable(f"{error}{advice}") from error
        if isinstance(error, RedisError | OSError) and not isinstance(error, CoordError):
            log.warning("redis.refuses", error=str(error))
            raise ServerUnavailable(f"Redis refused the command: {error}{advice}") from error
