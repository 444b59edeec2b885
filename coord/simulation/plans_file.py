"""Recorded plans as files, one JSON object a line: the header, then the entries of all distributors."""

from __future__ import annotations

import msgspec

from coord.errors import ConfigError
from coord.models.plans import PLANS_VERSION, PlanEntry, Plans, PlansHeader

_decoder = msgspec.json.Decoder(PlansHeader | PlanEntry)


def write_plans(plans: Plans) -> bytes:
    """Return recorded plans as JSON Lines."""
    return msgspec.json.Encoder().encode_lines([plans.header, *plans.entries])


def read_plans(data: bytes) -> Plans:
    """Return the recorded plans in a file.

    Raises:
        ConfigError: it has none, or those of another version; names the line.
    """
    header, entries = None, []
    for number, line in enumerate(data.splitlines(), 1):
        try:
            found = _decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"line {number} of the file does not fit: {error}") from None
        if found.version != PLANS_VERSION:
            raise ConfigError(
                f"line {number} of the file has version {found.version}; this coord reads version {PLANS_VERSION}"
            )
        if isinstance(found, PlansHeader):
            header = found
        else:
            entries.append(found)
    if header is None:
        raise ConfigError("the file has no recorded plans: it has no header; make one with coord trace plans")
    return Plans(header, tuple(entries))
