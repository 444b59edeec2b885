"""HTTP/1.1 of one connection: uvicorn's protocol on httptools, with bounds on heads and without a timer per request.

A head (request line, headers, also trailers) has a maximum size and a time limit, a connection without requests is
closed after a while, and a response is one write. The limits of time are checked by ``sweep``, once a second for all
connections.

Requests that come before the responses to earlier ones (pipelining) wait in ``pipeline``. An invalid one is refused
after the responses to those before it.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from coord import codec
from coord.gateway.draining import HEAD_S
from coord.gateway.errors import status_of
from coord.gateway.failures import RETRY_AFTER, ErrorBody
from coord.gateway.schemas import now
from coord.gateway.transports import abort

#: Maximum size of a head.
HEAD_BYTES = 32 * 1024
#: Maximum number of headers.
HEADERS = 100
#: Seconds that a connection may idle before its first request and between two: longer than in clients, so that the
#: client closes first.
IDLE_S = 75.0

#: After a refusal: how much of what still comes is discarded, and for how many seconds.
DISCARDED_BYTES = 8 * 1024 * 1024
DISCARD_S = 2.0

#: Maximum number of requests that wait on a connection for the responses to earlier ones.
PIPELINED = 100
#: A caller has to read this many bytes of its responses in this many seconds, if more wait for it.
READ_BYTES, READ_S = 256 * 1024, 30.0
#: The same for a stream while the gateway shuts down; before that, its listener has limits of its own.
DRAINED_STREAM_S = 2.0

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
        self._is_refused = False  # what still comes is discarded
        self._refusal = b""  # is sent after the responses to earlier requests
        self._active: RequestResponseCycle | None = None  # the request that is at work, or was last
        self._reading: RequestResponseCycle | None = None  # the request whose body arrives
        self._blocked_since = 0.0  # when the caller began to read too slowly, and how much it had to read then
        self._unsent = 0

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the request at work, and forget those that wait."""
        super().connection_lost(exc)
        self.pipeline.clear()
        if self._active is not None and not self._active.response_complete:
            _disconnect(self._active)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection of a caller that sends no more, until it has its responses.

        One that waits for an entry or an event is taken to be gone: a closed connection looks the same.
        """
        active = self._active
        if active is None or active.disconnected or self._is_idle() or self._reading is not None:
            return False
        if active.message_event._waiters:  # noqa: SLF001 (there is no other way)
            return False
        self.cycle.keep_alive = False
        return True

    def pause_writing(self) -> None:
        """Let responses wait until the caller has read some."""
        super().pause_writing()
        self._blocked_since, self._unsent = self.loop.time(), self.transport.get_write_buffer_size()

    def resume_writing(self) -> None:
        """Let responses go on; the connection begins to idle now, if it does."""
        super().resume_writing()
        if self._is_idle():
            self._since = self.loop.time()

    def handle_websocket_upgrade(self) -> None:
        """Change to the protocol of WebSockets, if all requests have their responses."""
        if self._is_idle():
            super().handle_websocket_upgrade()
        else:
            self._refuse("request_invalid", "the handshake of a WebSocket came before the response to a request")

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
        self._reading = None
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
        if len(self.pipeline) >= PIPELINED:
            self._refuse("overloaded", f"{PIPELINED} requests of this connection wait; read their responses first")
            raise httptools.HttpParserError("too many requests")
        self._check_head()
        previous = self._cycle()
        super().on_headers_complete()
        cycle, scope = self._cycle(), cast("dict[str, Any]", self.scope)
        if cycle is not None and cycle.scope is self.scope:  # not for the handshake of a WebSocket
            self._reading = cycle
            if self.parser.should_upgrade():
                cycle.keep_alive = False  # the parser reads no further
            if self._is_draining:
                cycle.keep_alive = False
                if previous is not None and self.pipeline and not previous.response_started:
                    previous.keep_alive = True  # it is not the last one any more
            scope[RESPOND] = _Response(cycle).send

    def _should_upgrade(self) -> bool:
        return bool(super()._should_upgrade()) and self.parser.get_method() == b"GET"

    def _check_head(self) -> None:
        """Refuse several hosts, and a body after an unknown Upgrade (ignored otherwise), which the parser skips."""
        names = [name for name, _ in self.headers]
        if names.count(b"host") > 1:
            self._refuse("request_invalid", "the request has more than one Host header; send one")
            raise httptools.HttpParserError("several hosts")
        if self.parser.should_upgrade() and not self._should_upgrade():
            length = dict(self.headers).get(b"content-length", b"0")
            if length != b"0" or b"transfer-encoding" in names:
                self._refuse("request_invalid", "the header Upgrade is not supported; send the request without it")
                raise httptools.HttpParserError("unknown upgrade")

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._unparsed = 0
        self._reading = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start the next request that came already; without a timer, as ``sweep`` ends idle connections."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._since = self.loop.time()
            return
        if self.pipeline:  # reading goes on when they have their responses
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
            return
        self.flow.resume_reading()
        self._since = self.loop.time()
        if self._refusal:
            self._send_refusal()

    def sweep(self, now_s: float, idle_s: float) -> None:
        """Close the connection if it idles or its caller does not read, or refuse a head that takes too long.

        Args:
            now_s: time on the clock of the loop.
            idle_s: seconds that it may idle.
        """
        if self.flow.write_paused:
            self._check_reading(now_s)
        elif self.transport.is_closing():
            # A response is still being sent: its caller may never read it.
            if self._is_idle() and self.transport.get_write_buffer_size() and now_s - self._since > IDLE_S:
                self.transport.abort()
        elif self._is_refused:
            if not self._refusal and now_s - self._since > DISCARD_S:
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
        if not self._is_idle():
            self.cycle.keep_alive = False

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        if not self.transport.is_closing():
            self._refuse("request_invalid", msg)

    def _refuse(self, code: str, message: str) -> None:
        """Refuse what is being read, after the responses to earlier requests; close the connection then."""
        if self._is_refused:
            return
        self._is_refused = True
        reading, self._reading = self._reading, None
        if reading is not None and reading.response_started:
            # It has its response, or a part of it: another one would be taken for that to the next request.
            self.transport.close()
            return
        status = status_of(code)
        body = codec.encode(ErrorBody(code=code, message=message, detail=message, timestamp=now()))
        head = [b"content-type: application/json", b"content-length: %d" % len(body), b"connection: close"]
        if code in RETRY_AFTER:
            head.append(b"retry-after: %d" % RETRY_AFTER[code])
        self._refusal = STATUS_LINE[status] + b"\r\n".join((*head, b"", body))
        if self.pipeline and self.pipeline[0][0] is reading:
            self.pipeline.popleft()
        elif reading is not None:
            _disconnect(reading)
            self._send_refusal()
            return
        if self._is_idle():
            self._send_refusal()

    def _send_refusal(self) -> None:
        """Send the refusal, and end the connection.

        What still comes is discarded for a while: closed at once, the connection would be reset, and the caller that is
        still sending would not see the response.
        """
        self._since = self.loop.time()
        self.transport.write(self._refusal)
        self._refusal = b""
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def _check_reading(self, now_s: float) -> None:
        """End the connection if the caller has read too little of what waits for it, while writing is paused."""
        blocked_s = now_s - self._blocked_since
        active = self._active
        if active is not None and active.chunked_encoding and not active.response_complete:  # a stream
            if self._is_draining and blocked_s > DRAINED_STREAM_S:
                abort(self.transport)
        elif blocked_s > READ_S:
            before, self._unsent = self._unsent, self.transport.get_write_buffer_size()
            self._blocked_since = now_s
            if self._unsent > before - READ_BYTES:
                abort(self.transport)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active = cycle
        super()._start_asgi_task(cycle, app)

    def _cycle(self) -> RequestResponseCycle | None:
        """Return the latest request; None before the first, whatever uvicorn's annotation says."""
        return self.cycle

    def _is_idle(self) -> bool:
        return not self.pipeline and (self._active is None or self._active.response_complete)

    def _head_size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)


def _disconnect(cycle: RequestResponseCycle) -> None:
    """Let a request find that its caller has gone."""
    cycle.disconnected = True
    cycle.message_event.set()


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
    """Check the limits of time of all connections, also of those that changed to a WebSocket."""
    now_s = asyncio.get_running_loop().time()
    for connection in tuple(connections):
        connection.sweep(now_s, idle_s)
