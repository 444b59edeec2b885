"""Receives the outcomes of a client's tasks and the answers to its facts: from its replies, and from the records.

Replies are hints, records are the truth. A reply may get lost: replies are capped and end after an hour of silence, and
a server may lose its last second. So the record of each awaited task is read every few seconds as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakSet, WeakValueDictionary, ref

from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from coord.background import cancel_and_wait, keep
from coord.client.answers import Answer, AnswerCallback, Answers, Appended, read_answer
from coord.client.outcomes import LazyFuture, Outcome, Watch, closed
from coord.codec import decode_message, encode, parse_submission
from coord.config import Settings
from coord.connection import connect, is_demoted, leave_server
from coord.errors import ResultDropped
from coord.keys import TASK_STREAMS, Keys
from coord.logs import get_logger
from coord.models.ids import entry_ms, entry_order
from coord.models.messages import AgentMessage
from coord.models.tasks import TERMINAL, TaskState, TaskSubmitted

log = get_logger()

#: Seconds between two reads of the record of an awaited task whose outcome will be pushed.
RECORD_INTERVAL_S = 3.0
#: The first such interval for a task whose outcome is not pushed; it doubles up to ``RECORD_INTERVAL_S``.
FIRST_RECORD_INTERVAL_S = 0.05
#: Minimum seconds between two rounds of reads: many records are read together.
ROUND_S = 0.1
#: Records read in one round trip.
CHUNK = 256
#: Outcomes read from records in one round trip, of up to 1 MiB each.
OUTCOMES_CHUNK = 8
#: Replies read at a time.
COUNT = 1_000
#: Answers kept for facts whose entry id is not known yet, and expected answers that may never arrive.
ANSWERS_KEPT = 100_000
#: Before all entries.
BEGINNING = "0"
#: Seconds before reading again while Redis is unavailable.
AWAY_WAIT_S = 0.2

_STATE_OF_REPLY = {b"task." + state.value.encode(): state.value for state in TERMINAL}


class Watcher:
    """Reads the replies of one client on a connection of its own, from its first fact that has an answer."""

    def __init__(self, redis: Redis, url: str, settings: Settings, caller: str) -> None:
        self._redis = redis
        self._url = url
        self._settings = settings
        self._keys = Keys(settings.namespace)
        self._replies = self._keys.replies(caller)
        self._answers = Answers(ANSWERS_KEPT)
        self._watches: WeakValueDictionary[str, Watch] = WeakValueDictionary()
        self._waited_for: dict[Watch, None] = {}
        self._awaited_answers: dict[LazyFuture[Answer], None] = {}  #: of facts that are not submissions
        self._replies_to: dict[bytes, LazyFuture[AgentMessage]] = {}  #: by id of the request
        self._new_waiter = asyncio.Event()
        self._announced: WeakSet[Watch] = WeakSet()  #: their outcome was announced, but only the record holds it
        self._new_announced = asyncio.Event()
        self._newest = BEGINNING  #: newest reply that was read
        self._tasks: list[asyncio.Task[None]] = []

    def watch_submissions(self, facts: Sequence[TaskSubmitted]) -> list[Watch]:
        """Return a watch for each task that is about to be submitted; with ``notify`` its outcome is a reply."""
        self.start()
        watches, newest, made = self._watches, self._newest, list[Watch]()
        for fact in facts:
            task_id = fact.task_id
            watch = Watch(task_id, RECORD_INTERVAL_S if fact.notify else FIRST_RECORD_INTERVAL_S, newest, None)
            if task_id in watches:
                known = watches.get(task_id)
                watch.previous = None if known is None else ref(known)
            watches[task_id] = watch
            made.append(watch)
        return made

    def watch(self, task_id: str) -> Watch:
        """Return the watch on a task that was submitted before, by any client."""
        self.start()
        watch = self._watches.get(task_id)
        if watch is None or watch.outcome.done:
            # The known outcome may be from before the task was retried.
            watch = self._watches[task_id] = Watch(task_id, FIRST_RECORD_INTERVAL_S, self._newest)
        return watch

    def forget(self, task_id: str) -> None:
        """Forget the outcome of a task that was retried; later watches wait for the new one."""
        self._watches.pop(task_id, None)

    async def wait_for_answer(self, fact: Appended, timeout: float) -> Answer | None:
        """Return the answer to a fact; None if there is none within ``timeout`` seconds.

        Raises:
            ConfigError: the client was closed meanwhile.
        """
        self.start()
        answer: LazyFuture[Answer] = LazyFuture()
        self._answers.expect(fact, answer.set_result)
        self._awaited_answers[answer] = None
        try:
            return await asyncio.wait_for(answer.future(), timeout)
        except TimeoutError:
            return None
        finally:
            del self._awaited_answers[answer]

    def end_waits(self) -> None:
        """End all waits for an answer as if their timeouts were over."""
        for answer in list(self._awaited_answers):
            answer.set_exception(TimeoutError())

    def expect(self, stream: str, entry_id: str, callback: AnswerCallback) -> None:
        """Call ``callback`` with each answer to a fact until it returns False; at once with those that came already."""
        self.start()
        self._answers.expect((stream, entry_id), callback)

    def expect_answers(self, fact: Appended, task_ids: Sequence[str]) -> list[LazyFuture[Answer]]:
        """Return the future answer for each of these tasks, all submitted in one ``fact``."""
        self.start()
        answers: list[LazyFuture[Answer]] = [LazyFuture() for _ in task_ids]
        waiting = dict(zip(task_ids, answers, strict=True))

        def receive(answer: Answer) -> bool:
            futures = [waiting.pop(answer.task_id, None)] if answer.task_id else list(waiting.values())
            for future in futures:
                if future is not None:
                    future.set_result(answer)
            return bool(answer.task_id and waiting)

        self._answers.expect(fact, receive)
        return answers

    @contextmanager
    def expecting_reply(self, message_id: str) -> Iterator[LazyFuture[AgentMessage]]:
        """Receive the reply to a request that is about to be sent."""
        self.start()
        reply: LazyFuture[AgentMessage] = LazyFuture()
        self._replies_to[message_id.encode()] = reply
        try:
            yield reply
        finally:
            del self._replies_to[message_id.encode()]

    def start(self) -> None:
        """Start to read, if it has not started yet."""
        if not self._tasks:
            self._tasks = [
                keep("replies.read", self._read_replies),
                keep("records.read", self._read_records),
                keep("records.announced", self._read_announced),
            ]

    async def close(self) -> None:
        """Stop reading; coroutines that wait get a ``ConfigError``."""
        tasks, self._tasks = self._tasks, []
        await cancel_and_wait(*tasks)
        for watch in list(self._waited_for):
            watch.outcome.set_exception(closed())
            watch.taken.set_exception(closed())
        for answer in list(self._awaited_answers):
            answer.set_exception(closed())
        for reply in list(self._replies_to.values()):
            reply.set_exception(closed())

    async def wait(self, watch: Watch, wanted: Sequence[LazyFuture[Any]], timeout: float | None) -> None:
        """Wait for the first of these, which a reply or the record of ``watch`` resolves.

        Raises:
            TimeoutError: none is resolved within ``timeout`` seconds.
            ConfigError: the client was closed meanwhile.
        """
        futures = [lazy.future() for lazy in wanted]
        self.begin_waiting(watch)
        try:
            done, _ = await asyncio.wait(futures, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.end_waiting(watch)
        if not done:
            raise TimeoutError
        for future in done:
            future.result()

    def begin_waiting(self, watch: Watch) -> None:
        """Read the record of a task regularly, until ``end_waiting``."""
        self.start()
        watch.waiters += 1
        if watch.waiters == 1:
            # Repeated short waits do not delay the next read.
            watch.read_at = watch.read_at or asyncio.get_running_loop().time() + watch.interval_s
            self._waited_for[watch] = None
            self._new_waiter.set()

    def end_waiting(self, watch: Watch) -> None:
        """End one ``begin_waiting``."""
        watch.waiters -= 1
        if not watch.waiters:
            self._waited_for.pop(watch, None)

    # Replies.

    async def _read_replies(self) -> None:
        # Without retries: after an error it reads from the beginning, because a fail-over may have rewound the stream.
        redis = connect(self._url, self._settings, retries=0)
        block = self._settings.read_block_ms
        cursor = BEGINNING.encode()
        is_again = False  # True while it reads entries again, or entries as old as those
        try:
            while True:
                try:
                    command = ("XREAD", "COUNT", COUNT, "BLOCK", block, "STREAMS", self._replies, cursor)
                    answer = await redis.execute_command(*command)
                except (redis_errors.RedisError, OSError) as error:
                    log.debug("replies.away", error=str(error))
                    cursor, is_again = BEGINNING.encode(), True
                    if is_demoted(error):
                        await leave_server(redis)
                        await leave_server(self._redis)
                    await asyncio.sleep(AWAY_WAIT_S)
                    continue
                for cursor, fields in (answer or {}).get(self._replies.encode(), [[]])[0]:
                    is_again = is_again and entry_order(cursor.decode()) <= entry_order(self._newest)
                    try:
                        self._handle_reply(fields, cursor.decode() if is_again else None)
                    except Exception:
                        log.exception("reply.unreadable", entry=cursor.decode())
                if not is_again:
                    self._newest = cursor.decode()
        finally:
            await redis.aclose()

    def _handle_reply(self, fields: Mapping[bytes, bytes], again: str | None) -> None:
        """Handle a reply.

        Args:
            fields: of the entry.
            again: the entry id, if the reply is read again; it is not for tasks that are watched since.
        """
        kind = fields.get(b"type", b"")
        state = _STATE_OF_REPLY.get(kind)
        if state is not None:
            watch = self._watches.get(fields[b"task_id"].decode())
            data = fields.get(b"data")
            while watch is not None:
                if again is None or entry_order(again) > entry_order(watch.after):
                    if data is None:
                        self._announced.add(watch)
                        self._new_announced.set()
                    else:
                        watch.outcome.set_result(Outcome(state, data))
                watch = watch.previous() if watch.previous is not None else None
        elif kind == b"fact.answered":
            self._answers.receive(*read_answer(fields))
        elif kind == b"message.received" and (reply := self._replies_to.get(fields.get(b"reply_to", b""))) is not None:
            reply.set_result(decode_message(fields))

    # Records.

    async def _read_announced(self) -> None:
        """Read outcomes that are too large for a reply, as soon as a reply announces them."""
        while True:
            await self._new_announced.wait()
            self._new_announced.clear()
            watches = [watch for watch in self._announced if not watch.outcome.done]
            self._announced.clear()
            for start in range(0, len(watches), OUTCOMES_CHUNK):
                chunk = watches[start : start + OUTCOMES_CHUNK]
                try:
                    await self._read_outcomes(chunk)
                except redis_errors.NoPermissionError as error:
                    log.warning("records.forbidden", error=str(error))
                except (redis_errors.RedisError, OSError) as error:
                    log.debug("records.away", error=str(error))
                    self._announced.update(chunk)
                    self._new_announced.set()
                    await asyncio.sleep(AWAY_WAIT_S)

    async def _read_outcomes(self, watches: list[Watch]) -> None:
        pipe = self._redis.pipeline(transaction=False)
        self._request_states(pipe, watches)
        for watch, values in zip(watches, await pipe.execute(), strict=True):
            if values[0] is None or values[0].decode() in TERMINAL:  # else it was retried since
                _apply_record(watch, values)

    async def _read_records(self) -> None:
        """Read the records of awaited tasks, each when it is due."""
        loop = asyncio.get_running_loop()
        while True:
            self._new_waiter.clear()
            now = loop.time()
            due = [watch for watch in self._waited_for if watch.read_at <= now]
            for start in range(0, len(due), CHUNK):
                chunk = due[start : start + CHUNK]
                try:
                    await self._read_due(chunk)
                except redis_errors.NoPermissionError as error:
                    log.warning("records.forbidden", error=str(error))
                except (redis_errors.RedisError, OSError) as error:
                    log.debug("records.away", error=str(error))
                except Exception:  # the other chunks must be read as well
                    log.exception("background.failed", task="records.read")
                for watch in chunk:
                    watch.interval_s = min(watch.interval_s * 2, RECORD_INTERVAL_S)
                    watch.read_at = loop.time() + watch.interval_s
            await asyncio.sleep(ROUND_S)
            soonest = min((watch.read_at for watch in self._waited_for), default=None)
            wait_s = None if soonest is None else soonest - loop.time()
            if wait_s is None or wait_s > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._new_waiter.wait(), wait_s)

    async def _read_due(self, watches: list[Watch]) -> None:
        """Read the streams of submissions first, then the records.

        A submission that is not in its stream was consumed, and admit wrote its record, or an answer that refuses it,
        in the same script. So once the replies up to then are read, the record is of this submission, and a missing
        record is lost or removed. Before that, a record may be of another submission with the same id.
        """
        watches = [watch for watch in watches if watch.entry is not None]
        untaken = [watch for watch in watches if watch.entry and not watch.taken.done]
        pipe = self._redis.pipeline(transaction=False)
        for watch in untaken:
            pipe.xrange(self._keys.of(watch.stream), watch.entry or "", watch.entry or "")
        pipe.xrevrange(self._replies, count=1)
        self._request_states(pipe, watches)
        answers = await pipe.execute()
        unread, last, states = answers[: len(untaken)], answers[len(untaken)], answers[len(untaken) + 1 :]
        last_reply = last[0][0].decode() if last else BEGINNING
        waiting = {
            watch
            for watch, entries in zip(untaken, unread, strict=True)
            if entries or not self._has_read(watch, last_reply)
        }
        missing: list[Watch] = []
        for watch, values in zip(watches, states, strict=True):
            if values[0] is None and not watch.entry:
                missing.append(watch)
            elif watch not in waiting:
                _apply_record(watch, values)
        if missing:
            await self._read_missing(missing)

    def _has_read(self, watch: Watch, last_reply: str) -> bool:
        """Return True if all replies are read that existed when the submission was first seen to be consumed."""
        if watch.last_reply is None or entry_order(last_reply) < entry_order(watch.last_reply):  # a fail-over lost some
            watch.last_reply = last_reply
        return entry_order(self._newest) >= entry_order(watch.last_reply)

    async def _read_missing(self, missing: list[Watch]) -> None:
        """Decide about tasks of other clients that have no record: still in a stream, or gone.

        Any entry in the streams at the first read may be their submission.
        """
        ends = await self._ends_of_streams()
        gone = [watch for watch in missing if _is_passed(watch, ends)]
        pipe = self._redis.pipeline(transaction=False)
        self._request_states(pipe, gone)
        for watch, values in zip(gone, await pipe.execute(), strict=True):
            _apply_record(watch, values)

    async def _ends_of_streams(self) -> dict[str, tuple[str, str]]:
        """Return the first and the last entry of each stream of submissions that has entries."""
        pipe = self._redis.pipeline(transaction=False)
        for stream in TASK_STREAMS:
            pipe.xrange(self._keys.of(stream), count=1)
            pipe.xrevrange(self._keys.of(stream), count=1)
        answers = await pipe.execute()
        return {
            stream: (first[0][0].decode(), last[0][0].decode())
            for stream, first, last in zip(TASK_STREAMS, answers[::2], answers[1::2], strict=True)
            if first and last
        }

    def _request_states(self, pipe: Pipeline, watches: list[Watch]) -> None:
        for watch in watches:
            pipe.hmget(self._keys.task(watch.task_id), "state", "submission", "result", "error", "dropped")


def _apply_record(watch: Watch, values: list[bytes | None]) -> None:
    """Apply the fields of a record, which are None if there is no record."""
    state, submission, result, error, dropped = values
    if state is None:
        _set_outcome(watch, Outcome("unknown"))
    elif state.decode() == TaskState.COMPLETED and dropped is not None:
        _set_outcome(watch, Outcome(TaskState.COMPLETED, _dropped_error(watch.task_id), is_dropped=True))
    elif state.decode() in TERMINAL:
        _set_outcome(watch, Outcome(state.decode(), result or error or b"null"))
    elif state.decode() == TaskState.REFUSED:
        # Only if it is of this submission or a later one, not of an earlier one that this one replaces.
        since = entry_ms(watch.entry) if watch.entry else 0
        if submission is None or parse_submission(submission.decode()).submitted_at >= since:
            _set_outcome(watch, Outcome(TaskState.REFUSED, error or b"null"))
    else:
        watch.taken.set_result(True)


def _dropped_error(task_id: str) -> bytes:
    """Return the error of a completed task without a result, as JSON."""
    message = (
        f"task '{task_id}' completed, but its result was dropped to free memory on the Redis server; read results "
        "sooner, raise maxmemory, or keep fewer ended tasks (COORD_TERMINAL_ENTRIES, COORD_TERMINAL_TTL_S)"
    )
    return encode({"code": ResultDropped.code, "message": message})


def _set_outcome(watch: Watch, outcome: Outcome) -> None:
    watch.outcome.set_result(outcome)
    watch.taken.set_result(True)


def _is_passed(watch: Watch, ends: Mapping[str, tuple[str, str]]) -> bool:
    """Return True if all entries were consumed that were in the streams when its record was first missing."""
    if watch.stream_ends is None:
        watch.stream_ends = {stream: last for stream, (_, last) in ends.items()}
    firsts = [ends[stream][0] for stream in watch.stream_ends if stream in ends]
    lasts = [watch.stream_ends[stream] for stream in watch.stream_ends if stream in ends]
    return all(entry_order(first) > entry_order(last) for first, last in zip(firsts, lasts, strict=True))
