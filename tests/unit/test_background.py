"""Supervision: no background task ends unseen, and what it served goes on."""

from __future__ import annotations

import asyncio
import traceback

import pytest

from coord import background
from coord.background import call_safely, cancel_and_wait, keep, retry, run_once
from tests.waiting import wait_until


class Recorder:
    """A logger that records its events: the configuration of the real one depends on earlier tests."""

    def __init__(self) -> None:
        self.text = ""

    def exception(self, event: str, *, task: str) -> None:
        """Note it with the traceback."""
        self.text += f"{event} {task}\n{traceback.format_exc()}"

    def error(self, event: str, *, task: str, error: str) -> None:
        """Note it."""
        self.text += f"{event} {task} {error}\n"


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Short waits, and what is logged."""
    recorder = Recorder()
    monkeypatch.setattr(background, "RESTART_S", (0.001, 0.01))
    monkeypatch.setattr(background, "log", recorder)
    return recorder


@pytest.mark.guarantee("supervised-tasks")
async def test_what_has_no_end_is_started_again_whether_it_raises_or_returns(
    recorder: Recorder,
) -> None:
    """Each end is logged with the name of the task; one by an exception with its traceback."""
    starts = 0
    hangs = asyncio.Event()

    async def work() -> None:
        nonlocal starts
        starts += 1
        if starts == 1:
            raise RuntimeError("defect")
        if starts > 2:
            hangs.set()
            await asyncio.Event().wait()

    task = keep("a.reader", work)
    await wait_until(hangs.is_set, "it runs for the third time")
    await cancel_and_wait(task)
    output = recorder.text
    assert output.count("background.failed") == output.count("a.reader") == 2
    assert "RuntimeError: defect" in output
    assert "Traceback" in output
    assert "it returned" in output


async def test_what_shall_return_once_is_started_again_until_it_does(recorder: Recorder) -> None:
    """Such as a connection that comes back."""
    errors = [RuntimeError("one"), ValueError("two")]

    async def work() -> None:
        if errors:
            raise errors.pop(0)

    await retry("a.connect", work)
    output = recorder.text
    assert output.count("background.failed") == 2


async def test_what_runs_once_hands_its_error_on(recorder: Recorder) -> None:
    """Its own task does not raise, so no exception is left unretrieved."""
    failures: list[Exception] = []

    async def work() -> None:
        raise RuntimeError("defect")

    await run_once("a.job", work, failures.append)
    assert [str(one) for one in failures] == ["defect"]
    assert "Traceback" in recorder.text


async def test_a_cancelled_task_is_not_started_again() -> None:
    """That is how its owner ends it."""
    starts = 0

    async def work() -> None:
        nonlocal starts
        starts += 1
        await asyncio.Event().wait()

    tasks = [keep("a", work), retry("b", work), run_once("c", work)]
    await wait_until(lambda: starts == 3, "all run")
    await cancel_and_wait(*tasks)
    assert starts == 3


def test_a_callback_that_raises_is_logged(recorder: Recorder) -> None:
    """Its caller goes on."""

    def bad(word: str) -> None:
        raise RuntimeError(word)

    call_safely("a.callback", bad, "defect")
    assert "RuntimeError: defect" in recorder.text
