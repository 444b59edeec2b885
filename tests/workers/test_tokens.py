"""What workers do before they handle the facts of agents, in a cell that requires tokens and in one that does not."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from redis.exceptions import NoScriptError, RedisError

from coord.agent_token import digest_of_token, new_token
from coord.config import Settings
from coord.models.agents import AgentType
from coord.models.facts import AgentEnrolled, AgentHeartbeat, AgentRegistered, MessageSent
from coord.streams import Append, append
from tests.running import RunningCell
from tests.waiting import wait_until
from tests.workers.raw import Caller
from workers.transitions import Call, Scripts


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The scripts of each round trip of workers."""
    made: list[list[str]] = []
    run = Scripts.run

    async def noted(scripts: Scripts, *calls: Call[Any]) -> list[Any]:
        made.append([call.script for call in calls])
        return await run(scripts, *calls)

    monkeypatch.setattr(Scripts, "run", noted)
    return made


async def beat_and_send(cell: RunningCell, caller: Caller) -> None:
    """One heartbeat and one message of an agent with its token."""
    token = new_token()
    await caller.tell("in:control:registry", AgentEnrolled("a1", digest_of_token(token)))
    await wait_until(lambda: cell.redis.exists(cell.keys.token("a1")), "it is enrolled")
    facts = [
        ("in:registry", AgentRegistered("a1", AgentType.WORKER)),
        ("in:beats", AgentHeartbeat("a1")),
        ("in:messages:low", MessageSent("m1", "a1", "a1")),
    ]
    await append(cell.redis, cell.keys, [Append(stream, fact, token=token) for stream, fact in facts[:1]])
    await wait_until(lambda: cell.redis.exists(cell.keys.agent("a1")), "it is registered")
    await append(cell.redis, cell.keys, [Append(stream, fact, token=token) for stream, fact in facts[1:]])
    await wait_until(lambda: cell.redis.hexists(cell.keys.agent("a1"), "beat_id"), "its heartbeat is recorded")
    await wait_until(lambda: cell.redis.exists(cell.keys.message("m1")), "its message is delivered")


async def test_without_the_setting_nothing_is_checked(cell: RunningCell, caller: Caller, sent: list[list[str]]) -> None:
    """Heartbeats and messages cost no call and no round trip more, and a token in them is ignored."""
    await beat_and_send(cell, caller)
    assert not [scripts for scripts in sent if "check_tokens" in scripts]
    assert ["heartbeat"] in sent
    assert ["deliver"] in sent


class TestRequired:
    """In a cell that requires tokens."""

    @pytest.fixture
    def settings(self, namespace: str) -> Settings:
        """Short waits."""
        short = Settings(namespace=namespace, read_block_ms=100, reclaim_idle_ms=400, answer_timeout_s=5.0)
        return replace(short, require_tokens=True)

    async def test_the_check_is_a_round_trip_before(
        self, cell: RunningCell, caller: Caller, sent: list[list[str]]
    ) -> None:
        """One for a batch, and only if it has a fact that needs a token."""
        await beat_and_send(cell, caller)
        checks = [place for place, scripts in enumerate(sent) if "check_tokens" in scripts]
        assert all(sent[place] == ["check_tokens"] for place in checks)
        assert len(checks) == 3
        assert ["change_token"] in sent

    @pytest.mark.guarantee("token-checks-fail-closed")
    async def test_nothing_is_handled_if_the_check_fails(
        self, cell: RunningCell, caller: Caller, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The server has lost the script: the fact waits for it, and the scripts after it are not called."""
        lost = [True, True]
        run = Scripts.run
        failed: list[str] = []

        async def run_or_lose(scripts: Scripts, *calls: Call[Any]) -> list[Any]:
            if lost and any(call.script == "check_tokens" for call in calls):
                lost.pop()
                failed.extend(call.script for call in calls)
                error: RedisError = NoScriptError("No matching script. Please use EVAL.")
                raise error
            return await run(scripts, *calls)

        monkeypatch.setattr(Scripts, "run", run_or_lose)
        told = await caller.tell("in:registry", AgentRegistered("a1", AgentType.WORKER))
        assert (await caller.answer(told))["code"] == "token_invalid"
        assert failed == ["check_tokens", "check_tokens"]
        assert not await cell.redis.exists(cell.keys.agent("a1"))
