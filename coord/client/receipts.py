"""Messages to send, and their receipts: what clients and agents share."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from coord.client.answers import Answer
from coord.models.ids import new_id
from coord.models.messages import Recipient

#: Seconds that a router has to answer for a message.
RECEIPT_S = 10.0


class Receipt(Struct, frozen=True):
    """A message was delivered into the inbox of its receiver, or sent without waiting for that."""

    message_id: str
    receiver_id: str
    entry_id: str  #: of the fact
    #: To whom it went, and the agents that did not get it; empty if it was delivered before, or nobody waited.
    recipients: tuple[Recipient, ...] = ()
    count: int | None = None  #: number of agents that have it; None: not known


class _ReceiptData(Struct, frozen=True):
    count: int
    recipients: tuple[Recipient, ...]


_decoder = msgspec.json.Decoder(_ReceiptData)


def message_fields(
    sender_id: str, receiver_id: str, payload: Any, *, message_id: str | None, receipt: bool, **options: Any
) -> dict[str, Any]:
    """Return the fields of a ``MessageSent``; those that are None are not sent."""
    return {
        "message_id": new_id() if message_id is None else message_id,
        "sender_id": sender_id,
        "receiver_id": receiver_id,
        "payload": {} if payload is None else payload,
        "receipt": receipt or None,
        **options,
    }


def receipt_of(fields: dict[str, Any], entry_id: str, answer: Answer | None = None) -> Receipt:
    """Return the receipt of a message.

    Args:
        fields: of the message.
        entry_id: of the fact.
        answer: of the router; None: nobody waited for it.

    Raises:
        CoordError: the message was not delivered.
    """
    message_id, receiver_id = fields["message_id"], fields["receiver_id"]
    if answer is not None and not answer.ok:
        raise answer.error
    if answer is None or answer.data == b"null":
        return Receipt(message_id, receiver_id, entry_id)
    data = _decoder.decode(answer.data)
    return Receipt(message_id, receiver_id, entry_id, data.recipients, data.count)
