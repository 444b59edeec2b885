"""Joins the modules of the dashboard into one script, when they are first served.

The files stay plain ES modules, which any editor and browser understands, and a browser loads one file in place of
twenty. Each module becomes a function that returns its exports:

    const fleet = (() => { const {h, fill} = dom; …; return {title, mount, unmount}; })();

Comments and spaces are left out (``coord/gateway/compact.py``): they would be a third of the script. Only these forms
are supported: ``import {a, b} from "./x.js";`` and ``export`` before a declaration, at the begin of a line, and
``import("./x.js")``. A template literal has one line. Modules may not import each other in a circle, except by
``import("./x.js")``.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping

from coord.gateway.compact import compact

_COMMENT = re.compile(r"^[ \t]*(?:/\*.*?\*/|//[^\n]*)[ \t]*\n", re.MULTILINE | re.DOTALL)
_INDENT = re.compile(r"^[ \t]+|\n(?=[ \t]*\n)", re.MULTILINE)
_IMPORT = re.compile(r'^import \{([^{}]*)\} from "([^"]+)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export ((?:async )?function\*? |class |const )(\w+)", re.MULTILINE)
_LAZY = re.compile(r'\bimport\("([^"]+)"\)')
#: What is left of a form that is not supported.
_LEFT = re.compile(r"^(?:import|export)\b.*", re.MULTILINE)


def join(modules: Mapping[str, str], entry: str) -> str:
    """Return one module that has the effect of a module and of all that it imports.

    Args:
        modules: path -> source.
        entry: path of the module that is run.

    Raises:
        ValueError: a module does not exist, is part of a circle, or has a form that is not supported; names it.
    """
    joined: dict[str, str] = {}
    _add(entry, modules, joined, ())
    return "".join(joined.values())


def _add(path: str, modules: Mapping[str, str], joined: dict[str, str], above: tuple[str, ...]) -> None:
    if path in above:
        raise ValueError(f"{path} imports itself through {' -> '.join(above)}")
    if path in joined:
        return
    if path not in modules:
        raise ValueError(f"{above[-1] if above else 'the page'} imports {path}, which does not exist")
    source = _INDENT.sub("", _COMMENT.sub("", modules[path]))
    lazy: list[str] = []

    def bind(found: re.Match[str]) -> str:
        target = _resolve(path, found[2])
        _add(target, modules, joined, (*above, path))
        names = ",".join(name.strip().replace(" as ", ":") for name in found[1].split(",") if name.strip())
        return f"const {{{names}}}={_name(target)};\n"

    def bind_lazy(found: re.Match[str]) -> str:
        lazy.append(_resolve(path, found[1]))
        return f"Promise.resolve().then(()=>{_name(lazy[-1])})"

    names = ",".join(name for _, name in _EXPORT.findall(source))
    body = _LAZY.sub(bind_lazy, _EXPORT.sub(r"\1\2", _IMPORT.sub(bind, source)))
    left = _LEFT.search(body)
    if left is not None:
        raise ValueError(f"{path}: {left[0][:80]!r} is not supported; see coord/gateway/script.py")
    joined[path] = f"const {_name(path)}=(()=>{{{compact(body)}\nreturn{{{names}}};}})();\n"
    for target in lazy:
        _add(target, modules, joined, ())


def _resolve(path: str, target: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), target))


def _name(path: str) -> str:
    """Return the name of a module in the script."""
    return "_" + re.sub(r"\W", "_", path.removesuffix(".js"))
