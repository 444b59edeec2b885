"""What a client submits or sends is checked before anything is appended, and the error names what does not fit."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel

from coord import TaskSpec
from coord.client.submission import message_append, spec_of, task_append
from coord.config import MIB
from coord.errors import (
    FactInvalid,
    FactTooLarge,
    PayloadInvalid,
)
from coord.models.facts import MessageSent
from coord.models.tasks import Requirements, TaskSubmitted


def test_a_task_requires_what_was_said_and_nothing_else() -> None:
    """The capability named like the type is the default; capabilities are added to requirements."""

    def required(**given: Any) -> Requirements:
        fact = task_append(TaskSpec(task_type="echo", **given), "", MIB).fact
        assert isinstance(fact, TaskSubmitted)
        return fact.requirements

    assert required().capabilities == ("echo",)
    assert required(capabilities=[]).capabilities == ()
    assert required(capabilities=["gpu"]).capabilities == ("gpu",)
    assert required(requirements={"tags": ["fast"]}) == Requirements(tags=("fast",))
    both = required(requirements=Requirements(capabilities=("a",), agent_id="x"), capabilities=("b", "a"))
    assert both == Requirements(capabilities=("a", "b"), agent_id="x")


def test_times_need_an_offset() -> None:
    """A moment without one would mean another time on another machine."""
    soon = datetime.now(UTC) + timedelta(hours=1)
    assert task_append(TaskSpec(task_type="echo", deadline=soon), "", MIB).stream == "in:tasks:normal"
    with pytest.raises(FactInvalid, match="deadline"):
        task_append(TaskSpec(task_type="echo", deadline=soon.replace(tzinfo=None)), "", MIB)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"task_type": ""}, "task_type"),
        ({"retry": {"max_atempts": 1}}, "max_atempts"),
        ({"requirements": {"min_health_score": 2}}, "min_health_score"),
        ({"payload": float, "task_type": "echo"}, "JSON"),
        ({"strategy": 7}, "strategy"),
        ({"location": {"lat": 91}}, "location.lat must be 90 or less, got 91"),
        ({"location": {"lng": 1}}, "location: no field 'lng'"),
        ({"location": {"lat": math.nan}}, "location.lat: expected a finite number"),
        ({"location": "eu"}, "location must be"),
        ({"affinity_key": ""}, "affinity_key must not be empty"),
        ({"affinity_key": "k" * 129}, "affinity_key must"),
        ({"expected_ms": 0}, "expected_ms must be above 0, got 0"),
        ({"expected_ms": -5.5}, "expected_ms must be above 0, got -5.5"),
        ({"expected_ms": 4e10}, "expected_ms must be 31536000000 or less, got 40000000000"),
        ({"expected_ms": "5s"}, "expected_ms must be a number"),
        ({"expected_ms": math.inf}, "expected_ms: expected a finite number"),
        ({"capabilities": "echo"}, r"capabilities: expected a list of words, such as \['echo'\], not 'echo'"),
        ({"capabilities": "echo", "requirements": {}}, "capabilities: expected a list"),
    ],
)
def test_a_field_that_does_not_fit_is_named(given: dict[str, Any], error: str) -> None:
    """By the rules of the fact itself."""
    with pytest.raises(FactInvalid, match=error):
        task_append(TaskSpec(**{"task_type": "echo", **given}), "", MIB)


class Report(BaseModel):
    """A model of a user's."""

    score: float
    path: Path = Path("/data")


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        (math.nan, "payload: nan is not a JSON number; use null or a string for it"),
        ({"pages": [{"score": 1.5}, {"score": -math.inf}]}, r"payload\.pages\[1\]\.score: -inf is not a JSON number"),
        (Report(score=math.inf), r"payload\.score: inf is not a JSON number"),
        ({"image": object()}, r"payload\.image: cannot be encoded as JSON: type object has no JSON form"),
        (msgspec.Raw(b'{"n":[1,1e999]}'), r"payload\.n\[1\]: the number 1e999 is out of range"),
        (msgspec.Raw(b"[" + b"1" * 5_000 + b"]"), r"payload\[0\]: the number 111111111111… \(5000 characters\) is out"),
        (msgspec.Raw(b"[NaN]"), r"payload\[0\]: nan is not a JSON number"),
        (msgspec.Raw(b"{"), "payload: is not valid JSON"),
    ],
)
def test_a_payload_that_is_no_json_is_refused_with_its_path(payload: Any, error: str) -> None:
    """Of a task and of a message; null would be sent for NaN, and no agent could decode the others."""
    message = {"message_id": "m", "sender_id": "a", "receiver_id": "b", "payload": payload}
    with pytest.raises(PayloadInvalid, match=error):
        task_append(TaskSpec(task_type="echo", payload=payload), "", MIB)
    with pytest.raises(PayloadInvalid, match=error) as raised:
        message_append(message, "normal", "", MIB)
    assert raised.value.code == "payload_invalid"


def test_a_payload_may_be_a_model() -> None:
    """Of pydantic, within what msgspec encodes."""
    fact = task_append(TaskSpec(task_type="echo", payload=[Report(score=1)]), "", MIB).fact
    assert isinstance(fact, TaskSubmitted)
    assert bytes(fact.payload) == b'[{"score":1.0,"path":"/data"}]'


@pytest.mark.parametrize(
    ("given", "error"),
    [("echo", "a TaskSpec or a mapping of its fields, not str"), ({"task_type": "e", "x": 1}, "'x'")],
)
def test_what_is_no_task_is_refused(given: Any, error: str) -> None:
    """Also among many, the error names what does not fit."""
    with pytest.raises(FactInvalid, match=error):
        spec_of(given)


def test_the_limit_counts_the_whole_entry() -> None:
    """What the worker would refuse is refused here."""
    with pytest.raises(FactTooLarge):
        task_append(TaskSpec(task_type="echo", payload="x" * 2_000), "", 2_000)


def test_a_message_goes_to_the_lane_of_its_priority() -> None:
    """Urgent and critical share one."""
    fields = {"message_id": "m", "sender_id": "s", "receiver_id": "r", "payload": {"n": 1}}
    one = message_append(fields, "urgent", "me", MIB)
    assert (one.stream, one.caller) == ("in:messages:critical", "me")
    assert isinstance(one.fact, MessageSent)
    assert one.fact.payload == msgspec.Raw(b'{"n":1}')
    with pytest.raises(FactInvalid, match="priority"):
        message_append(fields, "soon", "", MIB)
