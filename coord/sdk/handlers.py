"""What a handler takes: read from its signature once, when it is registered."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from coord.errors import ConfigError
from coord.sdk.task import Task


class Handler(NamedTuple):
    """A function and how it is called."""

    call: Callable[..., Any]
    is_async: bool
    decode: Callable[[Any], Any] | None  #: of the payload; None: it takes the Task alone
    takes_task: bool  #: after the payload


def read_handler(function: Callable[..., Any]) -> Handler:
    """How to call a task's handler.

    It takes the ``Task``; or, where its first parameter is annotated with a msgspec Struct, the payload as that
    Struct, and then, if it has a second parameter, the ``Task``.

    Raises:
        ConfigError: its signature says something else.
    """
    name = getattr(function, "__qualname__", repr(function))
    parameters = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
    ]
    if not parameters or len(parameters) > 2:
        raise ConfigError(f"handler {name} must take the task, or its payload and then the task")
    first = _annotation(function, parameters[0], name)
    is_struct = isinstance(first, type) and issubclass(first, msgspec.Struct)
    if len(parameters) == 2 and not is_struct:
        raise ConfigError(f"handler {name} takes two arguments, so its first must be annotated with a msgspec Struct")
    return Handler(
        call=function,
        is_async=is_async(function),
        decode=msgspec.json.Decoder(first).decode if is_struct else None,
        takes_task=len(parameters) == 2,
    )


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def call_caught(call: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, BaseException | None]:
    """Call a handler in a thread; what it raises is returned, since a future cannot hold every kind of exception."""
    try:
        return call(*args), None
    except BaseException as error:  # noqa: BLE001
        return None, error


def _annotation(function: Callable[..., Any], parameter: inspect.Parameter, name: str) -> Any:
    """The parameter's annotation; one that stands as a string (``from __future__ import annotations``) is looked up."""
    said = parameter.annotation
    if not isinstance(said, str):
        return said
    target = inspect.unwrap(getattr(function, "__func__", function))
    if not inspect.isfunction(target):
        target = type(target).__call__
    names = dict(getattr(target, "__globals__", {}))
    names.update(inspect.getclosurevars(target).nonlocals if inspect.isfunction(target) else {})
    try:
        return eval(said, names)  # noqa: S307 -- the annotation is the handler's own code, as in typing.get_type_hints
    except NameError:
        if said.rsplit(".", 1)[-1] == Task.__name__:
            return Task  # imported for type checkers only
        raise ConfigError(
            f"handler {name}: the annotation {said!r} cannot be looked up; define its class at the top of the module"
        ) from None
