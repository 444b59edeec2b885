"""What asyncio's transports leave to the socket: how much of a response the system keeps, and an end without a rest."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import Any


def limit_unread(transport: Any, size: int) -> None:
    """Limit the bytes that the system keeps for a caller that does not read; it would take megabytes."""
    _set_option(transport, socket.SO_SNDBUF, size)


def abort(transport: Any) -> None:
    """Close a connection at once; what the caller has not read is dropped."""
    # Without this the system would keep what is unread for minutes.
    _set_option(transport, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def _set_option(transport: Any, option: int, value: int | bytes) -> None:
    """Set an option of the socket; of one that is closed, event loops raise one of these errors or another."""
    with suppress(OSError, ValueError, AttributeError):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, option, value)
