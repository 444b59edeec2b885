"""A mistyped namespace, receiver or strategy: the command says so, and nothing is left in the cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import pytest

from coord import Client
from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.errors import ConfigError, FactInvalid
from tests.system.live_cell import CommandResult, LiveCell, command_runner, live_cell

#: typer 0.21 imports names from click that click 8.5 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in Click 9.0:DeprecationWarning")

#: The agent of the cell.
AGENT = "cli-agent"

Coord = Callable[..., CommandResult]
EMPTY = "namespace 'no-such-cell' is empty: no worker has started in it and nothing was submitted to it"


@pytest.fixture(scope="module")
def live(server: EmbeddedServer) -> Iterator[LiveCell]:
    """One cell for all tests of this file."""
    with live_cell(server.url, Settings(namespace="mistyped")) as cell:
        yield cell


@pytest.fixture
def coord(live: LiveCell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Coord:
    """Runs ``coord`` on the cell."""
    return command_runner(live, monkeypatch, capsys)


def dead_letters(live: LiveCell) -> dict[str, int]:
    """Return the number of dead letters of each kind."""
    return live.do(live.client.count_dead_letters())


@pytest.mark.parametrize(
    "command", ["tasks list", "agents list", "messages list", "queues", "dead list", "tasks show t1"]
)
def test_an_empty_namespace_is_called_empty(coord: Coord, command: str) -> None:
    """Beside the data, so that a program reads what it did before."""
    output = coord(*command.split(), "--namespace", "no-such-cell")
    assert output.err.startswith(EMPTY)
    assert "check --namespace" in output.err
    assert EMPTY not in coord(*command.split()).err


def test_an_empty_namespace_is_not_consistent(coord: Coord) -> None:
    """A check that looked at nothing has not found everything well."""
    output = coord("fsck", "--namespace", "no-such-cell")
    assert (output.code, output.out) == (2, "")
    assert output.err.startswith(f"coord: nothing to check: {EMPTY}")
    assert output.err.count("is empty") == 1
    assert coord("fsck").code == 0


def test_a_mistyped_receiver_leaves_no_dead_letter(coord: Coord, live: LiveCell) -> None:
    """The nearest agent is suggested."""
    before = dead_letters(live)
    output = coord("messages", "send", f"{AGENT}x", "1")
    assert (output.code, output.out) == (1, "")
    assert output.err.startswith(f"coord: Agent '{AGENT}x' not found, did you mean '{AGENT}'?; ")
    assert coord("messages", "send", "who", "1").err.startswith("coord: Agent 'who' not found; ")
    assert dead_letters(live) == before
    assert coord("messages", "send", AGENT, "1").code == 0


def test_a_task_for_an_unknown_agent_waits_and_says_so(coord: Coord) -> None:
    """The agent may register later, so the task is submitted."""
    output = coord("tasks", "submit", "echo", "--agent", f"{AGENT}x", "--id", "for-nobody")
    assert (output.code, output.out) == (0, "for-nobody\n")
    assert output.err == f"no agent '{AGENT}x' is registered, did you mean '{AGENT}'?; the task waits for it\n"
    assert coord("tasks", "submit", "echo", "--agent", AGENT).err == ""


def test_a_mistyped_strategy_leaves_no_dead_letter(live: LiveCell) -> None:
    """Of a task, and of the cell; the SDK checks it before it appends anything."""
    client: Client = live.client
    before = dead_letters(live)
    with pytest.raises(FactInvalid, match="strategy 'best' is not one of capability_based, consistent_hash"):
        live.do(client.submit("echo", strategy="best"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"'ramdom' is not one of .*; did you mean 'random'"):
        live.do(client.admin.set_strategy("ramdom"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="strategy 'best' is not one of"):
        live.do(client.admin.set_setting("strategy", "best"))
    assert dead_letters(live) == before


def test_a_cancel_as_json_has_the_state(coord: Coord) -> None:
    """The same as the text: what has become of the task."""
    coord("tasks", "submit", "echo", "--id", "unwanted", "--delay", "1h")
    (item,) = msgspec.json.decode(coord("tasks", "cancel", "unwanted", "--json").out)["items"]
    assert item == {"task_id": "unwanted", "answer": "accepted", "state": "cancelled"}
