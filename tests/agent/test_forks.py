"""Handlers that fork processes, and signals that reach the whole process group. The agent is a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from coord.agent.signals import ONE_STOP_S
from coord.embedded import EmbeddedServer
from coord.models.facts import AgentDeregistered, AgentRegistered, AgentStatusChanged, TaskCompleted, TaskStarted
from tests.agent.played_coordinator import PlayedCoordinator
from tests.waiting import wait_until

SCRIPT = """
import asyncio, multiprocessing, os, signal, time
from coord import Agent, run

agent = Agent("forker", capacity=4)
fork = multiprocessing.get_context("fork")


def work(number):
    return number * number


def has_own_signals(_number):
    return [signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, signal.set_wakeup_fd(-1)]


def remember(queue):
    global busy
    busy = queue


def work_for_long(_number):
    busy.put(None)
    time.sleep(600)


def calculate():
    queue = fork.SimpleQueue()
    pool = fork.Pool(2, remember, (queue,))
    squares = pool.map(work, [1, 2, 3])
    pool.map_async(work_for_long, [1, 2], chunksize=1)
    queue.get()
    queue.get()
    pool.terminate()
    pool.join()
    return squares


@agent.task("async")
async def in_the_loop(task):
    return calculate()


@agent.task("sync")
def in_a_thread(task):
    return calculate()


@agent.task("signals")
async def signals(task):
    with fork.Pool(1) as pool:
        return pool.map(has_own_signals, [1])


def start_children(task):
    for _ in range(2):
        fork.Process(target=time.sleep, args=(600,), daemon=True).start()
    open(task.payload + ".started", "w").close()


@agent.task("grind")
def grind(task):
    start_children(task)
    time.sleep(600)


@agent.task("hold")
async def hold(task):
    start_children(task)
    while not os.path.exists(task.payload):
        await asyncio.sleep(0.01)
    return "done"


run(agent)
"""


@pytest.fixture
async def process(
    server: EmbeddedServer, coordinator: PlayedCoordinator, tmp_path: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The agent, registered, as the leader of a process group."""
    script = tmp_path / "forker.py"
    script.write_text(SCRIPT)
    environment = {
        **os.environ,
        "COORD_REDIS_URL": server.url,
        "COORD_NAMESPACE": coordinator.settings.namespace,
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    running = await asyncio.create_subprocess_exec(sys.executable, str(script), env=environment, process_group=0)
    await coordinator.wait_for("in:registry", AgentRegistered)
    yield running
    if running.returncode is None:
        os.killpg(running.pid, signal.SIGKILL)
        await running.wait()


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_handler_may_fork_a_pool_and_terminate_it(
    process: asyncio.subprocess.Process, coordinator: PlayedCoordinator, kind: str
) -> None:
    """``Pool.terminate`` sends SIGTERM to children that work: they end, and the agent does not drain."""
    for _ in range(2):
        await coordinator.assign("forker", kind)
    reports = await coordinator.wait_for("in:reports", TaskCompleted, 2)
    assert [bytes(report.result) for report in reports] == [b"[1,4,9]"] * 2
    assert not [fact for fact in await coordinator.facts("in:registry") if isinstance(fact, AgentStatusChanged)]
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 30) == 0


async def test_a_forked_child_has_its_own_signals(
    process: asyncio.subprocess.Process, coordinator: PlayedCoordinator
) -> None:
    """SIGTERM ends it, and its wake-up descriptor is not that of the agent."""
    await coordinator.assign("forker", "signals")
    (report,) = await coordinator.wait_for("in:reports", TaskCompleted)
    assert bytes(report.result) == b"[[true,-1]]"
    assert process.returncode is None


async def test_a_signal_to_the_process_group_counts_once(
    process: asyncio.subprocess.Process, coordinator: PlayedCoordinator, tmp_path: Path
) -> None:
    """The group gets it, and the parent passes it on: the agent finishes its task."""
    gate = tmp_path / "gate"
    await coordinator.assign("forker", "hold", str(gate))
    await coordinator.wait_for("in:reports", TaskStarted)
    await wait_until(Path(f"{gate}.started").exists, "its children work")
    os.killpg(process.pid, signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    await coordinator.wait_for("in:registry", AgentStatusChanged)
    gate.touch()
    (report,) = await coordinator.wait_for("in:reports", TaskCompleted)
    assert bytes(report.result) == b'"done"'
    assert await asyncio.wait_for(process.wait(), 30) == 0
    await coordinator.wait_for("in:registry", AgentDeregistered)


async def test_forked_processes_do_not_outlive_their_agent(
    process: asyncio.subprocess.Process, coordinator: PlayedCoordinator, tmp_path: Path
) -> None:
    """Its handler does not end, so the agent exits without it, and ends them as well."""
    gate = tmp_path / "gate"
    await coordinator.assign("forker", "grind", str(gate))
    await wait_until(Path(f"{gate}.started").exists, "its children work")
    children = psutil.Process(process.pid).children()
    assert len(children) == 2
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(1.5 * ONE_STOP_S)
    assert await asyncio.wait_for(process.wait(), 30) == 1
    await wait_until(lambda: not any(child.is_running() for child in children), "they have ended")
