"""One cell on this machine: starts a Redis server, workers, a gateway and agents, keeps them running, shuts them down.

Workers are processes (``python -m workers KIND``) and are never imported. When this process is gone, even after
SIGKILL, workers and gateway end by themselves, because they watch their standard input. Agents need not do that, so a
reaper ends them. The Redis server keeps running, and the next ``coord up`` adopts it. Callers end before workers, so
the last reports of agents are still read.
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
from coord.background import cancel_and_wait, run_once
from coord.config import Settings, expand_home
from coord.connection import connect_worker, read_failure, safe_url, wait_for_server
from coord.endpoint import read_endpoint, remove_endpoint, write_endpoint
from coord.errors import ConfigError, DataFolderInUse, ServerUnfit
from coord.keys import Keys
from coord.models.cell import WAITS_FOR
from coord.programs.outcome import describe_exit
from coord.programs.reaper import Reaper
from coord.server_check import ServerReport, check_server
from coord.up.data_dir import default_data_dir, refuse_foreign, repair_aof
from coord.up.gateway_check import is_ready, is_taken, url_of
from coord.up.log import Log, last_error, parse_line
from coord.up.programs import GATEWAY, gateway_program, kind_of, logged_environ, worker_programs
from coord.up.server import ExternalServer, ManagedServer, Server
from coord.up.shutdown import Shutdown
from coord.up.supervisor import GaveUp, ManagedProgram, ProgramEvent, Supervisor

#: Seconds that an external server gets to answer at the start: a service manager retries, a person has mistyped.
EXTERNAL_LIMIT_S = 10.0
#: What to do if there is none at its address.
EXTERNAL_ADVICE = "Start that server; without --redis-url and COORD_REDIS_URL, coord up starts one itself"
#: Seconds without output after which a message says what the start waits for.
SILENCE_S = 1.0
#: Seconds between two checks whether the workers are ready.
POLL_S = 0.05
#: Seconds between two checks which agents are ready.
AGENTS_POLL_S = 0.25
#: Errors of a path that this user may not write to.
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR})
#: Seconds after which a message names the processes that are not ready.
READY_LIMIT_S = 15.0
#: From this consecutive end on, the message includes the last line of the program's output.
REPEATED_ENDS = 3
#: Number of consecutive ends that are all logged; then one in so many: one a minute at the longest wait of 5 s.
LOGGED_ENDS = 12
#: Maximum seconds that agents get to finish after this process was killed; then the reaper ends them.
KILLED_GRACE_S = 35.0
#: Maximum characters of a program's last line in a message.
MAX_LAST_LINE = 500


class CellPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What to start."""

    settings: Settings
    #: Folder of the embedded server; None: the server in the settings, else ``default_data_dir()``.
    data_dir: Path | None
    #: Number of workers of each kind.
    workers: Mapping[str, int]
    #: Whether to start a gateway, on host and port of the settings.
    gateway: bool = False
    #: Whether to cut a damaged end off the append-only file of the embedded server first.
    repair_aof: bool = False
    #: Agents to start; their ``environ`` is added to that of this process.
    agents: tuple[ManagedProgram, ...] = ()


class LocalCell:
    """A server and the processes that use it.

    Args:
        plan: what to start.
        shutdown: when to end it.
        log: the log of everything.
    """

    def __init__(self, plan: CellPlan, shutdown: Shutdown, log: Log) -> None:
        self._plan = plan
        self._shutdown = shutdown
        self._log = log
        self._endpoint = plan.settings.endpoint_place
        self._unpublished = ""  #: why there is no endpoint file
        self._gateway_pid: int | None = None
        self._supervisors: list[Supervisor] = []
        #: True if a program was given up, so all others were ended.
        self.gave_up = False

    async def run(self) -> None:
        """Start the cell and keep it running; on shutdown end the processes, remove the endpoint file, stop the server.

        Raises:
            CoordError: a problem that the user can fix; no process of the cell is left running.
        """
        _refuse_second(self._endpoint, self._plan)
        server = _server(self._plan)
        try:
            await self._repair(server)
            await self._start(server)
            settings = msgspec.structs.replace(self._plan.settings, redis_url=server.url)
            async with connect_worker(server.url, settings) as redis:
                report = await self._check(redis, settings, server.url)
                if report is not None:
                    await self._run(server, redis, settings, report)
        finally:
            remove_endpoint(self._endpoint)
            await server.stop(self._shutdown, self._log.message)

    async def _repair(self, server: Server) -> None:
        if not self._plan.repair_aof or server.data_dir is None:
            return
        cut = await asyncio.to_thread(repair_aof, server.data_dir)
        if cut is None:
            self._log.message("aof.whole", f"the append-only file in {server.data_dir} has no damaged end")
        else:
            fields = {"copy": str(cut.copy), "position": cut.position, "cut": cut.size - cut.position}
            self._log.message("aof.repaired", str(cut), level="warning", **fields)

    async def _start(self, server: Server) -> None:
        """Wait for the server even after a shutdown request, but not a forced one: loading may take minutes."""
        starting = asyncio.create_task(server.start())
        await self._shutdown.unless_forced(asyncio.wait({starting}))
        if not starting.done():
            # The interpreter would wait for the thread that starts the server. A server that was found running stays.
            server.abandon()
            sys.stdout.flush()
            os._exit(130)
        starting.result()

    async def _check(self, redis: Redis, settings: Settings, url: str) -> ServerReport | None:
        """Return the server's report, or None after a shutdown request."""

        async def check() -> ServerReport:
            await wait_for_server(redis, url, limit_s=EXTERNAL_LIMIT_S, logs=False, advice=EXTERNAL_ADVICE)
            return await check_server(redis, settings)

        waiting = ("redis.awaited", f"waiting for Redis at {safe_url(url)}")
        late = asyncio.get_running_loop().call_later(SILENCE_S, self._log.message, *waiting)
        try:
            return await self._shutdown.unless_requested(check())
        except redis_errors.RedisError as error:
            failure = read_failure(error, safe_url(url))
            if not isinstance(failure, ServerUnfit):
                raise failure from None
            raise ServerUnfit(
                f"Redis at {safe_url(url)} refuses a command that coord needs: {error}; "
                "check the permissions of this Redis user"
            ) from None
        finally:
            late.cancel()

    async def _run(self, server: Server, redis: Redis, settings: Settings, report: ServerReport) -> None:
        workers = worker_programs(settings, self._plan.workers)
        gateways = [gateway_program(settings)] if self._plan.gateway else []
        environ = logged_environ(settings)
        agents = [
            msgspec.structs.replace(program, environ={**environ, **program.environ}) for program in self._plan.agents
        ]
        self._publish_endpoint(server)
        self._log_startup(server, report, workers)
        # The server is kept until the others have ended: a service manager may signal all processes at once.
        server_shutdown = Shutdown()
        keeping = asyncio.create_task(
            server.keep(server_shutdown, self._log.message, lambda: self._publish_endpoint(server))
        )
        # Without the server the other processes have no purpose.
        keeping.add_done_callback(lambda _: self._shutdown.request_once())
        messages = [
            run_once("up.ready", lambda: self._log_readiness(redis, Keys(settings.namespace), workers, server.url)),
            run_once("up.ending", self._log_shutdown),
            run_once("up.agents_ready", lambda: self._mark_ready_agents(redis, Keys(settings.namespace))),
        ]
        try:
            try:
                await self._supervise(workers, [*gateways, *agents])
            except GaveUp:
                self.gave_up = True
                self._shutdown.request_once()
            server_shutdown.request_once()
            await keeping
        finally:
            server_shutdown.request_once()
            await cancel_and_wait(*messages)

    async def _supervise(self, workers: list[ManagedProgram], callers: list[ManagedProgram]) -> None:
        """Keep all programs running; on shutdown end the callers, then the workers."""
        workers_shutdown = Shutdown()
        of_workers = Supervisor(workers, self._on_event, on_line=self._log.output, gives_up=self._gives_up)
        working = asyncio.create_task(of_workers.run(workers_shutdown))
        working.add_done_callback(lambda _: self._shutdown.request_once())
        agents = {program.name for program in self._plan.agents}
        graces = [min(program.drain_s or 0, KILLED_GRACE_S) for program in self._plan.agents]
        reaper = Reaper(max(graces)) if graces else None

        def on_event(event: ProgramEvent) -> None:
            if reaper is not None and event.pid is not None and event.name in agents:
                (reaper.add if event.what == "started" else reaper.remove)(event.pid)
            self._on_event(event)

        of_callers = Supervisor(callers, on_event, on_line=self._on_caller_line, gives_up=self._gives_up)
        self._supervisors = [of_workers, of_callers]
        try:
            await of_callers.run(self._shutdown)
        finally:
            workers_shutdown.request_once()
            # Not before: the agents give their tasks back while the workers still run.
            forcing = asyncio.create_task(_pass_on_force(self._shutdown, workers_shutdown))
            try:
                await working
            finally:
                await cancel_and_wait(forcing)
                if reaper is not None:
                    await asyncio.to_thread(reaper.close)

    def _log_startup(self, server: Server, report: ServerReport, workers: list[ManagedProgram]) -> None:
        rows: dict[str, str | list[str]] = {
            "redis": f"{safe_url(server.url)} ({report.product} {report.version}, {server.origin})"
        }
        if server.data_dir is not None:
            rows["data"] = str(server.data_dir)
        rows["durability"] = report.durability
        missing = [kind for kind, count in self._plan.workers.items() if not count]
        notes = [f"no {kind} here: {WAITS_FOR[kind]} wait unless one runs elsewhere" for kind in missing]
        if warnings := [*report.warnings, *notes]:
            rows["warning"] = warnings
        if report.advice:
            rows["advice"] = "; ".join(report.advice)
        if self._plan.settings.namespace != Settings().namespace:
            rows["namespace"] = self._plan.settings.namespace
        rows["workers"] = [program.name for program in workers] or "none here"
        if self._plan.gateway:
            rows |= _gateway_rows(self._plan.settings)
        if self._plan.agents:
            rows["agents"] = [program.name for program in self._plan.agents]
        rows["announced"] = f"nowhere: {self._unpublished}" if self._unpublished else str(self._endpoint)
        place = {
            "redis": safe_url(server.url),
            "namespace": self._plan.settings.namespace,
            "durability": report.durability,
        }
        self._log.startup(f"coord {__version__}", rows, place)

    def _publish_endpoint(self, server: Server) -> None:
        if self._endpoint is None:
            self._unpublished = "there is no home directory; set COORD_ENDPOINT_FILE to a path"
            return
        try:
            write_endpoint(self._endpoint, server.url, server.data_dir, self._plan.settings.namespace)
        except OSError as error:
            if self._plan.settings.endpoint_file is None and error.errno in FORBIDDEN:
                # In a container the home directory of a random user id is often / or that of another user.
                self._unpublished = f"{self._endpoint.parent} cannot be written; set COORD_ENDPOINT_FILE to a path"
                return
            raise ConfigError(
                f"cannot write the endpoint file {self._endpoint}: {error.strerror}; "
                "set COORD_ENDPOINT_FILE to another path"
            ) from None

    def _on_event(self, event: ProgramEvent) -> None:
        if event.name == GATEWAY and event.what in {"started", "ended"}:
            self._gateway_pid = event.pid if event.what == "started" else None
        fields = {"name": event.name, "pid": event.pid, "code": event.code, "again_in_s": event.again_in_s}
        if event.what == "gave_up":
            self._log.message("process.gave_up", gave_up_sentence(event), level="error", **fields)
        elif event.what == "killed":
            reason = "was killed" if self._shutdown.forced.is_set() else "did not end in time and was killed"
            self._log.message("process.killed", f"{event.name} (pid {event.pid}) {reason}", level="warning", **fields)
        elif event.what in {"ended", "failed"} and is_logged(event):
            self._log.message(f"process.{event.what}", sentence_of(event), level="warning", **fields)

    async def _log_readiness(self, redis: Redis, keys: Keys, programs: list[ManagedProgram], url: str) -> None:
        """Log that the cell is ready: every worker has published its presence, and the gateway responds."""
        loop = asyncio.get_running_loop()
        late_at = loop.time() + READY_LIMIT_S
        missing = [program.name for program in programs] + ([GATEWAY] if self._plan.gateway else [])
        while missing:
            with contextlib.suppress(redis_errors.RedisError, OSError):  # TimeoutError is an OSError
                missing = [name for name in missing if not await self._check_ready(redis, keys, name)]
            if missing and loop.time() > late_at:
                late_at = math.inf
                self._log.message(
                    "up.late", f"not ready yet: {', '.join(missing)}; see their log lines", level="warning"
                )
            if missing:
                await asyncio.sleep(POLL_S)
        how = "clients and agents of this user connect automatically"
        if self._unpublished:
            how = f"clients and agents connect with COORD_REDIS_URL={safe_url(url)}"
        self._log.message("up.ready", f"ready: {how}; press Ctrl-C to stop")

    async def _check_ready(self, redis: Redis, keys: Keys, name: str) -> bool:
        is_there = await self._is_ready(redis, keys, name)
        if is_there:
            self._mark_ready(name)
        return is_there

    async def _mark_ready_agents(self, redis: Redis, keys: Keys) -> None:
        """Note which agents were ready once: they may get work."""
        left = {program.name for program in self._plan.agents}
        while left:
            with contextlib.suppress(redis_errors.RedisError, OSError):
                for name in sorted(left):
                    if await redis.sismember(keys.of("agents:active"), name):
                        self._mark_ready(name)
                        left.discard(name)
            await asyncio.sleep(AGENTS_POLL_S)

    def _on_caller_line(self, name: str, line: str) -> None:
        """Log a line of an agent or the gateway; an agent may have another id than its process."""
        if '"agent.registered"' in line and (record := parse_line(line)) and record["event"] == "agent.registered":
            self._mark_ready(name)
        self._log.output(name, line)

    def _mark_ready(self, name: str) -> None:
        for supervisor in self._supervisors:
            supervisor.mark_ready(name)

    def _gives_up(self, event: ProgramEvent) -> bool:
        """Return True if a restart is useless; a taken port becomes free, perhaps it is free by now."""
        return event.name != GATEWAY or os.strerror(errno.EADDRINUSE) not in event.last_line

    async def _is_ready(self, redis: Redis, keys: Keys, name: str) -> bool:
        if name != GATEWAY:
            return bool(await redis.exists(keys.worker(kind_of(name), name)))
        return await is_ready(self._plan.settings, self._gateway_pid)

    async def _log_shutdown(self) -> None:
        await self._shutdown.requested.wait()
        self._log.message(
            "up.ending", "stopping: all processes finish what they hold; press Ctrl-C again to stop at once"
        )


def _gateway_rows(settings: Settings) -> dict[str, str]:
    if settings.gateway_port and is_taken(settings):
        return {"gateway": f"not yet: port {settings.gateway_port} is taken; --port 0 takes a free one"}
    url = url_of(settings)
    return {"gateway": url, "dashboard": f"{url}/ui"} if url else {"gateway": "on a free port"}


async def _pass_on_force(first: Shutdown, second: Shutdown) -> None:
    """Force the second shutdown when the first one is forced."""
    await first.forced.wait()
    second.force()


def is_logged(event: ProgramEvent) -> bool:
    """Return True if an end is logged: all of the first ends, then one a minute, so a broken program fills no disk."""
    return event.ends <= LOGGED_ENDS or event.ends % LOGGED_ENDS == 0


def sentence_of(event: ProgramEvent) -> str:
    """Describe how a program ended and when it restarts, after repeated ends also the last line of its output."""
    if event.what == "failed":
        sentence = f"{event.name} could not be started ({event.reason}); next try in {event.again_in_s:g} s"
    else:
        end_text = "unknown" if event.code is None else describe_exit(event.code)
        sentence = f"{event.name} (pid {event.pid}) has ended ({end_text}); it restarts in {event.again_in_s:g} s"
    if event.ends >= REPEATED_ENDS:
        sentence += f". It has ended {event.ends} times in a row"
        line = last_error(event.last_line)
        sentence += f"; its last output: {line[:MAX_LAST_LINE]}" if line else " without any output"
    return sentence


def gave_up_sentence(event: ProgramEvent) -> str:
    """Describe why a program is not restarted, with the last line of its output."""
    end_text = f" ({describe_exit(event.code)})" if event.code is not None else ""
    line = last_error(event.last_line)[:MAX_LAST_LINE] or event.reason
    return (
        f"{event.name} was never ready and has ended {event.ends} times in a row with the same error{end_text}"
        + (f": {line}" if line else "")
        + "; it does not restart, and coord up stops"
    )


def _server(plan: CellPlan) -> Server:
    if plan.data_dir is None and plan.settings.redis_url:
        return ExternalServer(plan.settings.redis_url)
    folder = plan.data_dir or default_data_dir()
    refuse_foreign(folder)
    return ManagedServer(folder)


def _refuse_second(path: Path | None, plan: CellPlan) -> None:
    """Check that no other ``coord up`` uses the endpoint file: its clients would connect to this cell instead."""
    other = read_endpoint(path)
    if other is None or other.pid == os.getpid():
        return
    if plan.data_dir and other.data_dir == str(expand_home(plan.data_dir, f"--data {plan.data_dir}").resolve()):
        raise DataFolderInUse(f"another coord up (pid {other.pid}) uses {other.data_dir}; stop it first")
    raise ConfigError(
        f"another coord up, or scripts/run (pid {other.pid}, Redis at {safe_url(other.url)}), uses the endpoint file "
        f"{path}; stop it, or give this one its own file: COORD_ENDPOINT_FILE=/path/to/file coord up"
    )
