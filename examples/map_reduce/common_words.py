"""Shows the most common words of all files of a folder: a task for each file, then a tree of tasks that merge.

    python examples/map_reduce/common_words.py docs '*.md'

The id of each task is a digest of its input. So a second run does no work, and after a change of one file only that
file and the path from it to the root of the tree are computed again.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coord import Client, TaskSpec
from coord.errors import CoordError, TaskFailed

#: Tasks whose results one task merges.
FAN_IN = 4
TOP = 10


class Tree:
    """Submits the tasks of a level together, and passes the ids of the completed ones to the next level.

    Args:
        client: an open client.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self.tasks = self.new = 0  #: all tasks so far, and those of them that no earlier run has submitted

    async def common_words(self, files: Sequence[Path]) -> dict[str, int]:
        """Map and reduce: return how often each word is in the files."""
        done = await self._run([_count(path) for path in files])
        while len(done) > 1:
            groups = [done[begin : begin + FAN_IN] for begin in range(0, len(done), FAN_IN)]
            merged = await self._run([_merge(group) for group in groups if len(group) > 1])
            done = merged + [group[0] for group in groups if len(group) == 1]
        return dict(await self._client.handle(done[0]).result()) if done else {}

    async def _run(self, specs: Sequence[TaskSpec]) -> list[str]:
        """Submit tasks, wait until they have ended, and return the ids of the completed ones."""
        records = await self._client.tasks([str(spec.task_id) for spec in specs])
        self.tasks += len(specs)
        self.new += records.count(None)
        done: list[str] = []
        for handle in await self._client.submit_many(specs):
            try:
                await handle.result()
                done.append(handle.task_id)
            except TaskFailed as error:  # one file less
                print(error, file=sys.stderr)
        return done


def _count(path: Path) -> TaskSpec:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return _spec("count_words", {"path": str(path), "sha256": sha256}, f"{path} {sha256}")


def _merge(parts: Sequence[str]) -> TaskSpec:
    return _spec("merge_words", {"parts": list(parts)}, " ".join(parts))


def _spec(task_type: str, payload: dict[str, Any], content: str) -> TaskSpec:
    task_id = f"{task_type}-{hashlib.sha256(content.encode()).hexdigest()[:24]}"
    return TaskSpec(task_id=task_id, task_type=task_type, payload=payload)


async def _main() -> None:
    parser = argparse.ArgumentParser(description="Show the most common words of the files of a folder.")
    parser.add_argument("folder", type=Path, help="the folder; agents on other machines need it at the same path")
    parser.add_argument("pattern", nargs="?", default="*", help="names of the files, such as '*.md' [*]")
    options = parser.parse_args()
    if not options.folder.is_dir():
        parser.error(f"{str(options.folder)!r} is not a folder")
    files = sorted(path for path in options.folder.resolve().rglob(options.pattern) if path.is_file())
    async with Client() as client:
        tree = Tree(client)
        words = await tree.common_words(files)
    print(f"{len(files)} files, {tree.tasks} tasks, {tree.new} of them new")
    for word, count in list(words.items())[:TOP]:
        print(f"{count:8,}  {word}")


if __name__ == "__main__":
    try:
        asyncio.run(_main())
    except (CoordError, OSError) as error:  # Redis is unavailable; a file cannot be read
        sys.exit(f"common_words: {error}")
    except KeyboardInterrupt:
        sys.exit(130)  # the next run continues
