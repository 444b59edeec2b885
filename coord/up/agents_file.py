"""``coord up --agents FILE``: a TOML file that says which agents to start and keep running.

::

    [agents.ocr]                        # ids: ocr-1 and ocr-2
    program = ["./ocr.sh", "{lang}"]    # knows nothing of coord: started through `coord agent`
    capabilities = ["ocr"]
    count = 2

    [agents.stats]                      # an agent in Python, or in any language that speaks the protocol
    command = ["{python}", "stats.py", "--id", "{id}"]

Paths in it are relative to the file's own folder. Whatever does not fit is refused before anything is started, with
the table's and the field's name.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from coord.config import load
from coord.errors import ConfigError, CoordError
from coord.models.agents import AgentType
from coord.models.facts import Names
from coord.models.ids import check_id
from coord.suggestions import suggest
from coord.up.supervisor import ManagedProgram

#: More processes of one table are a typing error: an agent takes many tasks at once by its capacity.
MANY = 256

#: Of the time to drain: what ``coord agent`` needs to end its programs and to say good-bye.
LEAVING_S = 5.0

Words = Annotated[tuple[str, ...], Meta(min_length=1)]


class AgentTable(Struct, frozen=True, forbid_unknown_fields=True):
    """One table of the file: ``[agents.NAME]``."""

    #: An agent that speaks coord itself, as a list or as one line of words; in its words and in ``env``, ``{id}`` is
    #: the id of the agent, ``{number}`` which of ``count`` it is, ``{python}`` the interpreter that runs coord.
    command: Words | str | None = None
    #: A program that knows nothing of coord, started through ``coord agent``; its words are handed on as they are.
    program: Words | str | None = None
    #: How many to start: their ids are NAME-1, NAME-2, …; one alone is called NAME.
    count: Annotated[int, Meta(ge=1, le=MANY)] = 1
    #: Where it runs; default: the file's folder.
    folder: str = "."
    #: Besides those of ``coord up``.
    env: dict[str, str] = {}
    #: Seconds to finish what it holds when it is to end; then it is killed. An agent of the SDK takes up to 30.
    drain: Annotated[float, Meta(gt=0, le=3600)] = 35.0

    # For a program: what it can do. (A command says that itself.)

    type: AgentType | None = None
    capabilities: Names = ()
    tags: Names = ()
    labels: dict[str, str] = {}
    capacity: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    #: Seconds that it may take for one task.
    timeout: Annotated[float, Meta(gt=0)] | None = None
    #: One process for all tasks, which speaks JSON lines, instead of one for each.
    keep_alive: bool = False
    #: With ``keep_alive``: accept no task before the program prints that it is ready.
    wait_ready: bool = False
    #: With ``keep_alive``: seconds that the program has to load.
    load_timeout: Annotated[float, Meta(gt=0)] | None = None


#: Fields that only make sense beside ``program``.
OF_PROGRAMS = (
    "type",
    "capabilities",
    "tags",
    "labels",
    "capacity",
    "timeout",
    "keep_alive",
    "wait_ready",
    "load_timeout",
)


def read_agents(path: Path) -> list[ManagedProgram]:
    """The programs that a file describes; the ``environ`` of each is what the file adds to that of ``coord up``.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or a field does not fit; names table, field and what to do.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    tables = content.pop("agents", None)
    if content:
        raise ConfigError(f"{path}: [{next(iter(content))}] is not known; expected tables called [agents.NAME]")
    if not isinstance(tables, dict) or not tables:
        raise ConfigError(f"{path} describes no agent; expected tables called [agents.NAME]")
    programs = [program for name, table in tables.items() for program in _Reader(path, name).read(table)]
    names = [program.name for program in programs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{path}: two agents would be called {name}; rename one of the tables")
    return programs


class _Reader:
    """Reads one table."""

    def __init__(self, path: Path, name: str) -> None:
        self._path = path
        self._name = name

    def read(self, raw: object) -> list[ManagedProgram]:
        """The programs of the table."""
        if not isinstance(raw, dict):
            raise self._wrong(None, f"expected a table [agents.{self._name}] with a command or a program")
        table = self._table(raw)
        given, line = self._one_of("command", table.command), self._one_of("program", table.program)
        if (given is None) == (line is None):
            raise self._wrong(None, "name a command (an agent that speaks coord) or a program (any other), one of them")
        folder = self._folder(table)
        if line is not None:
            self._find("program", line[0], folder, table.env)
            if not table.capabilities:
                raise self._wrong("capabilities", 'say what it can do, such as capabilities = ["ocr"]')
            for field in ("wait_ready", "load_timeout"):
                if field in raw and not table.keep_alive:
                    raise self._wrong(field, f"is for a program that is kept: add keep_alive = true, or remove {field}")
        else:
            self._refuse_of_programs(raw)
        return [self._program(table, number, folder, given, line) for number in range(1, table.count + 1)]

    def _program(
        self, table: AgentTable, number: int, folder: Path, given: list[str] | None, line: list[str] | None
    ) -> ManagedProgram:
        agent_id = self._name if table.count == 1 else f"{self._name}-{number}"
        try:
            check_id(agent_id, "the name, which is the agent's id,")
        except CoordError as error:
            raise self._wrong(None, str(error)) from None
        words = {"{id}": agent_id, "{number}": str(number), "{python}": sys.executable}
        environ = {name: _filled(value, words) for name, value in table.env.items()}
        try:
            load(environ)
        except ConfigError as error:
            raise self._wrong("env", str(error)) from None
        if given is not None:
            command = [_filled(word, words) for word in given]
            self._find("command", command[0], folder, environ)
            if table.count > 1 and not any("{id}" in word for word in (*given, *table.env.values())):
                raise self._wrong(
                    "command", f"{table.count} processes would be one agent; write {{id}} where it takes its id"
                )
        else:
            command = [
                sys.executable,
                "-P",
                "-m",
                "coord.cli",
                "agent",
                *_options(table, agent_id),
                "--",
                *(line or ()),
            ]
        return ManagedProgram(
            name=agent_id, command=tuple(command), environ=environ, folder=folder, drain_s=table.drain
        )

    def _table(self, raw: dict[str, Any]) -> AgentTable:
        known = AgentTable.__struct_fields__
        for field in raw:
            if field not in known:
                raise self._wrong(field, f"is not a field; {suggest(field, known, cutoff=0.5)}")
        for field, value in raw.items():
            # One by one, so that the message can name the field.
            try:
                msgspec.convert({field: value}, AgentTable)
            except msgspec.ValidationError as error:
                raise self._wrong(field, _expected(field, value, str(error))) from None
        return msgspec.convert(raw, AgentTable)

    def _one_of(self, field: str, words: tuple[str, ...] | str | None) -> list[str] | None:
        if words is None:
            return None
        try:
            split = shlex.split(words) if isinstance(words, str) else list(words)
        except ValueError as error:
            raise self._wrong(field, f"{error}: {words!r}; a list of words needs no quotes") from None
        if not split or not split[0]:
            raise self._wrong(field, "is empty")
        return split

    def _folder(self, table: AgentTable) -> Path:
        folder = (self._path.parent / Path(table.folder).expanduser()).resolve()
        if not folder.is_dir():
            raise self._wrong("folder", f"{folder} is not a folder")
        return folder

    def _find(self, field: str, word: str, folder: Path, environ: Mapping[str, str]) -> None:
        """The program is there and may be run: else it would be started again and again."""
        if "/" in word:
            place = folder / Path(word).expanduser()
            if not place.is_file():
                raise self._wrong(field, f"there is no file {place}")
            if not os.access(place, os.X_OK):
                raise self._wrong(field, f"{place} may not be executed; try chmod +x {shlex.quote(str(place))}")
        elif shutil.which(word, path=environ.get("PATH", os.environ.get("PATH"))) is None:
            near = f"; for the one in {folder} write ./{word}" if (folder / word).is_file() else ""
            raise self._wrong(field, f"no program {word!r} on PATH{near}")

    def _refuse_of_programs(self, raw: Mapping[str, Any]) -> None:
        for field in OF_PROGRAMS:
            if field in raw:
                raise self._wrong(field, "is for a program; a command tells the coordinator itself what it can do")

    def _wrong(self, field: str | None, why: str) -> ConfigError:
        place = f"[agents.{self._name}]" + (f" {field}" if field else "")
        return ConfigError(f"{self._path}: {place}: {why}")


def _options(table: AgentTable, agent_id: str) -> list[str]:
    """``coord agent``'s options."""
    options = ["--id", agent_id, "--drain-timeout", f"{max(0.0, table.drain - LEAVING_S):g}"]
    if table.type is not None:
        options += ["--type", table.type]
    for name, values in (
        ("--capability", table.capabilities),
        ("--tag", table.tags),
        ("--label", [f"{key}={value}" for key, value in table.labels.items()]),
    ):
        for value in values:
            options += [name, value]
    if table.capacity is not None:
        options += ["--capacity", str(table.capacity)]
    if table.timeout is not None:
        options += ["--timeout", f"{table.timeout:g}"]
    if table.keep_alive:
        options.append("--keep-alive")
    if table.wait_ready:
        options.append("--wait-ready")
    if table.load_timeout is not None:
        options += ["--load-timeout", f"{table.load_timeout:g}"]
    return options


def _filled(word: str, words: Mapping[str, str]) -> str:
    """The word with each ``{name}`` of ``words`` replaced, in one pass; other braces stay as they are."""
    return re.sub(r"\{(?:id|number|python)\}", lambda found: words[found.group()], word)


def _expected(field: str, value: object, said: str) -> str:
    if field == "type":
        return f"{value!r} is none; expected one of {', '.join(AgentType)}"
    if field in {"command", "program"} and not isinstance(value, str | list):
        return f"expected a line of words or a list of them, got {value!r}"
    what = said.partition(" - at ")[0].replace("`", "").replace("Expected", "expected")
    inside = said.partition(f"$.{field}")[2].rstrip("`")
    return f"{what}{f' (at {inside})' if inside else ''}"
