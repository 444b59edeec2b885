"""``python -P -m coord.launch workers KIND …``: start the package ``workers`` that was installed with coord.

A folder or a package of a user may have the same name and come first on ``PYTHONPATH``. So the package beside this one
is loaded by its place, and its modules are found there whatever else has their names.
"""

from __future__ import annotations

import runpy
import sys
from importlib import util
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from coord.interrupts import end_on_interrupt
from coord.standard_streams import open_missing, write_error

#: Files that show that a package called ``workers`` is the one of coord.
MARKS = ("__main__.py", "loop.py", "lua/admit.lua")


class NotOurs(ImportError):
    """Another package has the name, and that of coord was not found."""


def main() -> None:
    """Run the package in the first argument, in this process."""
    open_missing()
    end_on_interrupt()
    package = sys.argv.pop(1)
    try:
        load(package)
    except NotOurs as error:
        write_error(f"coord: {error}")
        sys.exit(2)
    runpy.run_module(package, run_name="__main__", alter_sys=True)


def load(package: str) -> None:
    """Import a package from the folder that holds ``coord``, wherever that name leads to otherwise.

    Raises:
        NotOurs: the package there is not the one of coord, nor is any other of that name.
    """
    here = Path(__file__).resolve().parents[1]
    for spec in (PathFinder.find_spec(package, [str(here)]), util.find_spec(package)):
        if spec is None or not _is_ours(spec):
            continue
        module = util.module_from_spec(spec)
        sys.modules[package] = module
        if spec.loader is not None:
            spec.loader.exec_module(module)
        return
    found = util.find_spec(package)
    place = _folder(found) if found is not None else None
    raise NotOurs(
        f"the package {package} in {place} is not the one of coord, and hides it; "
        f"rename that package, or install coord again in an environment without it"
        if place
        else f"the package {package}, which is a part of coord, is missing in {here}; install coord again"
    )


def _is_ours(spec: ModuleSpec) -> bool:
    folder = _folder(spec)
    return folder is not None and all((folder / mark).is_file() for mark in MARKS)


def _folder(spec: ModuleSpec) -> Path | None:
    places = list(spec.submodule_search_locations or ())
    if places:
        return Path(places[0])
    return Path(spec.origin) if spec.origin else None


if __name__ == "__main__":
    main()
