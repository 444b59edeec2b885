"""The settings of a user's program with a ``Client`` or an ``Agent``: an unknown ``COORD_*`` variable is a warning.

Such a program uses the same cell as the commands of its user (``coord.cells``), unless it names a URL itself.
"""

from __future__ import annotations

import os

from coord.cells import load_with_cell
from coord.config import Settings, load, unknown_variables
from coord.logs import get_logger

log = get_logger()

#: Variables and sentences with a warning so far.
_warned: set[str] = set()


def load_in_program(url: str | None = None) -> Settings:
    """Read the settings from the environment and, without a URL, the cell from the configuration file.

    It ignores a ``COORD_*`` variable that is no setting, and logs it once. Such a program may run where variables with
    this prefix have another meaning, and must not end because of them.

    Args:
        url: the URL that the program names; the cells of the configuration file then have no effect.

    Raises:
        ConfigError: the value of a setting or the configuration file is invalid.
    """
    unknown = unknown_variables(os.environ)
    for name, message in unknown.items():
        _warn(name, "setting.unknown", variable=name, message=message)
    environ = {name: value for name, value in os.environ.items() if name not in unknown}
    if url is not None:
        return load(environ)
    settings, warnings = load_with_cell(environ)
    for warning in warnings:
        _warn(warning, "config.exposed", message=warning)
    return settings


def _warn(cause: str, event: str, **fields: str) -> None:
    if cause not in _warned:
        _warned.add(cause)
        log.warning(event, **fields)
