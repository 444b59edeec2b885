"""The table of roles: complete, and as the data dictionary has it; and the command that prints users."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

import pytest

from coord import keys
from coord.acl import FAMILIES, WORKER_COMMANDS, Role, command_line, rules, user_name
from coord.errors import ConfigError, IdInvalid
from coord.models.facts import STREAM_FACTS
from tests.repo.protocol_document import tables, words
from tests.repo.test_script_headers import DICTIONARY, LITERAL, text_of
from workers import lua


def rows_of(name: str) -> list[str]:
    """The rows of the table that a key, or a family of the data dictionary, belongs to."""
    key = re.sub(r"\{\w+\}", "x", name)
    return [family for family in FAMILIES if fnmatchcase(key, family.replace("{agent}", "x"))]


@pytest.mark.parametrize("name", sorted({*DICTIONARY} - {"in:*", "in:control:{kind}"}))
def test_each_family_of_keys_has_a_row(name: str) -> None:
    """One, of its type: a new family of ``coord/keys.py`` needs one in ``coord/acl.py``, even one for workers only."""
    (family,) = rows_of(name)
    assert FAMILIES[family].kind == DICTIONARY[name]


@pytest.mark.parametrize("stream", STREAM_FACTS)
def test_each_stream_of_facts_has_a_row(stream: str) -> None:
    """Who may append to it, as docs/protocol.md says; the scripts of workers append what coord itself does."""
    (family,) = rows_of(stream)
    writers = {one: cells[1] for cells in tables("Streams to append to")[0] for one in words(cells[0])}[stream]
    row = FAMILIES[family]
    assert ("a" in row.operator) >= ("operators" in writers)
    assert ("a" in row.client) == ("clients" in writers)
    assert ("a" in row.agent) <= ("agents" in writers)
    if writers == "coord itself":
        assert "a" not in "".join(row[1:])


def test_no_row_is_left_over() -> None:
    """Each is of a family that exists."""
    names = {re.sub(r"\{\w+\}", "x", name) for name in DICTIONARY} | set(STREAM_FACTS)
    names |= {re.sub(r"\{\w+\}", "x", name.replace("{kind}", "gateway")) for name in DICTIONARY}
    assert [f for f in FAMILIES if not any(fnmatchcase(name, f.replace("{agent}", "x")) for name in names)] == []


def test_workers_may_send_what_their_scripts_send() -> None:
    """Each command that a Lua file calls."""
    called: set[str] = set()
    for file in [*lua.NAMES, *(f"lib/{part}" for name in lua.NAMES for part in lua.parts_of(text_of(name)))]:
        body = "\n".join(line for line in text_of(file).split("\n") if not line.startswith("--"))
        called |= {name.lower() for name in re.findall(r"(?:call|pcall|gather)\('([A-Z]+)'", body)}
    assert len(called) > 30
    granted = {rule[1:].partition("|")[0] for rule in rules(Role.WORKER, "coord") if rule.startswith("+")}
    assert called <= granted
    assert set(WORKER_COMMANDS) <= {rule[1:] for rule in rules(Role.WORKER, "coord")}
    assert LITERAL


def test_names_have_the_namespace_and_the_role() -> None:
    """So that two cells on one server have users of their own."""
    assert user_name(Role.AGENT, "coord", "ocr-1") == "coord-agent-ocr-1"
    assert user_name(Role.WORKER, "blue") == "blue-worker"
    assert user_name(Role.WORKER, "blue", "router") == "blue-worker-router"
    with pytest.raises(ConfigError, match="coord acl agent ocr-1"):
        user_name(Role.AGENT, "coord")
    with pytest.raises(IdInvalid):
        user_name(Role.AGENT, "coord", "ocr-*")


def test_an_agent_is_limited_to_its_own_streams() -> None:
    """The whole line, as it is printed."""
    assert command_line("coord-agent-a1", ">PASSWORD", rules(Role.AGENT, "blue", "a1")) == (
        "ACL SETUSER coord-agent-a1 reset on >PASSWORD +ping +info "
        "(+xadd %W~{blue}:in:registry %W~{blue}:in:beats %W~{blue}:in:reports %W~{blue}:in:messages:* "
        "%W~{blue}:in:links) "
        "(+xdel %W~{blue}:inbox:a1:*) "
        "(+xread +xrange %R~{blue}:inbox:a1:* %R~{blue}:replies:a1) "
        "(+hgetall +hget %R~{blue}:links:a1 %R~{blue}:masters) (+smembers %R~{blue}:subordinates:a1)"
    )


def test_no_pattern_reaches_another_namespace() -> None:
    """Each begins with the namespace."""
    for role in Role:
        for rule in rules(role, "blue", "a1", selects=True):
            patterns = re.findall(r"~(\S+?)(?=[ )]|$)", rule)
            assert all(pattern.startswith("{blue}:") for pattern in patterns), rule
            assert "allkeys" not in rule
            assert "+@" not in rule
    assert keys.Keys("blue").prefix == "{blue}:"
