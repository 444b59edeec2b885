"""coord: an agent coordinator that chooses the best agent for each task.

Callers append facts to Redis Streams; workers turn facts into state; every change of state is one atomic script.
"""

__version__ = "0.1.0"
