"""scripts/quality: what it makes of its rows, its picture, and a quick run of the real programs.

    quality_test.py FOLDER-OF-PROGRAMS

SPDX-License-Identifier: Apache-2.0
"""

import argparse
import json
import math
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
import xml.etree.ElementTree

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import plot_quality  # noqa: E402
import quality  # noqa: E402
import quality_report  # noqa: E402
from demo_cluster import Cluster  # noqa: E402

PROGRAMS = []
SHAPE = {"windows": 2, "context": 100, "prompt": 50, "facts": 1}


def row(policy, ratio, delta, recall=0.5, data_format="native", **params):
    return {"policy": policy, "params": params, "format": data_format, "kept_ratio": ratio, "bytes_ratio": ratio,
            "peak_ratio": ratio, "kept_bytes": 1000 * ratio, "page_bytes": 10, "positions": 100,
            "ppl": 40 * (1 + delta), "ppl_full": 40.0, "ppl_delta": delta, "ppl_error": 0.001, "agreement": 0.97,
            "kl": delta / 10, "asked": 8, "recall": recall,
            "recall_full": 1.0, "recovery": 0.9, "us_per_token": 250.0}


PERSISTENCE = [{"persistence": 0.96, "important": 0.25}, {"persistence": 0.875, "important": 1.0}]
BASE = [row("full", 1.0, 0.0, 1.0) | {"persistence": PERSISTENCE}, row("random", 0.25, 0.16), row("random", 0.5, 0.04),
        row("streaming", 0.25, 0.08), row("streaming", 0.5, 0.02)]


def verdict(rows, name):
    """The verdict of the one gate whose name begins so."""
    found = [v.verdict for v in quality_report.verdicts(quality_report.compare(rows)) if v.gate.startswith(name)]
    assert len(found) == 1, (name, found)
    return found[0]


class ReportTest(unittest.TestCase):
    def test_the_file_of_policies(self):
        text = "# a comment\n\nfull\nfastgen recovery=0.98 local=3 rule=min  # strict\n"
        self.assertEqual(quality.parse_policies(text),
                         [("full", {}), ("fastgen", {"recovery": 0.98, "local": 3, "rule": "min"})])
        for line in ("full x", "full x=", "full =3"):
            with self.assertRaisesRegex(ValueError, "line 2"):
                quality.parse_policies("full\n" + line)

    def test_baselines_at_equal_bytes(self):
        def random_at(ratio):
            return quality_report.at_equal_bytes(BASE, "random", ratio)

        self.assertEqual(random_at(0.5), 0.04)
        self.assertAlmostEqual(random_at(0.375), 0.08)  # halfway: the geometric mean
        self.assertAlmostEqual(random_at(0.75), 0.02)  # towards the full cache's 0: a straight line
        self.assertEqual(random_at(1.0), 0.0)
        self.assertIsNone(random_at(0.2))
        self.assertIsNone(quality_report.at_equal_bytes(BASE, "nobody", 0.5))

    def test_baselines_with_equal_bytes_are_averaged(self):
        rows = BASE + [row("random", 0.5, 0.06)]
        self.assertAlmostEqual(quality_report.at_equal_bytes(rows, "random", 0.5), 0.05)
        self.assertAlmostEqual(quality_report.at_equal_bytes(rows, "random", 0.75), 0.025)
        lowest = BASE + [row("random", 0.25, 0.16)]
        self.assertAlmostEqual(quality_report.at_equal_bytes(lowest, "random", 0.25), 0.16)

    def test_baselines_are_native(self):
        rows = BASE + [row("random", 0.4, 3.0, data_format="int4")]
        self.assertEqual(quality_report.at_equal_bytes(rows, "random", 0.375),
                         quality_report.at_equal_bytes(BASE, "random", 0.375))
        self.assertIsNone(quality_report.at_equal_bytes([row("random", 0.4, 0.1, data_format="int4")], "random", 0.4))

    def test_one_row_that_is_small_enough_passes_a_gate(self):
        name = "scissorhands, 2x: "
        self.assertEqual(verdict(BASE, name), "not run")
        self.assertEqual(verdict(BASE + [row("scissorhands", 0.6, 0.001)], name), "not run")
        rows = BASE + [row("scissorhands", 0.6, 0.001), row("scissorhands", 0.5, 0.011)]
        self.assertEqual(verdict(rows, name), "MISS")
        self.assertEqual(verdict(rows + [row("scissorhands", 0.3, 0.01)], name), "pass")
        self.assertEqual(verdict(BASE + [row("scissorhands", 0.5, 0.01, data_format="int4")], name), "not run")

    def test_every_gate_can_pass_and_be_missed(self):
        def rows(worse, recall, agreement, pages):
            made = [row(policy, share, worse + delta, recall, data_format, **params)
                    for policy, share, delta, data_format, params in [
                        ("scissorhands", 0.5, 0.01, "native", {}), ("scissorhands", 1 / 3, 0.03, "native", {}),
                        ("scissorhands", 0.5, 0.02, "int4", {}), ("corm", 0.4, 0.02, "native", {}),
                        ("fastgen", 0.85, 0.004, "native", {"recovery": 0.98}),
                        ("fastgen", 0.65, 0.01, "native", {"recovery": 0.95}),
                        ("full", 1.0, 0.001, "fp8", {}), ("full", 1.0, 0.005, "int4", {})]]
            for one in made:
                one["agreement"] = agreement
                one["kept_bytes"] += 10 * pages
                one["bytes_ratio"] += pages / 100
            return quality_report.verdicts(quality_report.compare(BASE + made))

        better = len(quality_report.SEEDS) * len(quality_report.BASELINES) * len(quality_report.MEASURES)
        gates = len(quality_report.GATES) + 1 + better
        self.assertEqual([v.verdict for v in rows(0, 1.0, 0.99, 1)], ["pass"] * gates)
        self.assertEqual([v.verdict for v in rows(0.2, 0.9, 0.9, 3)], ["MISS"] * gates)

    def test_a_seed_that_loses_to_a_baseline_once_misses(self):
        rows = BASE + [row("corm", 0.5, 0.01), row("corm", 0.25, 0.1)]
        self.assertEqual(verdict(rows, "corm: better perplexity than random"), "pass")
        self.assertEqual(verdict(rows, "corm: better perplexity than streaming"), "MISS")
        self.assertEqual(verdict(rows, "fastgen: better perplexity than streaming"), "not run")
        rows[-1]["kl"] = 0.001
        self.assertEqual(verdict(rows, "corm: better KL than streaming"), "pass")

    def test_the_page_and_the_table_hold_every_row(self):
        rows = quality_report.compare(BASE + [row("corm", 0.1, 0.3, window=64)])
        rows[-1]["recovery"] = None
        page = quality_report.page(rows, quality_report.verdicts(rows), SHAPE, "2026-01-31", "`m` on `t`")
        for text in (page, quality_report.table(rows)):
            for one in rows:
                self.assertIn(quality_report.label(one), text)
        self.assertIn("| corm window=64 | 10.0% | 10.0% | 10.0% | +30.00% | 0.10% | - | - | 0.0300 | - | - |", page)
        self.assertNotRegex(page, r"[{}]")
        self.assertIn("| 1 | 87.5% | 100.0% |", page)
        self.assertRegex(quality_report.persistence_text(rows), r"\n +0 +96.0% +25.0%\n +1 +87.5% +100.0%$")


class PictureTest(unittest.TestCase):
    def test_every_coordinate_is_inside_the_page(self):
        source = random.Random(5)
        for _ in range(30):
            rows = [row(f"policy-{source.randint(0, 24)}", source.uniform(0, 1.1), source.uniform(-0.1, 4) ** 3,
                        source.random(), source.choice(["native", "int4"])) for _ in range(source.randint(1, 90))]
            svg = plot_quality.picture(plot_quality.read_rows(json.dumps(BASE + rows)))
            root = xml.etree.ElementTree.fromstring(svg)
            texts = [element.text for element in root.iter() if element.tag.endswith("text")]
            for one in rows:
                name = one["policy"] + (", int4" if one["format"] == "int4" else "")
                self.assertEqual(texts.count(name), 1)
            height = float(re.search(r'viewBox="0 0 900 (\d+)"', svg).group(1))
            found = re.findall(r'[ML]([\d.-]+),([\d.-]+)', svg)
            self.assertGreater(len(found), 2 * len(rows))
            for x, y in found:
                self.assertTrue(0 <= float(x) <= 900 and 0 <= float(y) <= height, (x, y))

    def test_a_line_joins_rows_that_name_the_same_parameters(self):
        rows = [row("corm", 0.3, 0.1, window=1), row("corm", 0.4, 0.2, window=1, recent=2), row("corm", 0.5, 0.1, window=2)]
        points = plot_quality.read_rows(json.dumps(rows))
        frame, panel = plot_quality.Frame(points), plot_quality.recall_panel()
        parts = plot_quality.draw_series(frame, panel, points, plot_quality.look("corm", 0))
        lines = [part for part in parts if 'class="line"' in part]
        self.assertEqual(len(lines), 2)
        self.assertIn(f"{frame.x(0.3):.1f},", lines[0])
        self.assertIn(f"{frame.x(0.5):.1f},", lines[0])
        self.assertIn(f"{frame.x(0.4):.1f},", lines[1])

    def test_worse_is_higher_and_nothing_falls_through_the_floor(self):
        points = plot_quality.read_rows(json.dumps(BASE))
        frame, panel = plot_quality.Frame(points), plot_quality.perplexity_panel(points)
        heights = [frame.y(panel, delta) for delta in (-0.5, 0, 0.0005, 0.01, 0.16)]
        self.assertEqual(heights[0], panel.bottom)
        self.assertEqual(heights[:2], heights[1:3])
        self.assertGreater(heights[2], heights[3])
        self.assertGreater(heights[3], heights[4])
        self.assertGreater(heights[4], panel.top)

    def test_bad_rows_are_a_clear_error(self):
        for content in ("not json", "[]", "[{}]", json.dumps([row("full", -1, 0)]),
                        json.dumps([row("full", 1, 0, 2)]), json.dumps([row("full", 1, math.nan)])):
            with self.subTest(content), tempfile.TemporaryDirectory() as folder:
                path = pathlib.Path(folder, "rows.json")
                path.write_text(content, encoding="utf-8")
                done = subprocess.run([sys.executable, SCRIPTS / "plot_quality.py", path, path.with_suffix(".svg")],
                                      capture_output=True, check=False)
                self.assertEqual(done.returncode, 1)
                self.assertIn(b"not rows of scripts/quality", done.stderr)
                self.assertNotIn(b"Traceback", done.stderr)


class QuickRunTest(unittest.TestCase):
    def test_full_changes_nothing_and_the_others_keep_less(self):
        self.assertEqual(len(PROGRAMS), 1)
        with tempfile.TemporaryDirectory() as folder:
            files = {name: pathlib.Path(folder, name) for name in ("rows.json", "picture.svg", "page.md")}
            done = subprocess.run(
                [sys.executable, SCRIPTS / "quality.py", "--bin", PROGRAMS[0], "--quick", "--json",
                 files["rows.json"], "--svg", files["picture.svg"], "--markdown", files["page.md"]],
                capture_output=True, check=False, encoding="utf-8", timeout=300)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            rows = json.loads(files["rows.json"].read_text())
            xml.etree.ElementTree.parse(files["picture.svg"])
            self.assertIn("| scissorhands budget=128 window=64 |", files["page.md"].read_text())
        self.assertEqual([r["policy"] for r in rows], ["full", "streaming", "scissorhands"])
        for one in rows:
            for key in ("kept_ratio", "bytes_ratio", "peak_ratio", "kept_bytes", "page_bytes", "ppl", "ppl_delta",
                        "agreement", "kl", "recall", "recall_full", "us_per_token"):
                self.assertTrue(math.isfinite(one[key]), (key, one))
            self.assertGreater(one["us_per_token"], 0)
            self.assertEqual(one["format"], "native")
            self.assertNotIn("tenant", one)
        full, *others = rows
        self.assertEqual(len(full["persistence"]), 6)  # layers
        for layer in full["persistence"]:
            self.assertTrue(0.3 < layer["important"] <= 1 and 0.3 < layer["persistence"] <= 1, layer)
            self.assertIn(f"{layer['persistence']:.1%}", done.stdout)
        self.assertFalse(any("persistence" in one for one in others))
        self.assertEqual(full["params"], {})
        self.assertEqual((full["kept_ratio"], full["agreement"], full["recovery"]), (1, 1, None))
        self.assertAlmostEqual(full["bytes_ratio"], 1)
        self.assertAlmostEqual(full["ppl_delta"], 0, 9)
        self.assertAlmostEqual(full["kl"], 0, 9)
        self.assertEqual(full["recall"], full["recall_full"])
        self.assertGreater(full["recall_full"], 0)
        for one in others:
            self.assertTrue(0.2 < one["kept_ratio"] < 0.6, one)
            self.assertTrue(0.2 < one["bytes_ratio"] < 0.7, one)
            self.assertTrue(0 < one["recovery"] <= 1, one)
            self.assertTrue(0.5 < one["agreement"] < 1, one)
            self.assertGreater(one["kl"], 0.001)
            self.assertEqual(one["ppl_full"], full["ppl"])

    def test_two_runs_find_the_same_figures_under_every_format(self):
        # So many windows that they take turns at the reserve, and that slabs are made in between.
        shape = {"windows": 12, "context": 640, "prompt": 320, "facts": 1}
        policies = quality.parse_policies(
            "full\nfull format=fp8\nfull format=int8\nfull format=int4\n"
            "scissorhands budget=128 window=64 format=int4\n")
        runs = []
        for _ in range(2):
            with tempfile.TemporaryDirectory() as folder:
                cluster = Cluster(PROGRAMS[0], folder)
                args = argparse.Namespace(model=quality.ROOT / "worker/models/prose-5m", text=[quality.OWN_TEXT])
                try:
                    rows = quality.measure(cluster, args, shape, policies)
                finally:
                    cluster.stop()
            for one in rows:
                self.assertGreater(one.pop("us_per_token"), 0)
            runs.append(rows)
        self.assertEqual(len(runs[0]), len(policies))
        for first, second in zip(*runs):
            self.assertEqual(first, second)

    def test_what_cannot_be_run_is_said(self):
        for flags, message in ((["--only", "nobody"], "--only nobody"), (["--model", "/none"], "/none"),
                               (["--text", "/none"], "/none")):
            done = subprocess.run([sys.executable, SCRIPTS / "quality.py", "--bin", PROGRAMS[0], "--quick", *flags],
                                  capture_output=True, check=False, encoding="utf-8", timeout=120)
            self.assertEqual(done.returncode, 1, flags)
            self.assertIn(message, done.stderr)
            self.assertNotIn("Traceback", done.stderr)
            folder = pathlib.Path(re.search(r"Logs: (/\S+)", done.stderr).group(1))
            self.assertTrue((folder / "operator.token").is_file())
            shutil.rmtree(folder)


if __name__ == "__main__":
    PROGRAMS = sys.argv[1:]
    unittest.main(argv=sys.argv[:1])
