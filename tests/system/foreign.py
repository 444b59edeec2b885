"""The agents of ``examples/foreign``: what each needs, and how it is started in a cell.

What is missing on this machine skips a test locally and fails it in CI.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest

from tests.processes import ROOT, CellProcesses, Process
from tests.waiting import wait_until

FOREIGN = ROOT / "examples" / "foreign"
#: A slow machine is not to lose an agent by its beats: these are patient, and no agent is too ill for work.
PATIENT = {"COORD_MISSED_BEATS": "60", "COORD_HEALTH_THRESHOLD": "0"}
#: The oldest Node.js that the pinned ``redis`` runs on.
OLDEST_NODE = 18


class Language(NamedTuple):
    """One of the agents."""

    name: str
    command: Callable[[pytest.Config], list[str]]  #: without the agent's id; skips or fails where something is missing
    has_incarnation: bool
    library: str  #: how its connections call themselves


def _python(_config: pytest.Config) -> list[str]:
    return [sys.executable, "-P", str(FOREIGN / "python" / "agent.py")]


def _bash(_config: pytest.Config) -> list[str]:
    if not shutil.which("redis-cli") and not shutil.which("valkey-cli"):
        _missing("no redis-cli and no valkey-cli on PATH; apt-get install redis-tools")
    if not shutil.which("jq"):
        _missing("no jq on PATH; apt-get install jq")
    return ["bash", str(FOREIGN / "bash" / "agent.sh")]


def _javascript(config: pytest.Config) -> list[str]:
    node = shutil.which("node")
    if node is None:
        _missing("no node on PATH; apt-get install nodejs npm")
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").partition(".")[0]) < OLDEST_NODE:
        _missing(f"node {version} is too old; {OLDEST_NODE} is needed")
    return [node, str(_installed(config) / "agent.js")]


def _installed(config: pytest.Config) -> Path:
    """A folder with the agent and its packages: installed once for what they are, among pytest's own caches."""
    source = FOREIGN / "javascript"
    package, program = (source / "package.json").read_bytes(), (source / "agent.js").read_bytes()
    assert config.cache is not None
    folder = config.cache.mkdir(f"foreign-{blake2b(package + program, digest_size=6).hexdigest()}")
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several processes of one test run may come here at once
        if not (folder / "complete").exists():
            (folder / "package.json").write_bytes(package)
            npm = shutil.which("npm")
            if npm is None:
                _missing("no npm on PATH; apt-get install npm")
            command = [npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
            if done.returncode:
                _missing(f"npm could not install the packages (is this machine offline?): {done.stderr[-500:]}")
            shutil.copy(source / "agent.js", folder)
            (folder / "complete").touch()
    return folder


def _missing(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


LANGUAGES = (
    Language("python", _python, has_incarnation=True, library="redis-py"),
    Language("javascript", _javascript, has_incarnation=True, library="node-redis"),
    Language("bash", _bash, has_incarnation=False, library="redis-cli"),
)


async def start(at: CellProcesses, config: pytest.Config, language: Language, agent_id: str, **environ: str) -> Process:
    """One of the agents, once it is active."""
    environ = {"COORD_HEARTBEAT_INTERVAL_S": "1"} | environ
    process = at.start_program(agent_id, *language.command(config), agent_id, **environ)
    await until_active(at, process)
    return process


async def until_active(at: CellProcesses, process: Process) -> None:
    """Wait until an agent may be given work."""

    async def active() -> bool:
        assert process.alive, process.told()
        return bool(await at.redis.sismember(at.keys.of("agents:active"), process.name))

    await wait_until(active, f"{process.name} is active\n{process.told()}", 30)
