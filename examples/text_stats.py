"""An agent that counts what is in a text file: lines, words, the longest line, the most common words.

    python examples/text_stats.py --id stats-1

It finds Redis by itself while ``coord up`` runs. Start as many as you like, each under an id of its own. Its tasks are
of type ``text_stats``, with the payload ``{"root": "/some/folder", "path": "a/file/below/it.txt"}``.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from coord import Agent, NonRetryable
from coord.errors import CoordError

#: A word: letters, with apostrophes inside (don't), of four characters at least, so that more than "the" shows.
WORD = re.compile(r"[^\W\d_](?:[^\W\d_]|['\u2019](?=[^\W\d_])){3,}")
#: Characters of the longest one: what is longer is encoded or minified, and may be as long as its file.
LONGEST = 60
TOP = 10


class File(msgspec.Struct):
    """A task's payload."""

    root: str
    path: str  #: below root


def text_stats(content: bytes) -> dict[str, Any]:
    """What is in a text; bytes that are not UTF-8 count as one unknown character each."""
    text = content.decode("utf-8", errors="replace")
    lines = text.splitlines()
    longest = max(range(len(lines)), key=lambda index: len(lines[index]), default=None)
    words = Counter(word.lower() for word in WORD.findall(text) if len(word) <= LONGEST)
    return {
        "lines": len(lines),
        "blank_lines": sum(not line.strip() for line in lines),
        "words": len(text.split()),
        "characters": len(text),
        "longest_line": None if longest is None else {"line": longest + 1, "characters": len(lines[longest])},
        # The alphabet decides between equals, so that the same file has the same result everywhere.
        "top_words": sorted(words.items(), key=lambda item: (-item[1], item[0]))[:TOP],
    }


def count(file: File) -> dict[str, Any]:
    """Handle one task; a file that cannot be read now could not be read on another try either."""
    try:
        return text_stats((Path(file.root) / file.path).read_bytes())
    except OSError as error:
        raise NonRetryable("unreadable", f"{file.path}: {error.strerror}") from None


def main() -> None:
    """Run the agent until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="Count lines and words of text files.")
    parser.add_argument("--id", required=True, help="this agent's name in the fleet, such as stats-1")
    agent = Agent(parser.parse_args().id, agent_type="worker", capabilities=["text_stats"], capacity=4)
    agent.task("text_stats")(count)  # not a coroutine, so each call runs in a thread and the agent goes on beating
    agent.run()


if __name__ == "__main__":
    try:
        main()
    except CoordError as error:  # no Redis there, or this id is not one
        sys.exit(f"text_stats: {error}")
