"""The page of /docs in a real browser: each operation is shown, requests are sent from it, and it has no barrier."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, expect

from coord.embedded import EmbeddedServer
from coord.gateway.table import ROUTES
from tests.browser import DEVICES, THEMES, Device, OpenPage, Theme
from tests.system.gateway_cell import Gateway, gateway_cell, gateway_of


@pytest.fixture(scope="module")
def gateway(server: EmbeddedServer) -> Iterator[Gateway]:
    """The gateway whose page it is."""
    with gateway_cell(server.url, "docspage") as running:
        yield running


def docs(gateway: Gateway, prefix: str = "") -> str:
    """The URL of the page."""
    return f"http://127.0.0.1:{gateway.port}{prefix}/docs"


def operation(page: Page, name: str) -> Locator:
    """The operation of this method and path."""
    return page.locator(f'[data-operation="{name}"]')


def opened(page: Page, name: str) -> Locator:
    """The same, opened."""
    found = operation(page, name)
    found.locator("> summary").click()
    return found


def response(part: Locator) -> Locator:
    """The response that is shown after a request."""
    return part.get_by_role("region", name="Response")


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("device", DEVICES)
def test_the_page_has_no_barrier(gateway: Gateway, open_page: OpenPage, theme: Theme, device: Device) -> None:
    """With operations of each form open, and a long response; nothing is wider than the window."""
    watched = open_page(docs(gateway), theme=theme, device=device)
    page = watched.page
    part = opened(page, "GET /schema/openapi.json")
    part.get_by_role("button", name="Send").click()
    expect(response(part)).to_contain_text("200 OK")
    opened(page, "GET /agents/{agent_id}/inbox")
    part = opened(page, "POST /tasks/submit")
    for more in part.get_by_text("fields", exact=True).all():
        more.click()
    assert watched.barriers() == []
    assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")


def test_each_operation_is_shown(gateway: Gateway, open_page: OpenPage) -> None:
    """Each row of the table, also under the prefix; the filter leaves those that match."""
    names = {f"{route.method} {route.plain_path}" for route in ROUTES if route.method != "WEBSOCKET"}
    for prefix in ("", "/v1"):
        page = open_page(docs(gateway, prefix)).page
        expect(page.locator("[data-operation]")).to_have_count(len(names))
        shown = page.locator("[data-operation]").evaluate_all("all => all.map((one) => one.dataset.operation)")
        assert set(shown) == names
        page.get_by_label("Filter").fill("/peers/add")
        expect(page.locator("[data-operation]:visible")).to_have_count(1)
        expect(page.get_by_role("heading", level=2)).to_have_count(1)
        page.get_by_label("Filter").fill("no such call")
        expect(page.get_by_role("status")).to_have_text("No call matches.")


def test_a_request_is_sent(gateway: Gateway, open_page: OpenPage) -> None:
    """With its body, its query and the variables of its path; the page below the prefix uses the prefix."""
    page = open_page(docs(gateway, "/v1")).page
    part = opened(page, "POST /agents/register")
    body = part.get_by_label("body")
    body.fill(json.dumps(json.loads(body.input_value()) | {"agent_id": "from-the-page"}))
    part.get_by_role("button", name="Send").click()
    expect(response(part)).to_contain_text("200 OK")
    assert gateway.success("GET", "/agents/from-the-page")["agent"]["agent_id"] == "from-the-page"

    part = opened(page, "GET /agents")
    part.get_by_label("limit").fill("1")
    part.get_by_role("button", name="Send").click()
    expect(response(part)).to_contain_text('"count": 1')

    part = opened(page, "GET /agents/{agent_id}")
    part.get_by_label("agent_id").fill("from-the-page")
    part.get_by_label("agent_id").press("Enter")
    expect(response(part)).to_contain_text("GET /v1/agents/from-the-page")
    expect(response(part)).to_contain_text('"registration_time"')


def test_an_error_is_shown(gateway: Gateway, open_page: OpenPage) -> None:
    """As the gateway sends it; a variable of the path that is missing is asked for before anything is sent."""
    watched = open_page(docs(gateway))
    part = opened(watched.page, "GET /tasks/{task_id}")
    part.get_by_role("button", name="Send").click()
    expect(response(part)).to_be_hidden()
    part.get_by_label("task_id").fill("nothing")
    part.get_by_role("button", name="Send").click()
    expect(response(part)).to_contain_text("404 Not Found")
    expect(response(part)).to_contain_text('"task_not_found"')
    watched.forgive("404")


def test_the_page_works_with_the_keyboard(gateway: Gateway, open_page: OpenPage) -> None:
    """From the filter to an operation, its button, and the response, which can be scrolled."""
    page = open_page(docs(gateway)).page
    page.get_by_label("Filter").fill("GET /health/live")
    for _ in range(3):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    part = operation(page, "GET /health/live")
    expect(response(part)).to_contain_text("200 OK")
    page.keyboard.press("Tab")
    expect(response(part)).to_be_focused()


def test_a_credential_is_sent(gateway: Gateway, open_page: OpenPage) -> None:
    """The one in the field of the page, with each request."""
    key, _ = gateway.cell.do(gateway.cell.client.admin.create_key("readonly"))
    with gateway_of(gateway.cell, gateway_security=True) as secured:
        watched = open_page(docs(secured))
        part = opened(watched.page, "GET /pools")
        part.get_by_role("button", name="Send").click()
        expect(response(part)).to_contain_text("401 Unauthorized")
        watched.forgive("401")
        watched.page.get_by_label("Credential").fill(key)
        part.get_by_role("button", name="Send").click()
        expect(response(part)).to_contain_text("200 OK")
