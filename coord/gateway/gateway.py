"""All that the requests of one gateway process share: its client, its checks, its limits.

The handlers reach it as ``call.gateway``. None of it is state of the cell: that is in Redis. Modules that are imported
here do not import ``coord.gateway.routes``, which imports this one; their handlers are modules of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from coord.config import Settings
from coord.gateway.backend import Backend
from coord.gateway.checks import Checks
from coord.gateway.deadlines import Deadlines
from coord.gateway.inboxes import Inboxes
from coord.gateway.scrapes import Scrapes


class Gateway:
    """What the requests of one process share.

    Args:
        backend: the client.
        settings: of the gateway.
    """

    def __init__(self, backend: Backend, settings: Settings) -> None:
        self.settings = settings
        self.backend = backend
        self.checks = Checks(backend)
        self.deadlines = Deadlines()
        self.scrapes = Scrapes(backend)
        self.inboxes = Inboxes(backend)
        #: Set when the gateway shuts down: a handler that waits long has to return then.
        self.closing = asyncio.Event()
        #: Requests that are at work.
        self.active = 0
        #: Path of the table of routes -> its methods.
        self.endpoints: dict[str, list[str]] = {}
        #: Returns the OpenAPI document of the table.
        self.document: Callable[[], bytes] = bytes
        #: Ends each stream that is being sent.
        self.streams: set[Callable[[], None]] = set()

    def close(self) -> None:
        """End the streams, and whatever waits long."""
        self.closing.set()
        for end in tuple(self.streams):
            end()
