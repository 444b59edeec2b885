"""`coord cells` and `--cell`: which cell commands use, and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from coord.embedded import EmbeddedServer
from tests.living import CommandResult, run_coord

#: typer 0.21 imports names from click that click 8.5 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in Click 9.0:DeprecationWarning")

Coord = Callable[..., CommandResult]


@pytest.fixture
def coord(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Coord:
    """Runs a command with exactly these options."""
    return lambda *arguments: run_coord(capsys, monkeypatch, *arguments)


@pytest.fixture
def path(tmp_path: Path, server: EmbeddedServer, namespace: str) -> Path:
    """A configuration file with two cells; ``here`` is on the server of the tests."""
    found = tmp_path / "config" / "coord" / "config.toml"
    found.parent.mkdir(parents=True)
    found.touch(mode=0o600)
    found.write_text(
        f'[cells.here]\nurl = "{server.url}"\nnamespace = "{namespace}"\n\n'
        '[cells.far]\nurl = "rediss://far.example.org:6380"\nuser = "op"\npassword = "hush"\n'
    )
    return found


def test_a_command_uses_the_cell(coord: Coord, path: Path, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before or after the command, by variable, or as the default; another server is not used."""
    monkeypatch.setenv("COORD_REDIS_URL", "redis://127.0.0.1:1")
    for arguments in (("queues", "--cell", "here"), ("--cell", "here", "queues")):
        found = coord(*arguments)
        assert found.code == 0, found.err
        assert f"namespace '{namespace}' is empty" in found.err
    monkeypatch.delenv("COORD_REDIS_URL")
    monkeypatch.setenv("COORD_CELL", "here")
    assert f"namespace '{namespace}' is empty" in coord("queues").err
    monkeypatch.delenv("COORD_CELL")
    assert coord("cells", "use", "here").out == "the default is here\n"
    assert f"namespace '{namespace}' is empty" in coord("queues").err
    wrong = coord("queues", "--cell", "heer")
    assert (wrong.code, wrong.out) == (2, "")
    assert wrong.err.startswith(f"coord: --cell heer: {path} has no such cell; did you mean 'here'?")


def test_the_list(coord: Coord, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cell without its password, with a mark on the one in use and the reason."""
    found = coord("cells", "list")
    assert [line.split()[0] for line in found.out.splitlines()[:4]] == ["cell", "here", "far", "local"]
    assert "hush" not in found.out
    assert found.out.endswith(f"port 6379 of this machine: {path} names no default\n")
    coord("cells", "use", "far")
    rows = {row["name"]: row for row in json.loads(coord("cells", "list", "--json").out)["items"]}
    assert {name: row["is_used"] for name, row in rows.items()} == {"here": False, "far": True, "local": False}
    assert (rows["far"]["chosen_by"], rows["far"]["password"], rows["far"]["user"]) == ("default", "password", "op")
    assert "commands use far: it is the default of" in coord("cells", "list").out
    monkeypatch.setenv("COORD_CELL", "here")
    assert coord("cells", "list").out.endswith("commands use here: COORD_CELL names it\n")
    assert coord("cells", "list", "--json").out.count("hush") == 0
    monkeypatch.setenv("COORD_REDIS_URL", "redis://x:1")
    assert coord("cells", "list").out.endswith("commands use the server of COORD_REDIS_URL, not a cell\n")


def test_one_cell(coord: Coord, path: Path) -> None:
    """The one that commands use, or another; exit code 1 if none is in use."""
    none = coord("cells", "show")
    assert (none.code, none.out.startswith("commands use a running `coord up`")) == (1, True)
    far = coord("cells", "show", "far")
    assert far.code == 0
    assert "hush" not in far.out
    assert [line.split()[0] for line in far.out.splitlines()] == [
        "cell", "url", "namespace", "user", "password", "file", "used",
    ]  # fmt: skip
    used = json.loads(coord("--cell", "here", "cells", "show", "--json").out)
    assert (used["name"], used["is_used"], used["chosen_by"]) == ("here", True, "--cell")
    wrong = coord("cells", "show", "fra")
    assert (wrong.code, wrong.err) == (2, f"coord: cell 'fra': {path} has no such cell; did you mean 'far'?\n")
    path.unlink()
    assert coord("cells", "show", "fra").err.startswith(f"coord: cell 'fra': there is no configuration file {path}; ")


def test_a_cell_whose_server_is_gone(
    coord: Coord, path: Path, unused_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the cell and the line of its url, however the cell was chosen; credentials do not matter."""
    url = f"redis://127.0.0.1:{unused_port}"
    path.write_text(f'default = "gone"\n\n[cells.gone]\nnamespace = "x"\nurl = "{url}"\npassword = "hush"\n')
    step = f"It is the url of cell 'gone' in {path}:5: start that server, or change the url\n"
    for arguments in (("--cell", "gone", "stats"), ("stats",)):
        found = coord(*arguments)
        assert (found.code, found.out) == (2, "")
        assert (
            found.err
            == f"coord: no usable Redis at redis://:***@127.0.0.1:{unused_port}: nothing listens on this port. {step}"
        )
    monkeypatch.setenv("COORD_CELL", "gone")
    monkeypatch.setenv("COORD_REDIS_URL", f"redis://localhost:{unused_port}")
    assert "Start one with `coord up`" in coord("stats").err


def test_the_default(coord: Coord, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hint says if it has no effect, because a variable takes precedence."""
    assert coord("cells", "use").code == 2
    assert coord("cells", "use", "here", "--none").code == 2
    assert "did you mean 'here'" in coord("cells", "use", "her").err
    monkeypatch.setenv("COORD_CELL", "far")
    found = coord("cells", "use", "here")
    assert (found.code, found.out) == (0, "the default is here\n")
    assert found.err == "this has no effect here: commands use far: COORD_CELL names it\n"
    assert coord("cells", "use", "--none").out == "there is no default any more\n"
    assert "default" not in path.read_text()


@pytest.mark.parametrize("command", ['"vault --token hush"', '["vault", "--token", "hush"]'])
def test_only_the_program_of_a_password_command_is_shown(coord: Coord, path: Path, command: str) -> None:
    """Its arguments may be secret, in one line as in a list of words."""
    path.write_text(f'[cells.far]\nurl = "redis://far.example.org"\npassword_command = {command}\n')
    for arguments in (("cells", "list"), ("cells", "show", "far"), ("cells", "show", "far", "--json")):
        found = coord(*arguments)
        assert "password_command vault" in found.out
        assert "hush" not in found.out + found.err


def test_a_readable_password_is_a_warning(coord: Coord, path: Path) -> None:
    """On standard error, with the command that ends it."""
    path.chmod(0o644)
    assert f"run: chmod 600 {path}" in coord("cells", "list").err


def test_up_does_not_start_on_the_default(coord: Coord, path: Path) -> None:
    """`coord up` starts a cell; only a cell that is named explicitly is another server for it."""
    coord("cells", "use", "far")
    assert coord("up", "--cell", "far", "--data", "/tmp/x").err == (
        "coord: --data is for the embedded server and --cell far for another one; give one of them\n"
    )
    refused = coord("up", "--cell", "far", "--redis-url", "redis://x:1")
    assert "--cell far and --redis-url both name a server" in refused.err
