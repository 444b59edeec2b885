"""The router: delivers messages to the inboxes of agents.

One batch in flight at a time and one router for each lane keep a sender's messages to a receiver in their order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from coord import codec
from coord.models.facts import DeadPurged, EntryReplayed, Fact, MessageReplayed, MessageSent
from workers.service import Failure, ReceivedFact, Service, Tick, ticks_of
from workers.transitions import Call, Delivery, Redelivery


class Router(Service):
    """Turns messages into inbox entries."""

    kind: ClassVar[str] = "router"

    async def handle(self, batch: list[ReceivedFact[Any]]) -> list[Failure]:
        """Handle a batch in the order of its entries, in one round trip."""
        return await self.handle_in_order(batch, HANDLERS)

    def deliver(self, batch: list[ReceivedFact[MessageSent]]) -> Call[list[str]]:
        """``deliver`` for a batch of ``MessageSent``."""
        return self.cell.scripts.deliver([self._delivery(received) for received in batch])

    def redeliver(self, batch: list[ReceivedFact[MessageReplayed]]) -> Call[list[str]]:
        """``redeliver`` for a batch of ``MessageReplayed``."""
        redeliveries: list[Redelivery] = []
        for entry, fact, caller in batch:
            redeliveries.append(Redelivery(entry.id, caller, fact.message_id, self._ttl_ms(fact)))
        return self.cell.scripts.redeliver(redeliveries)

    def purge(self, batch: list[ReceivedFact[DeadPurged]]) -> Call[list[str]]:
        """``purge`` for a batch of ``DeadPurged``."""
        return self.purge_dead("messages", batch)

    async def forget_dead(self) -> None:
        """Forget dead letters that are too old or too many, also while no message comes."""
        await self.cell.scripts.run(self.cell.scripts.deliver([]))

    def ticks(self) -> dict[str, Tick]:
        """Return what is done periodically, by name."""
        return ticks_of(self, TICKS)

    def _delivery(self, received: ReceivedFact[MessageSent]) -> Delivery:
        entry, fact, caller = received
        return Delivery(
            entry=entry.id,
            lane=entry.stream.rpartition(":")[2],
            caller=caller,
            message_id=fact.message_id,
            digest=codec.digest_of(fact),
            sender_id=fact.sender_id,
            receiver_id=fact.receiver_id,
            message_type=fact.message_type,
            ttl_ms=self._ttl_ms(fact),
            payload=bytes(fact.payload),
            correlation_id=fact.correlation_id or "",
            reply_to=fact.reply_to or "",
        )

    def _ttl_ms(self, fact: MessageSent | MessageReplayed) -> int:
        ttl_s = self.cell.settings.message_ttl_s if fact.ttl is None else fact.ttl
        return int(ttl_s * 1000)


HANDLERS: dict[type[Fact], Callable[[Router, list[ReceivedFact[Any]]], Call[list[str]]]] = {
    MessageSent: Router.deliver,
    MessageReplayed: Router.redeliver,
    EntryReplayed: Router.requeue,
    DeadPurged: Router.purge,
}

#: What is done periodically: seconds between two calls.
TICKS = {"forget_dead": 60.0}
