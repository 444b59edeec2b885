"""What a handler takes: read from its signature once, when it is registered."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from coord.agent.task import Task
from coord.errors import ConfigError
from coord.values import decoder_of


class Handler(NamedTuple):
    """A function and how it is called."""

    call: Callable[..., Any]
    is_async: bool
    decode: Callable[[Any], Any] | None  #: of the payload; None: it takes the Task alone
    takes_task: bool  #: after the payload


def read_handler(function: Callable[..., Any]) -> Handler:
    """How to call a task's handler.

    It takes the ``Task``; or, where its first parameter is annotated with what msgspec can decode (a Struct, a dict, a
    dataclass) or with a pydantic model, the payload as that, and then, if it has a second parameter, the ``Task``.

    Raises:
        ConfigError: its signature says something else.
    """
    name = name_of(function)
    parameters = _required(function)
    if not parameters or len(parameters) > 2:
        raise ConfigError(f"handler {name} must take the task, or its payload and then the task")
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
    """Whether it can be called with a message.

    Raises:
        ConfigError: it cannot.
    """
    if len(_required(function)) > 1 or not _may_take(function, 1):
        raise ConfigError(f"handler {name_of(function)} must take the message, and nothing else")


def check_hook(function: Any) -> None:
    """Whether it is async, and can be called with nothing.

    Raises:
        ConfigError: it is or can not.
    """
    if not callable(function) or not is_async(function) or not _may_take(function, 0):
        raise ConfigError(f"{name_of(function)} must be an async function that takes nothing")


def name_of(function: object) -> str:
    """What a person knows it by."""
    return getattr(function, "__qualname__", None) or repr(function)


def _required(function: Any) -> list[inspect.Parameter]:
    """The positional parameters without a default."""
    if not callable(function):
        raise ConfigError(f"a handler is a function, not {function!r}")
    name = name_of(function)
    called = function if inspect.isroutine(function) or isinstance(function, type) else type(function).__call__
    if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
        raise ConfigError(f"handler {name} yields: what a handler makes is what it returns")
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        raise ConfigError(f"handler {name} does not say what it takes: wrap it in a function that does") from None
    required = [one for one in parameters if one.default is one.empty]
    if keywords := [one.name for one in required if one.kind is one.KEYWORD_ONLY]:
        raise ConfigError(f"handler {name} cannot be called without {', '.join(keywords)}: give it a default")
    return [one for one in required if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]


def _may_take(function: Callable[..., Any], count: int) -> bool:
    """Whether it may be called with so many arguments."""
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
    if inspect.isfunction(target):
        for free, cell in zip(target.__code__.co_freevars, target.__closure__ or (), strict=True):
            with suppress(ValueError):  # empty: it is defined further down
                names[free] = cell.cell_contents
    try:
        return eval(said, names)  # noqa: S307 -- the annotation is the handler's own code, as in typing.get_type_hints
    except (NameError, AttributeError, SyntaxError, TypeError):
        if said.rsplit(".", 1)[-1] == Task.__name__:
            return Task  # imported for type checkers only
        raise ConfigError(
            f"handler {name}: the annotation {said!r} cannot be looked up; define its class at the top of the module"
        ) from None
