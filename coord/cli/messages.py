"""``coord messages``: send a message; show messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from coord.cli import parse
from coord.cli.agents import check_receiver
from coord.cli.commands import AsJson, Namespace, RedisUrl, group, register
from coord.cli.conversations import trace
from coord.cli.output import (
    MESSAGE_STATUS,
    age,
    hint,
    hint_next_page,
    moment,
    write_fields,
    write_items,
    write_json,
    write_line,
    write_table,
)
from coord.cli.parse import Duration
from coord.cli.session import ask
from coord.errors import FactInvalid
from coord.models.agents import AgentStatus, AgentType
from coord.models.ids import SUBORDINATES
from coord.models.messages import MessageRecord, MessageStatus, MessageType, Protocol, Recipient
from coord.models.tasks import Priority

if TYPE_CHECKING:
    from coord import Client
    from coord.client.broadcasts import BroadcastOptions, BroadcastReceipt
    from coord.client.receipts import Receipt
    from coord.queries import MessagePage, RecipientPage

#: Recipients that ``show`` lists.
RECIPIENTS = 1_000

Payload = Annotated[
    str | None, typer.Argument(metavar="PAYLOAD", help="Payload as JSON; - reads it from standard input.")
]
Sender = Annotated[str | None, typer.Option(metavar="ID", help="Id of the sender.", show_default="a new id")]
InboxLane = Annotated[Priority, typer.Option(help="Lane of the inbox.")]
TimeToLive = Annotated[
    float | None,
    typer.Option(click_type=Duration(above=True), metavar="TIME", help="Time to live: 30s, 10m.", show_default="5m"),
]
CorrelationId = Annotated[str | None, typer.Option(metavar="ID", help="Id of the conversation.")]
NewMessageId = Annotated[
    str | None,
    typer.Option("--id", help="Id of the message; a repeated id is delivered once.", show_default="a new id"),
]
Wait = Annotated[
    float,
    typer.Option(click_type=Duration(), metavar="TIME", help="Time to wait for a router.", show_default="10s"),
]
MessageId = Annotated[str, typer.Argument(help="Id of the message.", show_default=False)]

#: Beginning of an error about a broadcast -> the same with the option that was typed.
TYPED = {
    "capabilities": "--capability",
    "services": "--service",
    "tags": "--tag",
    "labels": "--label",
    "statuses": "--status",
    "message_type": "--message-type",
    "ttl": "--ttl",
}


def send(
    receiver: Annotated[
        str,
        typer.Argument(help="Id of the agent; with --protocol hierarchical also 'subordinates'.", show_default=False),
    ],
    payload: Payload = None,
    *,
    sender: Sender = None,
    message_type: Annotated[MessageType, typer.Option("--type", help="Type that the agent sees.")] = MessageType.DIRECT,
    protocol: Annotated[
        Protocol | None, typer.Option(help="Rule that the message must meet.", show_default="from the type, or direct")
    ] = None,
    priority: InboxLane = Priority.NORMAL,
    ttl: TimeToLive = None,
    correlation_id: CorrelationId = None,
    reply_to: Annotated[str | None, typer.Option(metavar="ID", help="Id of the message that this one answers.")] = None,
    message_id: NewMessageId = None,
    wait: Wait = 10.0,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Send a message to an agent; prints the message id once it is in the agent's inbox.

    Exit code 1: the agent does not exist or has left, its inbox is full, or the protocol forbids the message; 3: no
    router answered in time, and the message waits for one. --json shows the state of each receiver and the number of
    entries before the message in its inbox.

    Examples:
        coord messages send ocr-1 '{"text": "reload your models"}'
        coord messages send subordinates '"pause"' --sender lead --protocol hierarchical
        coord messages send ocr-1 - --priority high --ttl 30s < order.json
    """
    body = parse.payload(payload)

    async def work(client: Client) -> Receipt:
        if receiver != SUBORDINATES:
            await check_receiver(client, receiver)
        return await client.send(
            receiver,
            body,
            sender_id=sender,
            message_type=message_type,
            protocol=protocol,
            priority=priority,
            ttl=ttl,
            correlation_id=correlation_id,
            reply_to=reply_to,
            message_id=message_id,
            timeout=wait,
        )

    receipt = ask(work, redis_url=redis_url, namespace=namespace)
    if json:
        write_json(receipt)
    else:
        write_line(receipt.message_id)
        for one in receipt.recipients:
            if text := _note(one):
                hint(text)


def _note(one: Recipient) -> str:
    """Return what a sender should know of a recipient; empty: it is there."""
    if one.code:
        return f"agent '{one.agent_id}' did not get it: {one.code}"
    if one.deaf:
        return f"agent '{one.agent_id}' does not read its inbox at the moment; the message waits there until it expires"
    if one.state == AgentStatus.STALE:
        return f"agent '{one.agent_id}' is stale; the message waits in its inbox until it expires"
    return ""


def broadcast(
    payload: Payload = None,
    *,
    capability: Annotated[
        list[str] | None, typer.Option(help="Only agents with this capability; repeatable.", show_default=False)
    ] = None,
    agent_type: Annotated[AgentType | None, typer.Option(help="Only agents of this type.")] = None,
    service: Annotated[list[str] | None, typer.Option(help="Only agents with this service; repeatable.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="Only agents with this tag; repeatable.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Only agents with this label; repeatable.")
    ] = None,
    status: Annotated[
        list[AgentStatus] | None,
        typer.Option(help="Only agents with one of these statuses; repeatable.", show_default="active"),
    ] = None,
    message_type: Annotated[
        MessageType | None, typer.Option(help="Type of the message: broadcast, or a topic.", show_default="broadcast")
    ] = None,
    sender: Sender = None,
    priority: InboxLane = Priority.NORMAL,
    ttl: TimeToLive = None,
    correlation_id: CorrelationId = None,
    message_id: NewMessageId = None,
    wait: Wait = 10.0,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Send a message to every agent that matches; prints the message id and the number of recipients.

    Without filters every active agent gets it. Exit code 3: no router answered in time, and the message waits for one.

    Examples:
        coord messages broadcast '{"text": "reload your models"}' --capability ocr
        coord messages broadcast --tag gpu --label zone=eu --priority high - < order.json
    """
    body = parse.payload(payload)
    options: BroadcastOptions = {
        "agent_type": agent_type,
        "capabilities": capability or (),
        "services": service or (),
        "tags": tag or (),
        "labels": parse.pairs(label or (), "--label"),
        "priority": priority,
        "ttl": ttl,
        "correlation_id": correlation_id,
        "message_id": message_id,
    }
    if status:
        options["statuses"] = status
    if message_type is not None:
        options["message_type"] = message_type

    async def work(client: Client) -> BroadcastReceipt:
        try:
            return await client.broadcast(body, sender_id=sender, timeout=wait, **options)
        except FactInvalid as error:
            raise type(error)(_as_typed(str(error))) from None

    receipt = ask(work, redis_url=redis_url, namespace=namespace)
    if json:
        write_json(receipt)
        return
    write_line(receipt.message_id)
    dead = receipt.recipients - receipt.delivered
    hint(f"recipients: {receipt.recipients}" + (f"; not delivered: {dead}" if dead else ""))


def recipients(
    message_id: MessageId,
    *,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Maximum number of recipients.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Continue from this cursor.")] = None,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """List the recipients of a message by id, and what became of it for each of them.

    Examples:
        coord messages recipients 0199f6a2-6a0c-7c65-9f38-0d1f1a7e6c55
    """

    async def work(client: Client) -> RecipientPage:
        return await client.message_recipients(message_id, limit=limit, cursor=cursor)

    page = ask(work, redis_url=redis_url, namespace=namespace)
    if json:
        write_items(page.recipients, next=page.next)
        return
    write_table(
        ("agent", "status", "reason", "dead letter"),
        [(one.agent_id, one.status, one.code, one.dead_letter) for one in page.recipients],
        styles={"status": MESSAGE_STATUS},
    )
    if page.next is not None:
        options = {"--limit": limit, "--namespace": namespace}
        hint_next_page(f"coord messages recipients {message_id}", options, page.next)


def list_(
    *,
    agent: Annotated[
        str | None, typer.Option(metavar="ID", help="Only messages that this agent sent or receives.")
    ] = None,
    conversation: Annotated[
        str | None, typer.Option(metavar="ID", help="Only messages with this correlation id, and the one with this id.")
    ] = None,
    status: Annotated[MessageStatus | None, typer.Option(help="Only messages with this status.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Maximum number of messages.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Continue from this cursor.")] = None,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """List messages whose records are kept, newest first.

    Examples:
        coord messages list --agent ocr-1
        coord messages list --status dead --json | jq '.items[].reason'
    """

    async def work(client: Client) -> tuple[MessagePage, int]:
        page = await client.list_messages(
            agent_id=agent, conversation_id=conversation, status=status, limit=limit, cursor=cursor
        )
        return page, await client.server_time()

    page, now = ask(work, redis_url=redis_url, namespace=namespace)
    if json:
        write_items(page.messages, next=page.next)
        return
    write_table(
        ("message", "type", "priority", "from", "to", "status", "age", "expires", "reason"),
        [
            (
                record.message_id,
                record.message_type,
                record.priority,
                record.sender_id,
                _receiver(record),
                record.status,
                age(record.sent_at, now),
                moment(record.expires_at),
                record.reason,
            )
            for record in page.messages
        ],
        right=["age"],
        styles={"status": MESSAGE_STATUS},
    )
    if page.next is not None:
        filters = {
            "--agent": agent,
            "--conversation": conversation,
            "--status": status,
            "--limit": limit,
            "--namespace": namespace,
        }
        hint_next_page("coord messages list", filters, page.next)


def show(
    message_id: MessageId,
    *,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Show a message: sender, receiver, payload and delivery status; for several receivers the status of each.

    Examples:
        coord messages show 0199f6a2-6a0c-7c65-9f38-0d1f1a7e6c55
    """

    async def work(client: Client) -> tuple[MessageRecord, RecipientPage]:
        return await client.message(message_id), await client.message_recipients(message_id, limit=RECIPIENTS)

    record, page = ask(work, redis_url=redis_url, namespace=namespace)
    if json:
        write_json(msgspec.to_builtins(record) | {"recipients": page.recipients})
        return
    write_fields(
        {
            "message": record.message_id,
            "type": record.message_type,
            "protocol": record.protocol,
            "priority": record.priority,
            "from": record.sender_id,
            "to": _receiver(record),
            "status": record.status,
            "reason": record.reason,
            "sent": moment(record.sent_at),
            "expires": moment(record.expires_at),
            "conversation": record.conversation or record.correlation_id,
            "answers": record.parent or record.reply_to,
            "request": record.request,
            "late": "yes" if record.late else None,
            "failed": "yes" if record.failed else None,
            "traceparent": record.traceparent,
            "payload": record.payload,
            **_recipients(record, page),
        }
    )
    if record.recipient_count:
        hint(f"coord messages recipients {message_id} shows what became of it for each recipient")


def _as_typed(problem: str) -> str:
    """Return an error about an option of ``Client.broadcast`` with the name of the option that was typed."""
    for field, option in TYPED.items():
        if problem.startswith(field):
            return option + problem.removeprefix(field)
    return problem


def _receiver(record: MessageRecord) -> str:
    """Return to whom a message goes: an agent, or the number of recipients of a broadcast."""
    if record.recipient_count is None:
        return record.receiver_id
    dead = f", {record.dead} dead" if record.dead else ""
    return f"{record.recipient_count} agents ({record.delivered} delivered{dead})"


def _recipients(record: MessageRecord, page: RecipientPage) -> dict[str, str]:
    """Return the recipients of a message to several agents by status; those of a broadcast have their own command."""
    if record.recipient_count is not None or [one.agent_id for one in page.recipients] == [record.receiver_id]:
        return {}
    found: dict[str, list[str]] = {}
    for one in page.recipients:
        found.setdefault(one.status, []).append(f"{one.agent_id} ({one.code})" if one.code else one.agent_id)
    more = " and more" if page.next is not None else ""
    return {f"{status} {len(agents)}{'+' if more else ''}": " ".join(agents) + more for status, agents in found.items()}


messages = group("messages", "Send messages to agents; show messages.")
register(messages, send)
register(messages, broadcast)
register(messages, list_, "list")
register(messages, show)
register(messages, recipients)
register(messages, trace)
