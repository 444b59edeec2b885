"""Takes the pictures of the dashboard in docs/pictures, from a live cell; ``scripts/screenshots`` runs it.

Each picture is a row of ``PICTURES``: a page that is added to the dashboard adds its row.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from playwright.sync_api import Browser, Page, sync_playwright

from coord import NotFound, Undelivered
from coord.embedded import EmbeddedServer
from coord.models.agents import AgentStatus, AgentType
from coord.models.facts import AgentRegistered
from coord.models.messages import MessageType
from coord.streams import Append
from tests.browser import ARGUMENTS, Theme
from tests.repo.documents import ROOT
from tests.system.gateway_cell import gateway_cell
from tests.system.live_cell import LiveCell
from tests.system.staged_fleet import ROLES, StagedFleet

FOLDER = ROOT / "docs" / "pictures"
#: Bytes of a picture at most: the repository keeps each version of each.
LIMIT = 150_000
WIDE, NARROW = (1080, 640), (390, 760)
#: Milliseconds for which a page follows the cell before its picture is taken.
SETTLED_MS = 6_000


def settle(page: Page) -> None:
    """Let the page follow the cell for a while."""
    page.wait_for_timeout(SETTLED_MS)


def show_newest(page: Page) -> None:
    """Let the charts grow, then show the tasks that came meanwhile."""
    page.wait_for_timeout(8 * SETTLED_MS)
    page.get_by_role("button", name="newer").click()
    page.wait_for_timeout(SETTLED_MS // 4)


def open_first_task(page: Page) -> None:
    """Go from the list to its first task."""
    page.locator(".task-row[data-task] a").first.click()
    page.locator(".candidates").wait_for()


class Picture(NamedTuple):
    """A picture and how it is taken."""

    name: str
    place: str  #: in the URL
    theme: Theme = "light"
    size: tuple[int, int] = WIDE
    prepare: Callable[[Page], None] = settle


PICTURES = (
    Picture("fleet", "#/fleet?group=region"),
    Picture("fleet-agent", "#/fleet/gpu-2?group=type", "dark"),
    Picture("tasks", "#/tasks", size=(1280, 800), prepare=show_newest),
    Picture("task", "#/tasks?q=state:completed type:summarize", "dark", prepare=open_first_task),
    Picture("messages", "#/messages/conversation/plan-7"),
    Picture("system", "#/system", "dark", (1280, 800)),
    Picture("fleet-phone", "#/fleet?group=type", "light", NARROW),
)


#: A conversation: sender, receiver, id, type, the message that it answers.
TALK = (
    ("planner", "reader-1", "m-1", "task_assignment", None),
    ("planner", "reader-2", "m-2", "task_assignment", None),
    ("reader-1", "planner", "m-3", "status_update", "m-1"),
    ("reader-2", "reader-1", "m-4", "direct", None),
    ("reader-1", "reader-2", "m-5", "direct", "m-4"),
    ("reader-2", "planner", "m-6", "status_update", "m-2"),
    ("planner", "reviewer", "m-7", "consensus", None),
    ("reviewer", "planner", "m-8", "consensus", "m-7"),
    ("planner", "archive", "m-9", "direct", None),
)


async def talk(cell: LiveCell) -> None:
    """Let four agents hold a conversation; a fifth is not there."""
    there = ("planner", "reader-1", "reader-2", "reviewer")
    facts = [AgentRegistered(one, AgentType.COORDINATOR, heartbeat_interval=3_600) for one in there]
    await cell.client.connection.append([Append("in:registry", fact) for fact in facts])
    for sender, receiver, message_id, kind, reply_to in TALK:
        with suppress(Undelivered, NotFound):
            await cell.client.send(
                receiver,
                {"text": "…"},
                sender_id=sender,
                message_id=message_id,
                message_type=MessageType(kind),
                reply_to=reply_to,
                correlation_id="plan-7",
            )


async def stage(cell: LiveCell) -> StagedFleet:
    """Return a fleet at work: most agents are active, and each other state has some."""
    await cell.client.admin.set_setting("full_scores", value=True)
    parked = {"capabilities": ["render"], "tags": ["gpu-h100"]}
    await cell.client.submit_many([{"task_type": "render", "requirements": parked}] * 30)
    fleet = StagedFleet(cell.client)
    ids = await fleet.register(52)
    await fleet.set_status(ids[4::23], AgentStatus.BUSY)
    await fleet.set_status(ids[11::47], AgentStatus.ERROR)
    for agent_id in ids[7::31]:
        await cell.client.admin.drain(agent_id)
    for agent_id in ids[17::41]:
        await cell.client.admin.maintain(agent_id)
    await fleet.submit(70, [role for role in ROLES if role.name == "train"])  # more than its agents can take
    fleet.start(20, run_s=(6.0, 13.0))
    await talk(cell)
    return fleet


def main() -> None:
    """Take all pictures."""
    FOLDER.mkdir(exist_ok=True)
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("no chromium on PATH; apt-get install chromium")
    with ExitStack() as stack:
        server = EmbeddedServer.start(Path(stack.enter_context(TemporaryDirectory())), extra=("--appendonly", "no"))
        stack.callback(server.stop, force=True)
        gateway = stack.enter_context(gateway_cell(server.url, "pictures"))
        fleet = gateway.cell.do(stage(gateway.cell))
        stack.callback(lambda: gateway.cell.do(fleet.stop()))
        playwright = stack.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        for picture in PICTURES:
            take(browser, f"http://127.0.0.1:{gateway.port}/ui/", picture)


def take(browser: Browser, url: str, picture: Picture) -> None:
    """Take a picture of the dashboard at a URL."""
    width, height = picture.size
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=picture.theme)
    page = context.new_page()
    page.goto(url + picture.place)
    picture.prepare(page)
    path = FOLDER / f"{picture.name}.png"
    page.screenshot(path=path)
    context.close()
    size = path.stat().st_size
    print(f"{path.relative_to(ROOT)}: {size:,} bytes")  # noqa: T201 (a script prints)
    if size > LIMIT:
        sys.exit(f"{path.name} has {size:,} bytes, and {LIMIT:,} are allowed: make it smaller")


if __name__ == "__main__":
    main()
