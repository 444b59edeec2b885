"""An agent that replaces the names of symbols in a text. It asks the glossary for each of them.

    python examples/conversation/typesetter.py

Its tasks have the type ``typeset`` and a text as payload: ``"A black :snowman: costs 5 :euro:"``. The conversation has
the id of the task. So the glossary's question leads back to the text, which decides what is meant.
"""

from __future__ import annotations

import re
import sys

from coord import Agent, Message, NonRetryable, Task
from coord.errors import CoordError, RequestFailed

#: The name of a symbol in a text, such as :snowman:
NAME = re.compile(r":([a-z][a-z -]*):")
agent = Agent("typesetter", agent_type="worker")
#: Id of a conversation -> the text that it is about.
texts: dict[str, str] = {}


@agent.task("typeset")
async def typeset(text: str, task: Task) -> str:
    """Handle one task."""
    texts[task.task_id] = text
    try:
        for name in dict.fromkeys(NAME.findall(text)):
            symbol = await agent.request("glossary", {"name": name}, correlation_id=task.task_id, timeout=20)
            text = text.replace(f":{name}:", symbol)
    except RequestFailed as error:  # other errors, such as a timeout, are retried with the task
        raise NonRetryable(error.code, str(error)) from None
    finally:
        del texts[task.task_id]
    return text


@agent.on_request
async def choose(message: Message) -> str:
    """Return the name that has most words of the text, the shortest of several."""
    text = texts.get(message.conversation, "")
    words = set(text.upper().split())
    choices: list[str] = message.payload["choose"]
    return max(choices, key=lambda name: (len(words & set(name.split())), -len(name)))


if __name__ == "__main__":
    try:
        agent.run()
    except CoordError as error:  # Redis is unavailable
        sys.exit(f"typesetter: {error}")
