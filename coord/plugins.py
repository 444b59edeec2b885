"""Placement strategies that installed packages provide, by the entry point group ``coord.strategies``.

A package declares each in its ``pyproject.toml``; the name is the one that tasks and settings use::

    [project.entry-points."coord.strategies"]
    fewest_failures = "my_package.placement:FewestFailures"

The package must be installed where distributors run, and where clients and the command line check the name. The names
of coord's own strategies cannot be replaced. ``coord.testing.check_strategy`` tests a strategy.
"""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from coord.models.strategies import STRATEGY_NAMES

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from coord.placement import Strategy

GROUP = "coord.strategies"
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


def strategy_names() -> tuple[str, ...]:
    """Return the names of all strategies, sorted; nothing is loaded."""
    return tuple(sorted({*STRATEGY_NAMES, *_found()}))


def strategy_packages() -> dict[str, str]:
    """Return which package provides a strategy: name -> package; nothing is loaded."""
    return {name: point.dist.name for name, point in _found().items() if point.dist is not None}


def load_strategies(log: FilteringBoundLogger) -> dict[str, type[Strategy]]:
    """Return all strategies by name. One that cannot be loaded is left out, with an error in the log.

    Args:
        log: of the process; defects of the strategies are reported there, also later.
    """
    from coord.placement import STRATEGIES, GuardedStrategy, Strategy  # the names are often all that is needed

    strategies, reporter = dict(STRATEGIES), _Reporter(log)
    for name, point in _found().items():
        try:
            cls = point.load()
            if not (isinstance(cls, type) and issubclass(cls, Strategy)):
                raise TypeError(f"{point.value} is not a subclass of coord.placement.Strategy")  # noqa: TRY301
            if getattr(cls, "name", None) != name:
                raise TypeError(f"{point.value}.name is {getattr(cls, 'name', None)!r}, expected {name!r}")  # noqa: TRY301
            strategies[name] = GuardedStrategy.around(cls, reporter)
        except Exception:  # a package of a user may raise anything when it is imported
            log.exception("strategy.not_loaded", strategy=name)
    return strategies


def _found() -> dict[str, EntryPoint]:
    """Return the entry points that may be used: name -> entry point."""
    points = entry_points(group=GROUP)
    return {point.name: point for point in points if NAME.fullmatch(point.name) and point.name not in STRATEGY_NAMES}


class _Reporter:
    """Logs a defect of a strategy once, however many sets of requirements it occurs in."""

    def __init__(self, log: FilteringBoundLogger) -> None:
        self._log = log
        self._known: set[str] = set()

    def __call__(self, name: str, error: str) -> None:
        if name not in self._known:
            self._known.add(name)
            self._log.error("strategy.failed", strategy=name, error=error, hint="least_connections chooses instead")
