"""What a kind of worker is, beside the loop that all of them share."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, Generic, Literal, NamedTuple, Self, TypeVar

from msgspec.structs import replace
from redis.asyncio import Redis

from coord.config import Settings
from coord.connection import connect_worker
from coord.keys import CONSUMES, Keys
from coord.models.facts import DeadPurged, EntryReplayed, Fact, parts_of
from coord.streams import Entry
from workers.transitions import Call, EntryReplay, Purge, Scripts, TaskBatch

F = TypeVar("F")

#: Words with which a script defers an entry: it is not consumed, and is tried again soon.
DEFERS = frozenset({"WAIT", "MORE", "NOT_HELD", "BEHIND"})


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """What every worker holds of its cell. ``redis`` repeats no command by itself."""

    redis: Redis
    keys: Keys
    settings: Settings
    scripts: Scripts
    url: str

    @classmethod
    def open(cls, url: str, settings: Settings, *, name: str | None = None) -> WorkerContext:
        """Return the context of a cell on the server at ``url``; it connects on first use.

        Args:
            url: of the Redis server.
            settings: of the worker; the namespace is the cell.
            name: of the connections, as ``CLIENT LIST`` shows it.
        """
        redis = connect_worker(url, settings, name=name)
        keys = Keys(settings.namespace)
        return cls(redis, keys, settings, Scripts(redis, keys, settings), url)


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
    """Something done periodically."""

    every_s: float
    act: Callable[[], Awaitable[None]]


class Service(ABC):
    """One kind of worker: what it does with a batch of facts, and what it does periodically."""

    kind: ClassVar[str]
    #: The facts that ``check`` checks.
    checked: ClassVar[frozenset[type[Fact]]] = frozenset()
    #: Batches in flight at once. More than one only where the order of batches does not matter.
    depth: ClassVar[int] = 1

    def __init__(self, cell: WorkerContext) -> None:
        self.cell = cell
        #: Entries by (stream, id) that are read, not consumed, and tried again soon.
        self.deferred: dict[tuple[str, str], ReceivedFact[Any]] = {}
        #: Set by the loop. What runs beside the loop calls it after an error; then the loop recovers.
        self.request_recovery: Callable[[], None] = lambda: None
        #: Set by the loop: the name of the worker.
        self.name = ""

    @abstractmethod
    async def handle(self, batch: list[ReceivedFact[Any]]) -> list[Failure]:
        """Handle a batch in one round trip; return what of it failed.

        Raises:
            redis.exceptions.RedisError: the round trip failed.
        """

    @abstractmethod
    def ticks(self) -> dict[str, Tick]:
        """Return what is done periodically, by name."""

    async def handle_in_order(
        self,
        batch: list[ReceivedFact[Any]],
        handlers: Mapping[type[Fact], Callable[[Self, list[ReceivedFact[Any]]], Call[list[str]]]],
    ) -> list[Failure]:
        """Handle a batch in the order of its entries: one call for each run of facts with one handler.

        Args:
            batch: the facts, in their order.
            handlers: fact -> the method that makes the call for it.
        """
        calls: list[Call[list[str]]] = []
        runs: list[list[ReceivedFact[Any]]] = []
        for handler, group in groupby(batch, key=lambda received: handlers[type(received.fact)]):
            run = list(group)
            calls.append(handler(self, run))
            runs.append(run)
        failures: list[Failure] = []
        for run, words in zip(runs, await self.cell.scripts.run(*calls), strict=True):
            self.defer(run, words)
            failures += failures_of(run, words)
        return failures

    def defer(self, batch: list[ReceivedFact[Any]], words: list[str]) -> None:
        """Remember the entries that their script deferred (WAIT, MORE), and forget those that are done."""
        if not self.deferred and DEFERS.isdisjoint(words):
            return
        for received, word in zip(batch, words, strict=True):
            key = (received.entry.stream, received.entry.id)
            if word in DEFERS:
                self.deferred[key] = received
            else:
                self.deferred.pop(key, None)

    async def retry_deferred(self) -> None:
        """Handle the deferred entries again."""
        if self.deferred:
            await self.handle(list(self.deferred.values()))

    def requeue(self, batch: list[ReceivedFact[EntryReplayed]]) -> Call[list[str]]:
        """``requeue`` for a batch of ``EntryReplayed``."""
        replays = [EntryReplay(entry.id, caller, fact.entry_id) for entry, fact, caller in batch]
        return self.cell.scripts.requeue(self.kind, replays)

    def purge_dead(
        self, of: Literal["tasks", "messages", "entries"], batch: Sequence[ReceivedFact[Any]]
    ) -> Call[list[str]]:
        """``purge`` of dead letters of a kind, for a batch of ``DeadPurged`` or ``EntriesPurged``."""
        purges: list[Purge] = []
        for entry, fact, caller in batch:
            dead_id = fact.dead_id if isinstance(fact, DeadPurged) else fact.entry_id
            age_ms = None if fact.older_than is None else int(fact.older_than * 1000)
            purges.append(Purge(entry.id, caller, dead_id or "", age_ms))
        return self.cell.scripts.purge(self.kind, of, purges)

    def heartbeat_fields(self) -> dict[str, str]:
        """Return what the heartbeat of this kind of worker has besides the fields that every worker has."""
        return {}

    def know_siblings(self, names: Collection[str]) -> None:  # noqa: B027 (most work alike with or without them)
        """Take over the names of the other workers of this kind that are alive; called after each heartbeat."""

    def check(self, fact: Fact) -> None:  # noqa: B027 (most know no more than the type does)
        """Check a fact that fits its type, where this worker knows more.

        Raises:
            FactInvalid: names the field that does not fit.
        """

    def streams(self) -> Collection[str]:
        """Return the streams that this worker reads from the next recovery on."""
        return CONSUMES[self.kind]

    def owned_streams(self) -> Collection[str]:
        """Return those of ``streams`` that no other worker reads: entries that others have read before belong to it."""
        return ()

    async def resync(self) -> None:  # noqa: B027 (most have nothing to forget)
        """Forget what may be out of date: at start, and after every error."""

    async def start(self) -> None:  # noqa: B027 (most run nothing beside the loop)
        """Start what runs beside the loop."""

    async def stop(self) -> None:  # noqa: B027 (the same)
        """Stop what ``start`` started."""


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


def ticks_of(service: Service, every_s: Mapping[str, float]) -> dict[str, Tick]:
    """Return the ticks of a table: method of the service -> seconds between two calls."""
    return {name: Tick(seconds, getattr(service, name)) for name, seconds in every_s.items()}


def failures_of(batch: list[ReceivedFact[Any]], words: list[str]) -> list[Failure]:
    """Return the entries of a batch that their script could not handle."""
    return [
        Failure(received.entry, word.removeprefix("ERROR "))
        for received, word in zip(batch, words, strict=True)
        if word.startswith("ERROR ")
    ]


def word_for_each(batch: Sequence[ReceivedFact[Any]], call: Call[TaskBatch]) -> Call[TaskBatch]:
    """Return a call that answers a word for each entry, made of one that answers a word for each fact in an entry."""
    counts = [len(parts_of(received.fact)) for received in batch]
    if max(counts) == 1:
        return call

    def parse(raw: Any) -> TaskBatch:
        answer = call.parse(raw)
        return replace(answer, words=fold_words(counts, answer.words))

    return Call(call.script, call.limits, call.args, parse)


def fold_words(counts: Sequence[int], words: Sequence[str]) -> list[str]:
    """Return one word for each entry: the first that failed, else the last.

    Args:
        counts: facts in each entry.
        words: one for each fact.
    """
    rest = iter(words)
    of_entries = [[next(rest) for _ in range(count)] for count in counts]
    return [next((word for word in of_entry if word.startswith("ERROR")), of_entry[-1]) for of_entry in of_entries]
