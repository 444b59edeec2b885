"""The log of a program that runs an agent: what the program has configured stays. The test plays the coordinator."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from coord.embedded import EmbeddedServer
from coord.models.facts import AgentRegistered
from tests.agent.played_coordinator import PlayedCoordinator

SCRIPT = """
import logging
from coord import Agent

{begin}
agent = Agent("a")

@agent.on_stop
async def say():
    logging.getLogger("own").info("own line")

agent.run({options})
"""
OWN = 'logging.basicConfig(level=logging.INFO, format="OWN %(name)s %(message)s")'


@pytest.mark.parametrize(
    ("begin", "options", "shown"),
    [
        (OWN, "", (True, True)),
        (OWN, "configure_logging=False", (True, False)),
        ("", "", (False, True)),
        ("", "configure_logging=False", (False, False)),
    ],
    ids=["own", "own, alone", "coord's", "none"],
)
async def test_a_program_keeps_its_own_log(
    server: EmbeddedServer,
    coordinator: PlayedCoordinator,
    tmp_path: Path,
    *,
    begin: str,
    options: str,
    shown: tuple[bool, bool],
) -> None:
    """Coord's lines are added to it, unless the program wants none."""
    script = tmp_path / "agent.py"
    script.write_text(SCRIPT.replace("{begin}", begin).replace("{options}", options))
    environ = {
        **os.environ,
        "COORD_REDIS_URL": server.url,
        "COORD_NAMESPACE": coordinator.settings.namespace,
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), env=environ, stderr=asyncio.subprocess.PIPE
    )
    await coordinator.wait_for("in:registry", AgentRegistered)
    process.send_signal(signal.SIGTERM)
    _, err = await process.communicate()
    assert process.returncode == 0
    assert (b"OWN own own line" in err, b"agent.asked_to_stop" in err) == shown
