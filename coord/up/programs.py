"""The programs that ``coord up`` keeps running: their names, how they are started, what their environment says."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping

import msgspec

from coord.config import Settings, to_environ, without_settings
from coord.up.supervisor import ManagedProgram

#: What the gateway is called in the log.
GATEWAY = "gateway"
#: It gives the requests under way 10 s by itself.
GATEWAY_DRAIN_S = 15.0


def worker_programs(settings: Settings, workers: Mapping[str, int]) -> list[ManagedProgram]:
    """The processes of the workers: so many of each kind, with names that no other ``coord up`` gives.

    A worker takes up what its own name has pending, so two with one name would do the same work twice: those of a
    killed ``coord up`` may still be ending when the next one starts.
    """
    mark = secrets.token_hex(2)
    environ = logged_environ(settings)
    names = [(kind, f"{kind}-{number}-{mark}") for kind, count in workers.items() for number in range(1, count + 1)]
    return [
        ManagedProgram(
            name=name,
            command=worker_command(kind, name, watch_stdin=True),
            environ=environ,
        )
        for kind, name in names
    ]


def worker_command(kind: str, name: str | None, *, watch_stdin: bool) -> list[str]:
    """How a worker is started."""
    # -P: a folder called coord where the command is typed is not ours; coord.launch: nor is any other workers.
    command = [sys.executable, "-P", "-m", "coord.launch", "workers", kind]
    command += ["--name", name] if name is not None else []
    return [*command, "--watch-stdin"] if watch_stdin else command


def kind_of(name: str) -> str:
    """The kind of a worker of this name."""
    return name.partition("-")[0]


def gateway_program(settings: Settings) -> ManagedProgram:
    """The gateway, where the settings say."""
    command = (sys.executable, "-P", "-m", "coord.cli", "gateway", "--watch-stdin")
    return ManagedProgram(name=GATEWAY, command=command, environ=logged_environ(settings), drain_s=GATEWAY_DRAIN_S)


def logged_environ(settings: Settings) -> dict[str, str]:
    """``child_environ`` for a process whose lines we read: each is one JSON object."""
    return child_environ(msgspec.structs.replace(settings, log_format="json"))


def child_environ(settings: Settings) -> dict[str, str]:
    """This process's environment with exactly these settings in it."""
    return without_settings(os.environ) | to_environ(settings)
