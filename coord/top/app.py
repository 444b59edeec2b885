"""The screen of ``coord top``: four panes, a filter, and actions that ask before they change anything."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import ClassVar

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widgets import ContentSwitcher, Footer, Input, Sparkline, Static

from coord import Client
from coord.background import cancel_and_wait, keep
from coord.doctor import diagnose
from coord.errors import CoordError, QueryInvalid
from coord.models.agent_query import AGENTS
from coord.models.agents import AgentRecord
from coord.models.query import Query
from coord.top import rows
from coord.top.feed import Feed
from coord.top.table import RowTable

#: name of a pane -> its columns.
PANES: Mapping[str, tuple[str, ...]] = {
    "agents": rows.AGENTS,
    "queues": rows.POOLS,
    "tasks": rows.TASKS,
    "system": rows.PROCESSES,
}
#: What the agents are sorted by, in the order of the key.
ORDERS: Mapping[str, Callable[[AgentRecord], object]] = {
    "name": lambda agent: agent.agent_id,
    "health": lambda agent: (agent.health_score, agent.agent_id),
    "load": lambda agent: (-agent.load / max(1, agent.capacity), agent.agent_id),
    "status": lambda agent: (agent.status.value, agent.agent_id),
}
#: Agents that are listed; a line says how many more there are.
LISTED = 1_000
#: Agents whose load is read with each refresh; a screen shows fewer.
MOST_VISIBLE = 100
#: pane -> what its filter takes.
FILTERS: Mapping[str, str] = dict.fromkeys(PANES, "filter: any text of a row") | {
    "agents": "filter: state:busy region:eu* load:>=0.8 capability:ocr, or a part of an id"
}
#: A narrower screen shows the end of long ids only.
WIDE = 110

HELP = """\
1 2 3 4, Tab   agents, queues, tasks, system
/              filter the agents by a query, such as state:busy region:eu* load:>=0.8
               capability:ocr, or a part of their id; filter other rows by any of their text.
               Esc ends it
s              sort the agents by name, health, load or status
Enter, e       agents: all about one; tasks, queues: why it waits, or why it went to its agent
d, r           drain or resume the agent
c              cancel the task
Ctrl-Home, Ctrl-End   first and last row
Space          pause and continue
q, Ctrl-C      quit

Loads are read for the agents on the screen, and for all while they are filtered or sorted by load."""


class Dialog(ModalScreen[bool]):
    """A text over the screen; with a question it returns True for yes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes"),
        Binding("n,escape,q", "answer(False)", "No"),
        Binding("enter", "enter", "Close"),
    ]

    def __init__(self, text: Text | str, *, asks: bool = False) -> None:
        super().__init__()
        self.text = text if isinstance(text, Text) else Text(text)
        self.asks = asks

    def compose(self) -> ComposeResult:
        """Return the widgets."""
        hint = "y: yes    n: no" if self.asks else "Enter or Esc: close"
        with VerticalScroll(id="dialog"):
            yield Static(self.text)
            yield Static(Text(f"\n{hint}", "dim"))

    def action_answer(self, answer: bool) -> None:
        """Close with an answer."""
        self.dismiss(answer)

    def action_enter(self) -> None:
        """Close a text; a question needs its key, so that no Enter too many changes something."""
        if not self.asks:
            self.dismiss(False)


class TopApp(App[None]):
    """The live screen of a cell.

    Args:
        client: an open client.
        place: the cell and its address, for the first line.
        interval: seconds between two refreshes.
    """

    ENABLE_COMMAND_PALETTE = False
    TITLE = "coord top"
    CSS = """
    #head, #summary, #tabs { height: 1; padding: 0 1; }
    #head { background: $primary-background; }
    #rates-line { height: 1; padding: 0 1; }
    #rates { width: auto; }
    #chart { width: 1fr; height: 1; margin-left: 2; }
    #filter { height: 1; border: none; padding: 0 1; display: none; background: $boost; }
    #filter.shown { display: block; }
    #mistake { height: auto; padding: 0 1; display: none; color: $error; }
    #mistake.shown { display: block; }
    #more { height: 1; padding: 0 1; display: none; color: $text-muted; }
    #more.shown { display: block; }
    #panes, #panes > * { height: 1fr; }
    DataTable { height: 1fr; padding: 0 1; }
    #waiting { height: auto; padding: 0 1 1 1; }
    #findings { height: auto; max-height: 50%; padding: 0 1; border-top: solid $primary; }
    Dialog { align: center middle; }
    #dialog { width: 90%; max-width: 100; height: auto; max-height: 90%; padding: 1 2; background: $surface;
              border: round $primary; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "pane('agents')", "Agents", show=False),
        Binding("2", "pane('queues')", "Queues", show=False),
        Binding("3", "pane('tasks')", "Tasks", show=False),
        Binding("4", "pane('system')", "System", show=False),
        Binding("tab", "next_pane", "Pane", show=False, priority=True),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("s", "sort", "Sort"),
        Binding("e", "explain", "Explain"),
        Binding("d", "drain", "Drain"),
        Binding("r", "resume", "Resume"),
        Binding("c", "cancel", "Cancel"),
        Binding("space", "pause", "Pause", show=False),
        Binding("escape", "end_filter", show=False),
        Binding("question_mark", "help", "Help", key_display="?"),
        Binding("q", "quit", "Quit"),
        Binding("ctrl+c", "quit", show=False, priority=True),
    ]

    def __init__(self, client: Client, place: str, *, interval: float = 1.0) -> None:
        super().__init__()
        self.client = client
        self.place = place
        self.interval = interval
        self.feed = Feed(client)
        self.pane = "agents"
        self.order = "name"
        #: pane -> the text of its filter.
        self.filters = dict.fromkeys(PANES, "")
        #: The filter of the agents: the last one without a mistake.
        self.wanted = Query()
        self.mistake = ""
        self.is_paused = False
        #: Refreshes so far.
        self.refreshes = 0
        self._agent_rows: dict[str, tuple[AgentRecord, rows.Row]] = {}  # of the agents that are listed
        self._tasks: list[asyncio.Task[None]] = []

    def compose(self) -> ComposeResult:
        """Return the widgets."""
        yield Static(id="head")
        yield Static(id="summary")
        with Horizontal(id="rates-line"):
            yield Static(id="rates")
            yield Sparkline(list(self.feed.rates), id="chart", summary_function=max)
        yield Static(id="tabs")
        with ContentSwitcher(initial="pane-agents", id="panes"):
            with VerticalScroll(id="pane-agents", can_focus=False):
                yield RowTable("agents", PANES["agents"])
                yield Static(id="more")
            with VerticalScroll(id="pane-queues", can_focus=False):
                yield Static(id="waiting")
                yield RowTable("queues", PANES["queues"])
            with VerticalScroll(id="pane-tasks", can_focus=False):
                yield RowTable("tasks", PANES["tasks"])
            with VerticalScroll(id="pane-system", can_focus=False):
                yield RowTable("system", PANES["system"])
                with VerticalScroll(id="findings", can_focus=False):
                    yield Static(id="problems")
        yield Static(id="mistake", markup=False)
        yield Input(placeholder=FILTERS[self.pane], id="filter", compact=True)
        yield Footer(compact=True)

    def on_mount(self) -> None:
        """Begin to read."""
        self.table("agents").focus()
        self._tasks = [keep("top.agents", self.feed.follow_agents), keep("top.refresh", self._refresh_often)]

    async def on_unmount(self) -> None:
        """Stop reading."""
        for task in self._tasks:
            await cancel_and_wait(task)

    @property
    def _main(self) -> Screen[object]:
        """The screen below any dialog."""
        return self.screen_stack[0]

    def table(self, pane: str) -> RowTable:
        """Return the table of a pane."""
        return self._main.query_one(f"#{pane}", RowTable)

    # Reading and showing

    async def _refresh_often(self) -> None:
        while True:
            began = time.monotonic()
            if not self.is_paused:
                await self.read()
            await asyncio.sleep(max(0.05, self.interval - (time.monotonic() - began)))

    async def read(self) -> None:
        """Read what the pane shows, and show it."""
        by_load = self.order == "load" or bool(self.wanted.of("load"))
        await self.feed.read(self.pane, self._visible_agents(), needs_loads=by_load)
        self.refreshes += 1
        self.show()

    def show(self) -> None:
        """Show what is known."""
        if not self.is_running or not self.screen_stack:
            return
        self._show_head()
        shown, more = self._rows()
        self.table(self.pane).show(shown)
        self._show_tabs(len(shown), more)
        self._show_line("#mistake", self.mistake if self.pane == "agents" else "")
        if self.pane == "queues":
            self._main.query_one("#waiting", Static).update(rows.queues(self.feed))
        elif self.pane == "system" and self.feed.system is not None:
            self._main.query_one("#problems", Static).update(rows.findings(diagnose(self.feed.system)))

    def _show_head(self) -> None:
        state = Text("connected", "green")
        if self.feed.outage:
            state = Text(f"reconnecting: {self.feed.outage}", "bold red")
        elif self.is_paused:
            state = Text("paused", "bold yellow")
        head = Text("coord top  ", "bold", no_wrap=True, overflow="ellipsis") + state + Text(f"  {self.place}")
        self._main.query_one("#head", Static).update(head)
        self._main.query_one("#summary", Static).update(rows.summary(self.feed))
        self._main.query_one("#rates", Static).update(rows.rates(self.feed))
        self._main.query_one("#chart", Sparkline).data = list(self.feed.rates)

    def _show_line(self, selector: str, text: str) -> None:
        """Show a line of text; hide it if the text is empty."""
        line = self._main.query_one(selector, Static)
        line.set_class(bool(text), "shown")
        line.update(text)

    def _show_tabs(self, number: int, more: int) -> None:
        line = Text(no_wrap=True, overflow="ellipsis")
        for key, pane in enumerate(PANES, 1):
            line.append(f" {key} {pane.capitalize()} ", "reverse bold" if pane == self.pane else "dim").append(" ")
        line.append(f" {number:,} of {number + more:,} shown" if more else f" {number:,} shown", "dim")
        if self.pane == "agents":
            line.append(f", by {self.order}", "dim")
            self._show_line("#more", f"{more:,} more agents: / filters, s sorts" if more else "")
        if text := str(self.wanted) if self.pane == "agents" else self.filters[self.pane]:
            line.append(f"  filter: {text}", "yellow")
        self._main.query_one("#tabs", Static).update(line)

    def _rows(self) -> tuple[dict[str, rows.Row], int]:
        """Return the rows of the pane, and the number of further ones."""
        feed, is_narrow = self.feed, self.size.width < WIDE
        if self.pane == "agents":
            return self._rows_of_agents()
        if self.pane == "queues":
            found = {
                pool.pool: rows.pool_row(pool, is_narrow=is_narrow)
                for pool in (feed.backlog.pools if feed.backlog else ())
            }
        elif self.pane == "tasks":
            now = feed.statistics.now if feed.statistics else 0
            found = {task.task_id: rows.task_row(task, now, is_narrow=is_narrow) for task in feed.tasks}
        else:
            system = feed.system
            processes = system.processes if system is not None else ()
            found = {one.name: rows.process_row(one, system.now if system else 0) for one in processes}
        wanted = self.filters[self.pane].lower()
        return {key: row for key, row in found.items() if not wanted or wanted in " ".join(map(str, row)).lower()}, 0

    def _rows_of_agents(self) -> tuple[dict[str, rows.Row], int]:
        """Return the rows of the first agents that meet the query; a row is made again if its record has changed."""
        now = self.feed.statistics.now if self.feed.statistics else 0
        agents = [agent for agent in self.feed.agents.values() if AGENTS.matches(self.wanted, agent, now)]
        agents.sort(key=ORDERS[self.order])  # type: ignore[arg-type]
        known, self._agent_rows = self._agent_rows, {}
        for agent in agents[:LISTED]:
            made = known.get(agent.agent_id)
            is_same = made is not None and made[0] is agent
            self._agent_rows[agent.agent_id] = made if made and is_same else (agent, rows.agent_row(agent))
        return {agent_id: row for agent_id, (_, row) in self._agent_rows.items()}, max(0, len(agents) - LISTED)

    def _visible_agents(self) -> list[str]:
        table = self.table("agents")
        first = max(0, int(table.scroll_offset.y))
        return list(table.shown)[first : first + min(table.size.height, MOST_VISIBLE)]

    def selected(self) -> str | None:
        """Return the key of the row with the cursor; None if there is no row."""
        return self.table(self.pane).selected

    # Keys

    def action_pane(self, pane: str) -> None:
        """Show another pane."""
        self.pane = pane
        self._main.query_one("#panes", ContentSwitcher).current = f"pane-{pane}"
        self.table(pane).focus()
        field = self._main.query_one("#filter", Input)
        field.remove_class("shown")
        with field.prevent(Input.Changed):
            field.value, field.placeholder = self.filters[pane], FILTERS[pane]
        self.show()
        self.run_worker(self.read(), group="pane", exclusive=True)

    def action_next_pane(self) -> None:
        """Show the pane after this one."""
        if len(self.screen_stack) == 1:
            names = list(PANES)
            self.action_pane(names[(names.index(self.pane) + 1) % len(names)])

    def action_filter(self) -> None:
        """Begin to filter."""
        field = self._main.query_one("#filter", Input)
        field.add_class("shown")
        field.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while the text is typed; a query with a mistake changes nothing but the line that names it."""
        text = self.filters[self.pane] = event.value.strip()
        if self.pane == "agents":
            try:
                self.wanted, self.mistake = AGENTS.parse(text), ""
            except QueryInvalid as error:
                self.mistake = str(error)
        self.show()

    def on_input_submitted(self) -> None:
        """Keep the filter, and go back to the rows."""
        self._main.query_one("#filter", Input).remove_class("shown")
        self.table(self.pane).focus()

    def action_end_filter(self) -> None:
        """Show all rows."""
        field = self._main.query_one("#filter", Input)
        field.value = ""
        field.remove_class("shown")
        self.table(self.pane).focus()

    def action_sort(self) -> None:
        """Sort the agents by the next order."""
        names = list(ORDERS)
        self.order = names[(names.index(self.order) + 1) % len(names)]
        self.show()

    def action_pause(self) -> None:
        """Stop or continue to refresh."""
        self.is_paused = not self.is_paused
        self.show()

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(Dialog(HELP))

    def on_data_table_row_selected(self) -> None:
        """Explain the row on Enter."""
        self.action_explain()

    def action_explain(self) -> None:
        """Show all about an agent, or why a task waits or went to its agent."""
        key = self.selected()
        if key is None:
            return
        if self.pane == "agents":
            agent = self.feed.agents.get(key)
            now = self.feed.statistics.now if self.feed.statistics else 0
            if agent is not None:
                self.push_screen(Dialog(rows.agent_details(agent, now)))
        elif self.pane == "tasks":
            self.run_worker(self._explain(key))
        elif self.pane == "queues" and self.feed.backlog is not None:
            heads = {pool.pool: pool.head for pool in self.feed.backlog.pools}
            self.run_worker(self._explain(heads[key]))

    async def _explain(self, task_id: str) -> None:
        try:
            found = await self.client.explain(task_id)
        except (CoordError, OSError) as error:
            self.notify(str(error), severity="error", markup=False)
        else:
            await self.push_screen(Dialog(rows.explanation(found)))

    def action_drain(self) -> None:
        """Drain the agent, after a question."""
        self._act_on_agent("drain", "It gets no new tasks, and keeps those that it has.", self.client.admin.drain)

    def action_resume(self) -> None:
        """Resume the agent, after a question."""
        self._act_on_agent("resume", "It gets tasks again.", self.client.admin.resume)

    def _act_on_agent(self, verb: str, effect: str, act: Callable[[str], Awaitable[object]]) -> None:
        if (agent_id := self.selected()) is None or self.pane != "agents":
            self.notify(f"select an agent to {verb} (key 1)", severity="warning")
            return
        self._ask(f"{verb.capitalize()} agent {agent_id}?\n{effect}", lambda: act(agent_id), f"{agent_id}: ")

    def action_cancel(self) -> None:
        """Cancel the task, after a question."""
        if (task_id := self.selected()) is None or self.pane != "tasks":
            self.notify("select a task to cancel (key 3)", severity="warning")
            return
        question = f"Cancel task {task_id}?\nAn agent that runs it is told to stop."
        self._ask(question, lambda: self.client.cancel(task_id, "coord top"), f"{task_id}: cancel ")

    def _ask(self, question: str, act: Callable[[], Awaitable[object]], prefix: str) -> None:
        def decided(answer: bool | None) -> None:
            if answer:
                self.run_worker(self._do(act, prefix))

        self.push_screen(Dialog(question, asks=True), decided)

    async def _do(self, act: Callable[[], Awaitable[object]], prefix: str) -> None:
        try:
            result = await act()
        except (CoordError, OSError) as error:
            self.notify(str(error), severity="error", markup=False)
        else:
            self.notify(f"{prefix}{result}", markup=False)
            await self.read()
