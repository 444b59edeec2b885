"""Requests: the facts that ask an agent, and what their replies mean."""

from __future__ import annotations

from typing import Any, TypedDict

import msgspec

from coord.arguments import as_seconds
from coord.client.submission import PriorityName, message_append
from coord.codec import BAD_JSON
from coord.errors import CoordError, FactInvalid, RequestFailed, RequestTimedOut, from_code
from coord.models.ids import new_id
from coord.models.messages import COORDINATOR, AgentMessage, AgentState, MessageType
from coord.models.tasks import Priority
from coord.streams import Append
from coord.suggestions import not_one_of

#: Seconds that a request waits for its reply unless the caller says otherwise.
REPLY_S = 30.0
#: Seconds after the timeout in which the coordinator has to end a request: it may have been away for a while.
END_S = 10.0
MESSAGE_TYPES = tuple(str(kind.value) for kind in MessageType)


class RequestOptions(TypedDict, total=False):
    """How a request is sent, see ``Client.request``."""

    message_type: str
    priority: PriorityName | Priority
    correlation_id: str | None
    traceparent: str | None


def request_append(
    sender_id: str,
    receiver_id: str,
    payload: Any,
    *,
    timeout: float,
    caller: str,
    max_bytes: int,
    message_type: str = MessageType.DIRECT,
    priority: PriorityName | Priority = Priority.NORMAL,
    correlation_id: str | None = None,
    traceparent: str | None = None,
) -> Append:
    """Return the fact of a request; its ``message_id`` is new.

    Raises:
        FactInvalid, IdInvalid, FactTooLarge: an argument does not fit; names it.
    """
    if as_seconds(timeout, "timeout") <= 0:
        raise FactInvalid(f"timeout: expected seconds above 0, not {timeout!r}")
    if message_type not in MESSAGE_TYPES:
        raise FactInvalid(not_one_of("message_type", message_type, MESSAGE_TYPES))
    fields = {
        "message_id": new_id(),
        "sender_id": sender_id,
        "receiver_id": receiver_id,
        "message_type": message_type,
        "payload": {} if payload is None else payload,
        "correlation_id": correlation_id,
        "reply_by": float(timeout),
        "traceparent": traceparent,
    }
    return message_append(fields, priority, caller, max_bytes)


def unended(receiver_id: str, timeout: float) -> str:
    """Return the message of the error for a request that neither a reply nor the coordinator has ended."""
    return (
        f"'{receiver_id}' did not reply within {timeout:g} s, and no router has ended the request {END_S:g} s later; "
        "check that a router runs: coord workers"
    )


def value_of(reply: AgentMessage) -> Any:
    """Return the payload of a reply.

    Raises:
        RequestTimedOut: the reply is the coordinator's: there was none in time.
        CoordError: another error of the coordinator: the request could not be delivered.
        RequestFailed: the receiver replied that it failed.
    """
    if reply.failed:
        raise error_of(reply)
    return reply.payload


def error_of(reply: AgentMessage) -> CoordError:
    """Return the error that a failed reply reports."""
    told = reply.payload if isinstance(reply.payload, dict) else {}
    code, message = str(told.get("code", "")), str(told.get("message", ""))
    if reply.sender_id != COORDINATOR:
        text = f"agent '{reply.sender_id}' replied: {message or code or 'the request failed'}"
        return RequestFailed(text, code=code, message=message, detail=told.get("detail"))
    if code == RequestTimedOut.code:
        return RequestTimedOut(message, receiver=_state(told.get("receiver")))
    return from_code(code, message)


def _state(raw: Any) -> AgentState | None:
    try:
        return msgspec.convert(raw, AgentState)
    except BAD_JSON:
        return None
