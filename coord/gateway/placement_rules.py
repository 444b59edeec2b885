"""The rules of placement as HTTP callers see and set them: the strategy and the modifiers, and their changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import UNSET, Struct, UnsetType

from coord.gateway.schemas import common_fields, iso, iso_or_none, now
from coord.models.strategies import MODIFIERS
from coord.models.tasks import Text
from coord.plugins import strategy_names
from coord.queries import LiveSetting, SettingChange

#: A switch as text -> its value.
_SWITCHES = {"on": True, "off": False}


class SetRules(Struct, frozen=True):
    """PUT /load-balancer/strategy; the strategy may be in the query instead. Null resets what it stands for."""

    strategy: str | UnsetType | None = UNSET
    modifiers: dict[str, bool | None] = {}
    task_type: Text | None = None  #: only for tasks of this type
    reason: Text | None = None  #: why, for the audit


class PlacementRules(NamedTuple):
    """What is set for the choice of agents."""

    cell: dict[str, LiveSetting]  #: strategy and modifiers -> the setting, for all tasks
    types: dict[str, dict[str, str]]  #: task type -> what is set for its tasks
    changes: list[SettingChange]  #: the latest changes of settings, the latest first


class TypeRules(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is set for the tasks of one type."""

    strategy: str | None = None
    modifiers: dict[str, bool] = {}

    @classmethod
    def of(cls, values: Mapping[str, str]) -> TypeRules:
        """Build it from live settings."""
        modifiers = {name: values[name] == "on" for name in MODIFIERS if name in values}
        return cls(strategy=values.get("strategy"), modifiers=modifiers)


class RulesFound(Struct, frozen=True, kw_only=True):
    """GET /load-balancer/strategy."""

    status: str = "success"
    strategy: str  #: several with `` | `` between them if distributors have different environments
    updated_at: str | None  #: when the strategy was last set or reset; null: not known
    modifiers: dict[str, bool | None]  #: null if distributors have different environments
    task_type: str | None  #: the values are those that hold for tasks of this type; null: of a type that sets none
    types: dict[str, TypeRules]  #: what is set for task types
    strategies: list[str]  #: the names of all that there are
    timestamp: str

    @classmethod
    def of(cls, rules: PlacementRules, task_type: str | None) -> RulesFound:
        """Build it from the rules.

        Args:
            rules: all of them.
            task_type: of the tasks for which the response says what holds; None: of a type that sets nothing.
        """
        own = TypeRules.of(rules.types.get(task_type, {}) if task_type is not None else {})
        of_cell = {name: _SWITCHES.get(rules.cell[name].value) for name in MODIFIERS}
        scope = task_type if own.strategy is not None else None
        changes = (one.at for one in rules.changes if one.name == "strategy" and one.task_type == scope)
        return cls(
            strategy=own.strategy or rules.cell["strategy"].value,
            updated_at=iso_or_none(next(changes, None)),
            modifiers={**of_cell, **own.modifiers},
            task_type=task_type,
            types={name: TypeRules.of(values) for name, values in rules.types.items()},
            strategies=list(strategy_names()),
            timestamp=now(),
        )


class RulesChanged(Struct, frozen=True, kw_only=True):
    """PUT, POST or DELETE /load-balancer/strategy."""

    status: str = "success"
    message: str = "Strategy updated successfully"
    strategy: str | None  #: that holds now; null: reset, and no worker has answered yet
    updated_at: str
    modifiers: dict[str, bool | None]
    task_type: str | None

    @classmethod
    def of(cls, found: RulesFound, at: str, changes: Mapping[str, str | bool | None]) -> RulesChanged:
        """Return the response for a change.

        Args:
            found: what holds.
            at: time of the change, ISO 8601.
            changes: those that no worker has answered yet.
        """
        values: dict[str, Any] = {"strategy": found.strategy, **found.modifiers, **changes}
        strategy = values.pop("strategy")
        return cls(strategy=strategy, updated_at=at, modifiers=values, task_type=found.task_type)


class ChangeSchema(Struct, frozen=True, kw_only=True):
    """A change of a live setting."""

    at: str
    name: str
    task_type: str | None  #: null: for all tasks
    value: str | None  #: null: it was reset
    before: str | None  #: null: it was not set
    by: str

    @classmethod
    def of(cls, change: SettingChange) -> ChangeSchema:
        """Build it from a change."""
        return cls(**common_fields(cls, change) | {"at": iso(change.at)})


class ChangesFound(Struct, frozen=True, kw_only=True):
    """GET /load-balancer/strategy/history."""

    status: str = "success"
    changes: list[ChangeSchema]  #: the latest first
    count: int
    timestamp: str

    @classmethod
    def of(cls, changes: Sequence[SettingChange]) -> ChangesFound:
        """Build it from the changes."""
        found = list(map(ChangeSchema.of, changes))
        return cls(changes=found, count=len(found), timestamp=now())
