"""The command line: what a person can do wrong is answered with one line, the next step, and exit code 2."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from coord import __version__
from coord.cli import main, submit, tasks
from coord.config import Settings
from coord.endpoint import write_endpoint
from coord.errors import ConfigError, DataFolderInUse
from coord.models.strategies import STRATEGY_NAMES
from coord.models.tasks import TaskState
from coord.up import programs, runner
from coord.up.data_dir import FolderLock, default_data_dir, refuse_foreign

#: typer 0.21 imports names from click that click 8.5 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in Click 9.0:DeprecationWarning")


class CommandResult:
    """What a command wrote, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err


Coord = Callable[..., CommandResult]


@pytest.fixture
def coord(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Coord:
    """Runs ``coord`` with arguments in this process; never in the tester's own folders."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: str) -> CommandResult:
        monkeypatch.setattr("sys.argv", ["coord", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        code = ended.value.code
        assert "Traceback" not in err
        return CommandResult(code if isinstance(code, int) else 1, out, err)

    return run


def test_version_is_a_command_and_an_option(coord: Coord) -> None:
    """Both say the same."""
    assert coord("version").out == coord("--version").out
    assert coord("version").out.startswith(f"coord {__version__} (Python ")


def test_without_a_command_it_shows_what_there_is(coord: Coord) -> None:
    """The help names every command."""
    result = coord()
    assert [word for word in ("up", "version") if word not in result.out] == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["up", "--redis-url", "localhost"],
            ["coord: --redis-url 'localhost' is not a Redis URL", "expected redis://"],
        ),
        (["up", "--redis-url", "redis://h:99999"], ["is not a Redis URL (Port out of range", "redis://"]),
        (["ps", "--redis-url", "ann:secret@h:6379"], ["coord: --redis-url 'ann:***@h:6379' is not a Redis URL; "]),
        (["ps", "--redis-url", "redis://ann:sec/ret@h"], ["--redis-url 'redis://ann:***@h' is not a Redis URL; "]),
        (["up", "--data", "x", "--redis-url", "redis://h"], ["--data", "--redis-url", "one of them"]),
        (["up", "--port", "8080", "--no-gateway"], ["--port", "--no-gateway", "one of them"]),
        (["up", "--port", "80800"], ["--port", "0<=x<=65535"]),
        (["up", "--namespace", "a b"], ["coord: --namespace 'a b': expected 1 to 64 characters"]),
        (["ps", "--redis-url", "http://ann:secret@h"], ["coord: --redis-url 'http://ann:***@h' is not a Redis URL"]),
        (["worker", "router", "--redis-url", "http://h"], ["coord: --redis-url 'http://h' is not a Redis URL"]),
        (["gateway", "--namespace", "a:b"], ["coord: --namespace 'a:b': expected 1 to 64 characters"]),
        (["up", "--registries", "-1"], ["--registries", "0<=x<=64"]),
        (["up", "--distributors", "many"], ["--distributors", "integer"]),
        (["down"], ["No such command 'down'"]),
        (["task", "list"], ["No such command 'task'. Did you mean 'tasks'? "]),
        (["tasks", "lst"], ["No such command 'lst'. Did you mean 'list'? "]),
        (["tasks", "replay", "t-1"], ["No such command 'replay'. `coord tasks retry` does that."]),
        (["tasks", "requeue"], ["No such command 'requeue'. `coord tasks retry` does that."]),
        (
            ["tasks", "submit", "t", "--delay", "-5"],
            ["coord: --delay must be 0 or more, got -5"],
        ),
        (
            ["tasks", "submit", "t", "--strategy", "round"],
            [f"coord: --strategy 'round' is not one of {', '.join(STRATEGY_NAMES)}; did you mean 'round_robin'?"],
        ),
        (["tasks", "submit", "t", "--modifier", "ejecton=on"], ["--modifier 'ejecton' is", "did you mean 'ejection'?"]),
        (["tasks", "submit", "t", "--modifier", "ejection=1"], ["coord: --modifier ejection=1: expected on or off"]),
        (["strategy", "set", "foo"], ["coord: strategy 'foo' is not one of capability_based, consistent_hash"]),
        (
            ["tasks", "submit", "t", "--location", "city=Ulm"],
            ["coord: --location 'city' is not one of lat, lon, region, zone"],
        ),
        (
            ["tasks", "submit", "t", "--location", "lat=north"],
            ["coord: --location lat must be a number of degrees, got 'north'"],
        ),
        (["tasks", "submit", "t", "--agent-type", "llm"], ["--agent-type", "'worker'", "'general'"]),
        (["tasks", "submit", "t", "--wait-timeout", "5"], ["coord: --wait-timeout needs --wait"]),
        (
            ["tasks", "submit", "--file", "tasks.jsonl", "--wait-timeout", "5"],
            ["coord: --wait-timeout needs --wait"],
        ),
        (["tasks", "result", "t1", "--wait-timeout", "5"], ["coord: --wait-timeout needs --wait"]),
        (["up", "--repair-aof", "--redis-url", "redis://h"], ["coord: --repair-aof is for the embedded server; "]),
        (
            ["tasks", "submit", "t", "--deadline", "2020-01-01T00:00:00Z"],
            ["coord: --deadline must be in the future, got '2020-01-01T00:00:00Z'"],
        ),
        (["tasks", "submit", "t", "--deadline", "0s"], ["coord: --deadline must be in the future, got '0s'"]),
    ],
)
def test_a_wrong_word_is_named(coord: Coord, arguments: list[str], says: list[str]) -> None:
    """What is wrong and what is expected, on standard error; nothing is started."""
    result = coord(*arguments)
    assert result.code == 2
    assert [part for part in says if part not in result.err] == []
    assert result.out == ""


def test_a_mistyped_setting_is_answered_with_the_nearest(coord: Coord, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is started."""
    monkeypatch.setenv("COORD_REDIS_URI", "redis://h")
    result = coord("up")
    assert (result.code, result.err) == (2, "coord: COORD_REDIS_URI is not a setting; did you mean COORD_REDIS_URL?\n")


@pytest.mark.parametrize(
    ("state", "was_cancelled", "says"),
    [
        (TaskState.CANCELLED, False, "is cancelled"),
        (TaskState.CANCELLED, True, "was already cancelled"),
        (TaskState.RUNNING, False, "is running; its agent was asked to stop"),
        (TaskState.ASSIGNED, False, "is assigned; its agent was asked to stop"),
        (TaskState.COMPLETED, False, "is completed"),
        (None, False, "will be cancelled"),
    ],
)
def test_what_has_become_of_a_cancel(state: TaskState | None, says: str, *, was_cancelled: bool) -> None:
    """One of the things that it may have come to, not all of them: the record tells which."""
    assert tasks._outcome(state, was_cancelled=was_cancelled) == says


def test_nobody_answers_at_the_url(coord: Coord, monkeypatch: pytest.MonkeyPatch, unused_port: int) -> None:
    """It names the place, how long it waited, and what to do; a password is not shown."""
    monkeypatch.setattr(runner, "EXTERNAL_LIMIT_S", 0.1)
    result = coord("up", "--redis-url", f"redis://ann:secret@127.0.0.1:{unused_port}")
    assert result.code == 2
    assert f"no usable Redis at redis://ann:***@127.0.0.1:{unused_port} within 0.1 s" in result.err
    assert "secret" not in result.err
    assert "Start that server; without --redis-url and COORD_REDIS_URL, coord up starts one itself" in result.err
    assert result.err.count("\n") == 1


def test_a_file_where_the_folder_should_be(coord: Coord, tmp_path: Path) -> None:
    """It says which, why, and what to do."""
    (tmp_path / "file").write_text("")
    result = coord("up", "--data", str(tmp_path / "file"))
    assert result.code == 2
    why = "it is a file, not a folder; choose another folder with --data"
    assert result.err == f"coord: cannot keep data in {tmp_path / 'file'}: {why}\n"


def test_a_folder_full_of_something_else(coord: Coord, tmp_path: Path) -> None:
    """Nothing is put among files that are not coord's; an empty folder and one of coord's own are taken."""
    (tmp_path / "letter.txt").write_text("")
    result = coord("up", "--data", str(tmp_path))
    assert result.code == 2
    assert (
        result.err == f"coord: {tmp_path} is not empty and is not a data folder of coord; choose another with --data\n"
    )
    assert [one.name for one in tmp_path.iterdir()] == ["letter.txt"]
    for name, file in (("empty", None), ("ours", "server.log")):
        (tmp_path / name).mkdir()
        if file:
            (tmp_path / name / file).write_text("")
        refuse_foreign(tmp_path / name)
    refuse_foreign(tmp_path / "not-there-yet")


def test_a_folder_in_use(coord: Coord, tmp_path: Path) -> None:
    """One `coord up` has a folder at a time; the other is named."""
    claim = FolderLock(tmp_path / "data")
    result = coord("up", "--data", str(tmp_path / "data"))
    assert result.code == 2
    assert f"another coord up (pid {os.getpid()}) uses {tmp_path / 'data'}" in result.err
    claim.release()


def test_an_endpoint_file_that_cannot_be_written(coord: Coord, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The server that was started meanwhile is ended again."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COORD_ENDPOINT_FILE", str(tmp_path / "file" / "endpoint.json"))
    result = coord("up", "--data", str(tmp_path / "data"))
    assert result.code == 2
    assert "cannot write the endpoint file" in result.err
    assert "COORD_ENDPOINT_FILE" in result.err
    assert json.loads((tmp_path / "data" / "up.json").read_text())["server_pid"] is None


def announced_by_another(path: Path, data_dir: Path) -> int:
    """An endpoint file as a living process that is not this one has written it; its pid."""
    write_endpoint(path, "redis://127.0.0.1:1/0", data_dir, "coord")
    other = psutil.Process(os.getppid())
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"pid": other.pid, "started": other.create_time()}))
    return other.pid


def test_a_second_one_is_not_started_unannounced(coord: Coord, tmp_path: Path) -> None:
    """Clients follow one file, so a second `coord up` needs a file of its own; the first one's stays."""
    path = Settings().endpoint_path
    pid = announced_by_another(path, tmp_path / "data")
    before = path.read_text()
    result = coord("up", "--data", str(tmp_path / "other"))
    assert result.code == 2
    assert (
        f"another coord up, or scripts/run (pid {pid}, Redis at redis://127.0.0.1:1/0), uses the endpoint file {path}"
        in result.err
    )
    assert "COORD_ENDPOINT_FILE=/path/to/file coord up" in result.err
    assert path.read_text() == before
    assert f"(pid {pid}) uses {tmp_path / 'data'}" in coord("up", "--data", str(tmp_path / "data")).err


def test_a_folder_that_was_claimed_can_be_claimed_again(tmp_path: Path) -> None:
    """The claim goes with its holder, and remembers the server that it started."""
    first = FolderLock(tmp_path / "data")
    with pytest.raises(DataFolderInUse):
        FolderLock(tmp_path / "data")
    first.record(4711)
    first.release()
    second = FolderLock(tmp_path / "data")
    assert second.earlier_server == 4711
    second.release()


def test_the_default_folder_is_the_user_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same from wherever the command is typed."""
    monkeypatch.setenv("XDG_STATE_HOME", "/home/ann/state")
    assert default_data_dir() == Path("/home/ann/state/coord/data")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/ann")
    assert default_data_dir() == Path("/home/ann/.local/state/coord/data")
    monkeypatch.setattr(Path, "expanduser", _no_home)
    with pytest.raises(ConfigError, match="--data"):
        default_data_dir()


def _no_home(_path: Path) -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_workers_get_these_settings_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker reads COORD_*: it must find what this command decided, not what stood in the environment."""
    monkeypatch.setenv("COORD_NAMESPACE", "outside")
    monkeypatch.setenv("AITBC_REDIS_URL", "redis://outside")
    monkeypatch.setenv("KEPT", "yes")
    environ = programs.child_environ(Settings(redis_url="redis://inside", batch=7))
    assert {name for name in environ if name.startswith(("COORD_", "AITBC_"))} == {"COORD_REDIS_URL", "COORD_BATCH"}
    assert (environ["COORD_REDIS_URL"], environ["KEPT"]) == ("redis://inside", "yes")


def test_workers_names_are_their_own() -> None:
    """Two `coord up` on one Redis give no two workers one name: a worker takes up what its name has pending."""
    counts = {"registry": 1, "distributor": 2}
    first, second = (programs.worker_programs(Settings(), counts) for _ in range(2))
    assert [program.name.rpartition("-")[0] for program in first] == ["registry-1", "distributor-1", "distributor-2"]
    assert not {program.name for program in first} & {program.name for program in second}
    assert all("--watch-stdin" in program.command for program in first)


def test_the_help_tells_of_each_argument_in_paragraphs(coord: Coord) -> None:
    """What an argument is stands beside it; a paragraph is as wide as the terminal."""
    text = coord("dead", "replay", "--help").out
    assert "Ids of dead letters, see `coord dead list`." in text
    assert "a task with new attempts, a message as if sent now, an entry in its stream." in " ".join(text.split())


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (
            "specs[0]: requirements.agent_id must be 1 to 128 characters of A-Z a-z 0-9 . _ @ -, got 'x y'",
            "--agent must be 1 to 128 characters of A-Z a-z 0-9 . _ @ -, got 'x y'",
        ),
        ("specs[0]: requirements.tags[1] must not be empty, got ''", "--tag must not be empty, got ''"),
        ("specs[0]: requirements.labels.zone must be text, got 1", "--label must be text, got 1"),
        ("retry.max_attempts must be 1000 or less, got 5000", "--max-attempts must be 1000 or less, got 5000"),
        ("specs[0]: location.lat must be 90 or less, got 91.0", "--location lat must be 90 or less, got 91.0"),
        ("affinity_key must not be empty, got ''", "--affinity-key must not be empty, got ''"),
        ("expected_ms must be above 0, got 0", "--expected-ms must be above 0, got 0"),
        ("specs[0]: task_id must be 1 to 128 characters", "--id must be 1 to 128 characters"),
        ("specs[0]: give delay or run_at, not both", "give delay or run_at, not both"),
        ("capabilities: expected a list", "capabilities: expected a list"),
    ],
)
def test_an_error_of_a_field_names_its_option(message: str, error: str) -> None:
    """As the user typed it, without its name in a fact."""
    assert submit.option_error(message) == error


@pytest.mark.parametrize("arguments", [["task"], ["tasks", "lst"]])
def test_a_mistyped_command_is_suggested_once(coord: Coord, arguments: list[str]) -> None:
    """Click and Typer have a suggestion each."""
    assert coord(*arguments).err.count("Did you mean") == 1
