"""The pictures of simulations: no text is cut, and nothing covers anything else."""

from __future__ import annotations

import math
from itertools import combinations
from typing import NamedTuple
from xml.etree import ElementTree as ET

import pytest

from coord.simulation import draw
from coord.simulation.comparison import Result
from scripts.benchmarks import quality_picture

SVG = "{http://www.w3.org/2000/svg}"


class Box(NamedTuple):
    """What an element covers."""

    left: float
    top: float
    right: float
    bottom: float

    def covers(self, other: Box) -> bool:
        """Whether two have a point in common."""
        is_beside = self.right <= other.left or other.right <= self.left
        return not is_beside and self.top < other.bottom and other.top < self.bottom


def box_of(one: ET.Element) -> Box:
    """The box of a bar or a text; letters are as wide as in common fonts."""
    x, y = (float(one.attrib.get(name, 0)) for name in ("x", "y"))
    if one.tag == f"{SVG}rect":
        return Box(x, y, x + float(one.attrib["width"]), y + float(one.attrib["height"]))
    size = float(one.attrib["font-size"])
    width = 0.6 * size * len(one.text or "")
    left = x - width / 2 if one.attrib.get("text-anchor") == "middle" else x
    return Box(left, y - 0.75 * size, left + width, y + 0.1 * size)


@pytest.mark.parametrize("title", ["fleet", "Simulation of " + 12 * "a long name "])
def test_a_comparison_fits_its_picture(title: str) -> None:
    """Whatever the names, the title and the numbers are."""
    found = Result("cheapest_of_all_agents_in_the_same_zone", 1.23e-05, 2e-05, 1.0, 1.0, 1.0, None)
    other = Result("short", 2.22e-05, 0.0, 1.0, 1.0, 1.0, None)
    whole, *parts = map(box_of, ET.fromstring(draw([found, other], title)))  # noqa: S314 -- it was made here
    assert len(parts) == 1 + 4 + 2 * 5
    assert all(part.left >= 0 and part.right <= whole.right and part.bottom <= whole.bottom for part in parts)
    assert [pair for pair in combinations(parts, 2) if pair[0].covers(pair[1])] == []


def test_no_dot_of_the_qualities_covers_another_one() -> None:
    """Strategies that are equally good are all seen; the names of regimes end before the dots begin."""
    rows = dict.fromkeys(quality_picture.COLOURS, 1.0)
    regimes = dict.fromkeys(("alike", "speeds, 1 slot, load 30 %", "two types, 4 distributors"), rows)
    root = ET.fromstring(quality_picture.draw(regimes))  # noqa: S314 -- it was made here
    dots = [one for one in root.iter(f"{SVG}circle") if len(one)]
    places = [(float(one.attrib["cx"]), float(one.attrib["cy"])) for one in dots]
    assert len(places) == 3 * len(rows)
    assert all(math.dist(one, other) >= 2 * float(dots[0].attrib["r"]) for one, other in combinations(places, 2))
    texts = [box_of(one) for one in root.iter(f"{SVG}text")]
    assert [pair for pair in combinations(texts, 2) if pair[0].covers(pair[1])] == []
    assert max(text.right for text in texts[-3:]) < min(x for x, _ in places)
