"""The command line of ``scripts/run``; what cannot be used is said before anything is done."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from coord.errors import ConfigError
from coord.terminal import plain
from coord.up.data_dir import unusable
from examples.main_job.walk import default_folder

ROOT = Path(__file__).parents[2]
#: Agents of each kind: more are no help on one machine.
MOST_AGENTS = 32


class Options(msgspec.Struct, frozen=True):
    """What was asked for; all paths are absolute."""

    folder: Path
    once: bool
    data: Path
    agents: int
    report: Path | None


def read_options(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line; a slip in how it is written ends with 2, as argparse does it.

    Raises:
        ConfigError: the folder is none, or data or the report cannot be kept where they should.
    """
    given = _parser().parse_args(arguments)
    return Options(
        folder=_folder(given.folder),
        once=given.once,
        data=_data(given.data),
        agents=given.agents,
        report=None if given.report is None else _report(given.report),
    )


def write_report(path: Path, content: Any) -> None:
    """Write it as JSON; raises ``ConfigError``."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(content)) + b"\n")
    except OSError as error:
        raise _unwritable(str(path), error) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/run",
        description="Bring coord up, have example agents look at every file under FOLDER, and show what they found.",
    )
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="default: Python's standard library")
    parser.add_argument("--once", action="store_true", help="end after the job: 0 if only unparsable files failed")
    parser.add_argument(
        "--data", default=str(ROOT / ".coord"), metavar="FOLDER", help="where Redis and logs are kept [.coord]"
    )
    parser.add_argument("--agents", type=_agents, default=2, metavar="N", help=f"of each kind, 1 to {MOST_AGENTS} [2]")
    parser.add_argument("--report", metavar="FILE", help="also write what was found as JSON")
    return parser


def _agents(said: str) -> int:
    if not said.isdecimal() or not 1 <= int(said) <= MOST_AGENTS:
        raise argparse.ArgumentTypeError(f"{said!r} is no number from 1 to {MOST_AGENTS}")
    return int(said)


def _folder(said: str | None) -> Path:
    if said is None:
        return default_folder()
    try:
        folder = Path(said).expanduser().resolve()
        str(folder).encode()  # it travels in the tasks' payloads
        is_folder = bool(said) and folder.is_dir()
    except UnicodeEncodeError:
        raise ConfigError(f"the name of {said!r} is not UTF-8") from None
    except (OSError, RuntimeError, ValueError):
        is_folder, folder = False, Path()
    if not is_folder:
        raise ConfigError(f"{said!r} is not a folder")
    return folder


def _data(said: str) -> Path:
    if not said:
        raise ConfigError("cannot keep data in '': it names no folder; choose another folder with --data")
    try:
        return Path(said).expanduser().resolve()
    except (OSError, RuntimeError) as error:  # a loop of links; nobody's home
        raise unusable(Path(plain(said)), error) from None


def _report(said: str) -> Path:
    """The file, which can be written: what it holds is kept until there is something better."""
    try:
        path = Path(said).expanduser().absolute()
        is_new = not path.exists()
        path.open("ab").close()
        if is_new:
            path.unlink()
    except (OSError, RuntimeError) as error:
        raise _unwritable(said, error) from None
    return path


def _unwritable(said: str, error: Exception) -> ConfigError:
    why = getattr(error, "strerror", None) or str(error)
    return ConfigError(f"cannot write a report to {said!r}: {why}; name another file with --report")
