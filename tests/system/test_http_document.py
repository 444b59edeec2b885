"""The sessions of docs/http.md, typed into a shell in their order; each call of the table is in one of them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coord.embedded import EmbeddedServer
from coord.gateway.router import Router
from coord.gateway.table import ROUTES
from tests.repo.documents import ROOT, Step, blocks, split, steps
from tests.system.gateway_cell import Gateway, gateway_cell, gateway_of

DOCUMENT = ROOT / "docs" / "http.md"
HOST = "localhost:9001"
SECRET = "a secret of these tests, with 32 bytes"
#: The section whose sessions need a gateway with security on.
SECURITY = "Security"
#: A call that no session shows, because it is a stream or a page -> the test that makes it.
ELSEWHERE = {
    "GET /ui": "tests/system/test_dashboard.py",
    "GET /ui/{path:path}": "tests/unit/test_dashboard.py",
    "GET /events": "tests/system/test_gateway_events.py",
    "WEBSOCKET /ws": "tests/system/test_agent_sockets.py",
}
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00")
LIMIT_S = 100

needs_tools = pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("jq")) and not os.environ.get("CI"),
    reason="curl or jq is missing: apt-get install curl jq",
)


@pytest.fixture(scope="module")
def gateway(server: EmbeddedServer) -> Iterator[Gateway]:
    """The cell that the sessions change."""
    with gateway_cell(server.url, "httpdocument") as running:
        yield running


def sessions(*, secured: bool) -> list[Step]:
    """The steps of all sessions with the gateway, except streams: those in the section on security, or the others."""
    found = [
        step
        for block in blocks(DOCUMENT)
        if block.language == "console" and ((block.section == SECURITY) is secured)
        for step in steps(block)
    ]
    return [step for step in found if not any(f"{HOST}{name.split(' ')[1]}" in step.typed for name in ELSEWHERE)]


def play(gateway: Gateway, typed: list[Step], folder: Path) -> list[str]:
    """Type each line into one shell; return what each has printed."""
    folder.mkdir(exist_ok=True)
    here = [step.typed.replace(HOST, f"127.0.0.1:{gateway.port}") for step in typed]
    environ = {
        **os.environ,
        **gateway.cell.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    script = "".join(f"{line}\nprintf '\\0'\n" for line in here)
    done = subprocess.run(
        ["bash"],  # noqa: S607 -- the one on PATH
        input=script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, env=environ,
        timeout=LIMIT_S, check=True,
    )  # fmt: skip
    return done.stdout.split("\0")[:-1]


def squeezed(text: str) -> str:
    """A text without spaces and moments, as outputs are compared: the document breaks long lines."""
    return re.sub(r"\s+", "", MOMENT.sub("MOMENT", text))


def is_shown(shown: str, printed: str) -> bool:
    """Return True if this is what the document shows; ``…`` in it stands for anything."""
    pattern = ".*?".join(re.escape(part) for part in squeezed(shown).split("…"))
    return re.fullmatch(pattern, squeezed(printed), re.DOTALL) is not None


def check(gateway: Gateway, typed: list[Step], folder: Path) -> None:
    """Each line prints what the document shows."""
    printed = play(gateway, typed, folder)
    assert len(printed) == len(typed)
    wrong = [(step, found) for step, found in zip(typed, printed, strict=True) if not is_shown(step.shown, found)]
    assert not wrong, "\n\n".join(f"$ {step.typed}\n{step.shown}\nprinted:\n{found}" for step, found in wrong)


@needs_tools
def test_the_sessions_print_what_the_document_shows(gateway: Gateway, tmp_path: Path) -> None:
    """On a gateway without security, then on one of the same cell with it."""
    check(gateway, sessions(secured=False), tmp_path / "open")
    with gateway_of(gateway.cell, gateway_security=True, gateway_jwt_secret=SECRET) as secured:
        check(secured, sessions(secured=True), tmp_path / "secured")


def calls(step: Step) -> Iterator[str]:
    """The rows of the table that a step calls."""
    for command in split(step.typed):
        words = command.words
        if words[:1] != ["curl"]:
            continue
        (url,) = (word for word in words if HOST in word)
        is_post = any(word in {"-d", "--data"} for word in words)
        method = words[words.index("-X") + 1] if "-X" in words else "POST" if is_post else "GET"
        path = url.partition(HOST)[2].partition("?")[0].rstrip("/") or "/"
        route, _ = Router(ROUTES).find(method, path)
        yield f"{route.method} {route.path}"


def test_every_call_has_a_session() -> None:
    """Each row of the table is in a session of the page; a stream is in the test that is named for it."""
    typed = [*sessions(secured=False), *sessions(secured=True)]
    found = {name for step in typed for name in calls(step)}
    assert [name for route in ROUTES if (name := f"{route.method} {route.path}") not in found | set(ELSEWHERE)] == []
    assert len(typed) >= len(ROUTES) - len(ELSEWHERE)
    for name, path in ELSEWHERE.items():
        assert name.split(" ")[1].partition("{")[0] in (ROOT / path).read_text()


def test_no_call_is_shown_that_is_not_tried() -> None:
    """A curl stands in a session with its output, so that it is typed here."""
    assert [block.line for block in blocks(DOCUMENT) if block.language == "sh" and "curl" in block.text] == []


@pytest.mark.parametrize(
    ("shown", "printed", "is_same"),
    [
        ('{"a": 1,\n "at": "2026-01-31T12:00:00.000+00:00"}', '{"a":1,"at":"2027-02-01T00:00:00.123+00:00"}', True),
        ('{"a": …, "b": 2}', '{"a":[1,2],"b":2}', True),
        ('{"a": …}', '{"a":1,"b":2', False),
        ('{"a": 1}', '{"a":2}', False),
        ("", '{"a":1}', False),
        ('{"at": "2026-01-31T12:00:00.000+00:00"}', '{"at":"2026-01-31T12:00:00Z"}', False),
    ],
)
def test_outputs_are_compared(shown: str, printed: str, *, is_same: bool) -> None:
    """Only what is left out may differ, and times in their values."""
    assert is_shown(shown, printed) is is_same
