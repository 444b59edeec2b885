"""Choice of the best agent for a task: pure functions and classes without I/O, clock or global randomness.

``requirements`` decides which agents are eligible and why others are not. A ``Strategy`` orders the eligible agents.
``Learned`` is what a distributor has learned of them. The dispatch script is the authority: a choice that was made here
on an older view is checked there before a task moves.
"""

from coord.placement.guard import GuardedStrategy
from coord.placement.learning import Learned
from coord.placement.requirements import capability_facet, facets_of, facets_required, unmet_requirement
from coord.placement.strategies import STRATEGIES
from coord.placement.strategy import ANY_TASK, OrderedStrategy, SampledStrategy, Strategy, TaskContext

__all__ = [
    "ANY_TASK",
    "STRATEGIES",
    "GuardedStrategy",
    "Learned",
    "OrderedStrategy",
    "SampledStrategy",
    "Strategy",
    "TaskContext",
    "capability_facet",
    "facets_of",
    "facets_required",
    "unmet_requirement",
]
