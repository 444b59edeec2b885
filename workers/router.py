"""The router: delivers messages to the inboxes of agents.

One batch in flight at a time and one router for each lane keep a sender's messages to a receiver in their order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from msgspec.structs import replace

from coord import codec
from coord.models.facts import (
    DeadPurged,
    EntryReplayed,
    Fact,
    LinkAccepted,
    LinkMade,
    LinkRemoved,
    LinkRequested,
    MasterCleared,
    MasterSet,
    MessageReplayed,
    MessageSent,
)
from coord.models.ids import SUBORDINATES
from coord.models.messages import COORDINATOR
from workers.answers import NO_RESULT, Result, answer_for
from workers.service import Failure, ReceivedFact, Service, Tick, WorkerContext, ticks_of
from workers.transitions import Call, Delivery, LinkChange, Redelivery
from workers.transitions.scripts import EXPIRED_AT_ONCE


class Router(Service):
    """Turns messages into inbox entries."""

    kind: ClassVar[str] = "router"

    def __init__(self, cell: WorkerContext) -> None:
        super().__init__(cell)
        self._results: dict[str, Result] = {}  # of the messages to the coordinator that are handled now, by id

    async def handle(self, batch: list[ReceivedFact[Any]]) -> list[Failure]:
        """Handle a batch in the order of its entries, in one round trip; a message to many agents has its own.

        What the coordinator answers itself is found before.
        """
        asked = [fact for _, fact, _ in batch if isinstance(fact, MessageSent) and fact.receiver_id == COORDINATOR]
        for fact in asked:
            self._results[fact.message_id] = await answer_for(self.cell, fact)
        failures: list[Failure] = []
        try:
            for part in split_batch(batch):
                failures += await self.handle_in_order(part, HANDLERS)
        finally:
            for fact in asked:
                self._results.pop(fact.message_id, None)
        return failures

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

    def change_links(self, batch: list[ReceivedFact[Any]]) -> Call[list[str]]:
        """``change_links`` for a batch of facts about links and masters."""
        changes: list[LinkChange] = []
        for entry, fact, caller in batch:
            other_id = getattr(fact, "peer_id", "") or getattr(fact, "master_id", "")
            note = getattr(fact, "note", "")
            kind = LINK_CHANGES[type(fact)]
            changes.append(LinkChange(entry.id, entry.stream, caller, kind, fact.agent_id, other_id, note))
        return self.cell.scripts.change_links(changes)

    def purge(self, batch: list[ReceivedFact[DeadPurged]]) -> Call[list[str]]:
        """``purge`` for a batch of ``DeadPurged``."""
        return self.purge_dead("messages", batch)

    async def forget_dead(self) -> None:
        """Forget dead letters that are too old or too many, also while no message comes."""
        await self.cell.scripts.run(self.cell.scripts.deliver([]))

    async def expire_messages(self) -> None:
        """Take expired messages out of the inboxes of their receivers."""
        examined = EXPIRED_AT_ONCE
        while examined == EXPIRED_AT_ONCE:
            ((examined, _),) = await self.cell.scripts.run(self.cell.scripts.expire_messages())

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
            digest=codec.digest_of(replace(fact, receipt=False) if fact.receipt else fact),
            sender_id=fact.sender_id,
            receiver_id=fact.receiver_id,
            message_type=fact.topic,
            ttl_ms=self._ttl_ms(fact),
            payload=bytes(fact.payload),
            correlation_id=fact.correlation_id or "",
            reply_to=fact.reply_to or "",
            protocol=fact.rule,
            receipt=fact.receipt,
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


def split_batch(batch: list[ReceivedFact[Any]]) -> list[list[ReceivedFact[Any]]]:
    """Return a batch in parts: a message to all subordinates is a part of its own, so that no round trip takes long."""
    parts: list[list[ReceivedFact[Any]]] = [[]]
    for received in batch:
        if isinstance(received.fact, MessageSent) and received.fact.receiver_id == SUBORDINATES:
            parts += [[received], []]
        else:
            parts[-1].append(received)
    return [part for part in parts if part]


#: fact -> the kind of its change.
LINK_CHANGES: dict[type[Fact], str] = {
    LinkRequested: "request",
    LinkAccepted: "accept",
    LinkRemoved: "remove",
    LinkMade: "link",
    MasterSet: "set_master",
    MasterCleared: "clear_master",
}

HANDLERS: dict[type[Fact], Callable[[Router, list[ReceivedFact[Any]]], Call[list[str]]]] = {
    MessageSent: Router.deliver,
    MessageReplayed: Router.redeliver,
    EntryReplayed: Router.requeue,
    DeadPurged: Router.purge,
    **dict.fromkeys(LINK_CHANGES, Router.change_links),
}

#: What is done periodically: seconds between two calls.
TICKS = {"forget_dead": 60.0, "expire_messages": 1.0, "end_requests": 0.2}
