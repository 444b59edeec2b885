"""The OpenAPI 3.1 document, generated from the table of routes and the Structs of its bodies, queries and answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from inspect import getdoc
from typing import Any

import msgspec
from msgspec import Struct

from coord import __version__
from coord.gateway.errors import status_of
from coord.gateway.failures import ErrorBody
from coord.gateway.idempotency import LONGEST
from coord.gateway.routes import JSON, Route

TITLE = "Agent coordinator"
DESCRIPTION = "Agents advertise capabilities and clients submit tasks. Every path is also served under /v1."
REF = "#/components/schemas/{name}"

#: Codes of errors that any request may get; the head may be broken, the gateway full, Redis away.
EVERYWHERE = (
    "request_invalid", "cross_origin", "method_not_allowed", "head_timeout", "head_too_large", "server_unavailable",
    "server_full", "server_unfit", "config_invalid", "overloaded", "internal",
)  # fmt: skip
#: Codes of errors of requests with a body.
WITH_BODY = (
    "body_timeout", "body_too_large", "fact_too_large", "body_invalid", "content_type_invalid", "nested_too_deeply",
    "fact_invalid", "payload_invalid", "id_invalid",
)  # fmt: skip
#: Codes of errors of requests with a key.
WITH_KEY = ("idempotency_key_invalid", "idempotency_key_reused", "idempotency_key_in_use")
#: Statuses of requests whose caller may not make them, or not now: where access is checked.
REFUSED = {
    401: "credential_missing, credential_invalid: send a valid credential",
    403: "role_insufficient, agent_forbidden: the credential does not allow it",
    429: "rate_limited: repeat it after Retry-After",
}
_VARIABLE = re.compile(r"\{(\w+)(?::(\w+))?\}")
_ID = {"type": "string", "pattern": "^[A-Za-z0-9._@-]{1,128}$"}
_ERROR = {
    "status": "error", "code": "agent_not_found", "message": "Agent 'x' not found", "detail": "Agent 'x' not found",
    "timestamp": "2026-01-31T12:00:00.000+00:00",
}  # fmt: skip


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """Return the OpenAPI document of a table of routes. WebSockets are not part of OpenAPI."""
    listed = [route for route in routes if route.method != "WEBSOCKET"]
    structs: dict[type[Struct], None] = {ErrorBody: None}
    for route in listed:
        structs |= {kind: None for kind in (route.body, route.query, route.answer) if kind is not None}
    schemas, components = msgspec.json.schema_components(tuple(structs), ref_template=REF)
    of = dict(zip(structs, schemas, strict=True))
    components["ErrorBody"]["examples"] = [_ERROR]
    paths: dict[str, dict[str, Any]] = {}
    for route in listed:
        paths.setdefault(route.plain_path, {})[route.method.lower()] = _operation(route, of, components)
    return {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": __version__, "description": DESCRIPTION},
        "servers": [{"url": "/"}, {"url": "/v1"}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def _operation(route: Route, of: Mapping[type[Struct], Any], components: Mapping[str, Any]) -> dict[str, Any]:
    summary = (getdoc(route.handle) or "").partition("\n")[0].replace("``", "`")
    found: dict[str, Any] = {
        "operationId": _operation_id(route),
        "summary": summary,
        "tags": [route.path[1:].partition("/")[0] or "gateway"],
        "parameters": [*_path_parameters(route), *_query_parameters(route, of, components), *_headers(route)],
        "responses": _responses(route, of),
    }
    if route.role is not None:
        found["description"] = f"Least role: {route.role}, where security is on."
        found["security"] = [{}, {"bearer": []}, {"apiKey": []}]
    if route.body is not None:
        content: dict[str, Any] = {"schema": of[route.body]}
        if route.example is not None:
            content["example"] = dict(route.example)
        is_required = any(field.required for field in msgspec.structs.fields(route.body))
        found["requestBody"] = {"required": is_required, "content": {JSON: content}}
    return found


def _operation_id(route: Route) -> str:
    words = re.findall(r"\w+", route.plain_path) or ["gateway"]
    return "_".join([route.method.lower(), *words])


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    found = []
    for name, kind in _VARIABLE.findall(route.path):
        schema = _ID if kind == "id" else {"type": "string", "minLength": 1}
        found.append({"name": name, "in": "path", "required": True, "schema": schema})
    return found


def _query_parameters(
    route: Route, of: Mapping[type[Struct], Any], components: Mapping[str, Any]
) -> list[dict[str, Any]]:
    if route.query is None:
        return []
    schema = components[str(of[route.query]["$ref"]).rpartition("/")[2]]
    example = route.example if route.body is None and route.example is not None else {}
    found: list[dict[str, Any]] = []
    for name, kind in schema["properties"].items():
        parameter: dict[str, Any] = {"name": name, "in": "query", "schema": _text_schema(kind)}
        if name in schema.get("required", ()):
            parameter["required"] = True
        if kind.get("type") == "object":
            parameter["description"] = "NAME=VALUE, repeated for each"
        if name in example:
            value = example[name]
            parameter["example"] = [value] if parameter["schema"].get("type") == "array" else value
        found.append(parameter)
    return found


def _text_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a value in a query, where there is no null and no object."""
    if schema.get("type") == "object":
        return {"type": "array", "items": {"type": "string", "pattern": "^[A-Za-z0-9]{1,40}=.*$", "maxLength": 200}}
    found = {name: value for name, value in schema.items() if name != "default" or value not in (None, [], {})}
    if "anyOf" in found:
        options = [option for option in found.pop("anyOf") if option.get("type") != "null"]
        found |= options[0] if len(options) == 1 else {"anyOf": options}
    return found


def _headers(route: Route) -> list[dict[str, Any]]:
    if route.method != "POST":
        return []
    schema = {"type": "string", "pattern": f"^[A-Za-z0-9._-]{{1,{LONGEST}}}$"}
    return [{"name": "Idempotency-Key", "in": "header", "schema": schema}]


def _responses(route: Route, of: Mapping[type[Struct], Any]) -> dict[str, Any]:
    ok: dict[str, Any] = {"description": "Success"}
    if route.answer is not None:
        ok["content"] = {JSON: {"schema": of[route.answer]}}
    found = {"200": ok}
    if route.method != "GET" and route.answer is not None and "message" in route.answer.__struct_fields__:
        found["202"] = ok | {
            "description": "Accepted: Redis has the fact, and no worker has answered yet",
            "headers": {"Location": {"description": "path of the record", "schema": {"type": "string"}}},
        }
    texts: dict[int, list[str]] = {}
    for code in _codes(route):
        texts.setdefault(status_of(code), []).append(code)
    described = {status: ", ".join(codes) for status, codes in texts.items()}
    if route.role is not None or route.limited:
        for status, text in REFUSED.items():
            described[status] = f"{described[status]}; {text}" if status in described else text
    for status, text in sorted(described.items()):
        response: dict[str, Any] = {
            "description": text,
            "content": {JSON: {"schema": of[ErrorBody]}},
        }
        if status in {429, 503} or "idempotency_key_in_use" in text:
            response["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
        found[str(status)] = response
    if route.path.startswith("/health") and route.answer is not None:
        found["503"] = ok | {"description": "Unhealthy"}
    return found


def _codes(route: Route) -> list[str]:
    codes = [*EVERYWHERE, *route.errors]
    if "{" in route.path:
        codes.append("not_found")
    if route.query is not None:
        codes.append("query_invalid")
    if route.body is not None:
        codes += WITH_BODY
    if route.method == "POST":
        codes += WITH_KEY
    return list(dict.fromkeys(codes))
