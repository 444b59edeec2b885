"""coord: an agent coordinator that chooses the best agent for each task.

Callers append facts to Redis Streams; workers turn facts into state; every change of state is one atomic script.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

#: Public names, loaded when they are first asked for: a worker imports ``coord.keys`` and nothing of the SDK. For type
#: checkers and editors, and for ``from coord import *``, they stand in ``__init__.pyi`` as well.
_HOME = {
    "Agent": ("coord.agent.agent", "Agent"),
    "Client": ("coord.client.client", "Client"),
    "Message": ("coord.models.messages", "AgentMessage"),
    "NonRetryable": ("coord.agent.task", "NonRetryable"),
    "Release": ("coord.agent.task", "Release"),
    "Retryable": ("coord.agent.task", "Retryable"),
    "Task": ("coord.agent.task", "Task"),
    "TaskHandle": ("coord.client.handle", "TaskHandle"),
    "TaskSpec": ("coord.client.submission", "TaskSpec"),
    "run": ("coord.agent.run", "run"),
}

__all__ = sorted(_HOME)  # noqa: PLE0605 -- the names are those of the table


def __getattr__(name: str) -> Any:
    """Load a public name, or an error of ``coord.errors``."""
    if name in _HOME:
        module, attribute = _HOME[name]
        from coord.interrupts import quiet_import

        with quiet_import():
            return getattr(import_module(module), attribute)
    errors = import_module("coord.errors")
    found = getattr(errors, name, None)
    if isinstance(found, type) and issubclass(found, errors.CoordError):
        return found
    raise AttributeError(f"module 'coord' has no attribute {name!r}")
