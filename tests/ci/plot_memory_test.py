"""The picture of memory over time: well-formed, everything in it inside the page, clear on bad input.

SPDX-License-Identifier: Apache-2.0
"""

import json
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import plot_memory  # noqa: E402

MIB = 1 << 20


def sample(t, **tenants):
    numbers = {name: dict(zip(("used", "leased", "limit"), three)) for name, three in tenants.items()}
    return {"t": t, "tenants": numbers}


def draw(samples, events=()):
    text = json.dumps({"start": "now", "samples": samples, "events": list(events)})
    return plot_memory.picture(*plot_memory.read_series(text))


class PlotMemoryTest(unittest.TestCase):
    def test_one_row_per_tenant_and_the_limit_as_steps(self):
        samples = [sample(0, a=(1 * MIB, 2 * MIB, 4 * MIB)), sample(10, a=(2 * MIB, 2 * MIB, 3 * MIB))]
        samples.append(sample(20, a=(2 * MIB, 2 * MIB, 3 * MIB), b=(0, MIB, MIB)))
        svg = draw(samples, [{"t": 10, "text": "a < b & c"}])
        root = xml.etree.ElementTree.fromstring(svg)
        texts = [element.text for element in root.iter() if element.tag.endswith("text")]
        for expected in ("a", "b", "a < b & c", "limit 3 MiB", "used 2 MiB", "leased 1 MiB", "now"):
            self.assertIn(expected, texts)
        series = json.dumps({"start": "", "samples": samples, "events": []})
        row = plot_memory.Row(plot_memory.read_series(series)[0]["a"], 20, 0, 100)
        middle, high, low = row.x(10), row.y(4 * MIB), row.y(3 * MIB)
        self.assertLess(high, low)
        expected = f"M{row.x(0):.1f},{high:.1f} H{middle:.1f} V{low:.1f}"
        self.assertTrue(row.steps("limit").startswith(expected))

    def test_every_coordinate_is_inside_the_page(self):
        source = random.Random(7)
        for _ in range(50):
            tenants = [f"tenant-{index}" for index in range(source.randint(1, 6))]
            samples = [
                sample(t / 4, **{name: sorted(source.randint(0, 1 << 34) for _ in range(3)) for name in tenants})
                for t in range(source.randint(1, 200))
            ]
            events = [{"t": source.uniform(0, samples[-1]["t"]), "text": "x" * source.randint(1, 60)}
                      for _ in range(source.randint(0, 8))]
            svg = draw(samples, events)
            xml.etree.ElementTree.fromstring(svg)
            height = float(re.search(r'viewBox="0 0 900 (\d+)"', svg).group(1))
            for x, y in re.findall(r'[ML"]([\d.-]+),([\d.-]+)', svg):
                self.assertTrue(0 <= float(x) <= 900 and 0 <= float(y) <= height, (x, y))

    def test_scale_steps(self):
        for exponent in range(-20, 60):
            span = 1.37 ** exponent
            parts = span / plot_memory.nice_step(span, 10)
            self.assertTrue(2 < parts <= 10.0001, (span, parts))

    def test_event_labels_do_not_overlap(self):
        events = [(0.0, "x" * 20), (1.0, "y" * 20), (90.0, "z")]
        lanes = [lane for _, lane in plot_memory.lanes(events, lambda t: 5 * t)]
        self.assertEqual(lanes, [0, 1, 0])

    def test_bad_input_is_a_clear_error(self):
        good = sample(1, a=(1, 1, 1))
        for content in [
            "not json",
            "[]",
            json.dumps({"start": "", "samples": [], "events": []}),
            json.dumps({"start": "", "samples": [good, sample(0, a=(1, 1, 1))], "events": []}),
            json.dumps({"start": "", "samples": [{"t": 0, "tenants": {"a": {}}}], "events": []}),
            json.dumps({"start": "", "samples": [sample(0, a=(-1, 1, 1))], "events": []}),
            '{"start": "", "samples": [{"t": NaN, "tenants": {}}], "events": []}',
        ]:
            with self.subTest(content), tempfile.TemporaryDirectory() as folder:
                series = pathlib.Path(folder, "series.json")
                series.write_text(content, encoding="utf-8")
                command = [sys.executable, SCRIPTS / "plot_memory.py", series, series.with_suffix(".svg")]
                done = subprocess.run(command, capture_output=True, check=False)
                self.assertEqual(done.returncode, 1)
                self.assertIn(b"not a memory series", done.stderr)
                self.assertNotIn(b"Traceback", done.stderr)


if __name__ == "__main__":
    unittest.main()
