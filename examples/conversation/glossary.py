"""An agent that knows symbols by their names. It asks back if a name is ambiguous.

    python examples/conversation/glossary.py

A request has the payload ``{"name": "snowman"}``; the reply is the symbol. If several symbols fit, the glossary sends
the requester a request of its own, ``{"name": "snowman", "choose": ["SNOWMAN", "BLACK SNOWMAN", …]}``, and waits for
the choice before it replies.
"""

from __future__ import annotations

import sys
import unicodedata

import msgspec

from coord import Agent, Message, NonRetryable
from coord.errors import CoordError

#: Maximum symbols to choose from.
CHOICES = 20
#: Name of a symbol (signs of currency, mathematics and others) -> the symbol.
SYMBOLS = {
    name: symbol
    for symbol in map(chr, range(sys.maxunicode + 1))
    if unicodedata.category(symbol) in {"Sc", "Sm", "So"} and (name := unicodedata.name(symbol, ""))
}
agent = Agent("glossary", agent_type="specialist", services=["symbols"])


class Question(msgspec.Struct):
    """The payload of a request."""

    name: str


@agent.on_request
async def find(message: Message) -> str:
    """Return the symbol."""
    try:
        question = msgspec.convert(message.payload, Question)
    except msgspec.ValidationError as error:
        raise NonRetryable("payload_invalid", str(error)) from None
    wanted = question.name.upper().split()
    found = [name for name in SYMBOLS if wanted and set(wanted) <= set(name.split())]
    if not found:
        raise NonRetryable("no_such_symbol", f"no symbol has the name {question.name!r}")
    if len(found) == 1:
        return SYMBOLS[found[0]]
    choices = sorted(found, key=lambda name: (len(name), name))[:CHOICES]
    choice = await agent.request(message.sender_id, {"name": question.name, "choose": choices}, timeout=10)
    if choice not in choices:
        raise NonRetryable("no_such_choice", f"{choice!r} is not one of the {len(choices)} choices")
    return SYMBOLS[choice]


if __name__ == "__main__":
    try:
        agent.run()
    except CoordError as error:  # Redis is unavailable
        sys.exit(f"glossary: {error}")
