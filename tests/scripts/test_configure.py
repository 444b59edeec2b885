"""``configure``: what distributors obey while they run."""

from __future__ import annotations

import pytest

from coord import queries
from tests.scripts.cell import Cell
from workers.transitions import SettingChange


async def configure(cell: Cell, **values: str | None) -> list[str]:
    """Set settings, or give them back; the words."""
    changes = [
        SettingChange(await cell.append("in:control:distributor", "setting.set"), "op", name, value)
        for name, value in values.items()
    ]
    words: list[str] = await cell.run(cell.scripts.configure(changes))
    return words


@pytest.mark.on_fakeredis
async def test_a_setting_is_set_and_given_back(cell: Cell) -> None:
    """The latest of a batch counts; nothing is left of one that was given back; observers see each change."""
    assert await configure(cell, strategy="random", health_threshold="0.7") == ["OK", "OK"]
    assert await queries.get_live_values(cell.redis, cell.keys) == {"strategy": "random", "health_threshold": "0.7"}
    assert await configure(cell, strategy="round_robin") == ["OK"]
    assert await configure(cell, health_threshold=None) == ["OK"]
    assert await queries.get_live_values(cell.redis, cell.keys) == {"strategy": "round_robin"}
    assert await cell.logged("control") == ["setting.changed"] * 4
    assert [one for _, one in await cell.answers("op")] == ["ok"] * 4
    assert await cell.is_consumed("in:control:distributor")


async def test_a_broken_key_keeps_the_request(cell: Cell) -> None:
    """⚠ What could not be done is not answered ok, and stays pending."""
    await cell.redis.set(cell.keys.of("settings"), "x")
    (word,) = await configure(cell, strategy="random")
    assert word.startswith("ERROR ")
    assert len(await cell.left("in:control:distributor")) == 1
    assert await cell.answers("op") == []
    await cell.redis.delete(cell.keys.of("settings"))
