"""One cell on this machine: a Redis server, its workers, a gateway and agents, brought up, kept up and taken down.

Workers are processes (``python -m workers KIND``) and are never imported. When this process is gone, however it went,
they and the gateway end by themselves, as they watch their standard input, and agents, who need not, are ended by the
leash that holds them; the server stays, and the next ``coord up`` adopts it. In order, those who call end first: what
agents report at their end is still read.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
from redis import exceptions as redis_errors
from redis.asyncio import Redis

from coord import __version__
from coord.aio import end
from coord.background import run_once
from coord.config import Settings, expanded
from coord.connection import connect_worker, safe_url, wait_for_server
from coord.endpoint import read_endpoint, remove_endpoint, write_endpoint
from coord.errors import ConfigError, DataFolderInUse, ServerUnfit
from coord.keys import Keys
from coord.models.workers import WAITS_FOR
from coord.programs.guard import Guard
from coord.server_check import ServerReport, check_server
from coord.translation import read_failure
from coord.up.aof_repair import repair
from coord.up.data_dir import default_data_dir, refuse_foreign
from coord.up.gateway_check import is_ours, is_taken, url_of
from coord.up.log import Log, last_words, read_line
from coord.up.programs import GATEWAY, gateway_program, kind_of, logged_environ, worker_programs
from coord.up.server import Embedded, Given, Server
from coord.up.shutdown import Stop
from coord.up.supervisor import Event, GaveUp, ManagedProgram, Supervisor

#: How long a given server may take to answer at the start; a service manager tries again, a person has mistyped.
GIVEN_LIMIT_S = 10.0
#: A person who sees nothing for longer wonders whether it has stuck.
SILENCE_S = 1.0
#: Between two looks at whether the workers are there.
LOOK_S = 0.05
#: Errors of a place that this user may not write to.
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR})
#: Between two looks at which agents are there.
AGENTS_LOOK_S = 0.25
#: Who is not there by then is named.
READY_LIMIT_S = 15.0
#: From this end in a row on, the line about it tells what the program said last.
KEEPS_ENDING = 3
#: So many ends in a row are told one by one; at the longest wait of 5 s, as many again take a minute.
TOLD_ENDS = 12
#: Characters of a program's last words.
WORDS_KEPT = 500


class CellPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What to bring up."""

    settings: Settings
    #: The embedded server's folder; None: the server that the settings name, else ``default_data_dir()``.
    data_dir: Path | None
    #: kind of worker -> how many.
    workers: Mapping[str, int]
    #: Whether there is a gateway, where the settings say.
    gateway: bool = False
    #: Cut a damaged end off the embedded server's append-only file first.
    repair_aof: bool = False
    #: Agents to start; their ``environ`` is what they have besides ours.
    agents: tuple[ManagedProgram, ...] = ()


class LocalCell:
    """A server and all that runs on it.

    Args:
        plan: what to bring up.
        stop: when to end it.
        log: where everything is said.
    """

    def __init__(self, plan: CellPlan, stop: Stop, log: Log) -> None:
        self._plan = plan
        self._stop = stop
        self._log = log
        self._endpoint = plan.settings.endpoint_place
        self._unannounced = ""  # why, where it is so
        self._gateway_pid: int | None = None
        self._supervisors: list[Supervisor] = []
        #: A program could never be used, so all was ended.
        self.gave_up = False

    async def run(self) -> None:
        """Bring the cell up, keep it so until asked to stop, then end workers, server and announcement.

        Raises:
            CoordError: something that the person who asked can mend; nothing of ours is left running.
        """
        _refuse_a_second(self._endpoint, self._plan)
        server = _server(self._plan)
        try:
            await self._repair(server)
            await self._begin(server)
            settings = msgspec.structs.replace(self._plan.settings, redis_url=server.url)
            async with connect_worker(server.url, settings) as redis:
                report = await self._check(redis, settings, server.url)
                if report is not None:
                    await self._run(server, redis, settings, report)
        finally:
            remove_endpoint(self._endpoint)
            await server.end(self._stop, self._log.say)

    async def _repair(self, server: Server) -> None:
        if not self._plan.repair_aof or server.data_dir is None:
            return
        cut = await asyncio.to_thread(repair, server.data_dir)
        if cut is None:
            self._log.say("aof.whole", f"the append-only file in {server.data_dir} has no damaged end")
        else:
            kept = {"copy": str(cut.copy), "position": cut.position, "cut": cut.size - cut.position}
            self._log.say("aof.repaired", str(cut), level="warning", **kept)

    async def _begin(self, server: Server) -> None:
        """Wait for the server even when asked to stop, but not when urgently: a large folder takes minutes to load."""
        beginning = asyncio.create_task(server.begin())
        await self._stop.unless_urgent(asyncio.wait({beginning}))
        if not beginning.done():
            # The interpreter would wait for the thread that waits for the server. One that was found running stays.
            server.abandon()
            sys.stdout.flush()
            os._exit(130)
        beginning.result()

    async def _check(self, redis: Redis, settings: Settings, url: str) -> ServerReport | None:
        """The server's report, or None when asked to stop meanwhile."""

        async def check() -> ServerReport:
            await wait_for_server(redis, url, limit_s=GIVEN_LIMIT_S)
            return await check_server(redis, settings)

        waiting = ("redis.awaited", f"waiting for Redis at {safe_url(url)}")
        late = asyncio.get_running_loop().call_later(SILENCE_S, self._log.say, *waiting)
        try:
            return await self._stop.unless_asked(check())
        except redis_errors.RedisError as error:
            failure = read_failure(error, safe_url(url))
            if not isinstance(failure, ServerUnfit):
                raise failure from None
            raise ServerUnfit(
                f"Redis at {safe_url(url)} refuses what coord needs: {error}; see to the rights of this user"
            ) from None
        finally:
            late.cancel()

    async def _run(self, server: Server, redis: Redis, settings: Settings, report: ServerReport) -> None:
        workers = worker_programs(settings, self._plan.workers)
        gateways = [gateway_program(settings)] if self._plan.gateway else []
        environ = logged_environ(settings)
        agents = [msgspec.structs.replace(one, environ={**environ, **one.environ}) for one in self._plan.agents]
        self._announce(server)
        self._show(server, report, workers)
        keeping = asyncio.create_task(server.keep(self._stop, self._log.say, lambda: self._announce(server)))
        # Without the server there is nothing to keep the others for.
        keeping.add_done_callback(lambda _: self._stop.ask_once())
        speaking = [
            run_once("up.ready", lambda: self._say_when_ready(redis, Keys(settings.namespace), workers, server.url)),
            run_once("up.ending", self._say_when_asked),
            run_once("up.agents_ready", lambda: self._note_ready_agents(redis, Keys(settings.namespace))),
        ]
        try:
            try:
                await self._supervise(workers, [*gateways, *agents])
            except GaveUp:
                self.gave_up = True
                self._stop.ask_once()
            await keeping
        finally:
            await end(*speaking)

    async def _supervise(self, workers: list[ManagedProgram], callers: list[ManagedProgram]) -> None:
        """Keep all running; asked to stop, end the callers, then the workers."""
        last = Stop()
        keeper = Supervisor(workers, self._tell, hear=self._log.hear, gives_up=self._gives_up)
        working = asyncio.create_task(keeper.run(last))
        working.add_done_callback(lambda _: self._stop.ask_once())
        hurrying = asyncio.create_task(_hand_on(self._stop, last))
        agents = {one.name for one in self._plan.agents}
        guard = Guard(max(one.drain_s or 0 for one in self._plan.agents)) if agents else None

        def tell(event: Event) -> None:
            if guard is not None and event.pid is not None and event.name in agents:
                (guard.hold if event.what == "started" else guard.release)(event.pid)
            self._tell(event)

        other = Supervisor(callers, tell, hear=self._hear_caller, gives_up=self._gives_up)
        self._supervisors = [keeper, other]
        try:
            await other.run(self._stop)
        finally:
            last.ask_once()
            try:
                await working
            finally:
                await end(hurrying)
                if guard is not None:
                    await asyncio.to_thread(guard.close)

    def _show(self, server: Server, report: ServerReport, workers: list[ManagedProgram]) -> None:
        rows: dict[str, str | list[str]] = {
            "redis": f"{safe_url(server.url)} ({report.product} {report.version}, {server.origin})"
        }
        if server.data_dir is not None:
            rows["data"] = str(server.data_dir)
        rows["durability"] = report.durability
        none_here = [kind for kind, count in self._plan.workers.items() if not count]
        elsewhere = [f"no {kind} here: {WAITS_FOR[kind]} wait unless one runs elsewhere" for kind in none_here]
        if warnings := [*report.warnings, *elsewhere]:
            rows["warning"] = warnings
        if self._plan.settings.namespace != Settings().namespace:
            rows["namespace"] = self._plan.settings.namespace
        rows["workers"] = [program.name for program in workers] or "none here"
        if self._plan.gateway:
            rows["gateway"] = _gateway_row(self._plan.settings)
        if self._plan.agents:
            rows["agents"] = [program.name for program in self._plan.agents]
        rows["announced"] = str(self._endpoint) if not self._unannounced else f"nowhere: {self._unannounced}"
        self._log.show(f"coord {__version__}", rows)

    def _announce(self, server: Server) -> None:
        if self._endpoint is None:
            self._unannounced = "there is no home directory; COORD_ENDPOINT_FILE can name a file"
            return
        try:
            write_endpoint(self._endpoint, server.url, server.data_dir, self._plan.settings.namespace)
        except OSError as error:
            if self._plan.settings.endpoint_file is None and error.errno in FORBIDDEN:
                # In a container the home directory of a random user id is often / or another one's.
                self._unannounced = f"{self._endpoint.parent} cannot be written; COORD_ENDPOINT_FILE can name a file"
                return
            raise ConfigError(
                f"cannot write the endpoint file {self._endpoint}: {error.strerror}; "
                "name another in COORD_ENDPOINT_FILE"
            ) from None

    def _tell(self, event: Event) -> None:
        if event.name == GATEWAY and event.what in {"started", "ended"}:
            self._gateway_pid = event.pid if event.what == "started" else None
        fields = {"name": event.name, "pid": event.pid, "code": event.code, "again_in_s": event.again_in_s}
        if event.what == "gave_up":
            self._log.say("process.gave_up", gave_up_sentence(event), level="error", **fields)
        elif event.what == "killed":
            why = "was killed" if self._stop.urgent.is_set() else "did not end in time, so it was killed"
            self._log.say("process.killed", f"{event.name} (pid {event.pid}) {why}", level="warning", **fields)
        elif event.what in {"ended", "failed"} and is_told(event):
            self._log.say(f"process.{event.what}", sentence_of(event), level="warning", **fields)

    async def _say_when_ready(self, redis: Redis, keys: Keys, programs: list[ManagedProgram], url: str) -> None:
        """Ready is when every worker has said that it is there, and the gateway answers."""
        loop = asyncio.get_running_loop()
        late_at = loop.time() + READY_LIMIT_S
        missing = [program.name for program in programs] + ([GATEWAY] if self._plan.gateway else [])
        while missing:
            with contextlib.suppress(redis_errors.RedisError, OSError):  # a TimeoutError is one
                missing = [name for name in missing if not await self._has_come(redis, keys, name)]
            if missing and loop.time() > late_at:
                late_at = math.inf
                self._log.say(
                    "up.late", f"not there yet: {', '.join(missing)}; their own lines say why", level="warning"
                )
            if missing:
                await asyncio.sleep(LOOK_S)
        found = "clients and agents of this user find it by themselves"
        if self._unannounced:
            found = f"clients and agents find it by COORD_REDIS_URL={safe_url(url)}"
        self._log.say("up.ready", f"ready: {found}; Ctrl-C ends it")

    async def _has_come(self, redis: Redis, keys: Keys, name: str) -> bool:
        is_there = await self._is_there(redis, keys, name)
        if is_there:
            self._note_ready(name)
        return is_there

    async def _note_ready_agents(self, redis: Redis, keys: Keys) -> None:
        """Note which agents were ready once: they may be given work."""
        left = {one.name for one in self._plan.agents}
        while left:
            with contextlib.suppress(redis_errors.RedisError, OSError):
                for name in sorted(left):
                    if await redis.sismember(keys.of("agents:active"), name):
                        self._note_ready(name)
                        left.discard(name)
            await asyncio.sleep(AGENTS_LOOK_S)

    def _hear_caller(self, name: str, line: str) -> None:
        """Log a line of an agent or the gateway; an agent may have another id than its process."""
        if '"agent.registered"' in line and (found := read_line(line)) and found["event"] == "agent.registered":
            self._note_ready(name)
        self._log.hear(name, line)

    def _note_ready(self, name: str) -> None:
        for supervisor in self._supervisors:
            supervisor.ready(name)

    def _gives_up(self, event: Event) -> bool:
        """Return True if there is no use in starting a program again; a port becomes free, perhaps has by now."""
        return event.name != GATEWAY or os.strerror(errno.EADDRINUSE) not in event.last_line

    async def _is_there(self, redis: Redis, keys: Keys, name: str) -> bool:
        if name != GATEWAY:
            return bool(await redis.exists(keys.worker(kind_of(name), name)))
        return await is_ours(self._plan.settings, self._gateway_pid)

    async def _say_when_asked(self) -> None:
        await self._stop.asked.wait()
        self._log.say("up.ending", "ending: all finish what they hold; Ctrl-C again ends them at once")


def _gateway_row(settings: Settings) -> str:
    if settings.gateway_port and is_taken(settings):
        return f"not yet: port {settings.gateway_port} is taken; --port 0 takes a free one"
    return url_of(settings) or "on a free port"


async def _hand_on(first: Stop, last: Stop) -> None:
    """What becomes urgent for the one is so for the other."""
    await first.urgent.wait()
    last.ask()
    last.ask()


def is_told(event: Event) -> bool:
    """Whether an end is worth a line: each of the first, then one a minute, or a broken program would fill the log."""
    return event.ends <= TOLD_ENDS or event.ends % TOLD_ENDS == 0


def sentence_of(event: Event) -> str:
    """How a program ended, when it starts again, and, once it keeps ending, what it said last."""
    if event.what == "failed":
        said = f"{event.name} could not be started ({event.how}), tried again in {event.again_in_s:g} s"
    else:
        said = f"{event.name} (pid {event.pid}) has ended ({event.how}), starts again in {event.again_in_s:g} s"
    if event.ends >= KEEPS_ENDING:
        said += f"; it has ended {event.ends} times in a row"
        words = last_words(event.last_line)
        said += f", its last words: {words[:WORDS_KEPT]}" if words else " and has said nothing"
    return said


def gave_up_sentence(event: Event) -> str:
    """Return what is said of a program that is not started again."""
    words = last_words(event.last_line)[:WORDS_KEPT] or event.reason
    return (
        f"{event.name} was never ready and has ended {event.ends} times in a row with the same error ({event.how})"
        + (f": {words}" if words else "")
        + "; it is not started again, and coord up ends"
    )


def _server(plan: CellPlan) -> Server:
    if plan.data_dir is None and plan.settings.redis_url:
        return Given(plan.settings.redis_url)
    folder = plan.data_dir or default_data_dir()
    refuse_foreign(folder)
    return Embedded(folder)


def _refuse_a_second(path: Path | None, plan: CellPlan) -> None:
    """One ``coord up`` is announced at a time: clients that were sent to the other one would find nothing."""
    other = read_endpoint(path)
    if other is None or other.pid == os.getpid():
        return
    if plan.data_dir and other.data_dir == str(expanded(plan.data_dir, f"--data {plan.data_dir}").resolve()):
        raise DataFolderInUse(f"another coord up (pid {other.pid}) runs on {other.data_dir}; end that one first")
    raise ConfigError(
        f"another coord up (pid {other.pid}, Redis at {safe_url(other.url)}) is announced in {path}; "
        "end that one, or give this one a file of its own: COORD_ENDPOINT_FILE=/path/to/file coord up"
    )
