"""A picture of a comparison: one bar for each strategy, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from coord.simulation.comparison import Result

#: Sizes in pixels.
WIDTH, NAMES, ROW, TOP, BAR = 760, 210, 26, 56, 16
#: Colours of the mean response time and of the 99th percentile of the wait.
MEAN, WAIT = "#4472c4", "#c9d6ee"


def draw(results: Sequence[Result], title: str) -> str:
    """Return the picture as SVG: the mean response time of each row, and behind it the 99th percentile of the wait."""
    longest = max([max(result.mean_s, result.p99_wait_s) for result in results], default=1.0) or 1.0
    scale = (WIDTH - NAMES - 90) / longest
    height = TOP + ROW * len(results) + 14
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">',
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        f'<text x="12" y="22" font-size="15" font-weight="bold">{escape(title)}</text>',
        f'<rect x="12" y="34" width="12" height="12" fill="{MEAN}"/>',
        '<text font-size="13" x="30" y="45">mean response time, s</text>',
        f'<rect x="{NAMES}" y="34" width="12" height="12" fill="{WAIT}"/>',
        f'<text font-size="13" x="{NAMES + 18}" y="45">99th percentile of the wait, s</text>',
    ]
    for number, result in enumerate(results):
        y = TOP + ROW * number
        end = NAMES + scale * max(result.mean_s, result.p99_wait_s) + 6
        lines += [
            f'<text font-size="13" x="12" y="{y + 13}">{escape(result.name)}</text>',
            f'<rect x="{NAMES}" y="{y}" width="{scale * result.p99_wait_s:.1f}" height="{BAR}" fill="{WAIT}"/>',
            f'<rect x="{NAMES}" y="{y + 4}" width="{scale * result.mean_s:.1f}" height="{BAR - 8}" fill="{MEAN}"/>',
            f'<text font-size="13" x="{end:.1f}" y="{y + 13}">{result.mean_s:.3g} / {result.p99_wait_s:.3g}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"
