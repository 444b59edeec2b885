"""Messages to an agent: handled one after the other, highest lane first, and deleted when their handler is done.

Delivery is at-least-once until the message expires: a message whose handler fails is tried three times, and a message
that was being handled during a crash is handled again by the next process. No handler starts after the expiry.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from coord.agent.handlers import call_caught, is_async
from coord.agent.reconnect import ReconnectingConnection
from coord.aio import CANCEL_S
from coord.codec import BAD_JSON, decode_json
from coord.keys import Keys
from coord.logs import get_logger
from coord.models.messages import AgentMessage
from coord.models.tasks import Lane
from coord.pipeline import pack

log = get_logger()

#: Messages that are kept in memory as a whole; of those behind them only the entry id is kept, and they are read again.
HELD = 64
#: Seconds before the second and the third try of a message whose handler failed.
RETRY_WAITS_S = (0.2, 1.0)

MessageHandler = Callable[[AgentMessage], Any]
Fields = Mapping[bytes, bytes]


class MessageRunner:
    """The messages of one agent process.

    Args:
        agent_id: id of the agent.
        link: the connection for writes.
        keys: of the cell.
        handlers: called in this order with each message.
        now_ms: returns the server's time in milliseconds since 1970.
    """

    def __init__(
        self,
        agent_id: str,
        link: ReconnectingConnection,
        keys: Keys,
        *,
        handlers: Sequence[MessageHandler],
        now_ms: Callable[[], float],
    ) -> None:
        self._agent_id = agent_id
        self._link = link
        self._handlers = [(handler, is_async(handler)) for handler in handlers]
        # A thread of its own: if handlers of tasks occupy all others, one of them may be waiting for a message.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"{agent_id}-messages")
        self._in_thread: asyncio.Future[Any] | None = None
        self._now_ms = now_ms
        self._streams = [keys.inbox(agent_id, lane) for lane in Lane]
        self._queues: list[deque[tuple[bytes, Fields | None]]] = [deque() for _ in Lane]
        self._known: set[tuple[int, bytes]] = set()
        self._held = 0
        self._is_closed = False
        self._is_cancelled = False
        self._handling: asyncio.Task[None] | None = None

    def take(self, lane: int, entry: bytes, fields: Fields) -> None:
        """Accept a message that was read."""
        if (lane, entry) in self._known or self._is_closed:
            return
        self._known.add((lane, entry))
        if not self._handlers:
            message_id = fields.get(b"id", b"").decode("utf-8", "replace")
            log.warning(
                "message.dropped", agent_id=self._agent_id, message_id=message_id, why="the agent has no on_message"
            )
            self._delete(lane, entry)
            return
        kept = fields if self._held < HELD else None
        self._held += kept is not None
        self._queues[lane].append((entry, kept))
        if self._handling is None:
            self._handling = asyncio.create_task(self._handle_all())

    @property
    def has_abandoned(self) -> bool:
        """True, after ``close``, if a handler did not end and may still run."""
        return self._in_thread is not None or self._handling is not None

    def runs(self, task: asyncio.Future[Any]) -> bool:
        """Return True if this is the asyncio task that calls the handlers."""
        return self._handling is task

    async def close(self, grace_s: float) -> None:
        """Start no further message; the current handler has ``grace_s`` seconds, then it is cancelled, once."""
        self._is_closed = True
        handling = self._handling
        if handling is not None and not self._is_cancelled:
            await asyncio.wait([handling], timeout=grace_s)
            self._is_cancelled = True
            handling.cancel()
            await asyncio.wait([handling], timeout=CANCEL_S)
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _handle_all(self) -> None:
        try:
            while not self._is_closed and (lane := self._next_lane()) is not None:
                entry, kept = self._queues[lane].popleft()
                self._held -= kept is not None
                try:
                    fields = kept if kept is not None else await self._read_again(lane, entry)
                    if fields is not None and (message := self._message(entry, fields)) is not None:
                        await self._handle(message)
                except Exception:  # a defect of the SDK must not hold up the other messages
                    log.exception("background.failed", task="messages.handle", entry=entry.decode())
                    self._known.discard((lane, entry))  # it stays in the inbox and is read again after a reconnect
                    continue
                self._delete(lane, entry)
        finally:
            self._handling = None

    def _next_lane(self) -> int | None:
        return next((lane for lane, queue in enumerate(self._queues) if queue), None)

    def _message(self, entry: bytes, fields: Fields) -> AgentMessage | None:
        try:
            return message_of(fields)
        except (KeyError, ValueError, *BAD_JSON) as error:
            log.error(  # noqa: TRY400 -- the message is enough
                "message.unreadable", agent_id=self._agent_id, entry=entry.decode(), error=repr(error)
            )
            return None

    async def _handle(self, message: AgentMessage) -> None:
        for handler, is_coroutine in self._handlers:
            for wait_s in (*RETRY_WAITS_S, None):
                if self._now_ms() >= message.expires_at:
                    log.info("message.expired", agent_id=self._agent_id, message_id=message.id)
                    return
                error = await (self._await(handler, message) if is_coroutine else self._call(handler, message))
                if error is None:
                    break
                log.error("message.handler_failed", agent_id=self._agent_id, message_id=message.id, exc_info=error)
                if wait_s is None:
                    log.error("message.given_up", agent_id=self._agent_id, message_id=message.id)
                else:
                    await asyncio.sleep(wait_s)

    async def _await(self, handler: MessageHandler, message: AgentMessage) -> BaseException | None:
        """Call an async handler and return what it raised, of any kind."""
        try:
            await handler(message)
        except BaseException as error:
            if self._is_closed and isinstance(error, asyncio.CancelledError):
                raise  # its grace is over
            return error
        return None

    async def _call(self, handler: MessageHandler, message: AgentMessage) -> BaseException | None:
        """Call a handler in a thread and return what it raised."""
        self._in_thread = asyncio.get_running_loop().run_in_executor(self._thread, call_caught, handler, (message,))
        error: BaseException | None
        _, error = await self._in_thread
        self._in_thread = None
        return error

    async def _read_again(self, lane: int, entry: bytes) -> Fields | None:
        """Return the fields of an entry, or None if it is gone or cannot be read now."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._link.send_until_answered(pack(("XRANGE", self._streams[lane], entry, entry)), _resolve, future)
        answer = await future
        if not isinstance(answer, list) or not answer:
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


def message_of(fields: Fields) -> AgentMessage:
    """Return the message of an inbox entry."""
    text = {name.decode(): value.decode("utf-8", "replace") for name, value in fields.items() if name != b"data"}
    return AgentMessage(
        id=text["id"],
        sender_id=text["sender_id"],
        receiver_id=text["receiver_id"],
        message_type=text["message_type"],
        priority=text["priority"],
        timestamp=int(text["timestamp"]),
        expires_at=int(text["expires_at"]),
        payload=decode_json(fields[b"data"]),
        correlation_id=text.get("correlation_id"),
        reply_to=text.get("reply_to"),
    )
