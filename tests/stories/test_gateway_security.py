"""Callers of the gateway with a real server and workers: keys, tokens, roles and limits in two gateways."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from coord import Client
from coord.config import Settings
from coord.errors import ApiKeyNotFound, CoordError, FactInvalid
from coord.gateway.app import GatewayApp, make_app
from coord.gateway.backend import Backend
from coord.models.api_keys import CallerRole
from tests.asgi import AsgiAnswer, ask
from tests.running import RunningCell
from tests.waiting import wait_until

AGENT = {"agent_id": "a1", "agent_type": "worker"}


class Gateways(NamedTuple):
    """Two gateways of a cell."""

    one: GatewayApp
    two: GatewayApp


@pytest.fixture
def settings(namespace: str) -> Settings:
    """Tokens are required, few requests are allowed, and answers may take long."""
    return Settings(
        namespace=namespace,
        read_block_ms=100,
        require_tokens=True,
        gateway_security=True,
        gateway_rate=200,
        gateway_wait_s=30.0,
        gateway_redis_s=30.0,
        gateway_jwt_secret="a-secret-for-these-tests-alone-and-long",
    )


@pytest.fixture
async def gateways(cell: RunningCell) -> AsyncIterator[Gateways]:
    """Two gateways that have found Redis."""
    async with AsyncExitStack() as stack:
        apps: list[GatewayApp] = []
        for _ in range(2):
            settings = replace(cell.settings, redis_url=cell.url)
            backend = Backend(settings)
            backend.open(_failed)
            stack.push_async_callback(backend.close)
            await wait_until(_is_open(backend), "the gateway has found Redis")
            apps.append(make_app(backend, settings))
        yield Gateways(*apps)


def _failed(error: CoordError) -> None:
    raise error


def _is_open(backend: Backend) -> Callable[[], Any]:
    async def check() -> bool:
        try:
            return backend.client is not None
        except CoordError:
            return False

    return check


def _always(moment: float) -> Callable[[], Any]:
    async def now() -> float:
        return moment

    return now


async def get(app: GatewayApp, key: str, path: str = "/pools") -> AsgiAnswer:
    """GET with a key."""
    return await ask(app, "GET", path, headers={"Authorization": f"Bearer {key}"})


@pytest.mark.guarantee("revoked-api-keys")
async def test_a_key_works_in_every_gateway_until_it_is_revoked(client: Client, gateways: Gateways) -> None:
    """Also a JWT that was issued for it; the list says when it was used, and nothing stored has the key."""
    key, record = await client.admin.create_key("readonly", name="ann")
    assert [(await get(app, key)).status for app in gateways] == [200, 200]
    login = await ask(gateways.one, "POST", "/auth/login", {"username": "ann", "password": key})
    token, refresh = login.body["access_token"], login.body["refresh_token"]
    assert (await get(gateways.two, token)).status == 200
    used = [one for one in await client.admin.keys() if one.used_at is not None]
    assert [(one.key_id, one.role, one.name) for one in used] == [(record.key_id, CallerRole.READONLY, "ann")]

    again = await ask(gateways.two, "POST", "/auth/refresh", {"refresh_token": refresh})
    assert again.status == 200
    twice = await ask(gateways.one, "POST", "/auth/refresh", {"refresh_token": refresh})
    assert twice.code == "credential_invalid"

    await client.admin.revoke_key(record.key_id)

    pending = [(app, one) for app in gateways for one in (key, token)]

    async def is_refused() -> bool:
        if (await get(*pending[0])).code == "credential_invalid":
            pending.pop(0)
        return not pending

    await wait_until(is_refused, "both gateways refuse both", 10)
    later = await ask(gateways.one, "POST", "/auth/refresh", {"refresh_token": again.body["refresh_token"]})
    assert later.code == "credential_invalid"
    with pytest.raises(ApiKeyNotFound):
        await client.admin.revoke_key(record.key_id)


@pytest.mark.guarantee("no-credentials-in-logs")
async def test_nothing_in_redis_has_a_credential(client: Client, cell: RunningCell, gateways: Gateways) -> None:
    """Neither a key, nor a JWT, nor a ticket: only their digests; the token of an agent is in its own facts alone."""
    key, _ = await client.admin.create_key("agent", agent_id="a1")
    admin, _ = await client.admin.create_key("admin")
    await ask(gateways.one, "POST", "/agents/register", AGENT, {"Authorization": f"Bearer {key}"})
    login = await ask(gateways.one, "POST", "/auth/login", {"api_key": key})
    ticket = await ask(gateways.one, "POST", "/auth/ticket", headers={"X-API-Key": key})
    await ask(gateways.one, "POST", "/auth/api-key/generate", {}, {"X-API-Key": admin})
    await ask(gateways.one, "POST", "/auth/refresh", {"refresh_token": login.body["refresh_token"]})
    secrets = [key, admin, login.body["access_token"], login.body["refresh_token"], ticket.body["ticket"]]
    assert all(len(secret) > 20 for secret in secrets)
    names = [name async for name in cell.redis.scan_iter(match=f"{cell.keys.prefix}*")]
    stored = b"".join([name + (await cell.redis.dump(name) or b"") for name in names])
    assert len(names) > 10
    assert [secret for secret in secrets if secret.encode() in stored] == []
    own = [name.decode().removeprefix(cell.keys.prefix) for name in names if b":gateway:" in name]
    assert sorted({name.rpartition(":")[0].split(":")[1] for name in own}) == ["refreshed", "requests", "ticket"]
    assert all([await cell.redis.pttl(cell.keys.of(name)) > 0 for name in own])


async def test_an_agent_acts_with_its_token_or_its_key(client: Client, gateways: Gateways) -> None:
    """Where the cell requires tokens, a key comes beside the token; neither serves for another agent."""
    token = await client.admin.enrol("a1")
    bearer = {"Authorization": f"Bearer {token}"}
    assert (await ask(gateways.one, "POST", "/agents/register", AGENT, bearer)).status == 200
    assert (await ask(gateways.two, "POST", "/agents/a1/heartbeat", None, bearer)).status in {200, 202}
    assert (await ask(gateways.two, "POST", "/agents/a2/heartbeat", None, bearer)).code == "agent_forbidden"
    other = {"agent_id": "a2", "agent_type": "worker"}
    assert (await ask(gateways.one, "POST", "/agents/register", other, bearer)).code == "agent_forbidden"

    key, _ = await client.admin.create_key("agent", agent_id="a1")
    with_key = {"X-API-Key": key}
    assert (await ask(gateways.one, "POST", "/agents/register", AGENT, with_key)).code == "token_missing"
    with_both = with_key | {"X-Agent-Token": token}
    assert (await ask(gateways.one, "POST", "/agents/register", AGENT, with_both)).status == 200

    newer = await client.admin.rotate("a1", grace=0)

    async def is_refused() -> bool:
        return (await get(gateways.one, token)).code == "credential_invalid"

    await wait_until(is_refused, "the earlier token is refused", 10)
    assert (await get(gateways.one, newer)).status == 200


@pytest.mark.guarantee("http-limits")
async def test_two_gateways_share_the_limits(client: Client, gateways: Gateways) -> None:
    """Together they pass what one may, but for the part that each has taken and not used."""
    key, _ = await client.admin.create_key("readonly")
    moment = await gateways.one.gateway.callers.store.now_ms()
    for app in gateways:
        app.gateway.callers.limits._now = _always(moment)  # the minute does not end during the test
    statuses = Counter([(await get(gateways[n % 2], key)).status for n in range(300)])
    assert set(statuses) == {200, 429}
    assert 200 - 2 * 200 // 16 <= statuses[200] <= 200
    assert (await get(gateways.one, key)).headers["retry-after"]

    guesses = Counter([(await get(gateways[n % 2], f"guess-{n}")).status for n in range(60)])
    assert guesses[401] == 20


async def test_an_admin_makes_and_revokes_keys_over_http(client: Client, gateways: Gateways) -> None:
    """As on the command line; a key that does not fit is refused with the field."""
    admin = {"X-API-Key": (await client.admin.create_key("admin"))[0]}
    made = await ask(gateways.one, "POST", "/auth/api-key/generate", {"permissions": ["x"]}, admin, query="user_id=bob")
    assert (made.status, made.body["role"], made.body["name"]) == (200, "client", "bob")
    assert (await get(gateways.two, made.body["api_key"])).status == 200
    agent = await ask(gateways.one, "POST", "/auth/api-key/generate", {"role": "agent"}, admin)
    assert (agent.status, "agent_id" in agent.body["message"]) == (422, True)
    path = f"/auth/api-key/{made.body['api_key']}"
    revoked = await ask(gateways.one, "DELETE", path, headers=admin)
    assert (revoked.status, revoked.body["key_id"]) == (200, made.body["key_id"])
    again = await ask(gateways.one, "DELETE", path, headers=admin)
    assert (again.status, again.code) == (404, "api_key_not_found")
    for wrong in (
        {"role": "root"},
        {"role": "agent"},
        {"role": "client", "agent_id": "a1"},
        {"role": "client", "lifetime": 0},
    ):
        with pytest.raises(FactInvalid):
            await client.admin.create_key(**wrong)


async def test_a_change_of_the_rules_names_its_caller(client: Client, gateways: Gateways) -> None:
    """The id of the key, and the address; never the key."""
    key, record = await client.admin.create_key("operator")
    answer = await ask(gateways.one, "PUT", "/load-balancer/strategy", {"strategy": "random"}, {"X-API-Key": key})
    assert answer.status == 200
    (change, *_) = await client.admin.setting_changes()
    assert change.by == f"http key:{record.key_id} 192.0.2.1"


async def test_many_requests_with_a_new_key_look_it_up(client: Client, gateways: Gateways) -> None:
    """Requests that come at the same time are all answered."""
    key, _ = await client.admin.create_key("readonly")
    answers = await asyncio.gather(*(get(gateways.one, key) for _ in range(50)))
    assert {answer.status for answer in answers} == {200}
