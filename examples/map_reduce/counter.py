"""An agent for both halves of a map-reduce: it counts the words of a file, and merges counts.

    python examples/map_reduce/counter.py --id counter-1

``count_words`` has the payload ``{"path": "/a/file", "sha256": "…"}``. ``merge_words`` has the payload
``{"parts": [ids]}``, ids of completed tasks. It reads their results from coord, so a payload is never large.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import re
import sys
from collections import Counter
from pathlib import Path

import msgspec

from coord import Agent, Client, NonRetryable
from coord.errors import CoordError

#: A word: letters, four at least, so that "the" is not one.
WORD = re.compile(r"[^\W\d_]{4,60}")
#: Maximum words of a result, the most common ones, so that no result is too large.
KEEP = 20_000


class File(msgspec.Struct):
    """The payload of ``count_words``."""

    path: str
    sha256: str


class Merge(msgspec.Struct):
    """The payload of ``merge_words``."""

    parts: list[str]


def count_words(file: File) -> dict[str, int]:
    """Map: return how often each word is in a file."""
    try:
        content = Path(file.path).read_bytes()
    except OSError as error:
        raise NonRetryable("unreadable", f"{file.path}: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise NonRetryable("changed", f"{file.path} has changed since the task was submitted")
    words = WORD.findall(content.decode(errors="replace"))
    return most_common(Counter(word.lower() for word in words))


def most_common(counts: Counter[str]) -> dict[str, int]:
    """Return the most common words; of words with equal counts, the first ones in alphabetical order."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:KEEP])


def main() -> None:
    """Run the agent until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="Count words of files, and merge counts.")
    parser.add_argument("--id", required=True, help="id of this agent, such as counter-1")
    agent = Agent(parser.parse_args().id, agent_type="worker", capacity=4)
    client = Client()

    async def merge_words(merge: Merge) -> dict[str, int]:
        """Reduce: return the sums of the counts of several tasks."""
        total: Counter[str] = Counter()
        for counts in await asyncio.gather(*(client.handle(part).result() for part in merge.parts)):
            total.update(counts)
        return most_common(total)

    agent.on_start(client.open)
    agent.on_stop(client.close)
    agent.task("count_words")(count_words)
    agent.task("merge_words")(merge_words)
    agent.run()


if __name__ == "__main__":
    try:
        main()
    except CoordError as error:  # Redis is unavailable, or the id is invalid
        sys.exit(f"counter: {error}")
