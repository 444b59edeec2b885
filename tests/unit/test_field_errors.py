"""Errors of arguments: the name, the valid values and the value, as a user of the SDK knows them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from coord import Agent
from coord.client.submission import TaskSpec, task_append
from coord.config import Settings
from coord.errors import FactInvalid
from coord.models.strategies import STRATEGY_NAMES

MIB = 1024 * 1024
AGENT_TYPES = (
    "coordinator, worker, specialist, monitor, gateway, orchestrator, inference, training, processing, provider, "
    "consumer, general"
)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"task_type": ""}, "task_type must not be empty, got ''"),
        ({"task_type": 7}, "task_type must be text, got 7"),
        ({"delay": -5}, "delay must be 0 or more, got -5"),
        ({"delay": 1e9}, "delay must be 31536000 or less, got 1000000000.0"),
        ({"timeout": 0}, "timeout must be above 0, got 0"),
        ({"timeout": "soon"}, "timeout must be a number, got 'soon'"),
        ({"retry": {"max_attempts": 0}}, "retry.max_attempts must be 1 or more, got 0"),
        ({"retry": {"max_attempts": 1.5}}, "retry.max_attempts must be a whole number, got 1.5"),
        ({"retry": {"max_atempts": 1}}, "retry has no field 'max_atempts'; did you mean 'max_attempts'?"),
        ({"retry": {"tries": 1}}, "retry has no field 'tries'; known are max_attempts, backoff, backoff_max"),
        ({"retry": 3}, "retry must be a mapping, got 3"),
        ({"requirements": {"min_health_score": 2}}, "requirements.min_health_score must be 1 or less, got 2"),
        ({"requirements": {"tags": ["a", ""]}}, "requirements.tags[1] must not be empty, got ''"),
        ({"requirements": {"tags": "eu"}}, "requirements.tags must be a list, got 'eu'"),
        ({"requirements": {"labels": {"zone": 1}}}, "requirements.labels must be text, got {'zone': 1}"),
        (
            {"requirements": {"labels": {"": "eu"}}},
            "a name in requirements.labels must not be empty",
        ),
        (
            {"requirements": {"agent_id": "x y"}},
            "requirements.agent_id must be 1 to 128 characters of A-Z a-z 0-9 . _ @ -, got 'x y'",
        ),
        (
            {"requirements": {"agent_type": "wurker"}},
            f"requirements.agent_type 'wurker' is not one of {AGENT_TYPES}; did you mean 'worker'?",
        ),
        (
            {"strategy": "round"},
            f"strategy 'round' is not one of {', '.join(STRATEGY_NAMES)}; did you mean 'round_robin'?",
        ),
        ({"strategy": "foo"}, f"strategy 'foo' is not one of {', '.join(STRATEGY_NAMES)}"),
        (
            {"deadline": "tomorrow"},
            "deadline must be a date and time such as 2030-01-31T12:00:00Z, got 'tomorrow'",
        ),
        (
            {"deadline": datetime(2030, 1, 31)},  # noqa: DTZ001 -- the mistake
            (
                "deadline must be a date and time with a time zone, such as 2030-01-31T12:00:00Z, "
                "got '2030-01-31T00:00:00'"
            ),
        ),
        ({"delay": 1, "run_at": "2030-01-31T12:00:00Z"}, "give delay or run_at, not both"),
    ],
)
def test_an_argument_of_a_task_is_named(fields: dict[str, Any], error: str) -> None:
    """No path in the JSON of a fact, and no words of the decoder."""
    with pytest.raises(FactInvalid) as caught:
        task_append(TaskSpec(**{"task_type": "echo", **fields}), "", MIB)
    assert str(caught.value) == error


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"agent_type": "llm"}, f"agent_type must be one of {AGENT_TYPES}, got 'llm'"),
        ({"capacity": 1.5}, "capacity must be a whole number, got 1.5"),
        ({"capacity": -1}, "capacity must be 0 or more, got -1"),
        ({"heartbeat_interval": 0.01}, "heartbeat_interval must be 0.05 or more, got 0.01"),
        ({"location": {"lat": 91}}, "location.lat must be 90 or less, got 91"),
        ({"version": "x" * 129}, f"version must have at most 128 characters, got '{'x' * 57} …"),
    ],
)
def test_an_argument_of_an_agent_is_named(options: dict[str, Any], error: str) -> None:
    """An agent's type is shown with those that there are."""
    with pytest.raises(FactInvalid) as caught:
        Agent("a", settings=Settings(), **options)
    assert str(caught.value) == error
