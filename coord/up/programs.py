"""The programs that ``coord up`` keeps running: names, commands and environments of workers and gateway."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping

import msgspec

from coord.config import Settings, to_environ, without_settings
from coord.gateway.draining import process_limit_s
from coord.up.supervisor import ManagedProgram

#: The name of the gateway in the log.
GATEWAY = "gateway"


def worker_programs(settings: Settings, workers: Mapping[str, int]) -> list[ManagedProgram]:
    """Return the worker processes, with names that no other ``coord up`` uses.

    A worker takes over the entries that are pending under its own name, so two workers with one name would do the same
    work twice: those of a killed ``coord up`` may still be ending when the next one starts.

    Args:
        settings: settings of the workers.
        workers: number of workers of each kind.
    """
    suffix = secrets.token_hex(2)
    environ = logged_environ(settings)
    names = [(kind, f"{kind}-{number}-{suffix}") for kind, count in workers.items() for number in range(1, count + 1)]
    return [
        ManagedProgram(name=name, command=worker_command(kind, name, watch_stdin=True), environ=environ)
        for kind, name in names
    ]


def worker_command(kind: str, name: str | None, *, watch_stdin: bool) -> list[str]:
    """Return the command that starts a worker."""
    # -P: a folder named workers in the current directory must not be imported; coord.launch: nor may any other.
    command = [sys.executable, "-P", "-m", "coord.launch", "workers", kind]
    command += ["--name", name] if name is not None else []
    return [*command, "--watch-stdin"] if watch_stdin else command


def kind_of(name: str) -> str:
    """Return the kind of the worker with this name."""
    return name.partition("-")[0]


def gateway_program(settings: Settings) -> ManagedProgram:
    """Return the gateway process."""
    command = (sys.executable, "-P", "-m", "coord.cli", "gateway", "--watch-stdin")
    drain_s = process_limit_s(settings)
    return ManagedProgram(name=GATEWAY, command=command, environ=logged_environ(settings), drain_s=drain_s)


def logged_environ(settings: Settings) -> dict[str, str]:
    """Return ``child_environ`` for a process whose output ``coord up`` reads: each line is one JSON object."""
    return child_environ(msgspec.structs.replace(settings, log_format="json"))


def child_environ(settings: Settings) -> dict[str, str]:
    """Return this process's environment with exactly these settings in it."""
    return without_settings(os.environ) | to_environ(settings)
