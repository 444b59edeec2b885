"""The names of the placement strategies. ``coord.placement.STRATEGIES`` has the class of each."""

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
