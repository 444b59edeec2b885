"""Places in a program's arguments: filled whole, within one argument, and refused where they are not safe."""

from __future__ import annotations

from typing import Any

import pytest

from coord.agent.task import NonRetryable
from coord.errors import ConfigError
from coord.programs.command import Arguments


@pytest.mark.parametrize(
    ("words", "payload", "filled"),
    [
        (["{lang}"], {"lang": "deu"}, ["deu"]),
        (["{lang}"], {"lang": "two words; $(rm) `x` 'y' \"z\" *"}, ["two words; $(rm) `x` 'y' \"z\" *"]),
        (["{lang}"], {"lang": ""}, [""]),
        (["{lang}"], {"lang": "{other}"}, ["{other}"]),
        (["--lang={lang}", "{w}x{h}", "/data/{id}.pdf"], {"lang": "-x", "w": 3, "h": 4.5, "id": "é"},
         ["--lang=-x", "3x4.5", "/data/é.pdf"]),
        (["{a}", "{b}", "{c}"], {"a": True, "b": -5, "c": [1, {"d": None}]}, ["true", "-5", '[1,{"d":null}]']),
        (["--", "{lang}"], {"lang": "-x"}, ["--", "-x"]),
        (["{{lang}}", "awk '{{print $1}}'", "plain $x"], {}, ["{lang}", "awk '{print $1}'", "plain $x"]),
        (["-c", "{code}"], {"code": "print(1)"}, ["-c", "print(1)"]),
    ],
)  # fmt: skip
def test_a_place_is_filled_with_its_field(words: list[str], payload: Any, filled: list[str]) -> None:
    """Text as it is, anything else as JSON; braces are written twice; a value is never looked into again."""
    assert Arguments("program", words).fill(payload) == filled


@pytest.mark.parametrize(
    ("payload", "code", "says"),
    [
        ({}, "field_missing", "the payload has no field 'lang', which is argument 1"),
        ({"lang": None}, "field_missing", "no field 'lang'"),
        ([1], "payload_invalid", "must be an object, not an array"),
        (7, "payload_invalid", "must be an object, not a number"),
        ({"lang": "-rf"}, "field_invalid", "field 'lang' begins with a dash"),
        ({"lang": "a\0b"}, "field_invalid", "field 'lang' contains a null character"),
    ],
)
def test_what_cannot_be_an_argument_fails_the_task_for_good(payload: Any, code: str, says: str) -> None:
    """The failure names the field."""
    with pytest.raises(NonRetryable) as raised:
        Arguments("program", ["{lang}"]).fill(payload)
    assert raised.value.code == code
    assert says in raised.value.message


@pytest.mark.parametrize(
    ("program", "words", "says"),
    [
        ("program", ["x", "{"], "argument 2 '{': '{' is not part of a placeholder; write '{{'"),
        ("program", ["}"], "write '}}'"),
        ("program", ["{}"], "write '{{'"),
        ("program", ["{a.b}"], "write '{{'"),
        ("awk", ["{print $1}"], "write '{{'"),
        ("python3", ["-c", "print('{name}')"], "pass the field as an argument of its own: {name}"),
        ("/bin/sh", ["-c", "{code}"], "argument 2 '{code}' is code for /bin/sh"),
        ("bash", ["-euc", "{code}"], "is code for bash"),
    ],
)
def test_a_place_that_is_not_safe_is_refused_at_the_start(program: str, words: list[str], says: str) -> None:
    """In one line that names the argument and what to write instead."""
    with pytest.raises(ConfigError) as raised:
        Arguments(program, words)
    assert says in str(raised.value)
