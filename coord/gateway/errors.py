"""Error responses: one JSON body for all errors, and the HTTP status of errors that only HTTP has.

    {"status": "error", "code": "agent_not_found", "message": "Agent 'x' not found", "detail": "Agent 'x' not found",
     "timestamp": "2026-01-01T00:00:00.000+00:00"}

``detail`` is a sentence; for an invalid body it is a list of ``{"loc": ["body", "agent_id"], "msg": …, "type": …}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import falcon
from falcon.asgi import App, Request, Response
from msgspec import Struct

from coord import codec, logs
from coord.errors import BY_CODE, CoordError
from coord.gateway.schemas import now

log = logs.get_logger()

#: Code -> HTTP status of errors that only HTTP has; every other error has its status on its class.
HTTP_ONLY: dict[str, int] = {
    "invalid_priority": 400,
    "invalid_strategy": 400,
    "cross_origin": 403,
    "not_found": 404,
    "setting_refused": 409,
    "method_not_allowed": 405,
    "body_timeout": 408,
    "body_too_large": 413,
    "body_invalid": 422,
    "content_type_invalid": 422,
    "idempotency_key_invalid": 422,
    "idempotency_key_reused": 422,
    "nested_too_deeply": 422,
    "overloaded": 503,
    "internal": 500,
}

#: Retry-After in seconds, for temporary errors.
RETRY_AFTER: dict[str, int] = {"overloaded": 1, "server_unavailable": 1, "config_invalid": 5, "server_full": 5}
#: Retry-After in seconds of every other 503, such as a full backlog.
RETRY_AFTER_S = 5


class Problem(Struct, frozen=True):
    """One invalid value in a request."""

    loc: list[str | int]  #: path of the value: ``["body", "capabilities", 0]``
    msg: str
    type: str  #: missing, type_error, value_error, json_invalid


class RequestError(CoordError):
    """The gateway refuses the request before it appends a fact."""

    def __init__(self, code: str, message: str, problems: list[Problem] | None = None) -> None:
        super().__init__(message)
        self.name = code
        self.problems = problems


class ErrorBody(Struct, frozen=True, kw_only=True):
    """The body of every error response."""

    status: str = "error"
    code: str
    message: str
    detail: str | list[Problem]
    timestamp: str


def install(app: App[Request, Response]) -> None:
    """Make ``app`` respond with an ``ErrorBody`` to every exception, including those of falcon."""
    app.set_error_serializer(_serialize)
    app.add_error_handler(Exception, _defect)
    app.add_error_handler(falcon.HTTPError, _http_error)
    app.add_error_handler(CoordError, _refused)
    app.add_error_handler(RecursionError, _too_deep)


def status_of(code: str) -> int:
    """Return the HTTP status of an error code."""
    return HTTP_ONLY[code] if code in HTTP_ONLY else BY_CODE.get(code, CoordError).http_status


def refuse(resp: Response, code: str, message: str, problems: list[Problem] | None = None) -> None:
    """Set the error body and the status of a response."""
    status = status_of(code)
    resp.status = status
    resp.content_type = falcon.MEDIA_JSON
    if status == 422 and not problems:
        problems = [Problem(["body"], message, "value_error")]
    resp.data = codec.encode(ErrorBody(code=code, message=message, detail=problems or message, timestamp=now()))
    if status == 503:
        resp.set_header("Retry-After", str(RETRY_AFTER.get(code, RETRY_AFTER_S)))


async def _refused(_req: Request, resp: Response, error: CoordError, _params: Mapping[str, Any]) -> None:
    code, problems = (error.name, error.problems) if isinstance(error, RequestError) else (error.code, None)
    refuse(resp, code, str(error), problems)


async def _http_error(req: Request, resp: Response, error: falcon.HTTPError, _params: Mapping[str, Any]) -> None:
    for name, value in dict(error.headers or {}).items():
        resp.set_header(name, value)
    _serialize(req, resp, error)


def _serialize(req: Request, resp: Response, error: falcon.HTTPError) -> None:
    """Respond to what falcon itself refuses: an unknown path, an unsupported method, a broken header."""
    if isinstance(error, falcon.HTTPNotFound):
        refuse(resp, "not_found", f"unknown path: {req.path[:200]}")
    elif isinstance(error, falcon.HTTPMethodNotAllowed):
        refuse(resp, "method_not_allowed", f"{req.path[:200]} does not support {req.method}")
    else:
        refuse(resp, "body_invalid", error.description or error.title or "invalid request")


async def _too_deep(_req: Request, resp: Response, _error: RecursionError, _params: Mapping[str, Any]) -> None:
    refuse(resp, "nested_too_deeply", "nested too deeply")


async def _defect(req: Request, resp: Response, error: Exception, _params: Mapping[str, Any]) -> None:
    """Respond to a defect of the gateway: the log has the traceback, the response does not."""
    log.error("gateway.defect", method=req.method, path=req.path, error=repr(error), exc_info=error)
    refuse(resp, "internal", "internal error; the log of the gateway has the details")
