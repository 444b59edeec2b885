"""What a client or an agent broadcasts: its options, the fact made of them, and the receipt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias, TypedDict

from msgspec import Struct

from coord import codec
from coord.arguments import as_dict, as_words, check_finite, check_payload
from coord.client.answers import Answer
from coord.client.submission import PriorityName, build_fact, check_traceparent, lane_of
from coord.context import current_work
from coord.errors import FactInvalid
from coord.models.agents import AgentStatus, AgentType
from coord.models.facts import MessageBroadcast
from coord.models.ids import check_id, new_id
from coord.models.messages import MessageType
from coord.models.tasks import Priority
from coord.streams import Append

#: The names of the types of a broadcast: ``broadcast``, and the topics.
BroadcastType: TypeAlias = Literal["broadcast", "coordination", "status_update", "heartbeat", "discovery", "consensus"]
#: The names of the statuses that recipients may have.
RecipientStatusName: TypeAlias = Literal["active", "busy", "stale", "maintenance", "error", "draining"]


class BroadcastOptions(TypedDict, total=False):
    """To whom a broadcast goes, and how."""

    agent_type: AgentType | str | None
    capabilities: Iterable[str]
    services: Iterable[str]
    tags: Iterable[str]
    labels: Mapping[str, str] | None
    statuses: Iterable[RecipientStatusName | AgentStatus]
    message_type: BroadcastType | MessageType
    priority: PriorityName | Priority
    ttl: float | None
    correlation_id: str | None
    message_id: str | None
    traceparent: str | None


#: The options that are fields of the fact; those of its filter are the others.
_OF_THE_MESSAGE = ("message_type", "ttl", "correlation_id", "traceparent")
_OF_THE_FILTER = ("agent_type", "capabilities", "services", "tags", "labels", "statuses")


class BroadcastReceipt(Struct, frozen=True):
    """A broadcast was delivered; ``Client.message_recipients`` says what became of it for each recipient."""

    message_id: str
    recipients: int  #: agents that matched
    delivered: int  #: of these, agents that have it in their inbox; the others are dead letters
    entry_id: str  #: of the fact


def broadcast_append(
    payload: Any, options: Mapping[str, Any], sender_id: str, caller: str, max_bytes: int
) -> tuple[Append, str]:
    """Return the fact of a broadcast with its stream, and its message id.

    Args:
        payload: any value that msgspec can encode as JSON; None: ``{}``.
        options: those of ``BroadcastOptions``.
        sender_id: of the broadcast.
        caller: where the answer goes.
        max_bytes: limit for its JSON.

    Raises: as ``task_append``.
    """
    rest = dict(options)
    stream = f"in:messages:{lane_of(rest.pop('priority', Priority.NORMAL))}"
    message_id = rest.pop("message_id", None)
    fields: dict[str, Any] = {
        "message_id": check_id(new_id() if message_id is None else message_id, "message_id"),
        "sender_id": check_id(sender_id, "sender_id"),
        "payload": {} if payload is None else payload,
        **{name: value for name in _OF_THE_MESSAGE if (value := rest.pop(name, None)) is not None},
    }
    wanted = {name: value for name in _OF_THE_FILTER if (value := rest.pop(name, None)) is not None}
    if rest:
        valid = ", ".join(BroadcastOptions.__annotations__)
        raise FactInvalid(f"a broadcast has no option {next(iter(rest))!r}; the options are {valid}")
    for name in ("capabilities", "services", "tags", "statuses"):
        if name in wanted:
            wanted[name] = as_words(wanted[name], name)
    if "labels" in wanted:
        wanted["labels"] = as_dict(wanted["labels"], "labels")
    check_finite(fields.get("ttl"), "ttl")
    check_payload(fields["payload"])
    check_traceparent(fields.get("traceparent"))
    if (work := current_work.get()) is not None:
        carried = {"caused_by": work.message_id, "traceparent": work.traceparent}
        fields = {name: value for name, value in carried.items() if value is not None} | fields
    if AgentStatus.INACTIVE in wanted.get("statuses", ()):
        others = ", ".join(status for status in AgentStatus if status is not AgentStatus.INACTIVE)
        raise FactInvalid(f"statuses: an inactive agent has left the cell; choose from {others}")
    try:
        fact, data = build_fact(stream, MessageBroadcast, {**fields, "filter": wanted}, max_bytes)
    except FactInvalid as error:
        raise type(error)(str(error).removeprefix("filter.")) from None
    return Append(stream, fact, caller, data), fields["message_id"]


def broadcast_receipt(message_id: str, entry_id: str, answer: Answer) -> BroadcastReceipt:
    """Return the receipt that a router's answer gives.

    Raises:
        CoordError: the answer is an error.
    """
    if not answer.ok:
        raise answer.error
    counts = codec.decode_json(answer.data)
    return BroadcastReceipt(message_id, counts["recipients"], counts["delivered"], entry_id)
