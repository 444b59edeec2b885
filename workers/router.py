"""The router: delivers messages to the inboxes of agents.

The messages of a sender to a receiver with one priority keep their order. Each lane has one router at a time, which
holds the lease of the lane; the script checks it. Whatever changes the lanes of a router goes through a recovery of its
loop: nothing is in flight then, and the entries that another router has read are handled first.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection
from typing import Any, ClassVar

from msgspec.structs import replace
from redis import exceptions as redis_errors

from coord import background, codec, logs
from coord.keys import CONSUMES, MESSAGE_STREAMS
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
    MessageBroadcast,
    MessageReplayed,
    MessageSent,
)
from coord.models.ids import SUBORDINATES, new_id
from coord.models.messages import COORDINATOR
from workers.answers import NO_RESULT, Result, answer_for
from workers.recipients import find_recipients
from workers.service import Failure, ReceivedFact, Service, Tick, WorkerContext, end_tasks, failures_of, ticks_of
from workers.transitions import Broadcast, Call, Delivery, LaneShare, LinkChange, Redelivery
from workers.transitions.scripts import EXPIRED_AT_ONCE

log = logs.get_logger()

#: Seconds between two renewals of the leases.
RENEW_S = 0.4
#: Seconds to give up the lanes at the end; a server that does not answer does not delay it for longer.
LEAVING_S = 1.0
#: The router that holds this lane handles the changes of links: one router at a time, so that they keep their order.
LANE_OF_LINKS = "critical"
#: Words of a batch of which the lane is in other hands, or was read by another router before.
DISPLACED = frozenset({"NOT_HELD", "BEHIND"})


class Router(Service):
    """Turns messages into inbox entries."""

    kind: ClassVar[str] = "router"

    def __init__(self, cell: WorkerContext) -> None:
        super().__init__(cell)
        self._process = new_id()[-8:]
        self._has_started = False
        self._excess: tuple[str, ...] = ()  # lanes to give up in the next recovery
        self._holding = asyncio.Lock()  # answers of ``hold_lanes`` are used in the order of the calls
        self._renewing: asyncio.Task[None] | None = None
        self._results: dict[str, Result] = {}  # of the messages to the coordinator that are handled now, by id

    @property
    def lanes(self) -> Collection[str]:
        """The lanes of which this router delivers the messages."""
        return self.cell.scripts.leases.keys()

    def streams(self) -> Collection[str]:
        """Return the streams that belong to the lanes that this router holds, and all that belong to no lane."""
        others = [stream for stream in CONSUMES[self.kind] if stream not in {*MESSAGE_STREAMS, "in:links"}]
        return (*others, *self.owned_streams())

    def owned_streams(self) -> Collection[str]:
        """Return the streams of the lanes that this router holds, and that of the links if it has their lane."""
        owned = [stream for stream in MESSAGE_STREAMS if _lane_of(stream) in self.lanes]
        return [*owned, "in:links"] if LANE_OF_LINKS in self.lanes else owned

    async def start(self) -> None:
        """Start to renew the leases, also while the loop handles a long batch."""
        self._renewing = background.keep("router.lanes", self._keep_lanes)

    async def stop(self) -> None:
        """Give up all lanes, so that another router takes them at once."""
        if self._renewing is not None:
            await end_tasks(self._renewing)
        if self._has_started:
            with contextlib.suppress(redis_errors.RedisError, OSError):  # TimeoutError is an OSError
                async with asyncio.timeout(LEAVING_S):
                    await self.cell.scripts.run(self.cell.scripts.hold_lanes(self._id, mode="leaves"))

    async def resync(self) -> None:
        """Give up what others lack, and learn which lanes this router holds."""
        async with self._holding:
            give, self._excess = self._excess, ()
            scripts = self.cell.scripts
            call = scripts.hold_lanes(self._id, mode="" if self._has_started else "started", give=give)
            (share,) = await scripts.run(call)
            if share.leases.keys() != self.lanes:
                log.info("router.lanes", lanes=" ".join(sorted(share.leases)))
            self._has_started = True
            scripts.leases = share.leases

    async def _keep_lanes(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            try:
                await self._renew()
            except (redis_errors.RedisError, OSError):
                self.request_recovery()  # which finds out what is wrong

    async def _renew(self) -> None:
        if not self._has_started:
            return
        async with self._holding:
            share: LaneShare
            (share,) = await self.cell.scripts.run(self.cell.scripts.hold_lanes(self._id))
            self._excess = share.excess
            if share.excess or share.behind or share.leases != self.cell.scripts.leases:
                self.request_recovery()

    @property
    def _id(self) -> str:
        return f"{self.name}#{self._process}"

    def heartbeat_fields(self) -> dict[str, str]:
        """Return the lanes that this router holds."""
        return {"lanes": " ".join(sorted(self.lanes))}

    def defer(self, batch: list[ReceivedFact[Any]], words: list[str]) -> None:
        """Remember the entries that were not handled; recover if the lane is in other hands."""
        super().defer(batch, words)
        if not DISPLACED.isdisjoint(words):
            self.request_recovery()

    async def handle(self, batch: list[ReceivedFact[Any]]) -> list[Failure]:
        """Handle a batch in the order of its entries: in one round trip, but messages to many agents have their own.

        What the coordinator answers itself is found before.
        """
        asked = [fact for _, fact, _ in batch if isinstance(fact, MessageSent) and fact.receiver_id == COORDINATOR]
        for fact in asked:
            self._results[fact.message_id] = await answer_for(self.cell, fact)
        failures: list[Failure] = []
        try:
            for part in split_batch(batch):
                if isinstance(part[0].fact, MessageBroadcast):
                    failures += await self.broadcast(part[0])
                else:
                    failures += await self.handle_in_order(part, HANDLERS)
        finally:
            for fact in asked:
                self._results.pop(fact.message_id, None)
        return failures

    async def broadcast(self, received: ReceivedFact[MessageBroadcast]) -> list[Failure]:
        """Freeze the recipients of a broadcast, then deliver it to one chunk of them after the other.

        The router that takes over after a crash does the same: a list that was frozen before stays as it is, and each
        call delivers to the next chunk.
        """
        fact, scripts = received.fact, self.cell.scripts
        recipients = await find_recipients(self.cell.redis, self.cell.keys, fact.filter, fact.sender_id)
        broadcast = self._broadcast(received)
        frozen, words = await scripts.run(
            scripts.freeze_recipients(broadcast, recipients), scripts.deliver_broadcast(broadcast, self.name)
        )
        if frozen != ["MORE"]:
            words = frozen
        while words == ["MORE"]:
            (words,) = await scripts.run(scripts.deliver_broadcast(broadcast, self.name))
        self.defer([received], words)
        return failures_of([received], words)

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
            lane=_lane_of(entry.stream),
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

    def _broadcast(self, received: ReceivedFact[MessageBroadcast]) -> Broadcast:
        entry, fact, caller = received
        return Broadcast(
            entry=entry.id,
            lane=_lane_of(entry.stream),
            caller=caller,
            message_id=fact.message_id,
            digest=codec.digest_of(fact),
            sender_id=fact.sender_id,
            message_type=fact.message_type,
            ttl_ms=self._ttl_ms(fact),
            payload=bytes(fact.payload),
            correlation_id=fact.correlation_id or "",
            caused_by=fact.caused_by or "",
            traceparent=fact.traceparent or "",
        )

    def _ttl_ms(self, fact: MessageSent | MessageBroadcast | MessageReplayed) -> int:
        ttl_s = self.cell.settings.message_ttl_s if fact.ttl is None else fact.ttl
        if fact.ttl is None and isinstance(fact, MessageSent) and fact.reply_by is not None:
            ttl_s = max(ttl_s, fact.reply_by)
        return int(ttl_s * 1000)


def _lane_of(stream: str) -> str:
    return stream.rpartition(":")[2]


def split_batch(batch: list[ReceivedFact[Any]]) -> list[list[ReceivedFact[Any]]]:
    """Return a batch in parts: a message to many agents is a part of its own, so that no round trip takes long."""
    parts: list[list[ReceivedFact[Any]]] = [[]]
    for received in batch:
        if _is_to_many(received.fact):
            parts += [[received], []]
        else:
            parts[-1].append(received)
    return [part for part in parts if part]


def _is_to_many(fact: Fact) -> bool:
    return isinstance(fact, MessageBroadcast) or (isinstance(fact, MessageSent) and fact.receiver_id == SUBORDINATES)


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
