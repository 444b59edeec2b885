"""The command that an agent runs: checked before the agent starts, with payload fields in its arguments.

``{name}`` in an argument is the field ``name`` of the payload; ``{{`` and ``}}`` are braces. A value replaces its
placeholder as a whole and stays within its argument; no shell is involved. Two dangers remain. A placeholder inside
code, such as ``sh -c '… {name}'``, is refused when the agent starts. A value that begins with a dash where an option
could stand fails its task.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import msgspec

from coord.agent.task import NonRetryable, Task
from coord.codec import encode
from coord.errors import ConfigError

#: Default limit in seconds for the load of a kept program: enough for a large model on a slow disk.
LOAD_TIMEOUT_S = 600.0
#: Bytes at the beginning of a file that show whether it is text.
_HEAD_BYTES = 512
_PARTS = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_-]*)\}|[{}]|[^{}]+")
#: Characters allowed beside a placeholder: none has a meaning to a shell or an interpreter.
_PLAIN = re.compile(r"[A-Za-z0-9_.,:=/@%+~-]*\Z")
_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh", "fish", "ash"})


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of a program."""

    timeout_s: float | None  #: seconds for one task; None: no limit
    load_timeout_s: float = LOAD_TIMEOUT_S  #: seconds from the start of a kept program until it is ready
    grace_s: float  #: seconds between SIGTERM and SIGKILL
    output_bytes: int  #: maximum bytes of one result


class Command:
    """A program and its arguments.

    Args:
        words: the program and its arguments, as typed.
        environ: the program's environment, without what ``environ`` adds.

    Raises:
        ConfigError: the program does not exist or cannot be run, or an argument is invalid; says what to do.
    """

    def __init__(self, words: Sequence[str], environ: Mapping[str, str]) -> None:
        if not words:
            raise ConfigError("name a program to run, after --")
        self.name = words[0]
        self.path = _find(words[0], environ.get("PATH", os.defpath))
        self.arguments = Arguments(words[0], words[1:])
        self._environ = dict(environ)

    def words(self, payload: Any) -> list[str]:
        """Return the words to start it with for a payload; raises ``NonRetryable`` like ``Arguments.fill``."""
        return [self.name, *self.arguments.fill(payload)]

    def environ(self, agent_id: str, task: Task | None = None) -> dict[str, str]:
        """Return its environment, with the variables of the agent and of the task."""
        variables = {"COORD_AGENT_ID": agent_id}
        if task is not None:
            variables |= {"COORD_TASK_ID": task.task_id, "COORD_TASK_TYPE": task.task_type}
            variables |= {"COORD_ATTEMPT": str(task.attempt), "COORD_PROGRESS_FD": "3"}
        # A task type may contain a null character, an environment variable cannot.
        return self._environ | {name: value.replace("\0", "") for name, value in variables.items()}


class Arguments:
    """The arguments after the program's name.

    Raises:
        ConfigError: a brace belongs to no placeholder, or a placeholder is in an unsafe position; names the argument.
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
                    f"argument {number} {text!r} is code for {program}, and a payload must never become code; "
                    f"pass the field as an argument of its own: -c 'use \"$1\"' {program} {{{word.fields[0]}}}"
                )
            self._words.append(word)
            has_ended_options = has_ended_options or text == "--"

    @property
    def fields(self) -> list[str]:
        """The fields of the payload that the arguments use."""
        return [field for word in self._words for field in word.fields]

    def fill(self, payload: Any) -> list[str]:
        """Return the arguments for one task.

        Raises:
            NonRetryable: the payload has no such field, or its value cannot be an argument; names the field.
        """
        return [word.fill(payload) for word in self._words]


class _Word:
    """One argument: a sequence of texts and fields."""

    def __init__(self, text: str, number: int, *, after_options: bool) -> None:
        self._number = number
        self._may_be_dashed = after_options
        self._parts: list[tuple[str, bool]] = []  # (text, False) or (name of a field, True)
        for found in _PARTS.finditer(text):
            part, field = found.group(), found.group(1)
            if part in {"{", "}"}:
                raise ConfigError(
                    f"argument {number} {text!r}: {part!r} is not part of a placeholder; "
                    f"write {part * 2!r} for a literal brace"
                )
            self._parts.append((field, True) if field else (part[0] if part in {"{{", "}}"} else part, False))
        self.fields = [part for part, is_field in self._parts if is_field]
        if self.fields and not all(is_field or _PLAIN.match(part) for part, is_field in self._parts):
            raise ConfigError(
                f"argument {number} {text!r}: only letters, digits and _ . , : = / @ % + ~ - may stand beside a field; "
                f"pass the field as an argument of its own: {{{self.fields[0]}}}"
            )

    def fill(self, payload: Any) -> str:
        return "".join(
            self._value(payload, part, is_first=not index) if is_field else part
            for index, (part, is_field) in enumerate(self._parts)
        )

    def _value(self, payload: Any, field: str, *, is_first: bool) -> str:
        if not isinstance(payload, dict):
            raise NonRetryable("payload_invalid", f"argument {self._number} is field {field!r}, so the payload must be "
                               f"an object, not {_type_name(payload)}")  # fmt: skip
        value = payload.get(field)
        if value is None:
            raise NonRetryable("field_missing", f"the payload has no field {field!r}, which is argument {self._number}")
        if not isinstance(value, str):
            return encode(value).decode()
        if "\0" in value:
            raise NonRetryable("field_invalid", f"field {field!r} contains a null character, which an argument cannot")
        if is_first and value.startswith("-") and not self._may_be_dashed:
            raise NonRetryable("field_invalid", f"field {field!r} begins with a dash, so argument {self._number} would "
                               "be an option; if that is intended, put -- before it in the command")  # fmt: skip
        return value


def _find(name: str, path: str) -> str:
    found = shutil.which(name, path=path)
    if found is None:
        raise ConfigError(_reason_not_found(name, Path(name)))
    try:
        with open(found, "rb") as file:  # noqa: PTH123 -- PATH may have an empty entry, so this may not be a path
            head = file.read(_HEAD_BYTES)
    except OSError:  # executable, but not readable
        return found
    if head and b"\0" not in head and not head.startswith(b"#!"):
        raise ConfigError(
            f"program {found} is a script without an interpreter in its first line; add one, such as #!/bin/sh"
        )
    return found


def _reason_not_found(name: str, path: Path) -> str:
    if "/" not in name:
        if path.is_file():
            return f"program {name} is not on PATH; for the one in this folder write ./{name}"
        return f"program {name} is not on PATH"
    if path.is_dir():
        return f"program {name} is a folder"
    if path.exists():
        return f"program {name} is not executable; chmod +x {name}"
    return f"program {name} does not exist"


def _type_name(value: Any) -> str:
    return {list: "an array", str: "text", bool: "a boolean", type(None): "null"}.get(type(value), "a number")
