"""What holds after every step of the state machine, whatever came before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from coord.models.ids import entry_order
from coord.models.tasks import HEAD_START_MS, LANE, TERMINAL, Priority, TaskState, is_named
from tests.ledger import HELD, WAITING, Record, _assert_alarms, _assert_counters, _assert_ends, _assert_structures
from tests.scripts.machine_server import TASK_STREAMS, Picture, header_moves
from workers.transitions import LeaseLoss, Loss, Report

T = TypeVar("T")
ENDED = {str(state) for state in TERMINAL}
#: Which script may forget a record in which state.
FORGETS = {("run_alarms", state) for state in (*ENDED, "refused")} | {("purge", "failed")}
#: What is told of an end, and must never be told otherwise.
OUTCOME = ("state", "result", "error", "finished_at", "failures", "attempts", "lease")


def assert_books(seen: Picture, put_off: Mapping[str, float], *, trimmed: bool) -> None:
    """The ledger, at this moment; one valid lease for each task at most, in exactly one agent's hands.

    ``put_off``: tasks and agents that ``run_alarms`` could not handle, with the moment of its next try. ``trimmed``:
    records of ended tasks were forgotten.
    """
    _assert_counters(seen.books, trimmed=trimmed)
    _assert_structures(seen.books)
    books, records = seen.books, seen.books.records
    indexes = {"alarms": books.alarms, "deadlines": books.deadlines, "limits": books.limits}
    looked_at = [*indexes.values(), books.unclaimed]
    ever_put_off = put_off
    put_off = {one: at for one, at in put_off.items() if at in {index.get(one) for index in looked_at}}
    kept: dict[str, Any] = {name: _without(index, put_off) for name, index in indexes.items()}
    _assert_alarms(books._replace(**kept, records=_without(records, put_off)))
    _assert_ends(seen.books)
    for task, one in records.items():
        if one["state"] == TaskState.ASSIGNED and "start_by" in one:
            looks_at = seen.books.unclaimed[one["agent_id"]]
            # A check that was put off may be brought forward by a later assignment of the agent.
            latest = max(float(one["start_by"]), ever_put_off.get(one["agent_id"], 0.0))
            assert looks_at <= latest, f"{task} is forgotten"
    negative = {name: value for name, value in seen.books.counters.items() if value < 0}
    assert not negative, f"counters below zero: {negative}"
    held = Counter(one["lease"] for one in seen.books.records.values() if one["state"] in HELD)
    assert all(count == 1 for count in held.values()), "one lease is valid for two tasks"
    for task, one in seen.books.records.items():
        if one["state"] in WAITING:
            assert not {"lease", "agent_id", "term", "entry"} & set(one), f"{task} waits and has an agent"
            assert "avoid" not in one or is_named(one["pool"]), f"{task} avoids an agent, and a plan may not see it"
        assert seen.ttls[task] == -1, f"{task} is {one['state']} and has a TTL of {seen.ttls[task]}"


def assert_moves(script: str, before: Picture, after: Picture) -> set[str]:
    """Every task went along edges that the script's header declares, and an outcome stays what it was.

    (But for a replay, which takes back that a task failed, and keeps the story of how it did.) Only a task that has
    ended may be forgotten; returns those that were.
    """
    reachable = header_moves(script)
    forgotten: set[str] = set()
    for task, was in before.books.records.items():
        if task not in after.books.records:
            assert (script, was["state"]) in FORGETS, f"{script} lost {task}, which was {was['state']}"
            forgotten.add(task)
            continue
        if was["state"] in ENDED and not (script in {"replay", "change_tasks"} and was["state"] == TaskState.FAILED):
            now = after.books.records[task]
            # Results may be dropped to free memory, of what did not fail; the record says so.
            is_dropped = script == "relieve" and was["state"] != TaskState.FAILED and now.get("dropped") == "1"
            kept = [name for name in OUTCOME if not (is_dropped and name == "result")]
            assert all(was.get(name) == now.get(name) for name in kept), f"{script} changed the outcome of {task}"
    for task in after.books.records:
        one, other = before.state(task), after.state(task)
        assert one == other or other in reachable.get(one, ()), f"{script} moved {task} from {one} to {other}"
    return forgotten


def assert_capacity(before: Picture, after: Picture) -> None:
    """No load grows beyond the capacity of its agent (which may have declared a smaller one meanwhile)."""
    for agent, tasks in after.books.inflight.items():
        if len(tasks) > len(before.books.inflight.get(agent, ())):
            assert len(tasks) <= int(after.agents[agent]["capacity"]), f"{agent} has {len(tasks)} tasks"


def assert_order(before: Picture, after: Picture) -> None:
    """Nobody overtakes a task of its pool that was submitted longer before it than the difference of head starts."""
    for pool in before.books.queues:
        if is_named(pool):  # a plan chooses among these by more than their scores
            continue
        waiting = {task: before.books.records[task] for task in before.books.queues[pool]}
        popped = [one for task, one in waiting.items() if after.state(task) == "assigned"]
        passed = [one for task, one in waiting.items() if after.state(task) == "queued"]
        for first in popped:
            for second in passed:
                allowed = HEAD_START_MS[Priority(first["priority"])] - HEAD_START_MS[Priority(second["priority"])]
                assert _begins(first) - _begins(second) <= allowed, f"{first} overtook {second}"


def assert_visible(submitted: Mapping[str, list[str]], after: Picture) -> None:
    """Every acknowledged submission has a record, or its fact still waits."""
    for task, entries in submitted.items():
        waits = any(entry in after.facts[stream] for entry in entries for stream in TASK_STREAMS)
        assert waits or task in after.books.records, f"{task} was acknowledged and is nowhere"


def assert_story(before: Picture, after: Picture) -> None:
    """What was told of a task's earlier attempts stays told, the latest first, up to twenty of them."""
    for task, was in before.books.records.items():
        if task not in after.books.records:
            continue
        told, now = was.get("attempts", ""), after.books.records[task].get("attempts", "")
        assert now.endswith(told) or now.count("\n") == 19, f"the story of {task} was changed"


def assert_claims(script: str, before: Picture, after: Picture) -> None:
    """A claimed task is neither recalled nor cancelled at once: only one whose inbox entry was still there."""
    for task, was in before.books.records.items():
        now = after.books.records.get(task, was)
        if was["state"] in HELD and was.get("attempts") != now.get("attempts"):
            how = msgspec.json.decode(now["attempts"].partition("\n")[0])["how"]
            if how == "recalled" or (how == "cancelled" and script in {"cancel", "change_tasks"}):
                lane = f"{was['agent_id']}:{LANE[Priority(was['priority'])]}"
                assert was["entry"] in before.books.inboxes.get(lane, {}), f"{task} was claimed and is {how}"


def assert_terms(losses: Iterable[Loss], before: Picture, after: Picture) -> None:
    """Of an agent that was lost, only what it was given in the term that ended or before was taken back."""
    ended = {one.agent_id: one.term for one in sorted(losses, key=lambda one: one.term)}
    for task, was in before.books.records.items():
        if was["state"] in HELD and was["lease"] != after.books.records[task].get("lease"):
            assert int(was["term"]) <= ended.get(was["agent_id"], -1), (
                f"{task} was given in a later term, and taken back"
            )


def assert_heard(
    losses: Sequence[Loss | LeaseLoss], reports: Iterable[Report], before: Picture, after: Picture
) -> None:
    """Nothing was taken back from an agent while a report of it waited that is older than every loss of that agent."""
    for report in reports:
        was = before.books.records.get(report.task_id, {})
        if was.get("lease") == report.lease and was["state"] in HELD:
            later = [one for one in losses if one.agent_id == was["agent_id"]]
            if later and all(entry_order(report.entry) < entry_order(one.entry) for one in later):
                assert after.books.records[report.task_id] == was, (
                    f"{report.task_id} was taken back before it was heard"
                )


def assert_kept(held: Iterable[tuple[str, str]], how: str, before: Picture, after: Picture) -> None:
    """None of these leases, which an agent holds as it says, was ended like this."""
    for task, lease in held:
        was, now = before.books.records.get(task, {}), after.books.records.get(task, {})
        if was.get("lease") == lease and now.get("lease") != lease:
            assert f'"how":"{how}"' not in now["attempts"].split("\n")[0], f"{task} was healthy and ended as {how}"


def assert_reports_read(reports: Iterable[Report], before: Picture, after: Picture) -> None:
    """No attempt was ended by its deadline while a report of it waited that is not younger than that."""
    for report in reports:
        was = before.books.records.get(report.task_id, {})
        if was.get("lease") == report.lease and was["state"] in HELD and "deadline" in was:
            now = after.books.records[report.task_id]
            in_time = entry_order(report.entry)[0] <= int(was["deadline"])
            assert now["state"] != "expired" or not in_time, f"{report.task_id} expired before its report was read"


def assert_suspended(before: Picture, after: Picture) -> None:
    """An agent that returned a task unstarted was given nothing while nothing else was heard of it."""
    for agent, mark in before.suspended.items():
        row = before.agents.get(agent, {})
        if mark == " ".join(row.get(name, "") for name in ("beat_id", "fact_id", "registered_id")):
            given = after.books.inflight.get(agent, set()) - before.books.inflight.get(agent, set())
            assert not given, f"{agent} is suspended and was given {given}"


def assert_untouched(tasks: Iterable[str], before: Picture, after: Picture) -> None:
    """Reports under dead or forged leases change nothing of these tasks."""
    for task in tasks:
        assert before.books.records.get(task) == after.books.records.get(task), f"a dead lease changed {task}"


def _without(of: Mapping[str, T], tasks: Container[str]) -> dict[str, T]:
    return {task: one for task, one in of.items() if task not in tasks}


def _begins(record: Record) -> int:
    """From when on a task may run for the first time, as its client said, or an operator who set it going again."""
    if "replay_id" in record:
        return entry_order(record["replay_id"])[0]
    return int(msgspec.json.decode(record["body"]).get("run_at") or record["submitted_at"])
