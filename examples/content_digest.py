"""An agent that computes the digest of a file: its SHA-256 and its size. Files with equal digests are equal.

    python examples/content_digest.py --id digest-1

Its tasks are of type ``content_digest``, with the payload ``{"root": "/some/folder", "path": "a/file/below/it"}``.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Any

import msgspec

from coord import Agent, NonRetryable
from coord.errors import CoordError


class File(msgspec.Struct):
    """A task's payload."""

    root: str
    path: str  #: below root


def digest(path: Path) -> dict[str, Any]:
    """Return the SHA-256 and the size in bytes of a file, which is read in pieces."""
    with path.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        return {"sha256": sha256, "bytes": opened.tell()}


def handle(file: File) -> dict[str, Any]:
    """Handle one task."""
    try:
        return digest(Path(file.root) / file.path)
    except OSError as error:
        raise NonRetryable("unreadable", f"{file.path}: {error.strerror}") from None


def main() -> None:
    """Run the agent until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="Compute digests of files.")
    parser.add_argument("--id", required=True, help="id of this agent, such as digest-1")
    agent = Agent(parser.parse_args().id, agent_type="worker", capabilities=["content_digest"], capacity=8)
    agent.task("content_digest")(handle)
    agent.run()


if __name__ == "__main__":
    try:
        main()
    except CoordError as error:  # Redis is unavailable, or the id is invalid
        sys.exit(f"content_digest: {error}")
