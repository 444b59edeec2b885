"""Messages: type, status, the message as its receiver sees it, and its record."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from msgspec import Struct


class MessageType(StrEnum):
    """The way in which a message travels, or its topic."""

    DIRECT = "direct"
    BROADCAST = "broadcast"
    HIERARCHICAL = "hierarchical"
    PEER_TO_PEER = "peer_to_peer"
    COORDINATION = "coordination"
    TASK_ASSIGNMENT = "task_assignment"
    STATUS_UPDATE = "status_update"
    HEARTBEAT = "heartbeat"
    DISCOVERY = "discovery"
    CONSENSUS = "consensus"


class MessageStatus(StrEnum):
    """The delivery status of a message."""

    DELIVERED = "delivered"  #: it is in the receiver's inbox
    DEAD = "dead"  #: it could not be delivered; the reason is recorded


class AgentMessage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message as its receiver sees it. Times are milliseconds since 1970 on the server's clock."""

    id: str
    sender_id: str
    receiver_id: str
    message_type: str
    priority: str
    timestamp: int
    expires_at: int
    payload: Any = None
    correlation_id: str | None = None
    reply_to: str | None = None


class MessageRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record of a message. Times are milliseconds since 1970 on the server's clock."""

    message_id: str
    sender_id: str
    receiver_id: str
    message_type: str
    priority: str
    status: MessageStatus
    sent_at: int
    expires_at: int
    payload: Any = None
    reason: str = ""
