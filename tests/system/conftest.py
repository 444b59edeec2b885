"""What the tests of whole processes share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from coord import Client
from tests.coord_up import Start
from tests.running import RunningCell
from tests.system import file_survey
from tests.system.program_fleet import Fleet


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `coord up` on folders of this test's own."""
    starter = Start(tmp_path)
    yield starter
    starter.end()


@pytest.fixture
def start_job(tmp_path: Path) -> Iterator[file_survey.Start]:
    """Starts file surveys with data folders of this test's own."""
    starter = file_survey.Start(tmp_path)
    yield starter
    starter.end()


@pytest.fixture
async def fleet(cell: RunningCell, tmp_path: Path) -> AsyncIterator[Fleet]:
    """A cell at work and whoever talks to it."""
    async with Client(cell.url, settings=cell.settings) as client:
        fleet = Fleet(cell, client, tmp_path)
        yield fleet
        await fleet.end()
