"""Events: the entries of the logs."""

from __future__ import annotations

from msgspec import Struct

from coord.models.ids import entry_ms

#: The logs, as in ``log:agents``. Events of the same ms are returned in this order.
LOGS = ("control", "agents", "tasks", "progress", "messages")

#: Type of the event that replaces entries which were trimmed before they were read; ``missed`` is their number, if it
#: is known. One entry may contain the events of a batch of tasks.
TRIMMED = "log.trimmed"
#: Type of the event that reports that a log was reset: Redis was emptied, or lost its last writes.
RESET = "log.reset"


class Event(Struct, frozen=True):
    """An event of a log; or ``TRIMMED`` or ``RESET``."""

    log: str  #: one of ``LOGS``
    id: str  #: id of the entry
    type: str  #: dotted: task.completed
    fields: dict[str, str]  #: its other fields: task_id, agent_id …

    @property
    def at(self) -> int:
        """The time of the event: ms since 1970 on the server's clock."""
        return entry_ms(self.id)
