"""Debian's Chromium for tests of web pages, driven by Playwright; a plugin of pytest.

``open_page`` opens pages as a person with a theme and a device would see them. Each page records what no page may do:
errors in the console and requests to another host. A test whose page did either fails when it ends. ``barriers``
lists what axe finds on a page against WCAG A and AA.

The fixture ``browser`` has the scope of a module, because Playwright runs an event loop in the thread of the tests as
long as it is open. A module that uses it has no ``async`` tests. Its gateway is one of tests/system/gateway_cell.py,
which has a thread of its own.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, ViewportSize

Theme = Literal["light", "dark"]
Device = Literal["desktop", "phone"]
OpenPage = Callable[..., "WatchedPage"]

THEMES: tuple[Theme, ...] = ("light", "dark")
DEVICES: tuple[Device, ...] = ("desktop", "phone")
VIEWPORTS: dict[Device, ViewportSize] = {
    "desktop": {"width": 1280, "height": 800},
    "phone": {"width": 390, "height": 844},
}
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage")
#: The rules of axe that WCAG A and AA require, to version 2.2.
WCAG = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa")
#: Schemes of URLs for which no request leaves the browser.
INTERNAL = frozenset({"about", "blob", "data"})
#: Milliseconds for an action or an expectation of Playwright. A machine with much else to do is slow.
TIMEOUT_MS = 60_000


class WatchedPage:
    """A page in a window of its own, without cookies and storage of others.

    Attributes:
        page: the page of Playwright.
        errors: errors of the console, and exceptions that no script has caught.
        foreign: URLs of requests to another host than that of the page.
    """

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.errors: list[str] = []
        self._forgiven: list[str] = []
        self.foreign: list[str] = []
        self._host = urlsplit(url).netloc
        page.context.on("console", self._note_message)
        page.context.on("weberror", lambda found: self._note_error(str(found.error)))
        page.context.on("request", lambda request: self._note_url(request.url))
        page.on("websocket", lambda socket: self._note_url(socket.url))
        page.goto(url)

    def forgive(self, pattern: str, within_ms: float = TIMEOUT_MS) -> None:
        """Forget the errors that this test causes itself, for example those of a gateway that restarts.

        Args:
            pattern: a regular expression that is found in at least one error.
            within_ms: milliseconds in which an error comes; the browser reports it after what the page shows.
        """
        deadline = monotonic() + within_ms / 1000
        while not (forgiven := [error for error in self.errors if re.search(pattern, error)]):
            assert monotonic() < deadline, f"no error matches {pattern!r}: {self.errors}"
            self.page.wait_for_timeout(20)
        self.errors = [error for error in self.errors if error not in forgiven]
        self._forgiven.append(pattern)  # one cause may have several errors, and the last may still be on its way

    def _note_error(self, text: str) -> None:
        if not any(re.search(pattern, text) for pattern in self._forgiven):
            self.errors.append(text)

    def barriers(self, *ignored: str) -> list[str]:
        """Return a line for each barrier for people who use a keyboard, a screen reader or other aids.

        Args:
            ignored: ids of rules of axe that do not count; the test says why.
        """
        from axe_playwright_python.sync_playwright import Axe

        options: dict[str, Any] = {
            "runOnly": {"type": "tag", "values": list(WCAG)},
            "rules": {rule: {"enabled": False} for rule in ignored},
            "resultTypes": ["violations"],
        }
        found = Axe().run(self.page, options=options).response["violations"]
        return [
            f"{rule['id']} ({rule['impact']}): {node['target']}: {node['failureSummary']}"
            for rule in found
            for node in rule["nodes"]
        ]

    def _note_message(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self._note_error(f"{message.text} ({message.location['url']})")

    def _note_url(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in INTERNAL and parts.netloc != self._host:
            self.foreign.append(url)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; each page of ``open_page`` is a new window of it."""
    from playwright.sync_api import expect, sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        if os.environ.get("CI"):
            pytest.fail("no chromium on PATH; .ci/run installs it")
        pytest.skip("no chromium on PATH; apt-get install chromium")
    expect.set_options(timeout=TIMEOUT_MS)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS), timeout=TIMEOUT_MS)
        yield running
        running.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Open a page: ``open_page(url, theme="dark", device="phone")``.

    Further arguments are those of Playwright's ``Browser.new_context``, for example ``reduced_motion="reduce"``. At the
    end of the test no page may have an error in its console, or have sent a request to another host.
    """
    pages: list[WatchedPage] = []

    def open_(url: str, *, theme: Theme = "light", device: Device = "desktop", **options: Any) -> WatchedPage:
        is_phone = device == "phone"
        context = browser.new_context(
            viewport=VIEWPORTS[device], color_scheme=theme, is_mobile=is_phone, has_touch=is_phone, **options
        )
        context.set_default_timeout(TIMEOUT_MS)
        pages.append(watched := WatchedPage(context.new_page(), url))
        return watched

    yield open_
    for watched in pages:
        watched.page.context.close()
    assert [error for watched in pages for error in watched.errors] == []
    assert [url for watched in pages for url in watched.foreign] == []
