"""One cell on this machine: a Redis server and its workers, brought up, kept up and taken down in order.

Workers are processes (``python -m workers KIND``) and are never imported. They end by themselves when this process
is gone, as they watch their standard input; the server stays then, and the next ``coord up`` adopts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from redis import exceptions as redis_errors
from redis.asyncio import Redis

from coord.cli.folder import default_data_dir
from coord.cli.server import Embedded, Given, Server
from coord.cli.stop import Stop
from coord.cli.supervisor import Event, Program, Supervisor
from coord.config import ALIASES, PREFIX, Settings, to_environ
from coord.connection import ServerReport, check_server, connect_worker, safe_url, wait_for_server
from coord.endpoint import read_endpoint, remove_endpoint, write_endpoint
from coord.errors import ConfigError, DataFolderInUse, ServerUnfit
from coord.keys import Keys
from coord.sdk.ending import end

#: How long a given server may take to answer at the start; a service manager tries again, a person has mistyped.
GIVEN_LIMIT_S = 10.0
#: A person who sees nothing for longer wonders whether it has stuck.
SILENCE_S = 1.0
#: Between two looks at whether the workers are there.
LOOK_S = 0.05
#: Workers that are not there by then are named.
READY_LIMIT_S = 15.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to bring up."""

    settings: Settings
    #: The embedded server's folder; None: the server that the settings name, else ``default_data_dir()``.
    data_dir: Path | None
    #: kind of worker -> how many.
    workers: Mapping[str, int]


class Up(msgspec.Struct, frozen=True, kw_only=True):
    """What was brought up, to be shown before the workers have said that they are there."""

    url: str
    origin: str
    report: ServerReport
    data_dir: Path | None
    namespace: str
    endpoint: Path
    workers: tuple[str, ...]


class Cell:
    """A server and its workers.

    Args:
        plan: what to bring up.
        stop: when to end it.
        up: called with what was brought up, before the workers have said that they are there.
        say: called with one sentence at a time, for people.
    """

    def __init__(self, plan: Plan, stop: Stop, *, up: Callable[[Up], None], say: Callable[[str], None]) -> None:
        self._plan = plan
        self._stop = stop
        self._show = up
        self._say = say
        self._endpoint = plan.settings.endpoint_path

    async def run(self) -> None:
        """Bring the cell up, keep it so until asked to stop, then end workers, server and announcement.

        Raises:
            CoordError: something that the person who asked can mend; nothing of ours is left running.
        """
        _refuse_a_second(self._endpoint, self._plan)
        server = _server(self._plan)
        try:
            await self._begin(server)
            settings = msgspec.structs.replace(self._plan.settings, redis_url=server.url)
            async with connect_worker(server.url, settings) as redis:
                report = await self._check(redis, settings, server.url)
                if report is not None:
                    await self._run_workers(server, redis, settings, report)
        finally:
            remove_endpoint(self._endpoint)
            await server.end(self._stop, self._say)

    async def _begin(self, server: Server) -> None:
        """Wait for the server even when asked to stop, but not when urgently: a large folder takes minutes to load."""
        beginning = asyncio.create_task(server.begin())
        await self._stop.unless_urgent(asyncio.wait({beginning}))
        if not beginning.done():
            # The interpreter would wait for the thread that waits for the server; the next `coord up` adopts that one.
            sys.stdout.flush()
            os._exit(130)
        beginning.result()

    async def _check(self, redis: Redis, settings: Settings, url: str) -> ServerReport | None:
        """The server's report, or None when asked to stop meanwhile."""

        async def check() -> ServerReport:
            await wait_for_server(redis, url, limit_s=GIVEN_LIMIT_S)
            return await check_server(redis, settings)

        waiting = f"waiting for Redis at {safe_url(url)}"
        late = asyncio.get_running_loop().call_later(SILENCE_S, self._say, waiting)
        try:
            return await self._stop.unless_asked(check())
        except redis_errors.RedisError as error:
            raise ServerUnfit(
                f"Redis at {safe_url(url)} refuses what coord needs: {error}; see to the rights of this user"
            ) from None
        finally:
            late.cancel()

    async def _run_workers(self, server: Server, redis: Redis, settings: Settings, report: ServerReport) -> None:
        programs = worker_programs(settings, self._plan.workers)
        self._announce(server)
        self._show(
            Up(
                url=safe_url(server.url),
                origin=server.origin,
                report=report,
                data_dir=server.data_dir,
                namespace=settings.namespace,
                endpoint=self._endpoint,
                workers=tuple(program.name for program in programs),
            )
        )
        keeping = asyncio.create_task(server.keep(self._stop, self._say, lambda: self._announce(server)))
        # Without the server there is nothing to keep the workers for.
        keeping.add_done_callback(lambda _: self._stop.ask_once())
        speaking = [
            asyncio.create_task(self._say_when_ready(redis, Keys(settings.namespace), programs)),
            asyncio.create_task(self._say_when_asked()),
        ]
        try:
            await Supervisor(programs, self._tell).run(self._stop)
            await keeping
        finally:
            await end(*speaking)

    def _announce(self, server: Server) -> None:
        try:
            write_endpoint(self._endpoint, server.url, server.data_dir, self._plan.settings.namespace)
        except OSError as error:
            raise ConfigError(
                f"cannot write the endpoint file {self._endpoint}: {error.strerror}; "
                "name another in COORD_ENDPOINT_FILE"
            ) from None

    def _tell(self, event: Event) -> None:
        if event.what == "ended":
            self._say(f"{event.name} (pid {event.pid}) has ended ({event.how}), starts again in {event.again_in_s:g} s")
        elif event.what == "failed":
            self._say(f"{event.name} could not be started ({event.how}), tried again in {event.again_in_s:g} s")
        elif event.what == "killed":
            why = "was killed" if self._stop.urgent.is_set() else "did not end in time, so it was killed"
            self._say(f"{event.name} (pid {event.pid}) {why}")

    async def _say_when_ready(self, redis: Redis, keys: Keys, programs: list[Program]) -> None:
        """Ready is when every worker has said that it is there."""
        loop = asyncio.get_running_loop()
        late_at = loop.time() + READY_LIMIT_S
        missing = [program.name for program in programs]
        while missing:
            with contextlib.suppress(redis_errors.RedisError, OSError):
                missing = [name for name in missing if not await redis.exists(keys.worker(_kind(name), name))]
            if missing and loop.time() > late_at:
                late_at = math.inf
                self._say(f"not there yet: {', '.join(missing)}; their own lines say why")
            if missing:
                await asyncio.sleep(LOOK_S)
        self._say("ready: clients and agents of this user find it by themselves; Ctrl-C ends it")

    async def _say_when_asked(self) -> None:
        await self._stop.asked.wait()
        self._say("ending: workers finish what they hold; Ctrl-C again ends them at once")


def worker_programs(settings: Settings, workers: Mapping[str, int]) -> list[Program]:
    """The processes of the workers: so many of each kind, with names that no other ``coord up`` gives.

    A worker takes up what its own name has pending, so two with one name would do the same work twice: those of a
    killed ``coord up`` may still be ending when the next one starts.
    """
    mark = secrets.token_hex(2)
    environ = child_environ(settings)
    names = [(kind, f"{kind}-{number}-{mark}") for kind, count in workers.items() for number in range(1, count + 1)]
    return [
        Program(
            name=name,
            # -P: a folder called workers where the command is typed is not ours.
            command=(sys.executable, "-P", "-m", "workers", kind, "--name", name, "--watch-stdin"),
            environ=environ,
        )
        for kind, name in names
    ]


def _kind(name: str) -> str:
    return name.partition("-")[0]


def child_environ(settings: Settings) -> dict[str, str]:
    """This process's environment with exactly these settings in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX) and name not in ALIASES}
    return kept | to_environ(settings)


def _server(plan: Plan) -> Server:
    if plan.data_dir is None and plan.settings.redis_url:
        return Given(plan.settings.redis_url)
    return Embedded(plan.data_dir or default_data_dir())


def _refuse_a_second(path: Path, plan: Plan) -> None:
    """One ``coord up`` is announced at a time: clients that were sent to the other one would find nothing."""
    other = read_endpoint(path)
    if other is None or other.pid == os.getpid():
        return
    if plan.data_dir and other.data_dir == str(plan.data_dir.expanduser().resolve()):
        raise DataFolderInUse(f"another coord up (pid {other.pid}) runs on {other.data_dir}; end that one first")
    raise ConfigError(
        f"another coord up (pid {other.pid}, Redis at {safe_url(other.url)}) is announced in {path}; "
        "end that one, or give this one a file of its own: COORD_ENDPOINT_FILE=/path/to/file coord up"
    )
