"""The processes of the main job: a ``coord up`` with a data folder of its own, and the agents; all kept running."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from redis import exceptions as redis_errors

from coord import Client
from coord.aio import end
from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.endpoint import read_endpoint
from coord.errors import ConfigError, CoordError, DataFolderInUse
from coord.models.agents import AgentStatus
from coord.terminal import plain
from coord.up.data_dir import Claim, refuse_foreign, unusable
from coord.up.log import read_line
from coord.up.shutdown import Stop
from coord.up.supervisor import Event, ManagedProgram, Supervisor
from examples.main_job.kinds import KINDS
from examples.main_job.tail import Tail

COORD = "coord up"
#: Between two looks at whether it has announced itself.
LOOK_S = 0.02
#: The wait before a restart up to which each end is told; a program that cannot run would fill the screen.
TOLD_S = 0.4
#: Between two looks at what `coord up` has said, and how many ends of one of its processes are told; its log has all.
PASS_ON_S = 0.2
TOLD_ENDS = 3
#: What `coord up` has to end its processes and its server when all is to end at once.
HURRY_S = 15.0
#: From a cold start on a busy machine. The job begins with whoever is there: tasks wait for the others.
GATHER_LIMIT_S = 15.0


class Fleet:
    """What runs, and what became of it.

    Args:
        folder: for Redis and the logs.
        settings: of this process, as its environment says.
        agents: how many of each kind.
        say: called with a sentence when a process has ended by itself.
    """

    def __init__(self, folder: Path, settings: Settings, agents: int, say: Callable[[str], None]) -> None:
        self.logs = folder / "logs"
        self._folder = folder
        self._settings = settings
        self._agents = agents
        self._say = say
        #: A person's own `coord up` keeps its announcement; ours then has a file of its own.
        place = settings.endpoint_place
        self._is_second = read_endpoint(place) is not None
        is_usable = place is not None and not self._is_second and _can_be_written(place)
        self.own_endpoint = None if is_usable else folder / "endpoint.json"
        self._environ = dict(os.environ)
        if self.own_endpoint:
            self._environ["COORD_ENDPOINT_FILE"] = str(self.own_endpoint)
        #: How often each process has ended by itself.
        self.ends: Counter[str] = Counter()
        self.agent_ids = [f"{kind.agents}-{number}" for kind in KINDS for number in range(1, agents + 1)]
        self._url = ""
        self._has_url = asyncio.Event()
        self._claim: Claim | None = None

    def claim(self) -> None:
        """Take the folder for as long as this process lives, and make room for the logs.

        Raises:
            DataFolderInUse: another main job or ``coord up`` has it.
            ConfigError: it cannot be made or written.
        """
        try:
            self._claim = Claim(self._folder)
            if not self._settings.redis_url:
                refuse_foreign(self._folder / "redis")
                Claim(self._folder / "redis").release()  # our `coord up` takes it for good
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
        """Where Redis is, once our `coord up` has said so."""
        await self._has_url.wait()
        return self._url

    async def gather(self, client: Client) -> int:
        """Wait until all agents may be given work, for a while; how many are there."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + GATHER_LIMIT_S
        while True:
            with contextlib.suppress(redis_errors.RedisError, OSError):
                agents = {one.agent_id for one in await client.agents() if one.status is AgentStatus.ACTIVE}
                there = len(agents.intersection(self.agent_ids))
                if there == len(self.agent_ids) or loop.time() > deadline:
                    return there
            await asyncio.sleep(LOOK_S)

    async def run(self, stop: Stop) -> None:
        """Keep everything running until asked to stop; then agents drain and leave, and after them `coord up` ends.

        Raises:
            GaveUp: `coord up` cannot run as it was asked to; ``last_words`` say why.
        """
        last = Stop()
        keeper = Supervisor([self._coord_up()], self._tell, gives_up=lambda _: True)
        up = asyncio.create_task(keeper.run(last))
        # Without it, agents have nowhere to go.
        up.add_done_callback(lambda _: stop.ask_once())
        passing_on = asyncio.create_task(self._pass_on())
        try:
            url = await stop.unless_asked(self._announced(keeper))
            if url is not None:
                self._url = url
                self._has_url.set()
                await Supervisor(self._agent_programs(url), self._tell).run(stop)
        finally:
            last.ask_once()
            hurrying = asyncio.create_task(_hurry(stop, last))
            try:
                await up
            finally:
                await end(passing_on, hurrying)
                await asyncio.to_thread(self._end_server)

    def _end_server(self) -> None:
        """End the server of a `coord up` that was killed, so that none stays when this process ends."""
        folder = self._folder / "redis"
        if self._settings.redis_url or not folder.is_dir():
            return
        with contextlib.suppress(CoordError):  # another process has the folder by now
            claim = Claim(folder)
            try:
                server = EmbeddedServer.find(folder)
                if server is not None and server.pid == claim.earlier_server:
                    server.stop(force=True)
            finally:
                claim.release()

    async def _pass_on(self) -> None:
        """Tell of the ends of those processes that `coord up` keeps, as of our own."""
        tail = Tail(self._log(COORD))
        while True:
            for one in tail.read():
                self.ends[one.name] += 1
                if self.ends[one.name] <= TOLD_ENDS:
                    self._say(one.message)
            await asyncio.sleep(PASS_ON_S)

    async def _announced(self, keeper: Supervisor) -> str:
        path = self.own_endpoint or self._settings.endpoint_path
        while True:
            endpoint = read_endpoint(path)
            if endpoint and endpoint.pid == keeper.pids.get(COORD):
                return endpoint.url
            await asyncio.sleep(LOOK_S)

    def hints(self) -> str:
        """What a person can do while it stays up."""
        # Absolute, as another terminal is somewhere else; not resolved, or it would be the Python without our packages.
        python, program = Path(sys.executable).absolute(), KINDS[0].program.absolute()
        agent = shlex.join([str(python), str(program), "--id", f"{KINDS[0].agents}-{self._agents + 1}"])
        if self.own_endpoint:
            agent = f"COORD_ENDPOINT_FILE={shlex.quote(str(self.own_endpoint))} {agent}"
        return (
            "\nEverything stays up until Ctrl-C. Meanwhile, in another terminal:\n"
            f"  {agent}  # one more agent joins\n"
            f"  tail -f {shlex.quote(str(self.logs))}/*.log  # what the processes say"
        )

    def last_words(self, name: str) -> str:
        """What a process said when it gave up: from its last line that begins with its name on."""
        try:
            lines = self._log(name).read_text(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        gave_up = [found["message"] for line in lines if (found := read_line(line)) and "gave_up" in found["event"]]
        if gave_up:
            return str(gave_up[-1])
        begins = [number for number, line in enumerate(lines) if line.startswith("coord: ")]
        words = lines[begins[-1] :] if begins else lines[-1:]
        return "\n".join(words).removeprefix("coord: ") or "it has said nothing"

    def _coord_up(self) -> ManagedProgram:
        # A Redis that the environment names is used; else one on a data folder of our own.
        data = [] if self._settings.redis_url else ["--data", str(self._folder / "redis")]
        # The port is that of the person's own `coord up` then.
        gateway = ["--no-gateway"] if self._is_second else []
        return ManagedProgram(
            name=COORD,
            command=(sys.executable, "-P", "-m", "coord.cli", "up", "--watch-stdin", *data, *gateway),
            environ=self._environ,
            log=self._log(COORD),
            final_codes=frozenset({2}),
            hurry_s=HURRY_S,
        )

    def _agent_programs(self, url: str) -> list[ManagedProgram]:
        # Told outright: the announcement is not there while a killed `coord up` is being started again.
        environ = self._environ | {"COORD_REDIS_URL": url}
        leash = (sys.executable, "-P", "-m", "examples.main_job.leash")
        programs: list[ManagedProgram] = []
        for name in self.agent_ids:
            (kind,) = (kind for kind in KINDS if kind.agents == name.partition("-")[0])
            command = (*leash, str(kind.program), "--id", name)
            programs.append(ManagedProgram(name=name, command=command, environ=environ, log=self._log(name)))
        return programs

    def _log(self, program: str) -> Path:
        return self.logs / f"{program.replace(' ', '-')}.log"

    def _tell(self, event: Event) -> None:
        if event.again_in_s is None:  # it has been started, or the whole job ends
            return
        self.ends[event.name] += 1
        if event.again_in_s > TOLD_S:
            return
        sentence = f"{event.name} (pid {event.pid}) has ended ({event.how}), starts again in {event.again_in_s:g} s"
        if event.again_in_s == TOLD_S:
            sentence += f"; it keeps ending, its last words: {self.last_words(event.name)}"
        self._say(sentence)


def _can_be_written(path: Path) -> bool:
    """Return True if a file can be made there, with the folders that it needs."""
    there = next(folder for folder in path.absolute().parents if folder.exists())
    return os.access(there, os.W_OK)


async def _hurry(first: Stop, last: Stop) -> None:
    """Make the second request to end urgent once the first one is."""
    await first.urgent.wait()
    last.ask()
