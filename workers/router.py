"""The router: delivers messages to the inboxes of agents.

One batch in flight at a time and one router for each lane keep a sender's messages to a receiver in their order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from coord import codec
from coord.models.facts import DeadPurged, EntryReplayed, Fact, MessageReplayed, MessageSent
from coord.models.messages import COORDINATOR
from workers.answers import NO_RESULT, Result, answer_for
from workers.service import Failure, ReceivedFact, Service, Tick, WorkerContext, ticks_of
from workers.transitions import Call, Delivery, Redelivery


class Router(Service):
    """Turns messages into inbox entries."""

    kind: ClassVar[str] = "router"

    def __init__(self, cell: WorkerContext) -> None:
        super().__init__(cell)
        self._results: dict[str, Result] = {}  # of the messages to the coordinator that are handled now, by id

    async def handle(self, batch: list[ReceivedFact[Any]]) -> list[Failure]:
        """Handle a batch in the order of its entries, in one round trip; first find what the coordinator answers."""
        asked = [fact for _, fact, _ in batch if isinstance(fact, MessageSent) and fact.receiver_id == COORDINATOR]
        for fact in asked:
            self._results[fact.message_id] = await answer_for(self.cell, fact)
        try:
            return await self.handle_in_order(batch, HANDLERS)
        finally:
            for fact in asked:
                self._results.pop(fact.message_id, None)

    async def end_requests(self) -> None:
        """End the waits of requests that got no reply in time."""
        await self.cell.scripts.run(self.cell.scripts.end_requests())

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
        result = self._results.get(fact.message_id, NO_RESULT)
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
            caused_by=fact.caused_by or "",
            reply_by_ms=None if fact.reply_by is None else int(fact.reply_by * 1000),
            failed=fact.failed or None,
            traceparent=fact.traceparent or "",
            result=result.data,
            result_failed=result.failed or None,
        )

    def _ttl_ms(self, fact: MessageSent | MessageReplayed) -> int:
        ttl_s = self.cell.settings.message_ttl_s if fact.ttl is None else fact.ttl
        if fact.ttl is None and isinstance(fact, MessageSent) and fact.reply_by is not None:
            ttl_s = max(ttl_s, fact.reply_by)
        return int(ttl_s * 1000)


HANDLERS: dict[type[Fact], Callable[[Router, list[ReceivedFact[Any]]], Call[list[str]]]] = {
    MessageSent: Router.deliver,
    MessageReplayed: Router.redeliver,
    EntryReplayed: Router.requeue,
    DeadPurged: Router.purge,
}

#: What is done periodically: seconds between two calls.
TICKS = {"forget_dead": 60.0, "end_requests": 0.2}
