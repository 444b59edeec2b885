"""No log and no error shows a credential: real processes, with the most detailed log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coord.api_key import new_key, new_key_id, redacted
from tests.http import HttpAnswer, HttpCaller
from tests.processes import CellProcesses, cell_processes
from tests.system.gateway_processes import PATIENT, gateway
from tests.waiting import wait_until

PASSWORD = "the-password-of-redis-0123456789"
SECRET = "the-secret-of-the-jwts-0123456789-0123456789"


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[CellProcesses]:
    """A server of this test's own."""
    async with cell_processes(tmp_path) as built:
        yield built


@pytest.fixture
def http(unused_port: int) -> HttpCaller:
    """A caller of the gateway that the test starts."""
    return HttpCaller(unused_port)


def _with_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://gw:{PASSWORD}@{rest}"


@pytest.mark.guarantee("no-credentials-in-logs")
async def test_no_log_and_no_error_shows_a_secret(at: CellProcesses, http: HttpCaller) -> None:
    """API keys, JWTs, tickets, tokens of agents, the key of JWTs, the password of Redis: right ones and wrong ones."""
    await at.redis.execute_command("ACL", "SETUSER", "gw", "on", f">{PASSWORD}", "~*", "&*", "+@all")
    url = _with_password(at.server.url)
    environ = {"COORD_REDIS_URL": url, "COORD_LOG_LEVEL": "debug"}
    environ |= {"COORD_GATEWAY_SECURITY": "on", "COORD_GATEWAY_JWT_SECRET": SECRET}
    registry = await at.worker("registry", **environ)
    process = await gateway(at, http, **PATIENT | environ)
    token = await at.client.admin.enrol("a1")
    key, record = await at.client.admin.create_key("admin")
    agent_key, _ = await at.client.admin.create_key("agent", agent_id="a1")
    wrong = new_key(new_key_id())
    admin = {"X_API_Key": key}
    errors: list[HttpAnswer] = []

    login = (await http.post("/auth/login", {"api_key": key})).body
    ticket = (await http.post("/auth/ticket", **admin)).body["ticket"]
    made = (await http.post("/auth/api-key/generate", {"role": "client"}, **admin)).body["api_key"]
    secrets = [key, agent_key, wrong, made, token, ticket, PASSWORD, SECRET]
    secrets += [login["access_token"], login["refresh_token"]]
    body = {"agent_id": "a1", "agent_type": "worker"}
    assert (await http.post("/agents/register", body, Authorization=f"Bearer {token}")).status == 200
    assert (await http.get(f"/pools?ticket={ticket}")).status == 200

    errors += [
        await http.get(f"/pools?ticket={ticket}"),
        await http.get("/pools", Authorization=f"Bearer {wrong}"),
        await http.get("/pools", Authorization=f"Bearer {login['access_token']}x"),
        await http.get("/pools", Authorization=f"Bearer {login['refresh_token']}"),
        await http.post("/agents/a2/heartbeat", X_API_Key=agent_key),
        await http.post("/auth/login", {"api_key": [key]}),
        await http.post("/auth/login", {"username": "bob", "password": key}),
        await http.post("/auth/refresh", {"refresh_token": key}),
        await http.post("/auth/validate", {"token": wrong}),
        await http.post("/auth/api-key/generate", {"role": key}, **admin | {"X_API_Key": agent_key}),
        await http.delete(f"/auth/api-key/{wrong}", **admin),
        await http.post("/tasks/submit", {"task_data": key}, **admin),
    ]
    assert {answer.status for answer in errors} <= {401, 403, 404, 422}
    at.server.stop(force=True)
    errors.append(await http.get("/pools", Authorization=f"Bearer {made}"))
    assert errors[-1].status == 503
    await wait_until(lambda: "credential.refused" in process.log.read_text(), "refusals are in the log")

    texts = {"a response": "".join(f"{answer.headers} {answer.body}" for answer in errors)}
    texts |= {one.name: one.log.read_text() for one in (registry, process)}
    assert record.key_id
    for where, text in texts.items():
        assert len(text) > 100, where
        assert [secret[:24] for secret in secrets if secret in text] == [], where


async def test_a_gateway_that_cannot_start_shows_no_secret(at: CellProcesses, http: HttpCaller) -> None:
    """Neither a secret that is too short, nor a password that Redis refuses."""
    short = "short-jwt-secret"
    for environ, text in (
        ({"COORD_GATEWAY_SECURITY": "on", "COORD_GATEWAY_JWT_SECRET": short}, "COORD_GATEWAY_JWT_SECRET: expected 32"),
        ({"COORD_REDIS_URL": _with_password(at.server.url)}, "password"),
    ):
        process = at.start("gateway", "-m", "coord.cli", "gateway", "--port", "0", **environ)
        assert await process.ended(30) == 2
        assert text in process.told()
        assert not [secret for secret in (short, PASSWORD) if secret in process.log.read_text()]


def test_a_key_in_a_path_is_redacted() -> None:
    """Its id stays."""
    key = new_key("0123456789ab")
    assert redacted(f"/auth/api-key/{key}/x") == "/auth/api-key/coord_key_0123456789ab_…/x"
