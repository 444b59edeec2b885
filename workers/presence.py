"""``python -m workers.presence KIND``: whether a worker of this kind on this host is at work, as Redis has it.

Made for a container's health check and for a service manager: it looks at the presence that every worker renews while
its loop runs, and which ends with it. Exit code 0: one is present and its process lives; 1: none is, or Redis cannot be
asked, or the settings do not fit. One line says what was found.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys

import psutil
from redis.exceptions import RedisError

from coord import config, standard_streams
from coord.connection import connect_worker, locate, safe_url
from coord.errors import CoordError
from coord.keys import CONSUMES, Keys

#: Seconds to find out; a check that takes longer is late for whoever waits for it.
LIMIT_S = 5.0


async def present_here(kind: str, url: str, settings: config.Settings) -> str:
    """The name of a worker of ``kind`` that has said from this host that it is there, its process alive; or ""."""
    host = socket.gethostname()
    keys = Keys(settings.namespace)
    async with connect_worker(url, settings) as redis:
        names: list[bytes] = await redis.execute_command("ZRANGE", keys.of(f"workers:{kind}"), 0, -1)
        for name in map(bytes.decode, names):
            where, pid = await redis.execute_command("HMGET", keys.worker(kind, name), "host", "pid")
            if where is not None and where.decode() == host and psutil.pid_exists(int(pid)):
                return name
    return ""


async def _look(kind: str, settings: config.Settings) -> tuple[bool, str]:
    url, settings = locate(settings)
    where = safe_url(url)
    try:
        async with asyncio.timeout(LIMIT_S):
            name = await present_here(kind, url, settings)
    except (RedisError, OSError) as error:  # a TimeoutError is an OSError
        return False, f"Redis at {where} cannot be asked: {str(error) or type(error).__name__}"
    if not name:
        return False, f"no {kind} of {socket.gethostname()} is present in {settings.namespace} at {where}"
    return True, f"{name} is present"


def arguments() -> argparse.ArgumentParser:
    """What the command line may say."""
    parser = argparse.ArgumentParser(
        prog="python -m workers.presence", description="Whether a worker of this kind on this host is at work."
    )
    parser.add_argument("kind", choices=sorted(CONSUMES))
    return parser


def main() -> int:
    """Read the command line and the settings, look, and say what was found."""
    options = arguments().parse_args()
    try:
        well, said = asyncio.run(_look(options.kind, config.load()))
    except CoordError as error:
        well, said = False, str(error)
    if well:
        print(said)  # noqa: T201 -- what it was asked
    else:
        standard_streams.tell(said)
    standard_streams.settle()
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
