"""``coord fsck``, the command: what it prints, and its exit code."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import redis as sync_redis

from coord.cli import main
from coord.embedded import EmbeddedServer
from coord.keys import Keys

#: typer 0.21 imports names from click that click 8.5 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in Click 9.0:DeprecationWarning")


def _fsck(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["coord", "fsck", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_a_sound_cell_ends_with_0(
    server: EmbeddedServer, namespace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says how much was looked at."""
    with sync_redis.Redis.from_url(server.url) as client:
        client.xgroup_create(Keys(namespace).of("in:registry"), "registry", mkstream=True)  # as a worker does
    assert _fsck(monkeypatch, "--redis-url", server.url, "--namespace", namespace) == 0
    assert capsys.readouterr().out == f"{namespace}: 0 tasks, no findings\n"


def test_findings_are_a_line_each_or_one_json_object_and_end_with_1(
    server: EmbeddedServer, namespace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same for people and for programs."""
    with sync_redis.Redis.from_url(server.url) as client:
        client.zadd(Keys(namespace).of("alarms"), {"t1": 1})
    asked = ("--redis-url", server.url, "--namespace", namespace)
    assert _fsck(monkeypatch, *asked) == 1
    line, summary = capsys.readouterr().out.splitlines()
    assert line.split(maxsplit=1) == ["alarm.orphan", "alarms: t1 is there and has nothing due"]
    assert summary == f"{namespace}: 0 tasks, 1 finding"
    assert _fsck(monkeypatch, *asked, "--json") == 1
    report = msgspec.json.decode(capsys.readouterr().out)
    wanted = {"code": "alarm.orphan", "key": "alarms", "message": "t1 is there and has nothing due"}
    assert report == {"findings": [wanted], "tasks": 0, "dropped": 0, "compared": True}


def test_a_server_that_cannot_be_reached_ends_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not the same as a cell in which something is wrong."""
    monkeypatch.setattr("coord.cli.session.REACH_S", 0.05)
    assert _fsck(monkeypatch, "--redis-url", f"unix://{tmp_path}/none.sock") == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "no usable Redis at" in output.err
