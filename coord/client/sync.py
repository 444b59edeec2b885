"""``SyncClient`` and ``SyncTaskHandle``: the client of programs without an event loop.

They are made by ``coord.client.mirror``. Their types are in ``sync.pyi``, which ``scripts/sync-stub`` writes.
"""

from __future__ import annotations

from coord.client.mirror import SyncClient, SyncTaskHandle

__all__ = ["SyncClient", "SyncTaskHandle"]
