"""Line and bar charts as inline SVG: no plotting library, crisp on any screen, light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 12, 44
SERIES_COLOURS = 6
"""The style sheet of `everymask.report.page` has the classes ``series0`` .. ``series5``."""


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Args:
        name: For the legend.
        x: Positions, increasing.
        y: Values; None or NaN where there is none, which leaves a gap.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]

    def points(self) -> list[tuple[float, float]]:
        """The points that have a finite value."""
        return [(x, y) for x, y in zip(self.x, self.y, strict=True) if y is not None and math.isfinite(y)]


def line_chart(
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float] | None = None,
    logarithmic: bool = False,
    mark: float | None = None,
) -> str:
    """An SVG of lines with axes, grid and legend.

    Args:
        series: Beyond `SERIES_COLOURS` the colours come again, with dashed lines.
        x_label: Under the x axis.
        y_label: Above the y axis.
        y_range: Of the y axis; default: the data's, from 0 if they come near it.
        logarithmic: Logarithmic y axis; values that are not positive are left out.
        mark: Position x of a dashed vertical line, such as the best epoch.
    """
    points = {each.name: [(x, y) for x, y in each.points() if y > 0 or not logarithmic] for each in series}
    everything = [point for line in points.values() for point in line]
    if not everything:
        return '<p class="quiet">Nothing to draw yet.</p>'
    x_low, x_high = min(x for x, _ in everything), max(x for x, _ in everything)
    if x_high == x_low:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    values = [math.log10(y) if logarithmic else y for _, y in everything]
    y_low, y_high = y_range or (min(values), max(values))
    if y_range is None and not logarithmic and 0 < y_low < 0.4 * y_high:
        y_low = 0.0
    if y_high == y_low:
        y_low, y_high = y_low - 0.5, y_high + 0.5

    def across(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def down(y: float) -> float:
        y = math.log10(y) if logarithmic else y
        return HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(y_label)} by {escape(x_label)}">']
    for tick in log_ticks(y_low, y_high) if logarithmic else ticks(y_low, y_high):
        y = down(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in ticks(x_low, x_high, 8):
        x = across(tick)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{tick:g}</text>')
    bottom = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    if mark is not None and x_low <= mark <= x_high:
        x = across(mark)
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
    for number, line in enumerate(points.values()):
        colour = series_class(number)
        if len(line) > 1:
            path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in line)
            parts.append(f'<polyline class="{colour}" points="{path}"/>')
        if 0 < len(line) <= 30:
            parts += [
                f'<circle class="{colour}" cx="{across(x):.1f}" cy="{down(y):.1f}" r="3">'
                f"<title>{x:g}: {y:.4g}</title></circle>"
                for x, y in line
            ]
    return _figure("".join(parts) + "</svg>", y_label, [each.name for each in series])


def bar_chart(bars: Sequence[tuple[str, float]], *, label: str, top: float = 1.0) -> str:
    """An SVG of horizontal bars with their values.

    Args:
        bars: Name and value (NaN: no bar) of each.
        label: What the values are.
        top: Value of a full bar.
    """
    row, left = 24, 190
    height = row * len(bars) + 8
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">']
    for number, (name, value) in enumerate(bars):
        y = row * number + 4
        shown = name if len(name) <= 26 else name[:25] + "…"
        parts.append(f'<text x="{left - 8}" y="{y + 16}" text-anchor="end">{escape(shown)}</text>')
        if math.isfinite(value):
            length = max(0.0, min(value / top, 1.0)) * (WIDTH - left - 60)
            parts.append(
                f'<rect class="series0" x="{left}" y="{y + 3}" width="{length:.1f}" height="{row - 8}" rx="2"/>'
            )
            parts.append(f'<text x="{left + length + 6:.1f}" y="{y + 16}">{value:.3f}</text>')
        else:
            parts.append(f'<text x="{left}" y="{y + 16}">-</text>')
    return _figure("".join(parts) + "</svg>", label, [])


def matrix_chart(rows: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]], *, label: str) -> str:
    """An SVG of a matrix; each cell is the darker, the larger its share of its row.

    Args:
        rows: Names of the rows.
        columns: Names of the columns.
        counts: A number of 0 or more for each cell.
        label: What the matrix is.
    """
    left, top = 130, 110
    side = max(12.0, min(40.0, (WIDTH - left) / max(1, len(columns))))
    width, height = left + side * len(columns) + 4, top + side * len(rows) + 4
    parts = [f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(label)}">']
    for number, name in enumerate(columns):
        x = left + side * (number + 0.5) + 4
        parts.append(f'<text transform="translate({x:.1f} {top - 6}) rotate(-60)">{escape(_short(name))}</text>')
    for i, (name, line) in enumerate(zip(rows, counts, strict=True)):
        y = top + side * i
        parts.append(f'<text x="{left - 8}" y="{y + side / 2 + 4:.1f}" text-anchor="end">{escape(_short(name))}</text>')
        whole = sum(line)
        for j, count in enumerate(line):
            share = count / whole if whole else 0.0
            colour = "series2" if name == columns[j] else "series4"
            title = f"{escape(name)} as {escape(columns[j])}: {count:,} ({share:.1%})"
            # The square root makes rare confusions visible.
            parts.append(
                f'<rect class="{colour}" x="{left + side * j:.1f}" y="{y:.1f}" width="{side - 1:.1f}" '
                f'height="{side - 1:.1f}" fill-opacity="{math.sqrt(share):.3f}"><title>{title}</title></rect>'
            )
            if side >= 28 and share >= 0.005:
                middle = f'x="{left + side * (j + 0.5):.1f}" y="{y + side / 2 + 4:.1f}"'
                parts.append(f'<text class="strong" {middle} text-anchor="middle">{100 * share:.0f}</text>')
    return _figure("".join(parts) + "</svg>", label, [])


def _short(name: str) -> str:
    return name if len(name) <= 18 else name[:17] + "…"


def _figure(svg: str, title: str, names: Sequence[str]) -> str:
    """The chart under its title and, for several lines, the legend."""
    legend = ""
    if len(names) > 1:
        entries = [
            f'<span><i class="{series_class(number)}"></i>{escape(name)}</span>' for number, name in enumerate(names)
        ]
        legend = f'<div class="legend">{"".join(entries)}</div>'
    return f"<figure><figcaption>{escape(title)}</figcaption>{legend}{svg}</figure>"


def series_class(number: int) -> str:
    """The classes of a line in the style sheet: a colour, and dashes where the colours come again."""
    return f"series{number % SERIES_COLOURS}{' again' if number >= SERIES_COLOURS else ''}"


def ticks(low: float, high: float, wanted: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) in low..high, about as many as wanted."""
    rough = (high - low) / max(1, wanted - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between 10**low and 10**high: powers of ten, with 2 and 5 between where there are few."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    factors = (1, 2, 5) if high - low < 2.5 else (1,)
    made = [factor * 10.0**power for power in powers for factor in factors]
    inside = [each for each in made if low - 1e-9 <= math.log10(each) <= high + 1e-9]
    # Less than a factor of two between the ends: no such number may lie there.
    return inside if len(inside) > 1 else [10**each for each in (low, (low + high) / 2, high)]
