"""What the tests of the checks share: a small git tree on disk and a check run on it.

SPDX-License-Identifier: Apache-2.0
"""

import pathlib
import subprocess
import sys
import tempfile
import unittest

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"
HEAD = "// What it is.\n//\n// SPDX-License-Identifier: Apache-2.0\n"


class CheckCase(unittest.TestCase):
    """Runs a check the way .ci/run does, on a tree that the test writes."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments):
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        command = ["git", "-C", self.root, *identity, *arguments]
        subprocess.run(command, check=True, capture_output=True)

    def write(self, path, text):
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    def run_check(self, script, *options):
        """(exit code, everything it printed)"""
        command = [sys.executable, SCRIPTS / script, "--root", self.root, *options]
        done = subprocess.run(command, capture_output=True, check=False)
        return done.returncode, done.stdout.decode() + done.stderr.decode()

    def assert_clean(self, script, *options):
        code, output = self.run_check(script, *options)
        self.assertEqual(code, 0, output)
        return output

    def assert_finds(self, expected, script, *options):
        code, output = self.run_check(script, *options)
        self.assertEqual(code, 1, output)
        self.assertIn(expected, output)
        return output
