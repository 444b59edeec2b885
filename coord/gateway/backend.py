"""What the gateway asks of the SDK: one client for all requests, and a limit on how long Redis may take.

The client is opened beside the requests: a gateway that starts before Redis answers 503 until that is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple

from redis.exceptions import RedisError

from coord import Client, logs, queries
from coord.aio import end
from coord.background import run_once
from coord.client.handle import TaskHandle
from coord.client.submission import TaskSpec
from coord.config import Settings
from coord.errors import AgentNotFound, CoordError, ResultTimeout, ServerFull, ServerUnavailable, UnknownAgent
from coord.gateway.times import of_entry
from coord.models.agents import AgentRecord, AgentStatus
from coord.models.facts import AgentHeartbeat, AgentRegistered, AgentStatusChanged
from coord.models.tasks import TaskRecord

log = logs.get_logger()

#: How long one try to open the client may take: where Redis is may be announced meanwhile.
OPEN_S = 2.0
#: Between two tries.
OPEN_AGAIN_S = 0.2
#: Statuses with which an agent leaves: a beat after one of them would be a stranger's.
LEAVING = frozenset({AgentStatus.INACTIVE, AgentStatus.STALE})


class Written(NamedTuple):
    """A fact is in its stream."""

    at: str  #: ISO 8601, by Redis's clock
    answered: bool  #: its worker has taken it; else it waits for one


class Backend:
    """The gateway's client."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._client: Client | None = None
        self._opening: asyncio.Task[None] | None = None

    def open(self, failed: Callable[[CoordError], None]) -> None:
        """Begin to look for Redis; ``failed`` is called with what no waiting mends, such as a wrong password."""
        self._opening = run_once("gateway.open", lambda: self._open(failed))

    async def close(self) -> None:
        """Disconnect."""
        await end(self._opening)
        if self._client is not None:
            await self._client.close()

    @property
    def client(self) -> Client:
        """The client; raises ``ServerUnavailable`` until Redis was there once."""
        if self._client is None:
            raise ServerUnavailable("Redis is not there yet")
        return self._client

    async def register(self, fact: AgentRegistered, wait_s: float) -> Written:
        """Register an agent, or refresh it."""
        async with self._limited(wait_s):
            told = await self.client.tell("in:registry", fact, wait=wait_s)
        return Written(of_entry(told.entry_id), told.answered)

    async def beat(
        self, agent_id: str, status: AgentStatus | None, load_metrics: Mapping[str, float], wait_s: float
    ) -> Written:
        """A beat, and a change of status where the agent says another than is recorded.

        Raises:
            AgentNotFound: it is not registered, or left.
        """
        metrics = dict(load_metrics)
        async with self._limited(2 * wait_s):
            if status is not None and status in LEAVING:
                return await self._change(agent_id, status, metrics, wait_s)
            try:
                told = await self.client.tell("in:beats", AgentHeartbeat(agent_id, load_metrics=metrics), wait=wait_s)
            except UnknownAgent:
                raise AgentNotFound(f"Agent '{agent_id}' not found") from None
            if status is not None and await self._changes(agent_id, status):
                return await self._change(agent_id, status, metrics, wait_s)
        return Written(of_entry(told.entry_id), told.answered)

    async def _change(self, agent_id: str, status: AgentStatus, metrics: dict[str, float], wait_s: float) -> Written:
        change = AgentStatusChanged(agent_id, status, load_metrics=metrics)
        told = await self.client.tell("in:registry", change, wait=wait_s)
        return Written(of_entry(told.entry_id), told.answered)

    async def _changes(self, agent_id: str, status: AgentStatus) -> bool:
        """Whether a beat with this status says something new: one that is told to drain may go on saying active."""
        recorded = (await self.client.agent(agent_id)).status
        return recorded != status and (recorded, status) != (AgentStatus.DRAINING, AgentStatus.ACTIVE)

    async def submit(self, spec: TaskSpec, wait_s: float) -> Written:
        """Submit a task; ``spec`` has its id.

        Raises:
            TaskRefused: the backlog is full.
            IdConflict: the id was used before with other content.
        """
        async with self._limited(wait_s, f"; repeating it is safe with task_data.task_id '{spec.task_id}'"):
            (handle,) = await self.client.submit_many([spec])
            answered = wait_s > 0 and await _is_accepted(handle, wait_s)
        return Written(of_entry(handle.entry_id), answered)

    async def agent(self, agent_id: str) -> AgentRecord:
        """An agent's record; raises ``AgentNotFound``."""
        async with self._limited():
            return await self.client.agent(agent_id)

    async def task(self, task_id: str) -> TaskRecord:
        """A task's record; raises ``TaskNotFound``."""
        async with self._limited():
            return await self.client.task(task_id)

    async def workers(self) -> dict[str, int]:
        """How many workers of each kind there are; raises what redis-py raises."""
        client = self.client
        return await queries.workers_present(client.redis, client.keys, int(self.settings.presence_ttl_s * 1000))

    async def write_refusal(self) -> str:
        """Return why Redis refuses writes, or ''; raises what redis-py raises."""
        return await queries.write_refusal(self.client.redis)

    @asynccontextmanager
    async def _limited(self, wait_s: float = 0, advice: str = "") -> AsyncIterator[None]:
        """Whatever is wrong with Redis becomes ``ServerUnavailable``; so does its silence."""
        limit = self.settings.gateway_redis_s + wait_s
        try:
            async with asyncio.timeout(limit):
                yield
        except TimeoutError:
            raise ServerUnavailable(f"Redis did not answer within {limit:g} s{advice}") from None
        except (RedisError, OSError) as error:
            log.warning("redis.refuses", error=str(error))
            raise ServerUnavailable(f"Redis does not do what it was asked to: {error}{advice}") from error
        except ServerUnavailable as error:
            raise ServerUnavailable(f"{error}{advice}") from error

    async def _open(self, failed: Callable[[CoordError], None]) -> None:
        logged = ""
        while True:
            client = Client(settings=self.settings, reach_s=OPEN_S)
            try:
                await client.open()
            except (ServerUnavailable, ServerFull) as error:
                log.debug("redis.awaited", error=str(error))
            except CoordError as error:
                failed(error)
                return
            except Exception as error:
                # Whatever it is, it must not leave the gateway closed for ever.
                if repr(error) != logged:
                    logged = repr(error)
                    log.exception("background.failed", task="gateway.open")
            else:
                self._client = client
                log.info("redis.found")
                return
            await asyncio.sleep(OPEN_AGAIN_S)


async def _is_accepted(handle: TaskHandle, wait_s: float) -> bool:
    try:
        await handle.accepted(wait_s)
    except ResultTimeout:
        return False
    return True
