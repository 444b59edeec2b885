"""Commands that take several ids, and errors with --json; no server is needed."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import typer

from coord.cli import main, session
from coord.cli.exit_codes import ExitCode
from coord.cli.parse import wants_json
from coord.cli.session import Acted, act_on_each
from coord.errors import IdInvalid, ServerUnavailable, TaskNotFound

#: typer 0.21 imports names from click that click 8.5 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in Click 9.0:DeprecationWarning")


async def act(client: Any, task_id: str) -> Acted:
    """Refuses some ids."""
    if task_id == "none":
        raise TaskNotFound("Task 'none' not found")
    if task_id == "a b":
        raise IdInvalid("task_id must be other characters")
    if task_id == "down":
        raise ServerUnavailable("no Redis")
    return Acted({"task_id": task_id}, f"{task_id} is done", ExitCode.OPEN if task_id == "open" else ExitCode.OK)


def run(*ids: str, json: bool = False) -> int:
    """Act on these, without a client; the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "ask", lambda work, **_options: asyncio.run(work(None)))
        try:
            act_on_each(ids, act, id_field="task_id", json=json, redis_url=None, namespace=None)
        except typer.Exit as ended:
            return ended.exit_code
        return 0


def test_one_that_is_refused_does_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    """Each has its line, once; the exit code is that of the first error."""
    assert run("x", "none", "a b", "x", "y") == 1
    out, err = capsys.readouterr()
    assert out == "x is done\ny is done\n"
    first, second = err.splitlines()
    assert first.startswith("coord: Task 'none' not found; `coord tasks list`")
    assert second == "coord: task_id must be other characters"
    assert run("open", "y") == ExitCode.OPEN


def test_with_json_each_has_its_item(capsys: pytest.CaptureFixture[str]) -> None:
    """An error is the item of its id; nothing is on standard error."""
    assert run("x", "none", json=True) == 1
    out, err = capsys.readouterr()
    assert err == ""
    done, refused = json.loads(out)["items"]
    assert done == {"task_id": "x"}
    assert (refused["task_id"], refused["error"]["code"]) == ("none", "task_not_found")


def test_a_single_one_is_an_error_like_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    """It is raised, and nothing is printed."""
    with pytest.raises(TaskNotFound):
        run("none", "none", json=True)
    assert capsys.readouterr() == ("", "")


def test_without_a_server_the_rest_is_not_tried(capsys: pytest.CaptureFixture[str]) -> None:
    """What was done is printed."""
    with pytest.raises(ServerUnavailable):
        run("x", "down", "y", json=True)
    assert json.loads(capsys.readouterr().out)["items"] == [{"task_id": "x"}]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["tasks", "lst", "--json"], "usage_error", "No such command 'lst'"),
        (["tasks", "list", "--json", "--state", "over"], "usage_error", "'over' is not one of 'scheduled'"),
        (["tasks", "result", "t", "--json", "--wait-timeout", "5m"], "config_invalid", "--wait-timeout needs --wait"),
        (["tasks", "show", "t", "--json", "--namespace", "a b"], "config_invalid", "--namespace 'a b'"),
    ],
)
def test_an_error_with_json_is_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], code: str, message: str
) -> None:
    """One object on standard error for each kind of error; the exit code is the same as without ``--json``."""
    monkeypatch.setattr("sys.argv", ["coord", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    error = json.loads(err)["error"]
    assert error["code"] == code
    assert message in error["message"]


def test_the_json_of_another_program_is_its_own() -> None:
    """What comes after -- is no option of coord."""
    assert wants_json(["ps", "--json"])
    assert not wants_json(["agent", "--capability", "c", "--", "program", "--json"])
