"""scripts/list_skips.py finds what was left out and why, and nothing else.

SPDX-License-Identifier: Apache-2.0
"""
import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "list_skips.py"

LOG = """[ RUN      ] A.Passes
[       OK ] A.Passes (0 ms)
[ RUN      ] A.NeedsMore
noise of the test
../../tests/a_test.cc:12: Skipped
etcd is not installed

[  SKIPPED ] A.NeedsMore (0 ms)
[ RUN      ] B.Silent
../../tests/b_test.cc:3: Skipped

[  SKIPPED ] B.Silent (0 ms)
[ RUN      ] B.Passes
[       OK ] B.Passes (0 ms)
test_a (__main__.T.test_a) ... ok
test_b (__main__.T.test_b) ... skipped 'groff is not installed'
test_c (__main__.T.test_c)
What it checks. ... ok
"""


class ListSkipsTest(unittest.TestCase):
    def output(self, log):
        with tempfile.NamedTemporaryFile("w", suffix=".log") as file:
            file.write(log)
            file.flush()
            done = subprocess.run([sys.executable, str(SCRIPT), file.name], capture_output=True, text=True, check=True)
        return done.stdout

    def test_each_is_named_with_its_reason(self):
        self.assertEqual(
            self.output(LOG).splitlines(),
            [
                "3 tests were left out:",
                "  A.NeedsMore: etcd is not installed",
                "  B.Silent: no reason given",
                "  test_b (__main__.T.test_b): groff is not installed",
            ],
        )

    def test_none_is_said_too(self):
        self.assertEqual(self.output("[ RUN      ] A.Passes\n[       OK ] A.Passes (0 ms)\n"), "0 tests were left out\n")


if __name__ == "__main__":
    unittest.main()
