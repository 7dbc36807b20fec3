"""Draws memory over time per tenant as one SVG: used, leased and limit, with events.

    plot_memory.py SERIES.json PICTURE.svg

Not a plotting library: one layout, made for the demo and the README, readable on light and dark pages.
Every tenant has a row of its own with its own scale; the rows share the time axis. The series:

    {"start": "2026-01-31T12:00:00Z",                      when t was 0, for the caption; may be ""
     "samples": [{"t": 0.25,                               seconds, never decreasing
                  "tenants": {"chat": {"used": 1048576,    bytes in use by sessions
                                       "leased": 4194304,  bytes that agents may hold
                                       "limit": 8388608}}}],  bytes it may never exceed
     "events": [{"t": 30.0, "text": "chat: limit raised to 12 MiB"}]}

A tenant may be missing from samples, before it is made for instance.

SPDX-License-Identifier: Apache-2.0
"""

import argparse
import collections
import json
import math
import pathlib
import sys
from xml.sax.saxutils import escape

WIDTH = 900
LEFT, RIGHT = 76, 112  # room for the scale, and for the labels at the end of the lines
TITLE, LANE, AXIS = 44, 16, 36
GAP, PLOT_HEIGHT = 30, 330  # between rows; of all rows together, gaps included
COLOURS = ("#3b7dd8", "#d9772b", "#2f9e6e", "#a45bc4", "#c94f6d", "#7d8a2e")
LETTER = 6.1  # mean width of a letter at the size of labels
STYLE = """
text { font: 12px system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #4a5058; }
.page { fill: #ffffff; } .title { font-size: 15px; font-weight: 600; fill: #1d2126; }
.name { font-size: 13px; font-weight: 600; } .small { font-size: 11px; }
.grid { stroke: #e3e6ea; } .frame { stroke: #aab1ba; } .event { stroke: #767e88; stroke-dasharray: 2 3; }
.used { fill-opacity: 0.28; stroke-width: 1.6; } .leased { fill: none; stroke-width: 1.6; }
.limit { fill: none; stroke: #d23c3c; stroke-width: 1.8; stroke-dasharray: 7 4; }
@media (prefers-color-scheme: dark) {
  text { fill: #b3bac4; } .page { fill: #14171b; } .title { fill: #eceff3; }
  .grid { stroke: #2a2f36; } .frame { stroke: #565e69; } .limit { stroke: #ff6b6b; }
}
"""

Point = collections.namedtuple("Point", "t used leased limit")


def number(value):
    """A time or a number of bytes."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{value} is negative or not finite")
    return float(value)


def read_series(text):
    """({tenant: [Point]}, [(t, text)], start). Raises ValueError, KeyError or TypeError."""
    series = json.loads(text)
    rows, last = {}, 0.0
    for sample in series["samples"]:
        t = number(sample["t"])
        if t < last:
            raise ValueError(f"sample at {t} s comes after one at {last} s")
        last = t
        for name, numbers in sample["tenants"].items():
            point = Point(t, *(number(numbers[key]) for key in ("used", "leased", "limit")))
            rows.setdefault(name, []).append(point)
    if not rows:
        raise ValueError("no sample names a tenant")
    events = [(number(event["t"]), str(event["text"])) for event in series["events"]]
    return rows, sorted(events), str(series["start"])


def size(value):
    """Bytes for people: '12 MiB', '1.5 GiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.3g} {unit}"
        value /= 1024
    return ""


def nice_step(span, parts):
    """The smallest 1, 2 or 5 times a power of ten that cuts span into at most that many parts."""
    power = 10.0 ** math.floor(math.log10(span / parts))
    return next(power * step for step in (1, 2, 5, 10) if power * step * parts >= span)


def byte_step(top):
    """A power of two that cuts a scale up to top into two to four parts."""
    step = 1.0
    while step * 4 < top:
        step *= 2
    return step


class Row:
    """One tenant's part of the picture: where a time and a number of bytes lie."""

    def __init__(self, points, duration, top, height):
        self.points, self.duration = points, duration
        self.top, self.height = top, height
        self.scale = 1.12 * max(max(point[1:]) for point in points) or 1.0

    def x(self, t):
        return LEFT + (WIDTH - LEFT - RIGHT) * t / self.duration

    def y(self, value):
        return self.top + self.height * (1 - value / self.scale)

    def line(self, key):
        """Path data of straight lines between the samples."""
        at = [f"{self.x(p.t):.1f},{self.y(getattr(p, key)):.1f}" for p in self.points]
        return "M" + " L".join(at)

    def steps(self, key):
        """Path data of a value that holds until the next sample."""
        first = self.points[0]
        data = [f"M{self.x(first.t):.1f},{self.y(getattr(first, key)):.1f}"]
        data += [f"H{self.x(p.t):.1f} V{self.y(getattr(p, key)):.1f}" for p in self.points[1:]]
        return " ".join(data)

    def area(self, key):
        first, last = self.x(self.points[0].t), self.x(self.points[-1].t)
        return f"{self.line(key)} V{self.y(0):.1f} H{first:.1f} Z" if last > first else ""


def text(x, y, content, kind="", anchor="start", style=""):
    style = f' style="{style}"' if style else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}"{style}>{escape(content)}</text>'


def spread(wanted, least, lowest):
    """Heights near the wanted ones, at least `least` apart and none below `lowest`, in their order."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    placed = list(wanted)
    for before, index in zip(order, order[1:]):
        placed[index] = max(placed[index], placed[before] + least)
    limit = lowest
    for index in reversed(order):
        placed[index] = min(placed[index], limit)
        limit = placed[index] - least
    return placed


def draw_row(name, row, colour):
    parts = [text(LEFT, row.top - 8, name, "name", style=f"fill: {colour}")]
    step = byte_step(row.scale)
    for index in range(int(row.scale / step) + 1):
        y = row.y(index * step)
        kind = "frame" if index == 0 else "grid"
        parts.append(f'<path class="{kind}" d="M{LEFT},{y:.1f} H{WIDTH - RIGHT}"/>')
        parts.append(text(LEFT - 8, y + 4, size(index * step), "small", "end"))
    parts.append(f'<path class="used" fill="{colour}" d="{row.area("used")}"/>')
    parts.append(f'<path fill="none" stroke="{colour}" d="{row.line("used")}"/>')
    parts.append(f'<path class="leased" stroke="{colour}" d="{row.steps("leased")}"/>')
    parts.append(f'<path class="limit" d="{row.steps("limit")}"/>')
    last, keys = row.points[-1], ("limit", "leased", "used")
    labels = [f"{key} {size(getattr(last, key))}" for key in keys]
    heights = spread([row.y(getattr(last, key)) + 4 for key in keys], 13, row.y(0) + 4)
    for label, y in zip(labels, heights):
        parts.append(text(row.x(last.t) + 6, y, label, "small"))
    return parts


def lanes(events, x):
    """[(event, lane)]: labels of one lane do not overlap."""
    ends, placed = [], []
    for event in events:
        lane = next((i for i, end in enumerate(ends) if end < label_start(event, x)), len(ends))
        ends[lane:lane + 1] = [label_start(event, x) + LETTER * len(event[1]) + 10]
        placed.append((event, lane))
    return placed


def label_start(event, x):
    """Where an event's label begins: at its line, unless it would leave the picture."""
    return min(x(event[0]) + 4, WIDTH - 12 - LETTER * len(event[1]))


def draw_events(placed, x, bottom):
    parts = []
    for event, lane in placed:
        y = TITLE + LANE * lane
        parts.append(f'<path class="event" d="M{x(event[0]):.1f},{y + 2} V{bottom:.1f}"/>')
        parts.append(text(label_start(event, x), y + 12, event[1], "small"))
    return parts


def draw_axis(duration, x, y):
    parts, step = [], nice_step(duration, 10)
    for index in range(int(duration / step) + 1):
        t = index * step
        parts.append(f'<path class="frame" d="M{x(t):.1f},{y:.1f} v4"/>')
        parts.append(text(x(t), y + 17, f"{t:g} s", "small", "middle"))
    return parts


def draw_legend():
    """The three marks, at the right of the title."""
    grey, y = "#8a929c", 19
    used = f'<rect x="{WIDTH - 258}" y="{y}" width="22" height="10" class="used" fill="{grey}" stroke="{grey}"/>'
    leased = f'<path class="leased" stroke="{grey}" d="M{WIDTH - 178},{y + 5} h22"/>'
    limit = f'<path class="limit" d="M{WIDTH - 88},{y + 5} h28"/>'
    labels = ((228, "used"), (150, "leased"), (54, "limit"))
    return [used, leased, limit] + [text(WIDTH - x, y + 9, label) for x, label in labels]


def picture(rows, events, start):
    """The whole SVG."""
    duration = max([points[-1].t for points in rows.values()] + [t for t, _ in events]) or 1.0
    height = max(36.0, PLOT_HEIGHT / len(rows) - GAP)
    probe = Row(next(iter(rows.values())), duration, 0, height)
    placed = lanes(events, probe.x)
    top = TITLE + LANE * (1 + max((lane for _, lane in placed), default=-1))
    drawn = []
    for index, (name, points) in enumerate(rows.items()):
        row = Row(points, duration, top + GAP + index * (height + GAP), height)
        drawn += draw_row(name, row, COLOURS[index % len(COLOURS)])
    bottom = top + len(rows) * (height + GAP)
    caption = "KV-cache memory of each tenant over time"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + AXIS:.0f}" '
            f'width="{WIDTH}" height="{bottom + AXIS:.0f}" role="img" aria-label="{caption}">',
            f"<style>{STYLE}</style>",
            '<rect class="page" width="100%" height="100%" rx="6"/>',
            text(16, 28, caption, "title"),
            text(WIDTH - 12, bottom + AXIS - 4, start, "small", "end"),
            *draw_legend(),
            *draw_events(placed, probe.x, bottom),
            *drawn,
            *draw_axis(duration, probe.x, bottom),
            "</svg>\n",
        ]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("series", type=pathlib.Path)
    parser.add_argument("picture", type=pathlib.Path)
    args = parser.parse_args()
    try:
        rows, events, start = read_series(args.series.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"{args.series}: not a memory series: {type(error).__name__}: {error}")
    args.picture.write_text(picture(rows, events, start), encoding="utf-8")


if __name__ == "__main__":
    main()
