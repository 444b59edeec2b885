"""`coord top` on a live cell, driven by its keys: what it shows, what it changes, and what it costs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from textual.pilot import Pilot
from textual.widgets import Static

from coord import Agent, Client, Task
from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.models.agents import AgentRecord, AgentStatus
from coord.models.tasks import Priority, TaskState
from coord.top.app import LISTED, Dialog, TopApp
from tests.living import CommandResult, run_coord
from tests.running import RunningCell
from tests.waiting import wait_until

#: A machine with much else to do is slow.
LIMIT_S = 60.0

Show = Callable[..., Any]


@asynccontextmanager
async def showing(cell: RunningCell, size: tuple[int, int] = (80, 24)) -> AsyncIterator[tuple[TopApp, Pilot[None]]]:
    """The screen of a cell, without a terminal."""
    async with Client(cell.url, settings=cell.settings) as client:
        app = TopApp(client, "test", interval=0.2)
        async with app.run_test(size=size, notifications=True) as pilot:
            yield app, pilot


def text_of(app: TopApp) -> str:
    """The text on the screen, a line for each row of the terminal."""
    return "\n".join("".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips())


async def shows(app: TopApp, *wanted: str) -> str:
    """Wait until all of these texts are on the screen."""

    async def is_there() -> bool:
        screen = text_of(app)
        return all(one in screen for one in wanted)

    try:
        await wait_until(is_there, f"the screen shows {wanted}", LIMIT_S)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{text_of(app)}") from None
    return text_of(app)


async def dialog(app: TopApp, *wanted: str) -> str:
    """Wait until a dialog with these texts is open; what it says."""

    async def is_open() -> bool:
        return isinstance(app.screen, Dialog)

    await wait_until(is_open, "a dialog opens", LIMIT_S)
    assert isinstance(app.screen, Dialog)
    text = app.screen.text.plain
    assert all(one in text for one in wanted), text
    return text


@pytest.fixture
async def agent(cell: RunningCell) -> AsyncIterator[Agent]:
    """An agent whose tasks last until they are cancelled."""
    running = Agent("ocr-1", url=cell.url, settings=cell.settings, capacity=4, tags=["fast"])

    @running.task("scan")
    async def scan(_: Task) -> None:
        await asyncio.sleep(1_000)

    await running.start()
    yield running
    await running.stop(grace=0)


async def test_agents(cell: RunningCell, agent: Agent) -> None:
    """With their load; drain and resume ask first."""
    async with showing(cell) as (app, pilot):
        await app.client.submit("scan", {})
        screen = await shows(app, "ocr-1", "active", "1/4", "agents 1/1", "connected")
        assert all(len(line) <= 80 for line in screen.splitlines())
        await pilot.press("d")
        await dialog(app, "Drain agent ocr-1?")
        await pilot.press("enter")  # does not answer a question
        await dialog(app, "Drain agent ocr-1?")
        await pilot.press("n")
        assert (await app.client.agent("ocr-1")).status is AgentStatus.ACTIVE
        await pilot.press("d")
        await dialog(app, "Drain agent ocr-1?")
        await pilot.press("y")
        await shows(app, "draining")
        await pilot.press("r")
        await dialog(app, "Resume agent ocr-1?")
        await pilot.press("y")
        await shows(app, "active")
        await pilot.press("e")
        await dialog(app, "agent ocr-1", "1 of 4", "fast", "scan")


async def test_tasks(cell: RunningCell, agent: Agent) -> None:
    """Why a task went to its agent, why another waits, and a cancel."""
    async with showing(cell) as (app, pilot):
        held = await app.client.submit("scan", {}, task_id="held-1")
        await app.client.submit("scan", {}, task_id="waits-1", capabilities=["gpu"])
        await pilot.press("3")
        await shows(app, "held-1", "running", "waits-1", "queued")
        while app.selected() != "waits-1":
            await pilot.press("down")
        await pilot.press("enter")
        await dialog(app, "task waits-1", "no_capability", "nearest: ocr-1")
        await pilot.press("escape")
        while app.selected() != "held-1":
            await pilot.press("up")
        await pilot.press("e")
        await dialog(app, "task held-1", "ocr-1", "least_connections")
        await pilot.press("escape", "c")
        await dialog(app, "Cancel task held-1?")
        await pilot.press("y")

        async def is_cancelled() -> bool:
            return (await held.record()).state is TaskState.CANCELLED

        await wait_until(is_cancelled, "the task is cancelled", LIMIT_S)
        await pilot.press("d")
        await shows(app, "select an agent to drain")


async def test_queues_and_the_system(cell: RunningCell) -> None:
    """Why tasks wait; processes, and what the doctor finds."""
    async with showing(cell, (100, 30)) as (app, pilot):
        await app.client.submit("scan", {}, task_id="waits-1", priority="high")
        await pilot.press("2")
        screen = await shows(app, "no_agent_registered", "waits-1", "scan")
        row = next(line.split() for line in screen.splitlines() if line.split()[:1] == ["high"])
        assert row[1:4] == ["0", "0", "1"]
        await pilot.press("e")
        await dialog(app, "task waits-1")
        await pilot.press("escape", "tab", "tab")
        assert app.pane == "system"
        await shows(app, "registry-1", "distributor-2", "router-3", "error 1 task", "→ start one")
        await pilot.press("tab")
        assert app.pane == "agents"


async def test_a_reason_is_no_part_of_a_row_of_a_priority(cell: RunningCell) -> None:
    """On a screen of 80 columns: reasons have lines of their own, and none is cut."""
    async with showing(cell) as (app, pilot):
        await app.client.submit("scan", {}, task_id="waits-1")
        await app.client.submit("scan", {}, task_id="later-1", delay=3_600)
        await pilot.press("2")
        screen = await shows(app, "no_agent_registered 1", "scheduled 1")
        rows = [line.split() for line in screen.splitlines()]
        numbers = {row[0]: row[1:] for row in rows if row[:1] and row[0] in set(Priority)}
        assert numbers.keys() == set(Priority)
        assert all(len(row) == 5 and "".join(row).isdecimal() for row in numbers.values()), screen
        assert ["waiting", "for", "scheduled", "1", "no_agent_registered", "1"] in rows


async def test_reasons_that_nobody_counts(cell: RunningCell) -> None:
    """Tasks wait, and no distributor has counted them: it is not said that they wait for nothing."""
    async with showing(cell) as (app, pilot):
        await app.client.submit("scan", {}, task_id="waits-1")
        await pilot.press("2")
        await shows(app, "no_agent_registered 1")
        app.is_paused = True
        await app.read()
        assert app.feed.statistics is not None
        app.feed.statistics = replace(app.feed.statistics, waiting=None)
        app.show()
        await shows(app, "waiting for reasons that no distributor has counted within 5 minutes")


async def test_the_filter_and_the_order(cell: RunningCell) -> None:
    """A part of the id; Esc shows all again. The cursor stays on its row."""
    await register(cell, 3)
    async with showing(cell) as (app, pilot):
        await shows(app, "bulk-0000", "bulk-0002", "3 shown, by name")
        await pilot.press("down")
        assert app.selected() == "bulk-0001"
        await pilot.press("slash", *"0001")
        await shows(app, "1 shown", "filter: 0001")
        assert "bulk-0002" not in text_of(app)
        await pilot.press("enter")
        assert app.selected() == "bulk-0001"
        await pilot.press("escape")
        await shows(app, "3 shown")
        for order in ("health", "load", "status", "name"):
            await pilot.press("s")
            await shows(app, f"by {order}")
        await pilot.press("question_mark")
        await dialog(app, "drain or resume the agent")
        await pilot.press("enter", "space")
        await shows(app, "paused")
        before = app.refreshes
        await pilot.press("space")
        await wait_until(lambda: _async(app.refreshes > before), "it goes on", LIMIT_S)


async def test_a_query_for_agents(cell: RunningCell, agent: Agent) -> None:
    """The filter of the agents is a query; a mistake is named, and the rows stay. Each pane has its own filter."""
    await register(cell, 3)
    async with showing(cell, (140, 30)) as (app, pilot):
        await shows(app, "bulk-0000", "bulk-0002", "ocr-1", "4 shown, by name")
        await pilot.press("slash", *"state:active capability:scan")
        await shows(app, "1 shown", "filter: state:active capability:scan")
        assert app.selected() == "ocr-1"
        await pilot.press(*" laod:>0.8")
        mistake = "query, position 30: there is no field 'laod'; did you mean load:>0.8?"
        await shows(app, mistake, "0 shown")  # none has the word "laod"
        await pilot.press("enter", "3")
        assert "position 30" not in await shows(app, "0 shown")
        await pilot.press("slash", *"held")
        await shows(app, "filter: held")
        await pilot.press("enter", "1")
        assert "held" not in await shows(app, "0 shown", "position 30", "filter: state:active capability:scan laod")
        await pilot.press("slash", "end", *["backspace"] * 10)  # the text is selected at first
        await shows(app, "1 shown", "filter: state:active capability:scan")
        assert "position" not in text_of(app)
        await pilot.press("escape")
        await shows(app, "4 shown")


async def test_agents_by_load_that_are_not_on_the_screen(cell: RunningCell, agent: Agent) -> None:
    """Their load is read while they are filtered by it, although no event says that it changed."""
    await register(cell, 40)
    async with showing(cell) as (app, pilot):
        await shows(app, "41 shown")
        assert "ocr-1" not in text_of(app)
        await pilot.press("slash", *"load:>=25%")
        await shows(app, "0 shown")
        await app.client.submit("scan", {})
        await shows(app, "1 shown", "ocr-1", "1/4")


async def test_ten_thousand_agents(cell: RunningCell) -> None:
    """The first thousand are listed, with a line that counts the others; a refresh updates what has changed."""
    async with showing(cell) as (app, pilot):
        await shows(app, "0 shown")
        app.is_paused = True
        names = [f"a-{number:05}" for number in range(10_000)]
        agents = {
            name: AgentRecord(agent_id=name, agent_type="worker", status=AgentStatus.ACTIVE, capacity=4)
            for name in reversed(names)
        }

        def updates(changed: dict[str, AgentRecord]) -> int:
            """Return the rows that a refresh updates."""
            before = app.table("agents").updates
            app.feed.agents = changed
            app.show()
            return app.table("agents").updates - before

        assert updates(agents) == LISTED == 1_000
        await shows(app, "1,000 of 10,000 shown, by name", "9,000 more agents: / filters, s sorts", "a-00000")
        assert updates(dict(agents)) == 0
        busy = [replace(agents[name], load=1) for name in ("a-00007", "a-00999", "a-01000", "a-09999")]
        assert updates(agents | {one.agent_id: one for one in busy}) == 2  # the others are not listed
        assert (
            updates({name: agents[name] for name in names if name != "a-00007"}) == 3
        )  # one goes, one comes, one is as before
        await pilot.press("slash", *"id:a-0999*")
        screen = await shows(app, "10 shown", "a-09990")
        assert "more agents" not in screen


async def _async(value: bool) -> bool:
    return value


async def register(cell: RunningCell, number: int) -> None:
    """Register agents without a process."""
    pipe = cell.redis.pipeline(transaction=False)
    for index in range(number):
        data = {"agent_id": f"bulk-{index:04}", "agent_type": "worker", "heartbeat_interval": 3_600}
        pipe.xadd(cell.keys.of("in:registry"), {"type": "agent.registered", "data": json.dumps(data)})
    await pipe.execute()


async def test_a_thousand_agents(cell: RunningCell) -> None:
    """All are listed; a refresh reads those on the screen, so it sends few commands, in few round trips."""
    await register(cell, 1_000)

    async def are_registered() -> bool:
        return int(await cell.redis.scard(cell.keys.of("agents:all"))) == 1_000

    await wait_until(are_registered, "the agents are registered", LIMIT_S)
    async with showing(cell) as (app, pilot):
        await shows(app, "1,000 shown", "agents 1,000/1,000")
        await pilot.press("ctrl+end")
        await shows(app, "bulk-0999")
        app.is_paused = True
        sent = await _commands(cell)
        await app.read()
        others = await _commands(cell)
        await asyncio.sleep(0)
        idle = await _commands(cell)
        cost = (others - sent) - (idle - others)
        assert 0 < cost < 400, "some 100 commands for the statistics, and two for each of the 20 agents on the screen"
        assert len(app._visible_agents()) <= 24


async def _commands(cell: RunningCell) -> int:
    return int((await cell.redis.info("stats"))["total_commands_processed"])


async def test_an_outage(tmp_path: Path, settings: Settings) -> None:
    """The first line says so; it goes on when the server is back."""
    server = EmbeddedServer.start(tmp_path / "data")
    async with Client(server.url, settings=settings, reach_s=2) as client:
        app = TopApp(client, "test", interval=0.2)
        async with app.run_test(size=(120, 24)):
            await shows(app, "connected")
            server.stop(force=True)
            await wait_until(lambda: _async(bool(app.feed.outage)), "it sees the outage", LIMIT_S)
            await shows(app, "reconnecting: Redis")
            head = app.query_one("#head", Static)
            assert "connected" not in str(head.render())
            server = EmbeddedServer.start(tmp_path / "data")
            try:
                await shows(app, "connected")
            finally:
                app.exit()
    server.stop(force=True)


@pytest.fixture
def coord(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., CommandResult]:
    """Runs a command."""
    return lambda *arguments: run_coord(capsys, monkeypatch, *arguments)


@pytest.mark.filterwarnings("ignore:.*will be removed in Click 9.0:DeprecationWarning")
def test_what_it_needs(coord: Callable[..., CommandResult], monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal, and a package that is optional: the message has the command that installs it."""
    assert "needs a terminal; for scripts use `coord ps --json`" in coord("top").err
    monkeypatch.setattr("coord.cli.top.find_spec", lambda _: None)
    missing = coord("top")
    assert (missing.code, missing.out) == (2, "")
    assert missing.err == "coord: coord top needs the package textual; install it: pip install textual\n"
