"""The settings of a user's program with a ``Client`` or an ``Agent``: an unknown ``COORD_*`` variable is a warning."""

from __future__ import annotations

import os

from coord.config import Settings, load, unknown_variables
from coord.logs import get_logger

log = get_logger()

#: Variables with a warning so far.
_warned: set[str] = set()


def load_in_program() -> Settings:
    """Read the settings from the environment; ignore a ``COORD_*`` variable that is no setting, and log it once.

    Such a program may run where variables with this prefix have another meaning, and must not end because of them.

    Raises:
        ConfigError: the value of a setting is invalid.
    """
    unknown = unknown_variables(os.environ)
    for name, message in unknown.items():
        if name not in _warned:
            _warned.add(name)
            log.warning("setting.unknown", variable=name, message=message)
    return load({name: value for name, value in os.environ.items() if name not in unknown})
