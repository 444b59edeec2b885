"""What the tests of whole processes share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.coord_up import Start


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `coord up` on folders of this test's own."""
    starter = Start(tmp_path)
    yield starter
    starter.end()
