"""docs/protocol.md against the code, both ways: what one of them has, the other has."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from coord import codec, keys
from coord.config import MIB, Settings, variable_of
from coord.errors import BY_CODE, FactInvalid
from coord.models.agents import AgentStatus, AgentType, Location
from coord.models.explanations import REJECTED, WaitingReason
from coord.models.facts import STREAM_FACTS, TYPE_OF, Lease
from coord.models.ids import ID_PATTERN, RESERVED
from coord.models.messages import MessageType, Protocol, RecipientFilter
from coord.models.tasks import AttemptRecord, Modifiers, Priority, Requirements, Retry, TaskState
from tests.repo.documents import ROOT
from tests.repo.protocol_document import (
    TEXT,
    Example,
    Row,
    examples,
    first_column,
    rows,
    rows_of,
    tables,
    values,
    words,
)
from workers import lua

LUA = {path.name: path.read_text() for path in Path(lua.__file__).parent.rglob("*.lua")}
EXAMPLES = examples()
ANSWERED = first_column(tables("Codes of answers")[0])
ENDED = first_column(tables("Codes of tasks that ended")[0])
SILENT = first_column(tables("Codes of the Python package")[0])
WORDS = {cells[0]: cells[1] for cells in tables("Facts")[1]}


def lua_codes(*patterns: str) -> set[str]:
    """What the scripts say where one of these matches."""
    return {code for text in LUA.values() for pattern in patterns for code in re.findall(pattern, text)}


@pytest.mark.parametrize("kind", TYPE_OF, ids=lambda kind: TYPE_OF[kind])
def test_a_fact_is_described(kind: type[msgspec.Struct]) -> None:
    """Each field with its type, limits and default, in the order of the code, and none besides."""
    assert rows(f"`{TYPE_OF[kind]}`") == rows_of(kind)


@pytest.mark.parametrize("kind", [Requirements, Modifiers, Retry, Location, RecipientFilter])
def test_a_part_of_a_fact_is_described(kind: type[msgspec.Struct]) -> None:
    """The same for what stands inside facts."""
    assert rows(f"`{kind.__name__}`") == rows_of(kind)


def test_the_reasons_are_those_of_the_code() -> None:
    """Here and for operators: each has its row, in the order that counts; agents have those between the ends."""
    found = tables("Reasons")[0]
    assert [cells[0] for cells in found] == [f"`{reason}`" for reason in WaitingReason]
    assert [cells[0].strip("`") for cells in found if cells[2]] == list(REJECTED)
    operating = (ROOT / "docs" / "operating.md").read_text().partition("\n## Waiting tasks\n")[2].partition("\n## ")[0]
    first_cells = [line.split(" | ")[0] for line in operating.splitlines() if line.startswith("| `")]
    assert re.findall(r"`(\w+)`", " ".join(first_cells)) == list(WaitingReason)


def test_no_other_fact_is_described() -> None:
    """Every heading with a table of types is a fact, or a part of one."""
    described = re.findall(r"^#+ `([^`]+)`\n\n(?:[^|#\n][^\n]*\n\n)?\| field \| type \|", TEXT, re.MULTILINE)
    assert sorted(described) == sorted(
        [*TYPE_OF.values(), "Requirements", "Modifiers", "Retry", "Location", "RecipientFilter"]
    )


def test_streams_carry_what_the_table_says() -> None:
    """Each stream with its facts."""
    said = {stream: words(cells[2]) for cells in tables("Streams to append to")[0] for stream in words(cells[0])}
    assert said == {stream: [TYPE_OF[kind] for kind in kinds] for stream, kinds in STREAM_FACTS.items()}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda one: f"{one.stream}-{one.fields[b'type'].decode()}")
def test_an_example_fits(example: Example) -> None:
    """The real decoder takes it, its caller, and every field of it is one that the fact has."""
    stream, fields, line = example
    fact = codec.decode_fact(stream, fields, MIB)
    known = {row.name for row in rows_of(type(fact))}
    assert set(msgspec.json.decode(fields[b"data"])) <= known, line
    assert codec.caller_of(fields) == fields.get(b"caller", b"").decode()
    assert ("MAXLEN" in line) == (stream == "in:beats")


def test_every_fact_has_an_example() -> None:
    """None is left out."""
    assert {example.fields[b"type"].decode() for example in EXAMPLES} == set(TYPE_OF.values())


def test_words_are_explained() -> None:
    """Enumerations, ids and leases are what the code says."""
    assert set(words(WORDS["agent type"])) == values(AgentType)
    assert set(words(WORDS["status"])) == values(AgentStatus)
    assert set(words(WORDS["message type"])) == {one for one in values(MessageType) if _may_be_sent(one)}
    assert set(words(WORDS["message protocol"])) == values(Protocol)
    assert ID_PATTERN == r"^[A-Za-z0-9._@-]{1,128}\Z"
    assert Lease.__metadata__[0].pattern == r"^[0-9a-f]{16}\Z"  # type: ignore[attr-defined]
    paragraph = re.search(r"No agent, task or message id may be one of.*?\n\n", TEXT, re.DOTALL)
    assert paragraph is not None
    assert set(words(paragraph[0])) == RESERVED


def _may_be_sent(message_type: str) -> bool:
    said = {"message_id": "m", "sender_id": "a", "receiver_id": "b", "message_type": message_type}
    fields = {b"type": b"message.sent", b"data": msgspec.json.encode(said)}
    try:
        codec.decode_fact("in:messages:low", fields, MIB)
    except FactInvalid:
        return False
    return True


def test_every_code_is_explained() -> None:
    """In one table at least; and what is explained exists."""
    answered = lua_codes(r"answer\([^()]+, entry, '([a-z_]+)'", r"return '[A-Z_]+', '([a-z_]+)'")
    answered |= lua_codes(r"answer\(.*?, entry, .*? and '([a-z_]+)' or", r"answer\(.*?, entry, .*? or '([a-z_]+)',")
    intake = {"fact_invalid", "fact_too_large", "entry_buried"}
    assert len(answered) > 8, "the scripts say it in other words now"
    assert answered | intake <= set(ANSWERED)
    assert set(ANSWERED) <= answered | intake | set(BY_CODE)
    ended = lua_codes(
        r"error_json\('([a-z_]+)'", r"end_attempt\(task, '[a-z_]+', '([a-z_]+)'", r"code, message = '([a-z_]+)'"
    )
    assert ended - {"not_started"} <= set(ENDED)  # that one is told of attempts only
    assert all(f"'{code}'" in "".join(LUA.values()) for code in {*ENDED} - {"handler_failed"})
    assert {"timed_out", "released_too_often"} <= ended
    assert set(BY_CODE) <= {*ANSWERED, *ENDED, *SILENT}
    assert set(SILENT) <= set(BY_CODE) - set(ANSWERED) - set(ENDED)


def test_limits_are_the_defaults() -> None:
    """Each with its number as the settings have it."""
    default = Settings()
    known = {variable_of(field): str(getattr(default, field)) for field in default.__struct_fields__}
    for cells in tables("Limits")[0]:
        (variable,) = words(cells[0])
        assert cells[1] == known[variable], variable


def test_records_have_what_is_promised() -> None:
    """States and priorities are all there; the data dictionary knows each field."""
    task = {words(cells[0])[0]: words(cells[1]) for cells in tables("`task:{id}`")[0]}
    assert set(task["state"]) == values(TaskState)
    assert set(task["submission"]) == values(Priority)
    dictionary = keys.__doc__ or ""
    of_task = dictionary[dictionary.index("task:{id}") : dictionary.index("inflight:{agent}")]
    of_agent = dictionary[dictionary.index("agent:{id}") : dictionary.index("agents:active")]
    assert set(task) <= set(re.findall(r"[a-z_]+", of_task))
    assert set(first_column(tables("`agent:{id}`")[0])) <= set(re.findall(r"[a-z_]+", of_agent))
    assert set(first_column(tables("Attempts of a task")[0])) == set(AttemptRecord.__struct_fields__)


def test_links_lead_somewhere() -> None:
    """Inside the page, and to other files."""
    headings = re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        if target.startswith("#"):
            assert target[1:] in anchors, target
        else:
            assert (Path(keys.__file__).parents[1] / "docs" / target).exists(), target


def test_a_table_that_differs_is_noticed() -> None:
    """The wording of types is not so coarse that it says nothing."""
    assert Row("started_ms_ago", "integer ≥ 0, ≤ 31,536,000,000", "none") in rows_of(
        next(one for one in TYPE_OF if TYPE_OF[one] == "task.failed")
    )
    assert rows("`task.started`") != rows("`task.failed`")
