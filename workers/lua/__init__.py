"""Loads the Lua scripts: each file, inside the shared parts of ``lib`` that it includes.

An ``include`` line names the parts that a file uses itself; these may include others. The shebang stays the first line,
because the server reads the script's flags from it. Headers are data as well: tests compare their ``moves`` with
``coord.models.tasks.MOVES``, their ``keys`` with the keys that the code touches, and their arguments with the code.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import NamedTuple

NAMES = (
    "admit",
    "cancel",
    "change_api_key",
    "change_links",
    "change_status",
    "change_tasks",
    "change_token",
    "check_leases",
    "check_tokens",
    "configure",
    "count_waiting",
    "dead_letter",
    "deliver",
    "deliver_broadcast",
    "deregister",
    "dispatch",
    "drain",
    "end_requests",
    "expire_messages",
    "freeze_recipients",
    "heartbeat",
    "hold_lanes",
    "learn",
    "prune",
    "purge",
    "reclaim",
    "reclaim_lease",
    "record_plans",
    "redeliver",
    "register",
    "relieve",
    "replay",
    "requeue",
    "run_alarms",
    "settle",
    "share_pushes",
    "tick_liveness",
    "worker_heartbeat",
)

#: A function of the outermost level: it begins and ends at the first column.
_FUNCTION = re.compile(r"^local function (?P<name>\w+)\(.*?^end\n", re.MULTILINE | re.DOTALL)
_WORD = re.compile(r"[A-Za-z_]\w*")
_SEAM = "\n--\n"


class Source(NamedTuple):
    """A script as it is sent to the server."""

    name: str
    text: str
    sha: str  #: its name for EVALSHA


@cache
def load(name: str) -> Source:
    """Return the script ``name``, inside the parts that it includes, directly or through other parts."""
    own = _read(f"{name}.lua")
    shebang, body = own.split("\n", 1) if own.startswith("#!") else ("", own)
    text = assemble(body)
    text = f"{shebang}\n{text}" if shebang else text
    return Source(name, text, sha1(text.encode(), usedforsecurity=False).hexdigest())


def assemble(text: str) -> str:
    """Return a script inside the parts that it includes, without its comments."""
    parts = [_read(f"lib/{part}.lua") for part in parts_of(text)]
    joined = _SEAM.join(_without_comments(part) for part in [*parts, text])
    return _nested(_without_unused(joined).split(_SEAM))


def parts_of(text: str) -> list[str]:
    """Return the names of the parts that a script or a part includes, each after those that it includes itself."""
    return list(_parts_of(text))


@cache
def _parts_of(text: str) -> dict[str, None]:
    found: dict[str, None] = {}
    for part in included(text):
        found |= dict.fromkeys([*_parts_of(_read(f"lib/{part}.lua")), part])
    return found


def included(text: str) -> list[str]:
    """Return the names in the ``include`` line of a script or a part."""
    line = re.search(r"^-- include: (.+)$", text, re.MULTILINE)
    return line[1].split() if line else []


def moves(name: str) -> frozenset[tuple[str, str]]:
    """Return the moves between states that the script's header declares; ``none`` stands for no record."""
    lines = re.findall(r"^-- moves: (.+)$", _read(f"{name}.lua"), re.MULTILINE)
    edges = (edge.partition(">") for line in lines for edge in line.split())
    return frozenset((before, after) for before, _, after in edges)


def without_shebang(source: Source) -> Source:
    """Return the same script for a server that does not know the ``#!lua`` line (fakeredis)."""
    text = source.text.split("\n", 1)[1] if source.text.startswith("#!") else source.text
    return Source(source.name, text, sha1(text.encode(), usedforsecurity=False).hexdigest())


@cache
def _read(path: str) -> str:
    return files(__name__).joinpath(path).read_text(encoding="utf-8")


@cache
def _without_comments(text: str) -> str:
    """Return the script without its comment lines: the server need not hold them in memory."""
    return "\n".join(line for line in text.split("\n") if not line.lstrip().startswith("--"))


def _without_unused(text: str) -> str:
    """Return the script without the functions that it does not call.

    The server creates every function of a script at each call, and Lua's garbage collector visits them all.
    """
    uses = Counter(_WORD.findall(text))
    while True:
        words: list[str] = []  # of what is removed in this round

        def kept(function: re.Match[str], words: list[str] = words) -> str:
            if uses[function["name"]] != 1:
                return function[0]
            words += _WORD.findall(function[0])
            return ""

        text = _FUNCTION.sub(kept, text)
        if not words:
            return text
        uses.subtract(words)


def _nested(parts: Sequence[str]) -> str:
    """Return one script of which each part is a function inside the part before it.

    A part sees the names of the parts before it as in one file. But Lua finds a name of an enclosing function at once,
    and a local variable of the same function by walking through all that other functions share.
    """
    return "\nreturn (function(...)\n".join(parts) + "\nend)(...)" * (len(parts) - 1)
