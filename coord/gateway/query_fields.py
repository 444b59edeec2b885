"""Handler of the fields of queries: what an editor needs for completion."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from coord.gateway.routes import Call
from coord.models.query import FieldInfo
from coord.models.task_query import TASKS


class FieldsQuery(Struct, frozen=True, rename={"of": "for"}):
    """The query of GET /query/fields."""

    of: Literal["tasks"] = "tasks"


class FieldsFound(Struct, frozen=True, kw_only=True):
    """GET /query/fields."""

    status: str = "success"
    fields: tuple[FieldInfo, ...]


async def fields(call: Call[None, FieldsQuery]) -> FieldsFound:
    """Return the fields of a query, with their kinds and values, for completion."""
    found = await call.gateway.scrapes.statistics()
    return FieldsFound(fields=TASKS.completion({"type": tuple(name for name in found.task_types if name)}))
