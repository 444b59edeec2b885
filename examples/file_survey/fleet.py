"""The processes of the survey: a ``coord up`` with its own data folder, and the agents; all are kept running."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec

from coord import Client
from coord.background import cancel_and_wait
from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.endpoint import read_endpoint
from coord.errors import ConfigError, CoordError, DataFolderInUse, Unavailable
from coord.models.agents import AgentStatus
from coord.programs.reaper import Reaper
from coord.standard_streams import plain
from coord.up.data_dir import FolderLock, refuse_foreign, unusable
from coord.up.log import parse_line
from coord.up.runner import sentence_of
from coord.up.shutdown import Shutdown
from coord.up.supervisor import GaveUp, ManagedProgram, ProgramEvent, Supervisor
from examples.file_survey.jobs import KINDS

COORD = "coord up"
#: Exit code of a ``coord up`` that cannot run with these settings, so a restart is useless.
CANNOT = 2
#: Seconds between two checks of the endpoint file, and of the agents.
POLL_S = 0.02
#: Longest wait before a restart that is still reported; a program that cannot run would fill the screen.
REPORTED_WAIT_S = 0.4
#: Maximum reported ends of one process of ``coord up``; its log has all.
REPORTED_ENDS = 3
#: Seconds that `coord up` gets to end its processes and its server in a forced shutdown.
FORCE_S = 15.0
#: Seconds to wait for all agents, enough for a cold start on a busy machine; then the job starts without the others.
GATHER_LIMIT_S = 15.0
#: Seconds that agents get to finish if this process is killed.
DRAIN_S = 15.0


class EndedProcess(msgspec.Struct, frozen=True):
    """A line in the log of ``coord up`` about a process that has ended and restarts."""

    event: str
    message: str = ""
    name: str = "redis"  #: the lines about the server have no name


class GatewayStarted(msgspec.Struct, frozen=True):
    """A line in the log of ``coord up`` that names the address of the dashboard."""

    event: str
    dashboard: str


#: The events of ``GatewayStarted``: the first names the address unless the port is any free one.
DASHBOARD_EVENTS = frozenset({"up.started", "gateway.started"})
#: The events of ``EndedProcess``.
ENDED_EVENTS = frozenset({"process.ended", "process.failed", "redis.ended"})


class Fleet:
    """The processes, and how often they ended.

    Args:
        folder: for Redis and the logs.
        settings: settings of this process, from its environment.
        agents: number of agents of each kind.
        write: called with a sentence when a process has ended unexpectedly, and with the address of the dashboard.
    """

    def __init__(self, folder: Path, settings: Settings, agents: int, write: Callable[[str], None]) -> None:
        self.logs = folder / "logs"
        self._folder = folder
        self._settings = settings
        self._agents = agents
        self._write = write
        #: A `coord up` of the user keeps its endpoint file; ours then has its own.
        path = settings.endpoint_place
        self._is_second = read_endpoint(path) is not None
        is_usable = path is not None and not self._is_second and _can_be_written(path)
        self.own_endpoint = None if is_usable else folder / "endpoint.json"
        self._environ = dict(os.environ)
        if self.own_endpoint:
            self._environ["COORD_ENDPOINT_FILE"] = str(self.own_endpoint)
        #: Name of a process -> how often it ended unexpectedly.
        self.ends: Counter[str] = Counter()
        self.agent_ids = [f"{kind.agents}-{number}" for kind in KINDS for number in range(1, agents + 1)]
        self._url = ""
        self._has_url = asyncio.Event()
        self._dashboard = ""
        self._claim: FolderLock | None = None
        self._failure: CoordError | None = None

    def claim(self) -> None:
        """Claim the folder until this process ends, and delete old logs.

        Raises:
            DataFolderInUse: another survey or ``coord up`` uses it.
            ConfigError: it cannot be created or written.
        """
        try:
            self._claim = FolderLock(self._folder)
            if not self._settings.redis_url:
                refuse_foreign(self._folder / "redis")
                FolderLock(self._folder / "redis").release()  # our `coord up` claims it afterwards
        except ConfigError as error:
            raise ConfigError(plain(str(error))) from None
        except DataFolderInUse as error:
            raise DataFolderInUse(plain(f"{error} (it may be another scripts/run)")) from None
        try:
            self.logs.mkdir(exist_ok=True)
            for log in self.logs.glob("*.log"):
                log.unlink()
            self._log(COORD).touch()
        except OSError as error:
            raise ConfigError(plain(str(unusable(self._folder, error)))) from None

    async def url(self) -> str:
        """Wait until our `coord up` has published the URL of Redis, and return it."""
        await self._has_url.wait()
        return self._url

    async def gather(self, client: Client) -> int:
        """Wait until all agents are active, with a limit; return how many are."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + GATHER_LIMIT_S
        while True:
            with contextlib.suppress(Unavailable):
                agents = {agent.agent_id for agent in await client.agents() if agent.status is AgentStatus.ACTIVE}
                active = len(agents.intersection(self.agent_ids))
                if active == len(self.agent_ids) or loop.time() > deadline:
                    return active
            await asyncio.sleep(POLL_S)

    async def run(self, shutdown: Shutdown) -> None:
        """Keep all processes running until shutdown; then agents drain and leave, and `coord up` ends after them.

        Raises:
            CoordError: `coord up` cannot run; the message is the reason from its log.
        """
        up_shutdown = Shutdown()

        def on_event(event: ProgramEvent) -> None:
            if event.what == "ended" and event.code == CANNOT:
                self._failure = CoordError(f"{COORD} cannot run: {self.last_output(COORD)}")
                up_shutdown.request_once()
            else:
                self._on_event(event)

        supervisor = Supervisor([self._coord_up()], on_event, on_line=self._on_line, gives_up=lambda _: True)
        up = asyncio.create_task(supervisor.run(up_shutdown))
        # Without `coord up`, agents cannot connect.
        up.add_done_callback(lambda _: shutdown.request_once())
        try:
            url = await shutdown.unless_requested(self._published_url(supervisor))
            if url is not None:
                self._url = url
                self._has_url.set()
                await self._run_agents(url, shutdown)
        finally:
            up_shutdown.request_once()
            forcing = asyncio.create_task(_pass_on_force(shutdown, up_shutdown))
            try:
                await up
            except GaveUp:
                self._failure = CoordError(f"{COORD} cannot run: {self.last_output(COORD)}")
            finally:
                await cancel_and_wait(forcing)
                await asyncio.to_thread(self._end_server)
        if self._failure is not None:
            raise self._failure

    def _end_server(self) -> None:
        """End the server of a `coord up` that was killed, so that none is left when this process ends."""
        folder = self._folder / "redis"
        if self._settings.redis_url or not folder.is_dir():
            return
        with contextlib.suppress(CoordError):  # another process has the folder by now
            lock = FolderLock(folder)
            try:
                server = EmbeddedServer.find(folder)
                if server is not None and server.pid == lock.earlier_server:
                    server.stop(force=True)
            finally:
                lock.release()

    async def _run_agents(self, url: str, shutdown: Shutdown) -> None:
        reaper = Reaper(DRAIN_S)

        def on_event(event: ProgramEvent) -> None:
            if event.pid is not None:
                (reaper.add if event.what == "started" else reaper.remove)(event.pid)
            self._on_event(event)

        try:
            await Supervisor(self._agent_programs(url), on_event).run(shutdown)
        finally:
            await asyncio.to_thread(reaper.close)

    async def _published_url(self, supervisor: Supervisor) -> str:
        path = self.own_endpoint or self._settings.endpoint_path
        while True:
            endpoint = read_endpoint(path)
            if endpoint and endpoint.pid == supervisor.pids.get(COORD):
                return endpoint.url
            await asyncio.sleep(POLL_S)

    def hints(self) -> str:
        """Return what a user can do while the cell stays up."""
        # Absolute, because another terminal has another folder; not resolved, or it would be a Python without coord.
        python, program = Path(sys.executable).absolute(), KINDS[0].program.absolute()
        agent = shlex.join([str(python), str(program), "--id", f"{KINDS[0].agents}-{self._agents + 1}"])
        if self.own_endpoint:
            agent = f"COORD_ENDPOINT_FILE={shlex.quote(str(self.own_endpoint))} {agent}"
        return (
            "\nEverything keeps running until Ctrl-C; press it before you start `coord up`.\n"
            "Meanwhile, in another terminal:\n"
            f"  {agent}  # add an agent\n"
            f"  tail -f {shlex.quote(str(self.logs))}/*.log  # follow the logs"
        )

    def last_output(self, name: str) -> str:
        """Return the error in the log of an ended process: a program given up, else from the last ``coord: `` on."""
        try:
            lines = self._log(name).read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        gave_up = [
            record["message"] for line in lines if (record := parse_line(line)) and record["event"] == "process.gave_up"
        ]
        if gave_up:
            return str(gave_up[-1])
        starts = [number for number, line in enumerate(lines) if line.startswith("coord: ")]
        error = lines[starts[-1] :] if starts else lines[-1:]
        return "\n".join(error).removeprefix("coord: ") or "no output"

    def _coord_up(self) -> ManagedProgram:
        # A Redis server in the environment is used; otherwise an embedded one with its own data folder.
        data = [] if self._settings.redis_url else ["--data", str(self._folder / "redis")]
        # The `coord up` of the user has the port then.
        gateway = ["--no-gateway"] if self._is_second else []
        return ManagedProgram(
            name=COORD,
            command=(sys.executable, "-P", "-m", "coord.cli", "up", "--watch-stdin", *data, *gateway),
            environ=self._environ,
            force_s=FORCE_S,
        )

    def _agent_programs(self, url: str) -> list[ManagedProgram]:
        # The URL itself: there is no endpoint file while a killed `coord up` restarts.
        environ = self._environ | {"COORD_REDIS_URL": url}
        programs: list[ManagedProgram] = []
        for name in self.agent_ids:
            (kind,) = (kind for kind in KINDS if kind.agents == name.partition("-")[0])
            command = (sys.executable, str(kind.program), "--id", name)
            programs.append(ManagedProgram(name=name, command=command, environ=environ, log=self._log(name)))
        return programs

    def _log(self, program: str) -> Path:
        return self.logs / f"{program.replace(' ', '-')}.log"

    def _on_line(self, name: str, line: str) -> None:
        """Append a line of `coord up` to its log; report the dashboard, and the end of one of its processes."""
        with contextlib.suppress(OSError), self._log(name).open("a") as log:
            log.write(f"{line}\n")
        dashboard = dashboard_of(line)
        if dashboard not in (
            "",
            self._dashboard,
        ):  # a restarted gateway keeps its address unless it takes any free port
            self._dashboard = dashboard
            self._write(f"dashboard: {dashboard}")
        ended = ended_process(line)
        if ended is not None:
            self.ends[ended.name] += 1
            if self.ends[ended.name] <= REPORTED_ENDS:
                self._write(ended.message)

    def _on_event(self, event: ProgramEvent) -> None:
        if event.again_in_s is None:  # it has started, or everything ends
            return
        self.ends[event.name] += 1
        if event.again_in_s > REPORTED_WAIT_S:
            return
        last_line = event.last_line or self.last_output(event.name)
        self._write(sentence_of(msgspec.structs.replace(event, last_line=last_line)))


def _can_be_written(path: Path) -> bool:
    """Return True if this user can create the file, with its folders."""
    existing = next(folder for folder in path.absolute().parents if folder.exists())
    return os.access(existing, os.W_OK)


async def _pass_on_force(first: Shutdown, second: Shutdown) -> None:
    """Force the second shutdown when the first one is forced."""
    await first.forced.wait()
    second.force()


def dashboard_of(line: str) -> str:
    """Return the address of the dashboard that a line of the log of ``coord up`` names; empty if it names none."""
    try:
        record = msgspec.json.decode(line, type=GatewayStarted)
    except msgspec.MsgspecError:
        return ""
    return record.dashboard if record.event in DASHBOARD_EVENTS else ""


def ended_process(line: str) -> EndedProcess | None:
    """Return the event in a line of the log of ``coord up`` if a process has ended."""
    try:
        record = msgspec.json.decode(line, type=EndedProcess)
    except msgspec.MsgspecError:
        return None
    return record if record.event in ENDED_EVENTS else None
