"""The command line of ``scripts/run``; invalid options are reported before anything starts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from coord.errors import ConfigError
from coord.standard_streams import plain
from coord.up.data_dir import unusable
from examples.file_survey.walk import default_folder

ROOT = Path(__file__).parents[2]
#: Maximum agents of each kind; more are useless on one machine.
MAX_AGENTS = 32


class Options(msgspec.Struct, frozen=True):
    """The options; all paths are absolute."""

    folder: Path
    once: bool
    data: Path
    agents: int
    report: Path | None


def read_options(arguments: Sequence[str] | None = None) -> Options:
    """Read the command line; argparse exits with 2 if an option is invalid.

    Raises:
        ConfigError: the folder does not exist, or data or report cannot be written there.
    """
    parsed = _parser().parse_args(arguments)
    return Options(
        folder=_folder(parsed.folder),
        once=parsed.once,
        data=_data(parsed.data),
        agents=parsed.agents,
        report=None if parsed.report is None else _report(parsed.report),
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
        description="Start a cell, let example agents examine every text file under FOLDER, and show the findings.",
    )
    parser.add_argument(
        "folder", nargs="?", metavar="FOLDER", help="folder to examine; default: Python's standard library"
    )
    parser.add_argument(
        "--once", action="store_true", help="exit after the survey, with 0 if only unparsable files failed"
    )
    parser.add_argument(
        "--data", default=str(ROOT / ".coord"), metavar="FOLDER", help="folder for Redis data and logs [.coord]"
    )
    parser.add_argument(
        "--agents", type=_agents, default=2, metavar="N", help=f"agents of each kind, 1 to {MAX_AGENTS} [2]"
    )
    parser.add_argument("--report", metavar="FILE", help="also write the findings to this file, as JSON")
    return parser


def _agents(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_AGENTS:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to {MAX_AGENTS}, got {text!r}")
    return int(text)


def _folder(text: str | None) -> Path:
    if text is None:
        return default_folder()
    try:
        folder = Path(text).expanduser().resolve()
        str(folder).encode()  # it is part of the payloads
        is_folder = bool(text) and folder.is_dir()
    except UnicodeEncodeError:
        raise ConfigError(f"the name of {text!r} is not UTF-8") from None
    except (OSError, RuntimeError, ValueError):
        is_folder, folder = False, Path()
    if not is_folder:
        raise ConfigError(f"{text!r} is not a folder")
    return folder


def _data(text: str) -> Path:
    if not text:
        raise ConfigError("cannot keep data in '': the name is empty; choose another folder with --data")
    try:
        return Path(text).expanduser().resolve()
    except (OSError, RuntimeError) as error:  # a loop of links, or an unknown user
        raise unusable(Path(plain(text)), error) from None


def _report(text: str) -> Path:
    """Return the file after a check that it can be written; its content is kept until there is a new report."""
    try:
        path = Path(text).expanduser().absolute()
        is_new = not path.exists()
        path.open("ab").close()
        if is_new:
            path.unlink()
    except (OSError, RuntimeError) as error:
        raise _unwritable(text, error) from None
    return path


def _unwritable(text: str, error: Exception) -> ConfigError:
    reason = getattr(error, "strerror", None) or str(error)
    return ConfigError(f"cannot write a report to {text!r}: {reason}; name another file with --report")
