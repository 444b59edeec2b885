"""The loop that every worker runs: no appended entry is lost.

Read entries, handle them in one round trip, let the script acknowledge them. If anything fails in between, the entry is
still pending: this process reads its own pending entries again after an error, and takes over those of a dead sibling.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections import Counter
from typing import Any

from redis import exceptions as redis_errors

from coord import __version__, logs
from coord.backoff import Backoff
from coord.connection import is_demoted, leave_server
from coord.keys import CONSUMES
from coord.streams import Consumer, Entry, count_facts
from workers.intake import Intake
from workers.service import Service, Tick, end_tasks

log = logs.get_logger()

#: Seconds between retries while the server is unavailable: the first wait, doubled with each retry, and the longest.
BACKOFF_S = (0.02, 1.0)
#: Unexpected errors of the loop in a row, without a successful turn between them, after which the process ends.
FAILURES = 5
#: A tick that is due while the worker recovers is retried after so many seconds.
UNREADY_S = 0.05
#: Seconds to record that the worker leaves; a server that does not answer does not delay its end for longer.
LEAVING_S = 1.0


class Loop:
    """Runs one service until ``stop`` is called."""

    def __init__(self, service: Service, name: str) -> None:
        self.service = service
        self.cell = service.cell
        self.name = name
        self.consumer = Consumer(self.cell.redis, self.cell.keys, service.kind, name, CONSUMES[service.kind])
        self.intake = Intake(service, self.consumer)
        self._read_limits: dict[str, int] = {}  # stream -> entries of the next read, if fewer than a batch
        self._stopped = asyncio.Event()
        self._interrupt = asyncio.Event()  # interrupts a blocking read
        self._interrupting: asyncio.Task[bool] | None = None  # waits for ``_interrupt``
        self._needs_recovery = True  # nothing has been read yet
        self._has_begun = False
        self._recovery_requests = 0
        self._is_demoted = False  # the server is no longer primary, by the last errors
        self._rounds: set[asyncio.Task[None]] = set()
        self._reading: asyncio.Task[list[Entry]] | None = None  # the next read, if it was started
        self._taken_over_at = 0.0
        self._started_at = int(time.time() * 1000)
        self._round_at = time.monotonic()  # start of the last turn of the loop
        self._last_heartbeat = (time.monotonic(), 0)  # its time, and the facts handled by then
        service.request_recovery = self._request_recovery
        service.name = name

    @property
    def handled(self) -> int:
        """Number of facts that were handled."""
        return self.intake.handled

    def stop(self) -> None:
        """Stop reading, finish what was read, and end."""
        self._stopped.set()
        self._interrupt.set()

    async def stopped(self) -> None:
        """Wait until ``stop`` is called."""
        await self._stopped.wait()

    async def run(self) -> None:
        """Run the loop until ``stop`` is called.

        Raises:
            Exception: the last one, after ``FAILURES`` unexpected errors in a row.
        """
        ticks = {
            **self.service.ticks(),
            "worker_heartbeat": Tick(self.cell.settings.presence_ttl_s / 3, self._send_heartbeat),
        }
        ticking = [asyncio.create_task(self._tick(name, tick)) for name, tick in ticks.items()]
        backoff, failures = Backoff(*BACKOFF_S), 0
        try:
            await self.service.start()
            while not self._stopped.is_set():
                self._round_at = time.monotonic()
                try:
                    if self._needs_recovery:
                        await self._recover()
                    await self._take_over()
                    await self._begin(await self._read_new())
                    backoff.reset()
                    failures = 0
                    continue
                except (redis_errors.RedisError, OSError) as error:
                    self._interrupted(error)
                except Exception:
                    failures += 1
                    log.exception("worker.failed", in_a_row=failures)
                    if failures >= FAILURES:
                        raise
                    self._request_recovery()
                await self._pause(backoff.next_s())
            await self._leave()
        finally:
            await self._end_reading()
            await end_tasks(*ticking, *self._rounds, *([self._interrupting] if self._interrupting else []))
            await self.service.stop()
            await self._end_presence()

    async def _recover(self) -> None:
        """Recover after an error: create groups, load scripts, then handle the entries that were not acknowledged."""
        await self._end_reading()
        await self._finish_rounds()
        if self._is_demoted:
            self._is_demoted = False
            await leave_server(self.cell.redis)
        before = self._recovery_requests
        self._interrupt.clear()
        await self.cell.scripts.load()
        await self.consumer.make_groups()
        self.service.deferred.clear()
        await self.service.resync()
        self.consumer.select(self.service.streams())
        taken = await self.consumer.claim_all(self.service.owned_streams())
        self._needs_recovery = self._recovery_requests != before
        if taken:
            log.info("worker.took_over", entries=taken)
        # Entries pending at the start were left by an earlier process of this name. One of them, or of those that were
        # taken over, may have killed it.
        await self._handle_pending(alone=taken > 0 or not self._has_begun)
        self._has_begun = True

    async def _handle_pending(self, *, alone: bool) -> None:
        """Handle each entry that is pending under this name once; one that fails again waits until it is taken over."""
        seen: set[tuple[str, str]] = set()
        while True:
            found = await self.consumer.read_pending(min(self._read_limits.values(), default=self.cell.settings.batch))
            entries = [entry for entry in found if (entry.stream, entry.id) not in seen]
            if not entries:
                return
            seen.update((entry.stream, entry.id) for entry in entries)
            if alone:
                await self.intake.handle_alone(entries)
                continue
            for batch in self._batches(entries):
                await self.intake.handle(batch)

    async def _take_over(self) -> None:
        """Take over entries that a sibling left pending, one at a time, because one of them may have killed it."""
        idle_ms = self.cell.settings.reclaim_idle_ms
        if time.monotonic() - self._taken_over_at < idle_ms / 2000:
            return
        self._taken_over_at = time.monotonic()
        await self._finish_rounds()
        entries = await self.consumer.claim_idle(idle_ms, self.cell.settings.batch)
        entries = [entry for entry in entries if (entry.stream, entry.id) not in self.service.deferred]
        if entries:
            log.info("worker.took_over", entries=len(entries))
            await self.intake.handle_alone(entries)

    async def _read_new(self) -> list[Entry]:
        if self._reading is None:
            self._reading = self._read()
        if self._interrupting is None or self._interrupting.done():
            self._interrupting = asyncio.create_task(self._interrupt.wait())
        reading = self._reading
        try:
            await asyncio.wait({reading, self._interrupting}, return_when=asyncio.FIRST_COMPLETED)
            return reading.result() if reading.done() else []
        finally:
            if reading.done():
                self._reading = None
            else:
                await self._end_reading()

    def _read(self, sent: asyncio.Future[None] | None = None) -> asyncio.Task[list[Entry]]:
        settings = self.cell.settings
        reading = self.consumer.read_new(settings.batch, settings.read_block_ms, sent, self._read_limits)
        return asyncio.create_task(reading)

    async def _read_ahead(self) -> None:
        """Start the next read; return when the command has been sent."""
        sent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reading = self._read(sent)
        waits: list[asyncio.Future[Any]] = [self._reading, sent]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)

    async def _end_reading(self) -> None:
        """Cancel the read that is under way. Entries that it would have returned stay pending, and are read again."""
        reading, self._reading = self._reading, None
        if reading is not None:
            await end_tasks(reading)

    async def _begin(self, entries: list[Entry]) -> None:
        """Start a round for each batch; at most ``depth`` rounds are in flight."""
        read = Counter([entry.stream for entry in entries])
        is_full = any(
            count >= self._read_limits.get(stream, self.cell.settings.batch) for stream, count in read.items()
        )
        batches = self._batches(entries)
        # After a full read more entries wait. Requested now, they arrive while the server handles these.
        if is_full and not self._stopped.is_set():
            await self._read_ahead()
        for batch in batches:
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
        except Exception:
            log.exception("round.failed", entries=len(entries))
            self._request_recovery()  # the entries are still pending, and are read again

    def _batches(self, entries: list[Entry]) -> list[list[Entry]]:
        """Return batches of bounded bytes and number of facts; also set how many entries to read next time."""
        settings = self.cell.settings
        counts = [count_facts(entry) for entry in entries]
        facts = sum(counts)
        share = facts / max(1, -(-facts // settings.batch))  # batches of similar size
        batches: list[list[Entry]] = []
        size = number = all_before = 0
        of_stream: dict[str, tuple[int, int, int]] = {}  # entries, facts and bytes
        for entry, count in zip(entries, counts, strict=True):
            weight = sum(map(len, entry.fields.values()))
            before = of_stream.get(entry.stream, (0, 0, 0))
            of_stream[entry.stream] = (before[0] + 1, before[1] + count, before[2] + weight)
            is_whole = all_before + count / 2 > share * len(batches) or number + count > settings.batch
            if is_whole or size + weight > settings.batch_bytes:
                batches.append([])
                size = number = 0
            batches[-1].append(entry)
            size += weight
            number += count
            all_before += count
        self._read_limits = {
            stream: max(1, min(settings.batch * read // facts, settings.batch_bytes * read // max(1, total)))
            for stream, (read, facts, total) in of_stream.items()
            if facts > read or total * settings.batch > settings.batch_bytes * read
        }
        return batches

    async def _finish_rounds(self) -> None:
        while self._rounds:
            await asyncio.wait(self._rounds)

    async def _leave(self) -> None:
        """Finish what was read, so that no sibling has to take it over."""
        await self._finish_rounds()
        await self._end_reading()
        try:
            await self._handle_pending(alone=False)
        except (redis_errors.RedisError, OSError) as error:
            log.warning("worker.left_some", error=f"{type(error).__name__}: {error}"[-300:])
        except Exception:
            log.exception("worker.failed", while_="leaving")

    def _request_recovery(self) -> None:
        self._needs_recovery = True
        self._recovery_requests += 1
        self._interrupt.set()

    def _interrupted(self, error: Exception) -> None:
        log.warning("worker.interrupted", error=f"{type(error).__name__}: {error}"[-300:])
        self._is_demoted = self._is_demoted or is_demoted(error)
        self._request_recovery()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)

    async def _tick(self, name: str, tick: Tick) -> None:
        while True:
            waits_s = tick.every_s
            try:
                if self._needs_recovery:
                    waits_s = min(waits_s, UNREADY_S)
                else:
                    await tick.act()
            except (redis_errors.RedisError, OSError) as error:
                self._interrupted(error)
            except Exception:
                log.exception("tick.failed", tick=name)
            await asyncio.sleep(waits_s)

    async def _send_heartbeat(self) -> None:
        sent_at, handled = self._last_heartbeat
        now = time.monotonic()
        self._last_heartbeat = (now, self.intake.handled)
        fields = self._identity() | {
            "handled": self.intake.handled,
            "per_s": round((self.intake.handled - handled) / (now - sent_at), 1) if now > sent_at else 0,
            "lag_ms": self.intake.lag_ms,
            "idle_ms": int((now - self._round_at) * 1000),
            "version": __version__,
            "require_tokens": "on" if self.cell.settings.require_tokens else "off",
            **self.service.heartbeat_fields(),
        }
        scripts = self.cell.scripts
        kind = self.service.kind
        (names,) = await scripts.run(scripts.worker_heartbeat(kind, self.name, fields, CONSUMES[kind]))
        self.service.know_siblings([name for name in names if name != self.name])

    async def _end_presence(self) -> None:
        """Record that this worker has left: its siblings and operators need not wait until its record expires."""
        scripts, kind = self.cell.scripts, self.service.kind
        with contextlib.suppress(redis_errors.RedisError, OSError):  # TimeoutError is an OSError
            async with asyncio.timeout(LEAVING_S):
                await scripts.run(scripts.worker_heartbeat(kind, self.name, self._identity(), (), is_leaving=True))

    def _identity(self) -> dict[str, str | int | float]:
        """Return the fields of the worker's record that tell it from another process of the same name."""
        return {"pid": os.getpid(), "host": socket.gethostname(), "started_at": self._started_at}
