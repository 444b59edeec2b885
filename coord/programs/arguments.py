"""A program's arguments, with places for fields of the payload: ``{name}``; ``{{`` and ``}}`` are braces.

A value fills its place whole and stays within its argument; no shell sees it. What could still turn a value into more
than a value is refused when the agent starts (a place within code, such as ``sh -c '… {name}'``), or fails the task (a
value that begins with a dash where an option could stand).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from coord.agent.task import NonRetryable
from coord.codec import encode
from coord.errors import ConfigError

_PARTS = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_-]*)\}|[{}]|[^{}]+")
#: What may stand beside a place: nothing that a shell or an interpreter gives a meaning to.
_PLAIN = re.compile(r"[A-Za-z0-9_.,:=/@%+~-]*\Z")
_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh", "fish", "ash"})


class Arguments:
    """The arguments after the program's name.

    Raises:
        ConfigError: a brace is no place, or a place stands where it is not safe; says which argument.
    """

    def __init__(self, program: str, words: Sequence[str]) -> None:
        is_shell = PurePath(program).name in _SHELLS
        self._words: list[_Word] = []
        has_ended_options = False
        for number, text in enumerate(words, 1):
            word = _Word(text, number, after_options=has_ended_options)
            before = words[number - 2] if number > 1 else ""
            if word.fields and is_shell and before.startswith("-") and before.endswith("c"):
                raise ConfigError(
                    f"argument {number} {text!r} is code for {program}, and a payload must not become code; "
                    f"pass the field as an argument of its own: -c 'use \"$1\"' {program} {{{word.fields[0]}}}"
                )
            self._words.append(word)
            has_ended_options = has_ended_options or text == "--"

    @property
    def fields(self) -> list[str]:
        """The fields of the payload that are needed."""
        return [field for word in self._words for field in word.fields]

    def fill(self, payload: Any) -> list[str]:
        """The arguments for one task.

        Raises:
            NonRetryable: the payload lacks a field, or a value cannot be an argument; the message names the field.
        """
        return [word.fill(payload) for word in self._words]


class _Word:
    """One argument: text and fields by turns."""

    def __init__(self, text: str, number: int, *, after_options: bool) -> None:
        self._number = number
        self._may_be_dashed = after_options
        self._parts: list[tuple[str, bool]] = []  # text, or the name of a field and True
        for found in _PARTS.finditer(text):
            part, field = found.group(), found.group(1)
            if part in {"{", "}"}:
                raise ConfigError(
                    f"argument {number} {text!r}: {part!r} begins or ends no field's name; "
                    f"write {part * 2!r} for the brace itself"
                )
            self._parts.append((field, True) if field else (part[0] if part in {"{{", "}}"} else part, False))
        self.fields = [part for part, is_field in self._parts if is_field]
        if self.fields and not all(is_field or _PLAIN.match(part) for part, is_field in self._parts):
            raise ConfigError(
                f"argument {number} {text!r} may have beside its field only letters, digits and _ . , : = / @ % + ~ -; "
                f"pass the field as an argument of its own: {{{self.fields[0]}}}"
            )

    def fill(self, payload: Any) -> str:
        return "".join(
            self._value(payload, part, is_first=not place) if is_field else part
            for place, (part, is_field) in enumerate(self._parts)
        )

    def _value(self, payload: Any, field: str, *, is_first: bool) -> str:
        if not isinstance(payload, dict):
            raise NonRetryable("payload_invalid", f"argument {self._number} is field {field!r}, so the payload must be "
                               f"an object, not {_named(payload)}")  # fmt: skip
        value = payload.get(field)
        if value is None:
            raise NonRetryable("field_missing", f"the payload has no field {field!r}, which is argument {self._number}")
        if not isinstance(value, str):
            return encode(value).decode()
        if "\0" in value:
            raise NonRetryable("field_invalid", f"field {field!r} holds a null character, which no argument can")
        if is_first and value.startswith("-") and not self._may_be_dashed:
            raise NonRetryable("field_invalid", f"field {field!r} begins with a dash, so that argument {self._number} "
                               "would be an option; where that is meant, its agent writes -- before it")  # fmt: skip
        return value


def _named(value: Any) -> str:
    return {list: "an array", str: "text", bool: "a boolean", type(None): "null"}.get(type(value), "a number")
