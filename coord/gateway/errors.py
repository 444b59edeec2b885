"""The errors that only HTTP has, and the invalid values of a request."""

from __future__ import annotations

import re
from collections.abc import Mapping

from msgspec import Struct

from coord.errors import BY_CODE, CoordError

#: Code -> HTTP status of errors that only HTTP has; every other error has its status on its class.
HTTP_ONLY: dict[str, int] = {
    "request_invalid": 400,
    "invalid_priority": 400,
    "invalid_strategy": 400,
    "invalid_protocol": 400,
    "invalid_message_type": 400,
    "invalid_agent_type": 400,
    "credential_missing": 401,
    "credential_invalid": 401,
    "cross_origin": 403,
    "role_insufficient": 403,
    "agent_forbidden": 403,
    "not_found": 404,
    "setting_refused": 409,
    "idempotency_key_in_use": 409,
    "security_off": 409,
    "jwt_not_configured": 409,
    "inbox_elsewhere": 409,
    "method_not_allowed": 405,
    "body_timeout": 408,
    "head_timeout": 408,
    "body_too_large": 413,
    "body_invalid": 422,
    "content_type_invalid": 422,
    "frame_invalid": 422,
    "idempotency_key_invalid": 422,
    "idempotency_key_reused": 422,
    "nested_too_deeply": 422,
    "rate_limited": 429,
    "overloaded": 503,
    "head_too_large": 431,
    "internal": 500,
}

_AT = re.compile(r" - at `\$(.*)`\Z", re.DOTALL)
_STEP = re.compile(r"\.([^.\[\]]+)|\[([^\]]*)\]")
_MISSING = re.compile(r"\AObject missing required field `(.+?)`")


class Problem(Struct, frozen=True):
    """One invalid value in a request."""

    loc: list[str | int]  #: path of the value: ``["body", "capabilities", 0]``
    msg: str
    type: str  #: missing, type_error, value_error, json_invalid


class RequestError(CoordError):
    """The gateway refuses the request before it appends a fact.

    Args:
        code: of the error; ``HTTP_ONLY`` has its status.
        message: what is wrong, and the next step.
        problems: the invalid values, for a 422.
        headers: of the response, such as ``Retry-After``.
    """

    def __init__(
        self,
        code: str,
        message: str,
        problems: list[Problem] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.name = code
        self.problems = problems
        self.headers = headers


def status_of(code: str) -> int:
    """Return the HTTP status of an error code."""
    return HTTP_ONLY[code] if code in HTTP_ONLY else BY_CODE.get(code, CoordError).http_status


def problem_of(error: str, at: tuple[str, ...]) -> Problem:
    """Parse an error of msgspec, such as "Expected `str`, got `int` - at `$.capabilities[0]`"."""
    found = _AT.search(error)
    loc: list[str | int] = list(at)
    for name, index in _STEP.findall(found.group(1) if found else ""):
        loc.append(name or (int(index) if index.isdecimal() else index))
    message = _AT.sub("", error).replace("`", "'")
    missing = _MISSING.match(error)
    if missing:
        return Problem([*loc, missing.group(1)], "field required", "missing")
    return Problem(loc, message, "type_error" if ", got " in message else "value_error")


def sentence(problem: Problem) -> str:
    """Return a problem as text."""
    path = ".".join(str(step) for step in problem.loc[1:])
    return f"{path}: {problem.msg}" if path else problem.msg
