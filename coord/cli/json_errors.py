"""The errors of a command with ``--json``: one object on standard error, ``{"error": {"code": …, "message": …}}``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click
import msgspec

from coord.cli.exit_codes import ExitCode, error_fields
from coord.errors import CoordError

#: The code of an error in the command line itself.
USAGE = "usage_error"


def run(app: Callable[..., Any]) -> int:
    """Run the command in the arguments of this process; return its exit code."""
    try:
        code = app(standalone_mode=False)
    except CoordError as error:
        return _write(error_fields(error), error.exit_code)
    except click.ClickException as error:
        fields = {"code": USAGE, "message": error.format_message()}
        if isinstance(error, click.UsageError) and error.ctx is not None:
            fields["next"] = f"`{error.ctx.command_path} --help` shows what is valid"
        return _write(fields, error.exit_code)
    except click.Abort:
        return ExitCode.INTERRUPTED
    return code if isinstance(code, int) else ExitCode.OK


def _write(fields: dict[str, str], code: int) -> int:
    print(msgspec.json.encode({"error": fields}).decode(), file=sys.stderr, flush=True)
    return code
