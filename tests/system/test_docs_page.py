"""The page of /docs in a real browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from coord.embedded import EmbeddedServer
from tests.browser import DEVICES, THEMES, Device, OpenPage, Theme
from tests.system.gateway_cell import Gateway, gateway_cell


@pytest.fixture(scope="module")
def gateway(server: EmbeddedServer) -> Iterator[Gateway]:
    """The gateway whose page it is."""
    with gateway_cell(server.url, "docspage") as running:
        yield running


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("device", DEVICES)
def test_the_page_has_no_barrier(gateway: Gateway, open_page: OpenPage, theme: Theme, device: Device) -> None:
    """For people who use other aids, in each theme and on each device."""
    watched = open_page(f"http://127.0.0.1:{gateway.port}/docs", theme=theme, device=device)
    expect(watched.page.get_by_text("/agents/register")).to_be_visible()
    assert watched.barriers() == []
