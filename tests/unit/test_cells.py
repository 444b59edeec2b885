"""The configuration file with named cells: which cell a process uses, and what is wrong with a file."""

from __future__ import annotations

import os
import pty
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio.connection import parse_url

from coord.cells import CellsFile, config_path, load_with_cell, read_cells, set_default
from coord.config import Settings
from coord.errors import ConfigError
from coord.program_settings import load_in_program

FILE = """# my cells
default = "staging"

[cells.staging]
url = "redis://10.0.0.5:6379/0"

[cells.production]
url = "rediss://redis.example.org:6380/0"
namespace = "orders"
user = "operator"
password = "s p@ce/"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the configuration file of this test is."""
    found = tmp_path / "config" / "coord" / "config.toml"
    found.parent.mkdir(parents=True)
    return found


def write(path: Path, text: str) -> Path:
    """Write the file as a careful person would."""
    path.write_text(text)
    path.chmod(0o600)
    return path


def place(environ: dict[str, str] | None = None, **given: Any) -> tuple[str | None, str, str | None]:
    """URL, namespace and cell of the settings that a process gets."""
    for name, value in (environ or {}).items():
        os.environ[name] = value
    try:
        settings, _ = load_with_cell(**given)
    finally:
        for name in environ or {}:
            del os.environ[name]
    return settings.redis_url, settings.namespace, settings.cell


STAGING = ("redis://10.0.0.5:6379/0", "coord", "staging")
PRODUCTION = ("rediss://operator:s%20p%40ce%2F@redis.example.org:6380/0", "orders", "production")


def test_the_order_of_what_names_a_server(path: Path) -> None:
    """Options, then the environment, then the default of the file, then what ``coord up`` announces."""
    assert place() == (None, "coord", None)  # there is no file
    write(path, FILE)
    url = {"COORD_REDIS_URL": "redis://env:1"}
    assert place() == STAGING
    assert place({"COORD_CELL": "production"}) == PRODUCTION
    assert place(url) == ("redis://env:1", "coord", None)
    assert place({"AITBC_REDIS_URL": "redis://old:1"}) == ("redis://old:1", "coord", None)
    assert place(url | {"COORD_CELL": "production"}) == ("redis://env:1", "coord", None)
    assert place(url, cell="production") == PRODUCTION
    assert place({"COORD_CELL": "production"}, redis_url="redis://option:1") == ("redis://option:1", "coord", None)
    assert place(cell="local") == (None, "coord", "local")
    assert place(uses_default=False) == (None, "coord", None)


def test_the_namespace_of_a_cell(path: Path) -> None:
    """An option changes it; so does the environment, but not that of a cell that ``--cell`` names."""
    write(path, FILE)
    named = {"COORD_NAMESPACE": "coord"}
    assert place(cell="production", namespace="other")[1] == "other"
    assert place(named, cell="production")[1] == "orders"
    assert place(named | {"COORD_CELL": "production"})[1] == "coord"


def test_a_cell_and_a_url_contradict_each_other(path: Path) -> None:
    """Neither is ignored."""
    write(path, FILE)
    with pytest.raises(ConfigError, match="--cell staging and --redis-url both name a server"):
        load_with_cell(cell="staging", redis_url="redis://x:1")


def test_programs_use_the_same_cell(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless they name a URL: then not even its namespace."""
    write(path, FILE.replace('"staging"\n', '"production"\n', 1))
    assert load_in_program().namespace == "orders"
    assert load_in_program("redis://mine:1") == Settings()
    monkeypatch.setenv("COORD_CELL", "local")
    assert load_in_program() == Settings(cell="local")


def test_where_a_password_comes_from(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A variable, the first line of a file, or what a command prints."""
    (path.parent / "secret").write_text("of the file\nmore\n")
    (path.parent / "secret").chmod(0o600)
    monkeypatch.setenv("MY_SECRET", "of:env")
    program = f'["{sys.executable}", "-c", "print(40 + 2)"]'
    write(
        path,
        f"""
        [cells.a]
        url = "redis://h:1"
        password_env = "MY_SECRET"
        [cells.b]
        url = "redis://h:1"
        user = "u"
        password_file = "secret"
        [cells.c]
        url = "redis://h:1"
        password_command = {program}
        """,
    )
    assert place(cell="a")[0] == "redis://:of%3Aenv@h:1"
    assert place(cell="b")[0] == "redis://u:of%20the%20file@h:1"
    assert place(cell="c")[0] == "redis://:42@h:1"
    monkeypatch.delenv("MY_SECRET")
    with pytest.raises(ConfigError, match=r"\[cells.a\] password_env: the variable MY_SECRET is not set"):
        place(cell="a")
    (path.parent / "secret").unlink()
    with pytest.raises(ConfigError, match=r"\[cells.b\] password_file: cannot read .*secret: No such file"):
        place(cell="b")


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("sh -c 'echo locked >&2; exit 3'", "`sh` failed with exit code 3: locked"),
        ("no-such-program-here x", "cannot run `no-such-program-here`: No such file"),
        ("true", "`true` printed nothing"),
    ],
)
def test_a_password_command_that_fails(path: Path, command: str, error: str) -> None:
    """The error shows the program and what it said, not the arguments."""
    write(path, f'[cells.a]\nurl = "redis://h:1"\npassword_command = "{command}"\n')
    with pytest.raises(ConfigError, match=f"password_command: .*{error}"):
        place(cell="a")


def test_a_password_command_does_not_read_the_input_of_coord(path: Path) -> None:
    """Piped input has the tasks to submit; the command gets an empty one."""
    write(path, A + "password_command = \"sh -c 'cat; echo secret'\"\n")
    program = (
        "import sys; from coord.cells import load_with_cell; "
        "print(load_with_cell(cell='a')[0].redis_url, sys.stdin.read())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], input="a task", capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.stdout == "redis://:secret@h:1 a task\n", ended.stderr


def test_a_password_command_asks_on_a_terminal(path: Path) -> None:
    """It reads the terminal, and shows its question there."""
    write(path, A + "password_command = \"sh -c 'echo question >&2; read answer; echo $answer'\"\n")
    program = "from coord.cells import load_with_cell; print(load_with_cell(cell='a')[0].redis_url)"
    ours, theirs = pty.openpty()
    try:
        os.write(ours, b"secret\n")
        ended = subprocess.run(
            [sys.executable, "-c", program],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
            timeout=60,
            check=False,
        )
        assert ended.stdout == b"redis://:secret@h:1\n"
        assert b"question" in os.read(ours, 1024)
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_unix_socket(path: Path) -> None:
    """With and without credentials; the Redis client understands both."""
    write(path, '[cells.a]\nurl = "unix:///run/redis.sock"\n[cells.b]\nurl = "unix:///s"\nuser = "u"\npassword = "p"\n')
    assert place(cell="a")[0] == "unix:///run/redis.sock"
    assert place(cell="b")[0] == "unix://u:p@/s"
    parsed = parse_url("unix://u:p@/s")
    assert (parsed["path"], parsed["username"], parsed["password"]) == ("/s", "u", "p")


def test_tls_files_become_options_of_the_url(path: Path) -> None:
    """Relative to the folder of the file."""
    (path.parent / "ca.pem").write_text("")
    write(path, '[cells.a]\nurl = "rediss://h:1?ssl_cert_reqs=required"\ntls_ca = "ca.pem"\n')
    url = place(cell="a")[0]
    assert url == f"rediss://h:1?ssl_cert_reqs=required&ssl_ca_certs={str(path.parent / 'ca.pem').replace('/', '%2F')}"


A = '[cells.a]\nurl = "redis://h:1"\n'


@pytest.mark.parametrize(
    ("text", "line", "error"),
    [
        (A + 'pasword = "x"\n', 3, r"\[cells.a\] 'pasword' is not a key of a cell; did you mean 'password'"),
        (A + 'redis_url = "x"\n', 3, r"'redis_url' is not a key of a cell; did you mean 'url'\?"),
        (A + 'redis_ulr = "x"\n', 3, r"'redis_ulr' is not a key of a cell; did you mean 'url'\?"),
        (A + 'username = "x"\n', 3, r"did you mean 'user'\?"),
        (A + 'ssl_ca_certs = "x"\n', 3, r"did you mean 'tls_ca'\?"),
        (A + 'colour = "x"\n', 3, "known are url, namespace, user"),
        ("defualt = 1\n", 1, "'defualt' is not a key of this file; did you mean 'default'"),
        ("\n[cell.a]\n", 2, "'cell' is not a key of this file; did you mean 'cells'"),
        ('default = "b"\n' + A, 1, 'default = "b": there is no such cell; did you mean|known are a, local'),
        ("default = 5\n" + A, 1, "default = 5: there is no such cell"),
        ("cells = 5\n", 1, r"expected tables named \[cells.NAME\]"),
        ("[cells]\na = 5\n", None, r"expected a table \[cells.a\]"),
        ("[cells.a]\n", 1, r"\[cells.a\] url is missing"),
        ("[cells.local]\n", 1, "the name 'local' is reserved"),
        ('[cells."a b"]\n', None, "a name has 1 to 64 characters"),
        ("[cells.a]\nurl = 5\n", 2, "url = 5: expected text in quotes"),
        ('[cells.a]\nurl = ""\n', 2, "url is empty"),
        ('[cells.a]\nurl = "http://h"\n', 2, "url 'http://h' is not a Redis URL"),
        (A + 'namespace = "a b"\n', 3, "namespace 'a b': expected 1 to 64 characters"),
        (A + 'password = "x"\npassword_env = "Y"\n', 4, "password and password_env both give the password"),
        (A.replace("//", "//u:p@") + 'user = "x"\n', 3, "the url has a user or password too"),
        (A + 'tls_ca = "ca.pem"\n', 3, "tls_ca needs a url with TLS"),
        (A.replace("redis:", "rediss:") + 'tls_ca = "ca.pem"\n', 3, "tls_ca: there is no file .*ca.pem"),
        (A + 'password_file = "~nobody-here/x"\n', 3, "password_file = .*there is no such home directory"),
        (A + "password_command = [1]\n", 3, "expected a list of words"),
        (A + 'password_command = "  "\n', 3, "password_command is empty"),
        (A + 'password_command = "echo \'x"\n', 3, "No closing quotation; fix the quotes"),
        ("[cells.a\n", None, "is not TOML: .*line 1"),
    ],
)
def test_an_invalid_file(path: Path, text: str, line: int | None, error: str) -> None:
    """The error begins with the file and the line, names the key, and says what is valid."""
    write(path, text)
    with pytest.raises(ConfigError, match=error) as caught:
        read_cells()
    assert str(caught.value).startswith(f"{path}:{line}: " if line else str(path))
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "password = 12345678",
        "password_command = 12345678",
        'password_command = "false --token 12345678"',
        'password_command = ["no-such-program", "12345678"]',
    ],
)
def test_no_error_shows_a_password(path: Path, line: str) -> None:
    """A value without quotes and an argument of a command may be secret."""
    write(path, A + line + "\n")
    with pytest.raises(ConfigError, match="password") as caught:
        place(cell="a")
    assert "12345678" not in str(caught.value)


def test_a_name_that_does_not_exist(path: Path) -> None:
    """The option or variable, and the nearest name; without a file, how to begin."""
    with pytest.raises(ConfigError, match=r"--cell prod: there is no configuration file .*create it"):
        load_with_cell(cell="prod")
    write(path, FILE)
    with pytest.raises(ConfigError, match=r"--cell stagin: .*config\.toml has no such cell; did you mean 'staging'"):
        load_with_cell(cell="stagin")
    with pytest.raises(ConfigError, match=r"COORD_CELL=zzz: .*known are staging, production, local"):
        place({"COORD_CELL": "zzz"})


def test_the_path_of_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A variable names another one, which must exist."""
    monkeypatch.setenv("COORD_CONFIG_FILE", str(tmp_path / "other.toml"))
    with pytest.raises(ConfigError, match=r"COORD_CONFIG_FILE=.*other.toml: there is no such file"):
        load_with_cell()
    write(tmp_path / "other.toml", FILE)
    assert load_with_cell()[0].cell == "staging"
    assert config_path({"XDG_CONFIG_HOME": "/x"}) == Path("/x/coord/config.toml")
    assert config_path({}) == Path("~/.config/coord/config.toml").expanduser()


def test_a_file_that_others_can_read_or_write(path: Path) -> None:
    """A password in a readable file is a warning; a file that everybody can write is refused: it runs commands."""
    write(path, FILE)
    assert load_with_cell(cell="production")[1] == ()
    path.chmod(0o644)
    (warning,) = load_with_cell(cell="production")[1]
    assert warning == (
        f"{path} holds the password of production, and other users can read it (mode 0644); run: chmod 600 {path}"
    )
    assert load_with_cell(cell="local")[1] == ()  # nothing of the file was used
    path.write_text(A)
    assert load_with_cell(cell="a")[1] == ()  # there is no password in it
    path.chmod(0o666)
    with pytest.raises(ConfigError, match=rf"can be written by every user \(mode 0666\); run: chmod go-w {path}"):
        load_with_cell(cell="a")


def test_a_command_in_a_file_that_others_can_write(path: Path) -> None:
    """⚠ Its group could run commands as this user; without a command it may write, as the umask of many allows."""
    write(path, A + 'password_command = "echo secret"\n').chmod(0o664)
    error = (
        f"{path} has a command, the password_command of [cells.a], and can be written by its group (mode 0664); "
        f"run: chmod go-w {path}"
    )
    for read in (read_cells, load_with_cell, lambda: load_with_cell(cell="a")):
        with pytest.raises(ConfigError, match=re.escape(error)):
            read()
    path.chmod(0o644)
    assert place(cell="a")[0] == "redis://:secret@h:1"
    write(path, A).chmod(0o664)
    assert place(cell="a")[0] == "redis://h:1"


def test_the_default_is_changed_and_nothing_else(path: Path) -> None:
    """Comments and tables stay; the file is readable by its owner only."""
    write(path, FILE)
    set_default(read_cells(), "production")
    assert path.read_text() == 'default = "production"\n' + FILE.replace('default = "staging"\n', "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    set_default(read_cells(), None)
    assert path.read_text() == FILE.replace('default = "staging"\n', "")
    with pytest.raises(ConfigError, match="did you mean 'production'"):
        set_default(read_cells(), "prodution")
    path.unlink()
    set_default(read_cells(), "local")
    assert read_cells() == CellsFile(path, exists=True, default="local", cells={})
