"""Messages to an agent: their order, their handlers, and their end.

``Mailbox`` decides the order, and which messages may be handled at the same time. The messages of one sender form a
queue: highest lane first, then in their order of arrival. Different queues are handled concurrently, up to a limit. A
message with ``reply_to`` stands in a second queue of its sender, with a limit of its own, because the handler of
another message may be waiting for it.

``MessageRunner`` calls the handlers and deletes a message when they are done. Delivery is at-least-once until the
message expires: a message whose handler fails is tried three times, one that a handler puts off (``Retryable`` with
``after``) is tried again until it expires, and a message that was being handled during a crash is handled again by the
next process. No handler starts after the expiry.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from heapq import heappop, heappush
from typing import Any

from msgspec import Struct

from coord.agent.handlers import call_caught, describe, is_async, name_of
from coord.agent.requests import Requests, failure
from coord.agent.task import NonRetryable, Retryable
from coord.background import CANCEL_S
from coord.codec import BAD_JSON, decode_message
from coord.context import Work, current_work
from coord.keys import Keys
from coord.logs import get_logger
from coord.models.messages import AgentMessage
from coord.models.tasks import Lane
from coord.pipeline import pack
from coord.reconnect import ReconnectingConnection
from coord.redis_protocol import ErrorAnswer

Fields = Mapping[bytes, bytes]
QueueName = tuple[bytes, bool]  #: the sender, and whether these are its replies


class WaitingMessage(Struct, eq=False):
    """One message, from the read of its inbox entry until it is handled."""

    lane: int
    entry: bytes
    fields: Fields | None  #: None: they are read again
    queue: QueueName = (b"", False)
    number: int = 0  #: in the order of arrival
    next_handler: int = 0  #: index of the handler that is called next
    failures: int = 0  #: of that handler
    put_off: int = 0  #: how often a handler has put it off
    has_started: bool = False  #: a handler was called, and has not put it off
    is_expired: bool = False  #: it expired unread


class _Queue(Struct, eq=False):
    """The waiting messages of one sender, as a heap."""

    waiting: list[tuple[int, int, WaitingMessage]]  #: lane, number, message
    is_busy: bool = False  #: a message of it is being handled


class Mailbox:
    """The waiting messages of one agent.

    Args:
        limit: maximum number of messages that are handled concurrently, and of replies. With 1, all messages form one
            queue.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._count = 0
        self._queues: dict[QueueName, _Queue] = {}
        #: For messages and for replies: the first of each queue that is not busy. Outdated entries are skipped.
        self._ready: tuple[list[tuple[int, int, QueueName]], list[tuple[int, int, QueueName]]] = ([], [])
        self._handled = [0, 0]

    def add(self, message: WaitingMessage, fields: Fields) -> None:
        """Add a message that was read."""
        self._count += 1
        message.number = self._count
        if self._limit > 1:
            message.queue = (fields.get(b"sender_id", b""), b"reply_to" in fields)
        self.add_again(message)

    def add_again(self, message: WaitingMessage) -> None:
        """Add a message that was put off; it is older than all that arrived after it."""
        queue = self._queues.setdefault(message.queue, _Queue([]))
        heappush(queue.waiting, (message.lane, message.number, message))
        if not queue.is_busy and queue.waiting[0][2] is message:
            heappush(self._ready[message.queue[1]], (message.lane, message.number, message.queue))

    def take(self) -> WaitingMessage | None:
        """Return the next message to handle, until ``release``; None while there is none."""
        for is_reply in (True, False):
            ready = self._ready[is_reply]
            while ready and self._handled[is_reply] < self._limit:
                lane, number, name = heappop(ready)
                queue = self._queues.get(name)
                if queue is not None and not queue.is_busy and queue.waiting[0][:2] == (lane, number):
                    queue.is_busy = True
                    self._handled[is_reply] += 1
                    return heappop(queue.waiting)[2]
        return None

    def release(self, message: WaitingMessage) -> None:
        """Let the next message of its queue be taken."""
        name = message.queue
        queue = self._queues[name]
        queue.is_busy = False
        self._handled[name[1]] -= 1
        if queue.waiting:
            lane, number, _ = queue.waiting[0]
            heappush(self._ready[name[1]], (lane, number, name))
        else:
            del self._queues[name]


log = get_logger()

#: Messages that are kept in memory as a whole; of those behind them only the entry id is kept, and they are read again.
HELD = 64
#: Seconds before the second and the third try of a message whose handler failed.
RETRY_WAITS_S = (0.2, 1.0)
#: Shortest time in seconds for which a handler can put off a message.
MIN_PUT_OFF_S = 0.05
#: Seconds before a message is read again that the server refused to return.
READ_AGAIN_S = 1.0

MessageHandler = Callable[[AgentMessage], Any]


class MessageHandlers(Struct, frozen=True):
    """The handlers of an agent's messages; several are called in their order."""

    messages: Sequence[MessageHandler] = ()
    replies: Sequence[MessageHandler] = ()  #: for replies that no coroutine waits for; empty: the others get them
    request: MessageHandler | None = None  #: returns the reply to a request; None: the others get requests


class MessageRunner:
    """The messages of one agent process.

    Args:
        agent_id: id of the agent.
        link: the connection for writes.
        keys: of the cell.
        handlers: called with the messages.
        requests: sends the replies to requests.
        now_ms: returns the server's time in milliseconds since 1970.
        concurrency: maximum number of messages that are handled concurrently, see ``Mailbox``.
    """

    def __init__(
        self,
        agent_id: str,
        link: ReconnectingConnection,
        keys: Keys,
        *,
        handlers: MessageHandlers,
        requests: Requests,
        now_ms: Callable[[], float],
        concurrency: int,
    ) -> None:
        self._agent_id = agent_id
        self._link = link
        self._handlers = [(handler, is_async(handler)) for handler in handlers.messages]
        self._reply_handlers = [(handler, is_async(handler)) for handler in handlers.replies]
        self._request_handler = (handlers.request, is_async(handlers.request)) if handlers.request else None
        self._requests = requests
        # Threads of their own: if handlers of tasks occupy all others, one of them may be waiting for a message.
        self._threads = ThreadPoolExecutor(2 * concurrency, thread_name_prefix=f"{agent_id}-messages")
        self._in_threads: set[asyncio.Future[Any]] = set()
        self._now_ms = now_ms
        self._streams = [keys.inbox(agent_id, lane) for lane in Lane]
        self._loop = asyncio.get_running_loop()
        self._mailbox = Mailbox(concurrency)
        self._known: set[tuple[int, bytes]] = set()
        self._held = 0
        self._is_starting = False
        self._is_closed = False
        self._is_cancelled = False
        self._handling: set[asyncio.Task[None]] = set()
        self._put_off: set[asyncio.TimerHandle] = set()
        self._awaited: dict[asyncio.Future[Any], MessageHandler] = {}  # the async handlers, by the tasks that call them

    def take(self, lane: int, entry: bytes, fields: Fields) -> None:
        """Accept a message that was read."""
        if (lane, entry) in self._known or self._is_closed:
            return
        self._known.add((lane, entry))
        if b"reply_by" not in fields and not self._has_handler(fields):
            message_id = fields.get(b"id", b"").decode("utf-8", "replace")
            log.warning(
                "message.dropped", agent_id=self._agent_id, message_id=message_id, why="the agent has no on_message"
            )
            self._delete(lane, entry)
            return
        kept = fields if self._held < HELD else None
        self._held += kept is not None
        self._mailbox.add(WaitingMessage(lane, entry, kept), fields)
        self._start_soon()

    def _has_handler(self, fields: Fields) -> bool:
        """Return True if there is a handler for a message that is no request."""
        return bool(self._handlers or (b"reply_to" in fields and self._reply_handlers))

    @property
    def waiting(self) -> int:
        """Number of messages that are read and not done with."""
        return len(self._known)

    @property
    def has_abandoned(self) -> bool:
        """True, after ``close``, if a handler did not end and may still run."""
        return bool(self._in_threads or self._handling)

    def runs(self, task: asyncio.Future[Any]) -> bool:
        """Return True if this is an asyncio task that calls handlers."""
        return task in self._handling

    def handler_of(self, task: asyncio.Future[Any]) -> str:
        """Return the name of the handler that an asyncio task runs, or ""; may be called from any thread."""
        handler = self._awaited.get(task)
        return name_of(handler) if handler is not None else ""

    async def close(self, grace_s: float | None) -> None:
        """Start no further message; running handlers have ``grace_s`` seconds, then they are cancelled, once.

        Args:
            grace_s: None for no limit.
        """
        self._is_closed = True
        for timer in self._put_off:
            timer.cancel()
        self._put_off.clear()
        handling = list(self._handling)
        if handling and not self._is_cancelled:
            await asyncio.wait(handling, timeout=grace_s)
            self._is_cancelled = True
            for task in handling:
                task.cancel()
            await asyncio.wait(handling, timeout=CANCEL_S)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _start_soon(self) -> None:
        """Start messages when the whole batch is read, because the highest lane comes first."""
        if not self._is_starting:
            self._is_starting = True
            self._loop.call_soon(self._start)

    def _start(self) -> None:
        self._is_starting = False
        while not self._is_closed and (waiting := self._mailbox.take()) is not None:
            task = asyncio.create_task(self._handle(waiting))
            self._handling.add(task)
            task.add_done_callback(self._handling.discard)

    async def _handle(self, waiting: WaitingMessage) -> None:
        lane, entry = waiting.lane, waiting.entry
        kept, waiting.fields = waiting.fields, None
        self._held -= kept is not None
        wait_s: float | None = None
        try:
            fields = kept if kept is not None else await self._read_again(lane, entry)
            if fields is not None and (message := self._message(entry, fields)) is not None:
                current_work.set(Work(message.id, message.traceparent))
                with self._deleted_at_expiry(waiting, message):
                    if message.reply_by is not None and (self._request_handler is not None or not self._handlers):
                        wait_s = await self._answer(waiting, message)
                    else:
                        wait_s = await self._call_handlers(waiting, message)
        except ErrorAnswer as error:
            log.warning("inbox.refused", agent_id=self._agent_id, error=str(error))
            wait_s = READ_AGAIN_S
        except Exception:  # a defect of the SDK must not hold up the other messages
            log.exception("background.failed", task="messages.handle", entry=entry.decode())
            self._known.discard((lane, entry))  # it stays in the inbox and is read again after a reconnect
            return
        finally:
            self._mailbox.release(waiting)
            self._start_soon()
        if waiting.is_expired:
            self._known.discard((lane, entry))  # it is left to the router, which records that it expired
        elif wait_s is None:
            self._delete(lane, entry)
        elif not self._is_closed:
            self._add_later(waiting, wait_s)

    @contextmanager
    def _deleted_at_expiry(self, waiting: WaitingMessage, message: AgentMessage) -> Iterator[None]:
        """Delete a message that expires while its handlers run: it did not expire unread."""
        left_s = max(0.0, message.expires_at - self._now_ms()) / 1000
        timer = self._loop.call_later(left_s, self._delete, waiting.lane, waiting.entry)
        try:
            yield
        finally:
            timer.cancel()

    def _add_later(self, waiting: WaitingMessage, wait_s: float) -> None:
        """Handle a message again after a wait, in which it occupies nothing and later messages pass it."""

        def add() -> None:
            self._put_off.discard(timer)
            self._mailbox.add_again(waiting)
            self._start_soon()

        timer = self._loop.call_later(wait_s, add)
        self._put_off.add(timer)

    def _message(self, entry: bytes, fields: Fields) -> AgentMessage | None:
        try:
            return decode_message(fields)
        except (KeyError, ValueError, *BAD_JSON) as error:
            log.error(  # noqa: TRY400 -- the message is enough
                "message.unreadable", agent_id=self._agent_id, entry=entry.decode(), error=repr(error)
            )
            return None

    async def _call_handlers(self, waiting: WaitingMessage, message: AgentMessage) -> float | None:
        """Call the handlers that have not handled the message yet.

        Returns:
            The seconds after which to continue, if a handler puts the message off; None when it is done.
        """
        handlers = self._reply_handlers if message.reply_to is not None and self._reply_handlers else self._handlers
        while waiting.next_handler < len(handlers):
            if self._now_ms() >= message.expires_at:
                self._log_expired(waiting, message)
                return None
            waiting.has_started = True
            _, error = await self._call_handler(*handlers[waiting.next_handler], message)
            if isinstance(error, Retryable) and error.after is not None:
                return self._seconds_off(waiting, message, error)
            if error is not None:
                log.error("message.handler_failed", agent_id=self._agent_id, message_id=message.id, exc_info=error)
                if not isinstance(error, NonRetryable) and waiting.failures < len(RETRY_WAITS_S):
                    wait_s = RETRY_WAITS_S[waiting.failures]
                    waiting.failures += 1
                    await asyncio.sleep(wait_s)
                    continue
                log.error("message.given_up", agent_id=self._agent_id, message_id=message.id)
            waiting.next_handler += 1
            waiting.failures = 0
        return None

    async def _answer(self, waiting: WaitingMessage, message: AgentMessage) -> float | None:
        """Call the handler of requests and send what it returns, or why it failed.

        Returns:
            The seconds after which to continue, if the handler puts the request off; None when it is done.
        """
        if self._now_ms() >= message.expires_at:
            self._log_expired(waiting, message)
            return None
        if self._request_handler is None:
            why = f"agent '{self._agent_id}' has no handler for requests; register one with @agent.on_request"
            await self._requests.reply(message, failure("no_handler", why), failed=True)
            return None
        waiting.has_started = True
        result, error = await self._call_handler(*self._request_handler, message)
        if isinstance(error, Retryable) and error.after is not None:
            return self._seconds_off(waiting, message, error)
        if error is None:
            await self._requests.reply(message, result)
        elif isinstance(error, NonRetryable | Retryable):
            await self._requests.reply(message, failure(error.code, error.message, error.detail), failed=True)
        else:
            log.error("message.handler_failed", agent_id=self._agent_id, message_id=message.id, exc_info=error)
            await self._requests.reply(message, failure("handler_failed", describe(error)), failed=True)
        return None

    def _seconds_off(self, waiting: WaitingMessage, message: AgentMessage, error: Retryable) -> float:
        """Return the seconds for which a handler puts a message off, at most until it expires."""
        waiting.put_off += 1
        waiting.has_started = waiting.next_handler > 0
        wait_s = max(error.after or 0.0, MIN_PUT_OFF_S)
        log.info(
            "message.put_off",
            agent_id=self._agent_id, message_id=message.id, why=str(error), times=waiting.put_off, seconds=wait_s,
        )  # fmt: skip
        left_s = (message.expires_at - self._now_ms()) / 1000 + 0.001
        return min(wait_s, max(left_s, 0.0))

    def _log_expired(self, waiting: WaitingMessage, message: AgentMessage) -> None:
        waiting.is_expired = not waiting.has_started
        write = log.warning if waiting.put_off else log.info
        write("message.expired", agent_id=self._agent_id, message_id=message.id, put_off=waiting.put_off)

    async def _call_handler(
        self, handler: MessageHandler, is_coroutine: bool, message: AgentMessage
    ) -> tuple[Any, BaseException | None]:
        """Call a handler and return its result, or what it raised."""
        return await (self._await(handler, message) if is_coroutine else self._call(handler, message))

    async def _await(self, handler: MessageHandler, message: AgentMessage) -> tuple[Any, BaseException | None]:
        """Call an async handler and return its result, or what it raised, of any kind."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 -- for the type checker: a coroutine runs in a task
        self._awaited[task] = handler
        try:
            return await handler(message), None
        except BaseException as error:
            if self._is_closed and isinstance(error, asyncio.CancelledError):
                raise  # its grace is over
            return None, error
        finally:
            del self._awaited[task]

    async def _call(self, handler: MessageHandler, message: AgentMessage) -> tuple[Any, BaseException | None]:
        """Call a handler in a thread and return its result, or what it raised."""
        within = copy_context().run  # the thread continues the work of this task
        called = self._loop.run_in_executor(self._threads, within, call_caught, handler, (message,))
        self._in_threads.add(called)  # and stays there if this task is cancelled while the thread continues
        outcome: tuple[Any, BaseException | None] = await called
        self._in_threads.discard(called)
        return outcome

    async def _read_again(self, lane: int, entry: bytes) -> Fields | None:
        """Return the fields of an entry, or None if it is gone.

        Raises:
            ErrorAnswer: the server refuses to return it.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        self._link.send_until_answered(pack(("XRANGE", self._streams[lane], entry, entry)), _resolve, future)
        answer = await future
        if isinstance(answer, ErrorAnswer):
            raise answer
        if not answer:
            return None
        pairs = iter(answer[0][1])
        return dict(zip(pairs, pairs, strict=True))

    def _delete(self, lane: int, entry: bytes) -> None:
        self._link.send_until_answered(pack(("XDEL", self._streams[lane], entry)), self._deleted, (lane, entry))

    def _deleted(self, place: tuple[int, bytes], _answer: Any) -> None:
        self._known.discard(place)


def _resolve(future: asyncio.Future[Any], answer: Any) -> None:
    if not future.done():
        future.set_result(answer)
