"""The query for agents: what matches, and that the Fleet page of the dashboard has the same fields."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

import coord
from coord.errors import QueryInvalid
from coord.models.agent_query import AGENTS, load_of
from coord.models.agents import AgentRecord, AgentStatus, Location

AGENT = AgentRecord(
    agent_id="gpu-West-7",
    agent_type="worker",
    status=AgentStatus.BUSY,
    capabilities=("ocr", "translate"),
    services=("search",),
    tags=("fast",),
    labels={"rack": "r7"},
    location=Location(region="eu-west", zone="eu-west-1a"),
    version="2.1.0",
    capacity=10,
    load=8,
    health_score=0.65,
)


def matches(text: str, agent: AgentRecord = AGENT) -> bool:
    """Return True if an agent meets a query."""
    return AGENTS.matches(AGENTS.parse(text), agent, 0)


@pytest.mark.parametrize(
    "text",
    [
        "", "id:gpu-West-7", "id:gpu*", "state:busy", "state:busy,error", "-state:active", "type:worker",
        "capability:ocr", "capability:ocr capability:translate", "service:search", "tag:fast", "-tag:spot",
        "label:rack=r7", "region:eu*", "zone:eu-west-1a", "version:2*", "health:<0.7", "health:0.65", "load:>=0.8",
        "load:>=80%", "load:.8", "load:<=0.80", "-load:<0.8", "health:>64% health:<1", "west", "GPU-w", "trans", "fas",
        "-spot", '"fast"', "state:busy region:eu* load:>=0.8 capability:ocr",
    ],
)  # fmt: skip
def test_queries_that_match(text: str) -> None:
    """Every field, alone and with others; a word is a part of the id, the type, a capability or a tag."""
    assert matches(text)


@pytest.mark.parametrize(
    "text",
    [
        "id:gpu", "state:active", "-state:busy", "capability:ocr capability:asr", "-capability:ocr", "tag:spot",
        "label:rack=r8", "region:us*", "health:>=0.7", "load:>0.8", "load:100%", "-west", "spot", "search",
    ],
)  # fmt: skip
def test_queries_that_do_not_match(text: str) -> None:
    """All terms have to hold, and a negated one excludes."""
    assert not matches(text)


def test_an_agent_without_a_location_and_without_capacity() -> None:
    """It has no region, and is full if it has a task."""
    agent = replace(AGENT, location=None, capacity=0, load=0)
    assert not matches("region:*", agent)
    assert matches("-region:eu*", agent)
    assert (load_of(agent), load_of(replace(agent, load=1)), load_of(replace(AGENT, load=20))) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("text", "position", "says"),
    [
        ("stat:busy", 1, "there is no field 'stat'; did you mean state:busy?"),
        ("colour:red", 1, "the fields of an agent are id, state, type,"),
        ("tag:a state:bussy", 13, "did you mean state:busy?"),
        ("load:much", 6, "load:much: expected a share from 0 to 1 or in percent, such as load:>=0.8"),
        ("load:>=80%%", 6, "expected a share from 0 to 1 or in percent"),
        ("load:>", 6, "a value is missing after load:, such as load:>=0.8"),
        ("load>0.8", 1, "load>0.8 is not a term, which is written field:value; did you mean load:>0.8?"),
        ("region:>eu", 8, "region takes no comparison; write region:eu*"),
        ("state:busy OR tag:a", 12, "OR is not an operator; write several values with commas"),
    ],
)
def test_errors_name_the_position_and_the_next_step(text: str, position: int, says: str) -> None:
    """As those of the query for tasks."""
    with pytest.raises(QueryInvalid) as found:
        AGENTS.parse(text)
    assert str(found.value).startswith(f"query, position {position}: ")
    assert says in str(found.value)


def test_the_dashboard_has_the_same_fields() -> None:
    """Their names, and the values of the state that an agent on the page can have."""
    script = (Path(coord.__file__).parent / "gateway/ui/pages/fleet_query.js").read_text()
    table = script.partition("const FIELDS = {")[2].partition("\n};")[0]
    assert re.findall(r"^  (\w+): \{", table, re.MULTILINE) == list(AGENTS.fields)
    values = re.search(r"values: (\[[^]]*\])", table)
    assert values is not None
    assert set(re.findall(r'"(\w+)"', values[1])) == set(AgentStatus) - {AgentStatus.INACTIVE}


def test_the_table_of_fields_is_the_completion() -> None:
    """Each field has a help, an example that parses, and its values or operators."""
    infos: dict[str, Any] = {info.name: info for info in AGENTS.completion()}
    assert infos["load"].operators == (">=", "<=", ">", "<")
    for info in infos.values():
        assert info.help.endswith("."), info.name
        (term,) = AGENTS.parse(info.example).terms
        assert term.field == info.name
        assert str(AGENTS.parse(str(term))) == str(term)
