"""The table of routes: how a path and a query find their handler, and what a handler may answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import pytest
from falcon import testing
from msgspec import Meta, Struct

from coord.config import Settings
from coord.errors import BY_CODE
from coord.gateway.app import GatewayApp
from coord.gateway.backend import Backend
from coord.gateway.callers import Caller
from coord.gateway.errors import HTTP_ONLY, RequestError
from coord.gateway.gateway import Gateway
from coord.gateway.query import decode_query
from coord.gateway.router import Router
from coord.gateway.routes import Answer, Call, Route, Stream
from coord.gateway.table import ROUTES
from coord.models.api_keys import CallerRole
from tests.waiting import wait_until


class Query(Struct, frozen=True):
    """A query of every shape."""

    limit: Annotated[int, Meta(ge=1, le=10)] = 5
    name: str | None = None
    is_open: bool = False
    tags: tuple[Annotated[str, Meta(max_length=3)], ...] = ()
    labels: dict[str, str] = {}
    share: Annotated[float, Meta(ge=0, le=1)] | None = None


async def nothing(_call: Call[Any, Any]) -> Answer:
    """Answer nothing."""
    return Answer(None, 204)


def row(path: str, method: Any = "GET", handle: Any = nothing, **more: Any) -> Route:
    """Return a row."""
    return Route(method, path, handle, answer=None, role=None, **more)


def test_every_row_is_complete() -> None:
    """Its handler says what it does, its errors exist, its example fits, and its own agent can be found in it."""
    for route in ROUTES:
        assert (route.handle.__doc__ or "").strip(), route
        assert set(route.errors) <= {*HTTP_ONLY, *BY_CODE}, route
        assert route.example is None or route.body is not None or route.query is not None, route
        if route.own is not None:
            where, _, field = route.own.rpartition(".")
            assert (
                field in (route.body.__struct_fields__ if where and route.body else ()) or f"{{{field}:" in route.path
            )
        if route.example is not None:
            schema = route.body or route.query
            assert schema is not None
            assert set(route.example) <= set(schema.__struct_fields__), route


@pytest.mark.parametrize(
    ("path", "found", "params"),
    [
        ("/a", "/a", {}),
        ("/a/x", "/a/{one:id}", {"one": "x"}),
        ("/a/fixed", "/a/fixed", {}),
        ("/a/x/more", "/a/{one:id}/more", {"one": "x"}),
        ("/a/rest/x/y z", "/a/rest/{two:path}", {"two": "x/y z"}),
        ("/a/x.y/z", "/a/{one:id}/{three}", {"one": "x.y", "three": "z"}),
        ("/a/status", None, {}),
        ("/a/x y", None, {}),
        ("/a/x/", None, {}),
        ("/a.", None, {}),
        ("/A", None, {}),
    ],
)
def test_a_path_finds_its_row(path: str, found: str | None, params: dict[str, str]) -> None:
    """A fixed path before a variable one; a reserved word and an invalid id are no id."""
    paths = ("/a", "/a/{one:id}", "/a/fixed", "/a/{one:id}/more", "/a/rest/{two:path}", "/a/{one:id}/{three}")
    router = Router(map(row, paths))
    if found is None:
        with pytest.raises(RequestError) as failure:
            router.find("GET", path)
        assert failure.value.name == "not_found"
        return
    route, variables = router.find("HEAD", path)
    assert (route.path, variables) == (found, params)
    with pytest.raises(RequestError) as failure:
        router.find("PUT", path)
    assert (failure.value.name, failure.value.headers) == ("method_not_allowed", {"Allow": "GET, HEAD, OPTIONS"})


def test_a_row_is_in_the_table_once() -> None:
    """A second one of the same method and path is a mistake."""
    with pytest.raises(ValueError, match=r"GET /a/\{one:id\} is in the table twice"):
        Router([row("/a/{one:id}"), row("/a/{one:id}")])


@pytest.mark.parametrize(
    ("query", "decoded"),
    [
        (b"", Query()),
        (b"limit=7&name=&is_open=true&other=1", Query(limit=7, name="", is_open=True)),
        (b"tags=a&tags=b,c&tags=", Query(tags=("a", "b", "c"))),
        (b"labels=zone=eu&labels=a=b=c", Query(labels={"zone": "eu", "a": "b=c"})),
        (b"name=%C3%A9+x&name=null&share=0.5", Query(name="null", share=0.5)),
    ],
)
def test_a_query_is_decoded(query: bytes, decoded: Query) -> None:
    """Into the types of its fields."""
    assert decode_query(query, Query) == decoded


@pytest.mark.parametrize(
    ("query", "loc", "text"),
    [
        (b"limit=0", ["limit"], ">= 1, got '0'"),
        (b"limit=", ["limit"], "Expected 'int', got ''"),
        (b"limit=many", ["limit"], "got 'many'"),
        (b"limit=1&limit=99", ["limit"], "got '99'"),
        (b"is_open=perhaps", ["is_open"], "got 'perhaps'"),
        (b"tags=a,long", ["tags", 1], "length <= 3, got 'a,long'"),
        (b"labels=zone", ["labels"], "expected labels=NAME=VALUE, got 'zone'"),
        (b"share=nan", ["share"], ""),
        (b"name=%ff", [], "not valid UTF-8"),
        (b"&".join([b"x=1"] * 300), [], "more than 200 parameters"),
    ],
)
def test_a_parameter_that_does_not_fit_is_named(query: bytes, loc: list[Any], text: str) -> None:
    """With the value as it was typed."""
    with pytest.raises(RequestError) as failure:
        decode_query(query, Query)
    (problem,) = failure.value.problems or []
    assert (failure.value.name, problem.loc) == ("query_invalid", ["query", *loc])
    assert text in problem.msg


class Pieces:
    """A stream that says when it has ended."""

    def __init__(self, count: int | None) -> None:
        self.count = count
        self.sent = 0
        self.is_closed = False

    async def __call__(self, _call: Call[Any, Any]) -> Stream:
        """Answer with a stream."""
        return Stream(self._chunks(), "text/plain", headers={"X-Kind": "a\r\nb"})

    async def _chunks(self) -> AsyncIterator[bytes]:
        try:
            while self.count is None or self.sent < self.count:
                self.sent += 1
                yield b"%d" % self.sent
                if self.count is None:
                    await asyncio.sleep(0.001)
        finally:
            self.is_closed = True


@pytest.fixture
def app_of(settings: Settings) -> Callable[..., GatewayApp]:
    """Make the app of one route."""
    return lambda *routes: GatewayApp(Gateway(Backend(settings), settings), routes)


async def test_a_stream_is_sent_to_its_end(app_of: Callable[..., GatewayApp]) -> None:
    """In pieces, as text; a header has no line end in it."""
    pieces = Pieces(3)
    async with testing.ASGIConductor(app_of(row("/s", handle=pieces))) as http:
        async with http.simulate_get_stream("/s", host="localhost") as answer:
            assert await answer.stream.read() == b"123"
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain")
        assert answer.headers["x-kind"] == "a  b"
    assert pieces.is_closed


async def test_a_stream_ends_when_its_caller_is_gone(app_of: Callable[..., GatewayApp]) -> None:
    """Its iterator is closed, and nothing of it is left."""
    pieces = Pieces(None)
    app = app_of(row("/s", handle=pieces))
    async with testing.ASGIConductor(app) as http:
        async with http.simulate_get_stream("/s", host="localhost") as answer:
            assert (await answer.stream.read()).startswith(b"1")
        await wait_until(lambda: pieces.is_closed, "the stream has ended")
    assert not app.gateway.streams
    assert app.gateway.active == 0


async def test_a_stream_ends_when_the_gateway_shuts_down(app_of: Callable[..., GatewayApp]) -> None:
    """Properly: its caller gets the end of the response."""
    pieces = Pieces(None)
    app = app_of(row("/s", handle=pieces))
    async with testing.ASGIConductor(app) as http:
        async with http.simulate_get_stream("/s", host="localhost") as answer:
            await answer.stream.read()
            app.gateway.close()
            await wait_until(lambda: pieces.is_closed, "the stream has ended")
        async with http.simulate_get_stream("/s", host="localhost") as answer:
            assert await answer.stream.read() == b"", "a new one ends at once"


async def test_a_route_may_be_left_out_of_the_count(app_of: Callable[..., GatewayApp]) -> None:
    """A request that stays open takes no place of the others."""
    counts: list[int] = []

    async def count(call: Call[Any, Any]) -> Answer:
        counts.append(call.gateway.active)
        return Answer(b"x", content_type="text/plain")

    async with testing.ASGIConductor(app_of(row("/a", handle=count), row("/b", handle=count, counted=False))) as http:
        for path in ("/a", "/b"):
            answer = await http.simulate_get(path, host="localhost")
            assert (answer.text, answer.headers["content-type"]) == ("x", "text/plain")
    assert counts == [1, 0]


async def test_options_names_the_methods(app_of: Callable[..., GatewayApp]) -> None:
    """Of a path that exists."""
    async with testing.ASGIConductor(app_of(row("/a", "POST"), row("/a"))) as http:
        answer = await http.simulate_options("/a", host="localhost")
        assert (answer.status_code, answer.headers["allow"]) == (204, "GET, HEAD, OPTIONS, POST")
        assert (await http.simulate_options("/b", host="localhost")).status_code == 404


class Body(Struct, frozen=True):
    """A body that names an agent."""

    agent_id: str


class Watchman:
    """A check of access that writes down what it sees."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    async def authorize(self, call: Call[Any, Any], route: Route) -> None:
        """Refuse callers without a token."""
        self.seen.append(f"{route.role} {call.raw!r}")
        if not call.bearer_token:
            raise RequestError("cross_origin", "no token", headers={"WWW-Authenticate": "Bearer"})
        call.credential = Caller(call.bearer_token, CallerRole.AGENT)

    def check_body(self, call: Call[Any, Any], route: Route) -> None:
        """Write down the agent in the body."""
        self.seen.append(f"{route.own} {call.body.agent_id}")

    def guarded(self, call: Call[Any, Any], chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Return the stream as it is."""
        return chunks


async def test_access_is_checked_before_the_body_is_read(settings: Settings) -> None:
    """Then the agent in the body; the handler gets the credential; a refusal has its headers."""
    served: list[str] = []

    async def serve(call: Call[Body, None]) -> Answer:
        assert call.credential is not None
        served.append(call.credential.subject)
        return Answer(None, 204)

    route = Route("POST", "/a", serve, body=Body, answer=None, role="agent", own="body.agent_id")
    watchman = Watchman()
    app = GatewayApp(Gateway(Backend(settings), settings), [route], watchman)
    async with testing.ASGIConductor(app) as http:
        answer = await http.simulate_post("/a", host="localhost", body=b"no JSON")
        assert (answer.status_code, answer.headers["www-authenticate"]) == (403, "Bearer")
        token = {"Authorization": "Bearer t1"}
        answer = await http.simulate_post("/a", host="localhost", json={"agent_id": "a1"}, headers=token)
        assert answer.status_code == 204
    assert watchman.seen == ["agent b''", "agent b''", "body.agent_id a1"]
    assert served == ["t1"]


async def handshake(app: GatewayApp, path: str, **more: Any) -> list[dict[str, Any]]:
    """Begin a WebSocket; return what the app sends."""
    sent: list[dict[str, Any]] = []

    async def send(event: Any) -> None:
        sent.append(dict(event))

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "path": path, "query_string": b"", "headers": [(b"host", b"localhost")], **more}
    await app(scope, receive, send)
    return sent


async def test_a_handler_may_take_over_a_websocket(app_of: Callable[..., GatewayApp]) -> None:
    """Then nothing else is sent; a path that is no WebSocket is refused as any other request is."""

    async def take(call: Call[Any, Any]) -> None:
        assert (await call.connection.receive())["type"] == "websocket.connect"
        await call.connection.send({"type": "websocket.accept"})

    app = app_of(row("/ws", "WEBSOCKET", take), row("/a"))
    assert await handshake(app, "/v1/ws") == [{"type": "websocket.accept"}]
    start, body = await handshake(app, "/nope", extensions={"websocket.http.response": {}})
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 404)
    assert b'"not_found"' in body["body"]
    start, _ = await handshake(app, "/a", extensions={"websocket.http.response": {}})
    assert start["status"] == 405
    assert [event["type"] for event in await handshake(app, "/nope")] == ["websocket.close"]
