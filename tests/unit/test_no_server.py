"""No Redis server: a command says it once, at once where it is certain; processes that run on wait and say so."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coord import Agent, connection
from coord.cli import main
from coord.config import Settings
from coord.connection import await_server, connect_worker, wait_for_server
from coord.endpoint import write_endpoint
from coord.errors import ServerUnavailable
from coord.gateway.backend import Backend
from tests.waiting import wait_until
from workers.__main__ import work

#: typer 0.21 imports names from click that click 8.5 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in Click 9.0:DeprecationWarning")


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes say after a moment that they wait, and again after a moment."""
    monkeypatch.setattr(connection, "QUIET_S", 0.02)
    monkeypatch.setattr(connection, "NOTICE_S", 0.05)
    monkeypatch.setattr(connection, "ROUND_S", 0.05)
    monkeypatch.setattr(connection.WaitNotice, "_logged_at", -1e9)


@pytest.fixture
def coord(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[object, str]]:
    """Runs ``coord`` in this process; returns its exit code and standard error."""

    def run(*arguments: str) -> tuple[object, str]:
        monkeypatch.setattr("sys.argv", ["coord", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert out == ""
        return ended.value.code, err

    return run


@pytest.mark.parametrize(
    "command", ["tasks list", "ps", "fsck", "agents list", "tasks submit echo", "messages send a 1", "events"]
)
def test_a_command_that_is_refused_on_this_machine_fails_at_once(
    coord: Callable[..., tuple[object, str]], unused_port: int, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """One line: nothing listens there, so there is nothing to wait for."""
    monkeypatch.setattr("coord.cli.session.REACH_S", 600.0)
    for host in ("127.0.0.1", "localhost"):
        url = f"redis://{host}:{unused_port}"
        advice = "Start one with `coord up`, or set COORD_REDIS_URL to a running server"
        error = f"coord: no usable Redis at {url}: nothing listens on this port. {advice}\n"
        assert coord(*command.split(), "--redis-url", url) == (2, error)


def test_a_host_with_several_addresses_of_this_machine_is_not_waited_for(
    coord: Callable[..., tuple[object, str]], unused_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as ``localhost`` with 127.0.0.1 and ::1: nothing listens if every address refuses the connection."""
    monkeypatch.setattr("coord.cli.session.REACH_S", 600.0)
    addresses = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, unused_port)) for host in ("127.0.0.1", "127.0.0.2")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
    code, err = coord("tasks", "list", "--redis-url", f"redis://localhost:{unused_port}")
    assert code == 2
    assert err.startswith(f"coord: no usable Redis at redis://localhost:{unused_port}: nothing listens on this port. ")


def test_a_socket_that_is_not_there_is_not_waited_for(
    coord: Callable[..., tuple[object, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path is of this machine too."""
    monkeypatch.setattr("coord.cli.session.REACH_S", 600.0)
    url = f"unix://{tmp_path}/none.sock"
    code, err = coord("tasks", "list", "--redis-url", url)
    assert code == 2
    assert err.startswith(f"coord: no usable Redis at {url}: there is no such socket. Start one with `coord up`")
    assert err.count("\n") == 1


def test_a_command_that_waits_says_so(
    coord: Callable[..., tuple[object, str]], silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What for and for how long; then one error."""
    monkeypatch.setattr("coord.cli.session.SILENCE_S", 0.05)
    monkeypatch.setattr("coord.cli.session.REACH_S", 0.4)
    url = f"redis://127.0.0.1:{silent_port}"
    code, err = coord("tasks", "list", "--redis-url", url)
    waiting, error = err.splitlines()
    assert code == 2
    assert waiting == f"waiting up to 0.4 s for Redis at {url}"
    assert error.startswith(f"coord: no usable Redis at {url} within 0.4 s: ")


def test_an_error_of_a_command_is_there_once(
    coord: Callable[..., tuple[object, str]], unused_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command that waits for a server of another machine does not log the reason before its error has it."""
    monkeypatch.setattr(connection, "_is_loopback", lambda _url: False)
    monkeypatch.setattr(connection, "QUIET_S", 0.02)
    monkeypatch.setattr("coord.cli.session.SILENCE_S", 0.05)
    monkeypatch.setattr("coord.cli.session.REACH_S", 0.4)
    url = f"redis://127.0.0.1:{unused_port}"
    code, err = coord("tasks", "list", "--redis-url", url)
    waiting, error = err.splitlines()
    assert code == 2
    assert waiting == f"waiting up to 0.4 s for Redis at {url}"
    assert error.startswith(f"coord: no usable Redis at {url} within 0.4 s: ")


async def test_a_program_of_a_user_still_waits(unused_port: int) -> None:
    """Its server may start together with it."""
    url = f"redis://127.0.0.1:{unused_port}"
    async with connect_worker(url, Settings()) as redis:
        with pytest.raises(ServerUnavailable, match=r"within 0\.1 s"):
            await wait_for_server(redis, url, limit_s=0.1)


def lines(capsys: pytest.CaptureFixture[str], seen: list[str]) -> list[str]:
    """Return the lines about waiting that were logged up to now."""
    out, err = capsys.readouterr()
    seen += [line for line in (out + err).splitlines() if "redis.awaited" in line]
    return seen


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("process", ["worker", "agent", "gateway"])
async def test_a_process_waits_on_and_says_so_again(
    process: str, unused_port: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not end, and each line names the address, the reason and the next step."""
    settings = Settings(redis_url=f"redis://ann:hidden@127.0.0.1:{unused_port}")
    monkeypatch.setattr("coord.gateway.backend.OPEN_S", 0.02)
    backend = Backend(settings)
    agent = Agent("a", settings=settings)
    waiting: asyncio.Task[None] | None = None
    if process == "worker":
        waiting = asyncio.create_task(work("registry", "r", settings))
    elif process == "agent":
        waiting = asyncio.create_task(agent.serve())
    else:
        backend.open(lambda error: pytest.fail(str(error)))
    seen: list[str] = []
    await wait_until(lambda: len(lines(capsys, seen)) >= 3, "three lines", 20)
    assert waiting is None or not waiting.done()
    for line in seen:
        assert str(unused_port) in line
        assert "coord up" in line
        assert "hidden" not in line
    await backend.close()
    if waiting is not None:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


@pytest.mark.usefixtures("soon")
async def test_agents_of_one_process_say_it_once(
    unused_port: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not once for each of them."""
    monkeypatch.setattr(connection, "NOTICE_S", 0.5)
    settings = Settings(redis_url=f"redis://127.0.0.1:{unused_port}")
    waiting = [asyncio.create_task(Agent(f"a{n}", settings=settings).serve()) for n in range(5)]
    seen: list[str] = []
    await wait_until(lambda: len(lines(capsys, seen)) >= 2, "two lines", 20)
    assert len(seen) < 5
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("place", ["", "redis://127.0.0.1:1/0"])
def test_a_reason_without_a_text_is_named(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A timeout has no text; the address is named also if only the error has it."""
    error = ServerUnavailable("no usable Redis at redis://127.0.0.1:1/0 within 1 s: TimeoutError")
    error.__cause__ = TimeoutError()
    notice = connection.WaitNotice()
    notice._began -= 60
    notice.log(error, place)
    (line,) = lines(capsys, [])
    assert "redis://127.0.0.1:1/0" in line
    assert "TimeoutError" in line


@pytest.mark.usefixtures("soon")
async def test_an_address_that_is_published_later_is_found(
    tmp_path: Path, unused_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was started before ``coord up`` does not wait at another address for ever."""
    monkeypatch.setattr(connection, "DEFAULT_URL", f"redis://127.0.0.1:{unused_port}")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            greeting = b"%1\r\n+proto\r\n:3\r\n" if b"HELLO" in data else b""
            writer.write(greeting + (b"+PONG\r\n" if b"PING" in data else b""))
        writer.close()

    settings = Settings(endpoint_file=str(tmp_path / "endpoint.json"))
    waiting = asyncio.create_task(await_server(settings))
    server = await asyncio.start_unix_server(answer, tmp_path / "redis.sock")
    url = f"unix://{tmp_path}/redis.sock"
    write_endpoint(tmp_path / "endpoint.json", url, tmp_path, "staging")
    assert json.loads((tmp_path / "endpoint.json").read_text())["namespace"] == "staging"
    place, found = await asyncio.wait_for(waiting, 20)
    assert (place, found.namespace) == (url, "staging")
    server.close()
    await server.wait_closed()
