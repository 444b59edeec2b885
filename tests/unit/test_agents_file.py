"""The file of `coord up --agents`: what it starts, and that a slip in it is named with its table and field."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from coord.errors import ConfigError
from coord.up.agents_file import read_agents
from coord.up.supervisor import ManagedProgram

EXAMPLE = Path(__file__).parents[2] / "examples" / "agents.toml"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the file is; beside it lie a script that may be executed and one that may not."""
    (tmp_path / "ocr.sh").write_text("#!/bin/sh\ncat\n")
    (tmp_path / "ocr.sh").chmod(0o755)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "sub").mkdir()
    return tmp_path / "agents.toml"


def read(file: Path, content: str) -> list[ManagedProgram]:
    """The programs of a file with this content."""
    file.write_text(content)
    return read_agents(file)


def test_a_command_is_started_as_often_as_asked_each_with_its_id(file: Path) -> None:
    """In its words and its variables, in the file's folder."""
    programs = read(
        file,
        """
        [agents.stats]
        command = "{python} stats.py --id '{id}' {other}"
        count = 2
        env = { NUMBER = "{number} of 2", COORD_CAPACITY = "3" }
        drain = 2.5
        """,
    )
    assert [program.name for program in programs] == ["stats-1", "stats-2"]
    assert programs[1] == ManagedProgram(
        name="stats-2",
        command=(sys.executable, "stats.py", "--id", "stats-2", "{other}"),
        environ={"NUMBER": "2 of 2", "COORD_CAPACITY": "3"},
        folder=file.parent,
        drain_s=2.5,
        gives_back=True,
    )


def test_a_program_is_started_through_coord_agent(file: Path) -> None:
    """Its words are its own; what it can do becomes options."""
    (program,) = read(
        file,
        """
        [agents.ocr]
        program = ["./ocr.sh", "{lang}", "{id}"]
        type = "specialist"
        capabilities = ["ocr", "scan"]
        tags = ["gpu"]
        labels = { zone = "a=b" }
        capacity = 2
        timeout = 90
        keep_alive = true
        wait_ready = true
        load_timeout = 120
        """,
    )
    options = [
        "--id", "ocr", "--type", "specialist", "--capability", "ocr", "--capability", "scan",
        "--tag", "gpu",
        "--label", "zone=a=b", "--capacity", "2", "--timeout", "90", "--load-timeout", "120", "--keep-alive",
        "--wait-ready",
    ]  # fmt: skip
    agent = (sys.executable, "-P", "-m", "coord.cli", "agent")
    assert program.command == (*agent, *options, "--", "./ocr.sh", "{lang}", "{id}")
    assert program.name == "ocr"
    assert program.drain_s == math.inf, "it may take as long as its tasks take"


def test_times_may_have_a_unit(file: Path) -> None:
    """As in an option of the command line."""
    (program,) = read(file, "[agents.x]\nprogram = 'sort'\ncapabilities = ['sort']\ntimeout = '5m'\ndrain = '1m'")
    assert program.drain_s == 60
    assert program.command[program.command.index("--timeout") + 1] == "300"
    assert program.command[program.command.index("--drain-timeout") + 1] == "55"


def test_the_formats_of_a_program_become_options(file: Path) -> None:
    """Without the fields, the defaults of ``coord agent`` apply."""
    (program,) = read(file, "[agents.x]\nprogram = 'sort'\ncapabilities = ['sort']\ninput = 'text'\noutput = 'text'")
    assert program.command[-6:] == ("--input", "text", "--output", "text", "--", "sort")


def test_the_folder_is_below_the_file(file: Path) -> None:
    """And so are the programs."""
    (program,) = read(file, '[agents.a]\ncommand = "../ocr.sh"\nfolder = "sub"')
    assert program.folder == file.parent / "sub"


def test_the_example_is_right() -> None:
    """The file that the help names can be used as it is; its sort gets text and returns text."""
    *stats, sorter = read_agents(EXAMPLE)
    assert [program.name for program in (*stats, sorter)] == ["stats-1", "stats-2", "sorter"]
    assert " --input text --output text -- " in " ".join(sorter.command)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("agents = ", "is not TOML: Invalid value (at end of document)"),
        ("", "contains no agent; expected tables named [agents.NAME]"),
        ("[agents]", "contains no agent; expected tables named [agents.NAME]"),
        ("[agent.x]\ncommand = 'cat'", "unknown table [agent]; expected tables named [agents.NAME]"),
        ("[agents]\nx = 1", "[agents.x]: expected a table [agents.x] with a command or a program"),
        ("[agents.x]", "[agents.x]: give either a command (an agent) or a program (any other program)"),
        ("[agents.x]\ncommand = 'cat'\nprogram = 'cat'", "[agents.x]: give either a command"),
        ("[agents.x]\ncommnd = 'cat'", "[agents.x] commnd: is not a field; did you mean 'command'?"),
        ("[agents.x]\nzzz = 1", "[agents.x] zzz: is not a field; known are command, program, count"),
        ("[agents.x]\ncommand = 7", "[agents.x] command: expected a line of words or a list of them, got 7"),
        ("[agents.x]\ncommand = []", "[agents.x] command: expected array of length >= 1"),
        ("[agents.x]\ncommand = ''", "[agents.x] command: is empty"),
        (
            '[agents.x]\ncommand = "a \'b"',
            '[agents.x] command: No closing quotation: "a \'b"; fix the quotes, or write a list',
        ),
        ("[agents.x]\ncommand = 'cat'\ncount = 0", "[agents.x] count: expected int >= 1"),
        ("[agents.x]\ncommand = 'cat'\ncount = 1000", "[agents.x] count: expected int <= 256"),
        ("[agents.x]\ncommand = 'cat'\ncount = '2'", "[agents.x] count: expected int, got str"),
        ("[agents.x]\ncommand = 'cat'\ncount = 2", "[agents.x] command: 2 processes would have the same id; put {id}"),
        ("[agents.x]\ncommand = 'cat'\nenv = { A = 1 }", "[agents.x] env: expected str, got int (at [...])"),
        (
            "[agents.x]\ncommand = 'cat'\nenv = { COORD_CAPACTY = '1' }",
            "[agents.x] env: COORD_CAPACTY is not a setting; did you mean COORD_CAPACITY?",
        ),
        ("[agents.x]\ncommand = 'cat'\ndrain = 0", "[agents.x] drain: expected float > 0.0"),
        ("[agents.x]\ncommand = 'cat'\nfolder = 'no'", "/no is not a folder"),
        ("[agents.x]\ncommand = 'cat'\ncapacity = 2", "[agents.x] capacity: is valid with program only; an agent"),
        ("[agents.x]\nprogram = 'cat'\ninput = 'xml'", "[agents.x] input: expected one of json, text, got 'xml'"),
        ("[agents.x]\nprogram = 'cat'\noutput = 1", "[agents.x] output: expected one of auto, json, text, got 1"),
        ("[agents.x]\ncommand = 'cat'\ninput = 'text'", "[agents.x] input: is valid with program only; an agent"),
        (
            "[agents.x]\nprogram = 'cat'\ncapabilities = ['a']\nkeep_alive = true\ninput = 'text'",
            "[agents.x] input: is for one process per task; with keep_alive, leave it out",
        ),
        (
            "[agents.x]\nprogram = 'cat'\ntimeout = '5 minutes'",
            "[agents.x] timeout: expected a time such as 1.5 (seconds), 30s, 5m, 2h or 7d, got '5 minutes'",
        ),
        ("[agents.x]\ncommand = 'cat'\ndrain = '0s'", "[agents.x] drain: expected float > 0.0"),
        ("[agents.x]\ncommand = 'no-such-program'", "[agents.x] command: program 'no-such-program' is not on PATH"),
        ("[agents.x]\ncommand = 'ocr.sh'", "[agents.x] command: program 'ocr.sh' is not on PATH; for the one in "),
        ("[agents.x]\ncommand = './no.sh'", "/no.sh does not exist"),
        ("[agents.x]\nprogram = './notes.txt'", "notes.txt is not executable; chmod +x "),
        ("[agents.x]\nprogram = 'cat'", "[agents.x] capabilities: missing; name what the program can do"),
        ("[agents.x]\nprogram = 'cat'\ncapabilities = 'ocr'", "[agents.x] capabilities: expected array, got str"),
        (
            "[agents.x]\nprogram = 'cat'\ntype = 'ocr'",
            "[agents.x] type: 'ocr' is not an agent type; expected one of coordinator, ",
        ),
        (
            "[agents.x]\nprogram = 'cat'\ncapabilities = ['c']\nload_timeout = 9",
            "[agents.x] load_timeout: is valid with keep_alive only; add keep_alive = true, or remove load_timeout",
        ),
        (
            "[agents.'a b']\ncommand = 'cat'",
            "[agents.a b]: the name of the table, which is the agent's id, must be 1 to 128",
        ),
        ("[agents.register]\ncommand = 'cat'", "is reserved for a path of the gateway"),
        (
            "[agents.a]\ncommand = 'echo {id}'\ncount = 2\n[agents.a-1]\ncommand = 'cat'",
            "two agents have the id a-1; rename one of the tables",
        ),
    ],
)
def test_a_slip_is_named_with_its_table_and_field(file: Path, content: str, says: str) -> None:
    """One line: which file, where in it, what is expected."""
    with pytest.raises(ConfigError) as error:
        read(file, content)
    text = str(error.value)
    assert text.startswith(str(file))
    assert says in text
    assert "\n" not in text


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """It says which."""
    with pytest.raises(ConfigError, match=r"cannot read .*/none.toml: No such file"):
        read_agents(tmp_path / "none.toml")
