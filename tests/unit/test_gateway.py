"""The gateway's app without Redis: what it refuses before any fact is made, in which words, and how it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from falcon import testing
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from coord.config import Settings
from coord.errors import BY_CODE
from coord.gateway.app import make_app
from coord.gateway.backend import Backend
from coord.gateway.errors import HTTP_ONLY, problem_of, status_of
from coord.gateway.schemas import iso
from tests.waiting import wait_until

JSON = {"Content-Type": "application/json"}
BODIES: dict[str, dict[str, Any]] = {
    "/agents/register": {"agent_id": "a1", "agent_type": "worker"},
    "/agents/discover": {"query": {"capabilities": ["ocr"], "min_health_score": 0.5}},
    "/agents/a1/heartbeat": {"status": "busy"},
    "/tasks/submit": {"task_data": {"n": 1}},
}


@pytest.fixture
def app(settings: Settings) -> Any:
    """A gateway that never finds Redis."""
    return make_app(Backend(settings), settings)


class Caller:
    """Calls an app by a local name."""

    def __init__(self, conductor: testing.ASGIConductor) -> None:
        self._conductor = conductor

    async def get(self, path: str, host: str = "localhost", port: int = 9001, **more: Any) -> Any:
        """GET."""
        return await self._conductor.simulate_get(path, host=host, port=port, **more)

    async def post(self, path: str, host: str = "localhost", port: int = 9001, **more: Any) -> Any:
        """POST."""
        return await self._conductor.simulate_post(path, host=host, port=port, **more)

    async def put(self, path: str, **more: Any) -> Any:
        """PUT."""
        return await self._conductor.simulate_put(path, host="localhost", port=9001, **more)

    async def delete(self, path: str, **more: Any) -> Any:
        """DELETE."""
        return await self._conductor.simulate_delete(path, host="localhost", **more)


@asynccontextmanager
async def calling(app: Any) -> AsyncIterator[Caller]:
    """A caller of an app."""
    async with testing.ASGIConductor(app) as conductor:
        yield Caller(conductor)


@pytest.fixture
async def http(app: Any) -> AsyncIterator[Caller]:
    """Its caller."""
    async with calling(app) as caller:
        yield caller


def assert_error(answer: Any, status: int, code: str) -> Any:
    """An answer is this error, in the contract's body; its ``detail``."""
    body = answer.json
    assert (answer.status_code, body["status"], body["code"]) == (status, "error", code)
    assert sorted(body) == ["code", "detail", "message", "status", "timestamp"]
    assert datetime.fromisoformat(body["timestamp"]).utcoffset() == datetime.now(UTC).utcoffset()
    assert isinstance(body["message"], str)
    if status == 422:
        assert all(sorted(one) == ["loc", "msg", "type"] for one in body["detail"])
    else:
        assert body["detail"] == body["message"]
    assert (answer.headers.get("Retry-After") is not None) == (status == 503)
    return body["detail"]


def test_only_a_defect_of_ours_is_a_500() -> None:
    """Whatever the SDK raises is the caller's to mend or will pass; what is not there is a 404."""
    assert {status_of(code) for code in BY_CODE} <= {401, 403, 404, 409, 413, 422, 503, 504}
    assert {status_of(code) for code in BY_CODE if code.endswith("_not_found")} == {404}
    assert [code for code, status in HTTP_ONLY.items() if status == 500] == ["internal"]
    assert not set(HTTP_ONLY) & set(BY_CODE), "a code has one status"


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_what_is_not_built_is_not_there(http: Caller, prefix: str) -> None:
    """In the contract's body; a reserved word is no id."""
    unknown = [
        "/nope",
        "/agents/service",
        "/agents/capability",
        "/agents/a%2Fb",
        "/v2/health",
    ]
    for path in unknown:
        assert_error(await http.get(prefix + path), 404, "not_found")
        assert_error(await http.post(prefix + path, json={}), 404, "not_found")
    answer = await http.delete(f"{prefix}/agents/a1/heartbeat")
    assert_error(answer, 405, "method_not_allowed")
    assert "POST" in answer.headers["Allow"]


@pytest.mark.parametrize("prefix", ["", "/v1"])
async def test_without_redis_everything_says_so(http: Caller, prefix: str) -> None:
    """503 with a time to come back; the process itself is alive."""
    for path, body in BODIES.items():
        assert_error(await http.post(prefix + path, json=body), 503, "server_unavailable")
    rules = "/load-balancer/strategy"
    for path in (
        "/agents/a1",
        "/agents/service/ocr",
        "/agents/capability/ocr",
        "/tasks/t1",
        "/tasks/t1/status",
        "/tasks/t1/explain",
        "/pools",
        rules,
        f"{rules}/history",
    ):
        assert_error(await http.get(prefix + path), 503, "server_unavailable")
    assert_error(await http.put(prefix + rules, params={"strategy": "Random"}), 503, "server_unavailable")
    assert_error(await http.post(prefix + rules, json={"modifiers": {"ejection": None}}), 503, "server_unavailable")
    assert_error(await http.delete(prefix + rules, params={"task_type": "t"}), 503, "server_unavailable")
    assert (await http.get(f"{prefix}/health/live")).status_code == 200
    for path in ("/health", "/health/ready"):
        answer = await http.get(prefix + path)
        assert (answer.status_code, answer.json["status"]) == (503, "unhealthy")
        assert answer.json["checks"]["redis"]["status"] == "failed"
        assert answer.json["service"] == "agent-coordinator"


@pytest.mark.parametrize(
    ("path", "body", "loc", "kind"),
    [
        ("/agents/register", {}, ["agent_id"], "missing"),
        ("/agents/register", {"agent_id": "a", "agent_type": "x"}, ["agent_type"], "value_error"),
        ("/agents/register", {"agent_id": "a b", "agent_type": "worker"}, ["agent_id"], "value_error"),
        ("/agents/register", {"agent_id": "discover", "agent_type": "worker"}, [], "value_error"),
        ("/agents/register", {"agent_id": "a", "agent_type": "worker", "tags": ["x", 1]}, ["tags", 1], "type_error"),
        ("/agents/register", {"agent_id": "a", "agent_type": "worker", "capacity": -1}, ["capacity"], "value_error"),
        ("/agents/a1/heartbeat", {"status": "sleepy"}, ["status"], "value_error"),
        ("/agents/a1/heartbeat", {"load_metrics": {"cpu": "x"}}, ["load_metrics", "..."], "type_error"),
        ("/tasks/submit", {}, ["task_data"], "missing"),
        ("/tasks/submit", {"task_data": []}, ["task_data"], "type_error"),
        ("/tasks/submit", {"task_data": {"task_type": 7}}, ["task_data", "task_type"], "type_error"),
        ("/tasks/submit", {"task_data": {"task_id": "a/b"}}, ["task_data", "task_id"], "value_error"),
        ("/tasks/submit", {"task_data": {}, "priority": 1}, ["priority"], "type_error"),
        ("/tasks/submit", {"task_data": {}, "timeout": 0}, ["timeout"], "value_error"),
        ("/tasks/submit", {"task_data": {}, "run_at": "2030-01-01T00:00:00"}, ["run_at"], "value_error"),
        ("/tasks/submit", {"task_data": {}, "run_at": "9999-12-31T23:59:59-23:59"}, ["run_at"], "value_error"),
        ("/tasks/submit", {"task_data": {}, "deadline": "0001-01-01T00:00:00+23:59"}, ["deadline"], "value_error"),
        ("/tasks/submit", {"task_data": {}, "retry": {"max": 1}}, ["retry"], "value_error"),
        ("/tasks/submit", {"task_data": {}, "location": {"lat": 91}}, ["location", "lat"], "value_error"),
        ("/tasks/submit", {"task_data": {}, "affinity_key": 7}, ["affinity_key"], "type_error"),
        ("/tasks/submit", {"task_data": {}, "expected_ms": 0}, ["expected_ms"], "value_error"),
        ("/tasks/submit", {"task_data": {}, "requirements": {"tags": 1}}, ["requirements", "tags"], "type_error"),
        ("/tasks/submit", [1], [], "type_error"),
    ],
)
async def test_a_field_that_does_not_fit_is_named(
    http: Caller, path: str, body: Any, loc: list[Any], kind: str
) -> None:
    """422 with where it is and what was expected."""
    (problem,) = assert_error(
        await http.post(path, json=body), 422, "body_invalid" if loc or kind == "type_error" else "id_invalid"
    )
    assert (problem["loc"], problem["type"]) == (["body", *loc], kind)


@pytest.mark.parametrize("limit", ["0", "1001", "many"])
async def test_a_limit_that_does_not_fit_is_a_422(http: Caller, limit: str) -> None:
    """The answer names the parameter."""
    (problem,) = assert_error(await http.get("/pools", params={"limit": limit}), 422, "query_invalid")
    assert problem["loc"] == ["query", "limit"]
    assert problem["msg"].endswith(f", got '{limit}'")


async def test_an_unknown_word_is_answered_with_the_known_ones(http: Caller) -> None:
    """The types and statuses of agents, at any depth of the body."""
    for path, body, known in (
        ("/agents/register", {"agent_id": "a", "agent_type": "llm"}, "coordinator, worker, specialist, "),
        ("/agents/a1/heartbeat", {"status": "sleepy"}, "active, inactive, busy, "),
    ):
        (problem,) = assert_error(await http.post(path, json=body), 422, "body_invalid")
        assert f"; valid are {known}" in problem["msg"]


@pytest.mark.parametrize(
    ("params", "body", "loc", "text"),
    [
        ({}, {}, ["query", "strategy"], "name a strategy"),
        ({"strategy": "random", "task_type": ""}, {}, ["query", "task_type"], "length >= 1"),
        ({"strategy": "random", "task_type": "t" * 129}, {}, ["query", "task_type"], "length <= 128"),
        ({}, {"strategy": 7}, ["body", "strategy"], "Expected `str | null`, got `int`".replace("`", "'")),
        ({}, {"strategy": "random", "task_type": ""}, ["body", "task_type"], "length >= 1"),
        ({}, {"modifiers": {"ejektion": True}}, ["body", "modifiers", "ejektion"], "did you mean 'ejection'?"),
        ({}, {"modifiers": {"ejection": "on"}}, ["body", "modifiers", "..."], "Expected 'bool | null'"),
    ],
)
async def test_a_rule_that_does_not_fit_is_named(
    http: Caller, params: dict[str, str], body: Any, loc: list[str], text: str
) -> None:
    """422 with where it is, in the query or in the body."""
    answer = await http.put("/load-balancer/strategy", params=params, json=body)
    code = "query_invalid" if params else "body_invalid"
    (problem,) = assert_error(answer, 422, code)
    assert problem["loc"] == loc
    assert text in problem["msg"]


async def test_a_strategy_that_is_none_is_a_400(http: Caller) -> None:
    """As the contract has it, and then the nearest one and all there are; in the query and in the body."""
    for how in ("params", "json"):
        more: dict[str, Any] = {how: {"strategy": "Round_Robbin"}}
        answer = await http.put("/load-balancer/strategy", **more)
        detail = assert_error(answer, 400, "invalid_strategy")
        assert detail.startswith("Invalid strategy: Round_Robbin. Did you mean 'round_robin'? Valid strategies: ")
        assert "predictive" in detail
    for params in ({"strategy": ""}, {"strategy": "x" * 1_000}):
        detail = assert_error(await http.put("/load-balancer/strategy", params=params), 400, "invalid_strategy")
        assert len(detail) < 400


async def test_a_priority_that_is_none_is_a_400(http: Caller) -> None:
    """As the table of the contract has it."""
    answer = await http.post("/tasks/submit", json={"task_data": {}, "priority": "soon"})
    assert assert_error(answer, 400, "invalid_priority") == "Invalid priority: soon"


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"nonsense",
        b'{"task_data": {"n": NaN}}',
        b'{"task_data": {"n": "\xff"}}',
        b'{"task_data": {"n": "\\ud800x"}}',
        b'\xef\xbb\xbf{"task_data": {}}',
        b'{"task_data": {}} {}',
        b'{"task_data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"task_data": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    ],
    ids=lambda body: repr(body[:30]),
)
async def test_a_body_that_is_no_json_is_a_422(http: Caller, body: bytes) -> None:
    """Whatever it is instead."""
    assert_error(await http.post("/tasks/submit", body=body, headers=JSON), 422, "body_invalid")


@pytest.mark.parametrize("number", ["1e999", "7" * 5_000], ids=["large", "digits"])
async def test_a_number_that_no_agent_can_decode_is_a_422(http: Caller, number: str) -> None:
    """It is JSON, so the answer says where it is."""
    body = f'{{"task_data": {{"rows": [{{"rate": {number}}}]}}}}'.encode()
    answer = await http.post("/tasks/submit", body=body, headers=JSON)
    (problem,) = assert_error(answer, 422, "payload_invalid")
    assert problem["msg"].endswith("is out of range")
    assert answer.json["message"].startswith("task_data.rows[0].rate: the number ")


def test_a_moment_of_an_older_record_is_shown_at_the_limit() -> None:
    """One beyond the years that a datetime has breaks no answer."""
    assert iso(400_000_000_000_000) == "9999-12-31T23:59:59.999+00:00"
    assert iso(-90_000_000_000_000) == "0001-01-01T00:00:00.000+00:00"
    assert iso(1_700_000_000_045) == "2023-11-14T22:13:20.045+00:00"


async def test_a_body_must_say_that_it_is_json(http: Caller) -> None:
    """A web page may post any other type to this machine; an empty one needs none."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "", "jsonx", "application/json5"):
        answer = await http.post("/tasks/submit", body=b'{"task_data": {}}', headers={"Content-Type": kind})
        assert_error(answer, 422, "content_type_invalid")
    typed = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert_error(await http.post("/tasks/submit", body=b"{}", headers=typed), 422, "body_invalid")
    assert_error(await http.post("/agents/a1/heartbeat"), 503, "server_unavailable")


async def test_a_body_over_the_limit_is_a_413(http: Caller, settings: Settings) -> None:
    """One byte makes the difference; an honest Content-Length is not needed for it."""
    frame = b'{"task_data":{"x":""}}'
    fits = frame.replace(b'""', b'"' + b"x" * (settings.max_entry_bytes - len(frame)) + b'"')
    assert len(fits) == settings.max_entry_bytes
    assert_error(await http.post("/tasks/submit", body=fits, headers=JSON), 503, "server_unavailable")
    assert_error(await http.post("/tasks/submit", body=fits + b" ", headers=JSON), 413, "body_too_large")


async def test_a_key_has_1_to_255_characters(http: Caller) -> None:
    """On every POST, with either prefix; with the draft standard's quotes and without."""
    for path, body in BODIES.items():
        for good in ("k", '"k"', "x" * 255):
            answer = await http.post(f"/v1{path}", json=body, headers={"Idempotency-Key": good})
            assert_error(answer, 503, "server_unavailable")
        for bad in ("", '""', "x" * 256):
            answer = await http.post(path, json=body, headers={"Idempotency-Key": bad})
            assert_error(answer, 422, "idempotency_key_invalid")


async def test_pages_from_elsewhere_are_not_let_in(http: Caller) -> None:
    """Neither by a name that leads to this machine, nor by a post to another origin; health may be looked at."""
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example"):
        assert_error(await http.get("/tasks/t1", host=host), 403, "cross_origin")
        assert (await http.get("/health/live", host=host)).status_code == 200
    for host in ("localhost", "127.0.0.1", "[::1]", "10.1.2.3"):
        assert_error(await http.get("/tasks/t1", host=host), 503, "server_unavailable")
    foreign = {"Origin": "http://evil.example"}
    assert_error(await http.post("/agents/a1/heartbeat", headers=foreign), 403, "cross_origin")
    own = {"Origin": "http://localhost:9001"}
    assert_error(await http.post("/agents/a1/heartbeat", headers=own), 503, "server_unavailable")


async def test_where_others_may_come_any_name_is_good(settings: Settings) -> None:
    """In a container's network the gateway is called what its service is called."""
    open_ = msgspec.structs.replace(settings, gateway_security=True)
    async with calling(make_app(Backend(open_), open_)) as http:
        assert_error(await http.get("/tasks/t1", host="gateway"), 503, "server_unavailable")


class Silent:
    """A backend with a Redis that never answers."""

    def __init__(self) -> None:
        self.asked = 0

    async def write_refusal(self) -> str:
        """Wait for ever."""
        self.asked += 1
        await asyncio.Event().wait()
        return ""

    async def workers(self) -> dict[str, int]:
        """Wait for ever."""
        self.asked += 1
        await asyncio.Event().wait()
        return {}

    async def task(self, _task_id: str) -> None:
        """Wait for ever."""
        self.asked += 1
        await asyncio.Event().wait()


async def test_health_is_answered_while_redis_is_silent(settings: Settings) -> None:
    """Within the look's own limit, and many who ask make one look."""
    backend: Any = Silent()
    async with calling(make_app(backend, settings)) as http:
        answers = await asyncio.gather(*(http.get("/health") for _ in range(20)))
    assert {one.status_code for one in answers} == {503}
    assert "no answer" in answers[0].json["checks"]["redis"]["message"]
    assert backend.asked < len(answers)


async def test_requests_at_once_are_bounded(settings: Settings) -> None:
    """Requests above the limit get a 503 with Retry-After; health checks do not count."""
    backend: Any = Silent()
    few = msgspec.structs.replace(settings, gateway_requests=2)
    async with calling(make_app(backend, few)) as http:
        held = [asyncio.create_task(http.get("/tasks/t1")) for _ in range(2)]
        await wait_until(lambda: backend.asked == 2, "two requests are at work")
        assert_error(await http.get("/tasks/t1"), 503, "overloaded")
        assert_error(await http.get("/tasks/t1"), 503, "overloaded")  # refused ones do not count
        assert (await http.get("/health/live")).status_code == 200
        for one in held:
            one.cancel()
        await asyncio.gather(*held, return_exceptions=True)


async def test_a_defect_of_ours_is_told_without_its_trace(settings: Settings) -> None:
    """The log has it."""
    broken: Any = object()
    async with calling(make_app(broken, settings)) as http:
        answer = await http.get("/tasks/t1")
    assert "Attribute" not in assert_error(answer, 500, "internal")


def test_where_a_problem_is() -> None:
    """The way that msgspec names, as a list."""
    problem = problem_of("Expected `str`, got `int` - at `$.a[3].b[...]`", ("body",))
    assert (problem.loc, problem.msg) == (["body", "a", 3, "b", "..."], "Expected 'str', got 'int'")
    assert problem_of("Object missing required field `x` - at `$.a`", ("body", "in")).loc == ["body", "in", "a", "x"]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
NAMES = (
    "agent_id agent_type capabilities labels location metadata status load_metrics running task_data priority "
    "requirements timeout deadline delay run_at retry payment chain_id"
)
OBJECTS = st.dictionaries(st.sampled_from(NAMES.split()), JSON_VALUES, max_size=8).map(msgspec.json.encode)


@effort(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.sampled_from(sorted(BODIES)),
    body=st.binary(max_size=200) | OBJECTS,
    key=st.none() | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
    kind=st.sampled_from(["application/json", "text/plain", ""]),
)
async def test_no_body_makes_a_500(app: Any, path: str, body: bytes, key: str | None, kind: str) -> None:
    """Random bytes, random JSON under the names that count: always the contract's body, never a defect."""
    headers = {"Content-Type": kind} | ({"Idempotency-Key": key} if key is not None else {})
    async with calling(app) as http:
        answer = await http.post(path, body=body, headers=headers)
    if path == "/agents/discover" and answer.status_code == 200:
        assert answer.json["agents"] == [], "a type that does not exist finds nothing, without Redis too"
        return
    assert answer.status_code in {400, 413, 422, 503}
    assert_error(answer, answer.status_code, answer.json["code"])
