"""``change_token`` and ``check_tokens``: who may speak for an agent."""

from __future__ import annotations

import pytest

from tests.scripts.cell import START, Cell
from workers.transitions import SpokenFact, TokenChange

HOUR_MS = 3_600_000


async def change(cell: Cell, action: str, digest: str = "", *, grace_ms: int = 0, agent_id: str = "a1") -> str:
    """One request of an operator about a token; the word."""
    entry = await cell.append("in:control:registry", "agent.enrolled")
    return await cell.word(
        cell.scripts.change_token([TokenChange(entry, "op", agent_id, action, digest, grace_ms=grace_ms)])
    )


async def check(
    cell: Cell, digest: str, *, agent_id: str = "a1", stream: str = "in:registry", may_be_client: bool = False
) -> str:
    """Check one fact of an agent; the word. A fact that is accepted waits for its own script."""
    kind = "router" if stream.startswith("in:messages") else "registry"
    entry = await cell.append(stream)
    word = await cell.word(
        cell.scripts.check_tokens(kind, [SpokenFact(entry, stream, "c1", agent_id, digest, may_be_client)])
    )
    left = entry in await cell.left(stream)
    assert left == (word == "OK")
    if left:
        await cell.redis.xack(cell.keys.of(stream), kind, entry)
        await cell.redis.xdel(cell.keys.of(stream), entry)
    return word


async def code(cell: Cell, caller: str = "c1") -> str:
    """The code of the last answer to a caller; ok if it was none."""
    return (await cell.answers(caller))[-1][1]


async def refused(cell: Cell) -> int:
    """How many facts were refused."""
    return int(await cell.redis.hget(cell.keys.of("counters"), "tokens_refused") or 0)


@pytest.mark.guarantee("tokens")
@pytest.mark.on_fakeredis
async def test_a_fact_needs_the_token_of_its_agent(cell: Cell) -> None:
    """The right one passes and stays in its stream; a missing, a wrong and another agent's are refused and counted."""
    assert await change(cell, "enrol", "d1") == "OK"
    assert await change(cell, "enrol", "d2", agent_id="a2") == "OK"

    assert await check(cell, "d1") == "OK"
    assert await check(cell, "") == "MISSING"
    assert await check(cell, "nothing") == "INVALID"
    assert await check(cell, "d2") == "INVALID"
    assert await check(cell, "d1", agent_id="a3") == "INVALID"

    assert [answer for _, answer in await cell.answers("c1")] == ["token_missing", *["token_invalid"] * 3]
    assert await refused(cell) == 4
    assert await cell.is_consumed("in:registry")


async def test_a_refused_fact_is_refused_once(cell: Cell) -> None:
    """A worker that stood still between read and script counts and answers nothing again."""
    entry = await cell.append("in:registry")
    fact = SpokenFact(entry, "in:registry", "c1", "a1", "d1", False)
    assert await cell.word(cell.scripts.check_tokens("registry", [fact])) == "INVALID"
    assert await cell.word(cell.scripts.check_tokens("registry", [fact])) == "GONE"
    assert await refused(cell) == 1
    assert len(await cell.answers("c1")) == 1


@pytest.mark.guarantee("revoked-tokens")
@pytest.mark.on_fakeredis
async def test_an_earlier_token_is_valid_for_its_grace(cell: Cell) -> None:
    """Both until then, the new one alone afterwards; only the last two tokens count, and no grace ends one at once."""
    await change(cell, "enrol", "d1")
    assert await change(cell, "rotate", "d2", grace_ms=HOUR_MS) == "OK"
    assert [await check(cell, digest) for digest in ("d1", "d2")] == ["OK", "OK"]
    cell.now = START + HOUR_MS
    assert [await check(cell, digest) for digest in ("d1", "d2")] == ["INVALID", "OK"]

    assert await change(cell, "rotate", "d3", grace_ms=HOUR_MS) == "OK"
    assert await change(cell, "rotate", "d4", grace_ms=HOUR_MS) == "OK"
    assert [await check(cell, digest) for digest in ("d2", "d3", "d4")] == ["INVALID", "OK", "OK"]
    assert await change(cell, "rotate", "d5") == "OK"
    assert [await check(cell, digest) for digest in ("d3", "d4", "d5")] == ["INVALID", "INVALID", "OK"]


@pytest.mark.guarantee("revoked-tokens")
async def test_a_revoked_token_is_invalid_at_once(cell: Cell) -> None:
    """Also one in its grace; that it was revoked is known for as long as the record of a departed agent."""
    await change(cell, "enrol", "d1")
    await change(cell, "rotate", "d2", grace_ms=HOUR_MS)
    assert await change(cell, "revoke") == "OK"
    assert [await check(cell, digest) for digest in ("d1", "d2", "")] == ["INVALID"] * 3
    ttl = await cell.redis.pttl(cell.keys.token("a1"))
    assert 0 < ttl <= cell.settings.departed_ttl_s * 1000
    assert await change(cell, "revoke") == "NOT_ENROLLED"
    assert await code(cell, "op") == "agent_not_enrolled"

    assert await change(cell, "enrol", "d3") == "OK"
    assert await cell.redis.pttl(cell.keys.token("a1")) == -1
    assert [await check(cell, digest) for digest in ("d2", "d3")] == ["INVALID", "OK"]


async def test_requests_that_do_not_fit_change_nothing(cell: Cell) -> None:
    """A second enrolment, a rotation without a token, and a repetition, which is no error."""
    assert await change(cell, "rotate", "d1") == "NOT_ENROLLED"
    assert await code(cell, "op") == "agent_not_enrolled"
    assert await change(cell, "enrol", "d1") == "OK"
    assert await change(cell, "enrol", "d1") == "DUPLICATE"
    assert await code(cell, "op") == "ok"
    assert await change(cell, "enrol", "d2") == "ENROLLED"
    assert await code(cell, "op") == "agent_enrolled"
    assert await check(cell, "d1") == "OK"
    assert await change(cell, "rotate", "d2", grace_ms=HOUR_MS) == "OK"
    assert await change(cell, "rotate", "d2") == "DUPLICATE", "the repetition does not end the grace"
    assert await check(cell, "d1") == "OK"
    assert await cell.logged("control") == ["token.enrolled", "token.rotated"]


@pytest.mark.guarantee("revoked-tokens")
async def test_a_later_request_stands(cell: Cell) -> None:
    """An earlier one that another registry handles afterwards changes nothing, and its operator learns that."""
    await change(cell, "enrol", "d1")
    late = await cell.append("in:control:registry", "agent.token_rotated")
    assert await change(cell, "revoke") == "OK"
    word = await cell.word(cell.scripts.change_token([TokenChange(late, "op", "a1", "rotate", "d2")]))
    assert word == "STALE"
    assert await code(cell, "op") == "token_invalid"
    assert await check(cell, "d2") == "INVALID"


@pytest.mark.on_fakeredis
async def test_a_sender_that_is_no_agent_needs_no_token(cell: Cell) -> None:
    """A client's message passes; one in the name of an agent that is registered or enrolled does not."""
    stream = "in:messages:normal"
    assert await check(cell, "", agent_id="client-1", stream=stream, may_be_client=True) == "OK"
    await cell.register("a1")
    assert await check(cell, "", agent_id="a1", stream=stream, may_be_client=True) == "INVALID"
    await change(cell, "enrol", "d2", agent_id="a2")
    assert await check(cell, "", agent_id="a2", stream=stream, may_be_client=True) == "MISSING"
    assert await check(cell, "d2", agent_id="a2", stream=stream, may_be_client=True) == "OK"
    await change(cell, "revoke", agent_id="a2")
    assert await check(cell, "", agent_id="a2", stream=stream, may_be_client=True) == "INVALID"


async def test_no_answer_names_a_token(cell: Cell) -> None:
    """Neither a digest of the agent nor the one that was sent is in an answer or an event."""
    await change(cell, "enrol", "d-of-a1")
    await check(cell, "d-of-another")
    told = [str(entry) for name in ("replies:c1", "replies:op", "log:control") for entry in await cell.stream(name)]
    assert told
    assert not [line for line in told if "d-of" in line]


@pytest.mark.guarantee("token-checks-fail-closed")
async def test_a_digest_of_another_type_refuses_its_fact(cell: Cell) -> None:
    """A key that is no hash is an error of that fact, not of its batch, and passes nothing."""
    cell.broken = True
    await change(cell, "enrol", "d2", agent_id="a2")
    await cell.redis.set(cell.keys.token("a1"), "x")
    facts = [
        SpokenFact(await cell.append("in:registry"), "in:registry", "", agent, digest, False)
        for agent, digest in (("a1", "d1"), ("a2", "d2"))
    ]
    words = await cell.run(cell.scripts.check_tokens("registry", facts))
    assert [word.split(" ")[0] for word in words] == ["ERROR", "OK"]
    await cell.redis.delete(cell.keys.token("a1"))
