"""``coord messages``: send one, and look at those that were sent."""

from __future__ import annotations

from typing import Annotated

import typer

from coord.cli import parse
from coord.cli.commands import AsJson, Namespace, RedisUrl, group, register
from coord.cli.output import hint, moment, write_fields, write_json, write_line, write_table
from coord.cli.session import ask
from coord.models.messages import MessageStatus
from coord.models.tasks import Priority


def send(
    receiver: Annotated[str, typer.Argument(help="The agent.", show_default=False)],
    payload: Annotated[str | None, typer.Argument(metavar="PAYLOAD", help="JSON; - for standard input.")] = None,
    *,
    sender: Annotated[str | None, typer.Option(metavar="ID", help="Who sends.", show_default="a new id")] = None,
    priority: Annotated[Priority, typer.Option(help="Which lane of the inbox.")] = Priority.NORMAL,
    ttl: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Not handled after that.", show_default="300")
    ] = None,
    correlation_id: Annotated[str | None, typer.Option(metavar="ID", help="What it belongs to.")] = None,
    reply_to: Annotated[str | None, typer.Option(metavar="ID", help="The message that it answers.")] = None,
    message_id: Annotated[
        str | None, typer.Option("--id", help="Its id; the same again is delivered once.", show_default="a new one")
    ] = None,
    wait: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="How long a router may take.")] = 10.0,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Send a message to an agent; prints its id when it lies in the agent's inbox.

    Exit code 1: there is no such agent, or its inbox is full; 3: no router answered, and the message waits for one.

    Examples:
        coord messages send ocr-1 '{"text": "reload your models"}'
        coord messages send ocr-1 - --priority high --ttl 30 < order.json
    """
    body = parse.payload(payload)
    receipt = ask(
        lambda client: client.send(
            receiver,
            body,
            sender_id=sender,
            priority=priority,
            ttl=ttl,
            correlation_id=correlation_id,
            reply_to=reply_to,
            message_id=message_id,
            timeout=wait,
        ),
        redis_url=redis_url,
        namespace=namespace,
    )
    if json:
        write_json(receipt)
    else:
        write_line(receipt.message_id)


def list_(
    *,
    agent: Annotated[str | None, typer.Option(metavar="ID", help="Sent or received by this agent.")] = None,
    status: Annotated[MessageStatus | None, typer.Option(help="Of this status.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Go on after a list that named this.")] = None,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """List messages, the last first: those whose records are still kept.

    Examples:
        coord messages list --agent ocr-1
        coord messages list --status dead --json | jq '.messages[].reason'
    """
    page = ask(
        lambda client: client.list_messages(agent_id=agent, status=status, limit=limit, cursor=cursor),
        redis_url=redis_url,
        namespace=namespace,
    )
    if json:
        write_json(page)
        return
    write_table(
        ("message", "type", "priority", "from", "to", "status", "sent", "expires", "reason"),
        [
            (
                one.message_id,
                one.message_type,
                one.priority,
                one.sender_id,
                one.receiver_id,
                one.status,
                moment(one.sent_at),
                moment(one.expires_at),
                one.reason,
            )
            for one in page.messages
        ],
    )
    if page.next is not None:
        hint(f"there may be more: coord messages list --cursor {page.next}")


def show(
    message_id: Annotated[str, typer.Argument(help="The message.", show_default=False)],
    *,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Show a message: who sent what to whom, and whether it was delivered.

    Examples:
        coord messages show 0199f6a2-6a0c-7c65-9f38-0d1f1a7e6c55
    """
    record = ask(lambda client: client.message(message_id), redis_url=redis_url, namespace=namespace)
    if json:
        write_json(record)
        return
    write_fields(
        {
            "message": record.message_id,
            "type": record.message_type,
            "priority": record.priority,
            "from": record.sender_id,
            "to": record.receiver_id,
            "status": record.status,
            "reason": record.reason,
            "sent": moment(record.sent_at),
            "expires": moment(record.expires_at),
            "payload": record.payload,
        }
    )


messages = group("messages", "Send messages to agents, and look at those that were sent.")
register(messages, send)
register(messages, list_, "list")
register(messages, show)
