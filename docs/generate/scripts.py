"""The reference of the Lua scripts, from their headers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib.resources import files

from docs.generate.markdown import block, code, prose, table
from workers import lua

ACCESS = {"r": "read", "w": "write", "rw": "read, write"}
#: How a paragraph of notes begins.
NOTE = re.compile(r"(Returns|Events|Orders|Outcomes|Answers|Replies|Also)\b")


@dataclass
class Header:
    """The comment at the top of a script."""

    flags: str = ""
    purpose: list[str] = field(default_factory=list)  #: paragraphs
    include: list[str] = field(default_factory=list)
    moves: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)  #: lines as they are
    notes: list[str] = field(default_factory=list)  #: what it returns, its events, its orders: a paragraph each


def reference() -> str:
    """Return a section for each script, then one for each shared part."""
    parts = sorted(one.name for one in files("workers.lua.lib").iterdir() if one.name.endswith(".lua"))
    scripts = [section(name, f"{name}.lua") for name in lua.NAMES]
    shared = [section(f"lib/{name.removesuffix('.lua')}", f"lib/{name}") for name in parts]
    return "\n".join(["## Scripts\n", *scripts, "## Shared parts\n", *shared])


def section(name: str, path: str) -> str:
    """Return the section of one file."""
    header = parse(files("workers.lua").joinpath(path).read_text())
    lines = [f"### `{name}`\n", *(prose(one) + "\n" for one in header.purpose)]
    if "allow-oom" in header.flags:
        lines.append("Runs also while the server is full.\n")
    if header.moves:
        lines.append("Moves of tasks: " + ", ".join(one.replace(">", " → ") for one in header.moves) + ".\n")
    if header.include:
        lines.append("Shared parts: " + ", ".join(map(code, header.include)) + ".\n")
    if header.keys:
        rows = (one.rsplit(" ", 2) for one in header.keys)
        lines.append(table(("key", "type", "access"), ((code(name), kind, ACCESS[mode]) for name, kind, mode in rows)))
    if header.arguments:
        lines.append("Arguments:\n\n" + block("\n".join(header.arguments)))
    lines += [prose(note) + "\n" for note in header.notes]
    return "\n".join(lines)


def parse(text: str) -> Header:
    """Read the header of a file: comment lines up to the first line of code."""
    header = Header()
    lines = text.splitlines()
    if lines[0].startswith("#!"):
        header.flags = lines.pop(0)
    place = header.purpose
    for line in lines:
        if not line.startswith("--"):
            break
        said = line.removeprefix("--").removeprefix(" ")
        label, _, rest = said.partition(": ")
        if label in {"include", "moves", "keys"}:
            getattr(header, label).extend(rest.split(" | ") if label == "keys" else rest.split())
            place = header.notes
        elif said.startswith(("ARGV", "LIMITS.", "KEYS")):
            place = header.arguments
            place.append(said)
        elif NOTE.match(said) or not place:
            place = header.purpose if place is header.purpose else header.notes
            place.append(said)
        elif place is header.arguments:
            place.append(said)
        else:
            place[-1] += " " + said.strip()
    return header
