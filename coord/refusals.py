"""What a server answers to a URL that no waiting mends, as a sentence with the next step."""

from __future__ import annotations

import ssl

from redis import exceptions as redis_errors


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
