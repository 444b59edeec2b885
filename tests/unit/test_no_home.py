"""A user without a home directory, such as a random user id in a container; and the home of one that there is not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from coord.config import Settings, load
from coord.connection import DEFAULT_URL, locate
from coord.endpoint import read_endpoint, remove_endpoint
from coord.errors import ConfigError
from coord.up.agents_file import read_agents

ROOT = Path(__file__).parents[2]
NOBODY = "~nobody-is-called-so"


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the home directory away, and the place for files of a session."""
    for name in ("HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", _no_entry)


def _no_entry(uid: int) -> object:
    raise KeyError(uid)


@pytest.mark.usefixtures("homeless")
def test_without_a_home_there_is_no_endpoint_file() -> None:
    """A client goes to the usual address, as if no `coord up` ran."""
    assert Settings().endpoint_place is None
    assert read_endpoint(Settings().endpoint_place) is None
    assert not remove_endpoint(Settings().endpoint_place)
    assert locate(Settings()) == (DEFAULT_URL, Settings())


@pytest.mark.usefixtures("homeless")
def test_without_a_home_a_named_file_is_used(tmp_path: Path) -> None:
    """The setting needs no home directory."""
    named = load({"COORD_ENDPOINT_FILE": str(tmp_path / "endpoint.json")})
    assert named.endpoint_path == tmp_path / "endpoint.json"


def test_the_home_of_nobody_is_one_line() -> None:
    """An endpoint file there is an error that names the setting."""
    with pytest.raises(ConfigError, match=f"^COORD_ENDPOINT_FILE={NOBODY}/x: there is no home directory {NOBODY}; "):
        locate(load({"COORD_ENDPOINT_FILE": f"{NOBODY}/x"}))


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (f'command = ["sleep", "1"]\nfolder = "{NOBODY}"', f"folder: {NOBODY}: there is no home directory {NOBODY}"),
        (f'command = ["{NOBODY}/x"]', f"command: {NOBODY}/x: there is no home directory {NOBODY}"),
        (
            f'program = ["{NOBODY}/x"]\ncapabilities = ["a"]',
            f"program: {NOBODY}/x: there is no home directory {NOBODY}",
        ),
    ],
)
def test_the_home_of_nobody_in_an_agents_file_is_one_line(tmp_path: Path, table: str, says: str) -> None:
    """Table and field are named."""
    (tmp_path / "agents.toml").write_text(f"[agents.a]\n{table}\n")
    with pytest.raises(ConfigError, match=rf"\[agents.a\] {says}"):
        read_agents(tmp_path / "agents.toml")


Coord = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def coord(tmp_path: Path) -> Coord:
    """Run ``coord`` as a user without a passwd entry and without HOME."""
    (tmp_path / "sitecustomize.py").write_text("import pwd\ndef no(uid): raise KeyError(uid)\npwd.getpwuid = no\n")
    kept = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}

    def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "coord.cli", *arguments],
            env=kept | environ,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("up",), "coord: this user has no home folder to keep data in; choose a folder with --data\n"),
        (("up", "--data", f"{NOBODY}/x"), f"coord: cannot keep data in {NOBODY}/x: "),
        (("--install-completion", "bash"), "coord: this user has no home directory; set HOME\n"),
    ],
)
def test_a_command_that_needs_a_home_says_so_in_one_line(coord: Coord, arguments: tuple[str, ...], says: str) -> None:
    """With exit code 2 and what to do."""
    done = coord(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(says)
    assert done.stderr.count("\n") == 1
