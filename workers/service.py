"""What a kind of worker is, beside the loop that they all share."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from msgspec.structs import replace

from coord.models.facts import Fact, parts_of
from coord.streams import Entry
from workers.cell import WorkerContext
from workers.transitions import Call, TaskBatch

F = TypeVar("F")

#: The words of scripts that put an entry off.
PUT_OFF = frozenset({"WAIT", "MORE"})


class ReceivedFact(NamedTuple, Generic[F]):
    """A fact with the entry that carries it."""

    entry: Entry
    fact: F
    caller: str


class Failure(NamedTuple):
    """An entry that a script could not handle, and why."""

    entry: Entry
    why: str


class Tick(NamedTuple):
    """Something done again and again."""

    every_s: float
    act: Callable[[], Awaitable[None]]


class Service(ABC):
    """One kind of worker: what it does with a batch of facts, and what by the clock."""

    kind: ClassVar[str]
    #: The facts that ``check`` looks at.
    checked: ClassVar[frozenset[type[Fact]]] = frozenset()
    #: Batches in flight at once. More than one only where the order of batches does not matter.
    depth: ClassVar[int] = 1

    def __init__(self, cell: WorkerContext) -> None:
        self.cell = cell
        #: Entries by (stream, id) that are read, not consumed, and remembered here to be tried again soon.
        self.held: dict[tuple[str, str], ReceivedFact[Any]] = {}
        #: Set by the loop: what runs beside it tells it of an error by calling this, and it re-reads what is its own.
        self.request_recovery: Callable[[], None] = lambda: None

    @abstractmethod
    async def handle(self, batch: list[ReceivedFact[Any]]) -> list[Failure]:
        """Handle a batch in one round trip; what of it failed. Raises RedisError when the round trip did."""

    @abstractmethod
    def ticks(self) -> dict[str, Tick]:
        """What is done by the clock, by name."""

    def hold(self, batch: list[ReceivedFact[Any]], words: list[str]) -> None:
        """Remember what its script put off (WAIT, MORE), and forget what it has done."""
        if not self.held and PUT_OFF.isdisjoint(words):
            return
        for received, word in zip(batch, words, strict=True):
            key = (received.entry.stream, received.entry.id)
            if word in PUT_OFF:
                self.held[key] = received
            else:
                self.held.pop(key, None)

    async def try_held(self) -> None:
        """Try again what was put off."""
        if self.held:
            await self.handle(list(self.held.values()))

    def heartbeat_fields(self) -> dict[str, str]:
        """What this worker tells of itself in its presence, beside what each does."""
        return {}

    def check(self, fact: Fact) -> None:  # noqa: B027 (most know no more than the type does)
        """Look at a fact that fits its type, where this worker knows more; raises ``FactInvalid`` naming the field."""

    async def resync(self) -> None:  # noqa: B027 (most have nothing to forget)
        """Forget what may be out of date: at start, and after every error."""

    async def start(self) -> None:  # noqa: B027 (most run nothing beside)
        """Begin what runs beside the loop."""

    async def stop(self) -> None:  # noqa: B027 (the same)
        """End what ``start`` began."""


async def end_tasks(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until they have ended.

    A cancel may get lost, so it is repeated: ``asyncio.wait_for`` of Python 3.11, through which redis-py sends,
    swallows one that comes in the moment in which it is done.
    """
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=0.05)
    await asyncio.gather(*tasks, return_exceptions=True)


def failures_of(batch: list[ReceivedFact[Any]], words: list[str]) -> list[Failure]:
    """The entries of a batch that their script could not handle."""
    return [
        Failure(one.entry, word.removeprefix("ERROR "))
        for one, word in zip(batch, words, strict=True)
        if word.startswith("ERROR ")
    ]


def word_for_each(batch: Sequence[ReceivedFact[Any]], call: Call[TaskBatch]) -> Call[TaskBatch]:
    """A call of which each part of a fact is an item, answering a word for each entry."""
    counts = [len(parts_of(one.fact)) for one in batch]
    if max(counts) == 1:
        return call

    def parse(raw: Any) -> TaskBatch:
        answer = call.parse(raw)
        return replace(answer, words=fold_words(counts, answer.words))

    return Call(call.script, call.args, parse)


def fold_words(counts: Sequence[int], words: Sequence[str]) -> list[str]:
    """The word of each entry that holds so many items: the first that failed, else the last."""
    rest = iter(words)
    of_entries = [[next(rest) for _ in range(count)] for count in counts]
    return [next((word for word in of_entry if word.startswith("ERROR")), of_entry[-1]) for of_entry in of_entries]
