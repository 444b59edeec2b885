"""The filter of a listener to events, and an index that finds the filters which an event passes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from coord.errors import IdInvalid
from coord.gateway.errors import Problem, RequestError
from coord.models.events import Event
from coord.models.ids import check_id
from coord.suggestions import not_one_of

#: First part of the type of every event, as CloudEvents ask for.
DOMAIN = "coord."
#: The first words of the types of events.
FAMILIES = (
    "agent", "dead", "entry", "lane", "link", "master", "memory", "message", "request", "setting", "task", "token",
)  # fmt: skip
#: Values of one filter at most.
MOST_VALUES = 100
#: The fields that name an agent.
AGENT_FIELDS = ("agent_id", "sender_id", "receiver_id", "peer_id", "master_id")


class EventFilter(NamedTuple):
    """What a listener wants: an event has to pass each part; an empty part lets everything pass."""

    types: tuple[str, ...] = ()  #: without ``coord.``: a type, or its first words
    agents: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()

    @classmethod
    def parse(cls, types: Iterable[str], agents: Iterable[str], tasks: Iterable[str], at: str) -> EventFilter:
        """Return the filter that a caller asked for; each value may hold several, with commas between.

        Args:
            types: ``coord.task.completed``, ``task.completed``, or first words: ``task``, ``task.``, ``task.*``.
            agents: ids.
            tasks: ids.
            at: where the values came from, ``query`` or ``frame``.

        Raises:
            RequestError: a value does not exist, or there are too many.
        """
        return cls(
            _parts("type", (_type(value, at) for value in _split(types)), at),
            _parts("agent", (_id(value, "agent", at) for value in _split(agents)), at),
            _parts("task", (_id(value, "task", at) for value in _split(tasks)), at),
        )

    def passes(self, event: Event) -> bool:
        """Return True for an event that the listener wants."""
        return (
            (not self.types or self.has_type(event.type))
            and (not self.tasks or event.fields.get("task_id") in self.tasks)
            and (not self.agents or not agents_of(event).isdisjoint(self.agents))
        )

    def has_type(self, kind: str) -> bool:
        """Return True if the types include this one."""
        return any(kind == one or (kind.startswith(one) and kind[len(one)] == ".") for one in self.types)


class FilterIndex:
    """Finds the filters that an event passes; how many filters name tasks or agents hardly affects the cost."""

    def __init__(self) -> None:
        self._open: set[EventFilter] = set()  # that name neither
        self._of_type: dict[str, list[EventFilter]] = {}  # type -> those of ``_open`` that it passes
        self._by_task: dict[str, set[EventFilter]] = {}
        self._by_agent: dict[str, set[EventFilter]] = {}

    def add(self, wanted: EventFilter) -> None:
        """Add a filter."""
        index, values = self._place(wanted)
        if index is None:
            self._open.add(wanted)
            self._of_type.clear()
            return
        for value in values:
            index.setdefault(value, set()).add(wanted)

    def remove(self, wanted: EventFilter) -> None:
        """Remove a filter."""
        index, values = self._place(wanted)
        if index is None:
            self._open.discard(wanted)
            self._of_type.clear()
            return
        for value in values:
            found = index[value]
            found.discard(wanted)
            if not found:
                del index[value]

    def find(self, event: Event) -> list[EventFilter]:
        """Return the filters that an event passes."""
        found = self._of_type.get(event.type)
        if found is None:
            found = [one for one in self._open if not one.types or one.has_type(event.type)]
            if len(self._of_type) < MOST_VALUES:  # a log may hold any type
                self._of_type[event.type] = found
        if self._by_task or self._by_agent:
            named = set(self._by_task.get(event.fields.get("task_id", ""), ()))
            if self._by_agent:
                for agent_id in agents_of(event):
                    named |= self._by_agent.get(agent_id, set())
            found = [*found, *(one for one in named if one.passes(event))]
        return found

    def _place(self, wanted: EventFilter) -> tuple[dict[str, set[EventFilter]] | None, tuple[str, ...]]:
        if wanted.tasks:
            return self._by_task, wanted.tasks
        return (self._by_agent, wanted.agents) if wanted.agents else (None, ())


def agents_of(event: Event) -> set[str]:
    """Return the agents that an event is about."""
    return {event.fields[name] for name in AGENT_FIELDS if name in event.fields}


def _split(values: Iterable[str]) -> list[str]:
    return [part.strip() for value in values for part in value.split(",")]


def _parts(name: str, values: Iterable[str], at: str) -> tuple[str, ...]:
    found = tuple(sorted(set(values)))
    if len(found) > MOST_VALUES:
        raise _invalid(name, f"{len(found)} values; at most {MOST_VALUES} are allowed: leave the filter out", at)
    return found


def _type(value: str, at: str) -> str:
    prefix = value.removeprefix(DOMAIN).removesuffix("*").removesuffix(".")
    family = prefix.partition(".")[0]
    if family not in FAMILIES:
        raise _invalid("type", not_one_of("first word of a type of events", family, FAMILIES), at)
    return prefix


def _id(value: str, name: str, at: str) -> str:
    try:
        return check_id(value, name)
    except IdInvalid as error:
        raise _invalid(name, str(error), at) from None


def _invalid(name: str, message: str, at: str) -> RequestError:
    return RequestError(f"{at}_invalid", f"{name}: {message}", [Problem([at, name], message, "value_error")])
