"""Programs that are kept and speak JSON lines, the well-behaved and the others; no server is needed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
import structlog.testing
import uvloop
from msgspec import Raw

from coord.agent.task import NonRetryable, Release, Retryable
from coord.codec import decode_json, encode
from coord.programs import pool as kept_module
from coord.programs.kept_process import KeptProcess
from tests.unit.programs_world import Asked, kept, lives, script, written
from tests.waiting import wait_until

#: Reads tasks; the payload's ``do`` is what it does with one.
PROGRAM = """
import json, os, signal, sys, time
{begin}
def say(**fields):
    print(json.dumps(fields), flush=True)

for line in sys.stdin:
    task = json.loads(line)
    payload, me = task["payload"], task["task_id"]
    exec(payload.get("do") or "say(task_id=me, result=payload)")
"""


def program(tmp_path: Path, begin: str = "") -> list[str]:
    """The words to run it with."""
    return [sys.executable, script(tmp_path / "kept.py", PROGRAM.replace("{begin}", begin))]


def plain(result: Any) -> Any:
    """A result as its reader sees it."""
    assert isinstance(result, Raw)
    return decode_json(bytes(result))


async def test_one_process_does_one_task_after_the_other(tmp_path: Path) -> None:
    """It gets id, type, payload (on one line, however it was submitted) and attempt."""
    async with kept(*program(tmp_path)) as programs:
        say = "say(task_id=me, result=[os.getpid(), task])"
        first = plain(await programs.handle(Asked({"do": say}, task_id="one").task))
        raw = b'{\n "do": ' + encode(say) + b',\n "text": "a\\nb"\n}'
        second = plain(await programs.handle(Asked(raw=raw, task_id="two").task))
    assert first[0] == second[0]
    assert first[1] == {"task_id": "one", "task_type": "demo", "payload": {"do": say}, "attempt": 2}
    assert second[1]["payload"] == {"do": say, "text": "a\nb"}
    assert not lives(first[0])


@pytest.mark.parametrize(
    ("do", "raised", "code", "message"),
    [
        ("say(task_id=me, error={})", Retryable, "program_failed", ""),
        ("say(task_id=me, error=dict(message='no', code='bad_page', retryable=False))", NonRetryable, "bad_page", "no"),
        ("say(task_id=me, error=dict(code='bad', detail=[1]))", Retryable, "bad", ""),
        ("say(task_id=me, error='boom')", NonRetryable, "answer_invalid", "is invalid"),
        ("say(task_id=me)", NonRetryable, "answer_invalid", "none of result, error, release and progress"),
        ("say(task_id=me, error=dict(message=7))", NonRetryable, "answer_invalid", "$.error.message"),
        (
            "say(task_id=me, result=float('nan'))",
            NonRetryable,
            "answer_invalid",
            "answer.result: nan is not a JSON number",
        ),
        ("say(task_id=me, result=[1, float('inf')])", NonRetryable, "answer_invalid", "answer.result[1]: inf is not"),
        ("say(task_id=me, result='\\ud800')", NonRetryable, "answer_invalid", '"result": "\\ud800"'),
        ('print(\'{"task_id": "\' + me + \'", "result": \', flush=True)', NonRetryable, "answer_invalid", "with: {"),
        (
            "print(json.dumps(dict(task_id=me, result=1), indent=2), flush=True)",
            NonRetryable,
            "answer_invalid",
            "with: ",
        ),
        ("print(dict(task_id=me, result=1), flush=True)", NonRetryable, "answer_invalid", "with: {'task_id': 't1'"),
        ("say(result=1)", NonRetryable, "answer_invalid", "field `task_id`; the line begins with: {"),
        ("print('x' * 2_000_000, flush=True)", NonRetryable, "result_too_large", "a line of more than 1048576 bytes"),
    ],
)
async def test_it_says_how_a_task_failed(tmp_path: Path, do: str, raised: type[Any], code: str, message: str) -> None:
    """With everything or nothing; the next task goes on with the same process."""
    async with kept(*program(tmp_path)) as programs:
        before = plain(await programs.handle(Asked({"do": "say(task_id=me, result=os.getpid())"}).task))
        with pytest.raises(raised) as caught:
            await programs.handle(Asked({"do": do}).task)
        assert caught.value.code == code
        assert message in caught.value.message
        assert caught.value.detail == (Raw(b"[1]") if code == "bad" else None)
        after = plain(await programs.handle(Asked({"do": "say(task_id=me, result=os.getpid())"}).task))
        assert before == after


async def test_it_gives_a_task_back(tmp_path: Path) -> None:
    """With its reason."""
    async with kept(*program(tmp_path)) as programs:
        with pytest.raises(Release, match="no room"):
            await programs.handle(Asked({"do": "say(task_id=me, release='no room')"}).task)


async def test_it_tells_progress(tmp_path: Path) -> None:
    """Any JSON; of many the newest is the last."""
    asked = Asked({"do": "for n in range(1000): say(task_id=me, progress=n)\nsay(task_id=me, result=1)"})
    async with kept(*program(tmp_path)) as programs:
        await programs.handle(asked.task)
    assert asked.progress[-1] == 999
    assert len(asked.progress) < 500


NOISE = """
print("loading", flush=True)
sys.stdout.buffer.write(b"\\xff\\x00{\\n[1]\\n{}\\n{broken\\n" + b"z" * 500_000 + b"\\n{'a': 1}\\n")
sys.stdout.flush()
print('{"task_id": 7, "result": 0}', '{"task_id": "another", "result": 0}', "null", "", sep="\\n", flush=True)
"""


async def test_noise_is_passed_over(tmp_path: Path) -> None:
    """Before, between and after answers: text, bad bytes, other JSON, answers to other tasks, long lines."""
    async with kept(*program(tmp_path, begin=NOISE)) as programs:
        do = f"{NOISE}\nsay(task_id=me, result=payload['n'])\n{NOISE}"
        for number in range(3):
            assert plain(await programs.handle(Asked({"n": number, "do": do}).task)) == number


async def test_progress_that_cannot_be_read_fails_no_task(tmp_path: Path) -> None:
    """It is ignored, or left out if it is JSON that cannot be decoded."""
    odd = '{"task_id": "t1", "progress": 1e999}'
    do = f"say(task_id=me, progress=float('nan'))\nprint({odd!r})\nsay(task_id=me, result=1)"
    asked = Asked({"do": do})
    async with kept(*program(tmp_path)) as programs:
        assert plain(await programs.handle(asked.task)) == 1
    assert asked.progress == []


async def test_ignored_lines_are_logged(tmp_path: Path) -> None:
    """Each line, so that a program with another kind of answer is not silent; the first has a hint."""
    structlog.configure(processors=[])
    try:
        with structlog.testing.capture_logs() as logged:
            async with kept(*program(tmp_path)) as programs:
                do = "print('one')\nprint('{two')\nprint('three', flush=True)\nsay(task_id=me, result=1)"
                assert plain(await programs.handle(Asked({"do": do}).task)) == 1
    finally:
        structlog.reset_defaults()
    assert [(one["log_level"], one["line"]) for one in logged if one["event"] == "program.line_passed_over"] == [
        ("warning", "one"),
        ("info", "{two"),
        ("info", "three"),
    ]


async def test_one_that_closes_its_output_is_ended(tmp_path: Path) -> None:
    """No answer can come from it."""
    async with kept(*program(tmp_path)) as programs:
        with pytest.raises(Retryable, match="program_died"):
            await programs.handle(Asked({"do": "os.close(1)\ntime.sleep(1000)"}).task)
        assert plain(await programs.handle(Asked({"n": 1}).task)) == {"n": 1}


async def test_a_death_fails_the_task_and_the_next_has_another_process(tmp_path: Path) -> None:
    """Retryably, with the way it ended and its last output."""
    async with kept(*program(tmp_path)) as programs:
        with pytest.raises(Retryable, match=r"program_died: .*: exit code 3: bye"):
            await programs.handle(Asked({"do": "print('bye', file=sys.stderr); sys.exit(3)"}).task)
        with pytest.raises(Retryable, match=r"program_died: .*: killed by SIGKILL, and nothing"):
            await programs.handle(Asked({"do": "os.kill(os.getpid(), signal.SIGKILL)"}).task)
        assert plain(await programs.handle(Asked({"n": 1}).task)) == {"n": 1}


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("do", ["os.close(0)\ntime.sleep(1000)", "os.close(0)\nos.close(1)\ntime.sleep(1000)"])
def test_one_that_closes_its_input_takes_nothing_more(
    tmp_path: Path, do: str, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """So it is taken as ended, its task fails retryably, and the next has another process. The loops differ in this."""

    async def story() -> None:
        async with kept(*program(tmp_path), grace_s=0.3) as programs:
            with pytest.raises(Retryable, match=r"program_died: .*: killed by SIGTERM"):
                await programs.handle(Asked({"do": do}).task)
            assert plain(await programs.handle(Asked({"n": 1}).task)) == {"n": 1}

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(story())


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_one_that_has_ended_while_idle_costs_one_try_at_most(
    tmp_path: Path, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Its end is seen before the next task, or fails that one retryably."""

    async def story() -> None:
        async with kept(*program(tmp_path)) as programs:
            pid = plain(await programs.handle(Asked({"do": "say(task_id=me, result=os.getpid())"}).task))
            os.kill(pid, signal.SIGKILL)
            await wait_until(lambda: not lives(pid), "it has ended", 30)
            with contextlib.suppress(Retryable):
                await programs.handle(Asked({"n": 1}).task)
            assert plain(await programs.handle(Asked({"n": 1}).task)) == {"n": 1}

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(story())


async def test_an_answer_right_before_its_end_counts(tmp_path: Path) -> None:
    """Though its end may be seen first."""
    do = "say(task_id=me, result=1); os._exit(1)"
    for _ in range(5):
        async with kept(*program(tmp_path)) as programs:
            assert plain(await programs.handle(Asked({"do": do}).task)) == 1


async def test_one_may_end_after_each_answer(tmp_path: Path) -> None:
    """No task suffers for it, and it is started again soon each time: it was well."""
    async with kept(*program(tmp_path)) as programs:
        (slot,) = programs._slots
        pids = set()
        for _ in range(8):  # with waits that double it would be half a minute
            pids.add(
                plain(await programs.handle(Asked({"do": "say(task_id=me, result=os.getpid()); sys.exit()"}).task))
            )

            def is_seen(process: asyncio.Future[KeptProcess] = slot._process) -> bool:
                return not process.done() or process.result().has_exited

            await wait_until(is_seen, "its end is seen", 30)
    assert len(pids) == 8


async def test_one_that_cannot_live_fails_each_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No task waits for it for ever, and it is started again later and later."""
    monkeypatch.setattr(kept_module, "LONGEST_WAIT_S", 0.2)
    starts = tmp_path / "starts"
    async with kept("sh", "-c", f"echo >>{starts}; echo no model >&2; exit 1") as programs:
        for _ in range(3):
            with pytest.raises(Retryable, match=r"program_died: .*exit code 1: no model"):
                await programs.handle(Asked().task)
    assert starts.read_text().count("\n") >= 3


async def test_one_that_is_gone_fails_each_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file may be back one day."""
    monkeypatch.setattr(kept_module, "LONGEST_WAIT_S", 0.1)
    path = script(tmp_path / "program", "#!/bin/sh\nread -r line\n")
    async with kept(path) as programs:
        with pytest.raises(Retryable, match="program_died"):
            await programs.handle(Asked().task)
        (tmp_path / "program").unlink()

        async def how_it_fails() -> str:
            with pytest.raises(Retryable) as raised:
                await programs.handle(Asked().task)
            return str(raised.value.code)

        async def not_started() -> bool:  # one that was started before it was gone may still fail a task its own way
            return await how_it_fails() == "not_started"

        await wait_until(not_started, "a task fails since the program is gone", 30)


@pytest.mark.parametrize("do", ["time.sleep(1000)", "signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(1000)"])
async def test_a_cancel_ends_it_and_the_next_task_has_another(tmp_path: Path, do: str) -> None:
    """SIGTERM, then SIGKILL; only then has the handler ended."""
    pid = tmp_path / "pid"
    text = f"open({str(pid)!r}, 'w').write(str(os.getpid()) + chr(10))"
    async with kept(*program(tmp_path), grace_s=0.3) as programs:
        handling = asyncio.create_task(programs.handle(Asked({"do": f"{text}\n{do}"}).task))
        await wait_until(lambda: written(pid), "it runs", 30)
        handling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await handling
        assert not lives(written(pid))
        assert plain(await programs.handle(Asked({"n": 1}).task)) == {"n": 1}


async def test_what_takes_too_long_is_ended(tmp_path: Path) -> None:
    """With a retryable failure."""
    async with kept(*program(tmp_path), timeout_s=0.5) as programs:
        with pytest.raises(Retryable, match=r"timed_out: the program had not answered after 0.5 s"):
            await programs.handle(Asked({"do": "time.sleep(1000)"}).task)


async def test_as_many_work_at_a_time_as_there_are(tmp_path: Path) -> None:
    """Each has its own task, and the others wait for a free one."""
    start = f"open({str(tmp_path)!r} + '/' + me, 'w').close()\n"
    wait = (
        start + f"while len(os.listdir({str(tmp_path)!r})) < 4: time.sleep(0.01)\nsay(task_id=me, result=os.getpid())"
    )
    async with kept(*program(tmp_path), count=3) as programs:
        tasks = [Asked({"do": wait}, task_id=f"t{n}").task for n in range(3)]
        pids = {plain(one) for one in await asyncio.gather(*(programs.handle(task) for task in tasks))}
        assert len(pids) == 3
        say = {"do": "say(task_id=me, result=os.getpid())"}
        more = await asyncio.gather(*(programs.handle(Asked(say, task_id=f"m{n}").task) for n in range(20)))
        assert {plain(one) for one in more} <= pids


async def test_at_the_end_it_sees_the_end_of_its_input(tmp_path: Path) -> None:
    """It may leave by itself; one that does not is ended."""
    pid = tmp_path / "pid"
    good = script(tmp_path / "good", f"#!/bin/sh\necho $$ >{pid}\ncat >/dev/null\necho bye >{tmp_path}/bye\n")
    async with kept(good):
        await wait_until(lambda: written(pid), "it runs", 30)
    assert (tmp_path / "bye").read_text() == "bye\n"
    pid.unlink()
    deaf = script(tmp_path / "deaf", f"#!/bin/sh\ntrap '' TERM\necho $$ >{pid}\nsleep 1000\nsleep 1000\n")
    async with kept(deaf, grace_s=0.2):
        await wait_until(lambda: written(pid), "it runs", 30)
    assert not lives(written(pid))
