"""Choosing the best agent for a task: pure, without I/O, without a clock, without global randomness.

``requirements`` says who may be chosen at all and why not; a ``Strategy`` orders those who may. The dispatch script
is the authority: what is planned here on a view that may be old is checked there before anything moves.
"""

from coord.placement.facets import facets_of, facets_required
from coord.placement.requirements import unmet
from coord.placement.strategies import STRATEGIES, Strategy, strategy_named

__all__ = ["STRATEGIES", "Strategy", "facets_of", "facets_required", "strategy_named", "unmet"]
