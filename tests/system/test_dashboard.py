"""The dashboard in Chromium, with a live cell behind it: what it shows, what it changes, and what it survives."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from time import monotonic
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.gateway.script import join
from coord.models.agents import AgentStatus, AgentType, Location
from coord.models.facts import AgentRegistered
from coord.streams import Append
from tests.browser import DEVICES, THEMES, TIMEOUT_MS, Device, OpenPage, Theme, WatchedPage
from tests.ports import unused_port
from tests.repo.documents import ROOT, blocks
from tests.running import running_cell
from tests.system.gateway_cell import Gateway, gateway_of
from tests.system.live_cell import LiveCell, live_cell

US = Location(region="us")
FLEET = (
    AgentRegistered(
        "gpu-1", AgentType.INFERENCE, capabilities=("summarize",), capacity=4, tags=("spot",), version="2.4.1",
        labels={"rack": "r7"}, location=Location(region="eu-west", zone="eu-west-a"),
    ),
    AgentRegistered("gpu-2", AgentType.INFERENCE, capabilities=("summarize",), capacity=4, location=US),
    AgentRegistered("scan-1", AgentType.WORKER, capabilities=("scan", "ocr"), capacity=2, location=US),
)  # fmt: skip


@pytest.fixture(scope="module")
def cell(server: EmbeddedServer) -> Iterator[LiveCell]:
    """A cell with agents of three kinds beside that of the SDK."""
    settings = Settings(namespace="dashboard", gateway_wait_s=20, gateway_redis_s=20)
    with live_cell(server.url, settings) as running:
        running.do(running.client.connection.append([Append("in:registry", fact) for fact in FLEET]))
        yield running


@pytest.fixture(scope="module")
def gateway(cell: LiveCell) -> Iterator[Gateway]:
    """A gateway without security."""
    with gateway_of(cell) as running:
        yield running


@pytest.fixture(scope="module")
def secured(cell: LiveCell) -> Iterator[Gateway]:
    """A gateway of the same cell with security on."""
    with gateway_of(cell, gateway_security=True, gateway_jwt_secret="k" * 40) as running:
        yield running


class OpenFleet:
    """Opens the Fleet page.

    Attributes:
        watched: the pages that it has opened.
    """

    def __init__(self, port: int, open_page: OpenPage) -> None:
        self._url = f"http://127.0.0.1:{port}/ui"
        self._open_page = open_page
        self.watched: list[WatchedPage] = []

    def __call__(self, place: str = "", **options: Any) -> Page:
        """Open it, and wait until it follows the cell."""
        self.watched.append(self._open_page(self._url + place, **options))
        page = self.watched[-1].page
        expect(page.get_by_text("Live")).to_be_visible()
        return page


@pytest.fixture
def fleet(gateway: Gateway, open_page: OpenPage) -> OpenFleet:
    """Opens the Fleet page."""
    return OpenFleet(gateway.port, open_page)


def tile(page: Page, agent_id: str) -> Locator:
    """The tile of an agent."""
    return page.locator(f'.tile[data-agent="{agent_id}"]')


def panel(page: Page) -> Locator:
    """The panel of the agent that is open."""
    return page.locator("aside.agent")


def test_the_fleet_is_shown_without_configuration(fleet: OpenFleet) -> None:
    """Each agent is a button that says what it is and how full."""
    page = fleet()
    expect(page).to_have_title("Fleet · coord")
    expect(page.get_by_role("button", name="gpu-1: active, 0 of 4 tasks, health 100 %")).to_be_visible()
    expect(page.locator(".tile")).to_have_count(4)
    expect(page.get_by_role("heading", level=1)).to_have_text("4 agents")
    expect(page.get_by_role("link", name="Fleet", exact=True)).to_have_attribute("aria-current", "page")


def test_groups_and_filter_are_in_the_url(fleet: OpenFleet) -> None:
    """So that a view can be kept and sent; a typo says which fields exist."""
    page = fleet()
    page.get_by_label("Group by").select_option("region")
    expect(page.locator(".group h2")).to_have_text(["eu-west", "us", "None"])
    page.get_by_label("Group by").select_option("capability")
    expect(page.locator(".group h2")).to_have_text(["boom", "echo", "gate", "ocr", "scan", "summarize"])
    bar = page.get_by_role("combobox", name="Filter agents")
    bar.fill("capability:scan,summarize -region:us")
    expect(page.get_by_role("heading", level=1)).to_have_text("1 of 4 agents")
    assert page.url.endswith("#/fleet?group=capability&q=capability%3Ascan%2Csummarize+-region%3Aus")
    page.reload()
    expect(page.get_by_role("heading", level=1)).to_have_text("1 of 4 agents")
    expect(bar).to_have_value("capability:scan,summarize -region:us")
    expect(page.get_by_label("Group by")).to_have_value("capability")
    bar.fill("regoin:us")
    expect(page.get_by_role("alert")).to_contain_text("There is no field “regoin”. Fields: id, state, type")
    bar.fill("nobody")
    page.get_by_role("button", name="Clear the filter").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("4 agents")


def test_the_query_bar_completes_fields_and_values(fleet: OpenFleet) -> None:
    """With the values that the agents have, by keyboard."""
    page = fleet()
    page.keyboard.press("/")
    bar = page.get_by_role("combobox", name="Filter agents")
    expect(bar).to_be_focused()
    page.keyboard.type("reg")
    expect(page.locator(".querybar [role=option]")).to_have_text(["region:region of its location"])
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(bar).to_have_value("region:")
    expect(page.locator(".querybar [role=option]")).to_have_text(["region:eu-west", "region:us"])
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Tab")
    expect(bar).to_have_value("region:us ")
    expect(page.get_by_role("heading", level=1)).to_have_text("2 of 4 agents")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    expect(bar).not_to_be_focused()


def test_tiles_follow_the_events(cell: LiveCell, gateway: Gateway, fleet: OpenFleet) -> None:
    """An agent that comes, a task that is placed and ends, an agent that leaves."""
    page = fleet()
    fact = AgentRegistered("late-1", AgentType.WORKER, capabilities=("late",), capacity=1)
    cell.do(cell.client.connection.append([Append("in:registry", fact)]))
    expect(tile(page, "late-1")).to_be_visible()
    cell.do(cell.client.submit("gate", {"gate": "follow"}, task_id="follow-1", priority="high"))
    expect(tile(page, "cli-agent")).to_have_attribute("aria-label", re.compile("1 of 50 tasks"))
    expect(page.locator(".placements li").first).to_contain_text("follow-1")
    cell.open_gate("follow")
    expect(tile(page, "cli-agent")).to_have_attribute("aria-label", re.compile("0 of 50 tasks"))
    gateway.success("DELETE", "/agents/late-1")
    expect(tile(page, "late-1")).to_have_count(0)


def test_events_during_a_read_of_all_agents_count(cell: LiveCell, fleet: OpenFleet) -> None:
    """What is read is older than they are, so they are applied to it."""
    other, page = fleet(), fleet()
    read: list[Any] = []

    def keep(route: Any) -> None:  # later ones get no answer: they would hide a lost event
        read.append((route, route.fetch() if not read else None))

    page.route(re.compile(r"/agents\?"), keep)
    page.reload()
    expect(page.get_by_text("Live")).to_be_visible()
    wait_for = monotonic() + TIMEOUT_MS / 1000
    while not read and monotonic() < wait_for:
        page.wait_for_timeout(20)
    cell.do(cell.client.admin.drain("gpu-2"))
    cell.do(cell.client.submit("gate", {"gate": "missed"}, task_id="missed-1"))
    try:
        expect(other.locator(".placements li").first).to_contain_text("missed-1")
        page.wait_for_timeout(500)  # this page shows nothing yet, but has the events too
        read[0][0].fulfill(response=read[0][1])
        expect(tile(page, "gpu-2")).to_have_attribute("aria-label", re.compile("gpu-2: draining"))
        expect(tile(page, "cli-agent")).to_have_attribute("aria-label", re.compile("1 of 50 tasks"))
    finally:
        cell.open_gate("missed")
        cell.do(cell.client.admin.resume("gpu-2"))


#: True if something is drawn on the canvas of the flights.
DRAWN = """() => {
  const canvas = document.querySelector("canvas.flights");
  const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  return pixels.some((value, at) => at % 4 === 3 && value > 0);
}"""


def test_a_placed_task_flies_to_its_agent(cell: LiveCell, fleet: OpenFleet) -> None:
    """It is drawn while it flies, and the canvas is empty after it; without motion nothing is drawn."""
    page, still = fleet(), fleet(reduced_motion="reduce")
    still.evaluate(f"globalThis.drawn = false; setInterval(() => {{ if (({DRAWN})()) drawn = true }}, 50)")
    cell.do(cell.client.submit("echo", task_id="flies-1"))
    page.wait_for_function(DRAWN)
    expect(still.locator(".placements li").first).to_contain_text("flies-1")
    page.wait_for_function(f"() => !({DRAWN})()")
    assert still.evaluate("drawn") is False


def test_an_agent_is_explained(cell: LiveCell, fleet: OpenFleet) -> None:
    """What it is, why it has its health, what it runs and ran. The open agent is in the URL."""
    cell.do(cell.client.submit("gate", {"gate": "explain"}, task_id="held-1"))
    cell.do(cell.client.submit("boom", task_id="failed-1"))
    page = fleet()
    tile(page, "cli-agent").click()
    assert page.url.endswith("#/fleet/cli-agent")
    expect(panel(page).get_by_role("heading", name="cli-agent")).to_be_focused()
    expect(panel(page).locator(".tasklist li", has_text="held-1")).to_contain_text("running")
    expect(panel(page).locator(".tasklist li", has_text="failed-1")).to_contain_text("failed: it_broke")
    expect(panel(page)).to_contain_text("Heartbeats received")
    expect(panel(page)).to_contain_text("fast")
    cell.open_gate("explain")
    expect(panel(page).locator(".tasklist li", has_text="held-1")).to_contain_text("completed")
    expect(panel(page)).to_contain_text("No task at the moment.")
    page.goto(page.url.replace("cli-agent", "gpu-1"))
    for text in ("gpu-1", "inference", "2.4.1", "eu-west / eu-west-a", "summarize", "spot", "rack=r7", "0 of 4 slots"):
        expect(panel(page)).to_contain_text(text)
    page.goto(page.url.replace("gpu-1", "nobody"))
    expect(panel(page).get_by_role("alert")).to_have_text("There is no agent “nobody”.")
    fleet.watched[-1].forgive("status of 404")


def test_everything_is_reached_by_keyboard(fleet: OpenFleet) -> None:
    """The tiles are one stop; arrows move between them, Enter opens an agent, Escape goes back to its tile."""
    page = fleet()
    page.locator(".tile").first.focus()
    for key, agent_id in (("ArrowRight", "gpu-1"), ("End", "scan-1"), ("ArrowLeft", "gpu-2"), ("Home", "cli-agent")):
        page.keyboard.press(key)
        expect(tile(page, agent_id)).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    expect(tile(page, "gpu-1")).not_to_be_focused()
    page.keyboard.press("Shift+Tab")
    expect(tile(page, "gpu-1")).to_be_focused()
    page.keyboard.press("Enter")
    expect(panel(page).get_by_role("heading", name="gpu-1")).to_be_focused()
    page.keyboard.press("Escape")
    expect(panel(page)).to_have_count(0)
    expect(tile(page, "gpu-1")).to_be_focused()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keys")).to_contain_text("Go to Fleet")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.goto(f"{page.url.partition('#')[0]}#/nothing")
    expect(page.get_by_role("heading", name="There is no such page")).to_be_visible()
    page.keyboard.press("g")
    page.keyboard.press("f")
    expect(page.locator(".tile")).to_have_count(4)


def test_the_focus_stays_while_the_page_follows(cell: LiveCell, fleet: OpenFleet) -> None:
    """Lists and buttons that are drawn again keep it, or give it to what comes into their place."""
    page = fleet()
    active = page.locator(".states button", has_text="active")
    active.focus()
    cell.do(cell.client.admin.drain("gpu-2"))
    try:
        expect(active).to_have_text("3 active")
        expect(active).to_be_focused()
        for name in ("focus-1", "focus-2"):
            cell.do(cell.client.submit("echo", task_id=name))
        page.get_by_role("link", name="focus-1").focus()
        cell.do(cell.client.submit("echo", task_id="focus-3"))
        expect(page.get_by_role("link", name="focus-3")).to_be_visible()
        expect(page.get_by_role("link", name="focus-1")).to_be_focused()
        page.get_by_role("button", name="Table").click()
        page.get_by_role("region", name="Agents").focus()
        fact = AgentRegistered("focus-9", AgentType.MONITOR, capacity=1)
        cell.do(cell.client.connection.append([Append("in:registry", fact)]))
        link = page.get_by_role("link", name="focus-9")
        expect(link).to_be_visible()
        expect(page.get_by_role("region", name="Agents")).to_be_focused()
        link.focus()
        cell.do(cell.client.admin.remove("focus-9"))
        expect(link).to_have_count(0)
        expect(page.locator("body")).not_to_be_focused()
    finally:
        cell.do(cell.client.admin.remove("focus-9"))
        cell.do(cell.client.admin.resume("gpu-2"))


def test_the_content_is_skipped_to(fleet: OpenFleet) -> None:
    """The first stop of the keyboard; the page stays."""
    page = fleet()
    expect(page.locator(".tile")).to_have_count(4)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    expect(page.locator(".tile")).to_have_count(4)
    assert "#main" not in page.url


def test_the_table_shows_the_same_agents(fleet: OpenFleet) -> None:
    """For who prefers rows; the choice is in the URL."""
    page = fleet()
    page.get_by_role("button", name="Table").click()
    expect(page.get_by_role("row", name="gpu-1 active 0 / 4 100 % inference eu-west summarize")).to_be_visible()
    page.reload()
    page.get_by_role("link", name="scan-1").click()
    expect(panel(page).get_by_role("heading", name="scan-1")).to_be_focused()
    page.get_by_role("button", name="Close the agent").click()
    expect(page.get_by_role("link", name="scan-1")).to_be_focused()


def test_an_operator_changes_an_agent(cell: LiveCell, fleet: OpenFleet) -> None:
    """After a confirmation, which may be declined; the tile follows."""

    def status() -> AgentStatus:
        return cell.do(cell.client.agent("gpu-2")).status

    page = fleet("#/fleet/gpu-2")
    for name, wanted in (("Drain", "draining"), ("Maintenance", "maintenance"), ("Resume", "active")):
        before = status()
        panel(page).get_by_role("button", name=name).click()
        dialog = page.get_by_role("dialog", name=f"{name} gpu-2?")
        dialog.get_by_role("button", name="Cancel").click()
        expect(dialog).to_have_count(0)
        assert status() == before
        panel(page).get_by_role("button", name=name).click()
        dialog.get_by_role("button", name=name).click()
        expect(page.get_by_role("log", name="Notifications")).to_contain_text("gpu-2")
        expect(tile(page, "gpu-2")).to_have_attribute("aria-label", re.compile(f"gpu-2: {wanted}"))
        expect(panel(page).locator(".agent-summary .state")).to_have_text(wanted)
        assert status() == wanted


def test_a_restarted_gateway_is_caught_up_with(cell: LiveCell, open_page: OpenPage) -> None:
    """The page says that the connection is lost, connects again, and shows what happened meanwhile without a reload."""
    port = unused_port()
    with gateway_of(cell, port):
        watched = open_page(f"http://127.0.0.1:{port}/ui#/fleet?group=type")
        page = watched.page
        expect(page.locator(".tile")).to_have_count(4)
        page.evaluate("globalThis.isTheSamePage = true")
    expect(page.get_by_text("Connection lost", exact=True)).to_be_visible()
    expect(page.get_by_role("status").filter(has_text="connects again by itself")).to_be_visible()
    page.get_by_role("button", name="Connect now").click()
    expect(page.get_by_text("Connection lost", exact=True)).to_be_visible()
    fact = AgentRegistered("away-1", AgentType.MONITOR, capacity=1)
    cell.do(cell.client.connection.append([Append("in:registry", fact)]))
    cell.do(cell.client.admin.drain("scan-1"))
    try:
        with gateway_of(cell, port):
            expect(page.get_by_text("Live")).to_be_visible()
            expect(page.locator(".notice")).to_have_count(0)
            expect(tile(page, "away-1")).to_be_visible()
            expect(tile(page, "scan-1")).to_have_attribute("aria-label", re.compile("scan-1: draining"))
            cell.do(cell.client.admin.resume("scan-1"))
            expect(tile(page, "scan-1")).to_have_attribute("aria-label", re.compile("scan-1: active"))
            cell.do(cell.client.admin.remove("away-1"))
            expect(page.locator(".tile")).to_have_count(4)
            assert page.evaluate("globalThis.isTheSamePage") is True
            page.goto("about:blank")
    finally:
        cell.do(cell.client.admin.resume("scan-1"))
        cell.do(cell.client.admin.remove("away-1"))
    watched.forgive("ERR_|status of 503")


def test_a_browser_that_was_asleep_does_not_read_what_it_missed(cell: LiveCell, open_page: OpenPage) -> None:
    """It continues where the connection ended, and after minutes it begins with what comes next."""
    port = unused_port()
    with gateway_of(cell, port):
        watched = open_page(f"http://127.0.0.1:{port}/ui")
        page = watched.page
        expect(page.locator(".tile")).to_have_count(4)
        cell.do(cell.client.submit("echo", task_id="asleep-1"))
        expect(page.locator(".placements li").first).to_contain_text("asleep-1")
    for asleep_ms, continues in ((0, True), (400_000, False)):
        expect(page.get_by_text("Connection lost", exact=True)).to_be_visible()
        page.evaluate("(asleep) => { const now = Date.now; Date.now = () => now() + asleep }", asleep_ms)
        with page.expect_request("**/events?*") as request:
            page.get_by_role("button", name="Connect now").click()
        assert ("last-event-id" in request.value.headers) is continues
    page.goto("about:blank")
    page.wait_for_timeout(500)  # the browser reports failed requests late
    watched.forgive("ERR_|status of 503")


def test_a_role_limits_what_is_offered(cell: LiveCell, secured: Gateway, open_page: OpenPage) -> None:
    """The page asks for a credential, shows whose it is, and disables what its role may not do, with the reason."""
    readonly, _ = cell.do(cell.client.admin.create_key("readonly", name="watcher"))
    operator, record = cell.do(cell.client.admin.create_key("operator", name="keeper"))
    watched = open_page(f"http://127.0.0.1:{secured.port}/ui#/fleet/gpu-1")
    page = watched.page
    login = page.get_by_role("dialog", name="Log in")
    expect(login).to_be_visible()
    for _ in range(3):  # browsers close a dialog at the second one
        page.keyboard.press("Escape")
        page.wait_for_timeout(50)
    expect(login).to_be_visible()
    login.get_by_label("API key or token").fill("coord_key_0123456789ab_" + "x" * 43)
    login.get_by_role("button", name="Log in").click()
    expect(login.get_by_role("alert")).to_contain_text("The credential is not valid")
    login.get_by_label("API key or token").fill(readonly)
    page.keyboard.press("Enter")
    expect(login).to_have_count(0)
    expect(page.locator("#top")).to_contain_text("watcherreadonly")
    expect(page.locator(".tile")).to_have_count(4)
    drain = panel(page).get_by_role("button", name="Drain")
    expect(drain).to_be_disabled()
    expect(panel(page)).to_contain_text("Not allowed: needs the role operator; your role is readonly.")
    page.reload()
    expect(page.locator("#top")).to_contain_text("watcher")
    page.get_by_role("button", name="Log out").click()
    expect(login).to_be_visible()
    expect(page.locator(".tile")).to_have_count(0)
    jwt = secured.call("POST", "/auth/login", {"api_key": operator}).body["access_token"]
    login.get_by_label("API key or token").fill(jwt)
    page.keyboard.press("Enter")
    expect(page.locator("#top")).to_contain_text("keeperoperator")
    drain.click()
    page.get_by_role("dialog").get_by_role("button", name="Drain").click()
    expect(tile(page, "gpu-1")).to_have_attribute("aria-label", re.compile("draining"))
    cell.do(cell.client.admin.resume("gpu-1"))
    cell.do(cell.client.admin.revoke_key(record.key_id))
    cell.do(cell.client.submit("echo"))  # an event: the gateway checks the credential before it sends the next one
    expect(login.get_by_role("alert")).to_contain_text("not valid any more")
    expect(page.locator(".tile")).to_have_count(0)
    watched.forgive("status of 401")


def test_an_empty_cell_says_what_to_do(cell: LiveCell, open_page: OpenPage) -> None:
    """The next step, with its command."""
    stack = AsyncExitStack()
    cell.do(stack.enter_async_context(running_cell(cell.url, Settings(namespace="dashboard-empty"))))
    try:
        with gateway_of(cell, namespace="dashboard-empty") as gateway:
            page = open_page(f"http://127.0.0.1:{gateway.port}/ui").page
            expect(page.get_by_role("heading", name="No agent is registered")).to_be_visible()
            expect(page.locator("pre")).to_contain_text("coord agent")
            page.goto("about:blank")
    finally:
        cell.do(stack.aclose())


def module_of_document() -> str:
    """Return the module of docs/dashboard.md."""
    (block,) = (block for block in blocks(ROOT / "docs" / "dashboard.md") if block.language == "js")
    return block.text


def add_page(page: Page, row: str, module: str) -> None:
    """Serve a dashboard with one more page: ``pages/pools.js``, with its row in the index."""
    folder = ROOT / "coord" / "gateway" / "ui"
    modules = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.js")}
    modules["pages/pools.js"] = module
    begin = "export const PAGES = ["
    modules["pages/index.js"] = modules["pages/index.js"].replace(begin, f"{begin}{row}, ")
    script = join(modules, "app.js")
    page.route("**/app.js", lambda route: route.fulfill(body=script, content_type="text/javascript"))
    page.goto(f"{page.url.partition('#')[0]}#/fleet")
    page.reload()
    expect(page.locator(".tile")).to_have_count(4)


def test_the_page_of_the_document_works(fleet: OpenFleet) -> None:
    """Once it is named in the index, as the document says."""
    (row,) = re.findall(r"`(\{ name: .*? \})`", (ROOT / "docs" / "dashboard.md").read_text())
    page = fleet()
    add_page(page, row, module_of_document())
    page.keyboard.press("g")
    page.keyboard.press("p")
    expect(page.get_by_role("heading", name="Pools")).to_be_visible()
    expect(page.get_by_text("0 pools")).to_be_visible()
    assert page.url.endswith("#/pools")


#: Presses the first point of the canvas that is drawn. True once that has opened the task.
PRESS = """() => {
  const canvas = document.querySelector("canvas.flights");
  if (!canvas) return false;
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const at = data.findIndex((value, index) => index % 4 === 3 && value > 200) >> 2;
  if (at < 0) return false;
  const [clientX, clientY] = [at % canvas.width, Math.floor(at / canvas.width)];
  const press = new MouseEvent("click", { bubbles: true, cancelable: true, clientX, clientY });
  document.elementFromPoint(clientX, clientY).dispatchEvent(press);
  return location.hash === "#/task/pressed-1";
}"""


def test_a_pressed_flight_opens_its_task(cell: LiveCell, fleet: OpenFleet) -> None:
    """As does its link in the list of placements."""
    page = fleet()
    add_page(page, '{ name: "task", load: () => import("./pools.js") }', module_of_document())
    cell.do(cell.client.submit("echo", task_id="pressed-1"))
    page.wait_for_function(PRESS)
    expect(page.get_by_role("heading", name="Pools")).to_be_visible()
    page.go_back()
    cell.do(cell.client.submit("echo", task_id="pressed-2"))
    page.get_by_role("link", name="pressed-2").click()
    assert page.url.endswith("#/task/pressed-2")


#: Presses the button "Table" at a place where a flight is drawn. True once it has done so.
PRESS_TABLE = """() => {
  const canvas = document.querySelector("canvas.flights");
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const at = data.findIndex((value, index) => index % 4 === 3 && value > 200) >> 2;
  if (at < 0) return false;
  const [clientX, clientY] = [at % canvas.width, Math.floor(at / canvas.width)];
  const press = new MouseEvent("click", { bubbles: true, cancelable: true, clientX, clientY });
  document.querySelector(".segments button:last-child").dispatchEvent(press);
  return true;
}"""


def test_a_flight_takes_no_press_of_a_control(cell: LiveCell, fleet: OpenFleet) -> None:
    """A button under a flight does what it says."""
    page = fleet()
    expect(page.locator(".tile")).to_have_count(4)
    cell.do(cell.client.submit("echo", task_id="over-1"))
    page.wait_for_function(PRESS_TABLE)
    expect(page.get_by_role("table", name="Agents")).to_be_visible()
    assert page.url.endswith("#/fleet?view=table")


#: A page with a chart of three values, of which the last one changes each second.
CHART_PAGE = """
import { chart } from "../chart.js";
export const title = "Chart";
let made = null;
export async function mount(root) {
  const series = [{ label: "completed", color: "ok", fill: true }, { label: "failed", color: "bad", dash: [4, 3] }];
  const format = (value) => `${value} tasks`;
  made = await chart(root, { label: "Tasks", series, format, data: [[0, 60, 120], [4, 5, 6], [1, null, 3]] });
  made.set([[60, 120, 180], [5, 6, 7], [null, 3, 2]]);
}
export function unmount() {
  made.destroy();
}
"""


def test_a_chart_shows_the_values_of_a_time(fleet: OpenFleet, gateway: Gateway) -> None:
    """Where the pointer is; it is drawn again in the colours of another theme, and removed with its page."""
    page = fleet()
    add_page(page, '{ name: "chart", load: () => import("./pools.js") }', CHART_PAGE)
    page.goto(f"http://127.0.0.1:{gateway.port}/ui/#/chart")
    canvas = page.locator(".chart canvas")
    canvas.hover(position={"x": 640, "y": 60}, force=True)
    expect(page.locator(".chart")).to_contain_text("6 tasks")
    expect(page.locator(".chart")).to_contain_text("3 tasks")
    before = canvas.evaluate("(canvas) => canvas.toDataURL()")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("(before) => document.querySelector('.chart canvas').toDataURL() !== before", arg=before)
    page.keyboard.press("g")
    page.keyboard.press("f")
    expect(page.locator(".tile")).to_have_count(4)
    expect(page.locator(".chart")).to_have_count(0)


def test_the_theme_is_kept(fleet: OpenFleet) -> None:
    """That of the system at first, then the chosen one, also after a reload."""
    page = fleet(theme="dark")
    root = page.locator("html")
    expect(root).to_have_attribute("data-theme", "dark")
    page.emulate_media(color_scheme="light")
    expect(root).to_have_attribute("data-theme", "light")
    page.get_by_role("button", name="System theme; change it").click()
    page.get_by_role("button", name="Light theme; change it").click()
    expect(root).to_have_attribute("data-theme", "dark")
    page.reload()
    expect(root).to_have_attribute("data-theme", "dark")
    expect(page.get_by_role("button", name="Dark theme; change it")).to_be_visible()


def test_a_narrow_phone_shows_everything(fleet: OpenFleet) -> None:
    """Nothing is wider than 360 pixels."""
    page = fleet("#/fleet/gpu-1?group=type", device="phone")
    page.set_viewport_size({"width": 360, "height": 740})
    expect(panel(page)).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.get_by_role("button", name="Close the agent").click()
    page.get_by_role("button", name="Table").click()
    expect(page.get_by_role("table", name="Agents")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("theme", THEMES)
def test_no_barriers(fleet: OpenFleet, secured: Gateway, open_page: OpenPage, theme: Theme, device: Device) -> None:
    """For the tiles, an agent, a confirmation, the table, the list of keys, and the login."""
    watched = open_page(f"http://127.0.0.1:{secured.port}/ui", theme=theme, device=device)
    expect(watched.page.get_by_role("dialog", name="Log in")).to_be_visible()
    assert watched.barriers() == []
    watched.forgive("status of 401")
    page = fleet(theme=theme, device=device)
    seen = fleet.watched[-1]
    expect(page.locator(".tile")).to_have_count(4)
    assert seen.barriers() == []
    tile(page, "gpu-1").click()
    expect(panel(page)).to_contain_text("rack=r7")
    assert seen.barriers() == []
    panel(page).get_by_role("button", name="Drain").click()
    assert seen.barriers() == []
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Table").click()
    expect(page.get_by_role("table", name="Agents")).to_be_visible()
    assert seen.barriers() == []
    page.get_by_role("button", name="Table").focus()
    page.keyboard.press("?")
    assert seen.barriers() == []
