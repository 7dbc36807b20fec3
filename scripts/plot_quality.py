"""Draws quality against memory as one SVG: how much worse perplexity gets with the share of a full
cache's bytes that is kept, a line for each policy and format.

    plot_quality.py ROWS.json PICTURE.svg

The rows are those that scripts/quality writes. Not a plotting library: one layout, readable on light and
dark pages. Perplexity is on a logarithmic scale; what is no worse than its floor lies on the floor.

SPDX-License-Identifier: Apache-2.0
"""

import argparse
import json
import math
import pathlib
import sys

import plot_memory
from plot_memory import text

WIDTH, HEIGHT = 900, 560
LEFT, RIGHT, TOP, BOTTOM = 68, 214, 58, 52
FLOOR = 0.0005
BASELINES = {"random": "2 4", "streaming": "7 4"}  # in grey, each with its dashes
COLOURS = plot_memory.COLOURS + ("#1fa3b5", "#b08400", "#6d6fe0", "#e0559b", "#5d8f3b", "#a0602a", "#008f8a", "#8c5a80")
MARKS = {
    "disc": "M{x},{y} m-4,0 a4,4 0 1,0 8,0 a4,4 0 1,0 -8,0 Z",
    "square": "M{x},{y} m-3.6,-3.6 h7.2 v7.2 h-7.2 Z",
    "diamond": "M{x},{y} m0,-5 l5,5 l-5,5 l-5,-5 Z",
    "triangle": "M{x},{y} m0,-5 l4.8,8.4 h-9.6 Z",
}
STYLE = plot_memory.STYLE + """
.line { fill: none; stroke-width: 1.8; } .baseline { fill: none; stroke: #8a929c; stroke-width: 2.4; }
.baseline-mark { fill: #8a929c; }
"""


def read_rows(content):
    """[(series, share of bytes, delta)] in the rows' order. Raises ValueError, KeyError or TypeError."""
    points = []
    for row in json.loads(content):
        share, delta = float(row["bytes_ratio"]), float(row["ppl_delta"])
        if not (math.isfinite(share) and share >= 0 and math.isfinite(delta)):
            raise ValueError(f"{row['policy']}: {share} of the bytes, perplexity {delta}")
        data_format = str(row["format"])
        series = str(row["policy"]) + (f", {data_format}" if data_format != "native" else "")
        points.append((series, share, delta))
    if not points:
        raise ValueError("no rows")
    return points


class Frame:
    """Where a share of bytes and a loss of perplexity lie."""

    def __init__(self, points):
        self.top = max(0.02, *(delta for _, _, delta in points)) * 1.25
        self.right = max(1.0, *(share for _, share, _ in points)) * 1.02

    def x(self, share):
        return LEFT + (WIDTH - LEFT - RIGHT) * share / self.right

    def y(self, delta):
        part = math.log(max(delta, FLOOR) / FLOOR) / math.log(self.top / FLOOR)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * part


def draw_grid(frame):
    parts = []
    for tenth in range(0, 11):
        x = frame.x(tenth / 10)
        parts.append(f'<path class="grid" d="M{x:.1f},{TOP} V{HEIGHT - BOTTOM}"/>')
        parts.append(text(x, HEIGHT - BOTTOM + 17, f"{tenth * 10} %", "small", "middle"))
    ticks = [FLOOR] + [step * 10.0 ** power for power in range(-3, 3) for step in (1, 3)]
    for tick in ticks:
        if tick > frame.top:
            continue
        y = frame.y(tick)
        kind = "frame" if tick == FLOOR else "grid"
        parts.append(f'<path class="{kind}" d="M{LEFT},{y:.1f} H{WIDTH - RIGHT}"/>')
        label = f"+{tick * 100:g} %" if tick != FLOOR else f"<{tick * 100:g} %"
        parts.append(text(LEFT - 8, y + 4, label, "small", "end"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(text(middle, HEIGHT - 14, "bytes kept, of a full cache's", "", "middle"))
    return parts


def mark(shape, x, y, paint):
    return f'<path {paint} d="{MARKS[shape].format(x=f"{x:.1f}", y=f"{y:.1f}")}"/>'


def draw_series(frame, name, points, index):
    """(parts of the picture, parts of the legend drawn at the origin)."""
    shape = list(MARKS)[index // len(COLOURS) % len(MARKS)] if name not in BASELINES else "disc"
    colour = COLOURS[index % len(COLOURS)]
    if name in BASELINES:
        line = f'class="baseline" stroke-dasharray="{BASELINES[name]}"'
        paint = 'class="baseline-mark"'
    else:
        line, paint = f'class="line" stroke="{colour}"', f'fill="{colour}"'
    at = [(frame.x(share), frame.y(delta)) for share, delta in sorted(points)]
    path = "M" + " L".join(f"{x:.1f},{y:.1f}" for x, y in at)
    drawn = [f'<path {line} d="{path}"/>'] + [mark(shape, x, y, paint) for x, y in at]
    x, y = WIDTH - RIGHT + 22, TOP + 10 + 19 * index
    legend = [f'<path {line} d="M{x},{y} h26"/>', mark(shape, x + 13, y, paint), text(x + 34, y + 4, name)]
    return drawn + legend


def picture(points):
    """The whole SVG."""
    series = {}
    for name, share, delta in points:
        series.setdefault(name, []).append((share, delta))
    names = [name for name in BASELINES if name in series] + [name for name in series if name not in BASELINES]
    frame = Frame(points)
    height = max(HEIGHT, TOP + 30 + 19 * len(names))
    caption = "Perplexity lost against memory kept"
    drawn = [part for index, name in enumerate(names) for part in draw_series(frame, name, series[name], index)]
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" aria-label="{caption}">',
        f"<style>{STYLE}</style>",
        '<rect class="page" width="100%" height="100%" rx="6"/>',
        text(16, 28, caption, "title"),
        text(LEFT, TOP - 10, "perplexity against the full cache", "small"),
        *draw_grid(frame),
        *drawn,
        "</svg>\n",
    ])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=pathlib.Path)
    parser.add_argument("picture", type=pathlib.Path)
    args = parser.parse_args()
    try:
        points = read_rows(args.rows.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"{args.rows}: not rows of scripts/quality: {type(error).__name__}: {error}")
    args.picture.write_text(picture(points), encoding="utf-8")


if __name__ == "__main__":
    main()
