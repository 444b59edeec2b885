"""A server with a failing disk: it refuses every write, and PING, and answers reads."""

from __future__ import annotations

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from coord.embedded import EmbeddedServer
from tests.waiting import wait_until


async def refuse_writes(server: EmbeddedServer, redis: Redis) -> None:
    """Let the server's snapshots fail, as on a full disk: it refuses every write, and PING."""
    name = (await redis.config_get("dbfilename"))["dbfilename"]
    place = server.data_dir / str(name)
    place.unlink(missing_ok=True)
    place.mkdir()
    await redis.config_set("save", "3600 1")
    await redis.execute_command("BGSAVE")

    async def refuses() -> bool:
        try:
            await redis.ping()
        except ResponseError as error:
            return str(error).startswith("MISCONF")
        return False

    await wait_until(refuses, "it refuses writes")


async def accept_writes(server: EmbeddedServer, redis: Redis) -> None:
    """Undo it."""
    await redis.config_set("save", "")
    (server.data_dir / str((await redis.config_get("dbfilename"))["dbfilename"])).rmdir()
