"""The types of ``SyncClient``. Its methods are made from those of ``Client`` at run time, so a stub has their types."""

from __future__ import annotations

import builtins
import functools
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from coord import Client, SyncClient, SyncTaskHandle, TaskHandle
from coord.client.mirror import INTERNAL, _part_of

STUB = Path(__file__).parents[1] / "coord" / "client" / "sync.pyi"
#: What is the same in both classes, and what the mirror of a client has besides.
OWN: dict[type, list[str]] = {
    SyncTaskHandle: [],
    SyncClient: [
        (
            "def __init__("
            "self, url: str | None = ..., *, settings: Settings | None = ..., reach_s: float = ...) -> None: ..."
        ),
        "def __enter__(self) -> Self: ...",
        (
            "def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, "
            "trace: TracebackType | None) -> None: ..."
        ),
    ],
}
OWN_IMPORTS = {"from types import TracebackType", "from typing import Self", "from coord.config import Settings"}


def stub() -> str:
    """Return the text of the stub, not formatted."""
    imports = set(OWN_IMPORTS)
    left: list[tuple[type, type]] = [(Client, SyncClient), (TaskHandle, SyncTaskHandle)]
    classes = []
    while left:
        kind, mirror = left.pop()
        lines = [*OWN.get(mirror, []), *_members(kind, mirror, imports, left)]
        classes.append(f"class {mirror.__name__}:\n" + "".join(f"    {line}\n" for line in lines))
    return "\n".join([*sorted(imports), "", *classes])


def _members(kind: type, mirror: type, imports: set[str], left: list[tuple[type, type]]) -> Iterator[str]:
    """The members of a mirror; the classes of the parts that it has are added to ``left``."""
    for name in dir(kind):
        if name.startswith("_") or name in INTERNAL:
            continue
        attribute = inspect.getattr_static(kind, name)
        if inspect.isfunction(attribute):
            signature = inspect.signature(getattr(mirror, name))
            given = re.sub(r"\bTaskHandle\b", "SyncTaskHandle", ", ".join(_parameters(signature)))
            yield f"def {name}({given}) -> {_typed(signature.return_annotation, attribute, imports)}: ..."
            for one in signature.parameters.values():
                _typed(str(one.annotation).replace("TaskHandle", "SyncTaskHandle"), attribute, imports)
        elif isinstance(attribute, property | functools.cached_property):
            function: Any = attribute.func if isinstance(attribute, functools.cached_property) else attribute.fget
            returned = inspect.signature(function).return_annotation
            shown = function.__globals__.get(returned)
            part = _part_of(shown) if isinstance(shown, type) else None
            if part is not None:
                left.append((shown, part))
            yield "@property"
            yield f"def {name}(self) -> {part.__name__ if part else _typed(returned, function, imports)}: ..."
        else:
            yield f"{name}: str"  # a slot


def _parameters(signature: inspect.Signature) -> Iterator[str]:
    has_star = False
    for one in signature.parameters.values():
        if one.kind is one.KEYWORD_ONLY and not has_star:
            has_star = True
            yield "*"
        star = "**" if one.kind is one.VAR_KEYWORD else "*" if one.kind is one.VAR_POSITIONAL else ""
        typed = "" if one.annotation is one.empty else f": {one.annotation}"
        yield f"{star}{one.name}{typed}{'' if one.default is one.empty else ' = ...'}"


def _typed(annotation: Any, function: Callable[..., Any], imports: set[str]) -> str:
    """The annotation as it was written; what it names is imported from its home."""
    text = "" if annotation is inspect.Signature.empty else str(annotation)
    known = function.__globals__
    for name in re.findall(r"[A-Za-z_]\w*", text):
        if hasattr(builtins, name) or name in {"SyncTaskHandle", "SyncClient"}:
            continue
        if name == "Iterator":
            imports.add("from collections.abc import Iterator")
        elif name in known:
            imports.add(f"from {_home_of(name, known[name])} import {name}")
    return text


def _home_of(name: str, value: Any) -> str:
    """The module that defines what an annotation names."""
    if inspect.ismodule(value):
        return value.__name__.rpartition(".")[0]
    home = getattr(value, "__module__", "")
    if home and hasattr(importlib.import_module(home), name):
        return home
    return next(  # an alias
        module.__name__
        for module in list(sys.modules.values())
        if module.__name__.startswith("coord.")
        and vars(module).get(name) is value
        and re.search(rf"^{name}\b.*=", inspect.getsource(module), re.MULTILINE)
    )
