"""The loads that the distributors of a cell share, so that each plans on what all of them do.

While several distributors are present, every script that changes loads appends them to ``log:loads``: the agents and
their loads after it. The ids of the entries order the changes of all distributors. The answer of a script has the id of
its entry, so an answer and the entries of others are ordered as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from coord import logs
from coord.models.ids import EntryOrder
from workers.view import SharedLoad, View

log = logs.get_logger()


class LoadsEntry(NamedTuple):
    """An entry of ``log:loads``."""

    order: EntryOrder
    by: str  #: the process that changed the loads
    loads: bytes  #: agent and load in turn, with spaces between


class SharedLoads:
    """Applies what other distributors share to the view.

    An agent that has room again is first used by the distributor that knows it first: it has just settled a task of
    that agent, and places the next one within a moment. If the others planned for the same slot, most plans would be
    refused. So they take it over later, if it is still free then.

    Args:
        view: of the agents.
        own_id: of this process; what it wrote is skipped.
        later: calls a function after the delay.
    """

    def __init__(self, view: View, own_id: str, later: Callable[[Callable[[], None]], object]) -> None:
        self.view = view
        self.own_id = own_id
        self._later = later

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
        if left := self.view.apply_shared_loads(found, with_room=False):
            self._later(lambda: self._open(left))
        return has_others

    def _open(self, left: dict[str, SharedLoad]) -> None:
        self.view.apply_shared_loads(left, with_room=True)
