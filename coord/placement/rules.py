"""Rules: the strategy and the modifiers that hold for a task.

A task's own rules take precedence over those of its type, and these over those of the cell. A modifier is valid under
every strategy and either on or off.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from random import Random

from msgspec import Struct
from msgspec.structs import asdict, replace

from coord.placement.capabilities import RareSkillsFirst
from coord.placement.learning import Learned
from coord.placement.strategy import Strategy

#: Seconds that a retry waits, although an agent that it avoids has room, until another eligible agent has room.
AVOIDED_S = 2.0


class Rules(Struct, frozen=True):
    """What holds for a task."""

    strategy: str
    ejection: bool = True
    avoid_failed_agent: bool = True
    rare_skills_first: bool = False


class OwnRules(Struct, frozen=True):
    """What a type of tasks, or a task, sets itself; None: it sets nothing."""

    strategy: str | None = None
    ejection: bool | None = None
    avoid_failed_agent: bool | None = None
    rare_skills_first: bool | None = None
    #: A strategy that is set and not installed here, so that another one is used.
    missing: str | None = None

    def over(self, others: OwnRules) -> OwnRules:
        """Return these rules, and those of ``others`` where these set nothing."""
        set_here = {name: value for name, value in asdict(self).items() if value is not None}
        if self.strategy is not None:
            set_here["missing"] = None
        return replace(others, **set_here)

    def known_to(self, strategies: Collection[str]) -> OwnRules:
        """Return these rules without a strategy that is not installed."""
        if self.strategy is None or self.strategy in strategies:
            return self
        return replace(self, strategy=None, missing=self.strategy)


#: Rules that set nothing.
NO_RULES = OwnRules()


def rules_with(own: OwnRules, cell: Rules) -> Rules:
    """Return the rules of the cell, replaced by what a task or its type sets."""
    if own == NO_RULES:
        return cell
    set_here = {name: value for name, value in asdict(own).items() if value is not None and name != "missing"}
    return replace(cell, **set_here)


def create_strategy(
    rules: Rules, strategies: Mapping[str, type[Strategy]], random: Random, learned: Learned
) -> Strategy:
    """Return a new strategy that chooses as the rules say."""
    cls = strategies[rules.strategy]
    if rules.rare_skills_first and not issubclass(cls, RareSkillsFirst):
        return RareSkillsFirst(random, learned, cls)
    return cls(random, learned)
