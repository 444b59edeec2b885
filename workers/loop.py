"""The loop that every worker runs: what is promised to an entry that was appended.

Read, handle in one round trip, let the script acknowledge. Whatever goes wrong in between, the entry is still
pending: this process re-reads what is its own after an error, and takes over what a dead sibling left.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time

from redis import exceptions as redis_errors

from coord import __version__, logs
from coord.keys import CONSUMES
from coord.streams import Consumer, Entry
from workers.intake import Intake
from workers.service import Service, Tick

log = logs.get_logger()

#: Between attempts to go on while the server is away: from the first to the last, in seconds.
BACKOFF_S = (0.02, 1.0)


class Loop:
    """Runs one service until ``stop`` is called."""

    def __init__(self, service: Service, name: str) -> None:
        self.service = service
        self.cell = service.cell
        self.name = name
        self.consumer = Consumer(self.cell.redis, self.cell.keys, service.kind, name, CONSUMES[service.kind])
        self.intake = Intake(service, self.consumer)
        self._count = self.cell.settings.batch
        self._stopped = asyncio.Event()
        self._attention = asyncio.Event()  # cuts a waiting read short
        self._dirty = True  # nothing is known yet
        self._disturbances = 0
        self._rounds: set[asyncio.Task[None]] = set()
        self._taken_over_at = 0.0
        self._started_at = int(time.time() * 1000)
        service.disturbed = self._disturb

    def stop(self) -> None:
        """Read nothing more, finish what was read, end."""
        self._stopped.set()
        self._attention.set()

    async def run(self) -> None:
        """The loop."""
        ticks = {**self.service.ticks(), "presence": Tick(self.cell.settings.presence_ttl_s / 3, self._say_present)}
        ticking = [asyncio.create_task(self._tick(name, tick)) for name, tick in ticks.items()]
        backoff, longest = BACKOFF_S
        try:
            await self.service.start()
            while not self._stopped.is_set():
                try:
                    if self._dirty:
                        await self._recover()
                    await self._take_over()
                    await self._begin(await self._read_new())
                    backoff = BACKOFF_S[0]
                except (redis_errors.RedisError, OSError) as error:
                    self._interrupted(error)
                    await self._pause(backoff)
                    backoff = min(backoff * 2, longest)
            await self._leave()
        finally:
            for task in [*ticking, *self._rounds]:
                task.cancel()
            await asyncio.gather(*ticking, *self._rounds, return_exceptions=True)
            await self.service.stop()

    async def _recover(self) -> None:
        """After an error: make sure that groups and scripts exist, then handle what was read and not acknowledged."""
        await self._finish_rounds()
        before = self._disturbances
        self._attention.clear()
        await self.cell.scripts.load()
        await self.consumer.make_groups()
        self.service.held.clear()
        await self.service.resync()
        self._dirty = self._disturbances != before
        while entries := await self.consumer.own_pending(self.cell.settings.batch):
            if not await self.intake.handle(entries):
                break

    async def _take_over(self) -> None:
        """Now and then: what a sibling left unacknowledged, one entry at a time, for one of them may have killed it."""
        idle_ms = self.cell.settings.reclaim_idle_ms
        if time.monotonic() - self._taken_over_at < idle_ms / 2000:
            return
        self._taken_over_at = time.monotonic()
        await self._finish_rounds()
        entries = await self.consumer.claim_idle(idle_ms, self.cell.settings.batch)
        entries = [entry for entry in entries if entry.id not in self.service.held]
        if entries:
            log.info("worker.took_over", entries=len(entries))
            await self.intake.handle_alone(entries)

    async def _read_new(self) -> list[Entry]:
        reading = asyncio.ensure_future(self.consumer.read_new(self._count, self.cell.settings.read_block_ms))
        attention = asyncio.ensure_future(self._attention.wait())
        await asyncio.wait({reading, attention}, return_when=asyncio.FIRST_COMPLETED)
        attention.cancel()
        if reading.done():
            return reading.result()
        # What a read that is cut off was about to bring stays pending, and is re-read as one's own.
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError, redis_errors.RedisError, OSError):
            await reading
        return []

    async def _begin(self, entries: list[Entry]) -> None:
        """Begin a round for each batch; at most ``depth`` rounds are in flight."""
        for batch in self._batches(entries):
            while len(self._rounds) >= self.service.depth:
                await asyncio.wait(self._rounds, return_when=asyncio.FIRST_COMPLETED)
            round_ = asyncio.create_task(self._round(batch))
            self._rounds.add(round_)
            round_.add_done_callback(self._rounds.discard)
        if self.service.depth == 1:
            await self._finish_rounds()

    async def _round(self, entries: list[Entry]) -> None:
        try:
            await self.intake.handle(entries)
        except (redis_errors.RedisError, OSError) as error:
            self._interrupted(error)

    def _batches(self, entries: list[Entry]) -> list[list[Entry]]:
        """Batches of bounded number and bytes; also learns how many entries to read next time."""
        settings = self.cell.settings
        batches: list[list[Entry]] = []
        size, total = 0, 0
        for entry in entries:
            weight = sum(map(len, entry.fields.values()))
            total += weight
            if not batches or len(batches[-1]) >= settings.batch or size + weight > settings.batch_bytes:
                batches.append([])
                size = 0
            batches[-1].append(entry)
            size += weight
        if entries:
            fitting = settings.batch_bytes * len(entries) // max(1, total)
            self._count = max(1, min(settings.batch, fitting))
        return batches

    async def _finish_rounds(self) -> None:
        while self._rounds:
            await asyncio.wait(self._rounds)

    async def _leave(self) -> None:
        """Finish what was read, so that nobody has to wait until it counts as left behind."""
        await self._finish_rounds()
        with contextlib.suppress(redis_errors.RedisError, OSError):
            if entries := await self.consumer.own_pending(self.cell.settings.batch):
                await self.intake.handle(entries)

    def _disturb(self) -> None:
        self._dirty = True
        self._disturbances += 1
        self._attention.set()

    def _interrupted(self, error: Exception) -> None:
        log.warning("worker.interrupted", error=(str(error) or type(error).__name__)[-300:])
        self._disturb()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)

    async def _tick(self, name: str, tick: Tick) -> None:
        while True:
            try:
                if not self._dirty:
                    await tick.act()
            except (redis_errors.RedisError, OSError) as error:
                self._interrupted(error)
            except Exception:
                log.exception("tick.failed", tick=name)
            await asyncio.sleep(tick.every_s)

    async def _say_present(self) -> None:
        fields: dict[str, str | int | float] = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started_at": self._started_at,
            "handled": self.intake.handled,
            "lag_ms": self.intake.lag_ms,
            "version": __version__,
        }
        scripts = self.cell.scripts
        await scripts.run(scripts.present(self.service.kind, self.name, fields, CONSUMES[self.service.kind]))
