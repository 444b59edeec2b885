"""Values that a user types: JSON, ``NAME=VALUE``, durations, times, files. An error shows a valid value."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import msgspec
from click.shell_completion import CompletionItem

from coord.durations import EXPECTED, NUMBER, UNITS, parse_duration
from coord.errors import ConfigError, PayloadInvalid
from coord.models.agents import Location
from coord.models.tasks import check_moment
from coord.plugins import strategy_names
from coord.suggestions import not_one_of
from coord.values import number_in_raw

_DURATION_WITH_UNIT = re.compile(rf"({NUMBER})(ms|s|m|h|d)")


class Duration(click.ParamType):  # type: ignore[type-arg] # generic in click 8.4 only
    """The type of every option that takes a time: ``1.5`` (seconds), ``30s``, ``5m``, ``2h``, ``7d``, ``250ms``.

    Use it as ``typer.Option(click_type=Duration(), metavar="TIME")``; the value is a number of seconds.

    Args:
        minimum: the least valid number of seconds.
        maximum: the greatest valid number of seconds.
        above: True if the value must be above ``minimum``.
    """

    name = "time"

    def __init__(self, minimum: float = 0.0, maximum: float = math.inf, *, above: bool = False) -> None:
        self._minimum = minimum
        self._maximum = maximum
        self._above = above

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number of seconds.

        Raises:
            ConfigError: it is not a duration, or out of range; names the option.
        """
        option = param.opts[0] if param is not None else "TIME"
        if isinstance(value, int | float):  # the default
            return float(value)
        seconds = parse_duration(value)
        if seconds is None:
            raise ConfigError(f"{option} must be {EXPECTED}, got {value!r}")
        if seconds < self._minimum or (self._above and seconds == self._minimum):
            least = f"{self._minimum:g} seconds" if self._minimum else "0"
            limit = f"above {least}" if self._above else f"{least} or more"
            raise ConfigError(f"{option} must be {limit}, got {value}")
        if seconds > self._maximum:
            raise ConfigError(f"{option} must be {self._maximum:g} seconds or less, got {value}")
        return seconds


class StrategyName(click.ParamType):  # type: ignore[type-arg] # generic in click 8.4 only
    """The type of every argument and option that takes the name of a placement strategy."""

    name = "strategy"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name.

        Raises:
            ConfigError: there is no such strategy; lists them.
        """
        known = strategy_names()
        if value not in known:
            option = param.opts[0] if isinstance(param, click.Option) else self.name
            raise ConfigError(not_one_of(option, value, known))
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the strategies that start with what was typed."""
        return [CompletionItem(name) for name in strategy_names() if name.startswith(incomplete)]


def wants_json(arguments: Sequence[str]) -> bool:
    """Return True if ``--json`` is among the options, before any ``--``."""
    return "--json" in arguments[: arguments.index("--") if "--" in arguments else None]


def payload(text: str | None) -> msgspec.Raw:
    """Return the payload of an argument: JSON, ``-`` for JSON on standard input, None for ``{}``.

    Raises:
        ConfigError: it is not JSON; shows how to write text and objects.
        PayloadInvalid: it has a number that cannot be decoded, such as 1e999 or NaN; names its path.
    """
    if text is None:
        return msgspec.Raw(b"{}")
    raw = sys.stdin.buffer.read() if text == "-" else text.encode("utf-8", "surrogateescape")
    try:
        msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if fault := number_in_raw(raw, "payload"):
            raise PayloadInvalid(str(fault)) from None
        source = "standard input" if text == "-" else "PAYLOAD"
        raise ConfigError(f"{source} is not JSON ({error}); write text as '\"text\"', an object as '{{}}'") from None
    return msgspec.Raw(raw.strip())


def pairs(values: Sequence[str], option: str) -> dict[str, str]:
    """Parse any number of ``NAME=VALUE``.

    Args:
        values: as typed.
        option: name of the option, for errors.

    Raises:
        ConfigError: a value has no ``=`` or no name.
    """
    parsed: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"{option} must be NAME=VALUE, such as {option} zone=eu, got {text!r}")
        parsed[name] = value
    return parsed


def location(values: Sequence[str]) -> dict[str, str | float]:
    """Parse the parts of a location.

    Args:
        values: as typed.

    Raises:
        ConfigError: a part is unknown, or ``lat`` or ``lon`` is not a number.
    """
    parsed: dict[str, str | float] = {}
    for name, value in pairs(values, "--location").items():
        if name not in Location.__struct_fields__:
            raise ConfigError(not_one_of("--location", name, Location.__struct_fields__))
        parsed[name] = value
        if name in {"lat", "lon"}:
            try:
                parsed[name] = float(value)
            except ValueError:
                raise ConfigError(f"--location {name} must be a number of degrees, got {value!r}") from None
    return parsed


def switches(values: Sequence[str], option: str, known: Sequence[str]) -> dict[str, bool]:
    """Parse any number of ``NAME=on`` and ``NAME=off``.

    Args:
        values: as typed.
        option: name of the option, for errors.
        known: the valid names.

    Raises:
        ConfigError: a name is unknown, or a value is neither on nor off.
    """
    parsed: dict[str, bool] = {}
    for name, value in pairs(values, option).items():
        if name not in known:
            raise ConfigError(not_one_of(option, name, known))
        if value not in {"on", "off"}:
            raise ConfigError(f"{option} {name}={value}: expected on or off")
        parsed[name] = value == "on"
    return parsed


def moment(text: str, option: str, *, ahead: bool) -> datetime:
    """Parse a point in time: RFC 3339, or a distance from now such as ``90s``, ``5m``, ``2h``, ``1d``.

    Args:
        text: as typed.
        option: name of the option, for errors.
        ahead: True if a distance is in the future, False if it is in the past.

    Raises:
        ConfigError: it is neither, or outside the years 1 to 9999 in UTC.
    """
    try:
        parsed = _moment(text, option, ahead=ahead)
        check_moment(parsed, option)
    except (OverflowError, ValueError):
        raise ConfigError(f"{option} {text!r} is outside the years 1 to 9999 in UTC") from None
    return parsed


def _moment(text: str, option: str, *, ahead: bool) -> datetime:
    if duration := _DURATION_WITH_UNIT.fullmatch(text):
        offset = timedelta(seconds=float(duration[1]) * UNITS[duration[2]])
        return datetime.now(UTC) + (offset if ahead else -offset)
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        distance = "from now" if ahead else "ago"
        raise ConfigError(
            f"{option} must be a date and time such as 2030-01-31T12:00:00Z, or 5m for 5 minutes {distance}, "
            f"got {text!r}"
        ) from None
    return parsed if parsed.tzinfo else parsed.astimezone()


def upcoming(text: str, option: str) -> datetime:
    """Parse a point in time that must be in the future.

    Raises:
        ConfigError: it is no point in time, or in the past.
    """
    parsed = moment(text, option, ahead=True)
    if parsed <= datetime.now(UTC):
        raise ConfigError(f"{option} must be in the future, got {text!r}; write 5m for 5 minutes from now")
    return parsed


def is_distance(text: str) -> bool:
    """Return True if the text is a distance from now, such as ``5m``."""
    return _DURATION_WITH_UNIT.fullmatch(text) is not None


def seconds(text: str, field: str) -> float:
    """Parse a length of time in a field of a file.

    Args:
        text: as written.
        field: name of the field, for errors.

    Raises:
        ConfigError: it is not a length of time.
    """
    parsed = parse_duration(text)
    if parsed is None:
        raise ConfigError(f"{field} must be {EXPECTED}, got {text!r}")
    return parsed


def writable(path: Path, option: str) -> Any:
    """Open a file for writing.

    Args:
        path: the file; its content is replaced.
        option: name of the option, for errors.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        return path.open("wb")
    except OSError as error:
        raise ConfigError(f"{option}: cannot write {path}: {error.strerror}; name another file") from None
