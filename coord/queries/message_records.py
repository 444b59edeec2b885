"""The records of messages."""

from __future__ import annotations

from redis.asyncio import Redis

from coord.keys import Keys
from coord.models.messages import MessageRecord, MessageStatus
from coord.queries.fields import decoded, hash_of, json_of


async def message(redis: Redis, keys: Keys, message_id: str) -> MessageRecord | None:
    """A message's record, or None."""
    raw = decoded(await hash_of(redis, keys.message(message_id)))
    if not raw:
        return None
    return MessageRecord(
        message_id=message_id,
        sender_id=raw["sender_id"],
        receiver_id=raw["receiver_id"],
        message_type=raw["message_type"],
        priority=raw["priority"],
        status=MessageStatus(raw["status"]),
        sent_at=int(raw["sent_at"]),
        expires_at=int(raw["expires_at"]),
        payload=json_of(raw.get("body")),
        reason=raw.get("reason", ""),
    )
