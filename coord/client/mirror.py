"""``SyncClient``: the client of programs without an event loop, such as scripts, web views, threads and notebooks.

It has the methods of ``Client``, made from them: each one runs on the background event loop of the process and returns
when the coroutine has. Handles of tasks are ``SyncTaskHandle``, which is made from ``TaskHandle`` in the same way. An
async iterator becomes an iterator.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar
from weakref import WeakSet

from coord.client.blocking import (
    EXIT_S,
    BackgroundLoop,
    background_loop,
    call_at_exit,
    exclusive,
    generation,
    keep_inherited,
    start_in_background,
)
from coord.client.client import Client
from coord.client.connection import REACH_S
from coord.client.handle import TaskHandle
from coord.config import Settings
from coord.errors import ConfigError

C = TypeVar("C", bound=type)

#: Parts of the asynchronous classes that belong on the loop.
INTERNAL = frozenset({"connection", "notifying"})

CLOSED = "the client is closed: open it again with open(), or make another one"


class _Mirror:
    """An object whose methods are those of an asynchronous one, and return when these have."""

    _client: SyncClient

    def _target(self, client: Client) -> Any:
        """Return the asynchronous object; called on the loop."""
        raise NotImplementedError

    def _current(self) -> Any:
        """Return the asynchronous object, for what needs no loop."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in INTERNAL:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self._client._wrapped(getattr(self._current(), name), name)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._current()!r}>"


def _mirrors(kind: type) -> Callable[[C], C]:
    """Decorate a class with the public methods of an asynchronous one."""

    def complete(mirror: C) -> C:
        for name in dir(kind):
            if name.startswith("_") or name in INTERNAL or name in vars(mirror):
                continue
            attribute = inspect.getattr_static(kind, name)
            if inspect.isfunction(attribute):
                setattr(mirror, name, _mirrored(name, attribute))
            elif inspect.isdatadescriptor(attribute):
                setattr(mirror, name, _attribute(name, attribute))
        return mirror

    return complete


def _mirrored(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(function)
    lists = [one.name for one in signature.parameters.values() if "Iterable[" in str(one.annotation)]
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        def method(self: _Mirror, *args: Any, **kwargs: Any) -> Any:
            return self._client._iterate(self, name, *_taken(self, signature, lists, args, kwargs))

    else:

        @functools.wraps(function)
        def method(self: _Mirror, *args: Any, **kwargs: Any) -> Any:
            return self._client._call(self, name, *_taken(self, signature, lists, args, kwargs))

    returns = re.sub(r"\bAsync(?:Iterator|Generator)\b", "Iterator", str(signature.return_annotation))
    returns = returns.replace("TaskHandle", "SyncTaskHandle")
    method.__signature__ = signature.replace(return_annotation=returns)  # type: ignore[attr-defined]
    return method


def _attribute(name: str, attribute: Any) -> property:
    def read(self: _Mirror) -> Any:
        return self._client._wrapped(getattr(self._current(), name), name)

    read.__doc__ = inspect.getdoc(attribute)
    return property(read)


def _taken(
    mirror: _Mirror, signature: inspect.Signature, lists: list[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments with what is to be gone through as lists: a generator of the caller's may use the client too."""
    if not lists:
        return args, kwargs
    bound = signature.bind(mirror, *args, **kwargs)
    for name in lists:
        given = bound.arguments.get(name)
        if isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping):
            bound.arguments[name] = list(given)
    return bound.args[1:], bound.kwargs


@_mirrors(TaskHandle)
class SyncTaskHandle(_Mirror):
    """One submission of a task, for programs without an event loop; see ``TaskHandle``."""

    def __init__(self, client: SyncClient, handle: TaskHandle) -> None:
        self._client = client
        self._handle = handle
        self._generation = generation()

    def _target(self, client: Client) -> TaskHandle:
        if self._generation != generation():  # what waits for it belongs to the parent of this process
            keep_inherited(self._handle)
            self._handle, self._generation = client.handle(self._handle.task_id), generation()
        return self._handle

    def _current(self) -> TaskHandle:
        return self._handle

    def __repr__(self) -> str:
        return f"<SyncTaskHandle {self._handle.task_id}>"


class _Part(_Mirror):
    """A part of the client that has methods of its own."""

    def __init__(self, client: SyncClient, name: str) -> None:
        self._client = client
        self._name = name

    def _target(self, client: Client) -> Any:
        return getattr(client, self._name)

    def _current(self) -> Any:
        return getattr(self._client._current(), self._name)


#: Type of a value -> the class that shows its methods, or None: it has no coroutines.
_parts: dict[type, type[_Part] | None] = {}


def _part_of(kind: type) -> type[_Part] | None:
    if kind not in _parts:
        public = [inspect.getattr_static(kind, name) for name in dir(kind) if not name.startswith("_")]
        is_asynchronous = kind.__module__.startswith("coord.") and any(map(inspect.iscoroutinefunction, public))
        part = type(f"Sync{kind.__name__}", (_Part,), {"__doc__": kind.__doc__})
        _parts[kind] = _mirrors(kind)(part) if is_asynchronous else None
    return _parts[kind]


@_mirrors(Client)
class SyncClient(_Mirror):
    """One connection to a cell for any number of threads, in programs without an event loop.

    It has the methods of ``Client``, without ``await``; so has what they return. It connects at the first call, and is
    closed at the exit of the process: one at the top of a module serves a whole web application. A forked child gets a
    connection of its own. ``with SyncClient() as client`` connects at the beginning and closes at the end.

    Args:
        url: where Redis is; default: see ``coord.connection.locate``.
        settings: default: from the environment.
        reach_s: seconds to go on trying while no server answers, at the first call or ``open``.
    """

    def __init__(self, url: str | None = None, *, settings: Settings | None = None, reach_s: float = REACH_S) -> None:
        self._make = functools.partial(Client, url, settings=settings, reach_s=reach_s)
        self._inner: Client = self._make()
        self._generation = generation()
        self._opening: asyncio.Task[None] | None = None
        self._is_open = False
        self._is_closed = False  #: by ``close``; a call does not open it again
        _clients.add(self)

    @property
    def _client(self) -> SyncClient:  # type: ignore[override]
        return self

    def open(self) -> None:
        """Connect now, and not at the first call; a closed client is opened again.

        Raises: as ``Client.open``.
        """
        self._is_closed = False
        background_loop().run(self._connect(self._current()))

    def close(self) -> None:
        """Disconnect; what waits in other threads raises ``ConfigError``. What was submitted goes on."""
        self._is_closed = True
        if self._generation == generation():
            background_loop().run(self._disconnect())

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        given = self.__dict__  # of one that could not be made it is empty
        if given.get("_is_open") and self._generation == generation():
            with contextlib.suppress(Exception):  # the process may be ending
                start_in_background(self._inner.close)

    def __repr__(self) -> str:
        return f"<SyncClient {self._inner.caller}>"

    def _target(self, client: Client) -> Client:
        return client

    def _current(self) -> Client:
        if self._generation != generation():
            with exclusive():
                if self._generation != generation():
                    keep_inherited((self._inner, self._opening))
                    self._inner, self._opening, self._is_open = self._make(), None, False
                    self._generation = generation()
        return self._inner

    def _call(self, mirror: _Mirror, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a method of what a mirror shows, and return what it returned."""
        client = self._current()

        async def work() -> Any:
            await self._ready(client, mirror)
            result = getattr(mirror._target(client), name)(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result

        return self._wrapped(background_loop().run(work()), name)

    def _iterate(self, mirror: _Mirror, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
        """Run an async iterator of what a mirror shows, step by step."""
        client, loop = self._current(), background_loop()
        known: dict[TaskHandle, SyncTaskHandle] = {}

        def taken(value: Any) -> Any:
            if isinstance(value, list):
                return [taken(one) for one in value]
            if isinstance(value, SyncTaskHandle):
                handle = value._target(client)
                known[handle] = value
                return handle
            return value

        async def begin() -> Any:
            await self._ready(client, mirror)
            given = {one: taken(value) for one, value in kwargs.items()}
            return getattr(mirror._target(client), name)(*map(taken, args), **given)

        steps = loop.run(begin())
        try:
            while True:
                try:
                    value = loop.run(anext(steps))
                except StopAsyncIteration:
                    return
                yield known[value] if isinstance(value, TaskHandle) and value in known else self._wrapped(value)
        finally:
            if loop.is_current():  # the collector of cycles runs there too
                loop.start(steps.aclose())
            else:
                loop.run(steps.aclose())

    def _wrapped(self, value: Any, name: str = "") -> Any:
        """Return what a caller may use: handles and parts of the client without their coroutines."""
        if isinstance(value, TaskHandle):
            return SyncTaskHandle(self, value)
        if isinstance(value, list) and value and isinstance(value[0], TaskHandle):
            return [SyncTaskHandle(self, one) for one in value]
        part = _part_of(type(value)) if name else None
        return value if part is None else part(self, name)

    async def _ready(self, client: Client, mirror: _Mirror) -> None:
        """Connect unless that is done; on the loop.

        Raises:
            ConfigError: the client was closed, and what is asked for is not known without it.
        """
        if not self._is_closed:
            await self._connect(client)
        elif not (isinstance(mirror, SyncTaskHandle) and mirror._current().done):
            raise ConfigError(CLOSED)

    async def _connect(self, client: Client) -> None:
        if self._is_open:
            return
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(client.open())
        await asyncio.shield(self._opening)  # all who call meanwhile share it
        self._is_open = not self._is_closed

    async def _disconnect(self) -> None:
        opening, self._opening, self._is_open = self._opening, None, False
        if opening is not None and not opening.done():
            opening.cancel()
            await asyncio.wait([opening])
        await self._inner.close()


_clients: WeakSet[SyncClient] = WeakSet()


def _close_all(loop: BackgroundLoop) -> None:
    async def close() -> None:
        await asyncio.gather(*(one._disconnect() for one in mine), return_exceptions=True)

    mine = [one for one in _clients if one._is_open and one._generation == generation()]
    if mine:
        loop.run(close(), EXIT_S)


call_at_exit(_close_all)
