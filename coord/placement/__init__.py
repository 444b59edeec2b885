"""Choice of the best agent for a task: pure functions and classes without I/O, clock or global randomness.

``reasons`` decides which agents are eligible, why others are not, and so why a task waits. ``requirements`` has the
index that finds eligible agents. A ``Strategy`` orders the eligible agents. ``Learned`` is what a distributor has
learned of them. The dispatch script is the authority: a choice that was made here on an older view is checked there
before a task moves.
"""

from coord.placement.ejection import Ejection, Ejections
from coord.placement.guard import GuardedStrategy
from coord.placement.learning import Learned
from coord.placement.reasons import WaitingReason, unmet_requirement
from coord.placement.recorder import RecordedEntry, Recorder, new_seed
from coord.placement.requirements import capability_facet, facets_of, facets_required, preferred_pool
from coord.placement.rules import AVOIDED_S, NO_RULES, OwnRules, Rules, create_strategy, rules_with
from coord.placement.strategies import STRATEGIES
from coord.placement.strategy import ANY_TASK, OrderedStrategy, SampledStrategy, Strategy, TaskContext, full_scores

__all__ = [
    "ANY_TASK",
    "AVOIDED_S",
    "NO_RULES",
    "STRATEGIES",
    "Ejection",
    "Ejections",
    "GuardedStrategy",
    "Learned",
    "OrderedStrategy",
    "OwnRules",
    "RecordedEntry",
    "Recorder",
    "Rules",
    "SampledStrategy",
    "Strategy",
    "TaskContext",
    "WaitingReason",
    "capability_facet",
    "create_strategy",
    "facets_of",
    "facets_required",
    "full_scores",
    "new_seed",
    "preferred_pool",
    "rules_with",
    "unmet_requirement",
]
