"""``scripts/bench placement`` and ``quality`` run; what they measure is not tested: machines and fleets differ."""

from __future__ import annotations

import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from coord.placement import STRATEGIES

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


def test_placement_shows_the_cost_of_every_strategy() -> None:
    """A quick run ends with 0; its tables have a row for each strategy, with a number for each fleet."""
    done = subprocess.run([BENCH, "placement", "--quick"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    steady, first = done.stdout.split("ms of CPU")
    rows = _rows(steady)
    assert rows[0] == ["work", "strategy", "goal", "100", "1,000"]
    assert {row[1] for row in rows[2:]} == set(STRATEGIES)
    assert all(float(cell.split()[0]) > 0 for row in rows[2:] for cell in row[3:])
    rows = _rows(first)
    assert rows[0] == ["strategy", "100", "1,000"]
    assert {row[0] for row in rows[2:]} == set(STRATEGIES)
    assert all(float(cell) >= 0 for row in rows[2:] for cell in row[1:])
    assert "miss a goal" in done.stdout


def test_quality_compares_every_strategy_and_draws_a_picture(tmp_path: Path) -> None:
    """A quick run ends with 0; the table of regrets has every strategy and pull; that of the oracle itself is 1."""
    svg = tmp_path / "quality.svg"
    done = subprocess.run([BENCH, "quality", "--quick", "--svg", svg], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    regrets = _rows(done.stdout.split("\n\n")[1])
    columns = regrets[0][1:]
    assert {*STRATEGIES, "next-free-worker pull", "better oracle"} == set(columns)
    assert len(regrets) > 10
    for row in regrets[2:]:
        assert all(float(cell) > 0 for cell in row[1:])
        assert float(row[1 + columns.index("better oracle")]) == 1
    assert "goals are missed" in done.stdout
    root = ET.fromstring(svg.read_text())  # noqa: S314 -- it is our own
    texts = [one.text or "" for one in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "predictive" in texts
    assert "one slows down *" in texts


def _rows(text: str) -> list[list[str]]:
    """Return the cells of the tables in a text."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
