"""One self-contained HTML page: style, tables, pictures."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from everymask.report.picture import png_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from everymask.metrics import Table

STYLE = """
:root { color-scheme: light dark; --back: #fdfdfc; --card: #ffffff; --text: #1c1e21; --quiet: #666a70; --line: #dfe1e4;
  --s0: #2463c9; --s1: #d9730d; --s2: #12855a; --s3: #7d4fc4; --s4: #c8323f; --s5: #0c8494; }
@media (prefers-color-scheme: dark) { :root { --back: #15171a; --card: #1d2024; --text: #e6e7e9; --quiet: #9a9ea5;
  --line: #34383e; --s0: #6ea4ff; --s1: #f0a04b; --s2: #4cc793; --s3: #b795f2; --s4: #f27d86; --s5: #4fc3d1; } }
body { margin: 0 auto; max-width: 1100px; padding: 28px 20px 60px; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 34px 0 10px; }
.quiet { color: var(--quiet); margin: 0 0 18px; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 10px; margin: 18px 0; }
.tile, figure { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; }
.tile b { display: block; font-size: 22px; font-weight: 600; overflow-wrap: anywhere; }
.tile span { color: var(--quiet); font-size: 13px; }
.charts { display: grid; align-items: start; gap: 14px;
  grid-template-columns: repeat(auto-fit, minmax(min(480px, 100%), 1fr)); }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(320px, 100%), 1fr)); gap: 14px; }
figure { margin: 0; min-width: 0; } figcaption { font-weight: 600; margin-bottom: 6px; overflow-wrap: anywhere; }
figure img { display: block; width: 100%; border-radius: 4px; }
figure p { margin: 6px 0 0; color: var(--quiet); font-size: 13px; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--quiet); font: 12px system-ui, sans-serif; }
svg text.strong { fill: var(--text); }
.grid { stroke: var(--line); } .axis { stroke: var(--quiet); } .mark { stroke: var(--quiet); stroke-dasharray: 4 4; }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
polyline.again { stroke-dasharray: 7 4; } .legend i.again { opacity: .55; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 13px; margin-bottom: 4px; }
.legend i { display: inline-block; width: 14px; height: 4px; border-radius: 2px; margin-right: 6px;
  vertical-align: 3px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 5px 12px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--quiet); font-weight: 600; } th:first-child, td:first-child { text-align: left; padding-left: 0; }
details { margin-top: 18px; } summary { cursor: pointer; font-weight: 600; }
"""
SERIES_STYLE = "".join(
    f"polyline.series{number} {{ stroke: var(--s{number}) }} "
    f"circle.series{number}, rect.series{number} {{ fill: var(--s{number}) }} "
    f".legend i.series{number} {{ background: var(--s{number}) }}\n"
    for number in range(6)
)


def page(title: str, subtitle: str, body: Iterable[str]) -> str:
    """The whole page; title and subtitle are plain text, `body` is HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}{SERIES_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="quiet">{escape(subtitle)}</p>\n'
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def tiles(entries: Sequence[tuple[str, str]]) -> str:
    """A row of figures: (what it is, its value)."""
    made = [f"<div class='tile'><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in entries]
    return f"<div class='tiles'>{''.join(made)}</div>"


def table(content: Table) -> str:
    """A table with its title and note."""
    head = "".join(f"<th>{escape(name)}</th>" for name in content.columns)
    # The first column names the row: a threshold is written as it was given.
    named = [(f"{row[0]:g}" if isinstance(row[0], float) else row[0], *row[1:]) for row in content.rows]
    rows = ["".join(f"<td>{escape(cell(value))}</td>" for value in row) for row in named]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    note = f"<p class='quiet'>{escape(content.note)}</p>" if content.note else ""
    return f"<h2>{escape(content.title)}</h2><div class='wide'><table><tr>{head}</tr>{body}</table></div>{note}"


def cell(value: str | int | float) -> str:
    """A table cell for people: three digits after the point; a dash where there is no figure."""
    if isinstance(value, float):
        return "-" if math.isnan(value) else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else value


def picture(pixels: NDArray[np.uint8], caption: str, text: str = "") -> str:
    """A picture (H, W, 3) inside the page, with a caption and a line below."""
    data = base64.b64encode(png_bytes(pixels)).decode("ascii")
    below = f"<p>{escape(text)}</p>" if text else ""
    return (
        f'<figure><figcaption>{escape(caption)}</figcaption><img src="data:image/png;base64,{data}" '
        f'alt="{escape(caption)}">{below}</figure>'
    )


def listing(title: str, entries: Iterable[tuple[str, str]]) -> str:
    """Names and values behind a title that opens them."""
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in entries)
    return f"<details><summary>{escape(title)}</summary><div class='wide'><table>{rows}</table></div></details>"
