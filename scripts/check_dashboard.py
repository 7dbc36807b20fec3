"""Fails on a dashboard that would not import cleanly or that asks for metrics nobody exports.

Without --metrics only the form is checked: title, description, unit and data source of every panel,
job and instance of every query, rates of counters over $__rate_interval. With --metrics FILE, pages that
/metrics served, every metric and label that a query names must be on one of the pages.

SPDX-License-Identifier: Apache-2.0
"""

import json
import pathlib
import re
import sys

import source_tree
from source_tree import Finding

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
VARIABLES = ("datasource", "job", "instance")
FROM_SCRAPING = {"job", "instance"}  # labels that Prometheus adds
METRIC = re.compile(r"\bkvpool_\w+")
SELECTOR = re.compile(r"\b(kvpool_\w+)\s*(?:\{([^}]*)\})?")
GROUPING = re.compile(r"\bby\s*\(([^)]*)\)")
RATED = re.compile(r"\b(?:rate|increase)\(\s*(kvpool_\w+)\s*(?:\{[^}]*\})?\s*\[([^\]]*)\]")
IS_COUNTER = re.compile(r"_(total|bucket|sum|count)$")
TYPE_LINE = re.compile(r"^# TYPE (\w+) (\w+)$", re.MULTILINE)
SAMPLE_LINE = re.compile(r"^(\w+)(?:\{(.*)\})? \S+$", re.MULTILINE)
LABEL = re.compile(r'(\w+)\s*(?:=~|!=|!~|=)\s*"')


def exported(pages):
    """{metric: its labels} of pages in Prometheus' text format."""
    metrics = {}
    for page in pages:
        for name, kind in TYPE_LINE.findall(page):
            suffixes = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
            for suffix in suffixes:
                metrics.setdefault(name + suffix, set())
        for name, labels in SAMPLE_LINE.findall(page):
            metrics.setdefault(name, set()).update(LABEL.findall(labels))
    return metrics


def check_query(query):
    """What is wrong with the form of a PromQL expression."""
    for name, selector in SELECTOR.findall(query):
        for variable in ("job", "instance"):
            if f'{variable}=~"${variable}"' not in selector:
                yield f"{name}: select {variable}=~\"${variable}\""
    rated = RATED.findall(query)
    for name, window in rated:
        if window != "$__rate_interval":
            yield f"{name}: rate over $__rate_interval, not {window}"
    for name in METRIC.findall(query):
        if IS_COUNTER.search(name) and name not in {name for name, _ in rated}:
            yield f"{name}: a counter shows nothing without rate() or increase()"


def check_query_metrics(query, metrics):
    """What a PromQL expression asks for that is not exported."""
    missing = {name for name in METRIC.findall(query) if name not in metrics}
    if missing:
        yield from (f"{name}: no /metrics page has it" for name in sorted(missing))
        return
    known = FROM_SCRAPING.union(*(metrics[name] for name in METRIC.findall(query)))
    for name, selector in SELECTOR.findall(query):
        for label in LABEL.findall(selector):
            if label not in metrics[name] | FROM_SCRAPING:
                yield f"{name}: has no label {label}"
    for labels in GROUPING.findall(query):
        for label in (part.strip() for part in labels.split(",")):
            if label not in known:
                yield f"grouped by {label}, which no metric of the query has"


def check_panel(panel, metrics):
    for key in ("title", "description"):
        if not panel.get(key, "").strip():
            yield f"no {key}"
    if not panel.get("fieldConfig", {}).get("defaults", {}).get("unit"):
        yield "no unit"
    if not panel.get("targets"):
        yield "no query"
    for holder in [panel, *panel.get("targets", [])]:
        if holder.get("datasource") != DATASOURCE:
            yield "the data source is not the variable ${datasource}"
    for target in panel.get("targets", []):
        yield from check_query(target["expr"])
        if metrics is not None:
            yield from check_query_metrics(target["expr"], metrics)


def check_dashboard(board, metrics):
    """What is wrong with a dashboard. `metrics` as from exported(), or None for the form only."""
    names = [variable["name"] for variable in board["templating"]["list"]]
    for variable in VARIABLES:
        if variable not in names:
            yield f"no variable {variable}"
    if board.get("id") is not None or not board.get("uid"):
        yield "needs id null and a uid of its own"
    if board.get("editable", True):
        yield "editable: changes made in the browser would be lost"
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    ids = [panel["id"] for panel in board["panels"]]
    if len(ids) != len(set(ids)):
        yield "two panels have the same id"
    for panel in panels:
        for text in check_panel(panel, metrics):
            yield f"panel '{panel.get('title', '')}': {text}"


def main():
    parser = source_tree.parser(__doc__.splitlines()[0])
    parser.add_argument("--metrics", type=pathlib.Path, nargs="+", help="saved /metrics pages")
    args = parser.parse_args()
    metrics = exported(page.read_text() for page in args.metrics) if args.metrics else None
    paths = sorted((args.root / "dashboards").glob("*.json"))
    if not paths:
        sys.exit("no dashboard found")
    findings = []
    for path in paths:
        board = json.loads(path.read_text(encoding="utf-8"))
        name = path.relative_to(args.root)
        findings += [Finding(name, 1, text) for text in check_dashboard(board, metrics)]
    source_tree.finish(findings, len(paths))


if __name__ == "__main__":
    main()
