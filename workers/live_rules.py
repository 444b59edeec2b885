"""The rules of placement among the live settings, as operators have set them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from coord import queries
from coord.config import PER_TYPE, Settings, live_text
from coord.errors import ConfigError
from coord.placement import OwnRules, Rules

#: Text of a switch -> its value.
_SWITCHES = {"on": True, "off": False}


def cell_rules(live: Mapping[str, str], settings: Settings, strategies: Collection[str]) -> Rules:
    """Return the rules for all tasks; invalid values and strategies that are not installed count as not set.

    Args:
        live: the key ``settings``.
        settings: the environment of this distributor.
        strategies: names of the strategies that are installed.
    """
    found = _valid(live)
    if found.get("strategy") not in strategies:
        found["strategy"] = settings.strategy
    return Rules(**({name: getattr(settings, name) for name in PER_TYPE} | found))


def type_rules(live: Mapping[str, str]) -> dict[str, OwnRules]:
    """Return what is set for the tasks of single types: task type -> rules; invalid values count as not set."""
    return {task_type: OwnRules(**_valid(values)) for task_type, values in queries.type_values(live).items()}


def switch(live: Mapping[str, str], name: str, *, otherwise: bool) -> bool:
    """Return whether a live setting is on; an invalid value counts as not set."""
    return _SWITCHES.get(live.get(name, ""), otherwise)


def _valid(values: Mapping[str, str]) -> dict[str, Any]:
    """Return the valid values among the settings that are rules."""
    found: dict[str, Any] = {}
    for name in PER_TYPE:
        raw = values.get(name)
        if raw is not None:
            with suppress(ConfigError):
                text = live_text(name, raw)
                found[name] = _SWITCHES.get(text, text) if name != "strategy" else text
    return found
