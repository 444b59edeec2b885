"""The System page of the dashboard in Chromium, with a live cell behind it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.keys import CONSUMES
from tests.browser import DEVICES, THEMES, Device, OpenPage, Theme, WatchedPage
from tests.running import running_cell
from tests.system.gateway_cell import Gateway, gateway_of
from tests.system.live_cell import LiveCell, live_cell

STRATEGY = "/load-balancer/strategy"
#: ms in which a page that reads once a second would have read at least once.
A_WHILE_MS = 3_000


@pytest.fixture(scope="module")
def cell(server: EmbeddedServer) -> Iterator[LiveCell]:
    """A cell with one worker of each kind and an agent."""
    settings = Settings(namespace="dashboard-system", gateway_wait_s=20, gateway_redis_s=20)
    with live_cell(server.url, settings) as running:
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


def show(open_page: OpenPage, gateway: Gateway, **options: Any) -> WatchedPage:
    """Open the page, and wait until it has read the state of the cell."""
    watched = open_page(f"http://127.0.0.1:{gateway.port}/ui#/system", **options)
    expect(watched.page.locator(".system-top")).to_contain_text("as of")
    return watched


def log_in(page: Page, key: str) -> None:
    """Log in with a key."""
    dialog = page.get_by_role("dialog", name="Log in")
    dialog.get_by_label("API key or token").fill(key)
    dialog.get_by_role("button", name="Log in").click()
    expect(dialog).to_have_count(0)


def panel(page: Page, heading: str) -> Locator:
    """The part of the page with this heading."""
    return page.locator("section.panel", has=page.get_by_role("heading", name=heading, exact=True))


def command(cell: LiveCell, *words: str) -> Any:
    """Send a command to the server."""

    async def send() -> Any:
        return await cell.client.connection.redis.execute_command(*words)

    return cell.do(send())


def process(page: Page, kind: str) -> Locator:
    """The rows of the processes of a kind."""
    return page.locator(f'[aria-label="Processes"] tbody tr[data-key^="{kind}-"]')


def test_processes_are_live(cell: LiveCell, gateway: Gateway, open_page: OpenPage) -> None:
    """Workers and gateways with lag and throughput; a process that starts or stops appears or goes."""
    page = show(open_page, gateway).page
    expect(page).to_have_title("System · coord")
    expect(page.get_by_role("link", name="System", exact=True)).to_have_attribute("aria-current", "page")
    for kind in ("registry", "distributor", "router", "gateway"):
        expect(process(page, kind)).to_have_count(1)
        expect(process(page, kind).locator("td").nth(3)).to_have_text(re.compile(r"^[\d.]+ (ms|s)$"))
    handled = process(page, "distributor").locator("td").nth(4)
    before = handled.inner_text()
    for number in range(3):
        cell.do(cell.client.submit("echo", {"number": number}))
    expect(handled).not_to_have_text(before)
    stack = AsyncExitStack()
    cell.do(stack.enter_async_context(running_cell(cell.url, cell.settings, kinds=("router",))))
    try:
        expect(process(page, "router")).to_have_count(2)
    finally:
        cell.do(stack.aclose())
    expect(process(page, "router")).to_have_count(1)


def test_the_streams_and_the_server(cell: LiveCell, gateway: Gateway, open_page: OpenPage) -> None:
    """Each stream with its group; durability and connections; memory in use, and with a limit the share of it."""
    page = show(open_page, gateway).page
    streams = page.locator('[aria-label="Streams"] tbody tr')
    expect(streams).to_have_count(sum(len(names) for names in CONSUMES.values()))
    expect(streams.first).to_contain_text("in:registry")
    redis = panel(page, "Redis")
    found = gateway.success("GET", "/system")["server"]
    expect(redis).to_contain_text(f"{found['product']} {found['version']}")
    expect(redis).to_contain_text("none: a restart loses everything")
    expect(redis).to_contain_text(f"of {found['maxclients']:,}")
    try:
        command(cell, "CONFIG", "SET", "maxmemory", str(1 << 30))
        expect(redis).to_contain_text(re.compile(r"MiB of 1\.0 GiB, \d+ %"))
        expect(redis.locator(".meter b")).to_have_count(3)
        expect(redis).to_contain_text("Above 85 % submissions are refused")
        command(cell, "CONFIG", "SET", "maxmemory", "0")
        expect(redis).to_contain_text("in use; no limit is set (maxmemory)")
        expect(redis.locator(".meter")).to_have_count(0)
    finally:
        command(cell, "CONFIG", "SET", "maxmemory", str(found["maxmemory"]))


def test_a_finding_shows_and_goes_away(cell: LiveCell, gateway: Gateway, open_page: OpenPage) -> None:
    """First on the page, with its advice; a command is copied."""
    page = show(open_page, gateway, permissions=["clipboard-read", "clipboard-write"]).page
    finding = page.locator('.findings [data-code="dead_letters"]')
    expect(finding).to_have_count(0)
    cell.do(cell.client.submit("boom", task_id="finding-1"))
    expect(finding).to_contain_text("Warning: 1 failed task is kept as")
    finding.get_by_role("button", name="Copy coord dead list --kind task").click()
    expect(finding.get_by_role("button", name="Copied coord dead list --kind task")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == "coord dead list --kind task"
    cell.do(cell.client.admin.purge("task", "finding-1"))
    expect(finding).to_have_count(0)
    page.get_by_text(re.compile(r"^\d+ checks passed$")).click()
    expect(page.locator(".passed li", has_text="workers")).to_contain_text("1 distributor")


def test_the_ledger(cell: LiveCell, gateway: Gateway, open_page: OpenPage) -> None:
    """The check runs when it is asked for: consistent, or what is wrong."""
    page = show(open_page, gateway).page
    expect(page.locator(".ledger")).to_be_empty()
    page.get_by_role("button", name="Check the ledger").click()
    expect(page.get_by_text("The ledger is consistent")).to_be_visible()
    members = cell.keys.of("agents:active")
    command(cell, "SADD", members, "ghost")
    try:
        with gateway_of(cell) as other:  # a result is kept for 30 s
            page = show(open_page, other).page
            page.get_by_role("button", name="Check the ledger").click()
            expect(page.locator('.ledger [data-code="ledger"]')).to_contain_text("ghost")
            expect(page.locator(".ledger")).to_contain_text("checked at")
            page.goto("about:blank")
    finally:
        command(cell, "SREM", members, "ghost")


def test_the_strategy_is_switched(cell: LiveCell, gateway: Gateway, open_page: OpenPage) -> None:
    """After a confirmation: GET says so, and the audit says who and why. Changes of others appear."""
    page = show(open_page, gateway).page
    strategy = panel(page, "Strategy")
    switch = strategy.get_by_role("button", name="Switch")
    before = gateway.success("GET", STRATEGY)["strategy"]
    expect(strategy.locator(".holds")).to_have_text(before.replace("_", " "))
    expect(switch).to_be_disabled()
    strategy.get_by_label("Strategy").select_option("round_robin")
    switch.click()
    dialog = page.get_by_role("dialog", name="Switch to round robin?")
    dialog.get_by_role("button", name="Cancel").click()
    assert gateway.success("GET", STRATEGY)["strategy"] == before
    switch.click()
    dialog.get_by_label("Reason").fill("one agent got everything")
    dialog.get_by_role("button", name="Switch").click()
    expect(page.locator("#toasts")).to_contain_text("The strategy is round robin")
    expect(strategy.locator(".holds")).to_have_text("round robin")
    expect(strategy).to_contain_text("by http 127.0.0.1")
    assert gateway.success("GET", STRATEGY)["strategy"] == "round_robin"
    row = panel(page, "Audit").locator("tbody tr").first
    for text in ("http 127.0.0.1", "strategy.set", "round_robin", "one agent got everything", "ok"):
        expect(row).to_contain_text(text)
    strategy.get_by_role("button", name="Turn on rare skills first").click()
    page.get_by_role("dialog").get_by_role("button", name="Turn on").click()
    expect(strategy.get_by_role("button", name="Turn off rare skills first")).to_be_visible()
    assert gateway.success("GET", STRATEGY)["modifiers"]["rare_skills_first"] is True
    cell.do(cell.client.admin.set_strategy("random", by="ann@desk", reason="a test"))
    expect(strategy.locator(".holds")).to_have_text("random")
    expect(strategy).to_contain_text("by ann@desk")
    strategy.locator("summary").click()
    expect(strategy.locator("tbody tr").first).to_contain_text("round_robin → random")


def test_the_audit_pages_and_follows(cell: LiveCell, gateway: Gateway, open_page: OpenPage) -> None:
    """Changes of all kinds appear without a reload, and earlier ones on request."""
    for _ in range(15):
        cell.do(cell.client.admin.drain("cli-agent"))
        cell.do(cell.client.admin.resume("cli-agent"))
    page = show(open_page, gateway).page
    rows = panel(page, "Audit").locator("tbody tr")
    expect(rows).to_have_count(25)
    panel(page, "Audit").get_by_role("button", name="Earlier changes").click()
    expect(rows.nth(25)).to_be_visible()
    cell.do(cell.client.admin.maintain("cli-agent"))
    expect(rows.first).to_contain_text("agents.maintain")
    cell.do(cell.client.admin.resume("cli-agent"))
    expect(rows.first).to_contain_text("agents.resume")
    page.evaluate("Object.defineProperty(document, 'hidden', { configurable: true, get: () => true })")
    for _ in range(14):  # more than a page: there would be a hole between it and those that are shown
        cell.do(cell.client.admin.drain("cli-agent"))
        cell.do(cell.client.admin.resume("cli-agent"))
    page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    expect(rows).to_have_count(25)


def test_a_hidden_tab_reads_nothing(gateway: Gateway, open_page: OpenPage) -> None:
    """And reads at once when it is shown again."""
    page = show(open_page, gateway).page
    read: list[str] = []
    page.on("request", lambda request: read.append(request.url))
    page.evaluate(
        "Object.defineProperty(document, 'hidden', { configurable: true, get: () => true });"
        "document.dispatchEvent(new Event('visibilitychange'));"
    )
    page.wait_for_timeout(A_WHILE_MS)  # what was on its way has arrived
    read.clear()
    page.wait_for_timeout(A_WHILE_MS)
    assert read == []
    with page.expect_request(lambda request: request.url.endswith("/system")):
        page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")


def test_a_failed_read_is_shown(gateway: Gateway, open_page: OpenPage) -> None:
    """With the message of the gateway, until the next one succeeds."""
    watched = show(open_page, gateway)
    page = watched.page
    body = '{"status": "error", "code": "unavailable", "message": "Redis did not answer within 2 s"}'
    page.route("**/system", lambda route: route.fulfill(status=503, content_type="application/json", body=body))
    problem = page.get_by_text("The state could not be read: Redis did not answer within 2 s")
    expect(problem).to_be_visible()
    page.unroute("**/system")
    expect(problem).to_have_count(0)
    watched.forgive("status of 503")


def test_a_readonly_key_sees_and_changes_nothing(cell: LiveCell, secured: Gateway, open_page: OpenPage) -> None:
    """Actions are disabled with the reason; an operator is named in the audit."""
    readonly, _ = cell.do(cell.client.admin.create_key("readonly", name="watcher"))
    operator, record = cell.do(cell.client.admin.create_key("operator", name="keeper"))
    watched = open_page(f"http://127.0.0.1:{secured.port}/ui#/system")
    page = watched.page
    log_in(page, readonly)
    strategy = panel(page, "Strategy")
    reason = "Not allowed: needs the role operator; your role is readonly."
    expect(strategy).to_contain_text(reason)
    expect(strategy.get_by_label("Strategy")).to_be_disabled()
    for button in strategy.locator("button").all():
        expect(button).to_be_disabled()
        described = button.get_attribute("aria-describedby")
        expect(page.locator(f"#{described}")).to_have_text(reason)
    expect(panel(page, "Audit")).to_contain_text("Not shown: needs the role operator")
    expect(panel(page, "Audit").locator("tbody tr")).to_have_count(0)
    expect(process(page, "router")).to_have_count(1)
    page.get_by_role("button", name="Log out").click()
    log_in(page, operator)
    strategy.get_by_label("Strategy").select_option("consistent_hash")
    strategy.get_by_role("button", name="Switch").click()
    page.get_by_role("dialog").get_by_role("button", name="Switch").click()
    row = panel(page, "Audit").locator("tbody tr").first
    expect(row).to_contain_text("consistent_hash")
    expect(row).to_contain_text(f"key:{record.key_id}")
    watched.forgive("status of 401")


def test_a_new_cell(cell: LiveCell, open_page: OpenPage) -> None:
    """Nothing was changed yet, and the page says what to do."""
    stack = AsyncExitStack()
    cell.do(stack.enter_async_context(running_cell(cell.url, Settings(namespace="dashboard-system-new"))))
    try:
        with gateway_of(cell, namespace="dashboard-system-new") as gateway:
            page = show(open_page, gateway).page
            expect(page.get_by_role("heading", name="Nothing was changed yet")).to_be_visible()
            expect(panel(page, "Audit").locator("pre")).to_have_text("coord strategy show")
            expect(panel(page, "Strategy")).to_contain_text("as the workers were started")
            page.goto("about:blank")
    finally:
        cell.do(stack.aclose())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("theme", THEMES)
def test_no_barriers(cell: LiveCell, gateway: Gateway, open_page: OpenPage, theme: Theme, device: Device) -> None:
    """For the page with everything open, and a confirmation; a phone shows all of it."""
    cell.do(cell.client.admin.set_modifier("ejection", theme == "dark"))
    cell.do(cell.client.submit("boom"))
    watched = show(open_page, gateway, theme=theme, device=device)
    page = watched.page
    page.get_by_role("button", name="Check the ledger").click()
    expect(page.get_by_text("The ledger is consistent")).to_be_visible()
    page.locator(".passed summary").click()
    panel(page, "Strategy").locator("summary").click()
    expect(panel(page, "Audit").locator("tbody tr").first).to_be_visible()
    expect(page.locator(".findings li").first).to_be_visible()
    assert watched.barriers() == []
    assert page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]  # type: ignore[index]
    panel(page, "Strategy").get_by_role("button", name="ejection").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert watched.barriers() == []
