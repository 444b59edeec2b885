"""``python -m workers KIND``: run one worker until SIGTERM.

Settings come from ``COORD_*``. Exit code 0: SIGTERM or SIGINT; what was read is finished. 2: the worker cannot start
with these arguments and settings, or on this server.
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
    gc.disable()  # imports create many objects and hardly a cycle; see _collect_seldom

import uvloop
from redis import exceptions as redis_errors

from coord import config, log_setup, logs, standard_streams
from coord.cells import load_with_cell
from coord.connection import await_server, safe_url, wait_for_server
from coord.errors import CoordError, ServerUnavailable, ServerUnfit
from coord.models.ids import check_id, new_id
from coord.server_check import ServerReport, check_migration, check_server
from workers.distributor import Distributor
from workers.intake import is_transient
from workers.loop import Loop
from workers.push import PushWorker
from workers.registry import Registry
from workers.router import Router
from workers.service import Service, WorkerContext, end_tasks

log = logs.get_logger()

#: New objects after which Python collects cycles. Its default of 700 is half a batch, and costs a tenth of the time.
COLLECT_EVERY = 20_000
#: Seconds before a server that was lost during its check is checked again.
RETRY_S = 0.1
#: Seconds between two checks for a migration of the cluster's slot: keys start to move a moment after it is declared.
SLOT_S = 0.25

KINDS: dict[str, type[Service]] = {cls.kind: cls for cls in (Registry, Distributor, Router)}


def make_worker(kind: str, cell: WorkerContext, name: str) -> Loop | PushWorker:
    """Return a worker of a kind."""
    return PushWorker(cell, name) if kind == PushWorker.kind else Loop(KINDS[kind](cell), name)


async def work(kind: str, name: str, settings: config.Settings, *, watch_stdin: bool = False) -> None:
    """Run a worker until SIGTERM or SIGINT.

    Args:
        kind: registry, distributor, router or push.
        name: of the worker; unique among its kind.
        settings: of the worker.
        watch_stdin: also stop when standard input ends.

    Raises:
        CoordError: the server cannot be used.
    """
    found = await _await_server(settings, watch_stdin=watch_stdin)
    if found is None:
        return
    url, settings = found
    cell = WorkerContext.open(url, settings, name=f"coord-{kind}-{name}")
    loop = make_worker(kind, cell, name)
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
            log.warning("server.warning", message=sentence)
        for sentence in report.advice:
            log.info("server.advice", message=sentence)
        place = {"redis": safe_url(url), "namespace": settings.namespace, "durability": report.durability}
        log.info("worker.started", kind=kind, name=name, **place)
        await (_run_while_whole(cell, loop) if report.cluster_enabled else loop.run())
        log.info("worker.stopped", kind=kind, name=name, handled=loop.handled)
    finally:
        await cell.redis.aclose()


async def _await_server(settings: config.Settings, *, watch_stdin: bool) -> tuple[str, config.Settings] | None:
    """Wait until there is a server; return its URL and the settings for it, or None if the worker is stopped first."""
    running = asyncio.get_running_loop()
    waiting = running.create_task(await_server(settings))
    for sig in (signal.SIGTERM, signal.SIGINT):
        running.add_signal_handler(sig, waiting.cancel)
    stdin = _watched_stdin(waiting) if watch_stdin else None
    try:
        await asyncio.wait({waiting})
    finally:
        waiting.cancel()
        if stdin is not None:
            running.remove_reader(stdin)
    return None if waiting.cancelled() else waiting.result()


def _watched_stdin(waiting: asyncio.Task[tuple[str, config.Settings]]) -> int | None:
    """Cancel ``waiting`` when standard input ends; return its descriptor, or None if it cannot be watched."""

    def read() -> None:
        if not os.read(stdin, 4096):
            running.remove_reader(stdin)
            waiting.cancel()

    running, stdin = asyncio.get_running_loop(), sys.stdin.fileno()
    try:
        running.add_reader(stdin, read)
    except OSError:  # /dev/null and files cannot be watched; they are at their end, or will be at once
        waiting.cancel()
        return None
    return stdin


async def _reach(cell: WorkerContext, loop: Loop | PushWorker) -> ServerReport | None:
    """Wait for the server and check it; return the report, or None if the worker is stopped meanwhile."""
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
        with contextlib.suppress(ServerUnavailable):  # lost again: go on waiting
            await wait_for_server(cell.redis, cell.url)
        try:
            return await check_server(cell.redis, cell.settings)
        except (redis_errors.RedisError, OSError) as error:
            if isinstance(error, redis_errors.NoPermissionError) or not is_transient(error):
                raise ServerUnfit(
                    f"Redis at {safe_url(cell.url)} refuses what coord needs: {error}; check this user's permissions"
                ) from error
            log.warning("worker.interrupted", error=f"{type(error).__name__}: {error}")
            await asyncio.sleep(RETRY_S)


async def _run_while_whole(cell: WorkerContext, loop: Loop | PushWorker) -> None:
    """Run on a node of a cluster until the loop ends or a migration of the namespace's slot starts.

    After that nothing is finished: a script that finds only some of its keys would leave inconsistent data.

    Raises:
        ServerUnfit: the slot is being migrated.
    """
    running, watching = asyncio.create_task(loop.run()), asyncio.create_task(_watch_slot(cell))
    try:
        await asyncio.wait({running, watching}, return_when=asyncio.FIRST_COMPLETED)
        for task in (watching, running):
            if task.done():
                task.result()
    finally:
        await end_tasks(running, watching)


async def _watch_slot(cell: WorkerContext) -> None:
    while True:
        await asyncio.sleep(SLOT_S)
        with contextlib.suppress(redis_errors.RedisError, OSError):
            await check_migration(cell.redis, cell.settings.namespace)


def _stop_at_end(loop: Loop | PushWorker) -> None:
    if not os.read(0, 4096):
        asyncio.get_running_loop().remove_reader(0)
        loop.stop()


def _collect_seldom() -> None:
    """Collect cycles seldom: a batch creates and frees thousands of objects, and has no cycles among them."""
    gc.freeze()  # imported objects stay, and need not be scanned again
    gc.set_threshold(COLLECT_EVERY)
    gc.enable()


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m workers", description="Run one worker until SIGTERM.")
    parser.add_argument("kind", choices=sorted((*KINDS, PushWorker.kind)))
    parser.add_argument("--name", default="", help="Name, unique among its kind. Default: host, pid and a random part.")
    parser.add_argument("--watch-stdin", action="store_true", help="Stop when standard input ends.")
    return parser


def main() -> int:
    """Read the command line and the settings, and run the worker; return the exit code."""
    standard_streams.prepare()
    try:
        return _main()
    finally:
        standard_streams.flush()


def _main() -> int:
    options = arguments().parse_args()
    try:
        settings, warnings = load_with_cell()
        log_setup.configure(settings, service=f"coord-{options.kind}")
        for warning in warnings:
            log.warning("config.exposed", message=warning)
        host = "".join(c if c.isalnum() or c in "._-" else "-" for c in socket.gethostname())[:64]
        name = check_id(options.name, "name") if options.name else f"{host}-{os.getpid()}-{new_id()[-6:]}"
        _collect_seldom()
        uvloop.run(work(options.kind, name, settings, watch_stdin=options.watch_stdin))
    except CoordError as error:
        standard_streams.write_error(f"coord: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
