"""Handlers of the inbox of an agent that speaks only HTTP: poll it, acknowledge what was read."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from coord import codec, logs
from coord.background import cancel_and_wait
from coord.codec import BAD_JSON
from coord.gateway.access import check_still_valid
from coord.gateway.errors import Problem, RequestError
from coord.gateway.inboxes import AckItem
from coord.gateway.routes import Call, Receive
from coord.gateway.schemas import entry_time, iso, now
from coord.inbox_watch import InboxEntry

log = logs.get_logger()

#: Longest wait of a poll, in seconds: proxies close a connection that is silent for longer.
LONGEST_S = 60.0
#: Bytes of the entries in a response, about; it has one entry at least.
MOST_BYTES = 4 * 1024 * 1024


class PollQuery(Struct, frozen=True):
    """The query of GET /agents/{id}/inbox."""

    wait: Annotated[float, Meta(ge=0, le=LONGEST_S)] = 0.0  #: seconds to wait for an entry
    limit: Annotated[int, Meta(ge=1, le=100)] = 20  #: maximum number of entries


class InboxTask(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A task for the agent."""

    task_id: str
    lease: str  #: goes into every report
    attempt: int
    task_type: str
    payload: msgspec.Raw
    timeout: float | None = None
    deadline: str | None = None
    traceparent: str | None = None


class InboxMessage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message for the agent."""

    id: str
    sender_id: str
    receiver_id: str
    message_type: str
    priority: str
    protocol: str = "direct"
    payload: Any
    timestamp: str
    expires_at: str
    correlation_id: str | None = None
    reply_to: str | None = None
    reply_by: str | None = None  #: its sender waits for a reply until about then
    failed: bool = False
    late: bool = False
    hops: int = 0
    traceparent: str | None = None


class InboxItem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An entry of the inbox: a task, a message or an order."""

    ack: str  #: acknowledges it
    kind: str  #: task, message, order
    lane: str  #: critical, high, normal, low
    received_at: str
    task: InboxTask | None = None
    message: InboxMessage | None = None
    order: dict[str, str] | None = None  #: stop_task (with task_id, lease, reason) or link_changed


class InboxFound(Struct, frozen=True, kw_only=True):
    """GET /agents/{id}/inbox."""

    status: str = "success"
    agent_id: str
    entries: list[InboxItem]  #: the highest lane first
    count: int
    timestamp: str


class AckBody(Struct, frozen=True):
    """POST /agents/{id}/inbox/ack."""

    entries: Annotated[list[Annotated[str, Meta(max_length=512)]], Meta(min_length=1, max_length=1_000)]


class Acknowledged(Struct, frozen=True, kw_only=True):
    """The response to it."""

    status: str = "success"
    message: str = "Acknowledged"
    agent_id: str
    acknowledged: list[str]  #: tasks among them are the agent's
    gone: list[str]  #: not in the inbox: acknowledged before, expired, or a task that was taken back


class _SubmittedTask(Struct):
    """The part of a submitted task that its agent reads."""

    task_type: str = ""
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    timeout: float | None = None
    deadline: str | None = None
    traceparent: str | None = None


_decode_task = msgspec.json.Decoder(_SubmittedTask).decode


async def poll(call: Call[None, PollQuery]) -> InboxFound:
    """Return what waits for an agent; wait for an entry if there is none. A poll is a heartbeat."""
    inboxes, agent_id, gateway = call.gateway.inboxes, call.params["agent_id"], call.gateway
    until = monotonic() + call.query.wait
    await inboxes.check(agent_id, call.bearer_token)
    watch = await inboxes.watch()
    with watch.watching(agent_id) as signal:
        gone = asyncio.Event()

        def wake(*_: object) -> None:
            gone.set()
            signal.set()

        watching = asyncio.create_task(_disconnected(call.connection.receive))
        watching.add_done_callback(wake)
        gateway.streams.add(wake)  # called when the gateway closes
        if gateway.closing.is_set():
            wake()
        try:
            entries = await inboxes.poll(agent_id, call.query.limit, until=until, gone=gone, signal=signal)
        finally:
            gateway.streams.discard(wake)
            watching.remove_done_callback(wake)
            await cancel_and_wait(watching)
    if entries:
        await check_still_valid(call)
    items = items_of(entries)
    return InboxFound(agent_id=agent_id, entries=items, count=len(items), timestamp=now())


async def acknowledge(call: Call[AckBody, None]) -> Acknowledged:
    """Take entries out of the inbox: a task that is acknowledged is the agent's."""
    agent_id = call.params["agent_id"]
    items: list[AckItem] = []
    for index, text in enumerate(call.body.entries):
        try:
            items.append(AckItem.parse(text))
        except ValueError as error:
            problem = Problem(["body", "entries", index], str(error), "value_error")
            raise RequestError("body_invalid", f"entries.{index}: {error}", [problem]) from None
    await call.gateway.inboxes.check(agent_id, call.bearer_token)
    found = await call.gateway.inboxes.delete(agent_id, items)
    pairs = list(zip(call.body.entries, found, strict=True))
    return Acknowledged(
        agent_id=agent_id,
        acknowledged=[text for text, is_acknowledged in pairs if is_acknowledged],
        gone=[text for text, is_acknowledged in pairs if not is_acknowledged],
    )


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def items_of(entries: list[InboxEntry]) -> list[InboxItem]:
    """Return entries as they are sent, as many as fit into one response; what is not understood is left out."""
    items: list[InboxItem] = []
    for entry in first_of(entries):
        try:
            items.append(_item(entry))
        except (KeyError, ValueError, *BAD_JSON) as error:
            # It must not hold up those after it; a task is taken back in time, a message expires.
            log.warning("inbox.not_understood", lane=entry.lane, entry=entry.id, error=str(error))
    return items


def first_of(entries: list[InboxEntry]) -> list[InboxEntry]:
    """Return the first entries that fit into one response; one at least."""
    size = 0
    for count, entry in enumerate(entries):
        size += len(entry.fields.get(b"data", b""))
        if count and size > MOST_BYTES:
            return entries[:count]
    return entries


def _item(entry: InboxEntry) -> InboxItem:
    fields = entry.fields
    task = message = order = None
    if b"order" in fields:
        text = {name.decode(): value.decode("utf-8", "replace") for name, value in fields.items()}
        order = {name: value for name, value in text.items() if name not in {"message_type", "data"}}
    elif b"lease" in fields:
        submitted = _decode_task(fields[b"data"])
        codec.decode_json(bytes(submitted.payload))
        task = InboxTask(
            task_id=fields[b"task_id"].decode(),
            lease=fields[b"lease"].decode(),
            attempt=int(fields[b"attempt"]),
            task_type=submitted.task_type,
            payload=submitted.payload,
            timeout=submitted.timeout,
            deadline=submitted.deadline,
            traceparent=submitted.traceparent,
        )
    else:
        message = _message(entry)
    kind = "order" if order is not None else "task" if task is not None else "message"
    return InboxItem(
        ack=str(AckItem.of(entry)),
        kind=kind,
        lane=entry.lane.value,
        received_at=entry_time(entry.id),
        task=task,
        message=message,
        order=order,
    )


def _message(entry: InboxEntry) -> InboxMessage:
    found = codec.decode_message(entry.fields)
    times: dict[str, Any] = {name: iso(getattr(found, name)) for name in ("timestamp", "expires_at")}
    if found.reply_by is not None:
        times["reply_by"] = iso(found.reply_by)
    same = {name: getattr(found, name) for name in InboxMessage.__struct_fields__ if name not in {*times, "reply_by"}}
    return InboxMessage(**same, **times)
