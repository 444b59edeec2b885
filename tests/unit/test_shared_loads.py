"""The loads that distributors share: whose count, in what order, and when an agent with room again is used."""

from __future__ import annotations

import time
from random import Random

import pytest

from coord.models.agents import FleetAgent
from coord.models.ids import EntryOrder
from coord.models.tasks import Pool
from workers.shared_loads import LoadsEntry, SharedLoads
from workers.view import View


class Shared:
    """A view of some agents with two slots each, and what it gets of other distributors."""

    def __init__(self, *agent_ids: str, load: int = 0) -> None:
        self.view = View(0.5, "least_connections", Random(1))
        self.view.replace({one: self.row(one, load) for one in agent_ids})
        self.loads = SharedLoads(self.view, "own")

    @staticmethod
    def row(agent_id: str, load: int) -> FleetAgent:
        """An agent as its record has it."""
        return FleetAgent(agent_id=agent_id, agent_type="worker", capacity=2, load=load)

    def hear(self, order: int, loads: str, by: str = "other") -> bool:
        """Receive an entry; whether it is another distributor's."""
        return self.loads.receive([LoadsEntry((order, 0), by, loads.encode())])

    def load(self, agent_id: str = "a") -> int:
        """The load of an agent in the view."""
        return self.view.agents[agent_id].agent.load

    def end_delay(self) -> None:
        """Use the room that was withheld."""
        self.view.end_withholding(self.loads.take_withheld())


def at(number: int) -> EntryOrder:
    """The place of an entry."""
    return (number, 0)


def test_what_others_share_is_applied_and_what_is_written_here_is_not() -> None:
    """An entry names many agents; those that the view does not know are skipped. One's own answers say the same."""
    shared = Shared("a", "b")
    assert shared.hear(1, "a 1 b 2 stranger 7")
    assert (shared.load("a"), shared.load("b")) == (1, 2)
    assert not shared.hear(2, "a 2", by="own")
    assert shared.load("a") == 1


def test_the_last_entry_counts_when_several_are_read_at_once() -> None:
    """And agents of the earlier ones are not forgotten."""
    shared = Shared("a", "b")
    shared.loads.receive([LoadsEntry(at(1), "x", b"a 2 b 1"), LoadsEntry(at(2), "y", b"a 1")])
    assert (shared.load("a"), shared.load("b")) == (1, 1)


def test_an_older_load_never_replaces_a_newer_one() -> None:
    """Neither an entry an answer, nor an answer an entry, nor an entry another one; whatever arrives first."""
    shared = Shared("a")
    shared.view.apply_loads({"a": 2}, at(5))
    shared.hear(4, "a 1")
    assert shared.load() == 2
    shared.hear(6, "a 2")
    shared.view.apply_loads({"a": 1}, at(5))
    assert shared.load() == 2
    shared.hear(5, "a 1")
    shared.hear(6, "a 1")
    assert shared.load() == 2
    assert not shared.loads.take_withheld()
    shared.view.apply_loads({"a": 1}, at(7), {"a": 1})
    assert shared.load() == 1


def test_an_answer_without_an_entry_is_applied() -> None:
    """Nobody shares then, so it is the newest."""
    shared = Shared("a")
    shared.hear(9, "a 2")
    shared.view.apply_loads({"a": 1})
    assert shared.load() == 1


def test_what_is_planned_is_answered_even_if_the_load_is_old() -> None:
    """The slot of an answered plan is not counted twice when a later entry was there first."""
    shared = Shared("a")
    group = shared.view.group_of(Pool("t"))
    assert shared.view.take(group) is not None
    shared.hear(8, "a 1")
    assert shared.load() == 2, "the plan and the load that includes it, until the answer is here"
    shared.view.answered({"a": 1}, {"a": 0}, at(7))
    assert shared.load() == 1


def test_a_load_that_was_read_does_not_replace_one_that_came_meanwhile() -> None:
    """The read was answered at an unknown moment. The same for a row."""
    shared = Shared("a")
    before = time.monotonic()
    shared.hear(1, "a 2")
    shared.view.apply_read_loads({"a": 0}, before)
    shared.view.update(["a"], {"a": shared.row("a", 0)}, before)
    assert shared.load() == 2
    after = time.monotonic()
    shared.view.apply_read_loads({"a": 1, "stranger": 1}, after)
    assert shared.load() == 1
    shared.view.update(["a"], {"a": shared.row("a", 0)}, time.monotonic())
    assert shared.load() == 0


def test_room_that_others_make_is_used_later() -> None:
    """The one who freed the slot comes first. A load that has risen counts at once."""
    shared = Shared("full", load=2)
    shared.view.update(["some"], {"some": shared.row("some", 1)})
    shared.hear(1, "full 1 some 2")
    assert (shared.load("full"), shared.load("some")) == (2, 2)
    shared.end_delay()
    assert (shared.load("full"), shared.load("some")) == (1, 2)


def test_room_that_is_gone_again_is_never_used() -> None:
    """The slot was filled within the delay: the view never shows it."""
    shared = Shared("a", load=2)
    shared.hear(1, "a 1")
    shared.hear(2, "a 2")
    shared.end_delay()
    assert shared.load() == 2


def test_of_a_full_agent_only_the_slots_freed_here_are_used_at_once() -> None:
    """Another distributor has freed one as well, and this one's answer shows both: the other slot is the other's."""
    shared = Shared("a", load=2)
    shared.view.apply_loads({"a": 0}, at(3), {"a": 1})
    assert shared.load() == 1
    shared.end_delay()
    assert shared.load() == 0


def test_own_changes_count_while_room_is_withheld() -> None:
    """What was freed and taken here since, also in answers that are older than the load that waits."""
    shared = Shared("a", load=2)
    shared.hear(5, "a 1")
    shared.view.apply_loads({"a": 1}, at(4), {"a": 1})
    assert shared.load() == 1
    shared.view.apply_loads({"a": 2}, at(6), {"a": -1})
    assert shared.load() == 2
    shared.end_delay()
    assert shared.load() == 2


def test_only_room_that_was_there_all_the_time_is_used() -> None:
    """Room that came within the delay is used after another one, and what has gone in between not at all."""
    shared = Shared("a", load=2)
    shared.hear(1, "a 1")
    first = shared.loads.take_withheld()
    shared.hear(2, "a 0")
    assert not shared.loads.take_withheld()
    assert shared.load() == 2
    shared.view.end_withholding(first)
    assert shared.load() == 1
    shared.end_delay()
    assert shared.load() == 0
    assert not shared.loads.take_withheld()


def test_a_delay_that_began_for_earlier_room_ends_nothing() -> None:
    """The room had gone, and came back; nor does one of an agent that is not in the view any more."""
    shared = Shared("a", load=2)
    shared.hear(1, "a 1")
    first = shared.loads.take_withheld()
    shared.hear(2, "a 2")
    shared.hear(3, "a 1")
    shared.view.end_withholding(first)
    assert shared.load() == 2
    second = shared.loads.take_withheld()
    shared.view.update(["a"], {})
    shared.view.end_withholding(second)
    assert shared.view.rooms == 0


def test_an_answer_that_is_not_shared_ends_the_withholding() -> None:
    """The other distributors are gone: the load is the true one, and reads count again."""
    shared = Shared("a", load=2)
    shared.hear(1, "a 1")
    shared.view.apply_loads({"a": 1})
    assert shared.load() == 1
    shared.view.apply_read_loads({"a": 0}, time.monotonic())
    assert shared.load() == 0


def test_the_delay_follows_the_round_trips() -> None:
    """It is never shorter than the first one, and bounded."""
    loads = Shared().loads
    first = loads.room_delay_s
    for _ in range(100):
        loads.took(0.0001)
    assert loads.room_delay_s == pytest.approx(first)
    for _ in range(100):
        loads.took(0.02)
    assert loads.room_delay_s == pytest.approx(0.04, rel=0.01)
    for _ in range(100):
        loads.took(60)
    assert loads.room_delay_s < 1


def test_an_entry_that_cannot_be_read_is_skipped() -> None:
    """The others of the same read count."""
    shared = Shared("a")
    for wrong in (b"a", b"a x", b"\xff", b"a 1 b"):
        shared.loads.receive([LoadsEntry(at(1), "x", wrong)])
        assert shared.load() == 0
    shared.loads.receive([LoadsEntry(at(1), "x", b"a what"), LoadsEntry(at(2), "x", b"a 1")])
    assert shared.load() == 1
