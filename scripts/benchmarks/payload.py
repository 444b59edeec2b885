"""What every task of a benchmark carries: 200 bytes of JSON, and an id as the SDK draws them."""

from __future__ import annotations

import json
from typing import Any

PAYLOAD_BYTES = 200


def payload(**more: Any) -> dict[str, Any]:
    """A payload of ``PAYLOAD_BYTES`` as JSON without spaces, with these fields in it."""
    empty = len(json.dumps({**more, "pad": ""}, separators=(",", ":")))
    return {**more, "pad": "x" * max(0, PAYLOAD_BYTES - empty)}


def encoded() -> bytes:
    """The same as JSON."""
    return json.dumps(payload(), separators=(",", ":")).encode()
