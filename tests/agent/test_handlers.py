"""What a handler takes, as its signature says."""

from __future__ import annotations

import dataclasses
import functools
import runpy
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from pydantic import BaseModel

import coord
from coord.agent.handlers import (
    TRACEBACK_CHARS,
    check_hook,
    check_message_handler,
    read_handler,
    traceback_of,
)
from coord.errors import ConfigError

if TYPE_CHECKING:
    from coord import Task


class Numbers(msgspec.Struct):
    """A payload."""

    n: int


class Page(BaseModel):
    """A payload of a library's own kind."""

    number: int
    at: datetime


@dataclasses.dataclass
class Pair:
    """Another payload."""

    n: int


class Called:
    """An object that can be called."""

    async def __call__(self, task: Any) -> None:
        """Do nothing."""

    def method(self, numbers: Numbers) -> int:
        """Take a payload."""
        return numbers.n


def test_one_argument_is_the_task() -> None:
    """Annotated or not, and also where Task is imported for type checkers only."""

    async def plain(task): ...  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    def annotated(task: Task) -> None: ...

    assert read_handler(plain)[1:] == (True, None, False)
    assert read_handler(annotated)[1:] == (False, None, False)
    assert read_handler(Called()).is_async
    assert read_handler(functools.partial(lambda extra, task: (extra, task), 1)).decode is None


def test_a_struct_is_the_payload() -> None:
    """Decoded and validated; a second argument is the Task."""

    def payload(numbers: Numbers) -> None: ...
    def both(numbers: Numbers, task: Task) -> None: ...

    handler = read_handler(payload)
    assert handler.decode is not None
    assert handler.decode(b'{"n":1}') == Numbers(1)
    assert not handler.takes_task
    assert read_handler(both).takes_task
    assert read_handler(Called().method).decode is not None


def test_a_struct_that_was_defined_in_a_function_is_found() -> None:
    """Its name is looked up where the handler can see it."""

    class Local(msgspec.Struct):
        n: int

    def payload(local: Local) -> Local:
        return Local(local.n)

    assert read_handler(payload).decode is not None


def test_a_payload_may_be_whatever_msgspec_decodes() -> None:
    """A dict, a dataclass, one of several; and with the Task behind it."""

    def as_dict(payload: dict[str, int]) -> None: ...
    def as_pair(payload: Pair, task: Task) -> None: ...
    def as_either(payload: Numbers | None) -> None: ...

    decoded = [read_handler(one).decode for one in (as_dict, as_pair, as_either)]
    assert [decode(b'{"n":1}') for decode in decoded if decode] == [{"n": 1}, Pair(1), Numbers(1)]


def test_a_payload_may_be_a_model_of_pydantic() -> None:
    """Alone, within what msgspec decodes, and as None; an error has the path of what does not fit."""

    def as_model(model: Page) -> None: ...
    def as_list(models: list[Page]) -> None: ...
    def as_either(model: Page | None) -> None: ...
    def as_path(path: Path, task: Task) -> None: ...

    decode, decode_list, decode_either, decode_path = (
        read_handler(one).decode for one in (as_model, as_list, as_either, as_path)
    )
    assert decode is not None
    assert decode_list is not None
    assert decode_either is not None
    assert decode_path is not None
    page = Page(number=1, at=datetime(2030, 1, 1, tzinfo=UTC))
    raw = page.model_dump_json().encode()
    assert (decode(raw), decode_list(b"[%b]" % raw), decode_either(raw)) == (page, [page], page)
    assert (decode_either(b"null"), decode_path(b'"a/b"')) == (None, Path("a/b"))
    for refuse, wrong, why in (
        (
            decode,
            b'{"number":"x"}',
            r"unable to parse string as an integer - at `\$\.number`; Field required - at `\$\.at`",
        ),
        (decode_list, b'[{"number":"x"}]', r"at `\$\.number`"),
        (decode, b'{"number":1,"at":1e999}', "Number out of range"),
        (decode_path, b"7", "Expected `str`"),
    ):
        with pytest.raises(msgspec.ValidationError, match=why):
            refuse(wrong)


def test_any_other_signature_is_an_error() -> None:
    """Found when the handler is registered, not when the first task arrives."""

    def none() -> None: ...
    def three(a: Any, b: Any, c: Any) -> None: ...
    def two(a: Any, b: Any) -> None: ...
    def unknown(a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821
    def unknown_attribute(a: msgspec.Nowhere) -> None: ...  # type: ignore[name-defined]
    def odd(a: Called) -> None: ...
    def keyword(task: Any, *, x: int) -> None: ...

    for function, why in (
        (none, "must take"), (three, "must take"), (two, "Struct"), (unknown, "Nowhere"),
        (unknown_attribute, "Nowhere"), (odd, "Called.*: annotate it with Task"), (keyword, "without x"),
        (5, "a handler is a function, not 5"), (type, "no readable signature"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=why):
            read_handler(function)  # type: ignore[arg-type]


def test_a_handler_that_yields_is_an_error() -> None:
    """It would seem to be done at once, with a result that is no JSON."""

    def generator(task: Any) -> Any:
        yield task

    async def async_generator(task: Any) -> Any:
        yield task

    for function in (generator, async_generator):
        with pytest.raises(ConfigError, match="yields: return the result instead"):
            read_handler(function)


def test_a_handler_of_messages_takes_the_message() -> None:
    """And a hook takes nothing, and is async."""

    def none() -> None: ...
    def one(message: Any) -> None: ...
    def two(message: Any, more: Any) -> None: ...
    async def hook() -> None: ...

    check_message_handler(one)
    check_message_handler([].append)
    for handler in (none, two, 5):
        with pytest.raises(ConfigError, match=r"must take the message|is a function"):
            check_message_handler(handler)  # type: ignore[arg-type]
    check_hook(hook)
    for odd in (none, one, 5):
        with pytest.raises(ConfigError, match="must be an async function without arguments"):
            check_hook(odd)


def test_what_a_handler_uses_may_be_defined_further_down() -> None:
    """And it may use itself."""

    def outer(task: Task) -> object:
        return inner(task) or outer(task)

    assert read_handler(outer).decode is None

    def inner(task: Task) -> object:
        return task


def test_a_traceback_is_bounded_and_has_no_values(tmp_path: Path) -> None:
    """Its last frames; what the exception says is in its message. Without a frame of the user it is empty."""
    steps = [f"def f{n}(secret):\n    f{n - 1}(secret)  # {'x' * 200}" for n in range(1, 40)]
    module = tmp_path / "deep.py"
    module.write_text("\n".join(["def f0(secret):\n    raise ValueError(secret)", *steps]))
    with pytest.raises(ValueError, match="secret-value") as raised:
        runpy.run_path(str(module))["f39"]("secret-value")
    found = traceback_of(raised.value)
    assert TRACEBACK_CHARS - 400 < len(found) <= TRACEBACK_CHARS
    assert found.startswith(f'  File "{module}", line ')
    assert found.endswith(", in f0\n    raise ValueError(secret)\n")
    assert "secret-value" not in found
    assert traceback_of(ValueError("never raised")) == ""


def test_a_traceback_begins_in_the_code_of_the_user() -> None:
    """Frames of the package say nothing to its user."""
    with pytest.raises(ConfigError) as raised:
        check_message_handler(lambda: None)
    assert traceback_of(raised.value).count("File") == 1


def test_a_folder_with_a_longer_name_is_of_the_user() -> None:
    """A project beside the package, such as coord_agents, is no part of it."""
    mine = f"{Path(coord.__file__).parent}_agents/mine.py"
    with pytest.raises(ZeroDivisionError) as raised:
        exec(compile("1 / 0", mine, "exec"))  # noqa: S102 -- a file that need not exist
    assert mine in traceback_of(raised.value)
