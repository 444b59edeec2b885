"""What the help shows: each example is taken by its command's own parser, each command has its line on the page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from coord.cli import main
from coord.cli.exit_codes import ExitCode
from docs.generate.commands import commands as commands_and_groups
from tests.commands import is_known, parse
from tests.repo.documents import ROOT, commands, inline, split

PAGE = ROOT / "docs" / "command-line.md"


def every_command() -> Iterator[tuple[str, Any]]:
    """``coord tasks list`` and its click command, for all that there are."""
    import click

    for name, command in commands_and_groups():
        if not isinstance(command, click.Group):
            yield name, command


COMMANDS = dict(every_command())


def examples(name: str) -> list[str]:
    """The examples of a command's help, as they are shown."""
    lines = (COMMANDS[name].epilog or "").replace(r"\[", "[").splitlines()
    return [line.strip() for line in lines if line.strip() not in {"", "Examples:"}]


@pytest.mark.parametrize("name", COMMANDS)
def test_its_examples_are_taken(name: str) -> None:
    """Each is a call of this command, by itself or in a pipe; what ``$(…)`` prints, or xargs hands on, is some id."""
    assert COMMANDS[name].help
    for example in examples(name):
        line = re.sub(r"xargs (?:-\S+ )*(.*)", r"\1 some-id", re.sub(r"\$\([^)]*\)", "some-id", example))
        ours = [one.words for one in split(line) if is_known(one.words)]
        assert name in {" ".join(parse(words)) for words in ours}, example


@pytest.mark.parametrize("name", COMMANDS)
def test_its_times_are_durations(name: str) -> None:
    """Every option that takes a time accepts units; the only other number with a fraction is a health."""
    import click

    from coord.cli.parse import Duration

    options = [one for one in COMMANDS[name].params if isinstance(one, click.Option)]
    assert [one.name for one in options if one.metavar == "TIME" and not isinstance(one.type, Duration)] == []
    fractions = {one.name for one in options if isinstance(one.type, click.types.FloatParamType)}
    assert fractions <= {"min_health"}


def shown_help(name: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What ``--help`` prints on a terminal of this width."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.argv", [*name.split(), "--help"])
    with pytest.raises(SystemExit):
        main()
    return capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*will be removed in Click 9.0:DeprecationWarning")
@pytest.mark.parametrize("name", COMMANDS)
def test_its_examples_can_be_copied(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is one line, however narrow the terminal is."""
    lines = [line.strip() for line in shown_help(name, 40, monkeypatch, capsys).splitlines()]
    assert [example for example in examples(name) if example not in lines] == []


@pytest.mark.filterwarnings("ignore:.*will be removed in Click 9.0:DeprecationWarning")
@pytest.mark.parametrize("name", COMMANDS)
def test_its_choices_are_whole(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """No choice is cut or broken on a terminal of the usual width."""
    import click

    words = set(re.findall(r"[a-z_]+", shown_help(name, 80, monkeypatch, capsys)))
    choices = [one.type.choices for one in COMMANDS[name].params if isinstance(one.type, click.Choice)]
    assert [choice for several in choices for choice in several if str(choice) not in words] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_it_has_its_line_on_the_page(name: str) -> None:
    """docs/command-line.md names every command, in its text or in a block."""
    named = [*inline(PAGE), *(" ".join(one.words) for one in commands(PAGE))]
    assert [code for code in named if code == name or code.startswith(f"{name} ")]


def test_the_page_explains_every_option_of_coord_up() -> None:
    """docs/command-line.md names each."""
    page = " ".join(inline(PAGE))
    options = [option for one in COMMANDS["coord up"].params for option in one.opts if option.startswith("--")]
    assert options
    assert [option for option in options if not re.search(rf"{option}(?![\w-])", page)] == []


def test_the_page_explains_every_exit_code() -> None:
    """All of them, and no other."""
    rows = re.findall(r"^\| (\d+) \|", PAGE.read_text(), re.MULTILINE)
    assert [int(row) for row in rows] == [int(code) for code in ExitCode]
