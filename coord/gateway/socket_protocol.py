"""WebSocket of one connection: uvicorn's protocol with bounds on frames, and an end after the frame at work."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from coord.gateway.transports import abort

#: Maximum size of a message of a caller that only listens: a filter has up to 300 values.
LISTENER_BYTES = 64 * 1024
#: Seconds for a message to arrive, from its first byte.
MESSAGE_S = 30.0
#: Seconds for the caller to confirm the end.
CLOSE_S = 2.0
#: Close code of a message that took too long (RFC 6455: policy violation).
TOO_SLOW = 1008
#: Close code of a gateway that shuts down: connect again, with the last position.
SHUTDOWN = 1012


class SocketProtocol(WebSocketsSansIOProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.close_timeout = CLOSE_S
        self.conn.max_message_size = LISTENER_BYTES
        self._unfinished_since: float | None = None  # a message has begun to arrive
        self._ending_since: float | None = None

    def allow_large_frames(self) -> None:
        """Let messages be as large as the body of a request."""
        self.conn.max_message_size = self.config.ws_max_size

    def sweep(self, now_s: float, _idle_s: float) -> None:
        """End the connection if a message takes too long, or if its end does."""
        if self.close_sent or self.transport.is_closing():
            self._ending_since = self._ending_since or now_s
            if now_s - self._ending_since > 2 * CLOSE_S:
                abort(self.transport)
        elif self.read_paused or not (self.conn.reader.buffer or self.frames):
            self._unfinished_since = None
        elif self._unfinished_since is None:
            self._unfinished_since = now_s
        elif now_s - self._unfinished_since > MESSAGE_S:
            self.conn.fail(TOO_SLOW, f"the message did not arrive within {MESSAGE_S:g} s")
            self.handle_parser_exception()

    def shutdown(self) -> None:
        """Let the handler end the connection, after the frame at work."""
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": SHUTDOWN})
