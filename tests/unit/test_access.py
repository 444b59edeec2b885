"""Access to every route of the table, with the credentials in memory: who is let in, and who is not."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from coord.agent_token import digest_of_token
from coord.api_key import id_of_key, new_key, new_key_id
from coord.config import Settings
from coord.errors import ConfigError
from coord.gateway import access
from coord.gateway.access import CallerAccess
from coord.gateway.app import GatewayApp, make_app
from coord.gateway.backend import Backend
from coord.gateway.callers import Callers, network_of
from coord.gateway.credential_store import CredentialStore
from coord.gateway.gateway import Gateway
from coord.gateway.routes import Answer, Call, Connection, Route
from coord.gateway.table import ROUTES
from coord.models.api_keys import ApiKey, CallerRole
from tests import roles_table
from tests.asgi import AsgiAnswer, ask

TOKEN = "the-token-of-agent-a1"
NEEDING = [route for route in ROUTES if route.role is not None]
OPEN = [route for route in ROUTES if route.role is None]
OWNED = [route for route in NEEDING if route.own is not None]


class MemoryStore(CredentialStore):
    """Keeps everything in memory."""

    def __init__(self) -> None:
        self.keys: dict[str, tuple[ApiKey, str]] = {}
        self.tickets: dict[str, bytes] = {}
        self.counts: Counter[tuple[str, int]] = Counter()
        self.calls = 0
        self.uses: list[str] = []
        self.now = time.time() * 1000

    def add(self, role: str, agent_id: str | None = None, **more: Any) -> str:
        """Make a key; the text."""
        key = new_key(new_key_id())
        record = ApiKey(id_of_key(key) or "", CallerRole(role), agent_id, **more)
        self.keys[record.key_id] = (record, digest_of_token(key))
        return key

    async def now_ms(self) -> float:
        """Return the time, which the test sets."""
        return self.now

    async def api_key(self, key_id: str) -> tuple[ApiKey, str] | None:
        """Return a key."""
        self.calls += 1
        return self.keys.get(key_id)

    async def agent_of_token(self, digest: str) -> str | None:
        """Return the agent of the only token."""
        return "a1" if digest == digest_of_token(TOKEN) else None

    async def used(self, key_id: str, at_ms: int) -> None:
        """Record a use."""
        self.uses.append(key_id)

    async def count(self, caller: str, window: int, by: int) -> tuple[int, int]:
        """Count."""
        self.calls += 1
        self.counts[caller, window] += by
        return self.counts[caller, window], self.counts[caller, window - 1]

    async def put_ticket(self, ticket: str, holder: Any, ttl_s: float) -> None:
        """Keep a ticket."""
        self.tickets[ticket] = msgspec.json.encode(holder)

    async def take_ticket(self, ticket: str, kind: Any) -> Any:
        """Return the holder of a ticket, once."""
        found = self.tickets.pop(ticket, None)
        return None if found is None else msgspec.json.decode(found, type=kind)


@pytest.fixture
def settings(namespace: str) -> Settings:
    """With security on."""
    return Settings(namespace=namespace, gateway_security=True, gateway_jwt_secret="x" * 40)


@pytest.fixture
def store() -> MemoryStore:
    """No key yet."""
    return MemoryStore()


def app_of(settings: Settings, store: MemoryStore, routes: Any = None) -> GatewayApp:
    """A gateway without Redis: who is let in gets a 503."""
    if routes is None:
        app = make_app(Backend(settings), settings)
    else:
        gateway = Gateway(Backend(settings), settings)
        app = GatewayApp(gateway, routes, CallerAccess(gateway))
    app.gateway.callers = Callers(settings, store)
    return app


@pytest.fixture
def app(settings: Settings, store: MemoryStore) -> GatewayApp:
    """A gateway whose credentials are in memory."""
    return app_of(settings, store)


def path_of(route: Route, agent_id: str = "a1") -> str:
    """A path of the route; the variables that name the own agent have ``agent_id``."""
    return re.sub(r"\{(\w+)(?::\w+)?\}", lambda found: agent_id if found[1] == route.own else "x1", route.path)


def body_of(route: Route, agent_id: str = "a1") -> Any:
    """The example of a route's body, about an agent."""
    if route.body is None:
        return None
    body = dict(route.example or {})
    if route.own is not None and route.own.startswith("body."):
        body[route.own.removeprefix("body.")] = agent_id
    return body


async def call(app: GatewayApp, route: Route, key: str | None, agent_id: str = "a1", **more: Any) -> AsgiAnswer:
    """Send a request of a row with a key."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return await ask(app, route.method, path_of(route, agent_id), body_of(route, agent_id), headers, **more)


def passed(answer: AsgiAnswer) -> bool:
    """Whether a request came through the checks of access."""
    return answer.status not in {0, 401, 403, 429}


@pytest.mark.parametrize("route", NEEDING, ids=repr)
async def test_a_route_needs_a_credential(app: GatewayApp, store: MemoryStore, route: Route) -> None:
    """None, a wrong one of each kind, and another scheme get a 401 that says what to send."""
    missing = await call(app, route, None)
    assert (missing.status, missing.code) == (401, "credential_missing")
    assert missing.headers["www-authenticate"] == "Bearer"
    other_secret = new_key(id_of_key(store.add("admin")) or "")
    for wrong in ("x", new_key(new_key_id()), other_secret, "eyJhbGciOiJub25lIn0.e30.", "x" * 5_000):
        answer = await call(app, route, wrong)
        assert (answer.status, answer.code) == (401, "credential_invalid")
        assert wrong not in answer.data.decode() or wrong == "x"
    basic = await ask(app, route.method, path_of(route), body_of(route), {"Authorization": "Basic YTpi"})
    assert basic.code == "credential_missing"


@pytest.mark.parametrize("route", NEEDING, ids=repr)
async def test_a_route_needs_its_role(app: GatewayApp, store: MemoryStore, route: Route) -> None:
    """The roles before that of the row get a 403; it and the later ones pass, in either header."""
    least = CallerRole(str(route.role))
    for role in CallerRole:
        key = store.add(role, "a1" if role is CallerRole.AGENT else None)
        answer = await call(app, route, key)
        if role.rank < least.rank:
            assert (answer.status, answer.code) == (403, "role_insufficient")
        elif role.rank < CallerRole.AGENT.rank and route.own is not None:
            assert (answer.status, answer.code) == (403, "agent_forbidden")
        elif route.counted:
            assert passed(answer), answer.body
    if route.counted:
        admin = store.add("admin")
        assert passed(await ask(app, route.method, path_of(route), body_of(route), {"X-API-Key": admin}))
        assert passed(await call(app, replace_prefix(route), admin))


def replace_prefix(route: Route) -> Route:
    """The row under the other prefix."""
    found = Route(route.method, f"/v1{route.path}", route.handle, answer=None, role=route.role, own=route.own)
    found.body, found.example = route.body, route.example
    return found


@pytest.mark.parametrize("route", OWNED, ids=repr)
async def test_an_agent_acts_for_itself_only(app: GatewayApp, store: MemoryStore, route: Route) -> None:
    """Its key, its JWT and its token, on another agent's path or with another agent in the body."""
    key = store.add("agent", "a1")
    for credential in (key, TOKEN):
        if route.counted:
            assert passed(await call(app, route, credential))
        answer = await call(app, route, credential, agent_id="a2")
        assert (answer.status, answer.code) == (403, "agent_forbidden")
        assert "a1" in answer.body["message"]
    for role in ("operator", "admin"):
        if route.counted:
            assert passed(await call(app, route, store.add(role), agent_id="a2"))


def test_each_row_for_agents_names_its_agent() -> None:
    """Or another agent's credential could be used; reports name a lease, which only the agent that holds it knows."""
    rows = [route for route in NEEDING if route.role == "agent" and route.own is None]
    without = [route for route in rows if "lease" not in getattr(route.body, "__struct_fields__", ())]
    assert without == []


@pytest.mark.parametrize("route", OPEN, ids=repr)
async def test_an_open_route_is_known(app: GatewayApp, route: Route) -> None:
    """Health, and what gets a credential; nothing else answers without one."""
    assert route.path.startswith(("/health", "/auth/", "/docs", "/schema", "/ui")) or route.path == "/"
    if route.path.startswith("/health"):
        assert not route.limited
        assert (await call(app, route, None)).status in {200, 503}


async def test_a_message_of_a_client_names_no_sender(settings: Settings, store: MemoryStore) -> None:
    """Nor does one of an agent name another one, or nobody: that would be the coordinator."""

    class Body(msgspec.Struct):
        sender_id: str | None = None

    async def handle(_call: Call[Body, None]) -> Answer:
        """Do nothing."""
        return Answer(None)

    row = Route("POST", "/messages/send", handle, body=Body, answer=None, role="client", own="body.sender_id")
    app = app_of(settings, store, [row])
    client, agent, operator = store.add("client"), store.add("agent", "a1"), store.add("operator")

    async def status(key: str, sender: str | None) -> int:
        body = {} if sender is None else {"sender_id": sender}
        return (await ask(app, "POST", "/messages/send", body, {"X-API-Key": key})).status

    assert [await status(client, one) for one in (None, "a1")] == [200, 403]
    assert [await status(agent, one) for one in (None, "a1", "a2")] == [403, 200, 403]
    assert [await status(operator, one) for one in (None, "a1", "a2")] == [200, 200, 200]


async def test_a_key_is_looked_up_once_a_second_and_its_use_recorded_once_a_minute(
    app: GatewayApp, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a request with a key costs the gateway no round trip."""
    key = store.add("readonly")
    await ask(app, "GET", "/pools", headers={"X-API-Key": key})
    before = store.calls
    monkeypatch.setattr(app.gateway.callers.limits, "take", _free)
    for _ in range(20):
        await ask(app, "GET", "/pools", headers={"X-API-Key": key})
    assert store.calls - before <= 1
    assert store.uses == [id_of_key(key)]


async def _free(_caller: str, _limit: int) -> float:
    return 0.0


async def test_an_expired_key_is_refused(app: GatewayApp, store: MemoryStore) -> None:
    """From the moment on that it names."""
    key = store.add("readonly", expires_at=int(store.now + 1_000))
    assert passed(await ask(app, "GET", "/pools", headers={"X-API-Key": key}))
    late = store.add("readonly", expires_at=int(store.now))
    answer = await ask(app, "GET", "/pools", headers={"X-API-Key": late})
    assert (answer.code, "expired" in answer.body["message"]) == ("credential_invalid", True)


async def test_brute_force_is_limited(settings: Settings, store: MemoryStore) -> None:
    """After 20 wrong credentials a right one from there is not even looked at; one that is known there still is."""
    app = app_of(settings, store)
    known, right = store.add("readonly"), store.add("readonly")
    assert passed(await ask(app, "GET", "/pools", headers={"X-API-Key": known}))
    codes = Counter([(await ask(app, "GET", "/pools", headers={"X-API-Key": f"guess-{n}"})).code for n in range(40)])
    assert codes == {"credential_invalid": 20, "rate_limited": 20}
    answer = await ask(app, "GET", "/pools", headers={"X-API-Key": right})
    assert (answer.status, answer.code) == (429, "rate_limited")
    assert 0 < int(answer.headers["retry-after"]) <= 121
    assert (await ask(app, "POST", "/auth/login", {"api_key": right})).status == 429
    app.gateway.callers._found.clear()
    assert passed(await ask(app, "GET", "/pools", headers={"X-API-Key": known}))
    assert passed(await ask(app, "GET", "/pools", headers={"X-API-Key": right}, address="192.0.2.2"))
    store.now += 120_000
    assert passed(await ask(app, "GET", "/pools", headers={"X-API-Key": right}))


async def test_the_rate_of_a_credential_is_limited(settings: Settings, store: MemoryStore) -> None:
    """Exactly; heartbeats and health never, other credentials not either; one without a credential by address."""
    app = app_of(replace(settings, gateway_rate=50, gateway_open_rate=5), store)
    first, second = store.add("operator"), store.add("operator")

    async def ask_often(key: str | None, count: int, path: str = "/pools", method: str = "GET") -> Counter[bool]:
        headers = {"X-API-Key": key} if key else {}
        return Counter([(await ask(app, method, path, headers=headers)).status == 429 for _ in range(count)])

    assert await ask_often(first, 60) == {False: 50, True: 10}
    assert await ask_often(second, 10) == {False: 10}
    assert await ask_often(first, 20, "/agents/a1/heartbeat", "POST") == {False: 20}
    assert await ask_often(first, 20, "/health/live") == {False: 20}
    assert await ask_often(None, 10) == {False: 5, True: 5}
    answer = await ask(app, "GET", "/pools", headers={"X-API-Key": first})
    assert answer.body["code"] == "rate_limited"
    wait_s = int(answer.headers["retry-after"])
    store.now += wait_s * 1_000
    assert await ask_often(first, 1) == {False: 1}, "after the announced time one may pass"


async def test_counts_are_taken_in_parts(settings: Settings, store: MemoryStore) -> None:
    """A thousand requests cost a few calls, and two gateways together pass no more than the limit."""
    gateways = [Callers(settings, store).limits for _ in range(2)]
    passes = Counter([await gateways[n % 2].take("key:x", 1_000) == 0 for n in range(3_000)])
    assert 900 <= passes[True] <= 1_000
    assert store.calls < 100
    store.now += 120_000
    assert await gateways[0].take("key:x", 1_000) == 0


async def test_a_ticket_opens_one_stream(settings: Settings, store: MemoryStore) -> None:
    """It stands for the one who made it, once; a POST needs a header."""

    async def handle(one: Call[None, None]) -> Answer:
        """Say who calls."""
        assert one.credential is not None
        return Answer(one.credential)

    rows = [
        *(row for row in ROUTES if row.path == "/auth/ticket"),
        Route("GET", "/events", handle, answer=None, role="readonly"),
        Route("POST", "/tasks/submit", handle, answer=None, role="readonly"),
    ]
    app = app_of(settings, store, rows)
    key = store.add("client", name="ann")
    made = await ask(app, "POST", "/auth/ticket", headers={"X-API-Key": key})
    assert (made.status, made.headers["cache-control"]) == (200, "no-store")
    query = f"type=task&ticket={made.body['ticket']}"
    assert (await ask(app, "POST", "/tasks/submit", query=query)).code == "credential_missing"
    assert (await ask(app, "GET", "/events", query=query)).body["name"] == "ann"
    assert (await ask(app, "GET", "/events", query=query)).code == "credential_invalid"
    made = await ask(app, "POST", "/auth/ticket", headers={"X-API-Key": key})
    store.keys.clear()
    assert (await ask(app, "GET", "/events", query=f"ticket={made.body['ticket']}")).code == "credential_invalid"


async def test_a_login_is_for_a_while(app: GatewayApp, store: MemoryStore) -> None:
    """A JWT and a refresh token for an API key, in the shapes of the predecessor; both end with the key."""
    key = store.add("client", name="ann")
    answer = await ask(app, "POST", "/auth/login", {"api_key": key})
    for body in ({"username": "ann", "password": key}, {"username": id_of_key(key), "password": key}, {"api_key": key}):
        answer = await ask(app, "POST", "/auth/login", body)
        assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
        assert (answer.body["username"], answer.body["role"], answer.body["token_type"]) == ("ann", "client", "Bearer")
    token = answer.body["access_token"]
    assert passed(await ask(app, "GET", "/pools", headers={"Authorization": f"Bearer {token}"}))
    valid = await ask(app, "POST", "/auth/validate", {"token": token})
    assert (valid.status, valid.body["valid"], valid.body["role"]) == (200, True, "client")
    assert (await ask(app, "POST", "/auth/api-key/validate", query=f"api_key={key}")).body["username"] == "ann"
    assert (await ask(app, "POST", "/auth/login", {"username": "bob", "password": key})).code == "credential_invalid"
    assert (await ask(app, "POST", "/auth/login", {"username": "ann"})).status == 422
    assert (await ask(app, "POST", "/auth/login", {"api_key": TOKEN})).code == "credential_invalid"
    store.keys.clear()
    app.gateway.callers._found.clear()
    refused = await ask(app, "GET", "/pools", headers={"Authorization": f"Bearer {token}"})
    assert refused.code == "credential_invalid"
    assert (await ask(app, "POST", "/auth/validate", {"token": token})).status == 401


async def test_only_admins_make_keys_that_only_they_can_use(app: GatewayApp, store: MemoryStore) -> None:
    """A role that does not exist is named with the valid ones before anything is written."""
    for role in ("readonly", "client", "operator"):
        answer = await ask(app, "POST", "/auth/api-key/generate", {"role": "admin"}, {"X-API-Key": store.add(role)})
        assert answer.code == "role_insufficient"
    wrong = await ask(app, "POST", "/auth/api-key/generate", {"role": "root"}, {"X-API-Key": store.add("admin")})
    assert wrong.status == 422
    assert "readonly, client, agent, operator, admin" in wrong.body["message"]


async def test_without_security_there_is_nothing_to_log_in_to(namespace: str) -> None:
    """And a key that is sent all the same goes no further."""
    settings = Settings(namespace=namespace)
    app = make_app(Backend(settings), settings)
    assert (await ask(app, "POST", "/auth/login", {"api_key": "x"})).code == "security_off"
    assert (await ask(app, "POST", "/auth/api-key/generate", {})).code == "security_off"
    seen: list[str] = []

    async def handle(one: Call[None, None]) -> Answer:
        """Keep the token."""
        seen.append(one.bearer_token)
        return Answer(None)

    app = GatewayApp(Gateway(Backend(settings), settings), [Route("GET", "/x", handle, answer=None, role="readonly")])
    for text in (TOKEN, new_key(new_key_id())):
        await ask(app, "GET", "/x", headers={"Authorization": f"Bearer {text}"})
    assert seen == [TOKEN, ""]


async def test_the_token_of_an_agent_goes_on_and_nothing_else(settings: Settings, store: MemoryStore) -> None:
    """Workers check it once more; an API key would be in a stream for others to read."""
    seen: list[str] = []

    async def handle(one: Call[None, None]) -> Answer:
        """Keep the token."""
        seen.append(one.bearer_token)
        return Answer(None)

    app = app_of(settings, store, [Route("GET", "/x", handle, answer=None, role="readonly")])
    key = store.add("agent", "a1")
    for headers in (
        {"Authorization": f"Bearer {TOKEN}"},
        {"Authorization": f"Bearer {key}"},
        {"Authorization": f"Bearer {key}", "X-Agent-Token": TOKEN},
        {"X-API-Key": key, "Authorization": f"Bearer {TOKEN}"},
    ):
        assert (await ask(app, "GET", "/x", headers=headers)).status == 200
    assert seen == [TOKEN, "", TOKEN, ""]


ORIGIN = "https://ops.example"


async def test_pages_of_other_origins_are_refused_unless_listed(settings: Settings, store: MemoryStore) -> None:
    """A listed one gets what its browser asks for; the credential is still needed."""
    app = app_of(replace(settings, gateway_cors_origins=f"{ORIGIN}, http://localhost:3000"), store)
    key = store.add("readonly")
    foreign = await ask(app, "GET", "/pools", headers={"Origin": "https://evil.example", "X-API-Key": key})
    assert (foreign.status, foreign.code) == (403, "cross_origin")
    assert "access-control-allow-origin" not in foreign.headers
    answer = await ask(app, "GET", "/pools", headers={"Origin": ORIGIN, "X-API-Key": key})
    assert passed(answer)
    assert (answer.headers["access-control-allow-origin"], answer.headers["vary"]) == (ORIGIN, "Origin")
    assert (await ask(app, "GET", "/pools", headers={"Origin": ORIGIN})).code == "credential_missing"
    for odd in ("http://[", "null", "https://ops.example:x"):
        answer = await ask(app, "GET", "/pools", headers={"Origin": odd, "X-API-Key": key})
        assert (answer.status, answer.code) == (403, "cross_origin")
    # Of a simple GET, such as that of an image, a browser says only where it comes from.
    image = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    link = image | {"Sec-Fetch-Mode": "navigate"}
    for path, headers, is_passed in (
        ("/pools", image, False), ("/pools", link, False), ("/docs", image, False), ("/docs", link, True),
        ("/ui", image, False), ("/ui", link, True), ("/ui/", link, True), ("/ui/app.js", image, False),
        ("/", link, True), ("/pools", {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, True),
    ):  # fmt: skip
        answer = await ask(app, "GET", path, headers=headers | {"X-API-Key": key})
        assert (answer.status != 403) == is_passed, (path, headers)
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    preflight = await ask(app, "OPTIONS", "/tasks/submit", headers=asked)
    assert preflight.status == 204
    assert preflight.headers["access-control-allow-methods"] == "POST"
    assert "Authorization" in preflight.headers["access-control-allow-headers"]
    evil = await ask(app, "OPTIONS", "/tasks/submit", headers=asked | {"Origin": "https://evil.example"})
    assert evil.status == 403


async def test_every_response_has_the_headers_of_safety(settings: Settings, store: MemoryStore) -> None:
    """Errors too; a page may load its own files; HSTS only where TLS is, also at a trusted proxy."""

    async def page(_call: Call[None, None]) -> Answer:
        """Return a page."""
        return Answer(b"<html>", content_type="text/html; charset=utf-8")

    row = Route("GET", "/docs", page, answer=None, role=None)
    app = app_of(replace(settings, gateway_trusted_proxies="10.0.0.0/8"), store, [row])
    for answer in (await ask(app, "GET", "/docs"), await ask(app, "GET", "/nothing"), await ask(app, "PUT", "/docs")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert "strict-transport-security" not in answer.headers
    policy = (await ask(app, "GET", "/docs")).headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe-eval" not in policy
    assert "script-src" not in policy
    proto = {"X-Forwarded-Proto": "https"}
    assert "strict-transport-security" in (await ask(app, "GET", "/docs", scheme="https")).headers
    assert "strict-transport-security" in (await ask(app, "GET", "/docs", headers=proto, address="10.1.1.1")).headers
    assert "strict-transport-security" not in (await ask(app, "GET", "/docs", headers=proto)).headers


async def test_the_address_behind_a_trusted_proxy_counts(settings: Settings, store: MemoryStore) -> None:
    """Nobody else can choose what address it is counted as."""
    app = app_of(replace(settings, gateway_open_rate=3, gateway_trusted_proxies="10.0.0.0/8"), store)

    async def status(forwarded: str, address: str) -> int:
        return (await ask(app, "GET", "/pools", headers={"X-Forwarded-For": forwarded}, address=address)).status

    assert [await status(f"198.51.100.{n}", "192.0.2.7") for n in range(5)] == [401] * 3 + [429] * 2
    assert [await status(f"1.1.1.{n}, 198.51.100.1, 10.0.0.2", "10.0.0.1") for n in range(5)] == [401] * 3 + [429] * 2
    assert await status("198.51.100.2", "10.0.0.1") == 401
    addresses = ("2001:db8::1", "2001:db8::ffff:1", "::ffff:192.0.2.1", "unix", "fe80::1%eth0")
    counted = ["2001:db8::/64", "2001:db8::/64", "192.0.2.1", "unix", "fe80::/64"]
    assert [network_of(address) for address in addresses] == counted


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gateway_cors_origins": "*"}, r"COORD_GATEWAY_CORS_ORIGINS: '\*' is not an origin"),
        ({"gateway_cors_origins": "https://ops.example/"}, "is not an origin"),
        ({"gateway_trusted_proxies": "proxy.example"}, "COORD_GATEWAY_TRUSTED_PROXIES: 'proxy.example'"),
        ({"gateway_jwt_secret": "x" * 8}, "COORD_GATEWAY_JWT_SECRET"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_at_the_start(settings: Settings, changed: Any, message: str) -> None:
    """It is named, with what is expected."""
    changed_settings = replace(settings, **changed)
    with pytest.raises(ConfigError, match=message):
        make_app(Backend(changed_settings), changed_settings)


def test_the_page_lists_the_role_of_each_route() -> None:
    """docs/http.md has a table of roles; scripts/roles_table writes it."""
    assert roles_table.page() == roles_table.PAGE.read_text()


async def test_a_stream_ends_when_its_key_is_revoked(
    settings: Settings, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the next chunk, after the time between two checks; its source is closed."""
    monkeypatch.setattr(access, "RECHECK_S", 0.0)
    ended: list[bool] = []

    async def chunks() -> AsyncIterator[bytes]:
        try:
            for n in range(5):
                if n == 2:
                    store.keys.clear()
                yield b"%d" % n
        finally:
            ended.append(True)

    app = app_of(settings, store)
    caller = Callers(settings, store)
    key = store.add("readonly")
    found = await caller.find(key, "192.0.2.1")
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/events", "headers": []}
    call_: Call[Any, Any] = Call(Connection(scope, _never, _never), app.gateway)
    call_.credential = found
    passed_on = [chunk async for chunk in CallerAccess(app.gateway).guarded(call_, chunks())]
    assert (passed_on, ended) == ([b"0", b"1"], [True])
    of_agent = await caller.find(TOKEN, "192.0.2.1")
    assert await caller.is_valid(of_agent)
    assert not await caller.is_valid(replace(of_agent, token_digest="another"))


async def _never(*_: Any) -> Any:
    raise AssertionError


async def test_a_websocket_is_closed_when_its_key_is_revoked(
    settings: Settings, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its handshake needs a credential, and what is sent after the revocation does not arrive."""
    monkeypatch.setattr(access, "RECHECK_S", 0.0)
    key = store.add("readonly")

    async def handle(one: Call[None, None]) -> None:
        """Send two frames, and one after the key was revoked."""
        await one.connection.send({"type": "websocket.accept"})
        for n in range(3):
            if n == 2:
                store.keys.clear()
            await one.connection.send({"type": "websocket.send", "text": str(n)})
        await one.connection.send({"type": "websocket.close", "code": 1000})

    row = Route("WEBSOCKET", "/ws", handle, answer=None, role="readonly", counted=False)
    app = app_of(settings, store, [row])
    assert (await ask(app, "WEBSOCKET", "/ws")).status == 401
    foreign = {"X-API-Key": key, "Origin": "https://evil.example"}
    assert (await ask(app, "WEBSOCKET", "/ws", headers=foreign)).status == 403
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    headers = [(b"x-api-key", key.encode())]
    await app({"type": "websocket", "path": "/ws", "headers": headers, "query_string": b""}, _never, send)
    assert [event.get("text", event.get("code")) for event in sent] == [None, "0", "1", access.REVOKED]
