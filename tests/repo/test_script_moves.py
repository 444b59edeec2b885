"""The Lua scripts as text: the moves that their headers declare, and what they must not do."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from coord.keys import WITHOUT_TTL
from coord.models.tasks import MOVES, TERMINAL, TaskState
from workers import lua

#: What Lua and the server give a script; anything else that is assigned or called has to be local.
GIVEN = {
    "redis", "cjson", "math", "string", "table", "error", "ipairs", "pairs", "pcall", "setmetatable", "tonumber",
    "tostring", "type", "unpack", "KEYS", "ARGV",
}  # fmt: skip
KEYWORDS = {
    "and", "break", "do", "else", "elseif", "end", "false", "for", "function", "if", "in", "local", "nil", "not", "or",
    "repeat", "return", "then", "true", "until", "while",
}  # fmt: skip


def names_of(text: str) -> tuple[set[str], set[str]]:
    """The names that a script declares local (parameters and loop variables too), and those it uses."""
    text = re.sub(r"--[^\n]*", "", text)
    text = re.sub(r"'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\"", "''", text)
    declared: set[str] = set()
    for found in re.findall(r"\blocal (?!function)([\w, ]+)", text):
        declared.update(re.findall(r"\w+", found))
    for name, parameters in re.findall(r"\bfunction\s*(\w*)\(([^)]*)\)", text):
        declared.update(re.findall(r"\w+", f"{name} {parameters}"))
    for found in re.findall(r"\bfor ([\w, ]+?)(?: in |=| =)", text):
        declared.update(re.findall(r"\w+", found))
    # Not the fields of tables: what follows a dot or a colon, and what is a key in a constructor.
    keys = set(re.findall(r"[{,]\s*(\w+)\s*=(?!=)", text))
    used = set(re.findall(r"(?<![\w.:])([A-Za-z_]\w*)", text))
    return declared, used - KEYWORDS - (keys - declared)


def test_moves_are_what_the_headers_declare() -> None:
    """``MOVES`` and the union of the headers' ``moves`` lines are the same set of edges."""
    declared = set().union(*(lua.moves(name) for name in lua.NAMES))
    table = {(str(one or "none"), str(other)) for one, others in MOVES.items() for other in others}
    assert declared == table


def test_nothing_but_a_replay_leaves_an_outcome() -> None:
    """An outcome is recorded once: no move begins at a terminal state but that of a failed task, by an operator."""
    leaving = {(state, after) for state in TERMINAL for after in MOVES[state]}
    assert leaving == {(TaskState.FAILED, TaskState.QUEUED), (TaskState.FAILED, TaskState.CANCELLED)}
    of_scripts = {(name, move) for name in lua.NAMES for move in lua.moves(name) if move[0] == "failed"}
    assert of_scripts == {
        ("replay", ("failed", "queued")),
        ("change_tasks", ("failed", "queued")),
        ("change_tasks", ("failed", "cancelled")),  # replayed and cancelled in one batch
    }


def test_every_file_is_a_script_that_is_loaded() -> None:
    """No Lua file is unused, and none is missing."""
    found = {one.name.removesuffix(".lua") for one in files("workers.lua").iterdir() if one.name.endswith(".lua")}
    assert found == set(lua.NAMES)


@pytest.mark.parametrize("name", lua.NAMES)
def test_every_name_is_local(name: str) -> None:
    """⚠ A global would leak into the next call, and fakeredis reads an undefined one as nil without a word."""
    source = lua.load(name).text.removeprefix("#!lua")
    declared, used = names_of(source.split("\n", 1)[1])
    assert used - declared - GIVEN == set()
    assert not re.search(r"^\s*function\s+\w", source, re.MULTILINE)


def test_the_shebang_is_the_first_line_and_is_left_out_for_fakeredis() -> None:
    """The server reads the flags from the first line; comments do not travel."""
    source = lua.load("admit")
    assert source.text.startswith("#!lua flags=allow-oom\n")
    bare = lua.without_shebang(source)
    assert not bare.text.startswith("#!")
    assert bare.sha != source.sha
    assert "\n--" not in source.text


def test_the_list_of_keys_without_ttl_names_only_what_must_stay() -> None:
    """Answers, messages and presence end by themselves."""
    assert not {"replies:*", "message:*", "worker:*"} & set(WITHOUT_TTL)
