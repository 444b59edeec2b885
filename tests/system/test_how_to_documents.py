"""The commands of docs/how-to on live cells: troubleshoot.md, secure.md, migrate.md."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError

from coord.config import Settings
from coord.embedded import EmbeddedServer
from tests.repo.code_blocks import blocks_run_by
from tests.repo.documents import ROOT, typed
from tests.system.gateway_cell import Gateway, gateway_cell
from tests.system.live_cell import LiveCell, command_runner, live_cell
from tests.waiting import wait_until

#: typer 0.21 imports names from click that click 8.5 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in Click 9.0:DeprecationWarning")

HERE = "tests/system/test_how_to_documents.py"
PAGES = ROOT / "docs" / "how-to"


def missing(program: str) -> bool:
    """Return True if a program is missing here; in CI it must not be."""
    return not shutil.which(program) and not os.environ.get("CI")


def lines(page: str, test: str) -> list[str]:
    """What is typed in the blocks of a page that a test runs."""
    return [line for block in blocks_run_by(PAGES / page, f"{HERE}::{test}") for line in typed(block)]


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A server whose users these tests may change; it keeps them in a file."""
    folder = tmp_path_factory.mktemp("how-to")
    (folder / "users.acl").touch()
    server = EmbeddedServer.start(folder, extra=("--appendonly", "no", "--aclfile", str(folder / "users.acl")))
    yield server
    server.stop(force=True)


@pytest.fixture(scope="module")
def live(own_server: EmbeddedServer) -> Iterator[LiveCell]:
    """A cell at work."""
    with live_cell(own_server.url, Settings(namespace="howto")) as cell:
        cell.do(wait_until(cell.has_workers, "the workers are present", 60))
        yield cell


def test_the_commands_for_trouble(
    live: LiveCell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each works on a healthy cell, and finds nothing."""
    coord = command_runner(live, monkeypatch, capsys)
    for line in lines("troubleshoot.md", "test_the_commands_for_trouble"):
        code, out, err = coord(*shlex.split(line, comments=True)[1:])
        # The server of these tests keeps nothing, and the doctor says so.
        assert code == line.startswith("coord doctor"), f"{line}\n{out}{err}"


def test_a_key_of_the_page_is_accepted(
    live: LiveCell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command prints a key; its record has the role."""
    coord = command_runner(live, monkeypatch, capsys)
    (line,) = lines("secure.md", "test_a_key_of_the_page_is_accepted")
    made = coord(*shlex.split(line)[1:], "--json")
    assert made.code == 0, made.err
    assert json.loads(made.out)["key"].startswith("coord_key_")
    (record,) = json.loads(coord("keys", "list", "--json").out)["items"]
    assert (record["role"], record["name"]) == ("admin", "me")


@pytest.mark.skipif(missing("redis-cli"), reason="no redis-cli on PATH; apt-get install redis-tools")
def test_the_users_of_the_page_work(
    own_server: EmbeddedServer, live: LiveCell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each makes a user that can log in; then an administrator disables the default user and saves all users."""
    coord = command_runner(live, monkeypatch, capsys)
    socket = live.url.removeprefix("unix://")
    names: list[str] = []
    commands = lines("secure.md", "test_the_users_of_the_page_work")
    for line in (one for one in commands if one.startswith("coord ")):
        made = coord(*shlex.split(line)[1:], "--json")
        assert made.code == 0, made.err
        user = json.loads(made.out)
        names.append(user["user"])
        with Redis(unix_socket_path=socket, username=user["user"], password=user["password"]) as redis:
            assert redis.ping()
    before = Redis(unix_socket_path=socket)
    before.ping()  # it stays logged in
    try:
        for line in (one for one in commands if one.startswith("redis-cli ")):
            words = ["redis-cli", "-e", "-s", socket, *shlex.split(line)[1:]]
            done = subprocess.run(words, input="PASSWORD\n", capture_output=True, text=True, check=False)
            assert done.stdout.splitlines()[-1:] == ["OK"], (line, done)
        with pytest.raises(AuthenticationError):
            Redis(unix_socket_path=socket).ping()
        kept = (own_server.data_dir / "users.acl").read_text()
        assert [name for name in (*names, "admin") if f"user {name} " not in kept] == []
        assert re.search(r"^user default off", kept, re.MULTILINE)
    finally:
        before.execute_command("ACL", "SETUSER", "default", "on")
        before.execute_command("ACL", "DELUSER", "admin")
        before.close()


@pytest.fixture(scope="module")
def gateway(server: EmbeddedServer) -> Iterator[Gateway]:
    """A cell with a gateway."""
    with gateway_cell(server.url, "migration") as running:
        yield running


@pytest.mark.skipif(missing("curl"), reason="no curl on PATH; apt-get install curl")
def test_the_calls_of_a_migration(gateway: Gateway) -> None:
    """A typical caller of the predecessor gets 200 for each."""
    calls = lines("migrate.md", "test_the_calls_of_a_migration")
    assert len(calls) == 9
    environ = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for line in calls:
        command = [*shlex.split(line.replace("localhost:9002", f"127.0.0.1:{gateway.port}")), "-w", "\n%{http_code}"]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
        body, _, status = done.stdout.rpartition("\n")
        assert status == "200", (line, body)
        assert json.loads(body)["status"] in {"success", "healthy"}
    assert gateway.success("GET", "/load-balancer/strategy")["strategy"] == "round_robin"
    assert gateway.success("GET", "/tasks/m-1")["task"]["state"] == "queued"
