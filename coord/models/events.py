"""What happened: an entry of one of the logs."""

from __future__ import annotations

from msgspec import Struct

from coord.models.ids import entry_ms

#: The logs, as in ``log:agents``; events of one ms are told in this order.
LOGS = ("control", "agents", "tasks", "progress", "messages")

#: Told in place of entries that were trimmed away before they were read; ``missed`` says how many, where it is known.
#: An entry may tell of a batch of tasks.
TRIMMED = "log.trimmed"
#: Told when a log begins anew, because Redis was emptied or lost its last moments.
RESET = "log.reset"


class Event(Struct, frozen=True):
    """One thing that happened, or ``TRIMMED`` or ``RESET``."""

    log: str  #: one of ``LOGS``
    id: str  #: of the entry: the ms since 1970 at which it happened, and a number among those of that ms
    type: str  #: dotted: task.completed
    fields: dict[str, str]  #: what else is told of it: task_id, agent_id …

    @property
    def at(self) -> int:
        """When it happened: ms since 1970 on the server's clock."""
        return entry_ms(self.id)
