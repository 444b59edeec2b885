"""A picture of a comparison: two bars for each strategy, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from coord.simulation.comparison import Result

#: Sizes in pixels: of the bars together, of a row, of what is above the first row, of a bar, of the gaps beside texts.
BARS, ROW, TOP, BAR, GAP = 440, 34, 66, 11, 12
#: Widths of a letter of the title, of a name, and of a number beside a bar; no usual font is wider.
TITLE_LETTER, LETTER, DIGIT = 9.5, 8.0, 7.0
#: Colours of the mean response time and of the 99th percentile of the wait.
MEAN, WAIT = "#2f5fb3", "#e0912f"
LEGEND = ((MEAN, "mean response time, s"), (WAIT, "99th percentile of the wait, s"))


def draw(results: Sequence[Result], title: str) -> str:
    """Return the picture as SVG: for each row the mean response time, and below it the 99th percentile of the wait."""
    longest = max([max(result.mean_s, result.p99_wait_s) for result in results], default=1.0) or 1.0
    numbers = [text for result in results for text in (_text(result.mean_s), _text(result.p99_wait_s))]
    left = GAP + LETTER * max([len(result.name) for result in results], default=0) + GAP
    right = DIGIT * max(map(len, numbers), default=0) + 2 * GAP
    legend = sum(LETTER * len(text) + 30 + GAP for _, text in LEGEND)
    width = max(left + BARS + right, GAP + TITLE_LETTER * len(title) + GAP, GAP + legend)
    height = TOP + ROW * len(results) + GAP
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" font-family="sans-serif">',
        f'<rect width="{width:.0f}" height="{height}" fill="white"/>',
        f'<text x="{GAP}" y="22" font-size="15" font-weight="bold">{escape(title)}</text>',
    ]
    x = float(GAP)
    for colour, text in LEGEND:
        lines.append(f'<rect x="{x:.0f}" y="35" width="{BAR}" height="{BAR}" fill="{colour}"/>')
        lines.append(f'<text x="{x + 18:.0f}" y="45" font-size="13">{text}</text>')
        x += LETTER * len(text) + 30
    for number, result in enumerate(results):
        y = TOP + ROW * number
        lines.append(f'<text x="{GAP}" y="{y + 15}" font-size="13">{escape(result.name)}</text>')
        bars = ((y, MEAN, result.mean_s), (y + BAR + 1, WAIT, result.p99_wait_s))
        for top, colour, seconds in bars:
            length = BARS * seconds / longest
            lines += [
                f'<rect x="{left:.0f}" y="{top}" width="{length:.1f}" height="{BAR}" fill="{colour}"/>',
                f'<text x="{left + length + 5:.1f}" y="{top + BAR - 1}" font-size="11">{_text(seconds)}</text>',
            ]
    return "\n".join([*lines, "</svg>"]) + "\n"


def _text(seconds: float) -> str:
    return f"{seconds:.3g}"
