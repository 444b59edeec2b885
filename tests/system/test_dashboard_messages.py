"""The Messages page of the dashboard in Chromium, with live messages behind it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.errors import AgentNotFound, Undelivered
from tests.browser import DEVICES, THEMES, Device, OpenPage, Theme, WatchedPage
from tests.running import running_cell
from tests.system.gateway_cell import Gateway, gateway_of
from tests.system.live_cell import LiveCell, live_cell

AGENTS = ("planner", "reader", "writer", "critic")
SECRET = "the payload of a message"


@pytest.fixture(scope="module")
def cell(server: EmbeddedServer) -> Iterator[LiveCell]:
    """A cell with agents that get messages."""
    settings = Settings(namespace="dashboard-messages", gateway_wait_s=20, gateway_redis_s=20)
    with live_cell(server.url, settings) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(cell: LiveCell) -> Iterator[Gateway]:
    """A gateway without security, with agents that speak only HTTP: messages wait until a test reads them."""
    with gateway_of(cell) as running:
        for name in AGENTS:
            agent = {"agent_id": name, "agent_type": "worker", "capabilities": ["talk"]}
            running.success("POST", "/agents/register", agent)
        yield running


@pytest.fixture(scope="module")
def secured(cell: LiveCell) -> Iterator[Gateway]:
    """A gateway of the same cell with security on."""
    with gateway_of(cell, gateway_security=True, gateway_jwt_secret="k" * 40) as running:
        yield running


def show(open_page: OpenPage, gateway: Gateway, place: str = "", **options: Any) -> WatchedPage:
    """Open the page at a place, and wait until it follows the cell."""
    watched = open_page(f"http://127.0.0.1:{gateway.port}/ui#/messages{place}", **options)
    expect(watched.page.get_by_text("Live", exact=True)).to_be_visible()
    return watched


def send(cell: LiveCell, sender: str, receiver: str, message_id: str, **more: Any) -> None:
    """Send a message; one that cannot be delivered becomes a dead letter."""
    with suppress(AgentNotFound, Undelivered):
        cell.do(
            cell.client.send(receiver, {"text": SECRET, "page": 7}, sender_id=sender, message_id=message_id, **more)
        )


def row(page: Page, message_id: str) -> Locator:
    """The row of a message."""
    return page.locator(f'.messages-list tr[data-key="{message_id}"]')


def panel(page: Page) -> Locator:
    """The message that is open."""
    return page.locator("aside.message")


def test_recent_messages_are_live(cell: LiveCell, gateway: Gateway, open_page: OpenPage) -> None:
    """Each with its sender, receiver, type and status, and without its payload."""
    page = show(open_page, gateway).page
    expect(page).to_have_title("Messages · coord")
    send(cell, "planner", "reader", "live-1", message_type="task_assignment", priority="high", correlation_id="live")
    for text in ("planner", "reader", "task assignment", "high", "delivered", "live"):
        expect(row(page, "live-1")).to_contain_text(text)
    gateway.success("POST", "/messages/live-1/read")
    expect(row(page, "live-1")).to_contain_text("read")
    cell.do(cell.client.broadcast({"text": SECRET}, sender_id="writer", message_id="live-2", capabilities=["talk"]))
    expect(row(page, "live-2")).to_contain_text("3 agents")
    expect(page.locator("body")).not_to_contain_text(SECRET)


def test_messages_of_an_agent(cell: LiveCell, gateway: Gateway, open_page: OpenPage) -> None:
    """What it sent and received; the agent is in the URL."""
    send(cell, "planner", "writer", "of-1")
    send(cell, "writer", "critic", "of-2")
    send(cell, "planner", "reader", "of-3")
    page = show(open_page, gateway).page
    expect(row(page, "of-3")).to_be_visible()
    page.keyboard.press("/")
    agent = page.get_by_label("Agent", exact=True)
    expect(agent).to_be_focused()
    agent.fill("writer")
    agent.press("Enter")
    expect(row(page, "of-3")).to_have_count(0)
    expect(row(page, "of-1")).to_be_visible()
    expect(row(page, "of-2")).to_be_visible()
    assert page.url.endswith("#/messages?agent=writer")
    page.reload()
    expect(agent).to_have_value("writer")
    expect(row(page, "of-2")).to_be_visible()
    row(page, "of-2").get_by_role("link", name="critic").click()
    expect(row(page, "of-1")).to_have_count(0)
    expect(row(page, "of-2")).to_be_visible()
    page.goto(page.url.replace("critic", "nobody"))
    expect(page.get_by_role("heading", name="No message of nobody")).to_be_visible()
    page.get_by_role("button", name="Show all agents").click()
    expect(row(page, "of-3")).to_be_visible()


def test_older_messages_are_shown_on_request(cell: LiveCell, gateway: Gateway, open_page: OpenPage) -> None:
    """And stay when new ones come."""
    for number in range(130):
        send(cell, "critic", "cli-agent", f"many-{number}", ttl=60)
    page = show(open_page, gateway, "?agent=cli-agent").page
    expect(row(page, "many-129")).to_be_visible()
    expect(row(page, "many-0")).to_have_count(0)
    page.get_by_role("button", name="Older messages").click()
    expect(row(page, "many-0")).to_have_count(1)
    send(cell, "critic", "cli-agent", "many-more")
    expect(row(page, "many-more")).to_be_visible()
    expect(page.locator(".messages-list tbody tr")).to_have_count(131)


def test_no_message_is_missing_below_older_ones(cell: LiveCell, gateway: Gateway, open_page: OpenPage) -> None:
    """More messages than a page come while the tab is hidden: the list begins again, and continues where it ends."""
    for number in range(110):
        send(cell, "planner", "critic", f"before-{number}")
    page = show(open_page, gateway, "?agent=critic").page
    expect(row(page, "before-109")).to_be_visible()
    page.get_by_role("button", name="Older messages").click()
    expect(row(page, "before-0")).to_have_count(1)
    page.evaluate("Object.defineProperty(document, 'hidden', { configurable: true, get: () => true })")
    for number in range(110):
        send(cell, "planner", "critic", f"after-{number}")
    page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    expect(row(page, "after-109")).to_be_visible()
    expect(row(page, "before-0")).to_have_count(0)
    page.get_by_role("button", name="Older messages").click()
    expect(page.locator(".messages-list tbody tr")).to_have_count(200)
    expect(row(page, "after-0")).to_have_count(1)
    expect(row(page, "before-109")).to_have_count(1)


@pytest.mark.parametrize(("place", "path"), [("?agent=quiet", "**/messages/history*"), ("/dead", "**/messages/dead*")])
def test_a_failed_read_is_shown(cell: LiveCell, gateway: Gateway, open_page: OpenPage, place: str, path: str) -> None:
    """Until the next one succeeds, also if it is the first: a list that was not read is not called empty."""
    send(cell, "planner", "gone", "failed-read")
    watched = show(open_page, gateway, "/conversation/none")
    page = watched.page
    body = '{"status": "error", "code": "unavailable", "message": "Redis did not answer within 2 s"}'

    def fail() -> None:
        page.route(path, lambda route: route.fulfill(status=503, content_type="application/json", body=body))

    fail()
    page.goto(f"{page.url.partition('#')[0]}#/messages{place}")
    problem = page.locator(".messages-list [role=alert]")
    expect(problem).to_have_text("Redis did not answer within 2 s")
    page.wait_for_timeout(1_500)  # it is drawn each second
    expect(page.locator(".messages-list .empty")).to_have_count(0)
    page.unroute(path)
    shown = row(page, "failed-read") if place == "/dead" else page.get_by_role("heading", name="No message of quiet")
    expect(shown).to_be_visible()
    expect(problem).to_be_hidden()
    fail()
    expect(problem).to_be_visible()
    expect(shown).to_be_visible()
    page.unroute(path)
    expect(problem).to_be_hidden()
    watched.forgive("status of 503")
    watched.forgive("status of 404")


def test_a_message_with_its_recipients(cell: LiveCell, gateway: Gateway, open_page: OpenPage) -> None:
    """What became of it for each; size and type of the payload, and the values only on request."""
    cell.do(cell.client.broadcast({"text": SECRET}, sender_id="planner", message_id="all-1", capabilities=["talk"]))
    watched = show(open_page, gateway)
    page = watched.page
    row(page, "all-1").get_by_role("link", name="all-1").click()
    assert page.url.endswith("#/messages/message/all-1")
    one = panel(page)
    expect(one.get_by_role("heading", name="all-1")).to_be_focused()
    expect(one).to_contain_text("object with 1 key, 35 bytes")
    expect(one.locator(".recipients li")).to_have_count(3)
    expect(one.locator(".recipients li", has_text="critic")).to_contain_text("delivered")
    expect(page.locator("body")).not_to_contain_text(SECRET)
    gateway.success("POST", "/messages/all-1/read", {"agent_id": "critic"})
    expect(one.locator(".recipients li", has_text="critic")).to_contain_text("read")
    one.get_by_role("button", name="Show").click()
    expect(one.locator("pre")).to_contain_text(SECRET)
    one.get_by_role("button", name="Hide").click()
    expect(page.locator("body")).not_to_contain_text(SECRET)
    page.keyboard.press("Escape")
    expect(one).to_have_count(0)
    expect(row(page, "all-1").get_by_role("link", name="all-1")).to_be_focused()
    page.goto(f"{page.url.partition('#')[0]}#/messages/message/nothing")
    expect(one.get_by_role("alert")).to_have_text("It does not exist, or not any more.")
    watched.forgive("status of 404")


def test_a_conversation_is_drawn(cell: LiveCell, gateway: Gateway, open_page: OpenPage) -> None:
    """As a diagram, and as a list of the same; a message that is sent meanwhile is added."""
    talk = {"correlation_id": "plan"}
    send(cell, "planner", "reader", "talk-1", message_type="task_assignment", **talk)
    send(cell, "reader", "planner", "talk-2", message_type="status_update", reply_to="talk-1", **talk)
    send(cell, "planner", "writer", "talk-3", **talk)
    send(cell, "writer", "absent", "talk-4", **talk)
    watched = show(open_page, gateway, "/conversation/plan")
    page = watched.page
    diagram = page.locator(".diagram")
    expect(diagram.locator(".head")).to_have_count(4)
    assert diagram.locator(".head text").all_text_contents() == ["planner", "reader", "writer", "absent"]
    expect(diagram.locator(".arrow")).to_have_count(4)
    expect(diagram.locator(".arrow.reply")).to_have_count(1)
    expect(diagram.locator(".arrow.lost title")).to_have_text("writer → absent: direct")
    expect(page.get_by_role("img", name="Sequence diagram of 4 messages; the list has the same")).to_be_visible()
    items = page.locator(".talk li")
    expect(items).to_have_count(4)
    expect(items.nth(1)).to_contain_text("reader → planner")
    expect(items.nth(1)).to_contain_text("status update · reply")
    expect(items.nth(3)).to_contain_text("Agent 'absent' not found")
    items.nth(2).hover()
    expect(diagram.locator(".arrow.marked")).to_have_attribute("data-at", "2")
    send(cell, "writer", "writer", "talk-5", **talk)
    expect(diagram.locator(".arrow")).to_have_count(5)
    expect(items).to_have_count(5)
    expect(page.locator(".conversation header")).to_contain_text("5 messages between 4 participants")
    items.nth(1).get_by_role("link").click()
    expect(panel(page)).to_contain_text("talk-1")
    panel(page).get_by_role("link", name="plan", exact=True).click()
    expect(diagram.locator(".arrow")).to_have_count(5)
    page.goto(page.url.replace("/plan", "/nothing"))
    expect(page.get_by_text("There is no such conversation")).to_be_visible()
    watched.forgive("status of 404")


def test_dead_letters_are_delivered_again_or_deleted(cell: LiveCell, gateway: Gateway, open_page: OpenPage) -> None:
    """With the reason of each; what an operator does is in the audit."""
    for number in range(4):
        send(cell, "planner", "late", f"dead-{number}")
    watched = show(open_page, gateway)
    page = watched.page
    page.get_by_role("link", name="Dead letters").click()
    expect(row(page, "dead-0")).to_contain_text("Agent 'late' not found")
    replay = row(page, "dead-0").get_by_role("button", name="Deliver again")
    replay.click()
    expect(page.locator("#toasts")).to_contain_text("Failed: ")
    expect(page.locator("#toasts")).to_contain_text("Agent 'late' not found")
    gateway.success("POST", "/agents/register", {"agent_id": "late", "agent_type": "worker"})
    replay.click()
    expect(row(page, "dead-0")).to_have_count(0)
    assert gateway.success("GET", "/messages/dead-0")["message"]["status"] == "delivered"
    row(page, "dead-1").get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(row(page, "dead-1")).to_have_count(0)
    row(page, "dead-2").get_by_role("link").click()
    panel(page).get_by_role("button", name="Deliver again").click()
    expect(panel(page).locator(".recipients")).to_contain_text("delivered")
    expect(row(page, "dead-2")).to_have_count(0)
    page.get_by_role("button", name="Delete all").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("They cannot be restored.")
    dialog.get_by_role("button", name="Delete all").click()
    expect(page.get_by_role("heading", name="No undelivered messages")).to_be_visible()
    assert gateway.success("GET", "/messages/dead")["total"] == 0
    audit = gateway.success("GET", "/audit")["entries"]
    done = [(one["action"], one["target"], one["outcome"]) for one in audit]
    assert ("messages.replay", "dead-0", "unknown") in done
    assert ("messages.replay", "dead-0", "delivered") in done
    assert ("dead.purge", "dead-1", "ok") in done
    assert all(one["by"] == "http 127.0.0.1" for one in audit if one["action"] in {"messages.replay", "dead.purge"})
    watched.forgive("status of 404")


def test_a_readonly_key_sees_why_it_may_not(cell: LiveCell, secured: Gateway, open_page: OpenPage) -> None:
    """In the list of dead letters, and beside one of them."""
    send(cell, "planner", "nowhere", "kept-1")
    key, _ = cell.do(cell.client.admin.create_key("readonly", name="watcher"))
    watched = open_page(f"http://127.0.0.1:{secured.port}/ui#/messages/dead")
    page = watched.page
    page.get_by_role("dialog", name="Log in").get_by_label("API key or token").fill(key)
    page.keyboard.press("Enter")
    expect(page.locator("#letters-refusal")).to_contain_text("needs the role operator; your role is readonly")
    for name in ("Deliver again", "Delete"):
        button = row(page, "kept-1").get_by_role("button", name=name)
        expect(button).to_be_disabled()
        expect(button).to_have_attribute("aria-describedby", "letters-refusal")
    expect(page.get_by_role("button", name="Delete all")).to_be_disabled()
    row(page, "kept-1").get_by_role("link").click()
    expect(panel(page).get_by_role("button", name="Deliver again")).to_be_disabled()
    expect(panel(page).locator("#letter-refusal")).to_contain_text("needs the role operator")
    watched.forgive("status of 401")


def test_an_empty_cell_says_what_to_do(cell: LiveCell, open_page: OpenPage) -> None:
    """The next step, with a command to copy."""
    stack = AsyncExitStack()
    cell.do(stack.enter_async_context(running_cell(cell.url, Settings(namespace="dashboard-messages-new"))))
    try:
        with gateway_of(cell, namespace="dashboard-messages-new") as gateway:
            page = show(open_page, gateway).page
            expect(page.get_by_role("heading", name="No message yet")).to_be_visible()
            expect(page.locator("pre")).to_contain_text("coord messages send AGENT")
            expect(page.get_by_role("button", name="Copy coord messages send AGENT")).to_be_visible()
            page.get_by_role("link", name="Dead letters").click()
            expect(page.get_by_role("heading", name="No undelivered messages")).to_be_visible()
            expect(page.locator("pre")).to_have_text("coord dead list")
            page.goto("about:blank")
    finally:
        cell.do(stack.aclose())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("theme", THEMES)
def test_no_barriers(cell: LiveCell, gateway: Gateway, open_page: OpenPage, theme: Theme, device: Device) -> None:
    """For the list, a message, a conversation, dead letters and a confirmation; a phone shows all of it."""
    name = f"{theme}-{device}"
    send(cell, "planner", "reader", f"seen-{name}", correlation_id=f"seen-talk-{name}")
    send(cell, "reader", "planner", f"reply-{name}", reply_to=f"seen-{name}", correlation_id=f"seen-talk-{name}")
    send(cell, "reader", "nowhere", f"lost-{name}", correlation_id=f"seen-talk-{name}")
    watched = show(open_page, gateway, theme=theme, device=device)
    page = watched.page

    def check() -> None:
        assert watched.barriers() == []
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width == page.viewport_size["width"]  # type: ignore[index]

    expect(row(page, f"lost-{name}")).to_be_visible()
    check()
    row(page, f"lost-{name}").get_by_role("link", name=f"lost-{name}").click()
    panel(page).get_by_role("button", name="Show").click()
    expect(panel(page).locator("pre")).to_be_visible()
    check()
    panel(page).get_by_role("link", name=re.compile("seen-talk")).click()
    expect(page.locator(".arrow")).to_have_count(3)
    check()
    page.get_by_role("link", name="Dead letters").click()
    row(page, f"lost-{name}").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    check()
    page.keyboard.press("Escape")
    check()
