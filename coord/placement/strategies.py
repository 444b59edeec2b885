"""The table of strategies: which names there are, and the class of each.

To add a strategy, write a subclass of ``Strategy``, ``OrderedStrategy`` or ``SampledStrategy`` with a ``name`` in the
file of its family, add the class here, and the name to ``StrategyName`` in ``coord/models/strategies.py``. Tasks
(``strategy=``), the setting ``strategy`` and the command line then accept the name.
"""

from __future__ import annotations

from coord.placement.capabilities import CapabilityBased
from coord.placement.consistent_hash import ConsistentHash
from coord.placement.geography import Geographic
from coord.placement.load import LeastConnections, PowerOfTwo, RandomChoice
from coord.placement.resources import ResourceBased
from coord.placement.response_time import LeastResponseTime, Predictive, Prequal
from coord.placement.strategy import Strategy
from coord.placement.turns import RoundRobin, WeightedRoundRobin

#: name -> strategy: the names that a task, a setting or an operator may use.
STRATEGIES: dict[str, type[Strategy]] = {
    cls.name: cls
    for cls in (
        LeastConnections,
        RoundRobin,
        WeightedRoundRobin,
        ResourceBased,
        Geographic,
        RandomChoice,
        PowerOfTwo,
        LeastResponseTime,
        CapabilityBased,
        Predictive,
        Prequal,
        ConsistentHash,
    )
}
