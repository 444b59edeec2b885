"""The Tasks pages in Chromium, with a live cell behind them: real work, and actions that change its records."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, suppress
from time import monotonic
from typing import Any

import pytest
from msgspec import Raw
from msgspec.json import encode
from playwright.sync_api import Locator, Page, expect

from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.errors import TaskNotFound
from coord.models.agents import AgentType
from coord.models.facts import AgentRegistered, TaskFailed
from coord.models.tasks import TaskState
from coord.streams import Append
from tests.browser import DEVICES, THEMES, TIMEOUT_MS, Device, OpenPage, Theme, WatchedPage
from tests.ports import unused_port
from tests.running import running_cell
from tests.system.gateway_cell import Gateway, gateway_of
from tests.system.live_cell import LiveCell, live_cell
from tests.waiting import wait_until

#: An agent that nobody runs, so that tasks have a near miss.
NEAR = AgentRegistered("near-1", AgentType.WORKER, capabilities=("vision",), capacity=2)
#: No payload or result may be on a page.
SECRET = "hunter2-is-a-password"


@pytest.fixture(scope="module")
def cell(server: EmbeddedServer) -> Iterator[LiveCell]:
    """A cell with the agent of the SDK, and one that gets nothing."""
    settings = Settings(namespace="dashboard-tasks", gateway_wait_s=20, gateway_redis_s=20, max_backlog_tasks=200_000)
    with live_cell(server.url, settings) as running:
        running.do(running.client.connection.append([Append("in:registry", NEAR)]))
        yield running


@pytest.fixture(scope="module")
def gateway(cell: LiveCell) -> Iterator[Gateway]:
    """A gateway without security."""
    with gateway_of(cell) as running:
        yield running


class OpenTasks:
    """Opens the pages of tasks.

    Attributes:
        watched: the last page that it has opened.
    """

    watched: WatchedPage

    def __init__(self, port: int, open_page: OpenPage) -> None:
        self._url = f"http://127.0.0.1:{port}/ui"
        self._open_page = open_page

    def __call__(self, place: str = "#/tasks", **options: Any) -> Page:
        """Open one, and wait until it follows the cell."""
        self.watched = self._open_page(self._url + place, **options)
        expect(self.watched.page.get_by_text("Live")).to_be_visible()
        return self.watched.page


@pytest.fixture
def tasks(gateway: Gateway, open_page: OpenPage) -> OpenTasks:
    """Opens the pages of tasks."""
    return OpenTasks(gateway.port, open_page)


def submit(cell: LiveCell, task_type: str, *task_ids: str, **more: Any) -> None:
    """Submit tasks of a type."""
    cell.do(cell.client.submit_many([{"task_type": task_type, "task_id": one, **more} for one in task_ids]))


def reach(cell: LiveCell, task_id: str, *states: str, timeout: float = 30.0) -> None:
    """Wait until a task is in one of these states."""

    async def is_there() -> bool:
        with suppress(TaskNotFound):  # it is not admitted yet
            return (await cell.client.task(task_id)).state in states
        return False

    cell.do(wait_until(is_there, f"{task_id} is {' or '.join(states)}", timeout), timeout + 30)


def state_of(cell: LiveCell, task_id: str) -> TaskState:
    """The state in a task's record."""
    return cell.do(cell.client.task(task_id)).state


def until(page: Page, predicate: Callable[[], bool]) -> None:
    """Let the page go on until this is true."""
    latest = monotonic() + TIMEOUT_MS / 1000
    while not predicate():
        assert monotonic() < latest
        page.wait_for_timeout(20)


def rows(page: Page) -> Locator:
    """The rows of the list that have elements."""
    return page.locator(".task-row[data-task]")


def row(page: Page, task_id: str) -> Locator:
    """The row of a task."""
    return page.locator(f'.task-row[data-task="{task_id}"]')


def search(page: Page, query: str) -> None:
    """Type a query and press Enter."""
    bar = page.get_by_role("combobox", name="Find tasks")
    bar.fill(query)
    bar.press("Enter")


def test_it_shows_why_tasks_wait(cell: LiveCell, tasks: OpenTasks) -> None:
    """By reason, by priority and by pool, parked pools first; each leads to its tasks."""
    needs = {"capabilities": ["gpu-h100"], "tags": ["eu"]}
    submit(cell, "render", "parked-1", "parked-2", requirements=needs, priority="urgent")
    submit(cell, "echo", "later-1", delay=3_600)
    page = tasks()
    reasons = page.locator(".reasons li")
    expect(reasons.filter(has_text="no capability")).to_contain_text("2")
    expect(reasons.filter(has_text="its time has not come")).to_contain_text("1")
    expect(page.locator(".by-priority li", has_text="urgent")).to_contain_text("2")
    pool = page.locator(".pools li").first
    for text in ("render", "gpu-h100", "#eu", "no capability"):
        expect(pool).to_contain_text(text)
    expect(page.locator(".pools header")).to_contain_text("2 tasks parked")
    expect(page.locator(".states")).to_contain_text("1 scheduled")
    reasons.get_by_role("link", name="no capability").click()
    expect(page.get_by_role("combobox", name="Find tasks")).to_have_value("reason:no_capability")
    expect(rows(page)).to_have_count(2)
    page.get_by_role("link", name="1 scheduled").click()
    expect(rows(page)).to_have_count(1)
    expect(row(page, "later-1")).to_contain_text(re.compile(r"scheduled.*in 5\d min"))
    assert page.url.endswith("#/tasks?q=state%3Ascheduled")


def test_waiting_tasks_follow_while_a_link_has_the_focus(cell: LiveCell, tasks: OpenTasks) -> None:
    """It keeps the focus when the list is drawn again."""
    needs = {"capabilities": ["focus"]}
    submit(cell, "focus", "focus-1", requirements=needs)
    page = tasks()
    pool = page.locator(".pools li").filter(has=page.get_by_role("link", name="focus", exact=True))
    link = pool.get_by_role("link")
    expect(pool.locator("b")).to_have_text("1")
    link.focus()
    submit(cell, "focus", "focus-2", requirements=needs)
    expect(pool.locator("b")).to_have_text("2")
    expect(link).to_be_focused()


def test_the_query_is_in_the_url(cell: LiveCell, tasks: OpenTasks) -> None:
    """A view can be kept and sent; fields and values are completed."""
    submit(cell, "echo", "view-1", "view-2")
    submit(cell, "boom", "view-3")
    for one in ("view-1", "view-2", "view-3"):
        reach(cell, one, "completed", "failed")
    page = tasks()
    search(page, "id:view-* state:failed")
    expect(rows(page)).to_have_count(1)
    expect(row(page, "view-3")).to_contain_text("failed it_broke")
    page.reload()
    expect(row(page, "view-3")).to_be_visible()
    page.keyboard.press("/")
    bar = page.get_by_role("combobox", name="Find tasks")
    expect(bar).to_be_focused()
    bar.fill("id:view-* state:comp")
    expect(page.get_by_role("option", name="state:completed")).to_be_visible()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    expect(rows(page)).to_have_count(2)
    page.go_back()
    expect(rows(page)).to_have_count(1)
    page.go_forward()
    expect(rows(page)).to_have_count(2)
    search(page, "id:nothing-like-it")
    expect(page.get_by_role("heading", name="No task matches")).to_be_visible()
    page.get_by_role("button", name="Show all tasks").click()
    expect(row(page, "view-1")).to_be_visible()


def test_the_end_of_a_long_id_is_shown(cell: LiveCell, tasks: OpenTasks) -> None:
    """Generated ids differ there; the whole id is the name of the link. The address of HTTP leads to the page, too."""
    name = "01a22e9a-974e-729d-a86a-0e0000005644"
    submit(cell, "echo", name)
    reach(cell, name, "completed")
    page = tasks(f"#/tasks?q=id:{name}")
    page.set_viewport_size({"width": 900, "height": 700})
    link = page.get_by_role("link", name=name, exact=True)
    expect(link).to_be_visible()
    head, tail = link.locator(".long-id > [aria-hidden]").all()
    assert tail.text_content() == "005644"
    cell_box, tail_box = row(page, name).locator(".id").bounding_box(), tail.bounding_box()
    assert cell_box is not None
    assert tail_box is not None
    assert tail_box["x"] + tail_box["width"] <= cell_box["x"] + cell_box["width"] + 1
    assert head.evaluate("(head) => head.scrollWidth > head.clientWidth")
    page.goto(f"{page.url.partition('#')[0]}#/tasks/{name}")
    expect(page.get_by_role("heading", level=1)).to_have_text(name)


def test_a_wrong_query_is_explained(tasks: OpenTasks) -> None:
    """With the position, and the nearest word that is right; nothing can be changed with it."""
    page = tasks("#/tasks?q=type:boom -sate:failed")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("Position 12: there is no field 'sate'; did you mean state:failed?")
    expect(alert.locator("mark")).to_have_text("sate:failed")
    expect(page.get_by_role("button", name="Cancel all …")).to_be_disabled()
    expect(page.locator(".tasks-actions")).to_contain_text("Correct the query first.")
    alert.get_by_role("button", name="Use state:failed").click()
    expect(page.get_by_role("combobox", name="Find tasks")).to_have_value("type:boom -state:failed")
    expect(alert).to_be_hidden()
    search(page, "state:runing")
    alert.get_by_role("button", name="Use state:running").click()
    expect(page.get_by_role("combobox", name="Find tasks")).to_have_value("state:running")
    expect(alert).to_be_hidden()
    tasks.watched.forgive("status of 422")


def test_rows_follow_in_their_place(cell: LiveCell, tasks: OpenTasks) -> None:
    """They change and do not move. A new task is counted, and shown when the user wants it."""
    names = [f"stay-{n}" for n in range(4)]
    for name in names:
        submit(cell, "gate", name, payload={"gate": name})
        reach(cell, name, "running")
    page = tasks("#/tasks?q=id:stay-*")
    expect(rows(page)).to_have_count(4)
    before = rows(page).evaluate_all("rows => rows.map((row) => row.dataset.task)")
    cell.open_gate("stay-1")
    expect(row(page, "stay-1")).to_contain_text("completed")
    expect(row(page, "stay-0")).to_contain_text("running")
    submit(cell, "gate", "stay-9", payload={"gate": "stay-1"})
    submit(cell, "echo", "other-1")
    newer = page.get_by_role("button", name="1 newer")
    expect(newer).to_be_visible()
    assert rows(page).evaluate_all("rows => rows.map((row) => row.dataset.task)") == before
    newer.click()
    expect(row(page, "stay-9")).to_be_visible()
    expect(newer).to_be_hidden()
    expect(row(page, "other-1")).to_have_count(0)
    for name in names:
        cell.open_gate(name)
    for name in names:
        expect(row(page, name)).to_contain_text("completed")
    expect(page.locator(".plot .legend").first).to_contain_text("Completed")


def test_events_during_a_read_of_a_list_count(cell: LiveCell, tasks: OpenTasks) -> None:
    """What is read is older than they are, so they are applied to it."""
    submit(cell, "gate", "during-1", payload={"gate": "during"})
    reach(cell, "during-1", "running")
    page = tasks()
    read: list[Any] = []

    def keep(route: Any) -> None:  # later ones get no answer: they would hide a lost event
        read.append((route, None if read else route.fetch()))

    page.route(re.compile(r"/tasks\?.*during"), keep)
    search(page, "id:during-*")
    until(page, lambda: bool(read))
    cell.open_gate("during")
    reach(cell, "during-1", "completed")
    expect(page.locator(".plot .legend").first).to_contain_text("Completed")
    page.wait_for_timeout(500)  # this page shows nothing yet, but has the event too
    read[0][0].fulfill(response=read[0][1])
    expect(row(page, "during-1")).to_contain_text("completed")


def test_rows_out_of_view_follow_after_lost_events(cell: LiveCell, open_page: OpenPage) -> None:
    """A row that has no elements while events are lost is read again when it comes into view."""
    submit(cell, "lost", *(f"lost-{n:03}" for n in range(400)), requirements={"capabilities": ["nowhere"]})
    reach(cell, "lost-399", "queued")
    port = unused_port()
    with gateway_of(cell, port):
        watched = open_page(f"http://127.0.0.1:{port}/ui#/tasks?q=type:lost")
        page = watched.page
        expect(rows(page).first).to_be_visible()
        first = str(rows(page).first.get_attribute("data-task"))
        for _ in range(60):
            page.mouse.wheel(0, 3_000)
            page.wait_for_timeout(100)
            if not row(page, first).count():
                break
        expect(row(page, first)).to_have_count(0)
    expect(page.get_by_text("Connection lost", exact=True)).to_be_visible()
    cell.do(cell.client.cancel(first))
    page.evaluate("() => { const now = Date.now; Date.now = () => now() + 400_000 }")  # it begins with what comes next
    with gateway_of(cell, port):
        expect(page.get_by_text("Live")).to_be_visible()
        page.evaluate("scrollTo(0, 0)")
        expect(row(page, first)).to_contain_text("cancelled")
        page.goto("about:blank")
    watched.forgive("ERR_|status of 503")


def test_a_closed_dialog_says_what_was_done(cell: LiveCell, tasks: OpenTasks) -> None:
    """Escape during an operation ends it after the request that is under way."""
    submit(cell, "escape", *(f"escape-{n}" for n in range(700)), requirements={"capabilities": ["nowhere"]})
    reach(cell, "escape-699", "queued")
    page = tasks("#/tasks?q=type:escape")
    held: list[Any] = []

    def hold(route: Any) -> None:
        if route.request.post_data_json.get("dry_run"):
            route.continue_()
        else:
            held.append(route)

    page.route("**/tasks/bulk", hold)
    page.get_by_role("button", name="Cancel all …").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Cancel 700 tasks").click()
    until(page, lambda: bool(held))
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    held[0].continue_()
    notices = page.get_by_role("log", name="Notifications")
    expect(notices).to_contain_text("500 tasks cancelled")
    expect(notices).to_contain_text("Stopped before the end.")
    assert len(held) == 1
    assert {state_of(cell, f"escape-{n}") for n in range(700)} == {"cancelled", "queued"}


def test_all_that_match_are_cancelled(cell: LiveCell, tasks: OpenTasks) -> None:
    """They are counted first; the question repeats query and number; the records change, and no others."""
    needs = {"capabilities": ["bulk"]}
    submit(cell, "bulk", *(f"bulk-{n}" for n in range(1_200)), requirements=needs)
    submit(cell, "keep", "bulk-not", requirements=needs)
    for name in ("bulk-1199", "bulk-not"):
        reach(cell, name, "queued")
    page = tasks()
    bodies: list[Any] = []
    page.on("request", lambda one: bodies.append(one.post_data_json) if one.url.endswith("/tasks/bulk") else None)
    expect(page.get_by_role("button", name="Cancel all …")).to_be_disabled()
    search(page, "type:bulk")
    button = page.get_by_role("button", name="Cancel all …")
    button.click()
    dialog = page.get_by_role("dialog", name="Cancel all that match")
    expect(dialog).to_contain_text("type:bulk state:scheduled,queued,assigned,running")
    expect(dialog.get_by_role("button", name="Cancel 1,200 tasks")).to_be_visible()
    assert [body["dry_run"] for body in bodies] == [True]
    dialog.get_by_role("button", name="Keep them as they are").click()
    assert state_of(cell, "bulk-7") == "queued"
    button.click()
    cell.do(cell.client.cancel("bulk-3"))  # meanwhile, after the list was read
    dialog.get_by_label("Reason").fill("the customer left")
    dialog.get_by_role("button", name=re.compile("Cancel 1,(200|199) tasks")).click()
    expect(dialog.get_by_role("status")).to_contain_text(re.compile("1,(199|200) tasks cancelled."))
    changes = [body for body in bodies if not body.get("dry_run")]
    assert len(changes) == 3
    assert len({body["cursor"] for body in changes}) == 3
    assert {body["reason"] for body in changes} == {"the customer left"}
    assert {state_of(cell, f"bulk-{n}") for n in (0, 7, 600, 1_199)} == {"cancelled"}
    assert state_of(cell, "bulk-not") == "queued"
    dialog.get_by_role("button", name="Close").last.click()
    expect(dialog).to_have_count(0)
    expect(rows(page).first).to_contain_text("cancelled")
    button.click()
    expect(dialog.get_by_role("status")).to_have_text("All tasks that match have ended. There is nothing to do.")


def test_tasks_that_are_asked_to_stop_are_counted_apart(cell: LiveCell, tasks: OpenTasks) -> None:
    """⚠ The page did not say how many were cancelled, and how many an agent still works on."""
    submit(cell, "gate", "apart-1", payload={"gate": "apart"})
    submit(cell, "apart", "apart-2", "apart-3", requirements={"capabilities": ["nowhere"]})
    reach(cell, "apart-1", "running")
    reach(cell, "apart-3", "queued")
    page = tasks("#/tasks?q=id:apart-*")
    page.get_by_role("button", name="Cancel all …").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Cancel 3 tasks").click()
    expect(dialog.get_by_role("status")).to_have_text("2 tasks cancelled, 1 asked to stop.")


def test_all_that_match_are_retried_or_prioritized(cell: LiveCell, tasks: OpenTasks) -> None:
    """Failed ones get fresh attempts; waiting ones move to the other priority."""
    submit(cell, "boom", "again-1", "again-2")
    submit(cell, "move", "move-1", "move-2", requirements={"capabilities": ["nowhere"]})
    for name in ("again-1", "again-2"):
        reach(cell, name, "failed")
    page = tasks("#/tasks?q=id:again-*")
    page.get_by_role("button", name="Retry all …").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Retry 2 tasks").click()
    expect(dialog.get_by_role("status")).to_contain_text("2 tasks queued again.")
    page.keyboard.press("Escape")
    for name in ("again-1", "again-2"):
        reach(cell, name, "failed")
        assert cell.do(cell.client.task(name)).attempt == 2
        expect(row(page, name)).to_contain_text("2")
    search(page, "type:move")
    page.get_by_role("button", name="Prioritize all …").click()
    dialog.get_by_label("New priority").select_option("urgent")
    dialog.get_by_role("button", name="Prioritize 2 tasks").click()
    expect(dialog.get_by_role("status")).to_contain_text("2 tasks changed.")
    page.keyboard.press("Escape")
    assert {cell.do(cell.client.task(name)).priority for name in ("move-1", "move-2")} == {"urgent"}
    expect(row(page, "move-1")).to_contain_text("urgent")


def test_the_count_is_of_the_chosen_priority(cell: LiveCell, tasks: OpenTasks) -> None:
    """Tasks that have it already are not counted; another choice counts again."""
    needs = {"capabilities": ["nowhere"]}
    submit(cell, "mix", "mix-1", requirements=needs, priority="urgent")
    submit(cell, "mix", "mix-2", "mix-3", requirements=needs, priority="high")
    for name in ("mix-1", "mix-2", "mix-3"):
        reach(cell, name, "queued")
    page = tasks("#/tasks?q=type:mix")
    page.get_by_role("button", name="Prioritize all …").click()
    dialog = page.get_by_role("dialog")
    choice = dialog.get_by_label("New priority")
    expect(choice).to_have_value("high")
    expect(dialog.get_by_role("button", name="Prioritize 1 task", exact=True)).to_be_visible()
    expect(dialog).to_contain_text("Tasks that begin to match meanwhile are changed too.")
    choice.focus()
    choice.select_option("urgent")
    expect(dialog.get_by_role("button", name="Prioritize 2 tasks", exact=True)).to_be_visible()
    expect(choice).to_be_focused()
    choice.select_option("low")
    expect(dialog.get_by_role("button", name="Prioritize 3 tasks", exact=True)).to_be_visible()
    choice.select_option("high")
    dialog.get_by_role("button", name="Prioritize 1 task", exact=True).click()
    expect(dialog.get_by_role("status")).to_contain_text("1 task changed.")
    expect(choice).to_be_hidden()
    assert {cell.do(cell.client.task(f"mix-{n}")).priority for n in (1, 2, 3)} == {"high"}


def test_an_operation_goes_on_after_a_failure(cell: LiveCell, tasks: OpenTasks) -> None:
    """What was done is said; it continues where it ended, and says what was skipped."""
    submit(cell, "rest", *(f"rest-{n}" for n in range(700)), requirements={"capabilities": ["nowhere"]})
    reach(cell, "rest-699", "queued")
    page = tasks("#/tasks?q=type:rest")
    sent: list[Any] = []

    def refuse_second(route: Any) -> None:
        sent.append(route.request.post_data_json)
        if len(sent) == 3:
            route.abort()
        else:
            route.continue_()

    page.route("**/tasks/bulk", refuse_second)
    page.get_by_role("button", name="Cancel all …").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Cancel 700 tasks").click()
    expect(dialog.get_by_role("alert")).to_contain_text("The gateway does not answer")
    expect(dialog.get_by_role("status")).to_contain_text("500 tasks cancelled.")
    dialog.get_by_role("button", name="Continue").click()
    expect(dialog.get_by_role("status")).to_contain_text("700 tasks cancelled.")
    assert sent[3]["cursor"] == sent[2]["cursor"] is not None
    assert sent[3]["operation"] == sent[2]["operation"] is not None
    assert {state_of(cell, f"rest-{n}") for n in (0, 499, 500, 699)} == {"cancelled"}
    tasks.watched.forgive("ERR_FAILED")


def test_a_role_limits_what_is_offered(cell: LiveCell, open_page: OpenPage) -> None:
    """What a role may not do is disabled, with the reason."""
    submit(cell, "role", "role-1", requirements={"capabilities": ["nowhere"]})
    with gateway_of(cell, gateway_security=True, gateway_jwt_secret="k" * 40) as secured:
        client, _ = cell.do(cell.client.admin.create_key("client", name="caller"))
        watched = open_page(f"http://127.0.0.1:{secured.port}/ui#/tasks?q=type:role")
        page = watched.page
        login = page.get_by_role("dialog", name="Log in")
        login.get_by_label("API key or token").fill(client)
        page.keyboard.press("Enter")
        expect(row(page, "role-1")).to_be_visible()
        for name in ("Cancel", "Retry", "Prioritize"):
            expect(page.get_by_role("button", name=f"{name} all …")).to_be_disabled()
        expect(page.locator("#bulk-why")).to_have_text("Not allowed: needs the role operator; your role is client.")
        page.get_by_role("link", name="role-1").click()
        expect(page.get_by_role("button", name="Cancel")).to_be_enabled()
        expect(page.get_by_role("button", name="Retry")).to_be_disabled()
        watched.forgive("status of 401")
        page.goto("about:blank")


def test_a_task_is_followed_to_its_end(cell: LiveCell, tasks: OpenTasks) -> None:
    """Without a reload: it waits for its time, is placed, runs, and completes. Its values are not on the page."""
    submit(cell, "gate", "follow-1", payload={"gate": "follow", "password": SECRET}, delay=3)
    reach(cell, "follow-1", "scheduled")
    page = tasks("#/task/follow-1")
    page.evaluate("globalThis.isTheSamePage = true")
    state = page.locator(".task-state")
    attempt = page.locator(".attempt")
    expect(page.get_by_role("heading", level=1)).to_have_text("follow-1")
    expect(page.get_by_role("heading", name="Why it still waits")).to_be_visible()
    expect(state).to_have_text("running")
    expect(attempt).to_have_count(1)
    for text in ("Attempt 1", "cli-agent", "not queued", "in the inbox", "ran"):
        expect(attempt).to_contain_text(text)
    expect(page.get_by_role("heading", name="Why cli-agent")).to_be_visible()
    expect(page.locator(".why")).to_contain_text("coord settings set full_scores true")
    expect(page.get_by_role("button", name="Cancel")).to_be_enabled()
    expect(page.get_by_role("button", name="Retry")).to_be_disabled()
    cell.open_gate("follow")
    expect(state).to_have_text("completed")
    expect(attempt.locator(".settle[data-status=completed]")).to_be_visible()
    expect(page.get_by_role("button", name="Cancel")).to_be_disabled()
    expect(page.locator("#task-why-not")).to_contain_text("Cannot cancel: the task is already completed.")
    expect(page.locator(".facts").last).to_contain_text("bytes")
    assert page.evaluate("globalThis.isTheSamePage") is True
    assert SECRET not in page.content()
    assert "through" not in page.content()
    submit(cell, "echo", "secret-1", payload=SECRET)
    reach(cell, "secret-1", "completed")
    page.goto(page.url.replace("follow-1", "secret-1"))
    expect(page.get_by_role("heading", level=1)).to_have_text("secret-1")
    expect(page.locator(".facts").last).to_contain_text("23 bytes")
    assert SECRET not in page.content()


def test_every_attempt_has_its_error(cell: LiveCell, tasks: OpenTasks) -> None:
    """Agent, code and message of each; a replay through the page adds one and keeps the others."""
    submit(cell, "boom", "errors-1")
    reach(cell, "errors-1", "failed")
    page = tasks("#/task/errors-1")
    attempts = page.locator(".attempt")
    expect(attempts).to_have_count(1)
    for text in ("Attempt 1", "cli-agent", "failed", "it_broke", "by design"):
        expect(attempts.first).to_contain_text(text)
    expect(page.get_by_role("button", name="Cancel")).to_be_disabled()
    page.get_by_role("button", name="Retry").click()
    page.get_by_role("dialog", name="Retry errors-1?").get_by_role("button", name="Retry").click()
    expect(page.get_by_role("log", name="Notifications")).to_contain_text("The task is queued again")
    expect(attempts).to_have_count(2)
    expect(page.locator("body")).not_to_be_focused()
    expect(attempts.last).to_contain_text("it_broke")
    reach(cell, "errors-1", "failed")
    assert cell.do(cell.client.task("errors-1")).attempt == 2


def test_a_traceback_is_bounded(cell: LiveCell, tasks: OpenTasks) -> None:
    """Of the detail of an error only the traceback is shown, and of a long one its end."""
    agent = AgentRegistered("trace-1", AgentType.WORKER, capabilities=("trace",), capacity=1)
    cell.do(cell.client.connection.append([Append("in:registry", agent)]))
    submit(cell, "trace", "trace-1", requirements={"capabilities": ["trace"]})
    reach(cell, "trace-1", "assigned")
    lease = cell.do(cell.client.task("trace-1")).lease
    assert lease is not None
    detail = encode({"traceback": f"{'x' * 3_000}\nline 7", "password": SECRET})
    fact = TaskFailed("trace-1", lease, "broken", "no page", retryable=False, detail=Raw(detail))
    cell.do(cell.client.connection.append([Append("in:reports", fact)]))
    page = tasks("#/task/trace-1")
    error = page.locator(".attempt-error")
    expect(error).to_contain_text("no page")
    expect(error.locator("details pre")).to_be_hidden()
    error.get_by_text("Traceback", exact=True).click()
    expect(error.locator("details pre")).to_contain_text("line 7")
    shown = error.locator("details pre").text_content() or ""
    assert shown.startswith("… (cut)\nx")
    assert len(shown.removeprefix("… (cut)\n")) == 2_000
    assert SECRET not in page.content()
    assert tasks.watched.barriers() == []
    cell.do(cell.client.admin.remove("trace-1"))


def test_a_past_attempt_is_explained(cell: LiveCell, tasks: OpenTasks) -> None:
    """Also without the page: why it had waited, why it went to its agent, and where the handler failed."""
    submit(cell, "late", "past-1", requirements={"capabilities": ["late"]})
    reach(cell, "past-1", "queued")
    submitted_at = cell.do(cell.client.task("past-1")).submitted_at

    async def is_counted() -> bool:
        found = await cell.client.waiting_counts()
        return found is not None and found.counted_at > submitted_at + 2_000  # so the count began after it

    cell.do(wait_until(is_counted, "the reason is judged"))
    agent = AgentRegistered("late-1", AgentType.WORKER, capabilities=("late",), capacity=1)
    cell.do(cell.client.connection.append([Append("in:registry", agent)]))
    reach(cell, "past-1", "assigned")
    lease = cell.do(cell.client.task("past-1")).lease
    assert lease is not None
    fact = TaskFailed("past-1", lease, "broken", "no page", detail=Raw(encode({"traceback": "line 7"})))
    cell.do(cell.client.connection.append([Append("in:reports", fact)]))
    cell.do(cell.client.admin.remove("late-1"))
    reach(cell, "past-1", "queued")
    page = tasks("#/task/past-1")
    first = page.locator(".attempt").first
    expect(first.locator(".track i[data-kind=lacks]")).to_be_visible()
    expect(first).to_contain_text("waited: no capability")
    first.get_by_text("Traceback", exact=True).click()
    expect(first.locator(".attempt-error pre").last).to_have_text("line 7")
    first.get_by_text("Why late-1", exact=True).click()
    expect(first.locator(".why")).to_contain_text("least_connections")
    expect(first.locator(".why")).to_contain_text("no capability")
    assert tasks.watched.barriers() == []
    cell.do(cell.client.cancel("past-1"))


def test_a_waiting_task_is_explained_and_cancelled(cell: LiveCell, tasks: OpenTasks) -> None:
    """The reason, the agents by what they lack, the nearest misses; then it ends through the page."""
    needs = {"capabilities": ["vision"], "tags": ["eu"]}
    submit(cell, "vision", "explain-1", requirements=needs)
    cell.do(cell.client.send("near-1", {"text": SECRET}, sender_id="cli-agent", correlation_id="explain-1"))
    page = tasks("#/task/explain-1")
    why = page.locator(".why")
    for text in ("no tag", "1 of 1 in its pool", "agents examined, 0 may get it now", "near-1 lacks tag 'eu'"):
        expect(why).to_contain_text(text)
    expect(page.locator(".track i[data-kind=lacks]")).to_be_visible()
    expect(page.locator(".task-messages")).to_contain_text("cli-agent → near-1")
    assert SECRET not in page.content()
    why.get_by_role("link", name="near-1").click()
    expect(page.get_by_role("heading", name="near-1")).to_be_visible()
    page.go_back()
    page.get_by_role("button", name="Cancel").click()
    dialog = page.get_by_role("dialog", name="Cancel explain-1?")
    dialog.get_by_label("Reason").fill("not needed")
    dialog.get_by_role("button", name="Cancel the task").click()
    expect(page.locator(".task-state")).to_have_text("cancelled task_cancelled")
    expect(page.locator("body")).not_to_be_focused()
    assert state_of(cell, "explain-1") == "cancelled"


def test_scores_are_bars(cell: LiveCell, tasks: OpenTasks) -> None:
    """With the setting for them, each candidate has its score and what it was made of."""
    cell.do(cell.client.admin.set_setting("full_scores", value=True))
    try:
        for n in range(40):  # the setting takes effect with a later placement
            submit(cell, "echo", f"score-{n}")
            reach(cell, f"score-{n}", "completed")
            if (cell.do(cell.client.task(f"score-{n}")).placement or {}).get("candidates"):
                break
        else:
            pytest.fail("no placement has scores")
        page = tasks(f"#/task/score-{n}")
        candidate = page.locator(".candidates li.chosen")
        for text in ("cli-agent", "chosen", "in flight"):
            expect(candidate).to_contain_text(text)
    finally:
        cell.do(cell.client.admin.set_setting("full_scores", value=None))


def test_a_restarted_gateway_is_caught_up_with(cell: LiveCell, open_page: OpenPage) -> None:
    """What happened meanwhile is shown without a reload: rows in their places, and the page of a task."""
    port = unused_port()
    submit(cell, "gate", "away-1", payload={"gate": "away"})
    reach(cell, "away-1", "running")
    with gateway_of(cell, port):
        watched = open_page(f"http://127.0.0.1:{port}/ui#/tasks?q=id:away-*")
        page = watched.page
        other = page.context.new_page()
        other.goto(f"http://127.0.0.1:{port}/ui#/task/away-1")
        expect(row(page, "away-1")).to_contain_text("running")
        expect(other.locator(".task-state")).to_have_text("running")
    expect(page.get_by_text("Connection lost", exact=True)).to_be_visible()
    cell.open_gate("away")
    reach(cell, "away-1", "completed")
    with gateway_of(cell, port):
        for one in (page, other):
            expect(one.get_by_text("Live")).to_be_visible(timeout=TIMEOUT_MS)  # each connects again by itself
        expect(row(page, "away-1")).to_contain_text("completed")
        expect(other.locator(".task-state")).to_have_text("completed")
        for one in (page, other):
            one.goto("about:blank")
    watched.forgive("ERR_|status of 503")


def test_an_empty_cell_says_what_to_do(cell: LiveCell, open_page: OpenPage) -> None:
    """The next step, with its command; then the first task appears by itself."""
    stack = AsyncExitStack()
    settings = Settings(namespace="dashboard-tasks-empty")
    cell.do(stack.enter_async_context(running_cell(cell.url, settings)))
    try:
        with gateway_of(cell, namespace=settings.namespace) as gateway:
            watched = open_page(f"http://127.0.0.1:{gateway.port}/ui#/tasks")
            page = watched.page
            expect(page.get_by_role("heading", name="No task yet")).to_be_visible()
            expect(page.locator("pre")).to_contain_text("coord tasks submit")
            expect(page.get_by_text("No task waits for an agent.")).to_be_visible()
            gateway.success("POST", "/tasks/submit", {"task_data": {"task_id": "first-1", "task_type": "greet"}})
            expect(row(page, "first-1")).to_contain_text("queued")
            page.goto(f"{page.url.partition('#')[0]}#/task/nothing-1")
            expect(page.get_by_role("heading", name="There is no task “nothing-1”")).to_be_visible()
            expect(page.locator("pre")).to_have_text("coord tasks list 'id:nothing-1*'")
            page.goto(page.url.replace("nothing-1", "x';ls;'"))
            expect(page.get_by_role("heading", name="There is no task “x';ls;'”")).to_be_visible()
            expect(page.locator("pre")).to_have_count(0)
            watched.forgive("status of 404")
            watched.forgive("status of 422")
            page.goto("about:blank")
    finally:
        cell.do(stack.aclose())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("theme", THEMES)
def test_no_barriers(cell: LiveCell, tasks: OpenTasks, theme: Theme, device: Device) -> None:
    """For the list, a wrong query, the question of an operation, and tasks that failed, wait and completed."""
    submit(cell, "boom", "axe-1")  # the same again for each theme and device: a duplicate, or in another process
    submit(cell, "echo", "axe-2")
    submit(cell, "axe", "axe-3", requirements={"capabilities": ["vision"], "tags": ["eu"]}, priority="urgent")
    submit(cell, "echo", "axe-4", delay=3_600)
    reach(cell, "axe-1", "failed")
    reach(cell, "axe-2", "completed")
    page = tasks("#/tasks?q=id:axe-*", theme=theme, device=device)
    expect(rows(page)).to_have_count(4)
    expect(page.locator(".reasons li").first).to_be_visible()
    expect(page.locator(".plot .legend")).to_have_count(2)
    assert tasks.watched.barriers() == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_role("button", name="Cancel all …").click()
    expect(page.get_by_role("dialog").get_by_role("button", name=re.compile("Cancel 2 tasks"))).to_be_visible()
    assert tasks.watched.barriers() == []
    page.keyboard.press("Escape")
    search(page, "sate:failed")
    expect(page.get_by_role("alert").get_by_role("button")).to_be_visible()
    assert tasks.watched.barriers() == []
    tasks.watched.forgive("status of 422")
    search(page, "id:nothing-like-it")
    expect(page.get_by_role("heading", name="No task matches")).to_be_visible()
    assert tasks.watched.barriers() == []
    for name in ("axe-1", "axe-2", "axe-3", "axe-4"):
        page.goto(f"{page.url.partition('#')[0]}#/task/{name}")
        expect(page.get_by_role("heading", level=1)).to_have_text(name)
        assert tasks.watched.barriers() == [], name
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name


#: Records how long the page kept the browser busy without a pause.
BUSY = """
globalThis.busyMs = [];
new PerformanceObserver((list) => busyMs.push(...list.getEntries().map(({duration}) => duration)))
  .observe({type: "longtask", buffered: true});
"""


def check_long_list(tasks: OpenTasks, cell: LiveCell, task_type: str) -> Page:
    """Open the list of many tasks of a type and scroll through its first thousand."""
    page = tasks("#/fleet")
    page.evaluate(BUSY)
    asked: list[str] = []
    page.on("request", lambda one: asked.append(one.url) if "/tasks?" in one.url else None)
    page.evaluate(f"location.hash = '#/tasks?q=type:{task_type}'")
    expect(rows(page).first).to_be_visible()
    assert len(asked) == 1
    seen = 0
    for _ in range(60):
        page.mouse.wheel(0, 3_000)
        seen = max(seen, int(rows(page).last.get_attribute("aria-rowindex") or 0))
        if seen > 1_000:
            break
        page.wait_for_timeout(100)
    assert seen > 1_000
    assert rows(page).count() <= 500
    held = rows(page).last.get_attribute("data-task")
    cell.do(cell.client.cancel(str(held)))
    expect(row(page, str(held))).to_contain_text("cancelled")
    page.evaluate("scrollTo(0, 0)")
    expect(page.locator('.task-row[aria-rowindex="2"]')).to_be_visible()
    assert page.evaluate("Math.max(0, ...busyMs)") <= 200
    return page


def test_a_long_list_is_read_as_it_is_scrolled(cell: LiveCell, tasks: OpenTasks) -> None:
    """Only rows near the window have elements, and rows follow wherever they are."""
    submit(cell, "many", *(f"many-{n:04}" for n in range(1_500)), requirements={"capabilities": ["nowhere"]})
    reach(cell, "many-1499", "queued")
    check_long_list(tasks, cell, "many")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_hundred_thousand_tasks(cell: LiveCell, tasks: OpenTasks) -> None:
    """Through the real pipeline; the list is as quick as with few."""
    for begin in range(0, 100_000, 5_000):
        names = [f"huge-{n:06}" for n in range(begin, begin + 5_000)]
        submit(cell, "huge", *names, requirements={"capabilities": ["nowhere"]})
    reach(cell, "huge-099999", "queued", timeout=600)
    page = check_long_list(tasks, cell, "huge")
    expect(page.locator(".states")).to_contain_text(re.compile(r"10\dK queued"))
