"""A picture of ``scripts/bench quality``: for each regime, how far the strategies are from the best, as SVG."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from math import log

from coord.simulation import PULL

#: The rows that are shown, and their colours.
COLOURS = {
    "predictive": "#1b7f3b",
    "prequal": "#7b3fa0",
    "least_response_time": "#d98a00",
    "least_connections": "#2f5fb3",
    "random": "#9a9a9a",
    PULL: "#c0392b",
}
TITLE = "Mean response ÷ that of the better oracle (* ÷ that of the best row: no oracle)"
#: Sizes in pixels, and the highest ratio on the axis: worse ones are drawn at the edge.
WIDTH, NAMES, ROW, TOP, RIGHT, HIGHEST = 860, 190, 38, 80, 24, 5.0
#: Radius of a dot, and the distance of two in one row: each strategy has its own height, so none hides another one.
DOT, STEP = 2.8, 5.8
TICKS = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0)


def draw(ratios: Mapping[str, Mapping[str, float]]) -> str:
    """Return the picture.

    Args:
        ratios: regime -> row -> mean response ÷ the best one.
    """
    height = TOP + ROW * len(ratios) + 12
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="12" y="20" font-size="14" font-weight="bold">{TITLE}</text>',
    ]
    x = 12.0
    for name, colour in COLOURS.items():
        lines.append(f'<circle cx="{x + 5:.0f}" cy="38" r="5" fill="{colour}"/>')
        lines.append(f'<text x="{x + 14:.0f}" y="42" font-size="12">{escape(name)}</text>')
        x += 30 + 7.2 * len(name)
    lines += [
        f'<rect y="{TOP + ROW * number}" width="{WIDTH}" height="{ROW}" fill="#f3f5f8"/>'
        for number in range(0, len(ratios), 2)
    ]
    for tick in TICKS:
        at = _x(tick)
        lines.append(f'<line x1="{at:.1f}" y1="{TOP - 8}" x2="{at:.1f}" y2="{height - 8}" stroke="#cfd4da"/>')
        lines.append(f'<text x="{at:.1f}" y="{TOP - 12}" font-size="11" text-anchor="middle">{tick:g}</text>')
    for number, (regime, rows) in enumerate(ratios.items()):
        y = TOP + ROW * number + ROW / 2
        lines.append(f'<text x="12" y="{y + 4:.1f}" font-size="12">{escape(regime)}</text>')
        first = y - STEP * (len(COLOURS) - 1) / 2
        lines += [_dot(name, rows[name], first + STEP * place) for place, name in enumerate(COLOURS) if name in rows]
    return "\n".join([*lines, "</svg>"]) + "\n"


def _dot(name: str, ratio: float, y: float) -> str:
    place = f'cx="{_x(ratio):.1f}" cy="{y:.1f}" r="{DOT}"'
    title = f"<title>{escape(name)}: {ratio:.2f}</title>"
    return f'<circle {place} fill="{COLOURS[name]}">{title}</circle>'


def _x(ratio: float) -> float:
    share = log(min(max(ratio, 0.95), HIGHEST) / 0.95) / log(HIGHEST / 0.95)
    return NAMES + share * (WIDTH - NAMES - RIGHT)
