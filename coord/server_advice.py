"""Settings of a server that cost memory: which are worth changing, and what the change saves.

The embedded server and compose.yaml have the recommended values; a server of another origin usually has its defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Recommendation(NamedTuple):
    """A setting, its worst good value, and what a good value saves."""

    name: str
    limit: int  #: the smallest or largest good value
    is_minimum: bool  #: True if smaller values are worse; False if larger ones are, or 0, which means no limit
    typed: str  #: the recommended value, as typed in a command
    saving: str


#: Measured with 5,000 waiting tasks of 130 bytes of payload on Valkey 9: 675 bytes a task instead of 889.
RECOMMENDATIONS = (
    Recommendation(
        "hash-max-listpack-value", 1024, is_minimum=True, typed="1024",
        saving="a quarter of the memory of each waiting task, about 210 bytes of 890",
    ),
    Recommendation(
        "hash-max-listpack-entries", 32, is_minimum=True, typed="128",
        saving="about a quarter of the memory of each task and agent with more fields than that",
    ),
    Recommendation(
        "stream-node-max-bytes", 4096, is_minimum=False, typed="4kb",
        saving="up to a node of memory for each stream, which is freed only when all of its entries are handled, "
        "and time for each append",
    ),
)  # fmt: skip
#: The settings to read.
NAMES = tuple(recommendation.name for recommendation in RECOMMENDATIONS)


def advise(config: Mapping[str, str] | None) -> list[str]:
    """Return a sentence for each setting that is worth changing: its value, the command, and what it saves.

    Args:
        config: values of CONFIG GET; None if CONFIG is forbidden. A missing or unreadable setting gets no advice.
    """
    return [
        f"{wanted.name} is {value}: CONFIG SET {wanted.name} {wanted.typed} "
        f"(and keep it in the server's configuration) saves {wanted.saving}"
        for wanted in RECOMMENDATIONS
        if (value := (config or {}).get(wanted.name, "")).isdecimal() and _is_worse(int(value), wanted)
    ]


def _is_worse(value: int, wanted: Recommendation) -> bool:
    if wanted.is_minimum:
        return value < wanted.limit
    return value > wanted.limit or value == 0
