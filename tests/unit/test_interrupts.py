"""Ctrl-C before a program has begun: no traceback, exit code 130."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Presses Ctrl-C at the moment when a module is about to be imported.
INTERRUPTS = """
import os, signal, sys
class Interrupts:
    def find_spec(self, name, *_):
        if name == "{module}":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
"""


def run(folder: Path, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a Python command from a folder."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path} | environ,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("module", "name"), [("redis", "Agent"), ("coord.client.client", "Client"), ("coord.agent.run", "run")]
)
def test_an_agent_s_program_ends_quietly_while_it_imports(tmp_path: Path, module: str, name: str) -> None:
    """Ctrl-C amid `from coord import …` prints nothing."""
    program = tmp_path / "agent.py"
    program.write_text(INTERRUPTS.format(module=module) + f"from coord import {name}\nprint('not reached')\n")
    done = run(tmp_path, str(program))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_an_agent_s_program_ends_quietly_before_it_serves(tmp_path: Path) -> None:
    """Ctrl-C between `agent.run()` and the moment when the agent handles signals prints nothing."""
    program = tmp_path / "agent.py"
    program.write_text(
        "from coord import Agent\n"
        "agent = Agent('a')\n" + INTERRUPTS.format(module="uvloop") + "sys.modules.pop('uvloop', None)\nagent.run()\n"
    )
    done = run(tmp_path, str(program))
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_an_import_within_a_function_raises_as_ever(tmp_path: Path) -> None:
    """What a program does by then may have to be put in order: it gets its KeyboardInterrupt."""
    program = tmp_path / "tool.py"
    program.write_text(
        INTERRUPTS.format(module="redis") + "def work():\n"
        "    try:\n"
        "        from coord import Client\n"
        "    except KeyboardInterrupt:\n"
        "        print('put in order')\n"
        "work()\n"
    )
    done = run(tmp_path, str(program))
    assert (done.returncode, done.stdout, done.stderr) == (0, "put in order\n", "")


def test_an_interactive_session_lives_on(tmp_path: Path) -> None:
    """Ctrl-C at an import in an interactive Python is an exception, as ever."""
    script = INTERRUPTS.format(module="redis") + "\n\nfrom coord import Client\nprint('alive')\n"
    done = subprocess.run(
        [sys.executable, "-i", "-q"],
        input=script,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "alive" in done.stdout
    assert "KeyboardInterrupt" in done.stderr


@pytest.mark.parametrize("module", ["rich.console", "examples.file_survey.fleet", "psutil"])
def test_the_file_survey_ends_quietly_while_it_imports(tmp_path: Path, module: str) -> None:
    """Ctrl-C amid the imports of `scripts/run` prints nothing."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTS.format(module=module))
    done = run(tmp_path, "-P", "-m", "examples.file_survey", "--once")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("module", ["typer", "coord.cli.tasks", "coord.connection", "redis"])
def test_a_command_ends_quietly_while_it_imports(tmp_path: Path, module: str) -> None:
    """Ctrl-C amid the imports of `coord` prints nothing."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTS.format(module=module))
    done = run(tmp_path, "-P", "-m", "coord.cli", "tasks", "list")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("module", ["workers.loop", "uvloop", "redis"])
def test_a_worker_ends_quietly_while_it_imports(tmp_path: Path, module: str) -> None:
    """Ctrl-C amid the imports of a worker prints nothing."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTS.format(module=module))
    done = run(tmp_path, "-P", "-m", "workers", "registry")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
