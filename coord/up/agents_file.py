"""``coord up --agents FILE``: a TOML file with the agents to start and keep running.

::

    [agents.ocr]                        # ids: ocr-1 and ocr-2
    program = ["./ocr.sh", "{lang}"]    # any program: started through `coord agent`
    capabilities = ["ocr"]
    count = 2

    [agents.stats]                      # an agent: with the SDK, or in any language by the protocol
    command = ["{python}", "stats.py", "--id", "{id}"]

Paths are relative to the folder of the file. An invalid file is refused before anything starts; the error names table
and field.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from coord.config import load
from coord.durations import EXPECTED, parse_duration
from coord.errors import ConfigError, CoordError
from coord.models.agents import AgentType
from coord.models.facts import Names
from coord.models.ids import check_id
from coord.suggestions import suggest
from coord.up.supervisor import ManagedProgram

#: Maximum processes of one table; more is a typing error, because one agent runs many tasks (see its capacity).
MAX_COUNT = 256

#: Seconds of the time to drain that ``coord agent`` needs to end its programs and to deregister.
LEAVING_S = 5.0

Words = Annotated[tuple[str, ...], Meta(min_length=1)]


class AgentTable(Struct, frozen=True, forbid_unknown_fields=True):
    """One table of the file: ``[agents.NAME]``."""

    #: Command of an agent, as a list or as one line of words. In its words and in ``env``, ``{id}`` is the id of the
    #: agent, ``{number}`` its number from 1 to ``count``, ``{python}`` the interpreter that runs coord.
    command: Words | str | None = None
    #: Any program, started through ``coord agent``; its words are passed on unchanged.
    program: Words | str | None = None
    #: Number of processes. Their ids are NAME-1, NAME-2, …; the id of a single one is NAME.
    count: Annotated[int, Meta(ge=1, le=MAX_COUNT)] = 1
    #: Working directory; default: the folder of the file.
    folder: str = "."
    #: Environment variables in addition to those of ``coord up``.
    env: dict[str, str] = {}
    #: Time to drain at shutdown, in seconds; then it gives its tasks back; default: as long as they take.
    drain: Annotated[float, Meta(gt=0, le=86_400)] | None = None

    # For a program only; an agent declares these itself.

    type: AgentType | None = None
    capabilities: Names = ()
    tags: Names = ()
    labels: dict[str, str] = {}
    capacity: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    #: Timeout of one task, in seconds.
    timeout: Annotated[float, Meta(gt=0)] | None = None
    #: Keep one process per concurrent task, which receives tasks as JSON lines, instead of starting one for each task.
    keep_alive: bool = False
    #: Format of standard input and of standard output, as ``coord agent --input`` and ``--output``.
    input: Literal["json", "text"] | None = None
    output: Literal["auto", "json", "text"] | None = None
    #: With ``keep_alive``: accept no task before the program prints that it is ready.
    wait_ready: bool = False
    #: With ``keep_alive``: seconds that the program has to load.
    load_timeout: Annotated[float, Meta(gt=0)] | None = None


#: Fields that take a time: a number of seconds, or text with a unit.
_TIMES = ("drain", "timeout", "load_timeout")
#: Field -> its valid values.
_FORMATS = {"input": ("json", "text"), "output": ("auto", "json", "text")}
#: Fields that are valid with ``program`` only.
PROGRAM_FIELDS = (
    "type",
    "capabilities",
    "tags",
    "labels",
    "capacity",
    "timeout",
    "keep_alive",
    "wait_ready",
    "load_timeout",
    "input",
    "output",
)


def read_agents(path: Path) -> list[ManagedProgram]:
    """Return the programs of a file; the ``environ`` of each contains only the variables of the file.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or a field is invalid; names table, field and what to do.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    tables = content.pop("agents", None)
    if content:
        raise ConfigError(f"{path}: unknown table [{next(iter(content))}]; expected tables named [agents.NAME]")
    if not isinstance(tables, dict) or not tables:
        raise ConfigError(f"{path} contains no agent; expected tables named [agents.NAME]")
    programs = [program for name, table in tables.items() for program in _Reader(path, name).read(table)]
    names = [program.name for program in programs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{path}: two agents have the id {name}; rename one of the tables")
    return programs


class _Reader:
    """Reads one table."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name

    def read(self, raw: object) -> list[ManagedProgram]:
        """Return the programs of the table."""
        if not isinstance(raw, dict):
            raise self._wrong(None, f"expected a table [agents.{self._name}] with a command or a program")
        table = self._table(raw)
        command, program = self._words("command", table.command), self._words("program", table.program)
        if (command is None) == (program is None):
            raise self._wrong(None, "give either a command (an agent) or a program (any other program)")
        folder = self._folder(table)
        if program is not None:
            self._check_program("program", program[0], folder, table.env)
            if not table.capabilities:
                raise self._wrong(
                    "capabilities", 'missing; name what the program can do, such as capabilities = ["ocr"]'
                )
            for field in ("input", "output"):
                if table.keep_alive and field in raw:
                    raise self._wrong(field, "is for one process per task; with keep_alive, leave it out")
            for field in ("wait_ready", "load_timeout"):
                if field in raw and not table.keep_alive:
                    raise self._wrong(field, f"is valid with keep_alive only; add keep_alive = true, or remove {field}")
        else:
            self._refuse_program_fields(raw)
        return [self._managed(table, number, folder, command, program) for number in range(1, table.count + 1)]

    def _managed(
        self, table: AgentTable, number: int, folder: Path, command: list[str] | None, program: list[str] | None
    ) -> ManagedProgram:
        agent_id = self._name if table.count == 1 else f"{self._name}-{number}"
        try:
            check_id(agent_id, "the name of the table, which is the agent's id,")
        except CoordError as error:
            raise self._wrong(None, str(error)) from None
        values = {"{id}": agent_id, "{number}": str(number), "{python}": sys.executable}
        environ = {name: _fill(value, values) for name, value in table.env.items()}
        try:
            load(environ)
        except ConfigError as error:
            raise self._wrong("env", str(error)) from None
        if command is not None:
            words = [_fill(word, values) for word in command]
            self._check_program("command", words[0], folder, environ)
            if table.count > 1 and not any("{id}" in word for word in (*command, *table.env.values())):
                raise self._wrong(
                    "command", f"{table.count} processes would have the same id; put {{id}} where the agent gets its id"
                )
        else:
            words = [
                sys.executable,
                "-P",
                "-m",
                "coord.cli",
                "agent",
                *_options(table, agent_id),
                "--",
                *(program or ()),
            ]
        return ManagedProgram(
            name=agent_id,
            command=tuple(words),
            environ=environ,
            folder=folder,
            drain_s=math.inf if table.drain is None else table.drain,
            gives_back=True,
        )

    def _table(self, raw: dict[str, Any]) -> AgentTable:
        known = AgentTable.__struct_fields__
        for field in raw:
            if field not in known:
                raise self._wrong(field, f"is not a field; {suggest(field, known, cutoff=0.5)}")
        raw = raw | {field: self._seconds(field, raw[field]) for field in _TIMES if isinstance(raw.get(field), str)}
        for field, value in raw.items():
            # One by one, so that the error can name the field.
            try:
                msgspec.convert({field: value}, AgentTable)
            except msgspec.ValidationError as error:
                raise self._wrong(field, _expected(field, value, str(error))) from None
        return msgspec.convert(raw, AgentTable)

    def _seconds(self, field: str, text: str) -> float:
        seconds = parse_duration(text)
        if seconds is None:
            raise self._wrong(field, f"expected {EXPECTED}, got {text!r}")
        return seconds

    def _words(self, field: str, words: tuple[str, ...] | str | None) -> list[str] | None:
        if words is None:
            return None
        try:
            split = shlex.split(words) if isinstance(words, str) else list(words)
        except ValueError as error:
            raise self._wrong(field, f"{error}: {words!r}; fix the quotes, or write a list of words") from None
        if not split or not split[0]:
            raise self._wrong(field, "is empty")
        return split

    def _folder(self, table: AgentTable) -> Path:
        folder = (self._path.parent / self._expanded("folder", table.folder)).resolve()
        if not folder.is_dir():
            raise self._wrong("folder", f"{folder} is not a folder")
        return folder

    def _expanded(self, field: str, path: str) -> Path:
        try:
            return Path(path).expanduser()
        except RuntimeError:
            raise self._wrong(field, f"{path}: there is no home directory {Path(path).parts[0]}") from None

    def _check_program(self, field: str, word: str, folder: Path, environ: Mapping[str, str]) -> None:
        """Check that the program exists and is executable, since it would restart forever otherwise."""
        if "/" in word:
            path = folder / self._expanded(field, word)
            if not path.is_file():
                raise self._wrong(field, f"{path} does not exist")
            if not os.access(path, os.X_OK):
                raise self._wrong(field, f"{path} is not executable; chmod +x {shlex.quote(str(path))}")
        elif shutil.which(word, path=environ.get("PATH", os.environ.get("PATH"))) is None:
            near = f"; for the one in {folder} write ./{word}" if (folder / word).is_file() else ""
            raise self._wrong(field, f"program {word!r} is not on PATH{near}")

    def _refuse_program_fields(self, raw: Mapping[str, Any]) -> None:
        for field in PROGRAM_FIELDS:
            if field in raw:
                raise self._wrong(field, "is valid with program only; an agent declares it itself")

    def _wrong(self, field: str | None, reason: str) -> ConfigError:
        name = f"[agents.{self._name}]" + (f" {field}" if field else "")
        return ConfigError(f"{self._path}: {name}: {reason}")


def _options(table: AgentTable, agent_id: str) -> list[str]:
    """Return the options of ``coord agent``."""
    options = ["--id", agent_id]
    if table.drain is not None:
        options += ["--drain-timeout", _seconds(max(0.0, table.drain - LEAVING_S))]
    for name, values in (
        ("--type", () if table.type is None else (table.type,)),
        ("--capability", table.capabilities),
        ("--tag", table.tags),
        ("--label", [f"{key}={value}" for key, value in table.labels.items()]),
    ):
        for value in values:
            options += [name, value]
    given = {
        "--capacity": table.capacity,
        "--timeout": None if table.timeout is None else _seconds(table.timeout),
        "--input": table.input,
        "--output": table.output,
        "--load-timeout": None if table.load_timeout is None else _seconds(table.load_timeout),
    }
    for name, one in given.items():
        if one is not None:
            options += [name, str(one)]
    options += ["--keep-alive"] * table.keep_alive + ["--wait-ready"] * table.wait_ready
    return options


def _seconds(value: float) -> str:
    """Format a number of seconds without an exponent, which ``coord agent`` does not accept."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _fill(word: str, values: Mapping[str, str]) -> str:
    """Replace ``{id}``, ``{number}`` and ``{python}`` in one pass; other braces stay unchanged."""
    return re.sub(r"\{(?:id|number|python)\}", lambda found: values[found.group()], word)


def _expected(field: str, value: object, error: str) -> str:
    if field == "type":
        return f"{value!r} is not an agent type; expected one of {', '.join(AgentType)}"
    if field in _FORMATS:
        return f"expected one of {', '.join(_FORMATS[field])}, got {value!r}"
    if field in {"command", "program"} and not isinstance(value, str | list):
        return f"expected a line of words or a list of them, got {value!r}"
    problem = error.partition(" - at ")[0].replace("`", "").replace("Expected", "expected")
    inside = error.partition(f"$.{field}")[2].rstrip("`")
    return f"{problem}{f' (at {inside})' if inside else ''}"
