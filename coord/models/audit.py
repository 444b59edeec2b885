"""The audit: what operators have changed, who asked for it, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from coord.models.facts import (
    TYPE_OF,
    AgentDrained,
    AgentEnrolled,
    AgentMaintenanceBegun,
    AgentRemoved,
    AgentResumed,
    AgentsPruned,
    AgentTokenRevoked,
    AgentTokenRotated,
    ApiKeyCreated,
    ApiKeyRevoked,
    DeadPurged,
    EntriesPurged,
    EntryReplayed,
    LinkMade,
    LinkRemoved,
    MasterCleared,
    MasterSet,
    MessageReplayed,
    SettingSet,
    StrategySet,
    TaskCancelRequested,
    TaskReplayed,
    TasksChangeRequested,
)
from coord.models.ids import entry_ms

#: fact of an operator -> the name of the action; that of ``TasksChangeRequested`` is in its data.
_NAMES: dict[type[Struct], str] = {
    AgentDrained: "agents.drain",
    AgentMaintenanceBegun: "agents.maintain",
    AgentResumed: "agents.resume",
    AgentRemoved: "agents.remove",
    AgentsPruned: "agents.prune",
    AgentEnrolled: "tokens.enrol",
    AgentTokenRotated: "tokens.rotate",
    AgentTokenRevoked: "tokens.revoke",
    ApiKeyCreated: "keys.create",
    ApiKeyRevoked: "keys.revoke",
    StrategySet: "strategy.set",
    SettingSet: "settings.set",
    TaskCancelRequested: "tasks.cancel",
    TaskReplayed: "tasks.retry",
    TasksChangeRequested: "tasks.change",
    MessageReplayed: "messages.replay",
    EntryReplayed: "entries.replay",
    DeadPurged: "dead.purge",
    EntriesPurged: "entries.purge",
    LinkMade: "links.add",
    LinkRemoved: "links.remove",
    MasterSet: "masters.set",
    MasterCleared: "masters.clear",
}
#: type of a fact -> the name of its action.
ACTION_OF: dict[str, str] = {TYPE_OF[fact]: name for fact, name in _NAMES.items()}
#: Fields of facts that name what is changed.
_TARGETS = (
    "task_id", "agent_id", "peer_id", "master_id", "other_id", "message_id", "entry_id", "dead_id", "key_id", "name",
    "task_type", "strategy", "value", "older_than",
)  # fmt: skip


class AuditEntry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One change that an operator asked for."""

    id: str  #: of the entry in ``log:audit``
    at: int  #: ms since 1970 on the server's clock
    by: str  #: who asked for it: ``user@host``, or a credential and an address; else the id of a client
    action: str  #: tasks.cancel, agents.drain …
    #: The first word of the script that handled the request: ok, cancelled, stopping, not_dead …; of a refused request
    #: its error code. A part of an operation on many tasks is always ok: ``done`` and ``skipped`` say the rest.
    outcome: str
    target: str = ""  #: what was changed: ids and values, with spaces between
    reason: str = ""  #: why, as the operator gave it
    query: str | None = None  #: that selected the tasks
    operation: str | None = None  #: id of the operation on many tasks of which this is a part
    count: int | None = None  #: tasks of this part
    done: int | None = None  #: of these, tasks that were changed
    stopping: int | None = None  #: of a cancel: of the changed ones, tasks whose agents were asked to stop
    skipped: dict[str, int] | None = None  #: code -> tasks that were not changed


def audit_entry(entry_id: str, fields: Mapping[str, str], data: Any) -> AuditEntry:
    """Return an entry of the audit.

    Args:
        entry_id: id in ``log:audit``.
        fields: of the entry.
        data: of the fact, decoded; anything else than an object is ignored.
    """
    kind, by, outcome = fields.get("type", ""), fields.get("by", ""), fields.get("outcome", "")
    at = entry_ms(entry_id)
    found: dict[str, Any] = data if isinstance(data, dict) else {}
    action = ACTION_OF.get(kind, kind)
    if kind != TYPE_OF[TasksChangeRequested]:
        target = " ".join(_shown(found[name]) for name in _TARGETS if name in found)
        reason = str(found.get("reason") or "")
        return AuditEntry(id=entry_id, at=at, by=by, action=action, outcome=outcome, target=target, reason=reason)
    return AuditEntry(
        id=entry_id,
        at=at,
        by=by,
        action=f"tasks.{_text(found.get('action')) or 'change'}",
        outcome=outcome,
        target=_text(found.get("priority")) or "",
        query=_text(found.get("query")),
        operation=_text(found.get("operation")),
        count=_count(found.get("count")),
        done=_count(found.get("done")),
        stopping=_count(found.get("stopping")),
        skipped=_counts(found.get("skipped")),
    )


# The data of a request that was refused is as it was sent: any of its fields may have any type.


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: Any) -> int | None:
    return value if type(value) is int else None


def _counts(value: Any) -> dict[str, int] | None:
    is_counts = isinstance(value, dict) and all(type(count) is int for count in value.values())
    return value if is_counts else None


def _shown(value: Any) -> str:
    return "(reset)" if value is None else str(value)
