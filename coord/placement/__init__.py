"""Choice of the best agent for a task: pure functions and classes without I/O, clock or global randomness.

``requirements`` decides which agents are eligible and why others are not. A ``Strategy`` orders the eligible agents.
The dispatch script is the authority: a choice that was made here on an older view is checked there before a task moves.
"""

from coord.placement.requirements import facets_of, facets_required, unmet_requirement
from coord.placement.strategies import STRATEGIES, Strategy

__all__ = ["STRATEGIES", "Strategy", "facets_of", "facets_required", "unmet_requirement"]
