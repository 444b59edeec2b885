"""``python -m workers KIND``: run one worker until SIGTERM.

Settings come from ``COORD_*``. The process ends with 0 after SIGTERM or SIGINT, having finished what it had read;
with 2 when it cannot be started as asked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys

from coord.interrupts import end_on_interrupt

if __name__ == "__main__":
    end_on_interrupt()  # while the rest is imported, and until there is something to end

import uvloop
from redis import exceptions as redis_errors

from coord import config, logs, standard_streams
from coord.connection import locate, safe_url, wait_for_server
from coord.errors import CoordError, ServerUnfit
from coord.models.ids import check_id, new_id
from coord.server_check import ServerReport, check_migration, check_server
from workers.cell import WorkerContext
from workers.distributor import Distributor
from workers.intake import is_passing
from workers.loop import Loop
from workers.registry import Registry
from workers.router import Router
from workers.service import Service, end_tasks

log = logs.get_logger()

#: Objects made and still there, after which Python looks for cycles; its own 700 are half a batch, and cost a tenth.
COLLECT_EVERY = 20_000
#: Before the server is looked at again that was lost meanwhile.
AGAIN_S = 0.1
#: Between two looks whether a cluster's slot is being migrated: keys begin to move a moment after that was said.
SLOT_S = 0.25

KINDS: dict[str, type[Service]] = {cls.kind: cls for cls in (Registry, Distributor, Router)}


async def work(kind: str, name: str, settings: config.Settings, *, watch_stdin: bool = False) -> None:
    """Run a worker of ``kind`` until SIGTERM or SIGINT, or, if asked to watch it, until standard input ends.

    Raises:
        CoordError: the server cannot be used, or is away.
    """
    url, settings = locate(settings)
    cell = WorkerContext.open(url, settings, name=f"coord-{kind}-{name}")
    loop = Loop(KINDS[kind](cell), name)
    running = asyncio.get_running_loop()
    for sig in (signal.SIGTERM, signal.SIGINT):
        running.add_signal_handler(sig, loop.stop)
    if watch_stdin:
        try:
            running.add_reader(0, _stop_at_end, loop)
        except OSError:  # /dev/null and files cannot be watched; they are at their end, or will be at once
            loop.stop()
    try:
        report = await _reach(cell, loop)
        if report is None:
            return
        cell.scripts.fit_streams(report.maxmemory)
        for sentence in report.warnings:
            log.warning("server.warning", said=sentence)
        place = {"redis": safe_url(url), "namespace": settings.namespace, "durability": report.durability}
        log.info("worker.started", kind=kind, name=name, **place)
        await (_run_while_whole(cell, loop) if report.cluster_enabled else loop.run())
        log.info("worker.stopped", kind=kind, name=name, handled=loop.intake.handled)
    finally:
        await cell.redis.aclose()


async def _reach(cell: WorkerContext, loop: Loop) -> ServerReport | None:
    """Wait for the server, and look whether it is fit: what it is; None when asked to stop meanwhile."""
    waiting = asyncio.create_task(_find(cell))
    stopped = asyncio.create_task(loop.stopped())
    try:
        await asyncio.wait({waiting, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            return None
        return await waiting
    finally:
        await end_tasks(waiting, stopped)


async def _find(cell: WorkerContext) -> ServerReport:
    while True:
        await wait_for_server(cell.redis, cell.url)
        try:
            return await check_server(cell.redis, cell.settings)
        except (redis_errors.RedisError, OSError) as error:
            if isinstance(error, redis_errors.NoPermissionError) or not is_passing(error):
                raise ServerUnfit(
                    f"Redis at {safe_url(cell.url)} refuses what coord needs: {error}; see to the rights of this user"
                ) from error
            log.warning("worker.interrupted", error=f"{type(error).__name__}: {error}")
            await asyncio.sleep(AGAIN_S)


async def _run_while_whole(cell: WorkerContext, loop: Loop) -> None:
    """Run on a node of a cluster until the loop ends, or the namespace's slot begins to be migrated.

    Then nothing is finished: a script that finds only some of its keys tears the books apart.

    Raises:
        ServerUnfit: the slot is being migrated.
    """
    running, watching = asyncio.create_task(loop.run()), asyncio.create_task(_watch_slot(cell))
    try:
        await asyncio.wait({running, watching}, return_when=asyncio.FIRST_COMPLETED)
        for one in (watching, running):
            if one.done():
                one.result()
    finally:
        await end_tasks(running, watching)


async def _watch_slot(cell: WorkerContext) -> None:
    while True:
        await asyncio.sleep(SLOT_S)
        with contextlib.suppress(redis_errors.RedisError, OSError):
            await check_migration(cell.redis, cell.settings.namespace)


def _stop_at_end(loop: Loop) -> None:
    if not os.read(0, 4096):
        asyncio.get_running_loop().remove_reader(0)
        loop.stop()


def _collect_seldom() -> None:
    """A batch makes thousands of objects and lets go of all: looking for cycles among them is time for nothing."""
    gc.collect()
    gc.freeze()  # what was imported stays, and need not be looked through again
    gc.set_threshold(COLLECT_EVERY)


def arguments() -> argparse.ArgumentParser:
    """What the command line may say."""
    parser = argparse.ArgumentParser(prog="python -m workers", description="Run one worker until SIGTERM.")
    parser.add_argument("kind", choices=sorted(KINDS))
    parser.add_argument("--name", default="", help="its name among its kind; default: host, pid and a random part")
    parser.add_argument("--watch-stdin", action="store_true", help="end when standard input ends, as a child should")
    return parser


def main() -> int:
    """Read the command line and the settings, and work."""
    standard_streams.prepare()
    try:
        return _main()
    finally:
        standard_streams.settle()


def _main() -> int:
    options = arguments().parse_args()
    try:
        settings = config.load()
        logs.configure(settings, service=f"coord-{options.kind}")
        host = "".join(c if c.isalnum() or c in "._-" else "-" for c in socket.gethostname())[:64]
        name = check_id(options.name, "name") if options.name else f"{host}-{os.getpid()}-{new_id()[-6:]}"
        _collect_seldom()
        uvloop.run(work(options.kind, name, settings, watch_stdin=options.watch_stdin))
    except CoordError as error:
        standard_streams.tell(f"coord: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
