"""Error responses: one JSON body for all errors.

    {"status": "error", "code": "agent_not_found", "message": "Agent 'x' not found", "detail": "Agent 'x' not found",
     "timestamp": "2026-01-01T00:00:00.000+00:00"}

``detail`` is a sentence; for an invalid body it is a list of ``{"loc": ["body", "agent_id"], "msg": …, "type": …}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from coord import logs
from coord.api_key import redacted
from coord.errors import CoordError
from coord.gateway.errors import Problem, RequestError, status_of
from coord.gateway.routes import Answer, Call
from coord.gateway.schemas import now

log = logs.get_logger()

#: Retry-After in seconds, for temporary errors.
RETRY_AFTER: dict[str, int] = {"overloaded": 1, "server_unavailable": 1, "config_invalid": 5, "server_full": 5}
#: Retry-After in seconds of every other 503, such as a full backlog.
RETRY_AFTER_S = 5


class ErrorBody(Struct, frozen=True, kw_only=True):
    """The body of every error response."""

    status: str = "error"
    code: str
    message: str
    detail: str | list[Problem]
    timestamp: str


class FrameError(Struct, frozen=True):
    """Why a frame of a WebSocket was refused."""

    code: str
    message: str
    detail: str | list[Problem]

    @classmethod
    def of(cls, call: Call[Any, Any], error: Exception) -> FrameError:
        """Return what the response to a request would say."""
        body = error_answer(call, error).body
        assert isinstance(body, ErrorBody)  # noqa: S101 (it has no other)
        return cls(body.code, body.message, body.detail)


def error_answer(call: Call[Any, Any], error: Exception) -> Answer:
    """Return the response to an error; a defect of the gateway is logged, and the response does not show it."""
    if isinstance(error, RequestError):
        return _answer(error.name, str(error), error.problems, error.headers)
    if isinstance(error, CoordError):
        return _answer(error.code, str(error))
    if isinstance(error, RecursionError):
        return _answer("nested_too_deeply", "nested too deeply")
    log.error("gateway.defect", method=call.method, path=redacted(call.path), error=repr(error), exc_info=error)
    return _answer("internal", "internal error; the log of the gateway has the details")


def _answer(
    code: str, message: str, problems: list[Problem] | None = None, headers: Mapping[str, str] | None = None
) -> Answer:
    status = status_of(code)
    if status == 422 and not problems:
        problems = [Problem(["body"], message, "value_error")]
    found = dict(headers or {})
    if status == 503:
        found.setdefault("Retry-After", str(RETRY_AFTER.get(code, RETRY_AFTER_S)))
    body = ErrorBody(code=code, message=message, detail=problems or message, timestamp=now())
    return Answer(body, status, found)
