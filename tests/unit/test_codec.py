"""Between entries and facts: whatever a caller sends ends in a fact, or in an error that names the field."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coord import codec
from coord.errors import CoordError, FactInvalid, FactTooLarge, IdInvalid
from coord.models.facts import (
    STREAM_FACTS,
    TYPE_OF,
    AgentHeartbeat,
    AgentRegistered,
    MessageSent,
    TaskCompleted,
    TaskProgressed,
)
from coord.models.ids import RESERVED
from coord.models.tasks import Pool, Requirements, TaskSubmitted

MAX = 1_048_576
LEASE = "0123456789abcdef"


def fact(stream: str, kind: str, data: object, **fields: bytes) -> Any:
    """What ``codec`` makes of an entry; ``data`` is bytes as they are, or anything as JSON."""
    raw = data if isinstance(data, bytes) else msgspec.json.encode(data)
    return codec.decode_fact(stream, {b"type": kind.encode(), b"data": raw}, MAX)


def submitted(**changes: object) -> Any:
    """A submission with these fields changed."""
    return fact("in:tasks:low", "task.submitted", {"task_id": "t1", "task_type": "echo", **changes})


def registered(**changes: object) -> Any:
    """A registration with these fields changed."""
    return fact("in:registry", "agent.registered", {"agent_id": "a1", "agent_type": "worker", **changes})


def test_a_fact_travels_and_comes_back() -> None:
    """What ``encode_entry`` writes, ``decode_fact`` reads; the caller travels beside it."""
    fact = TaskSubmitted("t1", "echo", payload=msgspec.Raw(b'{"n":1}'), requirements=Requirements(capabilities=("x",)))
    entry = codec.encode_entry(fact, caller="c1")
    fields = {name.encode(): value if isinstance(value, bytes) else value.encode() for name, value in entry.items()}
    assert codec.decode_fact("in:tasks:low", fields, MAX) == fact
    assert codec.caller_of(fields) == "c1"
    assert "caller" not in codec.encode_entry(fact)


def test_a_payload_is_kept_as_it_was_written() -> None:
    """Any JSON, to the byte: coord never looks inside."""
    raw = b'{"task_id":"t1","task_type":"echo","payload":[1e999,  {"b":1,"a":"\\u00fc"}, 12345678901234567890123]}'
    assert bytes(fact("in:tasks:low", "task.submitted", raw).payload).startswith(b"[1e999,  {")


@pytest.mark.parametrize(
    ("stream", "fields", "message"),
    [
        ("in:beats", {b"data": b"{}"}, "'type' is missing"),
        ("in:beats", {}, "'type' is missing"),
        ("in:beats", {b"type": b"agent.heartbeat"}, "'data' is missing"),
        ("in:beats", {b"type": b"nonsense", b"data": b"{}"}, "does not carry 'nonsense', only agent.heartbeat"),
        ("in:beats", {b"type": b"task.completed", b"data": b"{}"}, "in:beats does not carry 'task.completed'"),
        ("in:beats", {b"type": b"\xff\xfe", b"data": b"{}"}, r"'type': in:beats does not carry '\\xff\\xfe'"),
    ],
)
def test_an_entry_without_its_parts(stream: str, fields: dict[bytes, bytes], message: str) -> None:
    """The missing or unknown part is named, and what the stream carries."""
    with pytest.raises(FactInvalid) as caught:
        codec.decode_fact(stream, fields, MAX)
    assert message in str(caught.value)
    assert "field " in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "'data'"),
        (b"{", "'data'"),
        (b"not json", "'data'"),
        (b"[]", "Expected `object`, got `array`"),
        (b"null", "Expected `object`, got `null`"),
        (b'{"agent_id":"a1"} x', "'data'"),
        (b'{"agent_id":"\xff\xfe"}', "UTF-8"),
        (b'{"agent_id":"a1","incarnation":"\\ud800"}', "'data'"),
        (b'{"agent_id":"a1","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b"\x00\x01", "'data'"),
    ],
)
def test_data_that_is_not_json_or_not_an_object(data: bytes, message: str) -> None:
    """Truncated, foreign, invalid UTF-8, nested beyond reason: refused, never raised through."""
    with pytest.raises(FactInvalid, match="field 'data'") as caught:
        fact("in:beats", "agent.heartbeat", data)
    assert message in str(caught.value)


def test_invalid_utf8_in_what_nobody_reads() -> None:
    """A payload is passed through unread; still its encoding is checked, for an agent could not make sense of it."""
    with pytest.raises(FactInvalid, match="not valid UTF-8"):
        fact("in:tasks:low", "task.submitted", b'{"task_id":"t1","task_type":"echo","payload":"\xff\xfe"}')


def test_a_payload_nested_too_deeply() -> None:
    """A payload nested beyond reason is an error, never a crash."""
    raw = b'{"task_id":"t1","task_type":"echo","payload":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with pytest.raises(FactInvalid, match="nested too deeply"):
        fact("in:tasks:low", "task.submitted", raw)


def test_too_large() -> None:
    """An entry over the limit is refused with both numbers."""
    with pytest.raises(FactTooLarge, match="'data': 101 bytes are over the limit of 100"):
        codec.decode_fact("in:beats", {b"type": b"agent.heartbeat", b"data": b"x" * 101}, 100)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"task_id": None}, "$.task_id"),
        ({"task_id": 7}, "$.task_id"),
        ({"task_id": ""}, "$.task_id"),
        ({"task_id": "a b"}, "$.task_id"),
        ({"task_id": "a:b"}, "$.task_id"),
        ({"task_id": "{x}"}, "$.task_id"),
        ({"task_id": "t1\n"}, "$.task_id"),
        ({"task_id": "ü"}, "$.task_id"),
        ({"task_id": "x" * 129}, "$.task_id"),
        ({"task_type": ""}, "$.task_type"),
        ({"task_type": ["echo"]}, "$.task_type"),
        ({"requirements": []}, "$.requirements"),
        ({"requirements": {"capabilities": "echo"}}, "$.requirements.capabilities"),
        ({"requirements": {"capabilities": [""]}}, "$.requirements.capabilities[0]"),
        ({"requirements": {"labels": {"a": 1}}}, "$.requirements.labels[...]"),
        ({"requirements": {"min_health_score": 1.5}}, "$.requirements.min_health_score"),
        ({"requirements": {"agent_id": "a\n"}}, "$.requirements.agent_id"),
        ({"timeout": 0}, "$.timeout"),
        ({"timeout": -1}, "$.timeout"),
        ({"timeout": "1"}, "$.timeout"),
        ({"deadline": "2030-01-01T00:00:00"}, "$.deadline"),
        ({"deadline": 5}, "$.deadline"),
        ({"delay": -1}, "$.delay"),
        ({"run_at": "tomorrow"}, "$.run_at"),
        ({"run_at": "9999-12-31T23:59:59-23:59"}, "run_at 9999-12-31T23:59:59-23:59 is outside the years 1 to 9999"),
        ({"deadline": "0001-01-01T00:00:00+23:59"}, "deadline 0001-01-01T00:00:00+23:59 is outside the years 1 to"),
        ({"delay": 1, "run_at": "2030-01-01T00:00:00Z"}, "delay or run_at"),
        ({"retry": {"max_attempts": 0}}, "$.retry.max_attempts"),
        ({"retry": {"attempts": 3}}, "attempts"),
        ({"notify": "yes"}, "$.notify"),
    ],
)
def test_a_submission_that_does_not_fit(change: dict[str, object], names: str) -> None:
    """The field that is wrong is named."""
    with pytest.raises(FactInvalid) as caught:
        submitted(**change)
    assert names in str(caught.value)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"agent_type": "robot"}, "$.agent_type"),
        ({"capabilities": ["x" * 129]}, "$.capabilities[0]"),
        ({"capabilities": ["x"] * 257}, "$.capabilities"),
        ({"labels": {"": "x"}}, "$.labels"),
        ({"capacity": -1}, "$.capacity"),
        ({"capacity": 1.5}, "$.capacity"),
        ({"weight": -1}, "$.weight"),
        ({"heartbeat_interval": 0.01}, "$.heartbeat_interval"),
        ({"location": {"lat": 91}}, "$.location.lat"),
        ({"incarnation": "x" * 129}, "$.incarnation"),
    ],
)
def test_a_registration_that_does_not_fit(change: dict[str, object], names: str) -> None:
    """The field that is wrong is named."""
    with pytest.raises(FactInvalid) as caught:
        registered(**change)
    assert names in str(caught.value)


@pytest.mark.parametrize("lease", ["", "g" * 16, "0" * 15, "0" * 17, LEASE.upper(), LEASE + "\n"])
def test_a_lease_is_sixteen_hex_digits(lease: str) -> None:
    """Anything else is no lease, and not even looked up."""
    with pytest.raises(FactInvalid, match=r"\$\.lease"):
        fact("in:reports", "task.started", {"task_id": "t1", "lease": lease})


@pytest.mark.parametrize("word", sorted(RESERVED))
def test_reserved_words_are_no_ids(word: str) -> None:
    """An agent is not called like a path segment of the HTTP contract."""
    with pytest.raises(IdInvalid, match=r"agent_id must not be .* reserved"):
        registered(agent_id=word)


def test_unknown_fields_are_ignored() -> None:
    """A newer client may say more than an older coordinator understands."""
    assert submitted(colour="blue", requirements={"colour": "blue"}).task_id == "t1"
    with pytest.raises(FactInvalid):
        submitted(retry={"colour": "blue"})


@pytest.mark.parametrize(
    ("fields", "rule", "topic"),
    [
        ({}, "direct", "direct"),
        ({"message_type": "peer_to_peer"}, "peer_to_peer", "peer_to_peer"),
        ({"message_type": "consensus"}, "direct", "consensus"),
        ({"protocol": "hierarchical"}, "hierarchical", "hierarchical"),
        ({"message_type": "direct", "protocol": "peer_to_peer"}, "peer_to_peer", "peer_to_peer"),
        ({"message_type": "consensus", "protocol": "peer_to_peer"}, "peer_to_peer", "consensus"),
        ({"protocol": "hierarchical", "receiver_id": "subordinates"}, "hierarchical", "hierarchical"),
    ],
)
def test_the_protocol_and_the_type_of_a_message(fields: dict[str, str], rule: str, topic: str) -> None:
    """Each follows from the other where only one is set."""
    data = {"message_id": "m1", "sender_id": "s1", "receiver_id": "a1", **fields}
    message = fact("in:messages:low", "message.sent", data)
    assert isinstance(message, MessageSent)
    assert (message.rule, message.topic) == (rule, topic)


@pytest.mark.guarantee("replies-by-the-receiver")
@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"message_type": "peer_to_peer", "protocol": "hierarchical"}, "message_type 'peer_to_peer' has the protocol"),
        ({"receiver_id": "subordinates"}, "receiver_id 'subordinates' needs the protocol 'hierarchical', not 'direct'"),
        ({"sender_id": "coordinator"}, "sender_id must not be 'coordinator'"),
        ({"receiver_id": "subordinates", "protocol": "hierarchical", "reply_by": 1}, "a request goes to one agent"),
        ({"message_id": "m" * 121, "reply_by": 1}, "message_id of a request has at most 120 characters, not 121"),
        ({"message_id": "m" * 121, "receiver_id": "coordinator"}, "message_id of a request has at most 120 characters"),
        ({"protocol": "gossip"}, "protocol"),
    ],
)
def test_a_message_that_contradicts_itself(fields: dict[str, str], error: str) -> None:
    """The error names the field and the next step."""
    data = {"message_id": "m1", "sender_id": "s1", "receiver_id": "a1", **fields}
    with pytest.raises(FactInvalid, match=error):
        fact("in:messages:low", "message.sent", data)


@pytest.mark.parametrize(
    ("raw", "caller"),
    [
        (b"c1", "c1"), (b"", ""), (b"A.b_c@d-9", "A.b_c@d-9"), (b"a:b", ""), (b"a b", ""), (b"c1\n", ""), (b"\xff", ""),
        (b"x" * 128, "x" * 128), (b"x" * 129, ""), (b"{t}", ""), (b"*", ""),
    ],
)  # fmt: skip
def test_a_caller_is_an_id_or_nobody(raw: bytes, caller: str) -> None:
    """⚠ The key of the answers is built from it: an invalid caller gets none."""
    assert codec.caller_of({b"caller": raw}) == caller


def test_a_digest_is_of_the_content() -> None:
    """The same whatever the order of keys and the blanks between them; other content, another digest."""
    one = submitted(requirements={"labels": {"a": "1", "b": "2"}, "capabilities": ["x"]}, timeout=5)
    two = fact(
        "in:tasks:low",
        "task.submitted",
        b'{ "timeout": 5.0, "task_type":"echo", "requirements":{"capabilities":["x"],"labels":{"b":"2","a":"1"}},'
        b' "task_id":"t1" }',
    )
    assert codec.digest_of(one) == codec.digest_of(two)
    assert len(codec.digest_of(one)) == 24
    assert codec.digest_of(one) != codec.digest_of(submitted(timeout=5))


def test_a_digest_of_a_payload() -> None:
    """Another payload is other content."""
    payloads: list[object] = [{"n": 1}, {"n": 2}, None, []]
    digests = {codec.digest_of(submitted(payload=payload)) for payload in payloads}
    assert len(digests) == 4


def test_a_pool_is_what_tasks_share() -> None:
    """The same requirements make the same pool in every process; its id is a key name's part."""
    pool, definition = codec.pool_of(Pool("echo", Requirements(labels={"a": "1", "b": "2"})))
    again, _ = codec.pool_of(Pool("echo", Requirements(labels={"b": "2", "a": "1"})))
    other, _ = codec.pool_of(Pool("echo", Requirements(labels={"a": "1"})))
    assert pool == again != other
    assert len(pool) == 16
    assert msgspec.json.decode(definition, type=Pool).task_type == "echo"


def test_every_fact_has_a_stream_and_a_word() -> None:
    """No fact can be appended nowhere; the words are dotted, and different."""
    carried = {cls for classes in STREAM_FACTS.values() for cls in classes}
    assert carried == set(TYPE_OF)
    assert len(set(TYPE_OF.values())) == len(TYPE_OF)
    assert all("." in word for word in TYPE_OF.values())


def test_numbers_and_defaults() -> None:
    """A beat may say nothing but who it is; a completed task may have no result."""
    assert fact("in:beats", "agent.heartbeat", {"agent_id": "a1"}) == AgentHeartbeat("a1")
    assert bytes(fact("in:reports", "task.completed", {"task_id": "t1", "lease": LEASE}).result) == b"null"
    assert isinstance(fact("in:reports", "task.progressed", {"task_id": "t1", "lease": LEASE}), TaskProgressed)
    assert TYPE_OF[TaskCompleted] == "task.completed"
    assert registered(heartbeat_interval=5) == AgentRegistered("a1", registered().agent_type, heartbeat_interval=5.0)


@given(
    data=st.binary(max_size=200),
    kind=st.sampled_from(sorted(TYPE_OF.values())),
    stream=st.sampled_from(list(STREAM_FACTS)),
)
def test_any_bytes_end_in_a_fact_or_an_error(data: bytes, kind: str, stream: str) -> None:
    """Whatever a caller appends, nothing but a CoordError comes out."""
    with contextlib.suppress(CoordError):
        fact(stream, kind, data)
