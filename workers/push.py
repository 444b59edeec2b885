"""The push worker: sends tasks to the HTTP endpoints of agents.

Any number of push workers share the agents: each agent belongs to a shard, and each shard to one worker at a time. A
worker reads the inboxes of its agents as the agents themselves would, and reports for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from functools import partial
from typing import ClassVar
from zlib import crc32

from redis import exceptions as redis_errors

from coord import __version__, background, logs
from coord.connection import is_demoted, leave_server
from coord.inbox_watch import InboxWatch
from coord.keys import PUSH
from coord.models.ids import new_id
from coord.queries import get_suspended_agents
from workers.endpoints import Endpoints
from workers.pushed_agent import PushedAgent, PushTools
from workers.service import WorkerContext, end_tasks
from workers.transitions.scripts import PUSH_LEASE_MS, PUSH_SHARDS

log = logs.get_logger()

#: Seconds between two renewals of the shards.
RENEW_S = 0.5
#: Seconds that pushes which are under way have to end, when the worker ends or gives up their shard.
FINISH_S = 10.0
#: Seconds to record that the worker leaves; a server that does not answer does not delay its end for longer.
LEAVING_S = 1.0


class PushWorker:
    """Sends tasks to the endpoints of the agents in its shards, until ``stop`` is called.

    Args:
        cell: where it works.
        name: of the worker.

    Raises:
        ConfigError: ``push_networks`` is invalid.
    """

    kind: ClassVar[str] = PUSH

    def __init__(self, cell: WorkerContext, name: str) -> None:
        self._cell = cell
        self._name = name
        self._id = f"{name}#{new_id()[-8:]}"
        connections = cell.settings.push_connections
        self._tools = PushTools(
            cell,
            InboxWatch(cell.url, cell.settings),
            Endpoints(cell.settings),
            asyncio.Semaphore(connections),
            max(1, connections // 10),
        )
        self._agents: dict[str, PushedAgent] = {}
        self._finishing: dict[str, asyncio.Task[None]] = {}
        self._gives: tuple[int, ...] = ()  # shards that it gives up next
        self._stopped = asyncio.Event()
        self._started_at = int(time.time() * 1000)
        self._renewed_at = time.monotonic()
        self._last_heartbeat = (time.monotonic(), 0)  # its time, and the tasks that were sent by then
        self._needs_scripts = True

    @property
    def handled(self) -> int:
        """Number of tasks that were sent."""
        return self._tools.pushed

    def stop(self) -> None:
        """Send nothing more, finish what is under way, and end."""
        self._stopped.set()

    async def stopped(self) -> None:
        """Wait until ``stop`` is called."""
        await self._stopped.wait()

    async def run(self) -> None:
        """Run until ``stop`` is called."""
        ticking = [
            background.keep("push.share", lambda: self._repeat(RENEW_S, self._share)),
            background.keep(
                "push.presence",
                lambda: self._repeat(self._cell.settings.presence_ttl_s / 3, self._send_heartbeat),
            ),
        ]
        try:
            await self._stopped.wait()
        finally:
            await end_tasks(*ticking)
            await asyncio.gather(*(agent.finish(FINISH_S) for agent in self._agents.values()))
            await asyncio.gather(*self._finishing.values())
            await self._leave()
            await self._tools.watch.close()
            await self._tools.endpoints.close()

    async def _repeat(self, every_s: float, act: background.Work) -> None:
        while True:
            try:
                if self._needs_scripts:
                    await self._cell.scripts.load()
                    await self._tools.watch.open()
                    self._needs_scripts = False
                await act()
            except (redis_errors.RedisError, OSError) as error:
                log.warning("worker.interrupted", error=f"{type(error).__name__}: {error}"[-300:])
                self._needs_scripts = True
                if is_demoted(error):
                    await leave_server(self._cell.redis)
            if time.monotonic() - self._renewed_at > PUSH_LEASE_MS / 1000:
                self._tools.is_current = False  # others may have its shards by now
            await asyncio.sleep(every_s)

    async def _share(self) -> None:
        """Renew the shards, and send for exactly the agents in them."""
        scripts, keys = self._cell.scripts, self._cell.keys
        began = time.monotonic()
        (share,) = await scripts.run(scripts.share_pushes(self._id, give=self._gives))
        self._renewed_at = began
        pushed: set[bytes] = await self._cell.redis.execute_command("SMEMBERS", keys.of("agents:pushed"))
        held = share.held - set(self._gives)
        leaves = sorted(held)[: share.excess]
        wanted = {one for one in map(bytes.decode, pushed) if shard_of(one) in held and shard_of(one) not in leaves}
        for agent_id in self._agents.keys() - wanted:
            ending = partial(self._agents.pop(agent_id).finish, FINISH_S)
            self._finishing[agent_id] = background.run_once(f"push.{agent_id}", ending)
        self._tools.is_current = True  # after a time without its shards, only when the agents of lost ones are gone
        self._finishing = {name: task for name, task in self._finishing.items() if not task.done()}
        for agent in self._agents.values():
            agent.look()
        for agent_id in wanted - self._agents.keys() - self._finishing.keys():
            self._agents[agent_id] = PushedAgent(agent_id, self._tools)
        # An agent may have been suspended by a worker that is gone, or after its endpoint had responded again.
        for agent_id in await get_suspended_agents(self._cell.redis, keys) & self._agents.keys():
            self._agents[agent_id].look_at_endpoint()
        busy = {shard_of(agent_id) for agent_id in self._finishing}
        self._gives = tuple(shard for shard in leaves if shard not in busy)

    async def _leave(self) -> None:
        """Give up all shards and the presence, so that another worker takes over at once."""
        scripts = self._cell.scripts
        with contextlib.suppress(redis_errors.RedisError, OSError):  # TimeoutError is an OSError
            async with asyncio.timeout(LEAVING_S):
                await scripts.run(
                    scripts.share_pushes(self._id, leaves=True),
                    scripts.worker_heartbeat(self.kind, self._name, self._identity(), (), is_leaving=True),
                )

    async def _send_heartbeat(self) -> None:
        sent_at, before = self._last_heartbeat
        now, handled = time.monotonic(), self._tools.pushed
        self._last_heartbeat = (now, handled)
        fields = self._identity() | {
            "handled": handled,
            "per_s": round((handled - before) / (now - sent_at), 1) if now > sent_at else 0,
            "lag_ms": 0,
            "idle_ms": int((now - self._renewed_at) * 1000),
            "version": __version__,
            "agents": len(self._agents),
        }
        scripts = self._cell.scripts
        await scripts.run(scripts.worker_heartbeat(self.kind, self._name, fields, ()))

    def _identity(self) -> dict[str, str | int | float]:
        """Return the fields of the worker's record that tell it from another process of the same name."""
        return {"pid": os.getpid(), "host": socket.gethostname(), "started_at": self._started_at}


def shard_of(agent_id: str) -> int:
    """Return the shard of an agent."""
    return crc32(agent_id.encode()) % PUSH_SHARDS
