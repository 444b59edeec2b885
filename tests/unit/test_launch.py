"""`python -m coord.launch workers`: coord's own package is started, whatever else has its name."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from coord.up.programs import worker_command

ROOT = Path(__file__).parents[2]


def launch(*path: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Start a worker that ends at once, for its Redis is none; ``path`` is its PYTHONPATH."""
    return subprocess.run(
        worker_command("registry", None, watch_stdin=False),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "COORD_REDIS_URL": "none"} | environ,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def is_ours(done: subprocess.CompletedProcess[str]) -> bool:
    """Return True if it was coord's worker that refused the URL."""
    return done.returncode == 2 and done.stderr.startswith("coord: ") and "is not a Redis URL" in done.stderr


@pytest.fixture(params=["package", "folder", "module", "half"])
def theirs(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder of a user, with something in it that is called ``workers``."""
    if request.param == "module":
        (tmp_path / "workers.py").write_text("raise SystemExit('theirs')")
        return tmp_path
    (tmp_path / "workers").mkdir()
    if request.param != "folder":
        (tmp_path / "workers" / "__init__.py").write_text(
            "" if request.param == "half" else "raise SystemExit('theirs')"
        )
    (tmp_path / "workers" / "loop.py").write_text("raise SystemExit('theirs')")
    return tmp_path


def test_a_user_s_package_of_that_name_does_not_hide_ours(theirs: Path) -> None:
    """A package, a folder or a module on PYTHONPATH called workers is not what is started."""
    done = launch(theirs)
    assert is_ours(done), done.stderr


def test_a_user_s_finder_does_not_hide_ours(tmp_path: Path) -> None:
    """Not even one for which an installed package of that name stands, as editable installations have them."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "workers.py").write_text("raise SystemExit('theirs')")
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        return PathFinder.find_spec(name, [{str(tmp_path / 'elsewhere')!r}]) if name == 'workers' else None\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    done = launch(tmp_path)
    assert is_ours(done), done.stderr


def test_a_collision_is_named(tmp_path: Path) -> None:
    """Where another package was installed over ours, one line says which it is and what to do."""
    shutil.copytree(ROOT / "coord", tmp_path / "coord", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "__init__.py").write_text("")
    (tmp_path / "workers" / "__main__.py").write_text("raise SystemExit('theirs')")
    done = launch(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"coord: the package workers in {tmp_path / 'workers'} is not the one of coord")
    assert "rename that package" in line
