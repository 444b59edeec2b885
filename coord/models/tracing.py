"""The place of work in a distributed trace: the header ``traceparent`` of the W3C Trace Context.

coord passes it on and never changes it. A traceparent is ``version-trace_id-parent_id-flags`` in lower-case hex digits,
such as ``00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01``. Neither id may be all zeros, and the version ``ff``
is invalid.
"""

from __future__ import annotations

import re
from typing import Annotated

from msgspec import Meta

TRACEPARENT_PATTERN = r"^(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}\Z"

#: A traceparent as it travels on the wire.
TraceParent = Annotated[str, Meta(pattern=TRACEPARENT_PATTERN)]

_TRACEPARENT = re.compile(TRACEPARENT_PATTERN)


def is_traceparent(value: object) -> bool:
    """Return True if a value is a valid traceparent."""
    return isinstance(value, str) and _TRACEPARENT.match(value) is not None
