"""Finds the route of a request: by its method and path, without the prefix."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from coord.api_key import redacted
from coord.errors import IdInvalid
from coord.gateway.errors import RequestError
from coord.gateway.routes import Route
from coord.models.ids import check_id

_VARIABLE = re.compile(r"\{(\w+)(?::(\w+))?\}")
#: How a variable part of a path looks, by its kind.
_KINDS = {None: "[^/]+", "id": "[^/]+", "path": ".+"}

Methods = dict[str, Route]


class Pattern:
    """A path with variable parts."""

    def __init__(self, path: str) -> None:
        self.methods: Methods = {}
        self._ids = [name for name, kind in _VARIABLE.findall(path) if kind == "id"]
        parts = (f"(?P<{found[1]}>{_KINDS[found[2]]})" for found in _VARIABLE.finditer(path))
        fixed = (re.escape(text) for text in re.split(r"\{[^{}]*\}", path))
        pieces = [piece for pair in zip(fixed, [*parts, ""], strict=True) for piece in pair]
        self._match = re.compile("".join(pieces), re.DOTALL).fullmatch

    def params(self, path: str) -> dict[str, str] | None:
        """Return the variable parts of a path; None if it does not fit. An invalid id fits nothing."""
        found = self._match(path)
        if found is None:
            return None
        params = found.groupdict()
        try:
            for name in self._ids:
                check_id(params[name], name)
        except IdInvalid:
            return None
        return params


class Router:
    """The table of routes, arranged by path."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._fixed: dict[str, Methods] = {}
        self._patterns: dict[str, list[Pattern]] = {}  # first segment -> the patterns that begin with it
        built: dict[str, Pattern] = {}
        for route in routes:
            if "{" not in route.path:
                methods = self._fixed.setdefault(route.path, {})
            else:
                if route.path not in built:
                    built[route.path] = Pattern(route.path)
                    self._patterns.setdefault(_first(route.path), []).append(built[route.path])
                methods = built[route.path].methods
            if route.method in methods:
                raise ValueError(f"{route.method} {route.path} is in the table twice")
            methods[route.method] = route

    def find(self, method: str, path: str) -> tuple[Route, Mapping[str, str]]:
        """Return the route, and the variable parts of the path. HEAD finds the route of GET.

        Raises:
            RequestError: there is no such path, or it does not support the method.
        """
        methods, params = self.methods(path)
        route = methods.get("GET" if method == "HEAD" else method)
        if route is None:
            message = f"{redacted(path)[:200]} does not support {method}"
            raise RequestError("method_not_allowed", message, headers={"Allow": allowed(methods)})
        return route, params

    def methods(self, path: str) -> tuple[Methods, Mapping[str, str]]:
        """Return the routes of a path by method, and the variable parts of the path.

        Raises:
            RequestError: there is no such path.
        """
        methods = self._fixed.get(path)
        if methods is not None:
            return methods, {}
        for pattern in self._patterns.get(_first(path), ()):
            params = pattern.params(path)
            if params is not None:
                return pattern.methods, params
        raise RequestError("not_found", f"unknown path: {redacted(path)[:200]}")


def allowed(methods: Iterable[str]) -> str:
    """Return the header ``Allow`` of a path with these methods."""
    supported = set(methods) - {"WEBSOCKET"}
    return ", ".join(sorted(supported | {"OPTIONS"} | ({"HEAD"} if "GET" in supported else set())))


def _first(path: str) -> str:
    return path[1:].partition("/")[0]
