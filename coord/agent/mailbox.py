"""Messages that wait for their handlers: their order, and which of them may be handled at the same time.

The messages of one sender form a queue: highest lane first, then in their order of arrival. Different queues are
handled concurrently, up to a limit. A message with ``reply_to`` stands in a second queue of its sender, with a limit of
its own, because the handler of another message may be waiting for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush

from msgspec import Struct

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
