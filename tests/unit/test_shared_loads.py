"""The loads that distributors share: whose count, in what order, and when an agent with room again is used."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random

from coord.models.agents import FleetAgent
from coord.models.ids import EntryOrder
from coord.models.tasks import Pool
from workers.shared_loads import LoadsEntry, SharedLoads
from workers.view import View


class Shared:
    """A view of some agents with two slots each, and what it gets of other distributors. Delays end by hand."""

    def __init__(self, *agent_ids: str, load: int = 0) -> None:
        self.view = View(0.5, "least_connections", Random(1))
        self.view.replace({one: self.row(one, load) for one in agent_ids})
        self.due: list[Callable[[], None]] = []
        self.loads = SharedLoads(self.view, "own", self.due.append)

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

    def end_delays(self) -> None:
        """Let everything happen that was put off."""
        due, self.due = self.due, []
        self.loads._later = self.due.append
        for act in due:
            act()


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
    assert not shared.due
    shared.view.apply_loads({"a": 1}, at(7))
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
    """The one who freed the slot comes first. What only changes the order of agents counts at once."""
    shared = Shared("full", load=2)
    shared.view.update(["some"], {"some": shared.row("some", 1)})
    shared.hear(1, "full 1 some 0")
    assert (shared.load("full"), shared.load("some")) == (2, 0)
    shared.end_delays()
    assert shared.load("full") == 1


def test_room_that_is_gone_again_is_never_used() -> None:
    """The slot was filled within the delay: the view never shows it."""
    shared = Shared("a", load=2)
    shared.hear(1, "a 1")
    shared.hear(2, "a 2")
    shared.end_delays()
    assert shared.load() == 2


def test_an_entry_that_cannot_be_read_is_skipped() -> None:
    """The others of the same read count."""
    shared = Shared("a")
    for wrong in (b"a", b"a x", b"\xff", b"a 1 b"):
        shared.loads.receive([LoadsEntry(at(1), "x", wrong)])
        assert shared.load() == 0
    shared.loads.receive([LoadsEntry(at(1), "x", b"a what"), LoadsEntry(at(2), "x", b"a 1")])
    assert shared.load() == 1
