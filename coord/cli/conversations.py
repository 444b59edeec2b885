"""``coord messages trace``: a conversation as a tree of who answered whom, or as a Mermaid sequence diagram."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from coord.cli.commands import AsJson, Namespace, RedisUrl
from coord.cli.output import age, hint, write_json, write_line
from coord.cli.session import ask
from coord.errors import ConfigError
from coord.models.messages import Conversation, MessageRecord, MessageStatus, RequestState

if TYPE_CHECKING:
    from coord import Client

#: Of messages that nobody has read.
LOST = frozenset({MessageStatus.DEAD, MessageStatus.EXPIRED})
#: What became of a request, for a person.
_REQUESTS = {
    RequestState.OPEN: "request, waits for the reply",
    RequestState.ANSWERED: "request, answered",
    RequestState.TIMED_OUT: "request, timed out",
    RequestState.REFUSED: "request, refused",
}


def trace(
    correlation_id: Annotated[
        str,
        typer.Argument(
            metavar="CONVERSATION", help="Correlation id of the conversation, or id of a message.", show_default=False
        ),
    ],
    *,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a sequence diagram for Mermaid.")] = False,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Show a conversation as a tree: who sent what to whom, in answer to what, and what became of it.

    Records of messages are kept for an hour at least; a conversation shows those that are left.

    Examples:
        coord messages trace talk-1
        coord messages trace talk-1 --mermaid > talk-1.mmd
        coord messages trace talk-1 --json | jq '.messages[] | select(.late)'
    """
    if mermaid and json:
        raise ConfigError("--mermaid and --json exclude each other: choose one")

    async def work(client: Client) -> tuple[Conversation, int]:
        return await client.conversation(correlation_id), await client.server_time()

    found, now = ask(work, redis_url=redis_url, namespace=namespace)
    if json:
        write_json(found)
        return
    for line in diagram_lines(found) if mermaid else tree_lines(found, now):
        write_line(line)
    missing = found.counted - len(found.messages)
    if missing > 0:
        hint(f"{missing} of {found.counted} messages are not kept any more")


def tree_lines(conversation: Conversation, now: int) -> Iterator[str]:
    """Yield the lines of the tree.

    Args:
        conversation: to draw.
        now: the server's time in ms, for the age of each message.
    """
    kept = {record.message_id for record in conversation.messages}
    below: dict[str | None, list[MessageRecord]] = {}
    for record in conversation.messages:
        below.setdefault(record.parent if record.parent in kept else None, []).append(record)
    yield f"conversation {conversation.conversation_id}, {_counted(conversation.counted)}"
    stack = [(record, "", record is below[None][-1]) for record in reversed(below.get(None, []))]
    while stack:
        record, indent, is_last = stack.pop()
        yield f"{indent}{'└─' if is_last else '├─'} {_described(record, now)}"
        deeper = indent + ("   " if is_last else "│  ")
        answers = below.get(record.message_id, [])
        stack += [(answer, deeper, answer is answers[-1]) for answer in reversed(answers)]


def diagram_lines(conversation: Conversation) -> Iterator[str]:
    """Yield the lines of a Mermaid sequence diagram: requests and messages solid, replies dotted, dead ones crossed."""
    names: dict[str, str] = {}
    for record in conversation.messages:
        for agent in (record.sender_id, _receiver(record)):
            names.setdefault(agent, f"p{len(names) + 1}")
    yield "sequenceDiagram"
    for agent, name in names.items():
        yield f"    participant {name} as {agent}"
    for record in conversation.messages:
        sender, receiver = names[record.sender_id], names[_receiver(record)]
        is_dead = record.status in LOST
        arrow = "-x" if is_dead else "-->>" if record.reply_to is not None else "->>"
        yield f"    {sender}{arrow}{receiver}: {_safe(', '.join(_kinds(record)))}"
        if is_dead:
            yield f"    Note over {sender},{receiver}: {_safe(record.reason)}"


def _described(record: MessageRecord, now: int) -> str:
    reason = f": {record.reason}" if record.status in LOST else ""
    way, kinds = f"{record.sender_id} > {_receiver(record)}", ", ".join(_kinds(record))
    return f"{way}  {kinds}  {age(record.sent_at, now)} ago  {record.message_id}{reason}"


def _kinds(record: MessageRecord) -> list[str]:
    """Return what a message is: its type, its role in the conversation, and what became of it."""
    kinds = [record.message_type]
    if record.request is not None:
        kinds.append(_REQUESTS[record.request])
    elif record.reply_to is not None:
        kinds.append("failed reply" if record.failed else "reply")
    if record.late:
        kinds.append("late")
    if record.status in LOST:
        kinds.append(record.status.value)
    return kinds


def _receiver(record: MessageRecord) -> str:
    """Return to whom a message goes; of a broadcast the number of agents."""
    if record.recipient_count is None:
        return record.receiver_id
    return "1 agent" if record.recipient_count == 1 else f"{record.recipient_count} agents"


def _counted(count: int) -> str:
    return "1 message" if count == 1 else f"{count} messages"


def _safe(text: str) -> str:
    """Return text without the characters that end a line of Mermaid, or begin an entity."""
    return " ".join(text.replace(";", ",").replace("#", "no. ").split())
