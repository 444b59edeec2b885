"""Handlers: their parameters are read from the signature once, when they are registered."""

from __future__ import annotations

import inspect
import os
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from coord.agent.task import Task
from coord.errors import ConfigError
from coord.values import decoder_of

#: Of a reported traceback, at most: its last frames say most.
TRACEBACK_FRAMES, TRACEBACK_CHARS = 20, 2_000
_PACKAGE = f"{Path(__file__).parents[1]}{os.sep}"


class Handler(NamedTuple):
    """A function and how to call it."""

    call: Callable[..., Any]
    is_async: bool
    decode: Callable[[Any], Any] | None  #: decodes the payload; None: the handler takes only the Task
    takes_task: bool  #: it takes the Task after the payload


def read_handler(function: Callable[..., Any]) -> Handler:
    """Return how to call the handler of a task type; see ``Agent.task``.

    Raises:
        ConfigError: its signature does not fit.
    """
    name = name_of(function)
    parameters = _required(function)
    if not parameters or len(parameters) > 2:
        raise ConfigError(f"handler {name} must take the task, or the payload and then the task")
    kind = _annotation(function, parameters[0], name)
    is_payload = kind not in (inspect.Parameter.empty, Any, object, Task)
    if len(parameters) == 2 and not is_payload:
        raise ConfigError(
            f"handler {name} takes two arguments, so its first must be annotated with the payload's type, such as a "
            "msgspec Struct"
        )
    return Handler(
        call=function,
        is_async=is_async(function),
        decode=_decoder(kind, name) if is_payload else None,
        takes_task=len(parameters) == 2,
    )


def check_message_handler(function: Callable[..., Any]) -> None:
    """Check that a function can be called with a message.

    Raises:
        ConfigError: it cannot.
    """
    if len(_required(function)) > 1 or not _may_take(function, 1):
        raise ConfigError(f"handler {name_of(function)} must take the message, and no other argument")


def check_hook(function: Any, arguments: int = 0) -> None:
    """Check that a function is async and can be called with so many arguments.

    Raises:
        ConfigError: it is not, or cannot.
    """
    if not callable(function) or not is_async(function) or not _may_take(function, arguments):
        taken = "without arguments" if arguments == 0 else f"that takes {arguments} argument"
        raise ConfigError(f"{name_of(function)} must be an async function {taken}")


def name_of(function: object) -> str:
    """Return the name of a function, for error messages."""
    return getattr(function, "__qualname__", None) or repr(function)


def _required(function: Any) -> list[inspect.Parameter]:
    """Return the positional parameters without a default."""
    if not callable(function):
        raise ConfigError(f"a handler is a function, not {function!r}")
    name = name_of(function)
    called = function if inspect.isroutine(function) or isinstance(function, type) else type(function).__call__
    if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
        raise ConfigError(f"handler {name} yields: return the result instead")
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        raise ConfigError(f"handler {name} has no readable signature: wrap it in a function") from None
    required = [parameter for parameter in parameters if parameter.default is parameter.empty]
    if keywords := [parameter.name for parameter in required if parameter.kind is parameter.KEYWORD_ONLY]:
        raise ConfigError(f"handler {name} cannot be called without {', '.join(keywords)}: give it a default")
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [parameter for parameter in required if parameter.kind in positional]


def _may_take(function: Callable[..., Any], count: int) -> bool:
    """Return True if a function can be called with ``count`` arguments."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except (TypeError, ValueError):
        return False
    return True


def _decoder(kind: Any, name: str) -> Callable[[Any], Any]:
    try:
        return decoder_of(kind)
    except (TypeError, NameError) as error:
        why = str(error)
    raise ConfigError(f"handler {name}: a payload cannot be decoded as {kind!r}: {why}")


def is_async(function: Callable[..., Any]) -> bool:
    """Return True if calling the function returns a coroutine."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def call_caught(call: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, BaseException | None]:
    """Call a handler in a thread and return its exception, because a future cannot hold every kind of exception."""
    try:
        return call(*args), None
    except BaseException as error:  # noqa: BLE001
        return None, error


def traceback_of(error: BaseException) -> str:
    """Return where an exception was raised, for a report: the end of its traceback, without values.

    It begins in the code of the user: lines of this package come first in every traceback, and say nothing.
    """
    found = traceback.extract_tb(error.__traceback__, limit=-TRACEBACK_FRAMES)
    frames = [frame for frame in found if not frame.filename.startswith(_PACKAGE)]
    lines = traceback.format_list(frames)
    while lines and sum(map(len, lines)) > TRACEBACK_CHARS:
        del lines[0]
    return "".join(lines)


def describe(error: BaseException) -> str:
    """Return what an exception of a handler says, for a report."""
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:  # noqa: BLE001 -- a __str__ of the user may raise anything
        return type(error).__name__


def _annotation(function: Callable[..., Any], parameter: inspect.Parameter, name: str) -> Any:
    """Return the annotation of a parameter; a string (``from __future__ import annotations``) is evaluated."""
    annotation = parameter.annotation
    if not isinstance(annotation, str):
        return annotation
    target = inspect.unwrap(getattr(function, "__func__", function))
    if not inspect.isfunction(target):
        target = type(target).__call__
    names = dict(getattr(target, "__globals__", {}))
    if inspect.isfunction(target):
        for free, cell in zip(target.__code__.co_freevars, target.__closure__ or (), strict=True):
            with suppress(ValueError):  # empty: the name is defined later
                names[free] = cell.cell_contents
    try:
        return eval(annotation, names)  # noqa: S307 -- the annotation is the handler's own code, as in typing.get_type_hints
    except (NameError, AttributeError, SyntaxError, TypeError):
        if annotation.rsplit(".", 1)[-1] == Task.__name__:
            return Task  # imported for type checkers only
        raise ConfigError(
            f"handler {name}: the annotation {annotation!r} cannot be looked up; "
            "define its class at the top of the module"
        ) from None
