"""The payload of every task of a benchmark: 200 bytes of JSON."""

from __future__ import annotations

import json
from typing import Any

PAYLOAD_BYTES = 200


def payload(**more: Any) -> dict[str, Any]:
    """Return a payload with these fields that has ``PAYLOAD_BYTES`` as JSON without spaces."""
    empty = len(json.dumps({**more, "pad": ""}, separators=(",", ":")))
    return {**more, "pad": "x" * max(0, PAYLOAD_BYTES - empty)}


def encoded() -> bytes:
    """Return a payload as JSON."""
    return json.dumps(payload(), separators=(",", ":")).encode()
