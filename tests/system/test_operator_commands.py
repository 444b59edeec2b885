"""`coord agents`, `coord dead`: looking at a live cell, and changing it, each with its JSON and its screen."""

from __future__ import annotations

import getpass
import re
import socket
from collections.abc import Callable, Iterator

import msgspec
import pytest

from coord import queries
from coord.api_key import id_of_key
from coord.embedded import EmbeddedServer
from coord.errors import CoordError
from coord.models.agents import AgentRecord, AgentStatus
from coord.models.dead_letters import DeadEntry, DeadLetter
from coord.models.ids import new_id
from coord.models.messages import MessageRecord
from coord.models.tasks import TaskRecord
from tests.living import LIMIT_S, CommandResult, Living, living, run_coord
from tests.waiting import wait_until

#: typer 0.21 imports names from click that click 8.5 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in Click 9.0:DeprecationWarning")

Coord = Callable[..., CommandResult]


@pytest.fixture(scope="module")
def lives(server: EmbeddedServer) -> Iterator[Living]:
    """One cell for all these tests, with one agent that can echo and one that cannot."""
    with living(server.url) as found:
        found.agent("echo-1", tags=["here"], labels={"zone": "a"}, capacity=3)
        found.agent("spare-1", agent_type="specialist", capabilities=["ocr"])
        yield found


@pytest.fixture
def coord(lives: Living, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Coord:
    """Runs a command on the cell."""
    return lambda *arguments: run_coord(capsys, monkeypatch, *arguments, *lives.options)


def failed_task(lives: Living, why: str = "no reason") -> str:
    """A task that has failed; its id."""

    async def fail() -> str:
        handle = await lives.client.submit("echo", {"fail": why})
        with pytest.raises(CoordError):
            await handle.result(timeout=LIMIT_S)
        return handle.task_id

    return lives.do(fail())


def dead_message(lives: Living) -> str:
    """A message to nobody; its id."""

    async def send() -> str:
        message_id = new_id()
        with pytest.raises(CoordError):
            await lives.client.send(f"nobody-{message_id}", {"n": 1}, sender_id="ann", message_id=message_id)
        return message_id

    return lives.do(send())


def buried_entry(lives: Living) -> str:
    """An entry that no worker can handle; its id in dead:in."""

    async def bury() -> str:
        stream = lives.cell.keys.tasks_in("low")
        command = ("XADD", stream, "*", "type", "task.submitted", "data", '{"task_id":7}')
        entry: bytes = await lives.cell.redis.execute_command(*command)

        async def buried() -> str:
            found = await queries.list_dead_entries(lives.cell.redis, lives.cell.keys, 100)
            entries = [await queries.get_dead_entry(lives.cell.redis, lives.cell.keys, one.id) for one in found]
            return next((one.entry_id for one in entries if one and one.id == entry.decode()), "")

        return await wait_until(buried, "it is buried", LIMIT_S)

    return lives.do(bury())


# Agents.


def test_agents_are_listed_and_chosen(coord: Coord) -> None:
    """As the records that they are; by status, type and what they can do."""
    found = msgspec.convert(coord("agents", "list", "--json").json["items"], list[AgentRecord])
    listed = sorted((one.agent_id, one.capacity, one.tags) for one in found)
    assert listed == [("echo-1", 3, ("here",)), ("spare-1", 8, ())]
    assert [one["agent_id"] for one in coord("agents", "list", "--type", "specialist", "--json").json["items"]] == [
        "spare-1"
    ]
    able = coord("agents", "list", "--capability", "echo", "--json").json["items"]
    assert sorted(one["agent_id"] for one in able) == ["echo-1", "spare-1"]
    both = ("--capability", "echo", "--capability", "ocr")
    assert [one["agent_id"] for one in coord("agents", "list", *both, "--json").json["items"]] == ["spare-1"]
    assert coord("agents", "list", "--status", "error", "--json").json == {"items": [], "next": None}


def test_the_screen_of_agents(coord: Coord) -> None:
    """A line each; a sentence for none."""
    header, *rows = coord("agents", "list").out.splitlines()
    assert " ".join(header.split()) == "agent type status health load capabilities tags last heartbeat"
    shown = sorted(row.split()[:3] for row in rows)  # the order is by health, which falls on a busy machine
    assert shown == [["echo-1", "worker", "active"], ["spare-1", "specialist", "active"]]
    assert coord("agents", "list", "--status", "error").out == "no agents\n"


def test_agents_are_found_by_everything_that_they_declare(coord: Coord) -> None:
    """Services, tags and labels too; pages continue with the command that the hint names."""
    chosen = ("--tag", "here", "--label", "zone=a", "--min-health", "0.01", "--type", "worker")
    assert [one["agent_id"] for one in coord("agents", "list", *chosen, "--json").json["items"]] == ["echo-1"]
    assert coord("agents", "list", "--service", "none", "--json").json == {"items": [], "next": None}
    first = coord("agents", "list", "--limit", "1")
    assert len(first.out.splitlines()) == 2
    begin, _, cursor = first.err.rstrip().rpartition(" ")
    assert begin.endswith("continue with: coord agents list --limit 1 --cursor")
    rest = coord("agents", "list", "--cursor", cursor, "--json").json
    assert rest["next"] is None
    assert {one["agent_id"] for one in rest["items"]} < {"echo-1", "spare-1", "nobody"}
    assert "0/3" in coord("agents", "list", "--tag", "here").out


def test_the_health_of_an_agent_is_explained(coord: Coord) -> None:
    """Its parts, and what lowers it."""
    assert coord("agents", "maintenance", "spare-1").out == "spare-1: maintenance\n"
    lines = dict(line.split(maxsplit=1) for line in coord("agents", "show", "spare-1").out.splitlines())
    assert re.fullmatch(
        r"0\.\d\d = freshness [01]\.\d\d x regularity [01]\.\d\d( - load 0\.\d)? - status maintenance 0\.2",
        lines["health"],
    )
    assert lines["status"] == "maintenance (by an operator; it reports active)"
    assert coord("agents", "maintenance", "--end", "spare-1").out == "spare-1: active\n"


def test_a_drain_is_waited_for(coord: Coord) -> None:
    """It shows what is left; without --wait a timeout makes no sense."""
    output = coord("agents", "drain", "spare-1", "nobody", "--wait", "--timeout", "30s")
    assert (output.code, output.out) == (1, "spare-1: draining\n")
    assert "spare-1: 0 tasks left" in output.err
    assert "Agent 'nobody' not found" in output.err
    coord("agents", "resume", "spare-1")
    output = coord("agents", "drain", "spare-1", "--timeout", "30s")
    assert (output.code, output.err) == (2, "coord: --timeout needs --wait\n")


def test_one_agent(coord: Coord) -> None:
    """All that is recorded, under names that a person reads."""
    assert coord("agents", "show", "echo-1", "--json").json["labels"] == {"zone": "a"}
    lines = dict(line.split(maxsplit=1) for line in coord("agents", "show", "echo-1").out.splitlines())
    assert (lines["agent"], lines["capabilities"], lines["labels"]) == ("echo-1", "echo", '{"zone":"a"}')


@pytest.mark.parametrize("command", ["show", "drain", "resume", "remove"])
def test_an_agent_that_is_not_there(coord: Coord, command: str) -> None:
    """The answer is no: exit code 1, and where to look."""
    output = coord("agents", command, "nobody")
    assert (output.code, output.out) == (1, "")
    assert output.err == "coord: Agent 'nobody' not found; `coord agents list` shows which there are\n"


def test_an_agent_is_drained_and_resumed(lives: Living, coord: Coord) -> None:
    """It gets nothing new until it is resumed; what it says of itself counts then."""
    assert coord("agents", "drain", "spare-1").out == "spare-1: draining\n"
    assert coord("agents", "show", "spare-1", "--json").json["status"] == "draining"
    assert coord("agents", "resume", "spare-1", "--json").json["items"] == [{"agent_id": "spare-1", "status": "active"}]

    async def active() -> bool:
        return (await lives.client.agent("spare-1")).status is AgentStatus.ACTIVE

    lives.until(active, "it is active again")


def test_several_agents_and_one_that_is_not_there(coord: Coord) -> None:
    """The others are drained all the same; its error is printed, and counts."""
    output = coord("agents", "drain", "nobody", "spare-1")
    assert (output.code, output.out) == (1, "spare-1: draining\n")
    assert output.err.startswith("coord: Agent 'nobody' not found")
    output = coord("agents", "resume", "spare-1", "nobody", "--json")
    assert output.code == 1
    assert [one.get("error", {}).get("code") for one in output.json["items"]] == [None, "agent_not_found"]


def test_an_agent_is_removed(lives: Living, coord: Coord) -> None:
    """One after the other; its record stays, as of one that left."""
    for agent_id in ("leaver-1", "leaver-2"):
        agent = lives.agent(agent_id)
        lives.do(agent.stop(grace=0))
    assert coord("agents", "remove", "leaver-1", "leaver-2").out == "leaver-1: inactive\nleaver-2: inactive\n"
    assert coord("agents", "show", "leaver-1", "--json").json["status"] == "inactive"
    assert "leaver-1" not in coord("agents", "list").out
    assert "leaver-1" in coord("agents", "list", "--all").out
    assert coord("agents", "prune", "--older-than", "1h").out == "0 agents removed\n"
    assert coord("agents", "prune", "--older-than", "0", "--json").json["pruned"] >= 2
    assert "leaver-1" not in coord("agents", "list", "--all").out


# Dead letters.


def test_dead_letters_are_listed(lives: Living, coord: Coord) -> None:
    """Each kind with what it was and why it died, newest first."""
    task, message, entry = failed_task(lives, "no disk"), dead_message(lives), buried_entry(lives)
    found = msgspec.convert(coord("dead", "list", "--json").json["items"], list[DeadLetter])
    by_id = {one.id: one for one in found}
    assert (by_id[task].kind, by_id[task].what, by_id[task].code) == ("task", "echo", "asked_to")
    assert by_id[task].reason == "no disk"
    assert (by_id[message].kind, by_id[message].what) == ("message", f"ann to nobody-{message}")
    assert f"nobody-{message}' not found" in by_id[message].reason
    assert (by_id[entry].kind, by_id[entry].what) == ("entry", "in:tasks:low task.submitted")
    assert "task_id" in by_id[entry].reason
    only = coord("dead", "list", "--kind", "task", "--limit", "1", "--json").json["items"]
    assert [one["id"] for one in only] == [task]


def test_the_screen_of_dead_letters(lives: Living, coord: Coord) -> None:
    """A line each, and a hint when there are more than were asked for."""
    first, second = failed_task(lives, "early"), failed_task(lives, "late\nand more")
    header, *rows = coord("dead", "list").out.splitlines()
    assert header.split() == ["kind", "id", "age", "what", "code", "reason"]
    ids = [row.split()[1] for row in rows]
    assert ids.index(second) < ids.index(first)
    assert rows[ids.index(second)].endswith(r"late\nand more")
    output = coord("dead", "list", "--kind", "task", "--limit", "1")
    assert output.err.endswith("of kind task; to show more than 1, use --limit\n")


def test_one_dead_letter(lives: Living, coord: Coord) -> None:
    """The whole record, whichever kind it is."""
    task, message, entry = failed_task(lives), dead_message(lives), buried_entry(lives)
    assert msgspec.json.decode(coord("dead", "show", "task", task, "--json").out, type=TaskRecord).task_id == task
    text = msgspec.json.decode(coord("dead", "show", "message", message, "--json").out, type=MessageRecord)
    assert text.payload == {"n": 1}
    buried = msgspec.json.decode(coord("dead", "show", "entry", entry, "--json").out, type=DeadEntry)
    assert (buried.stream, buried.data, buried.is_whole) == ("in:tasks:low", {"task_id": 7}, True)
    lines = dict(line.split(maxsplit=1) for line in coord("dead", "show", "entry", entry).out.splitlines())
    assert (lines["code"], lines["data"]) == ("fact_invalid", '{"task_id":7}')


def test_a_task_is_replayed(lives: Living, coord: Coord) -> None:
    """It is tried again with fresh attempts."""
    task = failed_task(lives)
    assert coord("dead", "replay", "task", task).out == f"task {task}: replayed\n"

    async def failed_again() -> bool:
        record = await lives.client.task(task)
        return record.state == "failed" and record.replayed_at is not None

    lives.until(failed_again, "it has failed again")


def test_a_message_is_replayed(lives: Living, coord: Coord) -> None:
    """Once its receiver is there, it is delivered as if it had been sent now."""
    message = dead_message(lives)
    output = coord("dead", "replay", "message", message)
    assert (output.code, output.out) == (1, "")
    assert f"'nobody-{message}' not found" in output.err
    lives.agent(f"nobody-{message}")
    done = coord("dead", "replay", "message", message, "--ttl", "10m", "--json").json["items"]
    assert done == [{"kind": "message", "id": message, "replayed_as": message}]
    assert coord("dead", "show", "message", message).code == 1


def test_an_entry_is_replayed(lives: Living, coord: Coord) -> None:
    """It goes through its stream once more, and its worker checks it again."""
    entry = buried_entry(lives)
    (done,) = coord("dead", "replay", "entry", entry, "--json").json["items"]
    assert (done["kind"], done["id"]) == ("entry", entry)

    async def buried_again() -> bool:
        found = await queries.list_dead_entries(lives.cell.redis, lives.cell.keys, 100)
        entries = [await queries.get_dead_entry(lives.cell.redis, lives.cell.keys, one.id) for one in found]
        return done["replayed_as"] in [one.id for one in entries if one]

    lives.until(buried_again, "it is buried again")


@pytest.mark.parametrize("kind", ["task", "message", "entry"])
def test_one_is_purged_and_then_all(lives: Living, coord: Coord, kind: str) -> None:
    """One by its id, the others by their age."""
    make = {"task": failed_task, "message": dead_message, "entry": buried_entry}[kind]
    first, _ = make(lives), make(lives)
    assert coord("dead", "purge", kind, first).out == f"1 {kind} letter purged\n"
    assert coord("dead", "show", kind, first).code == 1
    assert coord("dead", "purge", kind, "--older-than", "7d", "--json").json == {"kind": kind, "purged": 0}
    assert coord("dead", "purge", kind, "--older-than", "0", "--json").json["purged"] >= 1
    assert coord("dead", "list", "--kind", kind).out == "no dead letters\n"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["dead", "show", "task", "none"], 1, "Task 'none' not found"),
        (
            ["dead", "show", "message", "none"],
            1,
            "message 'none' is not a dead letter; see `coord dead list --kind message`",
        ),
        (["dead", "show", "entry", "1-1"], 1, "entry '1-1' is not in dead:in"),
        (["dead", "show", "entry", "x"], 2, "ID must be the id of an entry, such as 1769860800000-0, got 'x'"),
        (["dead", "replay", "task", "none"], 1, "Task 'none' not found"),
        (["dead", "replay", "task", "none", "--ttl", "5"], 2, "--ttl is valid for messages only"),
        (["dead", "replay", "message", "none", "--ttl", "x"], 2, "--ttl must be a time such as"),
        (["dead", "purge", "task"], 2, "give either one ID or --older-than TIME (0 for all)"),
        (["dead", "purge", "task", "t", "--older-than", "0"], 2, "give either one ID or --older-than TIME"),
        (
            ["dead", "purge", "task", "--older-than", "ever"],
            2,
            "--older-than must be a time such as",
        ),
        (["dead", "list", "--kind", "letter"], 2, "'letter' is not one of 'task', 'message', 'entry'"),
        (["agents", "drain", "a b"], 2, "agent_id must be 1 to 128 characters"),
    ],
)
def test_a_slip_is_told_in_one_line(coord: Coord, arguments: list[str], code: int, says: str) -> None:
    """The error, and the exit code for the user's or the server's fault."""
    output = coord(*arguments)
    assert (output.code, output.out) == (code, "")
    assert says in " ".join(output.err.replace("│", " ").split())


# Settings.


def test_the_strategy_is_shown_and_set(coord: Coord) -> None:
    """Live, for every distributor, until it is given back."""
    header, row = coord("strategy", "show").out.splitlines()
    assert header.split() == ["task", "type", "strategy", "avoid_failed_agent", "ejection", "rare_skills_first"]
    assert row.split() == ["(all)", "least_connections", "on", "on", "off"]
    assert coord("strategy", "set", "round_robin").out.splitlines()[1].split()[1] == "round_robin"
    found = coord("settings", "show", "strategy", "--json").json
    assert (found["value"], found["source"]) == ("round_robin", "live")
    assert coord("settings", "reset", "strategy").out == "strategy: least_connections (the default)\n"


def test_a_type_has_its_own_rules_until_they_are_cleared(coord: Coord) -> None:
    """The strategy and the modifiers; the history has each change, with the user and the host."""
    arguments = ("predictive", "--type", "a type", "--modifier", "rare_skills_first=on", "--modifier", "ejection=off")
    of_type = {"strategy": "predictive", "rare_skills_first": "on", "ejection": "off"}
    assert coord("strategy", "set", *arguments, "--json").json == of_type | {"avoid_failed_agent": "on"}
    assert coord("strategy", "show", "--json").json["types"] == {"a type": of_type}
    assert coord("strategy", "set", "--type", "a type", "--modifier", "ejection=reset").code == 0
    assert coord("strategy", "set", "--type", "a type", "--clear").code == 0
    assert coord("strategy", "show", "--json").json == {
        "cell": {
            "strategy": "least_connections",
            "avoid_failed_agent": "on",
            "ejection": "on",
            "rare_skills_first": "off",
        },
        "types": {},
    }
    changes = [one for one in coord("strategy", "history", "--json").json["items"] if one["task_type"] == "a type"]
    assert [(one["name"], one["value"], one["before"]) for one in changes] == [
        ("rare_skills_first", None, "on"),
        ("strategy", None, "predictive"),
        ("ejection", None, "off"),
        ("ejection", "off", None),
        ("rare_skills_first", "on", None),
        ("strategy", "predictive", None),
    ]
    assert {one["by"] for one in changes} == {f"{getpass.getuser()}@{socket.gethostname()}"}
    header, first, *_ = coord("strategy", "history", "--limit", "1").out.splitlines()
    assert header.split() == ["time", "setting", "task", "type", "value", "before", "by"]
    assert "a type" in first


def test_a_setting_is_shown_and_set(coord: Coord) -> None:
    """With what holds otherwise beside it."""
    assert coord("settings", "set", "health_threshold", "0.7").out == "health_threshold: 0.7 (set live)\n"
    header, *rows = coord("settings", "show").out.splitlines()
    assert header.split() == ["setting", "value", "set", "by", "otherwise", "default", "variable"]
    assert rows[3].split() == ["health_threshold", "0.7", "live", "0.5", "0.5", "COORD_HEALTH_THRESHOLD"]
    assert [one["name"] for one in coord("settings", "show", "--json").json["items"]] == [
        "avoid_failed_agent",
        "ejection",
        "full_scores",
        "health_threshold",
        "rare_skills_first",
        "record_plans",
        "strategy",
    ]
    assert coord("settings", "reset", "health_threshold", "--json").json["source"] == "default"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["strategy", "set", "best"], "round_robin"),
        (["strategy", "set"], "nothing to set: name a strategy, or use --modifier or --clear"),
        (["strategy", "set", "random", "--clear"], "--clear resets everything"),
        (["strategy", "set", "--modifier", "ejecton=on"], "did you mean 'ejection'?"),
        (["strategy", "set", "--modifier", "ejection=no"], "--modifier ejection=no: expected on, off or reset"),
        (["settings", "set", "ejecton", "on"], "did you mean 'ejection'?"),
        (["settings", "set", "ejection", "maybe"], "ejection='maybe': expected on or off"),
        (
            ["settings", "set", "batch", "7"],
            "'batch' cannot be set live, only avoid_failed_agent, ejection, full_scores",
        ),
        (["settings", "set", "health_threshold", "2"], "health_threshold='2': expected a number from 0 to 1"),
        (
            ["settings", "show", "batch"],
            "'batch' cannot be set live, only avoid_failed_agent, ejection, full_scores",
        ),
        (
            ["settings", "reset", "batch"],
            "'batch' cannot be set live, only avoid_failed_agent, ejection, full_scores",
        ),
    ],
)
def test_a_setting_that_does_not_fit(coord: Coord, arguments: list[str], says: str) -> None:
    """Exit code 2, and what would fit."""
    output = coord(*arguments)
    assert (output.code, output.out) == (2, "")
    assert says in output.err


def test_keys_are_created_listed_and_revoked(lives: Living, coord: Coord) -> None:
    """A key is shown once; the list has its id; a key that does not exist is an error."""
    made = coord("keys", "create", "--role", "agent", "--agent", "echo-1", "--name", "Ann", "--lifetime", "90d")
    key = made.out.strip()
    key_id = id_of_key(key)
    assert (made.code, key_id is not None, key in made.err) == (0, True, False)
    listed = coord("keys", "list")
    assert key not in listed.out
    (row,) = [line for line in listed.out.splitlines() if key_id and key_id in line]
    assert [word for word in ("agent", "echo-1", "Ann", "never") if word not in row] == []
    as_json = msgspec.json.decode(coord("keys", "create", "--json").out)
    assert as_json["record"]["role"] == "client"
    assert id_of_key(as_json["key"]) == as_json["record"]["key_id"]
    assert coord("keys", "revoke", str(key_id), as_json["key"]).code == 0
    assert lives.do(lives.client.admin.keys()) == []
    assert coord("keys", "list").out.strip() == "no keys"
    again = coord("keys", "revoke", str(key_id))
    assert (again.code, str(key_id) in again.err) == (1, True)
    wrong = coord("keys", "create", "--role", "agent")
    assert (wrong.code, "agent_id is needed" in wrong.err) == (2, True)
