"""The processes of coord on this machine: what runs, what has ended, and what nobody looks after."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence

import psutil
from msgspec import Struct

from coord.config import PREFIX, is_service_variable
from coord.endpoint import process_started
from coord.models.cell import WorkerRecord

#: Settings that may differ between workers, and those whose values are secret.
_PERSONAL = frozenset({"COORD_LOG_FORMAT", "COORD_LOG_LEVEL", "COORD_CELL", "COORD_CONFIG_FILE", "COORD_ENDPOINT_FILE"})
SECRET = frozenset({"COORD_REDIS_URL", "COORD_AGENT_TOKEN", "COORD_GATEWAY_JWT_SECRET", "COORD_GATEWAY_JWT_KEY"})


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
    environments: Mapping[str, Mapping[str, str]] = {}  #: worker on this machine -> its ``COORD_*`` variables
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
    return Machine(
        host=host,
        gone=tuple(f"{process.name} (pid {process.pid})" for process in gone),
        environments={process.name: found for process in here if (found := _settings_of(process.pid)) is not None},
        orphans=tuple(_orphans()),
        unknown_variables=dict(unknown_variables),
    )


def _settings_of(pid: int) -> dict[str, str] | None:
    """Return the settings in the environment of a process; None if it has ended or belongs to another user."""
    try:
        environ = psutil.Process(pid).environ()
    except (psutil.Error, OSError):
        return None
    return {
        name: value
        for name, value in environ.items()
        if name.startswith(PREFIX) and name not in _PERSONAL and value and not is_service_variable(name, value)
    }


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
