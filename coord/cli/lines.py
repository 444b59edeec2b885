"""The lines of a file of tasks, checked by the rules of a submission; a wrong one is named by its number."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from coord.errors import ConfigError, CoordError, FactInvalid
from coord.suggestions import suggest

#: What a line may have beside what becomes the entry.
SLACK = 64 * 1024


class _Line(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One task, as ``coord.TaskSpec`` has it."""

    task_type: str | None = None
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    task_id: str | None = None
    priority: str | None = None
    capabilities: list[str] | None = None
    requirements: dict[str, Any] | None = None
    strategy: str | None = None
    timeout: float | None = None
    deadline: str | None = None
    delay: float | None = None
    run_at: str | None = None
    retry: dict[str, Any] | None = None


_decoder = msgspec.json.Decoder(_Line)


class Numbered(NamedTuple):
    """A task and the number of its line."""

    number: int
    spec: dict[str, Any]  #: the fields of ``TaskSpec``
    size: int  #: bytes of the line


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file, to be read twice; what cannot be (``-``, a pipe) is first written to a temporary one.

    Raises:
        ConfigError: it cannot be read; says why.
    """
    try:
        if str(path) == "-":
            with tempfile.TemporaryFile() as spooled:
                shutil.copyfileobj(sys.stdin.buffer, spooled)
                yield spooled
            return
        with path.open("rb") as file:
            if file.seekable():
                yield file
                return
            with tempfile.TemporaryFile() as spooled:
                shutil.copyfileobj(file, spooled)
                yield spooled
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise ConfigError(f"--file: cannot read {path}: {error.strerror}") from None


def read(file: IO[bytes], name: str, common: Mapping[str, Any], task_type: str | None, most: int) -> Iterator[Numbered]:
    """The tasks, from the first line on; empty lines are none.

    Args:
        file: as ``opened`` gave it.
        name: for messages.
        common: fields that hold for lines that do not have them.
        task_type: of lines that name none.
        most: bytes of an entry.

    Raises:
        FactInvalid: a line is no such object; names the line and what is wrong with it.
    """
    file.seek(0)
    number = 0
    while raw := file.readline(most + SLACK):
        number += 1
        if len(raw) >= most + SLACK and not raw.endswith(b"\n"):
            raise FactInvalid(f"{name} line {number}: it is longer than {most} bytes, the most that an entry may have")
        if not raw.strip():
            continue
        try:
            line = _decoder.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise FactInvalid(f"{name} line {number}: {_told(str(error))}") from None
        said = {field: value for field in _Line.__struct_fields__ if (value := getattr(line, field)) is not None}
        spec = {**({"task_type": task_type} if task_type else {}), **common, **said}
        if "task_type" not in spec:
            raise FactInvalid(f"{name} line {number}: it has no task_type; name it there, or a TYPE before --file")
        if common.get("requirements") and line.requirements is not None:
            spec["requirements"] = {**common["requirements"], **line.requirements}
        if "capabilities" not in spec and line.requirements is None:
            spec["capabilities"] = [spec["task_type"]]
        yield Numbered(number, spec, len(raw))


def checked(one: Numbered, name: str, most: int) -> None:
    """Check a task by the rules of a submission.

    Raises:
        FactInvalid: names the line and the field.
    """
    from coord.client.submission import TaskSpec, task_append

    try:
        task_append(TaskSpec(**one.spec), "", most)
    except CoordError as error:
        raise FactInvalid(f"{name} line {one.number}: {str(error).removeprefix('field ')}") from None


def _told(error: str) -> str:
    """What msgspec says, with the nearest field for one that there is not."""
    unknown = error.removeprefix("Object contains unknown field `")
    if unknown == error:
        return error.replace("`", "'")
    field = unknown.partition("`")[0]
    return f"unknown field {field!r}; {suggest(field, _Line.__struct_fields__)}"
