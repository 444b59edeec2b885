"""The curl sessions of docs/http.md, typed into a shell, line by line; each call of the table is in one of them."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator

import pytest

from coord.embedded import EmbeddedServer
from coord.gateway.router import Router
from coord.gateway.table import ROUTES
from tests.repo.documents import ROOT, blocks, typed
from tests.system.gateway_cell import Gateway, gateway_cell

HOST = "localhost:9001"
#: Blocks that another test runs: the agent that polls, security, events.
ELSEWHERE = ("reader/inbox", "Authorization", "/events")
#: The status of a line, where it is not 200: the text after the session says why.
OTHER = {"/tasks/page-8/retry": 409}
#: Calls without a session: they need security, stay open, or belong to a page.
WITHOUT = re.compile(
    r"/auth/.*|/events|/ws|/docs.*|/ui.*|/tasks/\{task_id:id\}/(fail|release)|POST /load-balancer/strategy|.*/inbox.*"
)
BLOCKS = [block for block in blocks(ROOT / "docs" / "http.md") if block.language == "sh" and HOST in block.text]


def curls(text: str) -> list[list[str]]:
    """The words of each curl in a line."""
    return [shlex.split(part) for part in text.split(" | ") if part.startswith("curl ") and HOST in part]


def called(words: list[str]) -> tuple[str, str]:
    """The method and the path of a curl, without its query."""
    method = words[words.index("-X") + 1] if "-X" in words else "POST" if "-d" in words else "GET"
    (url,) = (word for word in words if HOST in word)
    return method, url.partition(HOST)[2].partition("?")[0].rstrip("/") or "/"


@pytest.fixture(scope="module")
def gateway(server: EmbeddedServer) -> Iterator[Gateway]:
    """The cell that the sessions change."""
    with gateway_cell(server.url, "httpdocument") as running:
        yield running


def test_the_sessions_work_as_shown(gateway: Gateway) -> None:
    """In their order, each line with real curl."""
    tried = 0
    for block in BLOCKS:
        if any(word in block.text for word in ELSEWHERE):
            continue
        for line in typed(block):
            for words in curls(line):
                here = [word.replace(HOST, f"127.0.0.1:{gateway.port}") for word in words]
                shown = ["--max-time", "60", "-w", "\n%{http_code}"]
                found = subprocess.run([*here, *shown], capture_output=True, text=True, check=True)
                assert found.stdout.rpartition("\n")[2] == str(OTHER.get(called(words)[1], 200)), (line, found.stdout)
                tried += 1
    assert tried >= 50


def test_every_call_has_a_session() -> None:
    """Each row of the table is in a session of the page."""
    router = Router(ROUTES)
    found = set()
    for block in BLOCKS:
        for line in typed(block):
            for part in re.findall(r"curl -s[^|>]*", line):
                for words in curls(part.strip()):
                    found.add(router.find(*called(words))[0])
    missing = [f"{route.method} {route.path}" for route in ROUTES if route not in found]
    assert [one for one in missing if not WITHOUT.fullmatch(one) and not WITHOUT.fullmatch(one.split(" ")[1])] == []
