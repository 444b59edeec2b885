"""What a client does with messages: sends them, requests replies, broadcasts, and reads what became of them."""

from __future__ import annotations

import asyncio
from typing import Any, Unpack

from msgspec.structs import replace

from coord import queries
from coord.agent_token import AgentToken
from coord.arguments import as_seconds
from coord.client.broadcasts import BroadcastOptions, BroadcastReceipt, broadcast_append, broadcast_receipt
from coord.client.connection import ClientConnection
from coord.client.receipts import RECEIPT_S, Receipt, message_fields, receipt_of
from coord.client.requests import END_S, REPLY_S, request_append, unended, value_of
from coord.client.submission import PriorityName, message_append
from coord.connection import reading
from coord.errors import FactInvalid, MessageNotFound, ResultTimeout
from coord.models.ids import check_id
from coord.models.links import Links
from coord.models.messages import (
    INQUIRIES,
    Conversation,
    InquiryName,
    MessageRecord,
    MessageStatus,
    MessageType,
    MessageTypeName,
    Protocol,
    ProtocolName,
)
from coord.models.tasks import Priority
from coord.suggestions import not_one_of

#: Seconds that an agent has to answer a ping.
PING_S = 5.0


class Messaging:
    """The methods of a client that send and read messages, and read links."""

    connection: ClientConnection
    _token: AgentToken | None = None  # read when the first message needs it

    async def send(
        self,
        receiver_id: str,
        payload: Any = None,
        *,
        sender_id: str | None = None,
        message_type: MessageTypeName | MessageType = MessageType.DIRECT,
        protocol: ProtocolName | Protocol | None = None,
        priority: PriorityName | Priority = Priority.NORMAL,
        ttl: float | None = None,
        correlation_id: str | None = None,
        reply_to: str | None = None,
        message_id: str | None = None,
        traceparent: str | None = None,
        wait: bool = True,
        token: str | None = None,
        timeout: float = RECEIPT_S,
    ) -> Receipt:
        """Send a message to an agent; returns when it is in the inbox of the agent.

        Args:
            receiver_id: id of the agent; with the protocol ``hierarchical`` also ``subordinates``: all agents of which
                the sender is the master.
            payload: any value that msgspec can encode as JSON.
            sender_id: id shown to the receiver; default: this client's caller id. To send as an agent needs its token,
                where ``COORD_REQUIRE_TOKENS`` is set.
            message_type: shown to the receiver: ``direct``, ``coordination``, ``consensus`` and so on.
            protocol: the rule that the message must meet: ``direct``, ``peer_to_peer`` (along an accepted link) or
                ``hierarchical`` (to the master, a subordinate or all of them); default: the one that the message type
                names, otherwise ``direct``.
            priority: ``urgent``, ``critical``, ``high``, ``normal`` or ``low``; urgent and critical share a lane.
            ttl: seconds to live; an expired message is not handled. Default: that of the routers.
            correlation_id: id of the conversation.
            reply_to: id of the message that this one answers.
            message_id: default: a new UUID; the same id with the same content is delivered once.
            traceparent: its place in a distributed trace; default: that of the message or task whose handler sends it.
            wait: False returns when Redis has the message; whether it was delivered is in its record.
            token: of the agent ``sender_id``; default: ``COORD_AGENT_TOKEN`` or ``COORD_AGENT_TOKEN_FILE``.
            timeout: seconds to wait for a router.

        Returns: to whom the message went, with the state of each receiver and the number of entries before the message
            in its inbox.

        Raises:
            AgentNotFound: there is no such receiver.
            AgentLeft: the receiver has left.
            MessageUndeliverable: its inbox is full.
            NotLinked, NotInHierarchy, NoSubordinates: its protocol does not allow it.
            MessageExpired: its time to live passed before it was delivered.
            TokenMissing, TokenInvalid: the sender is an agent, and this is not its token.
            HopLimitReached, ConversationFull: it goes beyond a limit of its conversation.
            IdConflict: the id was used before with other content.
            ResultTimeout: no router answered within ``timeout`` seconds; the message waits for one.
            FactInvalid, IdInvalid, FactTooLarge: it does not fit; nothing was sent.
        """
        timeout = as_seconds(timeout, "timeout")
        fields = message_fields(
            self.connection.caller if sender_id is None else sender_id,
            receiver_id,
            payload,
            message_type=message_type,
            protocol=protocol,
            ttl=ttl,
            correlation_id=correlation_id,
            reply_to=reply_to,
            message_id=message_id,
            traceparent=traceparent,
            receipt=wait,
        )
        append = message_append(fields, priority, self.connection.caller, self.connection.settings.max_entry_bytes)
        if sender_id is not None or token is not None:
            append = replace(append, token=self._token_of_sender(token))
        if not wait:
            (entry_id,) = await self.connection.append([append])
            return receipt_of(fields, entry_id)
        return receipt_of(fields, *await self.connection.request(append, timeout, "router", "message"))

    def _token_of_sender(self, token: str | None) -> str:
        """Return the token to send with a message; the one of the settings unless ``token`` is given."""
        if token is not None:
            return AgentToken.of(self.connection.settings, token).current()
        if self._token is None:
            self._token = AgentToken.of(self.connection.settings)
        return self._token.current()

    async def broadcast(
        self,
        payload: Any = None,
        *,
        sender_id: str | None = None,
        token: str | None = None,
        timeout: float = RECEIPT_S,
        **options: Unpack[BroadcastOptions],
    ) -> BroadcastReceipt:
        """Send a message to every agent that matches; returns when it has been delivered to all of them.

        An agent matches if it has all properties that are given, at the moment when the router handles the broadcast;
        without any, every active agent matches. The sender never gets it. For an agent of which the inbox is full, it
        becomes a dead letter.

        Args:
            payload: any value that msgspec can encode as JSON.
            sender_id: id shown to the receivers; default: this client's caller id. To send as an agent needs its token,
                where ``COORD_REQUIRE_TOKENS`` is set.
            token: as for ``send``.
            timeout: seconds to wait for the router.
            options: ``agent_type``, ``capabilities``, ``services``, ``tags`` and ``labels`` that the agents must have
                (all of them), and ``statuses`` of which they must have one (default: ``active``); ``message_type``:
                ``broadcast`` or a topic (``coordination``, ``status_update``, ``heartbeat``, ``discovery``,
                ``consensus``); ``priority``, ``ttl``, ``correlation_id``, ``traceparent`` and ``message_id`` as in
                ``send``.

        Raises:
            MessageExpired: its time to live passed before the recipients were chosen.
            HopLimitReached, ConversationFull: it goes beyond a limit of its conversation.
            TokenMissing, TokenInvalid: the sender is an agent, and this is not its token.
            IdConflict: the id was used before with other content.
            ResultTimeout: the router did not answer within ``timeout`` seconds; it goes on.
            FactInvalid, IdInvalid, FactTooLarge: it does not fit; nothing was sent.
        """
        timeout = as_seconds(timeout, "timeout")
        sender = self.connection.caller if sender_id is None else sender_id
        append, message_id = broadcast_append(
            payload, options, sender, self.connection.caller, self.connection.settings.max_entry_bytes
        )
        if sender_id is not None or token is not None:
            append = replace(append, token=self._token_of_sender(token))
        entry_id, answer = await self.connection.request(append, timeout, "router", "broadcast")
        return broadcast_receipt(message_id, entry_id, answer)

    async def request(
        self,
        receiver_id: str,
        payload: Any = None,
        *,
        timeout: float = REPLY_S,
        message_type: str = MessageType.DIRECT,
        priority: PriorityName | Priority = Priority.NORMAL,
        correlation_id: str | None = None,
        traceparent: str | None = None,
    ) -> Any:
        """Send a request to an agent and return the payload of its reply.

        The coordinator keeps the deadline: it ends the request also if the agent is gone.

        Args:
            receiver_id: id of the agent, or ``coordinator`` for a message of type ``discovery``.
            payload: any value that msgspec can encode as JSON.
            timeout: seconds to wait for the reply.
            message_type: ``direct``, or another ``coord.models.messages.MessageType``.
            priority: ``urgent``, ``critical``, ``high``, ``normal`` or ``low``; urgent and critical share a lane.
            correlation_id: id of the conversation; default: that of the message whose handler sends the request, or its
                own id.
            traceparent: its place in a distributed trace; default: that of what the handler works on.

        Raises:
            RequestTimedOut: the agent did not reply in time; has its last known state.
            RequestFailed: the agent replied that the request failed.
            AgentNotFound, MessageUndeliverable, MessageExpired, HopLimitReached, ConversationFull: it was
                not delivered.
            ResultTimeout: no router answered.
            FactInvalid, IdInvalid, FactTooLarge: it does not fit; nothing was sent.
        """
        append = request_append(
            self.connection.caller,
            receiver_id,
            payload,
            timeout=timeout,
            message_type=message_type,
            priority=priority,
            correlation_id=correlation_id,
            traceparent=traceparent,
            caller=self.connection.caller,
            max_bytes=self.connection.settings.max_entry_bytes,
        )
        limit_s = timeout + END_S
        with self.connection.watcher.expecting_reply(append.fact.message_id) as reply:  # type: ignore[attr-defined]
            _, answer = await self.connection.request(append, min(limit_s, RECEIPT_S), "router", "request")
            if not answer.ok:
                raise answer.error
            try:
                message = await asyncio.wait_for(reply.future(), limit_s)
            except TimeoutError:
                raise ResultTimeout(unended(receiver_id, timeout)) from None
        return value_of(message)

    async def ping(self, agent_id: str, op: InquiryName = "ping", *, timeout: float = PING_S) -> dict[str, Any]:
        """Ask an agent whether it answers; its SDK does, without a handler.

        Args:
            agent_id: id of the agent.
            op: ``ping``; ``info``: what it is; ``stats``: what it does now.
            timeout: seconds to wait for the reply.

        Returns: the reply.

        Raises: as ``request``.
        """
        if op not in INQUIRIES:
            raise FactInvalid(not_one_of("op", op, INQUIRIES))
        reply = await self.request(
            agent_id, {"op": op}, timeout=timeout, message_type=MessageType.HEARTBEAT, priority=Priority.CRITICAL
        )
        return reply if isinstance(reply, dict) else {"reply": reply}

    async def conversation(self, conversation_id: str) -> Conversation:
        """Read the messages of a conversation that are still kept, without their payloads; raises ``MessageNotFound``.

        Args:
            conversation_id: its ``correlation_id``; or the id of one of its messages.
        """
        with reading():
            found = await queries.get_conversation(
                self.connection.redis, self.connection.keys, check_id(conversation_id, "conversation_id")
            )
        if found is None:
            raise MessageNotFound(f"Conversation '{conversation_id}' not found")
        return found

    async def message(self, message_id: str) -> MessageRecord:
        """Read the record of a message; raises ``MessageNotFound``."""
        with reading():
            record = await queries.get_message(
                self.connection.redis, self.connection.keys, check_id(message_id, "message_id")
            )
        if record is None:
            raise MessageNotFound(f"Message '{message_id}' not found")
        return record

    async def message_recipients(
        self, message_id: str, *, limit: int = 100, cursor: str | None = None
    ) -> queries.RecipientPage:
        """List what became of a message for each of its recipients, sorted by agent.

        Args:
            message_id: id of the message.
            limit: maximum number of recipients, at least 1.
            cursor: continue after a page, from its ``next``.

        Raises:
            MessageNotFound: there is no such message, or its record was removed.
            CursorInvalid: the cursor is not from a list of recipients.
        """
        with reading():
            page = await queries.list_recipients(
                self.connection.redis,
                self.connection.keys,
                check_id(message_id, "message_id"),
                limit=limit,
                cursor=cursor,
            )
        if page is None:
            raise MessageNotFound(f"Message '{message_id}' not found")
        return page

    async def list_messages(
        self,
        *,
        agent_id: str | None = None,
        conversation_id: str | None = None,
        status: MessageStatus | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> queries.MessagePage:
        """List messages, the newest first, without their payloads: those whose records are still kept.

        Args:
            agent_id: only messages that this agent sent or received; of these the newest 1,000 are listed.
            conversation_id: only messages of this conversation, and the message with this id.
            status: only this status.
            limit: maximum number of messages, at least 1.
            cursor: continue after a page, from its ``next``.

        Raises:
            CursorInvalid: the cursor is not from a list of messages.
        """
        found: list[MessageRecord] = []
        while True:
            with reading():
                page = await queries.list_messages(
                    self.connection.redis,
                    self.connection.keys,
                    agent_id=agent_id,
                    conversation_id=conversation_id,
                    status=status,
                    limit=limit - len(found),
                    cursor=cursor,
                )
            found += page.messages
            cursor = page.next
            if cursor is None or len(found) >= limit:
                return queries.MessagePage(tuple(found), cursor)

    # Links.

    async def links(self, agent_id: str) -> Links:
        """Read the links of an agent, its master and its subordinates; all empty if it has none."""
        with reading():
            return await queries.get_links(self.connection.redis, self.connection.keys, check_id(agent_id, "agent_id"))

    async def list_links(self) -> list[Links]:
        """Read the links of all agents that have a link, a master or a subordinate, by id."""
        with reading():
            return await queries.list_links(self.connection.redis, self.connection.keys)
