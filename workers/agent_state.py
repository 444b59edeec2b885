"""One agent in the view: its row, what is planned for it, and how old its report is."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

from coord.models.agents import FleetAgent
from coord.models.ids import EntryOrder
from coord.placement import facets_of
from workers.candidates import Candidates

#: Intervals without a report after which an agent counts as saturated, and the seconds between the reports of an agent
#: that declares no interval.
MISSED_REPORTS = 3
REPORT_INTERVAL_S = 100.0
#: A load that a distributor has shared, and the entry of ``log:loads`` that has it.
SharedLoad = tuple[int, EntryOrder]
#: Seconds that a report may take to come here: reports are shown once a second.
REPORT_DELAY_S = 2.0


class Withheld(NamedTuple):
    """An agent whose room is not used yet, since the beginning of this window."""

    state: AgentState
    window: int


class AgentState:
    """One agent in the view."""

    __slots__ = (
        "agent",
        "facets",
        "freed",
        "groups",
        "has_room",
        "load_order",
        "peak",
        "planned",
        "report_ends_at",
        "reported_at",
        "reported_load",
        "window",
        "withheld",
    )

    def __init__(self, agent: FleetAgent) -> None:
        self.facets = facets_of(agent)
        self.planned = 0
        self.has_room = False
        self.reported_at = -math.inf  #: seconds of a steady clock
        self.load_order: EntryOrder = (0, 0)  #: of the entry of ``log:loads`` with its load, if it was shared
        #: Its newest load and the entry that has it, if the room in it is for another distributor for a moment.
        self.withheld: SharedLoad | None = None
        self.peak = 0  #: the highest load since then
        self.window = 0  #: number of the times at which a room began to be withheld
        self.groups: dict[Candidates, None] = {}  #: groups whose ``needs`` it has
        self.take_over(agent)

    def take_over(self, agent: FleetAgent, began: float = math.inf) -> None:
        """Take over the agent's row; planned tasks stay planned.

        Args:
            agent: the row.
            began: when the row was requested. A load that was reported since then stays: the row's may be older.
        """
        self.agent = agent
        now = time.monotonic()
        if self.reported_at <= began and self.withheld is None:
            self.reported_load, self.reported_at = agent.load, now
        self.freed = 0  #: slots that round trips under way free
        self.expect_report(now - agent.report_age)

    def apply_load(self, load: int, at: float) -> None:
        """Apply a load that was not shared.

        Args:
            load: tasks in flight.
            at: the time, in seconds of a steady clock.
        """
        self.reported_load, self.reported_at, self.withheld = load, at, None

    def apply_shared(self, shared: SharedLoad, at: float, freed: int) -> bool:
        """Apply a load that was shared, unless a later one is known.

        A load that has risen is applied at once, and so is the room that this distributor made. Room that others made
        is withheld.

        Args:
            shared: the load and its entry.
            at: the time, in seconds of a steady clock.
            freed: slots that the script of this distributor freed.

        Returns:
            True if room begins to be withheld.
        """
        load, order = shared
        known = self.load_order if self.withheld is None else self.withheld[1]
        own = self.reported_load - freed
        if order <= known:
            if self.withheld is not None:
                self.reported_load = max(own, self.withheld[0])
            return False
        self.reported_at = at
        if load >= own:
            self.reported_load, self.load_order = shared
            self.withheld = None
            return False
        self.reported_load = own
        if self.withheld is None:
            self._withhold(shared)
            return True
        self.withheld, self.peak = shared, max(self.peak, load)
        return False

    def end_window(self) -> bool:
        """Use the room that was there all the time; return True if what came later is withheld for another delay."""
        if self.withheld is None:
            return False
        self.reported_load = min(self.reported_load, self.peak)
        load, order = self.withheld
        if self.reported_load > load:
            self._withhold(self.withheld)
            return True
        self.load_order, self.withheld = order, None
        return False

    def _withhold(self, shared: SharedLoad) -> None:
        """Begin to withhold room: the load is known, and not used until the delay is over."""
        self.withheld, self.peak = shared, shared[0]
        self.window += 1

    def expect_report(self, reported_at: float) -> None:
        """Set when the report of that time counts as old, unless another one comes."""
        interval = REPORT_INTERVAL_S if self.agent.report_interval is None else self.agent.report_interval
        self.report_ends_at = reported_at + MISSED_REPORTS * interval + REPORT_DELAY_S
