"""Outcomes of a client's tasks and answers to its facts: read from its replies, and from the records where those fail.

Replies are a hint, records are the truth: an outcome may never be told (replies are capped and end with an hour's
silence, a server may lose its last second), so tasks that someone waits for are looked up every few seconds too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakSet, WeakValueDictionary, ref

from redis import exceptions as redis_errors
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline

from coord.aio import end
from coord.background import keep
from coord.client.answers import Answer, Answers, Appended, read_answer
from coord.client.handle import Outcome, Watch, closed
from coord.client.outcomes import LazyFuture
from coord.codec import encode, parse_submission
from coord.config import Settings
from coord.connection import connect, is_demoted, leave_server
from coord.errors import ResultDropped
from coord.keys import TASK_STREAMS, Keys
from coord.logs import get_logger
from coord.models.ids import entry_ms, entry_order
from coord.models.tasks import TERMINAL, TaskState, TaskSubmitted

log = get_logger()

#: Between two looks at the record of a task that someone waits for and whose outcome will be told.
LOOK_S = 3.0
#: The first such interval for a task whose outcome is not told; it doubles up to ``LOOK_S``.
FIRST_LOOK_S = 0.05
#: Between two rounds of looks at least: many tasks are looked up together.
ROUND_S = 0.1
#: Records looked up in one round trip.
CHUNK = 256
#: Outcomes read from records in one round trip, of up to 1 MiB each.
OUTCOMES_CHUNK = 8
#: Replies read at a time.
COUNT = 1_000
#: Answers kept for facts whose entry id is not known yet, and waits for answers that may never come.
ANSWERS_KEPT = 100_000
#: Before all entries.
BEGINNING = "0"
#: Before reading again after Redis was away.
AWAY_WAIT_S = 0.2

_STATE_TOLD = {b"task." + state.value.encode(): state.value for state in TERMINAL}


class Watcher:
    """Reads one client's replies, with its own connection, from the first fact on that wants an answer."""

    def __init__(self, redis: Redis, url: str, settings: Settings, caller: str) -> None:
        self._redis = redis
        self._url = url
        self._settings = settings
        self._keys = Keys(settings.namespace)
        self._replies = self._keys.replies(caller)
        self._answers = Answers(ANSWERS_KEPT)
        self._watches: WeakValueDictionary[str, Watch] = WeakValueDictionary()
        self._waited_for: dict[Watch, None] = {}
        self._asked: dict[LazyFuture[Answer], None] = {}  #: those that are waited for, of no task's
        self._new_waiter = asyncio.Event()
        self._announced: WeakSet[Watch] = WeakSet()  #: those whose outcome a reply has told of, and only a record holds
        self._new_announced = asyncio.Event()
        self._newest = BEGINNING  #: of all replies that were read
        self._tasks: list[asyncio.Task[None]] = []

    def watch_submissions(self, facts: Sequence[TaskSubmitted]) -> list[Watch]:
        """A watch on each task that is about to be submitted; with ``notify`` its outcome will be in the replies."""
        self.start()
        watches, newest, made = self._watches, self._newest, list[Watch]()
        for fact in facts:
            task_id = fact.task_id
            watch = Watch(task_id, LOOK_S if fact.notify else FIRST_LOOK_S, newest, None)
            if task_id in watches:
                known = watches.get(task_id)
                watch.earlier = None if known is None else ref(known)
            watches[task_id] = watch
            made.append(watch)
        return made

    def watch(self, task_id: str) -> Watch:
        """The watch on a task that was submitted before, by whomever."""
        self.start()
        watch = self._watches.get(task_id)
        if watch is None or watch.outcome.is_here:
            # What is known may be from before somebody set the task going again.
            watch = self._watches[task_id] = Watch(task_id, FIRST_LOOK_S, self._newest)
        return watch

    def begin_anew(self, task_id: str) -> None:
        """The task's outcome is known and will be another one: who watches it from now on waits for that."""
        self._watches.pop(task_id, None)

    async def ask(self, fact: Appended, timeout: float) -> Answer | None:
        """The answer to a fact; None when there was none within ``timeout`` seconds.

        Raises:
            ConfigError: the client was closed meanwhile.
        """
        self.start()
        answer: LazyFuture[Answer] = LazyFuture()
        self._answers.expect(fact, answer.tell)
        self._asked[answer] = None
        try:
            return await asyncio.wait_for(answer.future(), timeout)
        except TimeoutError:
            return None
        finally:
            del self._asked[answer]

    def answers(self, fact: Appended, task_ids: Sequence[str]) -> list[LazyFuture[Answer]]:
        """What is answered of each of these tasks, all submitted in one ``fact``."""
        self.start()
        answers: list[LazyFuture[Answer]] = [LazyFuture() for _ in task_ids]
        waiting = dict(zip(task_ids, answers, strict=True))

        def take(answer: Answer) -> bool:
            about = [waiting.pop(answer.task_id, None)] if answer.task_id else list(waiting.values())
            for one in about:
                if one is not None:
                    one.tell(answer)
            return bool(answer.task_id and waiting)

        self._answers.expect(fact, take)
        return answers

    def start(self) -> None:
        """Begin to read, unless it has begun."""
        if not self._tasks:
            self._tasks = [
                keep("replies.read", self._read),
                keep("records.look", self._look),
                keep("records.announced", self._read_announced),
            ]

    async def close(self) -> None:
        """Stop reading; whoever waits is told that the client was closed."""
        tasks, self._tasks = self._tasks, []
        await end(*tasks)
        for watch in list(self._waited_for):
            watch.outcome.give_up(closed())
            watch.taken.give_up(closed())
        for answer in list(self._asked):
            answer.give_up(closed())

    async def wait(self, watch: Watch, wanted: Sequence[LazyFuture[Any]], timeout: float | None) -> None:
        """Wait for the first of these, which the replies or a look at the record of ``watch`` will resolve.

        Raises:
            TimeoutError: not within ``timeout`` seconds.
            ConfigError: the client was closed meanwhile.
        """
        futures = [one.future() for one in wanted]
        self.begin_waiting(watch)
        try:
            done, _ = await asyncio.wait(futures, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.end_waiting(watch)
        if not done:
            raise TimeoutError
        for one in done:
            one.result()

    def begin_waiting(self, watch: Watch) -> None:
        """Someone waits for it: its record is looked at from now on."""
        self.start()
        watch.waiters += 1
        if watch.waiters == 1:
            # Where somebody asks again and again, each time for a moment, the look that is due is not put off.
            watch.look_at = watch.look_at or asyncio.get_running_loop().time() + watch.interval_s
            self._waited_for[watch] = None
            self._new_waiter.set()

    def end_waiting(self, watch: Watch) -> None:
        """One who waited for it does so no more."""
        watch.waiters -= 1
        if not watch.waiters:
            self._waited_for.pop(watch, None)

    # Replies.

    async def _read(self) -> None:
        # Without retries: after an error it reads from the beginning, in case a fail-over rewound the stream.
        redis = connect(self._url, self._settings, retries=0)
        block = self._settings.read_block_ms
        cursor = BEGINNING.encode()
        is_again = False  # what is read was read before, or is as old as that
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
                        self._arrived(fields, cursor.decode() if is_again else None)
                    except Exception:
                        log.exception("reply.unreadable", entry=cursor.decode())
                if not is_again:
                    self._newest = cursor.decode()
        finally:
            await redis.aclose()

    def _arrived(self, fields: Mapping[bytes, bytes], again: str | None) -> None:
        """A reply was read; ``again``: its entry id, where whoever began to watch since is not meant by it."""
        kind = fields.get(b"type", b"")
        state = _STATE_TOLD.get(kind)
        if state is not None:
            watch = self._watches.get(fields[b"task_id"].decode())
            data = fields.get(b"data")
            while watch is not None:
                if again is None or entry_order(again) > entry_order(watch.after):
                    if data is None:
                        self._announced.add(watch)
                        self._new_announced.set()
                    else:
                        watch.outcome.tell(Outcome(state, data))
                watch = watch.earlier() if watch.earlier is not None else None
        elif kind == b"fact.answered":
            self._answers.arrived(*read_answer(fields))

    # Records.

    async def _read_announced(self) -> None:
        """Read the outcomes that are too large for a reply, as soon as a reply tells of them."""
        while True:
            await self._new_announced.wait()
            self._new_announced.clear()
            watches = [watch for watch in self._announced if not watch.outcome.is_here]
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
        self._ask_states(pipe, watches)
        for watch, values in zip(watches, await pipe.execute(), strict=True):
            if values[0] is None or values[0].decode() in TERMINAL:  # else it was set going again since
                _found(watch, values)

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._new_waiter.clear()
            now = loop.time()
            due = [watch for watch in self._waited_for if watch.look_at <= now]
            for start in range(0, len(due), CHUNK):
                chunk = due[start : start + CHUNK]
                try:
                    await self._look_at(chunk)
                except redis_errors.NoPermissionError as error:
                    log.warning("records.forbidden", error=str(error))
                except (redis_errors.RedisError, OSError) as error:
                    log.debug("records.away", error=str(error))
                except Exception:  # the others are to be looked at as well
                    log.exception("background.failed", task="records.look")
                for watch in chunk:
                    watch.interval_s = min(watch.interval_s * 2, LOOK_S)
                    watch.look_at = loop.time() + watch.interval_s
            await asyncio.sleep(ROUND_S)
            soonest = min((watch.look_at for watch in self._waited_for), default=None)
            wait_s = None if soonest is None else soonest - loop.time()
            if wait_s is None or wait_s > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._new_waiter.wait(), wait_s)

    async def _look_at(self, watches: list[Watch]) -> None:
        """The streams are looked at before the records.

        A submission that is not in its stream was consumed, and admit wrote its record, or an answer that turns it
        down, in the same script. So once the replies up to then are read, the record is of this submission, and one
        that is not there is lost or forgotten. Before that, a record may be of another submission under the same id.
        """
        watches = [watch for watch in watches if watch.entry is not None]
        untaken = [watch for watch in watches if watch.entry and not watch.taken.is_here]
        pipe = self._redis.pipeline(transaction=False)
        for watch in untaken:
            pipe.xrange(self._keys.of(watch.stream), watch.entry or "", watch.entry or "")
        pipe.xrevrange(self._replies, count=1)
        self._ask_states(pipe, watches)
        answers = await pipe.execute()
        lying, last, states = answers[: len(untaken)], answers[len(untaken)], answers[len(untaken) + 1 :]
        last_reply = last[0][0].decode() if last else BEGINNING
        waiting = {
            watch
            for watch, entries in zip(untaken, lying, strict=True)
            if entries or not self._has_read(watch, last_reply)
        }
        missing: list[Watch] = []
        for watch, values in zip(watches, states, strict=True):
            if values[0] is None and not watch.entry:
                missing.append(watch)
            elif watch not in waiting:
                _found(watch, values)
        if missing:
            await self._look_for(missing)

    def _has_read(self, watch: Watch, last_reply: str) -> bool:
        """Whether all is read that had been replied when its submission was first seen to be consumed."""
        # Earlier than before: a fail-over lost some.
        if watch.last_reply is None or entry_order(last_reply) < entry_order(watch.last_reply):
            watch.last_reply = last_reply
        return entry_order(self._newest) >= entry_order(watch.last_reply)

    async def _look_for(self, missing: list[Watch]) -> None:
        """Tasks of someone else's without a record: still in a stream, or gone.

        Any of the entries that lie in the streams at the first look may be theirs.
        """
        ends = await self._ends_of_streams()
        gone = [watch for watch in missing if _is_passed(watch, ends)]
        pipe = self._redis.pipeline(transaction=False)
        self._ask_states(pipe, gone)
        for watch, values in zip(gone, await pipe.execute(), strict=True):
            _found(watch, values)

    async def _ends_of_streams(self) -> dict[str, tuple[str, str]]:
        """The first and the last entry of each stream of submissions that has any."""
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

    def _ask_states(self, pipe: Pipeline, watches: list[Watch]) -> None:
        for watch in watches:
            pipe.hmget(self._keys.task(watch.task_id), "state", "submission", "result", "error", "dropped")


def _found(watch: Watch, values: list[bytes | None]) -> None:
    """What the record says, or that there is none."""
    state, submission, result, error, dropped = values
    if state is None:
        _ended(watch, Outcome("unknown"))
    elif state.decode() == TaskState.COMPLETED and dropped is not None:
        _ended(watch, Outcome(TaskState.COMPLETED, _dropped(watch.task_id), is_dropped=True))
    elif state.decode() in TERMINAL:
        _ended(watch, Outcome(state.decode(), result or error or b"null"))
    elif state.decode() == TaskState.REFUSED:
        # Of this submission or a later one, not of an earlier one that this one replaces.
        since = entry_ms(watch.entry) if watch.entry else 0
        if submission is None or parse_submission(submission.decode()).submitted_at >= since:
            _ended(watch, Outcome(TaskState.REFUSED, error or b"null"))
    else:
        watch.taken.tell(True)


def _dropped(task_id: str) -> bytes:
    """The error of a completed task without result, as JSON."""
    message = (
        f"task '{task_id}' completed, but its result was dropped to free memory on the Redis server; read results "
        "sooner, raise maxmemory, or keep fewer ended tasks (COORD_TERMINAL_ENTRIES, COORD_TERMINAL_TTL_S)"
    )
    return encode({"code": ResultDropped.code, "message": message})


def _ended(watch: Watch, outcome: Outcome) -> None:
    watch.outcome.tell(outcome)
    watch.taken.tell(True)


def _is_passed(watch: Watch, ends: Mapping[str, tuple[str, str]]) -> bool:
    """Whether all that lay in the streams when its record was first missed was consumed since."""
    if watch.behind is None:
        watch.behind = {stream: last for stream, (_, last) in ends.items()}
    waits = [ends[stream][0] for stream in watch.behind if stream in ends]
    lasts = [watch.behind[stream] for stream in watch.behind if stream in ends]
    return all(entry_order(first) > entry_order(last) for first, last in zip(waits, lasts, strict=True))
