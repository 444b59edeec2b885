"""HTTP/1.1 of one connection: uvicorn's protocol on httptools, with bounds on heads and without a timer per request.

A head (request line, headers, also trailers) has a maximum size and a time limit, a connection without requests is
closed after a while, and a response is one write. The limits of time are checked by ``sweep``, once a second for all
connections.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from coord import codec
from coord.gateway.errors import status_of
from coord.gateway.failures import ErrorBody
from coord.gateway.schemas import now

#: Maximum size of a head.
HEAD_BYTES = 32 * 1024
#: Maximum number of headers.
HEADERS = 100
#: Seconds for a head to arrive, from its first byte.
HEAD_S = 10.0
#: Seconds that a connection may idle before its first request and between two: longer than in clients, so that the
#: client closes first.
IDLE_S = 75.0

#: After a refusal: how much of what still comes is discarded, and for how many seconds.
DISCARDED_BYTES = 8 * 1024 * 1024
DISCARD_S = 2.0

#: Key of the scope with the function that sends a whole response at once.
RESPOND = "coord.respond"


class Protocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._unparsed = 0  # bytes that came since the last complete head or piece of a body
        self._received = 0  # bytes that came last
        self._in_head = False
        self._since = self.loop.time()  # when the head began, or the last response ended
        self._is_draining = False
        self._is_refused = False

    def data_received(self, data: bytes) -> None:
        """Parse what came, within the bounds of a head."""
        self._received = len(data)
        self._unparsed += self._received
        if self._is_refused:
            if self._unparsed > DISCARDED_BYTES:
                self.transport.abort()
            return
        super().data_received(data)
        if self._unparsed > HEAD_BYTES and not self.transport.is_closing():
            self._refuse("head_too_large", f"the head of the request is over the limit of {HEAD_BYTES} bytes")

    def on_message_begin(self) -> None:
        """Begin a head."""
        super().on_message_begin()
        self._in_head = True
        self._since = self.loop.time()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; trailers of a body are ignored."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Check the head, and start its request."""
        self._in_head = False
        self._unparsed = 0
        if len(self.headers) > HEADERS or (self._received > HEAD_BYTES and self._head_size() > HEAD_BYTES):
            limits = f"{HEAD_BYTES} bytes and {HEADERS} headers"
            self._refuse("head_too_large", f"the head of the request is over the limit of {limits}")
            raise httptools.HttpParserError("head too large")
        previous = self._cycle()
        super().on_headers_complete()
        cycle, scope = self._cycle(), cast("dict[str, Any]", self.scope)
        if cycle is not None and cycle.scope is self.scope:  # not for the handshake of a WebSocket
            if self._is_draining:
                cycle.keep_alive = False
                if previous is not None and self.pipeline and not previous.response_started:
                    previous.keep_alive = True  # it is not the last one any more
            scope[RESPOND] = _Response(cycle).send

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._unparsed = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start the next request that came already; without a timer, as ``sweep`` ends idle connections."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._since = self.loop.time()
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        else:
            self._since = self.loop.time()

    def sweep(self, now_s: float, idle_s: float = IDLE_S) -> None:
        """Close the connection if it idles, or refuse a head that takes too long.

        Args:
            now_s: time on the clock of the loop.
            idle_s: seconds that it may idle.
        """
        if self.transport.is_closing():
            # A response is still being sent: its caller may never read it.
            if self._is_idle() and self.transport.get_write_buffer_size() and now_s - self._since > IDLE_S:
                self.transport.abort()
            return
        if self._is_refused:
            if now_s - self._since > DISCARD_S:
                self.transport.close()
        elif self._in_head:
            if now_s - self._since > HEAD_S:
                self._refuse("head_timeout", f"the head of the request did not arrive within {HEAD_S:g} s")
        elif self._is_idle() and now_s - self._since > idle_s:
            # A caller that does not read would keep it open for ever. In a shutdown it has until that is over.
            if self.transport.get_write_buffer_size() and not self._is_draining:
                self.transport.abort()
            self.transport.close()

    def shutdown(self) -> None:
        """Close the connection after the next response: a request may be on its way already."""
        self._is_draining = True
        if not self._is_idle() and not self.pipeline:
            self.cycle.keep_alive = False

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        if not self.transport.is_closing():
            self._refuse("request_invalid", msg)

    def _refuse(self, code: str, message: str) -> None:
        """Respond with an error, unless another response is on its way, and close the connection.

        What still comes is discarded for a while: closed at once, the connection would be reset, and the caller that is
        still sending would not see the response.
        """
        if self._is_refused:
            return
        self._is_refused = True
        self._since = self.loop.time()
        cycle = self._cycle()
        if not self._is_idle() and self.cycle.response_started:
            self.transport.close()
            return
        if cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()
        status = status_of(code)
        body = codec.encode(ErrorBody(code=code, message=message, detail=message, timestamp=now()))
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def _cycle(self) -> RequestResponseCycle | None:
        """Return the latest request; None before the first, whatever uvicorn's annotation says."""
        return self.cycle

    def _is_idle(self) -> bool:
        cycle = self._cycle()
        return cycle is None or cycle.response_complete

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)


class _Response:
    """Sends the whole response of a request in one write."""

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    def send(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        """Send a response; return False if it has to be sent as events: it has to wait until the caller reads.

        Args:
            status: of the response.
            headers: valid ones; ``content-length`` is among them if there is a body.
            body: of that length.
        """
        cycle = self._cycle
        if cycle.disconnected:
            return True
        if cycle.flow.write_paused or cycle.response_started:
            return False
        cycle.response_started = cycle.response_complete = True
        keep = cycle.keep_alive
        lines = [b"%b: %b\r\n" % header for header in (*cycle.default_headers, *headers)]
        end = b"\r\n" if keep else b"connection: close\r\n\r\n"
        is_head = cycle.scope["method"] == "HEAD"
        cycle.transport.write(b"".join((STATUS_LINE[status], *lines, end, b"" if is_head else body)))
        cycle.message_event.set()
        if not keep:
            cycle.transport.close()
        cycle.on_response()
        return True


def sweep(connections: set[Any], *, idle_s: float = IDLE_S) -> None:
    """Check the limits of time of all connections; those of other protocols have their own."""
    now_s = asyncio.get_running_loop().time()
    for connection in tuple(connections):
        if isinstance(connection, Protocol):
            connection.sweep(now_s, idle_s)
