"""``scripts/bench placement`` runs; what it measures is not tested, because machines differ."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from coord.placement import STRATEGIES

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


def test_placement_shows_the_cost_of_every_strategy() -> None:
    """A quick run ends with 0; its table has a row for each strategy, with a number for each fleet."""
    done = subprocess.run([BENCH, "placement", "--quick"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines() if "|" in line]
    assert rows[0] == ["work", "strategy", "goal", "100", "1,000"]
    assert {row[1] for row in rows[2:]} == set(STRATEGIES)
    assert all(float(cell.split()[0]) > 0 for row in rows[2:] for cell in row[3:])
    assert "miss a goal" in done.stdout
