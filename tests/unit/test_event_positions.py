"""Positions in the logs as text, and filters of events: what is valid, and what is refused with which words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from coord.errors import CursorInvalid
from coord.gateway.errors import RequestError
from coord.gateway.event_filter import FAMILIES, EventFilter, FilterIndex
from coord.models.events import LOGS, Event, LogPlace, decode_position, encode_position
from coord.models.ids import entry_before, entry_order

LUA = Path(__file__).parents[2] / "workers" / "lua"


def test_a_position_is_decoded_as_it_was_encoded() -> None:
    """A part for each log; an empty log, a number in the id, a part of an entry."""
    places = (
        LogPlace("0-0"),
        LogPlace("17-0"),
        LogPlace("17-3", 5),
        LogPlace("18-0", 1),
        LogPlace("9-18446744073709551615"),
    )
    position = dict(zip(LOGS, places, strict=True))
    text = encode_position(position)
    assert text == "0.17.17-3_5.18_1.9-18446744073709551615"
    assert decode_position(text) == position
    assert (decode_position("0"), decode_position("17"), decode_position("17-2")) == ("0-0", "17-0", "17-2")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "-1",
        "1.2",
        "1.2.3.4.5.6",
        "1..2.3.4",
        "0.0.0.0.x",
        "1-2-3",
        "18446744073709551616",
        "\u0661",
        "1." * 500,
        "$",
    ],
)
def test_what_is_no_position_is_refused(text: str) -> None:
    """The message says what may be used."""
    with pytest.raises(CursorInvalid, match="leave it out to begin with the next event, or use 0"):
        decode_position(text)


def test_the_entry_before_another() -> None:
    """It is less than that, and nothing is between them."""
    assert entry_before("5-3") == "5-2"
    assert entry_before("5-0") == "4-18446744073709551615"
    assert entry_order(entry_before("5-0")) < entry_order("5-0")


def test_a_filter_takes_types_with_and_without_their_domain() -> None:
    """First words count as whole words; commas and repetition are the same."""
    wanted = EventFilter.parse(["coord.task.completed, agent.*", "message."], ["a1"], [], "query")
    assert wanted == EventFilter(("agent", "message", "task.completed"), ("a1",), ())
    passed = [
        kind
        for kind in (
            "task.completed",
            "task.completed_late",
            "task.failed",
            "agent.lost",
            "agents.reported",
            "message.dead",
        )
        if wanted.passes(Event("tasks", "1-0", kind, {"agent_id": "a1"}))
    ]
    assert passed == ["task.completed", "agent.lost", "message.dead"]
    assert not wanted.passes(Event("tasks", "1-0", "task.completed", {"agent_id": "a2"}))
    assert wanted.passes(Event("messages", "1-0", "message.dead", {"sender_id": "a2", "receiver_id": "a1"}))


@pytest.mark.parametrize(
    ("types", "agents", "message"),
    [
        (["tsk.completed"], [], "type: first word of a type of events 'tsk' is not one of .*did you mean 'task'"),
        ([""], [], "type: .*''"),
        (["*"], [], "type: "),
        ([], ["no such id"], "agent: agent must be 1 to 128"),
        ([], [f"a{n}" for n in range(101)], "agent: 101 values; at most 100"),
    ],
)
def test_a_filter_that_finds_nothing_is_refused(types: list[str], agents: list[str], message: str) -> None:
    """The message names the parameter and the next step."""
    with pytest.raises(RequestError, match=message) as caught:
        EventFilter.parse(types, agents, [], "query")
    assert caught.value.problems is not None
    assert caught.value.problems[0].loc[0] == "query"


def test_every_type_of_events_has_a_family() -> None:
    """The types that scripts write to the logs which listeners read."""
    scripts = "".join(path.read_text() for path in LUA.rglob("*.lua"))
    written = set(re.findall(r"log_(?:task|each|agent|message)\('([a-z]+)\.", scripts))
    written |= set(re.findall(rf"'log:(?:{'|'.join(LOGS)})',\s*'type', '([a-z]+)\.", scripts))
    assert {"task", "agent", "message", "setting", "link"} <= written
    assert written <= set(FAMILIES)
    assert all(re.search(rf"'{family}\.[a-z]", scripts) for family in FAMILIES)


def test_the_index_finds_what_a_filter_passes() -> None:
    """The same as asking each filter, also after some are removed."""
    filters = [
        EventFilter.parse(types, agents, tasks, "query")
        for types in ([], ["task"], ["task.completed", "agent.lost"])
        for agents in ([], ["a1"], ["a1", "a2"])
        for tasks in ([], ["t1"], ["t1", "t2"])
    ]
    events = [
        Event("tasks", "1-0", kind, fields)
        for kind in ("task.completed", "task.failed", "agent.lost")
        for fields in ({}, {"agent_id": "a1"}, {"task_id": "t2"}, {"task_id": "t1", "agent_id": "a2"})
    ]
    index = FilterIndex()
    for one in filters:
        index.add(one)
    for left in (filters, filters[::2]):
        for one in filters:
            if one not in left:
                index.remove(one)
        for event in events:
            assert sorted(index.find(event)) == sorted(one for one in left if one.passes(event))
