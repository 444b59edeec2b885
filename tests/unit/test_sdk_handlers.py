"""What a handler takes, as its signature says."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from coord.errors import ConfigError
from coord.sdk.handlers import read_handler

if TYPE_CHECKING:
    from coord import Task


class Numbers(msgspec.Struct):
    """A payload."""

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


def test_any_other_signature_is_an_error() -> None:
    """Found when the handler is registered, not when the first task arrives."""

    def none() -> None: ...
    def three(a: Any, b: Any, c: Any) -> None: ...
    def two(a: Any, b: Any) -> None: ...
    def unknown(a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    for function, why in ((none, "must take"), (three, "must take"), (two, "Struct"), (unknown, "Nowhere")):
        with pytest.raises(ConfigError, match=why):
            read_handler(function)
