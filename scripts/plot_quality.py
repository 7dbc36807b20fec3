"""Draws quality against memory as one SVG: how much worse perplexity gets, and how many planted facts are
recalled, by the share of a full cache's bytes that is kept. A line for each policy and format, one
for each choice of its parameters.

    plot_quality.py ROWS.json PICTURE.svg

The rows are those that scripts/quality writes. Not a plotting library: one layout, readable on light and
dark pages. Perplexity is on a logarithmic scale; what is no worse than its floor lies on the floor.

SPDX-License-Identifier: Apache-2.0
"""

import argparse
import collections
import json
import math
import pathlib
import sys

import plot_memory
from plot_memory import text

WIDTH, LEFT, RIGHT, TOP = 900, 68, 214, 62
HEIGHTS, GAP = (400, 150), 56  # of the two panels, and between them
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


# `family` is which parameters a row names: a line joins rows that differ in their values alone.
Point = collections.namedtuple("Point", "series family share delta recall")
# A panel of the picture: which value it shows, its caption, where it lies, its ticks, and where a value lies
# between bottom (0) and top (1).
Panel = collections.namedtuple("Panel", "key caption top bottom ticks part")


def read_rows(content):
    """[Point] in the rows' order. Raises ValueError, KeyError or TypeError."""
    points = []
    for row in json.loads(content):
        numbers = [float(row[key]) for key in ("bytes_ratio", "ppl_delta", "recall")]
        if not (all(map(math.isfinite, numbers)) and numbers[0] >= 0 and 0 <= numbers[2] <= 1):
            raise ValueError(f"{row['policy']}: bytes, perplexity and recall are {numbers}")
        data_format = str(row["format"])
        series = str(row["policy"]) + (f", {data_format}" if data_format != "native" else "")
        points.append(Point(series, tuple(sorted(row["params"])), *numbers))
    if not points:
        raise ValueError("no rows")
    return points


def perplexity_panel(points):
    top = max(0.02, *(point.delta for point in points)) * 1.25
    steps = [step * 10.0 ** power for power in range(-3, 6) for step in (1, 3)]
    ticks = [(FLOOR, f"<{FLOOR * 100:g} %")] + [(step, f"+{step * 100:g} %") for step in steps if step < top]
    return Panel("delta", "perplexity against the full cache", TOP, TOP + HEIGHTS[0], ticks,
                 lambda delta: math.log(max(delta, FLOOR) / FLOOR) / math.log(top / FLOOR))


def recall_panel():
    top = TOP + HEIGHTS[0] + GAP
    return Panel("recall", "planted facts recalled", top, top + HEIGHTS[1],
                 [(share / 100, f"{share} %") for share in range(0, 101, 25)], lambda recall: recall / 1.05)


class Frame:
    """Where a share of bytes lies, and a value in a panel."""

    def __init__(self, points):
        self.right = max(1.0, *(point.share for point in points)) * 1.02

    def x(self, share):
        return LEFT + (WIDTH - LEFT - RIGHT) * share / self.right

    @staticmethod
    def y(panel, value):
        return panel.bottom - (panel.bottom - panel.top) * panel.part(value)


def draw_panel(frame, panel):
    parts = [text(LEFT, panel.top - 8, panel.caption, "small")]
    for tenth in range(0, 11):
        parts.append(f'<path class="grid" d="M{frame.x(tenth / 10):.1f},{panel.top} V{panel.bottom}"/>')
        parts.append(text(frame.x(tenth / 10), panel.bottom + 17, f"{tenth * 10} %", "small", "middle"))
    for index, (tick, label) in enumerate(panel.ticks):
        y = frame.y(panel, tick)
        kind = "frame" if index == 0 else "grid"
        parts.append(f'<path class="{kind}" d="M{LEFT},{y:.1f} H{WIDTH - RIGHT}"/>')
        parts.append(text(LEFT - 8, y + 4, label, "small", "end"))
    return parts


def mark(shape, x, y, paint):
    return f'<path {paint} d="{MARKS[shape].format(x=f"{x:.1f}", y=f"{y:.1f}")}"/>'


def look(name, index):
    """(attributes of its line, of its marks, their shape) of a series."""
    if name in BASELINES:
        return f'class="baseline" stroke-dasharray="{BASELINES[name]}"', 'class="baseline-mark"', "disc"
    colour = COLOURS[index % len(COLOURS)]
    return f'class="line" stroke="{colour}"', f'fill="{colour}"', list(MARKS)[index % len(MARKS)]


def draw_series(frame, panel, points, style):
    line, paint, shape = style
    families, lines, marks = {}, [], []
    for point in sorted(points, key=lambda point: point.share):
        at = (frame.x(point.share), frame.y(panel, getattr(point, panel.key)))
        families.setdefault(point.family, []).append(at)
        marks.append(mark(shape, *at, paint))
    for family in families.values():
        path = "M" + " L".join(f"{x:.1f},{y:.1f}" for x, y in family)
        lines.append(f'<path {line} d="{path}"/>')
    return lines + marks


def draw_legend(name, index, style):
    line, paint, shape = style
    x, y = WIDTH - RIGHT + 22, TOP + 10 + 19 * index
    return [f'<path {line} d="M{x},{y} h26"/>', mark(shape, x + 13, y, paint), text(x + 34, y + 4, name)]


def picture(points):
    """The whole SVG."""
    series = {}
    for point in points:
        series.setdefault(point.series, []).append(point)
    names = [name for name in BASELINES if name in series] + [name for name in series if name not in BASELINES]
    frame, panels = Frame(points), (perplexity_panel(points), recall_panel())
    height = max(panels[-1].bottom + 48, TOP + 30 + 19 * len(names))
    caption = "Perplexity lost and facts recalled against memory kept"
    parts = [part for panel in panels for part in draw_panel(frame, panel)]
    for index, name in enumerate(names):
        style = look(name, index)
        parts += [part for panel in panels for part in draw_series(frame, panel, series[name], style)]
        parts += draw_legend(name, index, style)
    middle = (LEFT + WIDTH - RIGHT) / 2
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}" role="img" aria-label="{caption}">',
        f"<style>{STYLE}</style>",
        '<rect class="page" width="100%" height="100%" rx="6"/>',
        text(16, 28, caption, "title"),
        *parts,
        text(middle, panels[-1].bottom + 38, "bytes kept, of a full cache's", "", "middle"),
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
