"""The processes of coord on this machine: what runs, what has ended, and what nobody looks after."""

from __future__ import annotations

import os
import socket
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import psutil
from msgspec import Struct

from coord.cells import server_of
from coord.config import PREFIX, is_service_variable, variable_of
from coord.endpoint import process_started
from coord.keys import GATEWAY
from coord.models.cell import WorkerRecord

#: Settings that may differ between processes of one kind.
_PERSONAL = frozenset(
    {
        "COORD_LOG_FORMAT", "COORD_LOG_LEVEL", "COORD_CELL", "COORD_CONFIG_FILE", "COORD_ENDPOINT_FILE",
        "COORD_AGENT_ID", "COORD_AGENT_TOKEN", "COORD_AGENT_TOKEN_FILE", "COORD_GATEWAY_HOST", "COORD_GATEWAY_PORT",
    }
)  # fmt: skip
#: Settings whose values are secret.
_URL = variable_of("redis_url")
SECRET = frozenset({_URL, "COORD_GATEWAY_JWT_SECRET", "COORD_GATEWAY_JWT_KEY"})
#: First letters of the settings that only a gateway has.
_OF_GATEWAYS = "COORD_GATEWAY_"


class Orphan(Struct, frozen=True):
    """A program of an agent whose agent has ended."""

    pid: int
    command: str
    agent_id: str
    task_id: str


class Machine(Struct, frozen=True, kw_only=True):
    """What is known about the processes of this machine."""

    host: str
    gone: tuple[str, ...] = ()  #: workers and gateways with a record, whose process has ended
    #: kind -> process on this machine -> its ``COORD_*`` variables
    environments: Mapping[str, Mapping[str, Mapping[str, str]]] = {}
    orphans: tuple[Orphan, ...] = ()
    unknown_variables: Mapping[str, str] = {}  #: of this process: variable -> what is wrong with it


def read_machine(processes: Sequence[WorkerRecord], unknown_variables: Mapping[str, str]) -> Machine:
    """Look at the processes of this machine.

    Args:
        processes: the workers and gateways with a record.
        unknown_variables: ``COORD_*`` variables of this process that are no settings, each with its message.
    """
    host = socket.gethostname()
    here = [process for process in processes if process.host == host]
    gone = [process for process in here if process_started(process.pid) is None]
    environments = defaultdict[str, dict[str, Mapping[str, str]]](dict)
    for process in here:
        if (found := _settings_of(process)) is not None:
            environments[process.kind][process.name] = found
    return Machine(
        host=host,
        gone=tuple(f"{process.name} (pid {process.pid})" for process in gone),
        environments=environments,
        orphans=tuple(_orphans()),
        unknown_variables=dict(unknown_variables),
    )


def _settings_of(process: WorkerRecord) -> dict[str, str] | None:
    """Return the settings in the environment of a process; None if it has ended or belongs to another user.

    The URL is without credentials: each role has a Redis user of its own.
    """
    try:
        environ = psutil.Process(process.pid).environ()
    except (psutil.Error, OSError):
        return None
    found = {
        name: value
        for name, value in environ.items()
        if name.startswith(PREFIX)
        and name not in _PERSONAL
        and value
        and not is_service_variable(name, value)
        and (process.kind == GATEWAY or not name.startswith(_OF_GATEWAYS))
    }
    if (url := found.get(_URL)) is not None:
        with suppress(ValueError):  # no URL: the process has an option in its place
            found[_URL] = "{}://{}{}".format(*server_of(url))
    return found


def _orphans() -> Iterator[Orphan]:
    """Yield the programs that ``coord agent`` started for a task, and whose parent is no ``coord`` any more."""
    for process in psutil.process_iter():
        try:
            environ = process.environ() if process.pid != os.getpid() else {}
            if "COORD_TASK_ID" not in environ or os.getpgid(process.pid) != process.pid:
                continue
            parent = process.parent()
            if parent is not None and any(_names_coord(word) for word in parent.cmdline()):
                continue
            if parent is not None and _runs_task(parent):
                continue  # started by the program, such as `timeout` with a process group of its own
            command = " ".join(process.cmdline())
        except (psutil.Error, OSError):
            continue  # it has ended, or belongs to another user
        yield Orphan(process.pid, command[:80], environ.get("COORD_AGENT_ID", ""), environ["COORD_TASK_ID"])


def _runs_task(process: psutil.Process) -> bool:
    """Return True if a process is of a program of a task; False also if it belongs to another user."""
    try:
        return "COORD_TASK_ID" in process.environ()
    except (psutil.Error, OSError):
        return False


def _names_coord(word: str) -> bool:
    return word.startswith("coord.") or word.rpartition("/")[2] == "coord"
