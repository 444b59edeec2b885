"""Queries on a live cell: lists, operations on many tasks, outcomes, the audit and numbers, typed and over HTTP."""

from __future__ import annotations

import asyncio
import getpass
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from coord import Client
from coord.cli.query import complete_term
from coord.client import bulk as bulk_module
from coord.embedded import EmbeddedServer
from coord.errors import FactInvalid, QueryInvalid, ResultTimeout, ServerUnavailable
from coord.gateway import app as app_module
from coord.models.operations import BulkResult
from coord.models.query import Query
from coord.models.statistics import BOUNDS_MS, Histogram, Latency
from coord.models.tasks import TaskState
from tests.living import CommandResult, Living, living, run_coord
from tests.system.gateway_cell import Gateway, gateway_cell, gateway_of
from tests.waiting import wait_until

#: typer 0.21 imports names from click that click 8.5 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in Click 9.0:DeprecationWarning")

Coord = Callable[..., CommandResult]


@pytest.fixture(scope="module")
def lives(server: EmbeddedServer) -> Iterator[Living]:
    """One cell for all these tests; its agent runs ``echo``."""
    with living(server.url) as found:
        found.agent("echo-1", capacity=20)
        yield found


@pytest.fixture
def coord(lives: Living, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Coord:
    """Runs a command on the cell."""
    return lambda *arguments: run_coord(capsys, monkeypatch, *arguments, *lives.options)


def submit(lives: Living, name: str, count: int, **options: Any) -> list[str]:
    """Tasks of a type that nobody can run, so they wait; their ids."""

    async def work() -> list[str]:
        specs = [{"task_type": name, "task_id": f"{name}-{n:03}", **options} for n in range(count)]
        for handle in await lives.client.submit_many(specs):
            await handle.accepted(60)
        return [str(spec["task_id"]) for spec in specs]

    return lives.do(work())


def fail(lives: Living, name: str, count: int) -> list[str]:
    """Tasks that have failed; their ids."""

    async def work() -> list[str]:
        specs = [
            {"task_type": "echo", "task_id": f"{name}-{n:03}", "payload": {"fail": name}, "retry": {"max_attempts": 1}}
            for n in range(count)
        ]
        handles = await lives.client.submit_many(specs)
        async for handle in lives.client.as_completed(handles, timeout=60):
            assert handle.outcome is not None
            assert handle.outcome.state == TaskState.FAILED
        return [handle.task_id for handle in handles]

    return lives.do(work())


def in_states(lives: Living, ids: list[str]) -> list[str]:
    """The states of tasks."""

    async def work() -> list[str]:
        return [record.state if record else "" for record in await lives.client.tasks(ids)]

    return lives.do(work())


def test_a_list_by_query(lives: Living, coord: Coord) -> None:
    """The query is one argument or several; options are terms; the next page repeats it."""
    submit(lives, "listed", 3)
    found = coord("tasks", "list", "type:listed", "state:queued", "--json")
    assert [item["task_id"] for item in json.loads(found.out)["items"]] == ["listed-000", "listed-001", "listed-002"]
    page = coord("tasks", "list", "type:listed -id:listed-000", "--state", "queued", "--limit", "1")
    assert "listed-001" in page.out
    assert "'type:listed -id:listed-000 state:queued' --limit 1" in page.err
    assert coord("tasks", "list", "listed reason:no_capability", "--json").out.count('"task_id"') == 3
    wrong = coord("tasks", "list", "stat:queued")
    assert (wrong.code, "did you mean state:queued?" in wrong.err) == (2, True)


def test_a_bulk_cancel_of_200_uses_few_commands(lives: Living) -> None:
    """⚠ One page of ids and one request: 200 tasks took 200 commands."""
    ids = submit(lives, "few", 200)

    async def work() -> tuple[BulkResult, int]:
        async with Client(lives.cell.url, settings=lives.client.settings) as client:
            appended: list[Any] = []
            append = client.connection.append

            async def counted(batch: Any) -> list[str]:
                appended.extend(batch)
                return await append(batch)

            client.connection.append = counted  # type: ignore[method-assign]
            found = await client.admin.bulk("cancel", "type:few")
            return found, len(appended)

    found, appended = lives.do(work())
    assert (found.matched, found.done, found.skipped, found.next) == (200, 200, {}, None)
    assert appended == 1
    assert set(in_states(lives, ids)) == {"cancelled"}


def test_typed_operations_ask_before_they_change(lives: Living, coord: Coord) -> None:
    """Counted first; without a terminal nothing is changed unless --yes says so."""
    ids = submit(lives, "asked", 3)
    assert coord("tasks", "cancel", "--query", "type:asked", "--dry-run").out.startswith("3 tasks match `type:asked")
    refused = coord("tasks", "cancel", "--query", "type:asked")
    question = "cancel 3 tasks that match `type:asked state:scheduled,queued,assigned,running`"
    reason = "standard input is not a terminal; --yes confirms it, --dry-run only counts"
    assert (refused.code, refused.err) == (2, f"coord: cannot ask whether to {question}: {reason}\n")
    refused = coord("tasks", "cancel", "--query", f"id:{ids[0]}")
    assert "cannot ask whether to cancel 1 task that matches `" in refused.err
    assert set(in_states(lives, ids)) == {"queued"}
    moved = coord("tasks", "prioritize", "urgent", "--query", "type:asked", "--yes")
    assert (moved.code, moved.out) == (0, "3 tasks of 3 moved\n")
    assert coord("tasks", "prioritize", "low", ids[0]).out == "1 task of 1 moved\n"
    same = coord("tasks", "prioritize", "low", ids[0])
    assert (same.code, same.out, "1 task has that priority already" in same.err) == (0, "", True)
    some = coord("tasks", "prioritize", "low", ids[0], ids[1])
    assert (some.code, some.out, "1 task has that priority already" in some.err) == (0, "1 task of 1 moved\n", True)
    assert coord("tasks", "prioritize", "urgent", ids[1]).code == 0
    named = coord("tasks", "prioritize", "low", ids[0], "ghost")
    assert (named.code, "1 task did not change" in named.err) == (1, True)
    listed = json.loads(coord("tasks", "list", "type:asked", "--json").out)["items"]
    assert sorted(item["priority"] for item in listed) == ["low", "urgent", "urgent"]
    done = json.loads(coord("tasks", "cancel", "--query", "type:asked", "--yes", "--json").out)
    assert (done["matched"], done["done"], done["next"]) == (3, 3, None)
    assert coord("tasks", "cancel", "--query", "type:asked", "--yes").out == "0 tasks of 0 cancelled\n"
    for wrong in (["cancel"], ["cancel", "x", "--query", "y"], ["retry", "x", "--dry-run"], ["cancel", "-q", " "]):
        assert coord("tasks", *wrong).code == 2, wrong


def test_a_wrong_operation_is_refused_before_anything(lives: Living, coord: Coord) -> None:
    """⚠ It was found only after the count and the confirmation."""
    fail(lives, "unasked", 1)
    for options in ([], ["--yes"], ["--dry-run"]):
        refused = coord("tasks", "retry", "--query", "id:unasked-*", "--operation", "soon", *options)
        assert (refused.code, "no id of an operation" in refused.err) == (2, True), options
    assert in_states(lives, ["unasked-000"]) == ["failed"]


@pytest.mark.guarantee("bulk-operations")
def test_an_operation_that_was_killed_is_repeated(lives: Living) -> None:
    """⚠ Its first requests were made and nobody has read the answer: the rest is done, and nothing twice."""
    ids = fail(lives, "killed", 5)

    async def work() -> tuple[BulkResult, BulkResult]:
        admin = lives.client.admin
        first = await admin.bulk("retry", "id:killed-*", limit=2)
        assert (first.matched, first.done) == (2, 2)
        assert first.next is not None

        async def failed_again() -> bool:
            return (await admin.bulk("retry", "id:killed-*", dry_run=True)).matched == 5

        await wait_until(failed_again, "what was retried has failed again", 60)
        return first, await admin.bulk("retry", "id:killed-*", operation=first.operation)

    first, rest = lives.do(work())
    assert (rest.operation, rest.done, rest.skipped) == (first.operation, 3, {"failed_later": 2})

    async def attempts() -> list[int]:
        return [record.attempt for record in await lives.client.tasks(ids) if record]

    async def all_twice() -> bool:
        return await attempts() == [2] * 5

    lives.do(wait_until(all_twice, "each has run twice", 60))


@pytest.mark.guarantee("bulk-operations", "audit")
def test_a_command_is_killed_in_the_middle(lives: Living) -> None:
    """⚠ `kill -9` between two requests: the same command does the rest, and each task is cancelled once."""
    count = 3_000
    submit(lives, "torn", count)
    command = [sys.executable, "-m", "coord.cli", "tasks", "cancel", "--query", "type:torn", "--yes", *lives.options]

    async def done() -> int:
        entries = (await lives.client.admin.audit(limit=1_000)).entries
        return sum(entry.done or 0 for entry in entries if entry.query == "type:torn")

    first = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        lives.do(wait_until(done, "some tasks are cancelled", 60))
    finally:
        first.kill()
        first.wait()
    again = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert "cancelled" in again.stdout
    assert lives.do(done()) == count, "each task was cancelled once"
    assert lives.do(lives.client.list_tasks("type:torn -state:cancelled")).tasks == ()


def test_an_operation_waits_for_a_distributor(lives: Living) -> None:
    """What is not answered in time waits in the stream, and is said to."""
    submit(lives, "later", 2)

    async def work() -> BulkResult:
        async def silent(*_: Any, **__: Any) -> Any:
            raise ResultTimeout("no distributor answered")

        operation = bulk_module.BulkOperation(lives.client.connection, "cancel", "type:later")
        request = lives.client.connection.request
        lives.client.connection.request = silent  # type: ignore[method-assign]
        try:
            return await operation.run(timeout=1)
        finally:
            lives.client.connection.request = request  # type: ignore[method-assign]

    found = lives.do(work())
    assert (found.matched, found.done, found.unanswered) == (2, 0, 2)


class Failing:
    """Lets the first request of an operation pass; the others fail, or are never answered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, hangs: bool = False, passes: int = 1) -> None:
        self.hangs = hangs
        self.passes = passes
        self._request = bulk_module.BulkOperation._request
        monkeypatch.setattr(bulk_module.BulkOperation, "_request", self._method())

    def _method(self) -> Any:
        async def request(operation: bulk_module.BulkOperation, ids: tuple[str, ...], timeout: float) -> Any:
            if self.passes:
                self.passes -= 1
                return await self._request(operation, ids, timeout)
            if self.hangs:
                await asyncio.sleep(3_600)
            raise ServerUnavailable("Redis does not answer")

        return request


def test_an_error_in_the_middle_has_the_operation(lives: Living, monkeypatch: pytest.MonkeyPatch) -> None:
    """⚠ The id was lost, so a repeated retry would have retried again what had failed again."""
    ids = fail(lives, "broken", 5)
    monkeypatch.setattr(bulk_module, "AT_ONCE", 2)

    async def first() -> str:
        with pytest.raises(ServerUnavailable, match="; 2 tasks were changed, and operation ") as found:
            await lives.client.admin.bulk("retry", "id:broken-*")
        return str(found.value).split("operation ")[1].split()[0]

    async def rest(operation: str) -> BulkResult:
        async def failed_again() -> bool:
            return (await lives.client.admin.bulk("retry", "id:broken-*", dry_run=True)).matched == 5

        await wait_until(failed_again, "what was retried has failed again", 60)
        return await lives.client.admin.bulk("retry", "id:broken-*", operation=operation)

    with monkeypatch.context() as patched:
        Failing(patched)
        operation = lives.do(first())
    with monkeypatch.context() as patched:
        Failing(patched, passes=0)
        with pytest.raises(ServerUnavailable, match="0 tasks were changed, and operation"):
            lives.do(lives.client.admin.bulk("retry", "id:broken-*"))
    found = lives.do(rest(operation))
    assert (found.operation, found.done, found.skipped) == (operation, 3, {"failed_later": 2})
    assert len(ids) == found.matched


@pytest.mark.parametrize("query", ["", " ", "\t", Query()], ids=repr)
def test_a_query_without_terms_is_no_operation(lives: Living, query: Any) -> None:
    """⚠ It matched every task of the cell."""
    waits = submit(lives, "kept", 1)
    with pytest.raises(QueryInvalid, match="the query is empty; write id:\\* if you mean all tasks"):
        lives.do(lives.client.admin.bulk("cancel", query))
    assert in_states(lives, waits) == ["queued"]


@pytest.mark.parametrize("limit", [0, -1, 1.5, True])
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_limit_below_one_changes_nothing(lives: Living, limit: Any, *, dry_run: bool) -> None:
    """⚠ One task was changed."""
    waits = submit(lives, "unlimited", 1)
    with pytest.raises(FactInvalid, match="limit: expected a whole number of at least 1"):
        lives.do(lives.client.admin.bulk("cancel", "type:unlimited", dry_run=dry_run, limit=limit))
    with pytest.raises(FactInvalid, match="limit: expected a whole number of at least 1"):
        lives.do(lives.client.list_tasks("type:unlimited", limit=limit))
    assert in_states(lives, waits) == ["queued"]


def test_the_audit_marks_where_a_query_is_cut(lives: Living) -> None:
    """⚠ It ended in the middle of an id, as if that were the query."""
    submit(lives, "cut", 1)
    query = f"type:cut -id:{','.join(f'other-{n:03}' for n in range(100))}"

    async def work() -> str | None:
        await lives.client.admin.bulk("cancel", query)
        return (await lives.client.admin.audit(limit=1)).entries[0].query

    assert lives.do(work()) == f"{query[:511]}…"


def test_a_running_task_is_asked_to_stop(lives: Living, coord: Coord) -> None:
    """⚠ The command said that it was cancelled; a repeated one skips it."""

    async def start() -> None:
        handle = await lives.client.submit("echo", {"hangs": True}, task_id="stops-1")
        await handle.accepted(60)

        async def runs() -> bool:
            return (await handle.record()).state == TaskState.RUNNING

        await wait_until(runs, "it runs", 60)

    lives.do(start())
    waits = submit(lives, "stops", 3)[1:]
    found = coord("tasks", "cancel", "--query", f"id:stops-1,{','.join(waits)}", "--yes")
    assert found.out == "2 tasks of 3 cancelled, 1 asked to stop\n"
    audited = coord("audit", "--limit", "1")
    assert "3 of 3 tasks of `id:stops-1," in audited.out
    assert "` (1 asked to stop)" in audited.out
    entry = json.loads(coord("audit", "--limit", "1", "--json").out)["items"][0]
    assert (entry["done"], entry["stopping"]) == (3, 1)


@pytest.mark.parametrize(
    ("action", "options", "says"),
    [
        ("cancle", {}, "did you mean 'cancel'?"),
        ("prioritize", {}, "priority is needed"),
        ("cancel", {"priority": "high"}, "and with no other"),
        ("prioritize", {"priority": "hihg"}, "did you mean 'high'?"),
        ("retry", {"operation": "x"}, "no id of an operation"),
    ],
)
def test_an_operation_that_does_not_fit(lives: Living, action: Any, options: Any, says: str) -> None:
    """An error names the value before anything is read."""
    with pytest.raises(FactInvalid, match=says.replace("?", "\\?")):
        lives.do(lives.client.admin.bulk(action, "type:x", **options))


def test_outcomes_in_the_order_of_their_ends(lives: Living, coord: Coord) -> None:
    """Failed and completed ones together, each with its result or error."""
    fail(lives, "outcome-a", 1)

    async def complete() -> None:
        handle = await lives.client.submit("echo", {"n": 7}, task_id="outcome-b")
        await handle.result(60)

    lives.do(complete())
    fail(lives, "outcome-c", 1)
    lines = [json.loads(line) for line in coord("tasks", "results", "outcome- since:1h", "--json").out.splitlines()]
    assert [line["task_id"] for line in lines] == ["outcome-a-000", "outcome-b", "outcome-c-000"]
    assert lines[1]["result"] == {"n": 7}
    shown = coord("tasks", "results", "outcome-b").out
    assert shown.endswith('{"n":7}\n')
    assert coord("tasks", "results", "outcome- type:nothing").out == ""
    assert len(coord("tasks", "results", "outcome-", "--limit", "2").out.splitlines()) == 2


def test_outcomes_that_follow(lives: Living) -> None:
    """What ended before comes first, then each later end once."""

    async def work() -> list[str]:
        first = await lives.client.submit("echo", {}, task_id="follow-1")
        await first.result(60)
        found = []
        records = lives.client.results("follow-", follow=True)
        async for record in records:
            found.append(record.task_id)
            if len(found) == 3:
                break
            await (await lives.client.submit("echo", {}, task_id=f"follow-{len(found) + 1}")).result(60)
        await records.aclose()
        return found

    assert lives.do(work()) == ["follow-1", "follow-2", "follow-3"]


@pytest.mark.guarantee("audit")
def test_the_audit_names_who_asked(lives: Living, coord: Coord) -> None:
    """⚠ Each kind of change that is typed, by user@host, with its outcome."""
    submit(lives, "audited", 2)
    assert coord("agents", "drain", "echo-1").code == 0
    assert coord("agents", "resume", "echo-1").code == 0
    assert coord("agents", "drain", "nobody").code == 1
    assert coord("settings", "set", "health_threshold", "0.2").code == 0
    assert coord("tasks", "cancel", "audited-000").code == 0
    assert coord("tasks", "cancel", "--query", "type:audited", "--yes").code == 0
    assert coord("tasks", "retry", "audited-000").code == 1
    who = f"{getpass.getuser()}@{socket.gethostname()}"
    entries = json.loads(coord("audit", "--by", f"{who}*", "--limit", "7", "--json").out)["items"]
    assert [(one["action"], one.get("target", ""), one["outcome"]) for one in entries] == [
        ("tasks.retry", "audited-000", "not_dead"),
        ("tasks.cancel", "", "ok"),
        ("tasks.cancel", "audited-000", "cancelled"),
        ("settings.set", "health_threshold 0.2", "ok"),
        ("agents.drain", "nobody", "unknown"),
        ("agents.resume", "echo-1", "ok"),
        ("agents.drain", "echo-1", "ok"),
    ]
    assert {one["by"] for one in entries} == {who}
    bulk = entries[1]
    assert (bulk["query"], bulk["count"], bulk["done"], bulk["skipped"]) == ("type:audited", 1, 1, {})
    text = coord("audit", "--action", "tasks.*", "--limit", "2")
    assert "1 of 1 tasks of `type:audited`" in text.out
    assert "coord audit --action 'tasks.*' --limit 2" in text.err
    cursor = text.err.split("--cursor ")[1].split()[0]
    assert "audited-000" in coord("audit", "--action", "tasks.*", "--limit", "1", "--cursor", cursor).out
    assert coord("audit", "--cursor", "x").code == 2


def test_the_audit_follows(lives: Living) -> None:
    """Each change as it is made; a client without a name is named by its id."""

    async def work() -> tuple[str, str]:
        entries = lives.client.admin.follow_audit()
        waiting = anext(entries)

        async def act() -> None:
            await lives.client.admin.drain("echo-1")
            await lives.client.admin.resume("echo-1")

        first, _ = await asyncio.gather(waiting, act())
        second = await anext(entries)
        await entries.aclose()
        return first.by, second.action

    by, action = lives.do(work())
    assert by == f"client {lives.client.connection.caller}"
    assert action in {"agents.drain", "agents.resume"}


def test_the_cell_in_numbers(lives: Living, coord: Coord) -> None:
    """As text and as JSON; every number is one of the cell."""
    fail(lives, "counted", 1)
    text = coord("stats", "--window", "100ms").out
    assert "strategy" in text
    assert "latency" in text
    found = json.loads(coord("stats", "--window", "100ms", "--json").out)
    assert found["totals"]["failed"] >= 1
    assert found["latency"]["run"].keys() == {"count", "p50_ms", "p95_ms", "p99_ms"}
    assert found["latency"]["wait"]["count"] >= 1
    assert found["rates"].keys() >= {"submitted", "completed"}


@pytest.fixture(scope="module")
def gateway(server: EmbeddedServer) -> Iterator[Gateway]:
    """A cell with a gateway, for the same over HTTP."""
    with gateway_cell(server.url, "queries") as running:
        yield running


def submit_over_http(gateway: Gateway, name: str, count: int) -> None:
    """Tasks of a type that nobody can run."""
    needs = {"required_capabilities": [name]}
    tasks = [{"task_data": {"task_type": name, "task_id": f"{name}-{n:03}"} | needs} for n in range(count)]
    assert gateway.success("POST", "/tasks/batch", {"tasks": tasks})["submitted"] == count


def test_many_tasks_over_http_in_parts(gateway: Gateway) -> None:
    """⚠ One request is bounded; cursor and operation continue it, and each part is audited with the address."""
    submit_over_http(gateway, "parts", 5)
    body = {"action": "cancel", "q": "type:parts", "limit": 2}
    assert gateway.success("POST", "/tasks/bulk", body | {"dry_run": True, "limit": 100})["matched"] == 5
    done, operation, cursor = 0, None, None
    for _ in range(5):
        found = gateway.success("POST", "/tasks/bulk", body | {"operation": operation, "cursor": cursor})
        assert found["matched"] <= 2
        assert operation in {None, found["operation"]}
        done, operation, cursor = done + found["done"], found["operation"], found["next"]
        if cursor is None:
            break
    assert (done, cursor) == (5, None)
    assert gateway.success("GET", "/tasks?q=type:parts%20state:queued")["count"] == 0
    entries = [one for one in gateway.success("GET", "/audit")["entries"] if one.get("operation") == operation]
    assert sum(one["done"] for one in entries) == 5
    assert {(one["action"], one["by"], one["query"]) for one in entries} == {
        ("tasks.cancel", "http 127.0.0.1", "type:parts")
    }
    first = gateway.success("GET", "/audit?limit=1")
    second = gateway.success("GET", f"/audit?limit=1&cursor={first['next']}")
    assert first["entries"][0]["id"] > second["entries"][0]["id"]


def test_tasks_that_were_asked_to_stop_are_counted_apart_over_http(gateway: Gateway) -> None:
    """⚠ 120 that are gone and 8 whose agents still work on them were 128 of one kind; ``done`` has all of them."""
    gateway.success("POST", "/tasks/submit", {"task_data": {"task_type": "gate", "task_id": "apart-1", "gate": "a"}})
    submit_over_http(gateway, "apart", 2)

    async def runs() -> bool:
        return (await gateway.cell.client.task("apart-1")).state == TaskState.RUNNING

    gateway.cell.do(wait_until(runs, "it runs", 60))
    found = gateway.success("POST", "/tasks/bulk", {"action": "cancel", "q": "id:apart-*"})
    assert (found["matched"], found["done"], found["stopping"]) == (3, 3, 1)
    entry = gateway.success("GET", "/audit?limit=1")["entries"][0]
    assert (entry["done"], entry["stopping"]) == (3, 1)


def test_rates_over_http(gateway: Gateway) -> None:
    """⚠ Only the command line had them. Without a window there are none: the gateway keeps no earlier reading."""
    assert gateway.success("GET", "/stats")["rates"] is None
    found: list[Any] = []

    def read() -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{gateway.port}/stats?window=1.5", timeout=60) as answer:
            found.append(json.load(answer))

    reading = threading.Thread(target=read)
    reading.start()
    count = 0
    while reading.is_alive():  # also between its two readings
        data = {"task_type": "rates", "task_id": f"rates-{count}", "required_capabilities": ["rates"]}
        gateway.success("POST", "/tasks/submit", {"task_data": data})
        count += 1
    reading.join()
    (rates,) = [one["rates"] for one in found]
    assert set(rates) == {"submitted", "assigned", "completed", "failed", "cancelled", "expired"}
    assert rates["submitted"] > 0
    assert rates["expired"] == 0


@pytest.mark.parametrize("hangs", [False, True])
def test_an_operation_over_http_breaks_off(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, *, hangs: bool) -> None:
    """⚠ The error said that it is safe to repeat the request, and the id of the operation was lost."""
    name = f"hangs{hangs}".lower()
    submit_over_http(gateway, name, 5)
    monkeypatch.setattr(bulk_module, "AT_ONCE", 2)
    body = {"action": "cancel", "q": f"type:{name}"}
    with gateway_of(gateway.cell, gateway_wait_s=0.5, gateway_redis_s=1) as hasty, monkeypatch.context() as patched:
        Failing(patched, hangs=hangs)
        broken = hasty.call("POST", "/tasks/bulk", body)
        answer = broken.body
        assert (broken.status, answer["status"], answer["matched"], answer["done"]) == (202, "accepted", 2, 2)
        assert "did not answer" in answer["message"] or "does not answer" in answer["message"]
        assert answer["next"]
        nothing = hasty.call("POST", "/tasks/bulk", body)
        assert (nothing.status, nothing.body["code"]) == (503, "server_unavailable")
        assert "safe to repeat the request with operation '" in nothing.body["message"]
    more = {"cursor": answer["next"], "operation": answer["operation"]}
    rest = gateway.success("POST", "/tasks/bulk", body | more)
    assert (rest["done"], rest["skipped"], rest["operation"]) == (3, {}, answer["operation"])


def test_clearing_a_queue_breaks_off(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """⚠ 202 with the number of cancelled tasks, which an error did not have; repeated, it cancels the others."""
    submit_over_http(gateway, "breaks", 5)
    waiting = gateway.success("GET", "/tasks/queues")["queue_sizes"]["normal"]
    monkeypatch.setattr(bulk_module, "AT_ONCE", 2)
    with monkeypatch.context() as patched:
        Failing(patched)
        broken = gateway.call("POST", "/tasks/queues/normal/clear")
        assert (broken.status, broken.body["cleared_count"]) == (202, 2)
        nothing = gateway.call("POST", "/tasks/queues/normal/clear")
        assert (nothing.status, nothing.body["code"]) == (503, "server_unavailable")
        assert nothing.body["message"].startswith("Redis does not answer; some tasks may be cancelled; it is safe to")
    assert gateway.success("POST", "/tasks/queues/normal/clear")["cleared_count"] == waiting - 2


def test_a_queue_is_cleared_in_few_requests(gateway: Gateway) -> None:
    """As an operation on many tasks: the audit has one entry for every 200."""
    submit_over_http(gateway, "cleared", 3)
    assert gateway.success("POST", "/tasks/queues/normal/clear")["cleared_count"] >= 3
    entry = gateway.success("GET", "/audit?limit=1")["entries"][0]
    assert (entry["query"], entry["done"] >= 3) == ("state:queued priority:normal", True)


def test_outcomes_over_http_are_lines(gateway: Gateway) -> None:
    """Each is a task with its result."""
    gateway.success("POST", "/tasks/submit", {"task_data": {"task_type": "echo", "task_id": "line-1", "n": 1}})

    def ended() -> bool:
        return bool(gateway.success("GET", "/tasks?q=id:line-1%20state:completed")["count"])

    for _ in range(1_000):
        if ended():
            break
        time.sleep(0.02)
    answer = gateway.call("GET", "/tasks/results?q=id:line-1")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/x-ndjson")
    (line,) = [json.loads(one) for one in answer.body.splitlines()]
    assert (line["task_id"], line["state"], line["result"]["n"]) == ("line-1", "completed", 1)


def test_outcomes_that_break_off_are_no_defect(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """⚠ An outage of Redis in the middle of the lines was logged as a defect of the gateway, with a traceback."""
    logged: list[tuple[str, str]] = []

    class Log:
        def warning(self, event: str, **fields: Any) -> None:
            logged.append((event, fields["error"]))

    async def results(*_: Any) -> Any:
        nothing: tuple[Any, ...] = ()
        for one in nothing:
            yield one
        raise ServerUnavailable("Redis does not answer")

    monkeypatch.setattr(app_module, "log", Log())
    monkeypatch.setattr(Client, "results", results)
    with pytest.raises(http.client.IncompleteRead):
        gateway.call("GET", "/tasks/results")
    gateway.close()
    assert logged == [("gateway.stream_broken", "Redis does not answer")]
    assert [record for record in caplog.records if record.exc_info] == []


def test_completion_data_has_the_types_of_the_cell(gateway: Gateway) -> None:
    """And what the grammar knows."""
    submit_over_http(gateway, "known", 1)
    time.sleep(1.1)  # requests within a second share one read
    fields = {one["name"]: one for one in gateway.success("GET", "/query/fields")["fields"]}
    assert "known" in fields["type"]["values"]
    assert fields["state"]["values"] == list(TaskState)


def test_what_people_type_is_completed() -> None:
    """Fields, and the values of a choice after a comma."""
    assert "state:" in dict(complete_term("sta"))
    assert "-state:" in dict(complete_term("-sta"))
    assert dict(complete_term("state:failed,q")) == {"state:failed,queued": ""}
    assert dict(complete_term("age:")) == {"age:>1h": "Time since it was submitted."}
    assert complete_term("age:>") == complete_term("nothing:") == []


def test_quantiles_are_interpolated() -> None:
    """Inside a bucket; above the last bound it is that bound; without observations there is none."""
    numbers = [0] * (len(BOUNDS_MS) + 1)
    assert Histogram(tuple(numbers), 0).quantile(0.5) is None
    numbers[5] = 100  # above 25 ms, up to 50 ms
    assert Histogram(tuple(numbers), 0).quantile(0.5) == 37.5
    assert Histogram(tuple(numbers), 0).quantile(1) == 50
    numbers[-1] = 100
    assert Histogram(tuple(numbers), 0).quantile(0.99) == BOUNDS_MS[-1]
    latency = Latency.of(Histogram(tuple(numbers), 0) - Histogram(tuple(numbers), 0))
    assert (latency.count, latency.p50_ms) == (0, None)
