"""``coord messages`` and ``coord events`` on a cell at work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import msgspec
import pytest

from coord.client.broadcasts import BroadcastReceipt
from coord.client.receipts import Receipt
from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.errors import AgentNotFound
from coord.models.agents import AgentChange, AgentType
from coord.models.events import Event
from coord.models.facts import AgentRegistered
from coord.models.messages import Conversation, MessageRecord, MessageStatus
from coord.streams import Append
from tests.processes import started
from tests.system.live_cell import CommandResult, LiveCell, command_runner, live_cell

#: typer 0.21 imports names from click that click 8.5 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in Click 9.0:DeprecationWarning")

Coord = Callable[..., CommandResult]


@pytest.fixture(scope="module")
def live(server: EmbeddedServer) -> Iterator[LiveCell]:
    """One cell for all tests of this file."""
    with live_cell(server.url, Settings(namespace="clihappenings")) as cell:
        yield cell


@pytest.fixture
def coord(live: LiveCell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Coord:
    """Runs ``coord`` on the cell."""
    return command_runner(live, monkeypatch, capsys)


def messages_in(result: CommandResult) -> list[MessageRecord]:
    """The messages of a list that a command printed as JSON."""
    return msgspec.convert(msgspec.json.decode(result.out)["items"], list[MessageRecord])


def events_in(result: CommandResult) -> list[Event]:
    """The events that a command printed as JSON, one a line."""
    decoder = msgspec.json.Decoder(Event)
    return [decoder.decode(line) for line in result.out.splitlines()]


def test_a_message_is_sent_listed_and_shown(coord: Coord) -> None:
    """Its id alone is printed; with --json the receipt, the page, the record."""
    result = coord(
        "messages", "send", "cli-agent", '{"text": "hi"}', "--id", "m1", "--sender", "ops", "--priority", "high",
        "--ttl", "60", "--correlation-id", "c1", "--reply-to", "m0",
    )  # fmt: skip
    assert result == CommandResult(0, "m1\n", "")
    receipt = msgspec.json.decode(coord("messages", "send", "cli-agent", "--id", "m2", "--json").out, type=Receipt)
    assert (receipt.message_id, receipt.receiver_id) == ("m2", "cli-agent")

    found = messages_in(coord("messages", "list", "--agent", "ops", "--json"))
    assert [(one.message_id, one.payload) for one in found] == [("m1", None)]
    assert found[0].status in {MessageStatus.DELIVERED, MessageStatus.READ}
    rows = coord("messages", "list", "--limit", "1")
    assert rows.out.splitlines()[1].split()[0] == "m2"
    following = coord("messages", "list", "--cursor", rows.err.split()[-1]).out
    assert following.splitlines()[1].split()[:5] == ["m1", "direct", "high", "ops", "cli-agent"]

    record = msgspec.json.decode(coord("messages", "show", "m1", "--json").out, type=MessageRecord)
    assert (record.payload, record.expires_at - record.sent_at) == ({"text": "hi"}, 60_000)
    shown = dict(line.split(maxsplit=1) for line in coord("messages", "show", "m1").out.splitlines())
    assert (shown["from"], shown["protocol"], shown["payload"]) == ("ops", "direct", '{"text":"hi"}')
    assert shown["status"] in {"delivered", "read"}


def test_links_are_added_listed_and_removed(coord: Coord, live: LiveCell) -> None:
    """Between two agents, and to a master; messages along them pass, and others are refused with the next step."""
    live.do(register(live, "cli-lead"))
    refused = coord("messages", "send", "cli-agent", "--sender", "cli-lead", "--protocol", "peer_to_peer")
    assert (refused.code, refused.out) == (1, "")
    assert "are not linked; request a link first" in refused.err
    assert coord("links", "add", "cli-agent", "cli-lead") == CommandResult(0, "cli-agent and cli-lead: linked\n", "")
    assert coord("links", "set-master", "cli-agent", "cli-lead").out == "cli-agent: master cli-lead\n"
    for receiver, protocol in (("cli-agent", "peer_to_peer"), ("subordinates", "hierarchical")):
        options = ("--sender", "cli-lead", "--protocol", protocol, "--id", protocol)
        assert coord("messages", "send", receiver, *options) == CommandResult(0, f"{protocol}\n", "")
    recipients = msgspec.json.decode(coord("messages", "show", "hierarchical", "--json").out)["recipients"]
    assert [one["agent_id"] for one in recipients] == ["cli-agent"]

    rows = [line.split()[:3] for line in coord("links", "list", "--agent", "cli-agent").out.splitlines()]
    assert rows == [["agent", "other", "is"], ["cli-agent", "cli-lead", "linked"], ["cli-agent", "cli-lead", "master"]]
    shown = msgspec.json.decode(coord("agents", "show", "cli-lead", "--json").out)
    assert (shown["peers"], shown["subordinates"], shown["master"]) == (["cli-agent"], ["cli-agent"], None)
    assert coord("links", "set-master", "cli-lead", "cli-agent").code == 1

    assert coord("links", "remove", "cli-agent", "cli-lead").out == "cli-agent and cli-lead: not linked\n"
    assert coord("links", "clear-master", "cli-agent").out == "cli-agent: no master\n"
    assert coord("links", "list").out == "no links\n"
    assert coord("links", "add", "cli-agent", "cli-led").err.startswith(
        "coord: Agent 'cli-led' not found, did you mean"
    )


async def register(live: LiveCell, agent_id: str) -> None:
    """Register an agent without a process, and wait for its record."""
    connection = live.client.connection
    fact = AgentRegistered(agent_id, AgentType.WORKER)
    answered = await connection.request(Append("in:registry", fact, live.client.caller), 20, "registry")
    assert answered.answer.ok


def test_a_broadcast_is_sent_and_its_recipients_are_listed(coord: Coord) -> None:
    """Its id is printed, and the number of recipients beside it; then the outcome of each of them."""
    sent = ("--id", "b1", "--sender", "ops", "--priority", "high", "--capability", "echo")
    result = coord("messages", "broadcast", '{"text": "hi"}', *sent)
    assert (result.code, result.out, result.err) == (0, "b1\n", "recipients: 1\n")
    result = coord("messages", "broadcast", "--id", "b2", "--tag", "none", "--json")
    receipt = msgspec.json.decode(result.out, type=BroadcastReceipt)
    assert (receipt.message_id, receipt.recipients, receipt.delivered) == ("b2", 0, 0)

    shown = dict(line.split(maxsplit=1) for line in coord("messages", "show", "b1").out.splitlines())
    assert (shown["type"], shown["status"], shown["to"]) == ("broadcast", "delivered", "1 agents (1 delivered)")
    (row,) = coord("messages", "recipients", "b1").out.splitlines()[1:]
    assert row.split()[:1] == ["cli-agent"]
    (item,) = msgspec.json.decode(coord("messages", "recipients", "b1", "--json").out)["items"]
    assert item["status"] in {"delivered", "read"}
    assert coord("messages", "recipients", "b2").code == 0


def test_a_message_that_cannot_be_delivered(coord: Coord, live: LiveCell) -> None:
    """The command does not send it; the record of one that a program has sent says why it is dead."""
    result = coord("messages", "send", "nobody", "--id", "lost")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("coord: Agent 'nobody' not found; `coord agents list`")
    assert coord("messages", "show", "lost").code == 1
    with pytest.raises(AgentNotFound):
        live.do(live.client.send("nobody", 1, message_id="lost"))
    found = messages_in(coord("messages", "list", "--status", "dead", "--json"))
    assert ("lost", "Agent 'nobody' not found") in [(one.message_id, one.reason) for one in found]


def test_a_conversation_is_traced(coord: Coord) -> None:
    """As a tree, as a diagram, and as JSON."""
    coord("messages", "send", "cli-agent", "1", "--id", "q1", "--sender", "ann", "--correlation-id", "talk-1")
    coord("messages", "send", "cli-agent", "2", "--id", "q2", "--sender", "bob", "--reply-to", "q1")
    lines = coord("messages", "trace", "talk-1").out.splitlines()
    assert lines[0] == "conversation talk-1, 2 messages"
    assert lines[1].startswith("└─ ann > cli-agent  direct  ")
    assert lines[2].startswith("   └─ bob > cli-agent  direct, reply  ")
    assert coord("messages", "trace", "q2", "--mermaid").out.splitlines()[-1] == "    p3-->>p2: direct, reply"
    found = msgspec.json.decode(coord("messages", "trace", "talk-1", "--json").out, type=Conversation)
    assert [one.message_id for one in found.messages] == ["q1", "q2"]


def test_an_agent_is_pinged(coord: Coord, live: LiveCell) -> None:
    """It has no handler for that; an id that no agent has leaves no dead letter."""
    result = coord("agents", "ping", "cli-agent", "--timeout", "20s")
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("cli-agent replied in ")
    shown = coord("agents", "ping", "cli-agent", "--stats", "--timeout", "20s").out
    assert "uptime_s" in shown
    info = msgspec.json.decode(coord("agents", "ping", "cli-agent", "--info", "--json", "--timeout", "20s").out)
    assert (info["op"], info["agent_id"]) == ("info", "cli-agent")
    before = live.do(live.client.count_dead_letters())
    assert coord("agents", "ping", "cli-agnt").err.startswith("coord: Agent 'cli-agnt' not found, did you mean")
    assert live.do(live.client.count_dead_letters()) == before


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["messages", "trace", "ghost"], 1, "Conversation 'ghost' not found"),
        (["messages", "trace", "ghost", "--mermaid", "--json"], 2, "--mermaid and --json exclude each other"),
        (["agents", "ping", "cli-agent", "--info", "--stats"], 2, "--info and --stats exclude each other"),
        (["messages", "show", "ghost"], 1, "Message 'ghost' not found; `coord messages list`"),
        (["messages", "send", "a b", "{}"], 2, "receiver_id must be 1 to 128 characters"),
        (["messages", "send", "cli-agent", "{"], 2, "PAYLOAD is not JSON"),
        (["messages", "send", "cli-agent", "--ttl", "-1"], 2, "ttl"),
        (["messages", "send", "coordinator"], 2, "`coord agents list` finds agents"),
        (["messages", "send", "cli-agent", "--sender", "coordinator"], 2, "sender_id must not be 'coordinator'"),
        (["agents", "enrol", "subordinates"], 2, "agent_id must not be 'subordinates'"),
        (["messages", "list", "--cursor", "x"], 2, "leave it out"),
        (["messages", "recipients", "ghost"], 1, "Message 'ghost' not found"),
        (["messages", "recipients", "m1", "--cursor", "x"], 2, "leave it out"),
        (["messages", "broadcast", "--message-type", "direct"], 2, "--message-type 'direct' cannot be broadcast"),
        (
            ["messages", "broadcast", "--status", "inactive"],
            2,
            "--status: an inactive agent has left the cell; choose from active,",
        ),
        (["events", "--since", "yesterday"], 2, "--since must be a date and time"),
    ],
)
def test_a_slip_is_named(coord: Coord, arguments: list[str], code: int, says: str) -> None:
    """In one line, with the next step."""
    result = coord(*arguments)
    assert (result.code, result.out) == (code, "")
    assert says in result.err


def test_nobody_delivers_it(coord: Coord, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a router the message to an agent that is there waits: 3."""

    async def is_there(*_: object) -> None: ...

    monkeypatch.setattr("coord.cli.messages.check_receiver", is_there)
    result = coord("messages", "send", "someone", "--wait", "0.05", "--namespace", "deserted-messages")
    assert result.code == 3
    assert "the message waits for one" in result.err


def test_what_happened_to_a_task(coord: Coord) -> None:
    """In order, filtered by task; as text and as JSON; from an event's id on."""
    coord("tasks", "submit", "boom", "--id", "story", "--wait")
    asked = ("events", "--since", "0", "--no-follow", "--task", "story")
    output = events_in(coord(*asked, "--json"))
    assert [one.type for one in output] == ["task.queued", "task.assigned", "task.failed"]
    assert output[-1].fields["message"] == "by design"
    lines = coord(*asked).out.splitlines()
    assert [line.split()[2] for line in lines] == [one.type for one in output]
    assert 'message="by design"' in lines[-1]
    after = events_in(coord("events", "--since", output[-1].id, "--no-follow", "--task", "story", "--json"))
    assert after == []
    assert events_in(coord("events", "--since", "2h", "--no-follow", "--task", "story", "--json")) == output
    assert events_in(coord("events", "--no-follow", "--json")) == []


def test_events_are_filtered_by_type_and_agent(coord: Coord) -> None:
    """A type may have a star; an agent's are its own, its tasks' and its messages'."""
    coord("tasks", "submit", "echo", "--id", "seen", "--wait")
    coord("messages", "send", "cli-agent", "--id", "for-agent")
    asked = ("events", "--since", "0", "--no-follow", "--json")
    everything = events_in(coord(*asked))
    assert {one.log for one in everything} >= {"agents", "tasks", "messages"}
    assert [one.id for one in everything] == sorted((one.id for one in everything), key=_order)
    some = events_in(coord(*asked, "--type", "task.comp*", "--type", "agent.registered"))
    assert {one.type for one in some} == {"task.completed", "agent.registered"}
    of_agent = events_in(coord(*asked, "--agent", "cli-agent"))
    assert {"agent.registered", "task.assigned", "message.delivered"} <= {one.type for one in of_agent}
    assert events_in(coord(*asked, "--agent", "ghost")) == []


def _order(entry_id: str) -> tuple[int, int]:
    ms, _, number = entry_id.partition("-")
    return int(ms), int(number)


def test_following_until_ctrl_c(coord: Coord, live: LiveCell) -> None:
    """Events come as they happen, a line each; Ctrl-C ends it with 130 and no complaint."""
    command = [sys.executable, "-m", "coord.cli", "events", "--since", "0", "--type", "task.completed", "--json"]
    coord("tasks", "submit", "echo", "--id", "before", "--wait")
    with started(
        command, env=os.environ | live.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while "before" not in (line := process.stdout.readline()):
            assert line, "the command has ended"
        coord("tasks", "submit", "echo", "--id", "meanwhile", "--wait")
        assert msgspec.json.decode(process.stdout.readline(), type=Event).fields["task_id"] == "meanwhile"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == ""


def test_watching_agents_until_ctrl_c(coord: Coord, live: LiveCell) -> None:
    """All agents first, then each change, one JSON object a line; from a cursor on without a snapshot."""
    command = [sys.executable, "-m", "coord.cli", "agents", "watch", "--json"]
    with started(
        command, env=os.environ | live.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        kinds, agent_id = [], ""
        while (change := msgspec.json.decode(process.stdout.readline(), type=AgentChange)).type != "ready":
            kinds.append(change.type)
            assert change.agent is not None
            agent_id = change.agent_id
        assert set(kinds) == {"snapshot"}
        coord("agents", "maintenance", agent_id)
        changed = msgspec.json.decode(process.stdout.readline(), type=AgentChange)
        assert (changed.type, changed.agent_id) == ("agent.changed", agent_id)
        coord("agents", "resume", agent_id)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == ""
    output = coord("agents", "watch", "--since", "yesterday")
    assert output.code == 2
    assert "does not come from a watch of agents" in output.err
