"""`coord up --agents FILE`: agents that are started, kept running and ended with the cell."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil

from coord import Client
from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.errors import TaskNotFound
from coord.models.agents import AgentStatus
from coord.models.tasks import TaskState
from tests.coord_up import DISTRIBUTOR, END_S, START_S, Start, Up, runs
from tests.waiting import wait_until

AGENT = """
import asyncio, os, sys
from coord import Agent

agent = Agent(sys.argv[1], capacity=2)


@agent.task("greet")
async def greet(task):
    return {"by": sys.argv[1], "says": os.environ["GREETING"], "in": os.getcwd(), "pid": os.getpid()}




@agent.task("hold")
async def hold(task):
    while not os.path.exists(task.payload):
        await asyncio.sleep(0.05)
    return "done"


agent.run()
"""
FILE = """
[agents.greeter]
command = ["{python}", "greeter.py", "{id}"]
count = 2
folder = "below"
env = { GREETING = "hello from {id}" }
"""


def described(folder: Path) -> Path:
    """A file that describes two agents, and what it needs."""
    (folder / "below").mkdir()
    (folder / "below" / "greeter.py").write_text(AGENT)
    (folder / "agents.toml").write_text(FILE)
    return folder / "agents.toml"


async def active(url: str, *agent_ids: str) -> None:
    """These agents, and no others, may be given work."""
    async with Client(url, settings=Settings()) as client:

        async def they_are() -> bool:
            return {one.agent_id for one in await client.agents() if one.status is AgentStatus.ACTIVE} == set(agent_ids)

        await wait_until(they_are, f"{agent_ids} are active", START_S)


def agents_of(up: Up) -> list[psutil.Process]:
    """The processes of the agents."""
    return up.children("greeter.py")


async def test_they_work_come_back_and_leave_with_the_cell(start: Start, tmp_path: Path) -> None:
    """Each under its id, in its folder, with its variables; started again when it dies; drained before the workers."""
    up = start("--routers", "0", "--agents", str(described(tmp_path)))
    endpoint = await up.ready()
    await active(endpoint.url, "greeter-1", "greeter-2")
    async with Client(endpoint.url, settings=Settings()) as client:
        first = await (await client.submit("greet")).result(timeout=START_S)
        assert first["says"] == f"hello from {first['by']}"
        assert first["in"] == str(tmp_path / "below")
        psutil.Process(first["pid"]).kill()
        end = await wait_until(lambda: up.events("process.ended"), "its end is logged", START_S)
        assert end[0]["message"].startswith(f"{first['by']} (pid ")
        await wait_until(lambda: len(up.events("agent.registered", first["by"])) == 2, "it is there again", START_S)
        greeted = await client.submit_many([{"task_type": "greet"}] * 20)
        assert len([await one.result(timeout=START_S) for one in greeted]) == 20
    up.process.terminate()
    assert await up.ended() == 0
    events = [line["event"] for line in up.lines()]
    assert events.count("agent.left") == 2
    assert max(at for at, event in enumerate(events) if event == "agent.left") < events.index("worker.stopped")


async def test_killed_it_leaves_no_agent(start: Start, tmp_path: Path) -> None:
    """They know nothing of it: the leash that holds them sees it go, and asks them to end."""
    up = start("--distributors", "0", "--routers", "0", "--agents", str(described(tmp_path)))
    await active((await up.ready()).url, "greeter-1", "greeter-2")
    agents = await wait_until(lambda: agents_of(up), "their processes are found")
    assert len(agents) == 2
    up.process.kill()
    await wait_until(lambda: not any(runs(one.pid) for one in agents), "the agents have ended", END_S)


async def test_a_file_with_a_slip_starts_nothing(start: Start, tmp_path: Path) -> None:
    """One line that names it; not even the server was started."""
    file = described(tmp_path)
    file.write_text(FILE.replace("count", "cuont"))
    up = start("--agents", str(file))
    assert await up.ended() == 2
    assert up.output == f"coord: {file}: [agents.greeter] cuont: is not a field; did you mean 'count'?\n"
    assert not up.data.exists()


async def test_an_agent_that_can_never_start_ends_it(start: Start, tmp_path: Path) -> None:
    """After five ends with one error the log names program and error; all is ended in order, and the exit code is 1."""
    (tmp_path / "agents.toml").write_text(
        "[agents.broken]\ncommand = ['{python}', '-c', 'import no_such_module']\n"
        "[agents.idle]\ncommand = ['sleep', '600']\n"
    )
    up = start(*DISTRIBUTOR, "--agents", str(tmp_path / "agents.toml"))
    assert await up.ended() == 1
    (given_up,) = up.events("process.gave_up")
    assert given_up["message"] == (
        "broken was never ready and has ended 5 times in a row with the same error (exit code 1): "
        "ModuleNotFoundError: No module named 'no_such_module'; it does not restart, and coord up stops"
    )
    assert up.lines()[-1]["event"] == "up.ended"
    assert EmbeddedServer.find(up.data) is None


async def test_a_program_that_knows_nothing_of_coord_works(start: Start, tmp_path: Path) -> None:
    """Its payload is its input, its output the result; killed with its agent, it is there again."""
    (tmp_path / "agents.toml").write_text(
        """
        [agents.sorter]
        program = ["sort", "--reverse"]
        capabilities = ["sort"]
        tags = ["text"]
        labels = { zone = "here" }
        capacity = 2
        timeout = 60
        env = { LC_ALL = "C" }
        """
    )
    up = start("--routers", "0", "--agents", str(tmp_path / "agents.toml"))
    endpoint = await up.ready()
    await active(endpoint.url, "sorter")
    async with Client(endpoint.url, settings=Settings()) as client:
        record = await client.agent("sorter")
        assert (record.capabilities, record.tags, record.labels) == (("sort",), ("text",), {"zone": "here"})
        assert record.capacity == 2
        sorted_ = await client.submit("sort", {"a": "b"})
        assert await sorted_.result(timeout=START_S) == {"a": "b"}
        (begun,) = up.children("--capability")
        begun.kill()
        assert await (await client.submit("sort", [1, 2])).result(timeout=2 * START_S) == [1, 2]
    up.process.terminate()
    assert await up.ended() == 0


async def test_a_signal_to_every_process_loses_no_work(start: Start, tmp_path: Path) -> None:
    """Systemd does so unless a unit says otherwise: the server and the workers come back until the agents have left."""
    up = start("--routers", "0", "--agents", str(described(tmp_path)))
    endpoint = await up.ready()
    await active(endpoint.url, "greeter-1", "greeter-2")
    async with Client(endpoint.url, settings=Settings()) as client:
        handle = await client.submit("hold", str(tmp_path / "gate"))

        async def is_running() -> bool:
            with suppress(TaskNotFound):  # it may still wait in the stream
                return (await client.task(handle.task_id)).state == TaskState.RUNNING
            return False

        await wait_until(is_running, "it runs", START_S)
    server = EmbeddedServer.find(up.data)
    assert server is not None
    for process in [psutil.Process(up.process.pid), psutil.Process(server.pid), *up.workers().values(), *agents_of(up)]:
        with suppress(psutil.NoSuchProcess):  # its end has followed that of another
            process.terminate()
    await wait_until(lambda: len(up.events("agent.draining")) == 2, "the agents drain", START_S)
    await wait_until(lambda: up.events("redis.restarted"), "the server is back", START_S)
    (tmp_path / "gate").touch()
    assert await up.ended() == 0
    assert not up.events("reports.lost")
    assert len(up.events("agent.left")) == 2
    again = start(*DISTRIBUTOR)
    async with Client((await again.ready()).url, settings=Settings()) as client:
        assert await client.handle(handle.task_id).result(timeout=START_S) == "done"
        assert (await client.task(handle.task_id)).attempt == 1
    again.process.terminate()
    assert await again.ended() == 0
