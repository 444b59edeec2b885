"""What a server refuses: for good, as a sentence with the next step, or for now."""

from __future__ import annotations

import ssl

from redis import exceptions as redis_errors

#: The first words of error answers after which a retry may succeed.
FOR_NOW = (
    "OOM", "LOADING", "BUSY", "MISCONF", "READONLY", "MOVED", "ASK", "CLUSTERDOWN", "MASTERDOWN", "NOREPLICAS",
    "TRYAGAIN",
)  # fmt: skip
#: The classes that redis-py makes of some of them; it cuts their first word off.
FOR_NOW_CLASSES = (
    redis_errors.BusyLoadingError,
    redis_errors.OutOfMemoryError,
    redis_errors.ReadOnlyError,
    redis_errors.AskError,  # MovedError's base
    redis_errors.ClusterDownError,
    redis_errors.MasterDownError,
    redis_errors.TryAgainError,
)


def is_for_now(error: BaseException) -> bool:
    """Return True if a server's error answer says that it refuses for now only."""
    return isinstance(error, FOR_NOW_CLASSES) or (
        isinstance(error, redis_errors.ResponseError) and answer_of(error).startswith(FOR_NOW)
    )


def refuses_only_writes(error: BaseException) -> bool:
    """Return True if a server answers PING with an error only because it refuses writes: its disk is full or fails."""
    return isinstance(error, redis_errors.ResponseError) and answer_of(error).startswith("MISCONF")


def answers(error: BaseException) -> bool:
    """Return True if a server answered, and refuses for now; the answer may be wrapped in another error."""
    current: BaseException | None = error
    while current is not None:
        if is_for_now(current):
            return True
        current = current.__cause__ or current.__context__
    return False


def answer_of(error: BaseException) -> str:
    """Return what the server answered, without the words that redis-py puts around it in a pipeline."""
    return str(error).rpartition(" of pipeline caused error: ")[2].strip("(),'\"")


def refusal(error: BaseException, place: str, *, has_password: bool) -> str:
    """Why it is of no use to try again; '' if it may be.

    Args:
        error: what a first PING met with.
        place: the URL as it may be shown.
        has_password: whether the URL has one.
    """
    if _caused_by(error, (redis_errors.AuthenticationError, redis_errors.AuthorizationError)):
        if not has_password:
            return f"Redis at {place} asks for a password: redis://:PASSWORD@host, or redis://USER:PASSWORD@host"
        return f"Redis at {place} refuses the user or password: {error}"
    if _caused_by(error, (ssl.SSLCertVerificationError,)):
        return (
            f"Redis at {place} shows a certificate that is not trusted: {error}. "
            "Name its authority: rediss://…?ssl_ca_certs=/path/to/ca.pem"
        )
    if "DB index" in str(error):
        return f"Redis at {place} has no database of this number: {error}; name another, such as 0"
    return ""


def _caused_by(error: BaseException, kinds: tuple[type[BaseException], ...]) -> bool:
    """Whether the error is, or wraps, one of these: over a unix socket redis-py wraps even a refused password."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, kinds):
            return True
        current = current.__cause__ or current.__context__
    return False
