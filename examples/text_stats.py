"""An agent that counts the content of a text file: lines, words, the longest line, the most common words.

    python examples/text_stats.py --id stats-1

It connects automatically while ``coord up`` runs. Start as many as you like, each with its own id. Its tasks have the
type ``text_stats`` and the payload ``{"root": "/some/folder", "path": "a/file/below/it.txt"}``.
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

#: A word: letters, with apostrophes inside (don't), at least four characters, so that "the" does not fill the list.
WORD = re.compile(r"[^\W\d_](?:[^\W\d_]|['\u2019](?=[^\W\d_])){3,}")
#: Maximum characters of a word; longer ones are encoded or minified text.
MAX_LENGTH = 60
TOP = 10


class File(msgspec.Struct):
    """A task's payload."""

    root: str
    path: str  #: below root


def text_stats(content: bytes) -> dict[str, Any]:
    """Return the numbers of a text; each byte that is not UTF-8 counts as one unknown character."""
    text = content.decode("utf-8", errors="replace")
    lines = text.splitlines()
    longest = max(range(len(lines)), key=lambda index: len(lines[index]), default=None)
    words = Counter(word.lower() for word in WORD.findall(text) if len(word) <= MAX_LENGTH)
    return {
        "lines": len(lines),
        "blank_lines": sum(not line.strip() for line in lines),
        "words": len(text.split()),
        "characters": len(text),
        "longest_line": None if longest is None else {"line": longest + 1, "characters": len(lines[longest])},
        # Words with equal counts are in alphabetical order, so the same file has the same result everywhere.
        "top_words": sorted(words.items(), key=lambda item: (-item[1], item[0]))[:TOP],
    }


def handle(file: File) -> dict[str, Any]:
    """Handle one task; a file that cannot be read is a permanent failure."""
    try:
        return text_stats((Path(file.root) / file.path).read_bytes())
    except OSError as error:
        raise NonRetryable("unreadable", f"{file.path}: {error.strerror}") from None


def main() -> None:
    """Run the agent until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="Count lines and words of text files.")
    parser.add_argument("--id", required=True, help="id of this agent, such as stats-1")
    agent = Agent(parser.parse_args().id, agent_type="worker", capabilities=["text_stats"], capacity=4)
    agent.task("text_stats")(handle)  # not a coroutine, so each call runs in a thread and heartbeats continue
    agent.run()


if __name__ == "__main__":
    try:
        main()
    except CoordError as error:  # Redis is unavailable, or the id is invalid
        sys.exit(f"text_stats: {error}")
