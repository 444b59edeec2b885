"""The Dockerfile as data: what it copies is there and is sent, what it installs is pinned, nobody in it is root."""

from __future__ import annotations

import re
import shlex
import tomllib
from fnmatch import fnmatch
from pathlib import Path

from tests.commands import parse

ROOT = Path(__file__).parents[2]


def instructions() -> list[tuple[str, str]]:
    """Each instruction and its arguments; lines that go on are joined, comments left out."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage; the last one is the image."""
    found: list[list[tuple[str, str]]] = []
    for instruction in instructions():
        if instruction[0] == "FROM":
            found.append([])
        found[-1].append(instruction)
    return found


def copied() -> list[str]:
    """What is copied from this repository."""
    return [
        source
        for name, rest in instructions()
        if name == "COPY" and "--from" not in rest
        for source in shlex.split(rest)[:-1]
    ]


def is_sent(path: str) -> bool:
    """Whether .dockerignore lets a path through to the builder: its last line that matches decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if line and not line.startswith("#") and (fnmatch(path, pattern.replace("**/", "*")) or path == pattern):
            sent = line.startswith("!")
    return sent


def test_what_it_copies_is_there_and_sent() -> None:
    """And nothing else is sent: no environment, no history, no secret that lies about."""
    assert {"coord", "workers", "pyproject.toml", "scripts/constraints.txt"} <= set(copied())
    assert [path for path in copied() if not (ROOT / path).exists() or not is_sent(path)] == []
    assert [path for path in (".git", ".venv", ".env", "tests", "docs", ".bench") if is_sent(path)] == []


def test_it_copies_what_the_wheel_is_built_from() -> None:
    """The packages, and the files that pyproject.toml names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [
        *project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"],
        *project["project"]["license-files"],
    ]
    assert [path for path in wanted if path not in copied()] == []


def test_it_installs_what_the_constraints_say() -> None:
    """No library in the image, and none that builds it, is of another version than the one that was tested."""
    (install,) = [rest for name, rest in instructions() if name == "RUN" and "pip install" in rest]
    assert "--constraint scripts/constraints.txt" in install
    build = stages()[0]
    (folder,) = [rest for name, rest in build if name == "WORKDIR"]
    (variables,) = [shlex.split(rest) for name, rest in build if name == "ENV"]
    assert variables == [f"PIP{which}_CONSTRAINT={folder}/scripts/constraints.txt" for which in ("", "_BUILD")]


def test_its_python_is_the_one_that_the_types_are_checked_for() -> None:
    """In all stages the same, so that the environment can be moved from one to the other."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["python_version"]
    assert {rest.partition(" ")[0] for name, rest in instructions() if name == "FROM"} == {f"python:{wanted}-slim"}


def test_nobody_in_it_is_root() -> None:
    """The user is a number other than 0, set before what runs."""
    last = stages()[-1]
    (user,) = [rest for name, rest in last if name == "USER"]
    assert [int(part) > 0 for part in user.split(":")] == [True, True]
    assert [name for name, _ in last].index("USER") < [name for name, _ in last].index("CMD")


def test_its_command_is_taken() -> None:
    """By coord's own parser."""
    (command,) = [rest for name, rest in stages()[-1] if name == "CMD"]
    assert parse(shlex.split(command.strip("[]").replace(",", " "))) == ["coord"]
