"""The query language: what it accepts, what it prints, what its errors say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coord.errors import QueryInvalid
from coord.models.explanations import WaitingReason
from coord.models.query import Kind, Query, Term, Value
from coord.models.task_query import TASKS, TaskFacts
from coord.models.tasks import Pool, Priority, Requirements, TaskState

NOW = 1_800_000_000_000
HOUR = 3_600_000


def task(**changes: Any) -> TaskFacts:
    """A failed task that was submitted two hours ago and ended one hour ago."""
    needs = Requirements(capabilities=("gpu", "ocr"), labels={"zone": "eu"})
    facts = TaskFacts(
        "report-7", TaskState.FAILED, "high", "p1.named", NOW - 2 * HOUR, Pool("ocr", needs), "ocr-1",
        None, "timeout", NOW - HOUR, 3,
    )  # fmt: skip
    return facts._replace(**changes)


@pytest.mark.parametrize(
    "text",
    [
        "", "report-", "ocr", "id:report-7", "id:report-*", "type:ocr,echo", "state:failed -state:completed",
        "priority:high", "pool:p1", "pool:p1.named", "agent:ocr-1", "-agent:ocr-2", "error:time*",
        "age:>1h", "age:>=2h", "since:61m", "since:2020-01-01", "since:2020-01-01T10:00:00+02:00", "ended:<2h",
        "attempts:3", "attempts:>=2", "attempts:1,3", "capability:gpu capability:ocr", "label:zone=eu", "-tag:fast",
        '"report-7"', "agent:*", "error:*", "id:*", 'type:"ocr"', "-reason:all_full", "type:ocr state:failed age:>1h",
    ],
)  # fmt: skip
def test_queries_that_match(text: str) -> None:
    """Every kind of term, alone and with others."""
    assert TASKS.matches(TASKS.parse(text), task(), NOW), text


@pytest.mark.parametrize(
    "text",
    [
        "rep0rt", "oc", "id:report", "type:oc", "state:queued", "state:failed state:queued", "-state:failed",
        "priority:low", "pool:p", "agent:ocr", "error:time", "age:<1h", "age:>3h", "since:59m", "since:2999-01-01",
        "ended:>2h", "attempts:>3", "capability:gpu capability:cpu", "-capability:gpu", "label:zone=us", "tag:fast",
        "reason:all_full", "type:ocr state:failed age:>3h",
    ],
)  # fmt: skip
def test_queries_that_do_not_match(text: str) -> None:
    """All terms have to hold, and a negated one excludes."""
    assert not TASKS.matches(TASKS.parse(text), task(), NOW), text


def test_a_task_without_a_value() -> None:
    """It matches no term about the value, and each negated one."""
    waiting = task(state=TaskState.QUEUED, agent_id=None, error=None, finished_at=None, attempts=0)
    assert not TASKS.matches(TASKS.parse("agent:*"), waiting, NOW)
    assert not TASKS.matches(TASKS.parse("ended:<9d"), waiting, NOW)
    assert TASKS.matches(TASKS.parse("-ended:<9d"), waiting, NOW)
    assert not TASKS.matches(TASKS.parse("error:t*"), waiting, NOW)
    assert TASKS.matches(TASKS.parse("-error:t* since:3h -agent:a*"), waiting, NOW)


@pytest.mark.parametrize(
    ("text", "position", "says"),
    [
        ("stat:failed", 1, "there is no field 'stat'; did you mean state:failed?"),
        ("type:ocr -stat:x", 11, "did you mean state:x?"),
        ("zzz:1", 1, "the fields of a task are id, type, state,"),
        ("type:a state:faild", 14, "state 'faild' is not one of scheduled, queued,"),
        ("state:faild", 7, "did you mean state:failed?"),
        ("reason:no_capabilty", 8, "did you mean reason:no_capability?"),
        ("state:failed,", 14, "a value is missing after state:, such as state:failed"),
        ("state:", 7, "a value is missing"),
        ("age:1h", 5, "age:1h: write a comparison, such as age:>1h"),
        ("age:>soon", 5, "expected a time with a unit, such as 30s, 5m, 2h or 7d with a comparison, such as age:>1h"),
        (
            "age:>3600",
            5,
            "expected a time with a unit, such as 30s, 5m, 2h or 7d with a comparison, such as age:>3600s",
        ),
        ("ended:<1.5", 7, "such as ended:<1.5s"),
        ("ended:20260101", 7, "expected a time with a unit"),
        ("age:>-1h", 5, "expected a time with a unit"),
        ("since:20260101", 7, "did you mean since:2026-01-01?"),
        ("since:2026", 7, "did you mean since:2026-01-01?"),
        ("since:1767225600", 7, "did you mean since:2026-01-01T00:00:00Z?"),
        ("since:1767225600000", 7, "did you mean since:2026-01-01T00:00:00Z?"),
        ("since:3600", 7, "did you mean since:3600s?"),
        ("since:0", 7, "did you mean since:0s?"),
        ("since:1.5", 7, "expected a time with a unit, such as 30s, 5m, 2h or 7d ago, or a date such as 2026-01-31"),
        ('since:" 2026 "', 7, "did you mean since:2026-01-01?"),
        ("since:20269999", 7, "expected a time with a unit"),
        ("-since:2026", 8, "did you mean since:2026-01-01?"),
        ("attempts:many", 10, "expected a whole number, such as attempts:>=2"),
        ("since:>1h", 7, "since takes no comparison; write since:1h"),
        ("since:yesterday", 7, "or a date such as 2026-01-31"),
        ("since:2026-13-01", 7, "or a date such as 2026-01-31"),
        ("state:fail*", 7, "only names can end with *"),
        ("type:>ocr", 6, "type takes no comparison"),
        ('type:"ocr', 6, 'the quotation mark " has no second one'),
        ('type:"a"b', 9, "unexpected 'b'; write a comma"),
        ('a"b"', 2, "unexpected '\"'"),
        ("a,b", 2, "unexpected ','"),
        ("-", 2, "a value is missing"),
        ("*", 1, "a value is missing"),
        ("state=queud", 1, "state=queud is not a term, which is written field:value; did you mean state:queued?"),
        ("stat=queued", 1, "did you mean state:queued?"),
        ("type:ocr -state=failed", 11, "did you mean state:failed?"),
        ("type=", 1, "did you mean type:ocr?"),
        ("age>1x", 1, "did you mean age:>1h?"),
        ("age>=2h", 1, "did you mean age:>=2h?"),
        ("attempts=3", 1, "did you mean attempts:3?"),
        ("colour=red", 1, "the fields of a task are id, type, state"),
        ("state=queued AND", 1, "did you mean state:queued?"),
        ("report AND ocr", 8, "AND is not an operator; terms with spaces between all have to hold"),
        ("report OR ocr", 8, "write several values with commas, such as state:failed,expired"),
        ("NOT report", 1, "write - before a term, such as -state:failed"),
        ("x" * 5_000, 0, "the query has 5,000 characters"),
        (f"type:{','.join(['a'] * 501)}", 0, "the query has 501 values"),
    ],
)
def test_errors_name_the_position_and_the_next_step(text: str, position: int, says: str) -> None:
    """⚠ Also the nearest valid field or value."""
    with pytest.raises(QueryInvalid) as found:
        TASKS.parse(text)
    assert says in str(found.value)
    assert not position or str(found.value).startswith(f"query, position {position}: ")


@pytest.mark.parametrize("word", ["state=failed", "age>1h", "AND", "type:ocr"])
def test_a_quoted_word_is_text(word: str) -> None:
    """Also one that looks like another term; it is printed with its quotes."""
    query = TASKS.parse(f'"{word}"')
    assert query.terms == (Term("", (Value(word),)),)
    assert str(query) == f'"{word}"'
    assert TASKS.matches(query, task(task_id=f"{word}-7"), NOW)


#: What has a meaning in a query, and some of what has none.
ALPHABET = 'abs1:-*,"\\<>=. \t\n\x1c\u00a0\u00e9\u6f22'
NAMES = st.text(ALPHABET, min_size=1, max_size=12) | st.sampled_from(["AND", "OR", "NOT", "-NOT"])
OPERATORS = st.sampled_from(["<", "<=", ">", ">="])
DURATIONS = st.builds(lambda number, unit: f"{number}{unit}", st.integers(0, 9_999), st.sampled_from("smhd"))


@st.composite
def texts(draw: st.DrawFn) -> Value:
    """A value of a field of names."""
    is_prefix = draw(st.booleans())
    return Value(draw(NAMES | st.just("")) if is_prefix else draw(NAMES), is_prefix=is_prefix)


VALUES: dict[Kind, st.SearchStrategy[Value]] = {
    Kind.TEXT: texts(),
    Kind.NUMBER: st.builds(lambda number, sign: Value(str(number), sign), st.integers(0, 10**9), OPERATORS),
    Kind.DURATION: st.builds(Value, DURATIONS, OPERATORS),
    Kind.MOMENT: st.builds(Value, DURATIONS),
}


@st.composite
def terms(draw: st.DrawFn) -> Term:
    """Any term that can be written."""
    field = draw(st.sampled_from([None, *TASKS.fields.values()]))
    negated = draw(st.booleans())
    if field is None:
        return Term("", (Value(draw(NAMES)),), negated)
    values = st.builds(Value, st.sampled_from(field.values)) if field.kind is Kind.CHOICE else VALUES[field.kind]
    return Term(field.name, tuple(draw(st.lists(values, min_size=1, max_size=3))), negated)


def plain(query: Query) -> list[tuple[str, bool, list[tuple[str, str, bool]]]]:
    """A query without what parsing adds."""
    return [
        (term.field, term.is_negated, [(value.text, value.operator, value.is_prefix) for value in term.values])
        for term in query.terms
    ]


@given(st.lists(terms(), max_size=5))
def test_what_is_printed_is_parsed_to_the_same_query(found: list[Term]) -> None:
    """Whatever characters a name has."""
    query = Query(tuple(found))
    parsed = TASKS.parse(str(query))
    assert plain(parsed) == plain(query)
    assert str(parsed) == str(query)
    assert TASKS.parse(str(parsed)) == parsed


@given(st.text(ALPHABET, max_size=30) | st.text(max_size=30))
def test_any_text_is_a_query_or_a_query_error(text: str) -> None:
    """No other error, and what was understood can be printed."""
    try:
        query = TASKS.parse(text)
    except QueryInvalid:
        return
    assert TASKS.parse(str(query)) == query
    TASKS.matches(query, task(), NOW)


def test_the_table_of_fields_is_the_completion() -> None:
    """Each field has a help, an example that parses, and its values or operators."""
    infos = {info.name: info for info in TASKS.completion({"type": ("ocr",)})}
    assert list(infos) == list(TASKS.fields)
    assert infos["state"].values == tuple(TaskState)
    assert infos["priority"].values == tuple(Priority)
    assert infos["reason"].values == tuple(WaitingReason)
    assert infos["type"].values == ("ocr",)
    assert infos["age"].operators == (">=", "<=", ">", "<")
    for info in infos.values():
        assert info.help.endswith("."), info.name
        (term,) = TASKS.parse(info.example).terms
        assert term.field == info.name


def test_what_a_query_allows() -> None:
    """What narrows the places where tasks are looked for."""
    query = TASKS.parse("state:failed,queued -state:queued agent:a,b agent:b,c id:x* type:a")
    assert query.allowed("state", TaskState) == {"failed"}
    assert query.names("agent") == frozenset({"b"})
    assert query.names("id") is None
    assert query.names("error") is None
    assert str(query.with_term("state", ["failed"])).endswith("state:failed")
    assert query.with_term("state", []) is query
