"""``python -m workers.presence KIND``: check that a worker of this kind on this host is alive.

A health check for containers and service managers. It reads the worker heartbeats in Redis, which every worker renews
while its loop runs, and which expire without it. Exit code 0: a worker is present and its process runs. 1: none is, or
Redis is unavailable, or the settings are invalid. It prints one line with the result.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys

import psutil
from redis.exceptions import RedisError

from coord import config, standard_streams
from coord.cells import load_with_cell
from coord.connection import connect_worker, locate, safe_url
from coord.errors import CoordError
from coord.keys import KINDS, Keys

#: Timeout of the check, in seconds.
LIMIT_S = 5.0


async def find_living_worker(kind: str, url: str, settings: config.Settings) -> str:
    """Return the name of a worker of ``kind`` on this host with a heartbeat and a running process, or ""."""
    host = socket.gethostname()
    keys = Keys(settings.namespace)
    async with connect_worker(url, settings) as redis:
        names: list[bytes] = await redis.execute_command("ZRANGE", keys.of(f"workers:{kind}"), 0, -1)
        for name in map(bytes.decode, names):
            where, pid = await redis.execute_command("HMGET", keys.worker(kind, name), "host", "pid")
            if where is not None and where.decode() == host and psutil.pid_exists(int(pid)):
                return name
    return ""


async def _check(kind: str, settings: config.Settings) -> tuple[bool, str]:
    url, settings = locate(settings)
    where = safe_url(url)
    try:
        async with asyncio.timeout(LIMIT_S):
            name = await find_living_worker(kind, url, settings)
    except (RedisError, OSError) as error:  # a TimeoutError is an OSError
        return False, f"Redis at {where} cannot be reached: {str(error) or type(error).__name__}"
    if not name:
        return False, f"no {kind} of {socket.gethostname()} is present in {settings.namespace} at {where}"
    return True, f"{name} is present"


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m workers.presence", description="Check that a worker of this kind on this host is alive."
    )
    parser.add_argument("kind", choices=sorted(KINDS))
    return parser


def main() -> int:
    """Read the command line and the settings, check, and print the result; return the exit code."""
    options = arguments().parse_args()
    try:
        is_alive, result = asyncio.run(_check(options.kind, load_with_cell()[0]))
    except CoordError as error:
        is_alive, result = False, str(error)
    if is_alive:
        print(result)  # noqa: T201 -- the output of this command
    else:
        standard_streams.write_error(result)
    standard_streams.flush()
    return 0 if is_alive else 1


if __name__ == "__main__":
    sys.exit(main())
