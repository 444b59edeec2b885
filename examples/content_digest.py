"""An agent that takes a file's fingerprint: its SHA-256 and its size. Files with the same one are the same.

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


def digest(place: Path) -> dict[str, Any]:
    """The SHA-256 and the size in bytes of a file, read piece by piece."""
    with place.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        return {"sha256": sha256, "bytes": opened.tell()}


def fingerprint(file: File) -> dict[str, Any]:
    """Handle one task."""
    try:
        return digest(Path(file.root) / file.path)
    except OSError as error:
        raise NonRetryable("unreadable", f"{file.path}: {error.strerror}") from None


def main() -> None:
    """Run the agent until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description="Fingerprint files.")
    parser.add_argument("--id", required=True, help="this agent's name in the fleet, such as digest-1")
    agent = Agent(parser.parse_args().id, agent_type="worker", capabilities=["content_digest"], capacity=8)
    agent.task("content_digest")(fingerprint)
    agent.run()


if __name__ == "__main__":
    try:
        main()
    except CoordError as error:  # no Redis there, or this id is not one
        sys.exit(f"content_digest: {error}")
