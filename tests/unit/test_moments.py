"""Moments that no reader could show are refused wherever a moment comes in."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

import pytest

from coord import TaskSpec
from coord.cli.events import start_of
from coord.cli.parse import moment
from coord.client.submission import task_append
from coord.config import MIB
from coord.errors import ConfigError, FactInvalid
from coord.up.log import ConsoleLog

AFTER, BEFORE = "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59"


@pytest.mark.parametrize("field", ["deadline", "run_at"])
@pytest.mark.parametrize("text", [AFTER, BEFORE])
def test_a_task_is_not_submitted_with_one(field: str, text: str) -> None:
    """The error names the field and shows the moment as it was given; the limits themselves are fine."""
    given: dict[str, Any] = {field: datetime.fromisoformat(text)}
    with pytest.raises(FactInvalid) as raised:
        task_append(TaskSpec(task_type="echo", **given), "", MIB)
    assert f"{field} {text} is outside the years 1 to 9999 in UTC" in str(raised.value)
    for limit in (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)):
        given = {field: limit}
        assert task_append(TaskSpec(task_type="echo", **given), "", MIB).data


@pytest.mark.parametrize("text", [AFTER, BEFORE, "9999999999d", "9" * 12 + "d"])
@pytest.mark.parametrize("ahead", [True, False])
def test_a_command_does_not_take_one(text: str, *, ahead: bool) -> None:
    """Neither as a moment nor as a length of time."""
    with pytest.raises(ConfigError, match=r"^--deadline '.*' is outside the years 1 to 9999 in UTC$"):
        moment(text, "--deadline", ahead=ahead)


def test_events_before_1970_are_all_events() -> None:
    """No entry is older, and no entry id is negative."""
    assert start_of("0001-01-01T00:00:00Z") == "0-0"
    assert start_of("1970-01-01T00:00:01Z") == "1000-0"


def test_a_line_with_such_a_time_is_logged() -> None:
    """With the time at which it was read."""
    out = io.StringIO()
    ConsoleLog(out, lambda: None).output("p", f'{{"event":"x","timestamp":"{BEFORE}"}}')
    assert out.getvalue().endswith("p      x\n")
