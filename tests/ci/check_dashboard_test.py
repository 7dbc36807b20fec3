"""The dashboard check catches a malformed panel, and a metric or label that nobody exports.

SPDX-License-Identifier: Apache-2.0
"""

import copy
import json
import unittest

from check_case import CheckCase

SCRIPT = "check_dashboard.py"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
SELECT = 'job=~"$job", instance=~"$instance"'
PAGE = """# HELP kvpool_agent_slabs Slabs of the pool.
# TYPE kvpool_agent_slabs gauge
kvpool_agent_slabs{state="free"} 3
# TYPE kvpool_agent_refusals_total counter
kvpool_agent_refusals_total{tenant="a",reason="noSpace"} 1
# TYPE kvpool_agent_rpc_turn_seconds histogram
kvpool_agent_rpc_turn_seconds_bucket{le="0.001"} 1
kvpool_agent_rpc_turn_seconds_sum 0.0005
kvpool_agent_rpc_turn_seconds_count 1
"""


def board(query):
    """A dashboard of one panel with one query."""
    return {
        "uid": "x",
        "id": None,
        "editable": False,
        "templating": {"list": [{"name": name} for name in ("datasource", "job", "instance")]},
        "panels": [
            {
                "type": "timeseries",
                "id": 1,
                "title": "Slabs",
                "description": "Slabs by state.",
                "datasource": SOURCE,
                "fieldConfig": {"defaults": {"unit": "short"}},
                "targets": [{"datasource": SOURCE, "expr": query}],
            }
        ],
    }


GOOD = board(f"sum by (state) (kvpool_agent_slabs{{{SELECT}}})")


class CheckDashboardTest(CheckCase):
    def write_board(self, content):
        self.write("dashboards/board.json", json.dumps(content))

    def options(self):
        self.write("page.txt", PAGE)
        return "--metrics", self.root / "page.txt"

    def assert_query_finds(self, expected, query):
        self.write_board(board(query))
        self.assert_finds(expected, SCRIPT, *self.options())

    def test_good_dashboard_passes(self):
        self.write_board(GOOD)
        self.assert_clean(SCRIPT)
        self.assert_clean(SCRIPT, *self.options())

    def test_good_rates_and_histograms_pass(self):
        rate = f"rate(kvpool_agent_refusals_total{{{SELECT}}}[$__rate_interval])"
        buckets = f"rate(kvpool_agent_rpc_turn_seconds_bucket{{{SELECT}}}[$__rate_interval])"
        for query in [
            f"sum by (tenant, reason) ({rate})",
            f"histogram_quantile(0.99, sum by (instance, le) ({buckets}))",
        ]:
            with self.subTest(query):
                self.write_board(board(query))
                self.assert_clean(SCRIPT, *self.options())

    def test_what_every_panel_needs(self):
        for key, expected in [
            ("title", "no title"),
            ("description", "no description"),
            ("fieldConfig", "no unit"),
            ("targets", "no query"),
            ("datasource", "not the variable ${datasource}"),
        ]:
            with self.subTest(key):
                content = copy.deepcopy(GOOD)
                del content["panels"][0][key]
                self.write_board(content)
                self.assert_finds(expected, SCRIPT)

    def test_what_every_dashboard_needs(self):
        for change, expected in [
            ({"uid": ""}, "needs id null and a uid"),
            ({"editable": True}, "editable"),
            ({"templating": {"list": []}}, "no variable datasource"),
            ({"panels": GOOD["panels"] * 2}, "two panels have the same id"),
        ]:
            with self.subTest(expected):
                self.write_board({**GOOD, **change})
                self.assert_finds(expected, SCRIPT)

    def test_query_form(self):
        counter = f"kvpool_agent_refusals_total{{{SELECT}}}"
        self.assert_query_finds('select job=~"$job"', "sum(kvpool_agent_slabs)")
        self.assert_query_finds("without rate()", f"sum({counter})")
        self.assert_query_finds("rate over $__rate_interval, not 5m", f"rate({counter}[5m])")

    def test_metric_that_is_not_exported(self):
        self.assert_query_finds("no /metrics page has it", f"kvpool_agent_slab{{{SELECT}}}")

    def test_label_that_is_not_exported(self):
        query = f'kvpool_agent_slabs{{{SELECT}, tenant="a"}}'
        self.assert_query_finds("kvpool_agent_slabs: has no label tenant", query)
        query = f"sum by (tenant) (kvpool_agent_slabs{{{SELECT}}})"
        self.assert_query_finds("grouped by tenant", query)

    def test_a_tree_without_dashboards_is_a_mistake(self):
        self.write("dashboards/README.md", "nothing\n")
        self.assert_finds("no dashboard found", SCRIPT)


if __name__ == "__main__":
    unittest.main()
