"""Recorded plans: what distributors planned on, and what they chose."""

from __future__ import annotations

import msgspec
from msgspec import Struct

#: Version of the format of recorded plans: of the entries of ``log:plans``, and of the file. A reader refuses others.
PLANS_VERSION = 1


class PlansHeader(Struct, frozen=True, tag_field="line", tag="plans"):
    """The first line of a file of recorded plans. Times are milliseconds since 1970 on the server's clock."""

    version: int
    begin: int
    end: int


class PlanEntry(Struct, frozen=True, tag_field="line", tag="entry"):
    """An entry of ``log:plans``: some steps of one distributor."""

    version: int
    at: int  #: when it was appended, ms since 1970 on the server's clock
    by: str  #: the process
    segment: int  #: a segment begins with a snapshot, and can be replayed without those before it
    number: int  #: of the entry in its segment; 0 is the snapshot
    steps: msgspec.Raw  #: JSON, see ``coord/placement/plan_format.py``


class Plans(Struct, frozen=True):
    """What was recorded for a while."""

    header: PlansHeader
    entries: tuple[PlanEntry, ...]  #: of all distributors, in the order in which they were appended
