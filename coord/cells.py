"""Named cells: a configuration file with the address, the namespace and the credentials of each cell of a person.

The file is ``~/.config/coord/config.toml`` (``$XDG_CONFIG_HOME/coord/config.toml``, or the path in COORD_CONFIG_FILE)::

    default = "staging"                       # used if nothing else names a server

    [cells.staging]
    url = "redis://10.0.0.5:6379/0"

    [cells.production]
    url = "rediss://redis.example.org:6380/0"
    namespace = "orders"
    user = "operator"
    password_command = ["pass", "coord/production"]   # or password, password_env, password_file
    tls_ca = "ca.pem"                                 # paths are relative to the folder of the file

A process uses the first of these that names a server: ``--redis-url``, ``--cell``, COORD_REDIS_URL, COORD_CELL,
``default`` of the file, the endpoint file of a running ``coord up``, port 6379 of this machine. ``--namespace`` and
COORD_NAMESPACE take precedence over the namespace of the cell, except that COORD_NAMESPACE does not change a cell that
``--cell`` names. The name ``local`` is reserved: it stands for the running ``coord up``.

A variable that names a server hides the cells as a whole, so the credentials of one cell never go to another server.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

import msgspec
from msgspec import Struct

from coord.config import ALIASES, Settings, expand_home, load, variable_of
from coord.errors import ConfigError
from coord.suggestions import closest, suggest

#: The name of the cell that a running ``coord up`` announces.
LOCAL = "local"
#: Maximum seconds that a ``password_command`` may take; it may ask a person.
COMMAND_S = 60.0
#: Keys that give a password, of which a cell has at most one.
PASSWORDS = ("password", "password_env", "password_file", "password_command")
#: Keys of TLS files -> the option of a Redis URL.
TLS_FILES = {"tls_ca": "ssl_ca_certs", "tls_cert": "ssl_certfile", "tls_key": "ssl_keyfile"}
#: Other names of a key of a cell, for suggestions: those of a setting, of a Redis URL and of Redis clients.
SYNONYMS = {
    "redis_url": "url",
    "uri": "url",
    "address": "url",
    "host": "url",
    "port": "url",
    "prefix": "namespace",
    "username": "user",
    "passwd": "password",
    **{option: key for key, option in TLS_FILES.items()},
}
#: Names of cells.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
#: Variables that name a server.
_URL_VARIABLES = (variable_of("redis_url"), *(alias for alias, field in ALIASES.items() if field == "redis_url"))


class CellTable(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of the file: ``[cells.NAME]``."""

    #: redis://, rediss:// or unix:// URL of the server.
    url: str
    #: First part of every key.
    namespace: str = Settings().namespace
    #: User of Redis; with a password alone, the server's default user.
    user: str | None = None
    password: str | None = None
    #: Name of the environment variable with the password.
    password_env: str | None = None
    #: File with the password in its first line.
    password_file: str | None = None
    #: Command that prints the password in its first line: a list of words, or one line of them.
    password_command: list[str] | str | None = None
    #: Certificates of the authorities that may sign the server's.
    tls_ca: str | None = None
    #: Certificate and key of this client.
    tls_cert: str | None = None
    tls_key: str | None = None

    @property
    def password_source(self) -> str | None:
        """The key that gives the password; None if there is none."""
        return next((key for key in PASSWORDS if getattr(self, key) is not None), None)


class CellsFile(Struct, frozen=True):
    """The content of a configuration file; empty if there is no file."""

    path: Path
    exists: bool
    default: str | None
    cells: dict[str, CellTable]
    warnings: tuple[str, ...] = ()  #: sentences about files that others can read
    url_lines: dict[str, int | None] = {}  #: cell -> line of its url; None: not found


class Choice(NamedTuple):
    """The cell that a process uses."""

    name: str
    source: str  #: what chose it: ``--cell``, ``COORD_CELL`` or ``default``


def config_path(environ: Mapping[str, str] | None = None) -> Path | None:
    """Return the path of the configuration file, which need not exist; None if this user has no home directory.

    Raises:
        ConfigError: COORD_CONFIG_FILE names a home directory that does not exist.
    """
    environ = os.environ if environ is None else environ
    variable = variable_of("config_file")
    if given := environ.get(variable, "").strip():
        return expand_home(given, f"{variable}={given}")
    folder = environ.get("XDG_CONFIG_HOME", "").strip()
    try:
        return (Path(folder) if folder else Path("~/.config").expanduser()) / "coord" / "config.toml"
    except RuntimeError:
        return None


def read_cells(environ: Mapping[str, str] | None = None) -> CellsFile:
    """Return the configuration file of this user.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or has an invalid key; names the line and the nearest key.
    """
    environ = os.environ if environ is None else environ
    path = config_path(environ)
    if path is None:
        return CellsFile(Path(), exists=False, default=None, cells={})
    try:
        with path.open(encoding="utf-8") as opened:
            found = os.fstat(opened.fileno())
            _check_owner(path, found)
            text = opened.read()
    except FileNotFoundError:
        if environ.get(variable_of("config_file"), "").strip():
            raise ConfigError(f"{variable_of('config_file')}={path}: there is no such file") from None
        return CellsFile(path, exists=False, default=None, cells={})
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    file = _Reader(path, text).read()
    _check_commands(file, found)
    return file


def _check_owner(path: Path, found: os.stat_result) -> None:
    """Refuse a file that another user can write: it decides where payloads go, and which commands run."""
    if os.name != "posix":
        return
    if found.st_uid not in {os.getuid(), 0}:
        raise ConfigError(f"{path} belongs to another user, who could send your tasks anywhere; use a file of your own")
    if found.st_mode & stat.S_IWOTH:
        raise ConfigError(f"{path} can be written by every user (mode {_mode(found)}); {_protect(path)}")


def _check_commands(file: CellsFile, found: os.stat_result) -> None:
    """Refuse a file that its group can write if it has a command: the group could run commands as this user."""
    name = next((name for name, table in file.cells.items() if table.password_command is not None), None)
    if name is not None and os.name == "posix" and found.st_mode & stat.S_IWGRP:
        raise ConfigError(
            f"{file.path} has a command, the password_command of [cells.{name}], and can be written by its group "
            f"(mode {_mode(found)}); {_protect(file.path)}"
        )


def _mode(found: os.stat_result) -> str:
    return f"{stat.S_IMODE(found.st_mode):04o}"


def _protect(path: Path) -> str:
    return f"run: chmod go-w {shlex.quote(str(path))}"


def choose(file: CellsFile, option: str | None, environ: Mapping[str, str], *, uses_default: bool) -> Choice | None:
    """Return the cell that a process uses; None if it uses none.

    Args:
        file: the configuration file.
        option: value of ``--cell``.
        environ: variables of the process.
        uses_default: use the default of the file.

    Raises:
        ConfigError: there is no cell with the name.
    """
    if option is not None:
        return _known(file, Choice(option, "--cell"), f"--cell {option}")
    if names_server(environ):
        return None
    variable = variable_of("cell")
    if named := environ.get(variable, "").strip():
        return _known(file, Choice(named, variable), f"{variable}={named}")
    return Choice(file.default, "default") if uses_default and file.default is not None else None


def names_server(environ: Mapping[str, str]) -> bool:
    """Return True if a variable names a server, which hides the cells."""
    return any(environ.get(name, "").strip() for name in _URL_VARIABLES)


def load_with_cell(
    environ: Mapping[str, str] | None = None, *, cell: str | None = None, uses_default: bool = True, **overrides: Any
) -> tuple[Settings, tuple[str, ...]]:
    """Read the settings as ``coord.config.load`` does, with the address, namespace and password of the chosen cell.

    Args:
        environ: variables to read; default ``os.environ``.
        cell: value of ``--cell``.
        uses_default: use the default of the file; False for ``coord up``, which starts a cell.
        overrides: options by field name; None: not given.

    Returns:
        The settings, whose ``cell`` is the name of the cell in use, and warnings about the files that were used.

    Raises:
        ConfigError: a variable, an option or the file is invalid, there is no such cell, or its password is missing.
    """
    source = dict(os.environ if environ is None else environ)
    if overrides.get("redis_url"):
        if cell is not None:
            raise ConfigError(f"--cell {cell} and --redis-url both name a server; give one of them")
        source.pop(variable_of("cell"), None)
        return load(source, **overrides), ()
    if cell is None and names_server(source):
        source.pop(variable_of("cell"), None)  # the cell that it names is not in use
        return load(source, **overrides), ()
    load(source, **overrides)  # so that a mistyped variable is reported before anything is read or run
    file = read_cells(source)
    choice = choose(file, cell, source, uses_default=uses_default)
    if choice is None:
        return load(source, **overrides), ()
    return load(_with_cell(source, file, choice), **overrides), file.warnings if choice.name in file.cells else ()


def _with_cell(environ: dict[str, str], file: CellsFile, choice: Choice) -> dict[str, str]:
    """Return the variables with those of a cell."""
    namespace = variable_of("namespace")
    if choice.source == "--cell":
        for name in (*_URL_VARIABLES, namespace):
            environ.pop(name, None)
    environ[variable_of("cell")] = choice.name
    if (table := file.cells.get(choice.name)) is not None:
        environ[variable_of("redis_url")] = address(file, choice.name)
        if not environ.get(namespace, "").strip():
            environ[namespace] = table.namespace
    return environ


def absence_advice(settings: Settings, url: str) -> str:
    """Return what to do if no server answers at the URL that a process uses: the place of the URL if a cell has it.

    Args:
        settings: of the process.
        url: with or without credentials.
    """
    from coord.connection import START_ADVICE  # imports the Redis client

    if settings.cell is None:
        return START_ADVICE
    try:
        file = read_cells()
    except ConfigError:  # it has changed since it was read
        return START_ADVICE
    table = file.cells.get(settings.cell)
    if table is None or server_of(table.url) != server_of(url):
        return START_ADVICE
    line = file.url_lines[settings.cell]
    place = f"{file.path}{f':{line}' if line else ''}"
    return f"It is the url of cell {settings.cell!r} in {place}: start that server, or change the url"


def server_of(url: str) -> tuple[str, str, str]:
    """Return a URL without credentials and options."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.rpartition("@")[2], parts.path


def address(file: CellsFile, name: str) -> str:
    """Return the URL of a cell with its credentials and TLS files; may run the ``password_command``.

    Raises:
        ConfigError: the password cannot be read.
    """
    table = file.cells[name]
    parts = urlsplit(table.url)
    password = _password(file.path, name, table)
    userinfo = ""
    if table.user is not None or password is not None:
        userinfo = quote(table.user or "", safe="") + (f":{quote(password, safe='')}" if password is not None else "")
    netloc = f"{userinfo}@{parts.netloc}" if userinfo else parts.netloc
    files = {
        option: str(_path(file.path, given)) for key, option in TLS_FILES.items() if (given := getattr(table, key))
    }
    query = "&".join(part for part in (parts.query, urlencode(files)) if part)
    return f"{parts.scheme}://{netloc}{parts.path}{f'?{query}' if query else ''}"  # geturl() spoils unix:///path


def _password(path: Path, name: str, table: CellTable) -> str | None:
    where = f"{path}: [cells.{name}]"
    if table.password_env is not None:
        if not (found := os.environ.get(table.password_env, "")):
            raise ConfigError(f"{where} password_env: the variable {table.password_env} is not set")
        return found
    if table.password_file is not None:
        secret = _path(path, table.password_file)
        try:
            return _first_line(secret.read_text(encoding="utf-8"), f"{where} password_file: {secret} is empty")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            raise ConfigError(f"{where} password_file: cannot read {secret}: {why}") from None
    if table.password_command is not None:
        return _printed(f"{where} password_command", words_of(table.password_command))
    return table.password


def _printed(where: str, words: list[str]) -> str:
    """Return the first line that a command prints. Errors name its program only: the arguments may be secret."""
    command = words[0]
    asks = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))  # a person can answer
    try:
        ended = subprocess.run(
            words,
            stdin=None if asks else subprocess.DEVNULL,  # piped input belongs to the command of coord
            stdout=subprocess.PIPE,
            stderr=None if asks else subprocess.PIPE,
            timeout=COMMAND_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{where}: `{command}` did not end within {COMMAND_S:g} s") from None
    except OSError as error:
        raise ConfigError(f"{where}: cannot run `{command}`: {error.strerror}") from None
    if ended.returncode:
        said = (ended.stderr or b"").decode("utf-8", "replace").strip().splitlines()
        raise ConfigError(
            f"{where}: `{command}` failed with exit code {ended.returncode}{f': {said[-1]}' if said else ''}"
        )
    return _first_line(ended.stdout.decode("utf-8", "replace"), f"{where}: `{command}` printed nothing")


def _first_line(text: str, error: str) -> str:
    line = next(iter(text.splitlines()), "")
    if not line:
        raise ConfigError(error)
    return line


def words_of(command: list[str] | str) -> list[str]:
    """Return the words of a ``password_command``."""
    return shlex.split(command) if isinstance(command, str) else command


def _path(file: Path, given: str) -> Path:
    return file.parent / Path(given).expanduser()


def named(file: CellsFile, name: str) -> Choice:
    """Return the cell of a name that is an argument.

    Raises:
        ConfigError: there is no cell with the name.
    """
    return _known(file, Choice(name, "argument"), f"cell {name!r}")


def _known(file: CellsFile, choice: Choice, given: str) -> Choice:
    if choice.name == LOCAL or choice.name in file.cells:
        return choice
    if not file.exists:
        raise ConfigError(
            f"{given}: there is no configuration file {file.path}; create it with a table [cells.{choice.name}] "
            "that has a url (docs/command-line.md, Cells)"
        )
    raise ConfigError(f"{given}: {file.path} has no such cell; {suggest(choice.name, [*file.cells, LOCAL])}")


class _Reader:
    """Reads one file. Errors begin with ``PATH:LINE``."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._text = text

    def read(self) -> CellsFile:
        """Return the content of the file."""
        try:
            content = tomllib.loads(self._text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{self._path} is not TOML: {error}") from None
        for key in content:
            if key not in {"default", "cells"}:
                step = suggest(key, ("default", "cells"), cutoff=0.5)
                raise self._wrong(None, key, f"{key!r} is not a key of this file; {step}")
        tables = content.get("cells", {})
        if not isinstance(tables, dict):
            raise self._wrong(None, "cells", "expected tables named [cells.NAME]")
        cells = {name: self._table(name, raw) for name, raw in tables.items()}
        default = content.get("default")
        if default is not None and default not in (*cells, LOCAL):
            step = suggest(str(default), [*cells, LOCAL])
            raise self._wrong(None, "default", f"default = {_typed(default)}: there is no such cell; {step}")
        return CellsFile(
            self._path,
            exists=True,
            default=default,
            cells=cells,
            warnings=tuple(self._warnings(cells)),
            url_lines={name: self._line(name, "url") for name in cells},
        )

    def _table(self, name: str, raw: object) -> CellTable:
        if name == LOCAL:
            raise self._wrong(name, None, f"the name {LOCAL!r} is reserved: it stands for a running `coord up`")
        if NAME.fullmatch(name) is None:
            raise self._wrong(name, None, "a name has 1 to 64 characters of A-Z a-z 0-9 _ -")
        if not isinstance(raw, dict):
            raise self._wrong(None, name, f"expected a table [cells.{name}] with a url")
        known = CellTable.__struct_fields__
        for key in raw:
            if key not in known:
                near = closest(key, [*known, *SYNONYMS], cutoff=0.5)
                step = f"did you mean {SYNONYMS.get(near, near)!r}?" if near else f"known are {', '.join(known)}"
                raise self._wrong(name, key, f"{key!r} is not a key of a cell; {step}")
        if "url" not in raw:
            raise self._wrong(name, None, 'url is missing, such as url = "redis://10.0.0.5:6379/0"')
        for key, value in raw.items():
            self._check_value(name, key, value)
        table = msgspec.convert(raw, CellTable)
        self._check(name, table)
        return table

    def _check_value(self, name: str, key: str, value: object) -> None:
        if isinstance(value, list) and key == "password_command":
            if not all(isinstance(word, str) for word in value):
                raise self._wrong(name, key, f"{key}: expected a list of words, each of them text")
        elif not isinstance(value, str):
            given = key if key in PASSWORDS else f"{key} = {_typed(value)}"  # the value may be a password
            raise self._wrong(name, key, f"{given}: expected text in quotes")
        if not value:
            raise self._wrong(name, key, f"{key} is empty")

    def _check(self, name: str, table: CellTable) -> None:
        from coord.connection import check_url  # imports the Redis client, which a command without a file does not need

        try:
            check_url(table.url)
        except ConfigError as error:
            raise self._wrong(name, "url", f"url {error}") from None
        try:
            load({}, namespace=table.namespace)
        except ConfigError as error:
            raise self._wrong(name, "namespace", str(error).removeprefix("--")) from None
        given = [key for key in PASSWORDS if getattr(table, key) is not None]
        if len(given) > 1:
            raise self._wrong(name, given[1], f"{' and '.join(given)} both give the password; keep one of them")
        has_user = "@" in urlsplit(table.url).netloc
        if has_user and (table.user is not None or given):
            key = "user" if table.user is not None else given[0]
            raise self._wrong(name, key, f"the url has a user or password too; remove them there, or remove {key}")
        self._check_command(name, table)
        self._check_files(name, table)

    def _check_command(self, name: str, table: CellTable) -> None:
        if isinstance(table.password_command, str):
            try:
                words = words_of(table.password_command)
            except ValueError as error:
                raise self._wrong(
                    name, "password_command", f"password_command: {error}; fix the quotes, or write a list of words"
                ) from None
            if not words:
                raise self._wrong(name, "password_command", "password_command is empty")

    def _check_files(self, name: str, table: CellTable) -> None:
        for key in (*TLS_FILES, "password_file"):
            if (given := getattr(table, key)) is None:
                continue
            if key in TLS_FILES and urlsplit(table.url).scheme != "rediss":
                raise self._wrong(name, key, f"{key} needs a url with TLS: rediss://…")
            try:
                found = _path(self._path, given)
            except RuntimeError:
                raise self._wrong(name, key, f"{key} = {_typed(given)}: there is no such home directory") from None
            if key in TLS_FILES and not found.is_file():
                raise self._wrong(name, key, f"{key}: there is no file {found}")

    def _warnings(self, cells: Mapping[str, CellTable]) -> list[str]:
        """Return a sentence for each file with a password that others can read."""
        found = []
        holders = [name for name, table in cells.items() if table.password or urlsplit(table.url).password is not None]
        if holders and (mode := _open_to_others(self._path)):
            found.append(_exposed(self._path, mode, f"holds the password of {', '.join(holders)}"))
        for name, table in cells.items():
            if table.password_file is not None:
                secret = _path(self._path, table.password_file)
                if mode := _open_to_others(secret):
                    found.append(_exposed(secret, mode, f"is the password of {name}"))
        return found

    def _wrong(self, cell: str | None, key: str | None, reason: str) -> ConfigError:
        line = self._line(cell, key)
        table = f"[cells.{cell}] " if cell is not None else ""
        return ConfigError(f"{self._path}{f':{line}' if line else ''}: {table}{reason}")

    def _line(self, cell: str | None, key: str | None) -> int | None:
        """Return the line of a key, or of a table if ``key`` is None; TOML's parser does not say. None: not found."""
        header = None
        for number, line in enumerate(self._text.splitlines(), start=1):
            if (opened := re.match(r"\s*\[\s*([^\]]+?)\s*\]", line)) is not None:
                header = opened[1].replace('"', "").replace("'", "").replace(" ", "")
                is_table = key is None and header == f"cells.{cell}"
                is_root = cell is None and key in {header, header.partition(".")[0]}
                if is_table or is_root:
                    return number
                continue
            is_inside = key is not None and header == (None if cell is None else f"cells.{cell}")
            if is_inside and re.match(rf"""\s*["']?{re.escape(key or "")}["']?\s*=""", line):
                return number
        return None


def _typed(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)


def _open_to_others(path: Path) -> int:
    """Return the mode of a file that its group or others can read; 0 if they cannot, or there is no such file."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return 0
    return mode if mode & 0o044 and os.name == "posix" else 0


def _exposed(path: Path, mode: int, what: str) -> str:
    return f"{path} {what}, and other users can read it (mode {mode:04o}); run: chmod 600 {shlex.quote(str(path))}"


def set_default(file: CellsFile, name: str | None) -> None:
    """Write another default into the file; everything else in it stays as it is.

    Args:
        file: as read.
        name: of the cell; None removes the default.

    Raises:
        ConfigError: there is no such cell, or the file cannot be written.
    """
    from coord.endpoint import write_private

    if name is not None:
        named(file, name)
    lines = file.path.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists else []
    end = next((number for number, line in enumerate(lines) if line.lstrip().startswith("[")), len(lines))
    kept = [line for line in lines[:end] if not re.match(r"""\s*["']?default["']?\s*=""", line)]
    chosen = [] if name is None else [f'default = "{name}"\n']
    try:
        file.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(file.path.resolve(), "".join([*chosen, *kept, *lines[end:]]).encode())
    except OSError as error:
        raise ConfigError(f"cannot write {file.path}: {error.strerror}") from None
