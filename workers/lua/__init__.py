"""Loads the Lua scripts: each file with the shared parts that its ``include`` line names put in front of it.

The shebang stays the first line, for the server reads the script's flags from it. Headers are data as well: a test
compares the ``moves`` that they declare with ``coord.models.tasks.MOVES``, and another their ``keys`` with what they
touch.
"""

from __future__ import annotations

import re
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import NamedTuple

NAMES = (
    "admit",
    "cancel",
    "change_status",
    "check_leases",
    "configure",
    "dead_letter",
    "deliver",
    "deregister",
    "dispatch",
    "drain",
    "heartbeat",
    "purge",
    "reclaim",
    "reclaim_lease",
    "redeliver",
    "register",
    "relieve",
    "replay",
    "requeue",
    "run_alarms",
    "settle",
    "tick_liveness",
    "worker_heartbeat",
)


class Source(NamedTuple):
    """A script as it is sent to the server."""

    name: str
    text: str
    sha: str  #: what EVALSHA calls it by


@cache
def load(name: str) -> Source:
    """The script ``name`` with its shared parts."""
    own = _read(f"{name}.lua")
    shebang, body = own.split("\n", 1) if own.startswith("#!") else ("", own)
    included = re.search(r"^-- include: (.+)$", body, re.MULTILINE)
    parts = [_read(f"lib/{part}.lua") for part in (included[1].split() if included else [])]
    text = "\n".join(_bare(part) for part in [*parts, body])
    text = f"{shebang}\n{text}" if shebang else text
    return Source(name, text, sha1(text.encode(), usedforsecurity=False).hexdigest())


def moves(name: str) -> frozenset[tuple[str, str]]:
    """The moves between states that the script's header declares; ``none`` stands for no record."""
    lines = re.findall(r"^-- moves: (.+)$", _read(f"{name}.lua"), re.MULTILINE)
    edges = (edge.partition(">") for line in lines for edge in line.split())
    return frozenset((before, after) for before, _, after in edges)


def without_shebang(source: Source) -> Source:
    """The same script for a server that does not know the ``#!lua`` line (fakeredis)."""
    text = source.text.split("\n", 1)[1] if source.text.startswith("#!") else source.text
    return Source(source.name, text, sha1(text.encode(), usedforsecurity=False).hexdigest())


def _read(path: str) -> str:
    return files(__name__).joinpath(path).read_text(encoding="utf-8")


def _bare(text: str) -> str:
    """The script without its comment lines: the header is for readers, not for the server's memory."""
    return "\n".join(line for line in text.split("\n") if not line.lstrip().startswith("--"))
