"""The router: who receives this message.

One batch in flight at a time and one router for each lane keep a sender's messages to a receiver in their order.
"""

from __future__ import annotations

from typing import Any, ClassVar

from coord import codec
from coord.models.facts import MessageSent
from coord.transitions import Delivery
from workers.service import Failure, Service, Tick, Told, failures_of


class Router(Service):
    """Turns messages into inbox entries."""

    kind: ClassVar[str] = "router"

    async def handle(self, batch: list[Told[Any]]) -> list[Failure]:
        """``deliver`` for a batch of ``MessageSent``."""
        scripts = self.cell.scripts
        (words,) = await scripts.run(scripts.deliver([self._delivery(one) for one in batch]))
        return failures_of(batch, words)

    def ticks(self) -> dict[str, Tick]:
        """Nothing is done by the clock."""
        return {}

    def _delivery(self, told: Told[MessageSent]) -> Delivery:
        entry, fact, caller = told
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
