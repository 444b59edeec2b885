"""The names of the placement strategies and modifiers. ``coord.placement.STRATEGIES`` has the classes of strategies."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

#: As a type: a type checker then finds a mistyped name.
StrategyName: TypeAlias = Literal[
    "least_connections",
    "round_robin",
    "weighted_round_robin",
    "resource_based",
    "geographic",
    "random",
    "power_of_two",
    "least_response_time",
    "capability_based",
    "predictive",
    "prequal",
    "consistent_hash",
]
#: The same, to check a name.
STRATEGY_NAMES: tuple[str, ...] = tuple(sorted(get_args(StrategyName)))

#: A modifier of placement: valid under every strategy, and either on or off.
Modifier: TypeAlias = Literal["avoid_failed_agent", "ejection", "rare_skills_first"]
#: The same, to check a name.
MODIFIERS: tuple[str, ...] = get_args(Modifier)
