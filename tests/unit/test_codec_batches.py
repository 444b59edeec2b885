"""A batch of entries tells what they tell one by one, at less than half the cost; lists of facts among them."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from coord import codec
from coord.errors import CoordError, FactTooLarge
from coord.models.facts import (
    TYPE_OF,
    AgentHeartbeat,
    TaskCancelRequested,
    TaskCompleted,
    TaskFailed,
    TaskProgressed,
    TaskReleased,
    TaskReplayed,
    TasksCompleted,
    TaskStarted,
)
from coord.models.tasks import Retry, TasksSubmitted, TaskSubmitted
from coord.streams import Entry

MAX = 1_048_576
LEASE = "0123456789abcdef"


def outcome(call: Callable[[], object]) -> object:
    """What a call gives, or the type and the words of what it raises."""
    try:
        return call()
    except CoordError as error:
        return type(error), str(error)


def alike(entries: list[Entry], most: int = MAX) -> list[object]:
    """What a batch tells, having compared it with what its entries tell one by one."""
    together: list[object] = [
        (type(one), str(one)) if isinstance(one, CoordError) else one for one in codec.decode_facts(entries, most)
    ]
    alone = [outcome(lambda one=one: codec.decode_fact(one.stream, one.fields, most)) for one in entries]  # type: ignore[misc]
    assert together == alone
    assert [type(one) for one in together] == [type(one) for one in alone]
    return together


FACTS = [
    ("in:reports", TaskStarted("t1", LEASE, 5)),
    ("in:reports", TaskProgressed("t1", LEASE, msgspec.Raw(b"[1]"))),
    ("in:reports", TaskCompleted("t1", LEASE, msgspec.Raw(b"1"), 3)),
    ("in:reports", TasksCompleted((TaskCompleted("t1", LEASE), TaskCompleted("t2", LEASE, msgspec.Raw(b"1"), 3)))),
    ("in:reports", TaskFailed("t1", LEASE, "e", "m", retryable=False)),
    ("in:reports", TaskFailed("t1", LEASE, "e", "m", detail=msgspec.Raw(b'{"page":13}'))),
    ("in:reports", TaskReleased("t1", LEASE, "why")),
    ("in:requests", TaskCancelRequested("t1", "why")),
    ("in:control:distributor", TaskReplayed("t1")),
    ("in:tasks:low", TaskSubmitted("t1", "echo", payload=msgspec.Raw(b'{"n":1}'), retry=Retry(max_attempts=2))),
    ("in:tasks:low", TasksSubmitted((TaskSubmitted("t1", "echo"), TaskSubmitted("t2", "echo", msgspec.Raw(b"[]"))))),
    ("in:beats", AgentHeartbeat("a1")),
]


def entry(stream: str, kind: str, data: bytes, **fields: bytes) -> Entry:
    """An entry as it was read."""
    more = {name.encode(): value for name, value in fields.items()}
    return Entry(stream, "1-1", {b"type": kind.encode(), b"data": data, **more})


def test_a_batch_tells_what_its_entries_tell() -> None:
    """Of every kind of fact about a task, whole and by its defaults, and of one that is about none."""
    entries = [entry(stream, TYPE_OF[type(fact)], codec.encode(fact), caller=b"c") for stream, fact in FACTS]
    assert alike(entries) == [fact for _, fact in FACTS]


@pytest.mark.parametrize("bad", ["", "a b", "é", "a\n", "x" * 129, "submit", "\u2028", 7, None])
def test_an_id_that_does_not_fit_is_named_in_a_batch_as_well(bad: object) -> None:
    """The others of the batch are decoded nevertheless, and its error is the same as on its own."""
    good = entry("in:tasks:low", "task.submitted", b'{"task_id":"t1","task_type":"echo"}')
    data = msgspec.json.encode({"task_id": bad, "task_type": "echo"})
    decoded = alike([good, entry("in:tasks:low", "task.submitted", data), good])
    assert decoded[0] == decoded[2] == TaskSubmitted("t1", "echo")
    assert isinstance(decoded[1], tuple)
    assert "task_id" in decoded[1][1]


@pytest.mark.parametrize(
    "bad", ["", "0123456789abcde", "0123456789abcdeG", "0123456789ABCDEF", LEASE + "0", LEASE + "\n"]
)
def test_a_lease_that_does_not_fit_is_named_in_a_batch_as_well(bad: str) -> None:
    """As an id is. The last of two equal keys counts, in both ways of reading."""
    data = b'{"task_id":"t1","lease":"%s","lease":%s}' % (LEASE.encode(), msgspec.json.encode(bad))
    decoded = alike([entry("in:reports", "task.completed", data)])
    assert isinstance(decoded[0], tuple)
    assert "lease" in decoded[0][1]


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (b'{"task_id":"a b","lease":"%s"}', "$.completed[1].task_id"),
        (b'{"task_id":"t1","lease":"x%s"}', "$.completed[1].lease"),
        (b'{"task_id":"t1","lease":"%s","started_ms_ago":-1}', "$.completed[1].started_ms_ago"),
        (b'{"task_id":"t1","lease":"%s","started_ms_ago":31536000001}', "$.completed[1].started_ms_ago"),
        (b'{"task_id":"t1","lease":"%s","result":{]}', "byte"),
        (b'"%s"', "$.completed[1]"),
    ],
)
def test_one_that_does_not_fit_is_named_among_several(bad: bytes, named: str) -> None:
    """The entry tells nothing then; others of the batch do."""
    good = b'{"task_id":"t2","lease":"%s"}' % LEASE.encode()
    entries = [entry("in:reports", "tasks.completed", b'{"completed":[%b]}' % one) for one in (
        good, b",".join([good, bad % LEASE.encode(), good]), b",".join([good] * 256), b",".join([good] * 257), b"",
    )]  # fmt: skip
    decoded = alike(entries)
    assert [isinstance(one, TasksCompleted) for one in decoded] == [True, False, True, False, False]
    for error, name in ((decoded[1], named), (decoded[3], "$.completed"), (decoded[4], "$.completed")):
        assert isinstance(error, tuple)
        assert name in error[1]


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (b'{"task_id":"a b","task_type":"echo"}', "$.tasks[0].task_id"),
        (b'{"task_id":"submit","task_type":"echo"}', "'submit'"),
        (b'{"task_id":"t1","task_type":"echo","delay":1,"run_at":"2026-01-01T00:00:00Z"}', "$.tasks[0]"),
        (b'{"task_id":"t1"}', "$.tasks[0]"),
    ],
)
def test_a_submission_that_does_not_fit_is_named_among_several(bad: bytes, named: str) -> None:
    """As it is by itself, with its place."""
    data = b'{"tasks":[%b,{"task_id":"t2","task_type":"echo"}]}' % bad
    (decoded,) = alike([entry("in:tasks:low", "tasks.submitted", data)])
    assert isinstance(decoded, tuple)
    assert named in decoded[1]


def test_sizes_in_a_batch() -> None:
    """Data over the limit, and other fields that are long, are refused as by themselves."""
    data = b'{"task_id":"t1","task_type":"echo"}'
    decoded = alike(
        [
            entry("in:tasks:low", "task.submitted", data),
            entry("in:tasks:low", "task.submitted", data, caller=b"c" * 5_000),
            entry("in:tasks:low", "task.submitted", data + b" " * 100),
        ],
        100,
    )
    assert decoded[0] == TaskSubmitted("t1", "echo")
    assert [one[0] for one in decoded[1:] if isinstance(one, tuple)] == [FactTooLarge, FactTooLarge]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(FACTS),
            st.binary(max_size=8),
            st.integers(min_value=0, max_value=80),
            st.integers(min_value=0, max_value=8),
        ),
        max_size=4,
    )
)
def test_any_batch_tells_what_its_entries_tell(drawn: list[tuple[tuple[str, Struct], bytes, int, int]]) -> None:
    """Bytes put in anywhere, in place of others or between them."""
    entries = []
    for (stream, fact), bytes_, at, length in drawn:
        data = codec.encode(fact)
        entries.append(entry(stream, TYPE_OF[type(fact)], data[:at] + bytes_ + data[at + length :]))
    alike(entries)
