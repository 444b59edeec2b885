"""``change_api_key``: keys of the HTTP API; and the index of agents' tokens, which gateways read."""

from __future__ import annotations

import pytest

from coord import queries
from coord.models.api_keys import CallerRole
from tests.scripts.cell import START, Cell
from workers.transitions import ApiKeyChange, TokenChange
from workers.transitions.scripts import API_KEYS

ID, OTHER = "0123456789ab", "ba9876543210"


async def create(cell: Cell, digest: str = "d1", key_id: str = ID, **more: object) -> str:
    """Create a key; the word."""
    entry = await cell.append("in:control:registry", "api_key.created")
    fields = {"role": "client"} | more
    change = ApiKeyChange(entry, "op", key_id, "create", digest, **fields)  # type: ignore[arg-type]
    return await cell.word(cell.scripts.change_api_key([change]))


async def revoke(cell: Cell, key_id: str = ID) -> str:
    """Revoke a key; the word."""
    entry = await cell.append("in:control:registry", "api_key.revoked")
    return await cell.word(cell.scripts.change_api_key([ApiKeyChange(entry, "op", key_id, "revoke")]))


async def codes(cell: Cell) -> list[str]:
    """The answers to the operator."""
    return [code for _, code in await cell.answers("op")]


@pytest.mark.on_fakeredis
async def test_a_key_is_created_and_revoked(cell: Cell) -> None:
    """With its role, agent, name and end; once it is revoked nothing of it is left but the log."""
    assert await create(cell, role="agent", agent_id="a1", name="Ann", lifetime_ms=5_000) == "OK"
    found = await queries.get_api_key(cell.redis, cell.keys, ID)
    assert found is not None
    key, digest = found
    assert (digest, key.role, key.agent_id, key.name) == ("d1", CallerRole.AGENT, "a1", "Ann")
    assert (key.created_at, key.created_by, key.expires_at, key.used_at) == (START, "op", START + 5_000, None)
    await cell.redis.zadd(cell.keys.of("api_keys"), {ID: START + 1}, xx=True)
    (listed,) = await queries.list_api_keys(cell.redis, cell.keys)
    assert listed.used_at == START + 1

    assert await revoke(cell) == "OK"
    assert await queries.get_api_key(cell.redis, cell.keys, ID) is None
    assert not await cell.redis.exists(cell.keys.api_key(ID), cell.keys.of("api_keys"))
    assert await revoke(cell) == "NOT_FOUND"
    assert await codes(cell) == ["ok", "ok", "api_key_not_found"]
    assert await cell.logged("control") == ["api_key.created", "api_key.revoked"]


async def test_a_repetition_is_no_error_and_another_key_is_one(cell: Cell) -> None:
    """An id belongs to the first key that has it, and there is a limit of keys."""
    assert await create(cell) == "OK"
    assert await create(cell) == "DUPLICATE"
    assert await create(cell, "d2") == "TAKEN"
    await cell.redis.zadd(cell.keys.of("api_keys"), {f"k{number}": 0 for number in range(API_KEYS)})
    assert await create(cell, "d3", OTHER) == "FULL"
    assert await codes(cell) == ["ok", "ok", "id_conflict", "api_keys_full"]
    assert [key.key_id for key in await queries.list_api_keys(cell.redis, cell.keys)] == [ID]


async def test_a_token_finds_its_agent(cell: Cell) -> None:
    """The valid ones alone: an earlier one until its grace ends, a revoked one never."""

    async def change(action: str, digest: str = "", grace_ms: int = 0) -> None:
        entry = await cell.append("in:control:registry", "agent.enrolled")
        await cell.word(cell.scripts.change_token([TokenChange(entry, "op", "a1", action, digest, grace_ms)]))

    async def found(*digests: str) -> list[str | None]:
        return [await queries.find_agent_of_token(cell.redis, cell.keys, one, cell.now) for one in digests]

    await change("enrol", "d1")
    assert await found("d1", "d2") == ["a1", None]
    await change("rotate", "d2", 1_000)
    assert await found("d1", "d2") == ["a1", "a1"]
    cell.now = START + 1_000
    assert await found("d1", "d2") == [None, "a1"]
    await change("rotate", "d3")
    assert await cell.redis.hkeys(cell.keys.of("tokens")) == [b"d3"]
    await change("revoke")
    assert await found("d3") == [None]
    assert not await cell.redis.exists(cell.keys.of("tokens"))
