"""docs/operating.md says the same as the programs: their settings and the policies, word by word, and the names of
all metrics.

    operating_docs_test.py KVPOOL-AGENT KVPOOL-MANAGER KVPOOLCTL

SPDX-License-Identifier: Apache-2.0
"""

import pathlib
import re
import subprocess
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs/operating.md").read_text(encoding="utf-8")
PROGRAMS = []


def section(heading):
    """The text under a heading, up to the next one of any level."""
    match = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    return match.group(1) if match else ""


def table(text):
    return [line for line in text.splitlines() if line.startswith("|")]


class OperatingDocsTest(unittest.TestCase):
    maxDiff = None

    def test_settings_are_what_the_programs_print(self):
        self.assertEqual(len(PROGRAMS), 3)
        for program in PROGRAMS[:2]:
            name = pathlib.Path(program).name
            with self.subTest(name):
                done = subprocess.run([program, "--print-settings"], capture_output=True, check=True, encoding="utf-8")
                self.assertEqual(table(section(name)), done.stdout.splitlines())

    def test_policies_are_what_kvpoolctl_prints(self):
        done = subprocess.run([PROGRAMS[2], "policies"], capture_output=True, check=True, encoding="utf-8")
        block = re.search(r"```text\n(.*?)```", section("Policies"), re.DOTALL)
        self.assertIsNotNone(block)
        self.assertEqual(block.group(1), done.stdout)

    def test_metrics_are_those_in_the_sources(self):
        for source in ("agent/agent_metrics.cc", "manager/manager_metrics.cc"):
            exported = set(re.findall(r'"(kvpool_\w+)"', (ROOT / source).read_text(encoding="utf-8")))
            self.assertGreater(len(exported), 10)
            column = source.split("/")[0]
            tables = section("Metrics").split(f"| {column} |")[1].split("\n\n")[0]
            documented = set(re.findall(r"^\| `(kvpool_\w+)`", tables, re.MULTILINE))
            self.assertEqual(documented, exported, source)


if __name__ == "__main__":
    PROGRAMS = sys.argv[1:]
    unittest.main(argv=sys.argv[:1])
