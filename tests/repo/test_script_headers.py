"""The headers of the Lua files: what goes in and out, and the keys that each touches, as in the data dictionary."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.resources import files
from typing import Any, NamedTuple

import pytest

from coord import keys
from coord.config import Settings
from coord.keys import Keys
from workers import lua
from workers.transitions import BATCH_SCRIPTS, Call, Scripts

#: What must go on when the server is full, or a full server never drains: the scripts in a distributor's round trips,
#: what an operator does to make room, what buries a bad entry (or it holds up its batch), and what gives agents up.
#: The others bring something in: dispatch, which pushes, and what agents and senders say.
ALLOW_OOM = {
    "admit", "cancel", "change_api_key", "change_tasks", "change_token", "check_leases", "check_tokens", "configure",
    "count_waiting", "dead_letter", "deregister", "expire_messages", "hold_lanes", "prune", "purge", "reclaim",
    "reclaim_lease", "relieve", "replay", "requeue", "run_alarms", "settle", "share_pushes", "tick_liveness",
    "worker_heartbeat",
}  # fmt: skip
PARTS = tuple(
    sorted(one.name.removesuffix(".lua") for one in files("workers.lua.lib").iterdir() if one.name.endswith(".lua"))
)
FILES = (*lua.NAMES, *(f"lib/{part}" for part in PARTS))

#: Name -> type, for each key of the data dictionary, and what a header calls the streams that a script is told in ARGV.
DICTIONARY: dict[str, str] = {
    name: kind
    for names, kind in re.findall(
        r"^(\S+(?:, \S+)*) +(stream|hash|set|zset|string|list) ", keys.__doc__ or "", re.MULTILINE
    )
    for name in names.split(", ")
} | {"in:*": "stream"}

#: The keys that a file builds of what is no quoted name: file, expression -> the keys. None where the names are quoted
#: elsewhere in the file, or come from whoever calls the part.
BUILT: dict[tuple[str, str], set[str]] = {
    ("cancel", "STREAMS"): {"in:requests", "in:control:{kind}"},
    ("dead_letter", "stream"): {"in:*"},
    ("deregister", "STREAM"): {"in:registry", "in:control:{kind}"},
    ("tick_liveness", "index"): set(),
    ("tick_liveness", "stream"): set(),
    ("worker_heartbeat", "ARGV[i]"): {"in:*"},
    ("purge", "of.head"): {"task:{id}", "message:{id}"},
    ("purge", "of.index"): set(),
    ("requeue", "stream"): {"in:*"},
    ("run_alarms", "index"): set(),
    ("lib/agents", "index"): set(),
    ("lib/agents", "set"): set(),
    ("lib/audit", "stream"): set(),
    ("lib/ends", "index"): set(),
    ("lib/capped", "name"): set(),
    ("lib/entries", "stream"): set(),
    ("lib/batches", "stream"): set(),
    ("lib/tasks", "index"): set(),
}

#: What the commands do that stand right before a key; one that is missing here fails the test.
READS = {
    "EXISTS", "GET", "HGET", "HKEYS", "HLEN", "HMGET", "HSTRLEN", "LINDEX", "LLEN", "SCARD", "SMEMBERS", "SMISMEMBER",
    "XINFO", "XLEN", "XPENDING", "XRANGE",
    "ZCARD", "ZCOUNT", "ZPOPMIN", "ZRANGE", "ZRANGEBYSCORE", "ZRANK", "ZSCORE",
}  # fmt: skip
WRITES = {
    "DEL", "HDEL", "HINCRBY", "HSET", "HSETNX", "PERSIST", "PEXPIRE", "RPUSH", "SADD", "SET", "SPOP", "SREM", "UNLINK",
    "XACK", "XADD", "XDEL", "XTRIM", "ZADD", "ZPOPMIN", "ZREM", "ZREMRANGEBYRANK", "ZREMRANGEBYSCORE",
}  # fmt: skip
LITERAL = r"'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\""


class Touched(NamedTuple):
    """A key as a header names it."""

    name: str
    kind: str
    mode: str


def text_of(file: str) -> str:
    """A script or a part as it lies there."""
    return files("workers.lua").joinpath(f"{file}.lua").read_text(encoding="utf-8")


def halves(file: str) -> tuple[str, str]:
    """The header of a file, and its body without comments."""
    lines = text_of(file).split("\n")
    end = next(i for i, line in enumerate(lines) if not line.startswith(("#!", "--")))
    body = re.sub(rf"({LITERAL})|--[^\n]*", r"\1", "\n".join(lines[end:]))
    return "\n".join(lines[:end]), body


def declared(header: str) -> list[Touched]:
    """The keys that a header names, in its order."""
    lines = re.findall(r"^-- keys: (.+)$", header, re.MULTILINE)
    return [Touched(*entry.split(" ")) for line in lines for entry in line.split(" | ")]


def key_of(literal: str) -> str | None:
    """The key of the data dictionary that a quoted string names, or begins: ``inbox:`` is ``inbox:{agent}:{lane}``."""
    for name in DICTIONARY:
        fixed, variable, _ = name.partition("{")
        if literal == name or (variable and literal.startswith(fixed)):
            return name
    return None


def touched(file: str, body: str) -> set[str]:
    """The keys that a body names: each quoted string that is or begins one, a loaded task's key, and what it builds."""
    found = {name for literal in re.findall(LITERAL, body) if (name := key_of(literal[1:-1]))}
    if re.search(r"\btask\.key\b", body):
        found.add("task:{id}")
    for expression in built(body):
        found |= BUILT[file, expression]
    return found


def built(body: str) -> set[str]:
    """What stands for a key's name where no quoted string does: behind the prefix, or handed to a function for keys.

    Not what is set to a quoted string, which is there to be seen.
    """
    behind = re.findall(r"\bP \.\. ([A-Za-z_][\w.\[\]]*)", body)
    handed = re.findall(r"(?<!function )\b(?:consume|log)\(([A-Za-z_][\w.\[\]]*)", body)
    handed += re.findall(r"\bstream = ([A-Z_]{2,})\b", body)
    named = re.findall(r"\b([A-Za-z_]\w*)(?:, \w+)* = '", body)
    return {*behind, *handed} - {*named}


@pytest.mark.parametrize("name", lua.NAMES)
def test_a_header_says_what_goes_in_and_out(name: str) -> None:
    """The shebang, a sentence, the parts included, the keys, and what is returned."""
    text = text_of(name)
    lines = text.split("\n")
    assert lines[0].startswith("#!lua")
    assert lines[1].startswith("-- ")
    assert "\n-- include: " in text
    assert "\n-- keys: " in text
    assert "\n-- Returns " in text
    assert ("allow-oom" in lines[0]) == (name in ALLOW_OOM)


@pytest.mark.parametrize("file", FILES)
def test_a_header_names_the_keys_that_its_body_touches(file: str) -> None:
    """No more and no fewer; not what is touched by the parts that it includes."""
    header, body = halves(file)
    assert {one.name for one in declared(header)} == touched(file, body)


@pytest.mark.parametrize("file", FILES)
def test_the_keys_of_a_header_are_as_in_the_data_dictionary(file: str) -> None:
    """Each once, with its type there, and what is done with it; in lines that can be read."""
    header, _ = halves(file)
    named = declared(header)
    assert {one.name: one.kind for one in named} == {one.name: DICTIONARY.get(one.name) for one in named}
    assert len({one.name for one in named}) == len(named)
    assert {one.mode for one in named} <= {"r", "w", "rw"}
    assert all(len(line) <= 120 for line in header.split("\n") if line.startswith("-- keys:"))
    assert text_of(file).count("-- keys:") == header.count("\n-- keys:")


@pytest.mark.parametrize("file", FILES)
def test_a_header_says_what_the_commands_beside_a_key_do(file: str) -> None:
    """A command right before a key's name reads it or writes it; more may be done through what holds a key."""
    header, body = halves(file)
    modes = {one.name: one.mode for one in declared(header)}
    for command, literal in re.findall(r"\('([A-Z]+)', P \.\. '([^']*)'", body):
        name = key_of(literal)
        assert name, literal
        assert command in READS | WRITES, command
        assert command not in READS or "r" in modes[name], (command, name)
        assert command not in WRITES or "w" in modes[name], (command, name)


@pytest.mark.parametrize("file", FILES)
def test_every_key_that_a_body_builds_is_one_of_the_data_dictionary(file: str) -> None:
    """Also those whose names are not quoted where they are built: the table here says which those are."""
    _, body = halves(file)
    assert [name for name in re.findall(r"\bP \.\. '([^']*)'", body) if not key_of(name)] == []
    assert built(body) == {expression for one, expression in BUILT if one == file}


def test_a_file_includes_the_parts_that_it_uses() -> None:
    """It names each part of which it uses a name, and no other; what a part needs itself, the part includes."""
    provided = {part: top_level(halves(f"lib/{part}")[1]) for part in PARTS}
    for file in FILES:
        header, body = halves(file)
        used = set(re.findall(r"(?<![\w.:])([A-Za-z_]\w*)\b(?! =(?!=))", re.sub(LITERAL, "", body))) - own_names(body)
        needed = {part for part, names in provided.items() if file != f"lib/{part}" and names & used}
        assert set(lua.included(header)) == needed, file


def top_level(body: str) -> set[str]:
    """The names that a part declares for the files that include it."""
    lines = re.findall(r"^local (?:function )?([\w, ]+)", body, re.MULTILINE)
    return {name for line in lines for name in re.findall(r"\w+", line)}


def own_names(body: str) -> set[str]:
    """The names that a file declares anywhere."""
    lines = re.findall(r"\blocal (?:function )?([\w, ]+)", body)
    lines += re.findall(r"\bfunction\s*\w*\(([^)]*)\)", body)
    lines += re.findall(r"\bfor ([\w, ]+?)(?: in |=| =)", body)
    return {name for line in lines for name in re.findall(r"\w+", line)}


#: The calls of the rows that have options, without entries.
WITH_OPTIONS: dict[str, Callable[[Scripts], Call[Any]]] = {
    "check_tokens": lambda scripts: scripts.check_tokens("router", []),
    "dead_letter": lambda scripts: scripts.dead_letter("router", []),
    "deregister": lambda scripts: scripts.deregister([]),
    "purge": lambda scripts: scripts.purge("router", "messages", []),
    "requeue": lambda scripts: scripts.requeue("router", []),
}


@pytest.mark.parametrize("name", sorted(BATCH_SCRIPTS))
def test_the_header_and_the_code_of_a_script_are_as_its_row(name: str) -> None:
    """The arguments of an entry are the fields of its Struct, in their order; the code unpacks as many."""
    fields = BATCH_SCRIPTS[name].entry.__struct_fields__
    header, body = halves(name)
    found = re.search(
        r"^-- (?:ARGV\[(\d+)\]  |then the )number of .*then for each:\n((?:--   .*\n)+)", header + "\n", re.MULTILINE
    )
    assert found
    place, listed = found.groups()
    parts = listed.replace("\n--  ", "").removeprefix("--  ").split("|")
    assert [part.split()[0].strip(",:") for part in parts] == list(fields)

    scripts = Scripts(None, Keys("n"), Settings())  # type: ignore[arg-type]
    call = WITH_OPTIONS[name](scripts) if name in WITH_OPTIONS else getattr(scripts, name)([])
    assert call.args[-1] == 0
    assert place in {None, str(3 + len(call.args) - 1)}

    has_items = "dict" in str(BATCH_SCRIPTS[name].entry.__annotations__[fields[-1]])
    unpacked = re.search(r"= unpack\(ARGV, i, i \+ (\d+)\)", body)
    assert unpacked
    assert int(unpacked[1]) + 1 == len(fields) - has_items
    if name != "dead_letter":
        width = f"width_with_fields({len(fields)})" if has_items else str(len(fields))
        assert f" width = {width}," in body


def test_a_script_has_no_function_that_it_does_not_use() -> None:
    """The server creates the functions of a script at each call, so a part's other functions are left out."""
    for name in lua.NAMES:
        text = lua.load(name).text
        defined = re.findall(r"^local function (\w+)", text, re.MULTILINE)
        assert [one for one in defined if len(re.findall(rf"\b{one}\b", text)) == 1] == [], name


def test_a_script_is_inside_the_parts_that_it_includes() -> None:
    """Each part is a function of the one before it, in the order of the includes, without comments."""
    text = lua.assemble("-- include: base\nreturn int(now)")
    assert text.startswith("local P = KEYS[1]\n")
    assert text.endswith("\nreturn (function(...)\nreturn int(now)\nend)(...)")
    assert "local function entry_ms" not in text
