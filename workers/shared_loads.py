"""The loads that the distributors of a cell share, so that each plans on what all of them do.

While several distributors are present, every script that changes loads appends them to ``log:loads``: the agents and
their loads after it. The ids of the entries order the changes of all distributors. The answer of a script has the id of
its entry, so an answer and the entries of others are ordered as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from coord import logs
from coord.models.ids import EntryOrder
from workers.agent_state import SharedLoad, Withheld
from workers.view import View

log = logs.get_logger()

#: Seconds, at least and at most, after which room that another distributor has made is used here, if it is still there.
ROOM_S, MOST_ROOM_S = 0.003, 0.5
#: The same in round trips: the other one settles, and then places. A new measurement has this weight.
ROUND_TRIPS, WEIGHT = 2, 0.2


class LoadsEntry(NamedTuple):
    """An entry of ``log:loads``."""

    order: EntryOrder
    by: str  #: the process that changed the loads
    loads: bytes  #: agent and load in turn, with spaces between


class SharedLoads:
    """Applies what other distributors share to the view, and determines when room that they made is used.

    An agent that has room again is first used by the distributor that settled a task of that agent: it places the next
    one within a round trip. If the others planned for the same slot, most plans would be refused. So they use it later,
    if it is still free then. On a busy server round trips take longer, and so does this.

    Args:
        view: of the agents.
        own_id: of this process; what it wrote is skipped.
    """

    def __init__(self, view: View, own_id: str) -> None:
        self.view = view
        self.own_id = own_id
        self.room_delay_s = ROOM_S  #: until room that another distributor has made is used

    def receive(self, entries: Sequence[LoadsEntry]) -> bool:
        """Apply entries in their order; return True if any is another distributor's."""
        found: dict[str, SharedLoad] = {}
        has_others = False
        for entry in entries:
            if entry.by == self.own_id:
                continue
            has_others = True
            words = entry.loads.decode("utf-8", "replace").split()
            try:
                found |= {words[i]: (int(words[i + 1]), entry.order) for i in range(0, len(words), 2)}
            except (ValueError, IndexError):
                log.warning("loads.unreadable", by=entry.by)
        self.view.apply_shared_loads(found)
        return has_others

    def took(self, round_trip_s: float) -> None:
        """Adapt the delay to the time that a round trip with a plan has taken."""
        aim = min(MOST_ROOM_S, max(ROOM_S, ROUND_TRIPS * round_trip_s))
        self.room_delay_s += (aim - self.room_delay_s) * WEIGHT

    def next_delay_s(self) -> float:
        """Return the delay, up to three times as long at random: the distributors do not all use a slot at once."""
        return self.room_delay_s * self.view.random.uniform(1, 3)

    def take_withheld(self) -> list[Withheld]:
        """Return the agents whose room is to be used after the delay: those that became so since the last call."""
        withheld, self.view.withheld = self.view.withheld, []
        return withheld
