"""``configure``: what distributors obey while they run."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from coord import queries
from coord.config import Settings
from coord.models.tasks import Modifiers, Pool
from tests.scripts.cell import Cell
from workers.transitions import SettingChange
from workers.transitions import scripts as scripts_module


async def configure(cell: Cell, **values: str | None) -> list[str]:
    """Set settings, or give them back; the words."""
    changes = [
        SettingChange(await cell.append("in:control:distributor", "setting.set"), "op", name, None, value)
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


async def test_a_setting_of_a_type_is_kept_beside_the_cells(cell: Cell) -> None:
    """A type may have any name; the log has the change, what was there before, and who made it."""

    async def change(name: str, task_type: str | None, value: str | None, by: str | None = None) -> list[str]:
        entry = await cell.append("in:control:distributor", "setting.set")
        words: list[str] = await cell.run(
            cell.scripts.configure([SettingChange(entry, "op", name, task_type, value, by)])
        )
        return words

    assert await change("strategy", None, "random") == ["OK"]
    assert await change("strategy", "a: b", "predictive", "ann@host") == ["OK"]
    assert await change("strategy", "a: b", "prequal") == ["OK"]
    assert await change("ejection", "t", "off") == ["OK"]
    assert await change("ejection", "t", "off", "again") == ["OK"], "this is no change, and not in the log"
    live = await queries.get_live_values(cell.redis, cell.keys)
    assert live["strategy"] == "random"
    assert queries.type_values(live) == {"a: b": {"strategy": "prequal"}, "t": {"ejection": "off"}}
    assert await change("strategy", "a: b", None) == ["OK"]
    latest, *_, second, first = await queries.list_setting_changes(cell.redis, cell.keys, 10)
    assert (latest.name, latest.task_type, latest.value, latest.before) == ("strategy", "a: b", None, "prequal")
    assert (latest.by, latest.caller) == ("client op", "op")
    assert (second.by, second.value, second.before) == ("ann@host", "predictive", None)
    assert (first.task_type, first.value) == (None, "random")
    assert first.at <= second.at <= latest.at
    assert len(await queries.list_setting_changes(cell.redis, cell.keys, 2)) == 2
    assert len(await queries.list_setting_changes(cell.redis, cell.keys, 10)) == 5


async def test_the_number_of_values_is_limited(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """⚠ A new one is refused with what to do; those that are there can be changed and reset."""
    monkeypatch.setattr(scripts_module, "LIVE_SETTINGS", 2)
    assert await configure(cell, strategy="random", health_threshold="0.7", ejection="off") == ["OK", "OK", "FULL"]
    assert await configure(cell, strategy="prequal", health_threshold=None) == ["OK", "OK"]
    assert await configure(cell, ejection="off") == ["OK"]
    answers = [one async for one in refusals(cell)]
    assert answers == ["2 values of settings are kept at most; reset some first: coord strategy show lists them"]
    assert await cell.is_consumed("in:control:distributor")


async def refusals(cell: Cell) -> AsyncIterator[str]:
    """The messages of the answers that refuse something."""
    for _, fields in await cell.redis.xrange(cell.keys.replies("op")):
        if fields[b"ok"] == b"0":
            assert fields[b"code"] == b"config_invalid"
            yield fields[b"message"].decode()


async def test_a_broken_key_keeps_the_request(cell: Cell) -> None:
    """⚠ What could not be done is not answered ok, and stays pending."""
    await cell.redis.set(cell.keys.of("settings"), "x")
    (word,) = await configure(cell, strategy="random")
    assert word.startswith("ERROR ")
    assert len(await cell.left("in:control:distributor")) == 1
    assert await cell.answers("op") == []
    await cell.redis.delete(cell.keys.of("settings"))


async def test_readers_know_where_ejection_is_off(cell: Cell) -> None:
    """The task's own modifier, then its type's, then the cell's, then the environment's."""

    async def ejects(pool: Pool, *, ejection: bool = True) -> bool:
        return (await queries.get_modifier_rule(cell.redis, cell.keys, Settings(ejection=ejection), "ejection"))(pool)

    assert await ejects(Pool("t"))
    assert not await ejects(Pool("t"), ejection=False)
    await cell.redis.hset(cell.keys.of("settings"), mapping={"ejection": "on", "ejection:t": "off"})
    assert await ejects(Pool("u"), ejection=False)
    assert not await ejects(Pool("t"))
    assert await ejects(Pool("t", modifiers=Modifiers(ejection=True)))
    assert not await ejects(Pool("u", modifiers=Modifiers(ejection=False)))
