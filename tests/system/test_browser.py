"""The fixture of tests/browser.py finds each fault of a page that it promises to find."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from playwright.sync_api import Browser, expect

from tests.browser import WatchedPage

HEAD = '<!doctype html><html lang="en"><head><title>Page</title><link rel="icon" href="data:,"></head><body>'
Serve = Callable[[str], str]


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """Serve a body of HTML; return its URL."""
    pages: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(pages[-1].encode())

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()

    def publish(body: str) -> str:
        pages.append(HEAD + body)
        return f"http://127.0.0.1:{server.server_port}/"

    yield publish
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def watch(browser: Browser, serve: Serve) -> Iterator[Callable[[str], WatchedPage]]:
    """Open a page that is not checked when the test ends."""
    context = browser.new_context()
    yield lambda body: WatchedPage(context.new_page(), serve(body))
    context.close()


def test_errors_of_the_console_are_found(watch: Callable[[str], WatchedPage]) -> None:
    """Both what a script reports and what it does not catch; ``forgive`` forgets only what the test names."""
    watched = watch("<script>console.error('reported'); console.log('a note'); missing()</script><p>end")
    expect(watched.page.get_by_text("end")).to_be_visible()
    assert len(watched.errors) == 2, watched.errors
    watched.forgive("reported")
    (left,) = watched.errors
    assert "missing is not defined" in left
    with pytest.raises(AssertionError, match="no error matches 'timeout'"):
        watched.forgive("timeout", within_ms=0)


def test_requests_to_another_host_are_found(watch: Callable[[str], WatchedPage]) -> None:
    """Images and sockets too; what stays in the browser does not count."""
    watched = watch("<img src='http://127.0.0.1:9/a.png' alt=''><img src='data:,' alt=''><p>end")
    expect(watched.page.get_by_text("end")).to_be_visible()
    watched.page.evaluate("() => { new WebSocket('ws://127.0.0.1:9/live') }")
    watched.page.evaluate("() => fetch('/again')")
    assert sorted(watched.foreign) == ["http://127.0.0.1:9/a.png", "ws://127.0.0.1:9/live"]


def test_barriers_are_found(watch: Callable[[str], WatchedPage]) -> None:
    """Each with its rule and its element; a test may leave out a rule."""
    watched = watch("<p style='color: #999; background: #fff'>pale</p><input>")
    found = watched.barriers()
    assert [line.split(" ")[0] for line in found] == ["color-contrast", "label"]
    assert [line.split(" ")[0] for line in watched.barriers("label")] == ["color-contrast"]
    assert watch("<p>plain").barriers() == []
