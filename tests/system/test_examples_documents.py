"""docs/llm-agents.md and the READMEs of examples: what is typed there prints what they show."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.coord_up import Start
from tests.repo.documents import ROOT
from tests.system.document_session import PORT, STAYING, Session, lines_of

EXAMPLES = ROOT / "examples"
LLM_AGENTS = ROOT / "docs" / "llm-agents.md"
#: What a checkout has that these sessions use.
CHECKOUT = ("LICENSE", "README.md", "coord", "docs", "examples", "pyproject.toml", "workers")


@pytest.fixture
async def session(start: Start) -> AsyncIterator[Session]:
    """A session in this repository."""
    session = Session(start, ROOT)
    yield session
    await session.end()


@pytest.fixture
async def session_in_copy(start: Start, tmp_path: Path) -> AsyncIterator[Session]:
    """A session in a copy, because environments are installed into it."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in CHECKOUT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder)
    session = Session(start, folder)
    yield session
    await session.end()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["conversation", "map_reduce", pytest.param("research_team", marks=pytest.mark.long)])
async def test_an_example_prints_what_its_readme_shows(session: Session, name: str) -> None:
    """With the agents of its file, which `coord up` starts."""
    await session.type(lines_of(EXAMPLES / name / "README.md"))


@pytest.mark.timeout(300)
async def test_an_orchestrator_survives_as_the_document_shows(session: Session) -> None:
    """It is killed, continues, and is an agent."""
    await session.type(lines_of(LLM_AGENTS, "## Orchestrators that survive a crash"))


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("framework", ["Pydantic AI", "OpenAI Agents SDK", "LangGraph"])
async def test_an_agent_of_a_framework_is_a_kept_program(
    session_in_copy: Session, start: Start, framework: str
) -> None:
    """Installed from its requirements into an environment of its own, and given tasks by coord."""
    await start("--push-workers", "0").ready()
    await session_in_copy.type(lines_of(LLM_AGENTS, f"### {framework}"))


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("framework", ["FastAPI", "Django"])
async def test_a_web_app_submits_tasks_and_shows_progress(session_in_copy: Session, framework: str) -> None:
    """Installed with coord into an environment of its own, and called over HTTP."""
    document = EXAMPLES / "web_apps" / "README.md"
    up, *_ = lines_of(document)
    lines = lines_of(document, f"## {framework}")
    await session_in_copy.type([up, *lines])
    (port,) = (PORT.findall(line.typed)[0] for line in lines if STAYING.match(line.typed))
    shown = await shown_in_browser(f"http://127.0.0.1:{session_in_copy.ports[port]}/", below=1_000)
    assert shown.replace(" ", "") == 'completed:{"primes":168}'


async def shown_in_browser(url: str, below: int) -> str:
    """Return what the page of an app shows in the end, when a person has asked for the primes below a number."""
    from playwright.async_api import async_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        if os.environ.get("CI"):
            pytest.fail("no chromium on PATH; .ci/run installs it")
        pytest.skip("no chromium on PATH; apt-get install chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = await browser.new_page()
        await page.goto(url)
        await page.get_by_label("Primes below").fill(str(below))
        await page.get_by_role("button", name="Count").click()
        await page.wait_for_function("document.querySelector('output').value.startsWith('completed')", timeout=60_000)
        shown = await page.locator("output").text_content()
        assert await page.locator("progress").evaluate("bar => bar.value") == 1
        await browser.close()
    return shown or ""
