"""Choice of the best agent for a task: pure functions and classes without I/O, clock or global randomness.

``reasons`` decides which agents are eligible, why others are not, and so why a task waits. ``requirements`` has the
index that finds eligible agents. A ``Strategy`` orders the eligible agents.
The dispatch script is the authority: a choice that was made here on an older view is checked there before a task moves.
"""

from coord.placement.reasons import WaitingReason, unmet_requirement
from coord.placement.requirements import facets_of, facets_required
from coord.placement.strategies import STRATEGIES, Strategy

__all__ = ["STRATEGIES", "Strategy", "WaitingReason", "facets_of", "facets_required", "unmet_requirement"]
