"""All that the requests of one gateway process share: its client, its checks, its limits.

The handlers reach it as ``call.gateway``. None of it is state of the cell: that is in Redis. Modules that are imported
here do not import ``coord.gateway.routes``, which imports this one; their handlers are modules of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from coord.config import Settings
from coord.gateway.backend import Backend
from coord.gateway.callers import Callers
from coord.gateway.checks import Checks
from coord.gateway.credential_store import CredentialStore
from coord.gateway.deadlines import Deadlines
from coord.gateway.event_hub import EventHub
from coord.gateway.inboxes import Inboxes
from coord.gateway.scrapes import Scrapes
from coord.gateway.web import Web


class Gateway:
    """What the requests of one process share.

    Args:
        backend: the client.
        settings: of the gateway.

    Raises:
        ConfigError: a setting of its security does not fit.
    """

    def __init__(self, backend: Backend, settings: Settings) -> None:
        self.settings = settings
        self.backend = backend
        self.checks = Checks(backend)
        self.callers = Callers(settings, CredentialStore(backend))
        self.web = Web(settings)
        self.deadlines = Deadlines()
        self.events = EventHub(backend, settings.gateway_listeners)
        self.scrapes = Scrapes(backend)
        self.inboxes = Inboxes(backend)
        #: Set when the gateway shuts down: a handler that waits long has to return then.
        self.closing = asyncio.Event()
        #: Requests that are at work.
        self.active = 0
        #: Path, as in the OpenAPI document -> its methods.
        self.endpoints: dict[str, list[str]] = {}
        #: Returns the OpenAPI document of the table.
        self.document: Callable[[], bytes] = bytes
        #: Ends each stream that is being sent.
        self.streams: set[Callable[[], None]] = set()

    def close(self) -> None:
        """End the streams, and whatever waits long."""
        self.closing.set()
        self.events.close()
        for end in tuple(self.streams):
            end()
