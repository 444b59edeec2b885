"""The command that an agent runs, looked at before the agent starts: whether it can be run at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from coord.agent.task import Task
from coord.errors import ConfigError
from coord.programs.arguments import Arguments

#: Default limit in seconds for the load of a kept program: enough for a large model on a slow disk.
LOAD_TIMEOUT_S = 600.0
#: Of a file's beginning, to see whether it is text.
_LOOKED_AT = 512


class Command:
    """A program and its arguments.

    Args:
        words: as typed.
        environ: what the program finds in its environment, besides what ``environ`` adds.

    Raises:
        ConfigError: there is no such program, it cannot be run, or an argument does not fit; says what to do.
    """

    def __init__(self, words: Sequence[str], environ: Mapping[str, str]) -> None:
        if not words:
            raise ConfigError("name a program to run, after --")
        self.name = words[0]
        self.path = _found(words[0], environ.get("PATH", os.defpath))
        self.arguments = Arguments(words[0], words[1:])
        self._environ = dict(environ)

    def words(self, payload: Any) -> list[str]:
        """The words that it is started with for a payload; raises ``NonRetryable`` as ``Arguments.fill``."""
        return [self.name, *self.arguments.fill(payload)]

    def environ(self, agent_id: str, task: Task | None = None) -> dict[str, str]:
        """Its environment, with what is said of the agent and the task."""
        told = {"COORD_AGENT_ID": agent_id}
        if task is not None:
            told |= {"COORD_TASK_ID": task.task_id, "COORD_TASK_TYPE": task.task_type}
            told |= {"COORD_ATTEMPT": str(task.attempt), "COORD_PROGRESS_FD": "3"}
        # A task type may hold a null character, which no environment can.
        return self._environ | {name: value.replace("\0", "") for name, value in told.items()}


def _found(name: str, path: str) -> str:
    found = shutil.which(name, path=path)
    if found is None:
        raise ConfigError(_why_not(name, Path(name)))
    try:
        with open(found, "rb") as file:  # noqa: PTH123 -- a program may be no path, such as on PATH's empty entry
            begin = file.read(_LOOKED_AT)
    except OSError:  # it can be run, and not be read
        return found
    if begin and b"\0" not in begin and not begin.startswith(b"#!"):
        raise ConfigError(
            f"program {found} is a script without a first line that names its interpreter; "
            "begin it with one, such as #!/bin/sh"
        )
    return found


def _why_not(name: str, path: Path) -> str:
    if "/" not in name:
        if path.is_file():
            return f"program {name} is not on PATH; one in this folder is called ./{name}"
        return f"program {name} is not on PATH"
    if path.is_dir():
        return f"program {name} is a folder"
    if path.exists():
        return f"program {name} is not executable; chmod +x {name}"
    return f"program {name} does not exist"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a program may take."""

    timeout_s: float | None  #: for one task
    load_timeout_s: float = LOAD_TIMEOUT_S  #: from the start of a kept program until it is ready
    grace_s: float  #: between SIGTERM and SIGKILL
    output_bytes: int  #: for one result
