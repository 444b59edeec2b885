"""A wrong argument raises an error that names the argument, never an error of a library."""

from __future__ import annotations

import math
from typing import Any

import pytest

from coord import Agent, Client
from coord.arguments import as_dict, as_seconds, as_words, check_finite, check_known, encode_fields
from coord.config import Settings
from coord.errors import ConfigError, FactInvalid
from coord.models.tasks import Retry


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"capabilities": 5}, "capabilities: expected a list of words, not 5"),
        ({"capabilities": None}, "capabilities: expected a list of words, not None"),
        ({"services": b"ab"}, "services: expected a list of words"),
        ({"tags": {"a": 1}}, "tags: expected a list of words"),
        ({"labels": "x"}, "labels: expected a mapping, not 'x'"),
        ({"metadata": 5}, "metadata: expected a mapping, not 5"),
        (
            {"metadata": {"made_by": object()}},
            "metadata.made_by: cannot be encoded as JSON: type object has no JSON form",
        ),
        ({"endpoints": [("a", "b")]}, "endpoints: expected a mapping"),
        ({"metadata": {"load": [math.nan]}}, r"metadata.load\[0\]: nan is not a JSON number"),
        ({"version": "\ud800"}, "version: cannot be encoded as JSON"),
        ({"capacity": math.nan}, "capacity: expected a finite number, not nan"),
        ({"weight": math.inf}, "weight: expected a finite number, not inf"),
        ({"heartbeat_interval": math.nan}, "heartbeat_interval: expected a finite number"),
        ({"location": {"lat": math.inf}}, "location.lat: expected a finite number"),
        ({"drain_timeout": "5"}, "drain_timeout: expected a number of seconds, not '5'"),
        ({"drain_timeout": math.nan}, "drain_timeout: expected a number of seconds, not nan"),
    ],
)
def test_what_an_agent_cannot_be_is_named(settings: Settings, given: dict[str, Any], why: str) -> None:
    """When it is made, not when it is started."""
    with pytest.raises(FactInvalid, match=why):
        Agent("a", settings=settings, **given)


@pytest.mark.parametrize("kind", [Client, lambda **given: Agent("a", **given)])
def test_where_to_connect_is_text_and_settings(kind: Any) -> None:
    """Of a client and of an agent."""
    with pytest.raises(ConfigError, match=r"url: expected text, such as 'redis://127.0.0.1:6379', not 5"):
        kind(url=5)
    with pytest.raises(ConfigError, match=r"settings: expected coord.config.Settings, not \{\}"):
        kind(settings={})


@pytest.mark.parametrize("task_type", ["", 5, None, b"x", "x" * 129])
def test_a_task_type_is_text(settings: Settings, task_type: Any) -> None:
    """Said when its handler is registered."""
    with pytest.raises(FactInvalid, match="task_type: expected text of 1 to 128 characters"):
        Agent("a", settings=settings).task(task_type)


def test_a_number_that_json_does_not_have_is_refused_wherever_it_stands() -> None:
    """It would be sent as null."""
    for value, name in ((math.nan, "x"), ({"a": {"b": -math.inf}}, "x.a.b"), (Retry(backoff=math.nan), "x.backoff")):
        with pytest.raises(FactInvalid, match=f"{name}: expected a finite number"):
            check_finite(value, "x")
    check_finite({"a": [1.5, None, "nan"]}, "x")


def test_a_misspelt_name_is_answered_with_the_nearest() -> None:
    """Or with those that there are; a Struct has no others."""
    check_known(Retry(), Retry, "retry")
    check_known({"backoff": 1}, Retry, "retry")
    with pytest.raises(FactInvalid, match=r"retry: no field 'backof'; did you mean 'backoff'\?"):
        check_known({"backof": 1}, Retry, "retry")
    with pytest.raises(FactInvalid, match="retry: no field 'zzz'; known are max_attempts, backoff, backoff_max"):
        check_known({"zzz": 1}, Retry, "retry")


def test_the_field_that_is_no_json_is_named() -> None:
    """Of a mapping and of a Struct; something whose text cannot even be shown is named by its type."""

    class Evil:
        def __repr__(self) -> str:
            raise RuntimeError

    for value in ({"a": 1, "odd": {1, object}}, Retry(max_attempts=object())):  # type: ignore[arg-type]
        with pytest.raises(FactInvalid, match=r"^(odd\[\d\]|max_attempts): cannot be encoded as JSON"):
            encode_fields(value)
    with pytest.raises(FactInvalid, match="words: expected a list of words, not Evil"):
        as_words(Evil(), "words")


def test_what_fits_is_passed_on() -> None:
    """As it is."""
    assert as_words(iter("ab"), "x") == ("a", "b")
    assert as_dict(None, "x") == {}
    assert as_dict({"a": 1}, "x") == {"a": 1}
    assert [as_seconds(one, "x") for one in (0, 1.5, -3)] == [0, 1.5, 0]
