"""The router: who receives this message.

One batch in flight at a time and one router for each lane keep a sender's messages to a receiver in their order.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any, ClassVar

from coord import codec
from coord.models.control import DeadPurged, EntryReplayed, MessageReplayed
from coord.models.facts import Fact, MessageSent
from workers import control
from workers.service import Failure, ReceivedFact, Service, Tick, failures_of
from workers.transitions import Call, Delivery


class Router(Service):
    """Turns messages into inbox entries."""

    kind: ClassVar[str] = "router"

    async def handle(self, batch: list[ReceivedFact[Any]]) -> list[Failure]:
        """One call for each run of facts of a kind, all in one round trip and in their order."""
        calls: list[Call[list[str]]] = []
        batches: list[list[ReceivedFact[Any]]] = []
        for kind, run in groupby(batch, key=lambda one: type(one.fact)):
            received = list(run)
            calls.append(HANDLERS[kind](self, received))
            batches.append(received)
        failures: list[Failure] = []
        for received, words in zip(batches, await self.cell.scripts.run(*calls), strict=True):
            failures += failures_of(received, words)
        return failures

    def deliver(self, batch: list[ReceivedFact[MessageSent]]) -> Call[list[str]]:
        """``deliver`` for a batch of ``MessageSent``."""
        return self.cell.scripts.deliver([self._delivery(one) for one in batch])

    def redeliver(self, batch: list[ReceivedFact[MessageReplayed]]) -> Call[list[str]]:
        """``redeliver`` for a batch of ``MessageReplayed``."""
        return control.redeliver(self.cell.scripts, batch, self.cell.settings.message_ttl_s)

    def requeue(self, batch: list[ReceivedFact[EntryReplayed]]) -> Call[list[str]]:
        """``requeue`` for a batch of ``EntryReplayed``."""
        return control.requeue(self.cell.scripts, self.kind, batch)

    def purge(self, batch: list[ReceivedFact[DeadPurged]]) -> Call[list[str]]:
        """``purge`` for a batch of ``DeadPurged``."""
        return control.purge(self.cell.scripts, self.kind, "messages", batch)

    def ticks(self) -> dict[str, Tick]:
        """What is done by the clock."""
        return {name: Tick(every, getattr(self, name)) for name, every in TICKS.items()}

    async def forget_dead(self) -> None:
        """Dead letters that are too old or too many are forgotten, also while no message comes."""
        await self.cell.scripts.run(self.cell.scripts.deliver([]))

    def _delivery(self, received: ReceivedFact[MessageSent]) -> Delivery:
        entry, fact, caller = received
        ttl = self.cell.settings.message_ttl_s if fact.ttl is None else fact.ttl
        return Delivery(
            entry=entry.id,
            lane=entry.stream.rpartition(":")[2],
            caller=caller,
            message_id=fact.message_id,
            digest=codec.digest_of(fact),
            sender_id=fact.sender_id,
            receiver_id=fact.receiver_id,
            message_type=fact.message_type,
            ttl_ms=int(ttl * 1000),
            payload=bytes(fact.payload),
            correlation_id=fact.correlation_id or "",
            reply_to=fact.reply_to or "",
        )


HANDLERS: dict[type[Fact], Callable[[Router, list[ReceivedFact[Any]]], Call[list[str]]]] = {
    MessageSent: Router.deliver,
    MessageReplayed: Router.redeliver,
    EntryReplayed: Router.requeue,
    DeadPurged: Router.purge,
}

#: What is done by the clock: seconds between two times.
TICKS = {"forget_dead": 60.0}
