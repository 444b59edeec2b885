"""What a client submits or sends is checked before anything is appended, and the error names what does not fit."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from coord import TaskSpec
from coord.client.submission import message_append, spec_of, task_append
from coord.config import MIB
from coord.errors import (
    FactInvalid,
    FactTooLarge,
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
        ({"capabilities": "echo"}, r"capabilities: expected a list of words, such as \['echo'\], not 'echo'"),
        ({"capabilities": "echo", "requirements": {}}, "capabilities: expected a list"),
    ],
)
def test_a_field_that_does_not_fit_is_named(given: dict[str, Any], error: str) -> None:
    """By the rules of the fact itself."""
    with pytest.raises(FactInvalid, match=error):
        task_append(TaskSpec(**{"task_type": "echo", **given}), "", MIB)


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
