"""The systemd files load without a complaint, stay locked down, and make the user and folders they name.

SPDX-License-Identifier: Apache-2.0
"""

import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

DEPLOY = pathlib.Path(__file__).resolve().parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
# systemd's own score of how exposed a service is, times ten: 0 is least, 100 is most.
MOST_EXPOSURE = "30"


def run(*command, **environment):
    return subprocess.run(
        command,
        capture_output=True,
        check=False,
        encoding="utf-8",
        env={"PATH": os.environ["PATH"], "SYSTEMD_LOG_LEVEL": "warning", **environment},
    )


class DeployTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)

    def installed(self, unit, change=lambda text: text):
        """A copy of a unit whose programs are where an installation would put them, nearly."""
        text = change(unit.read_text(encoding="utf-8"))
        for program in re.findall(r"^ExecStart=(/usr/bin/[\w-]+)", text, re.MULTILINE):
            binary = self.root / "bin" / pathlib.Path(program).name
            binary.parent.mkdir(exist_ok=True)
            shutil.copy("/bin/true", binary)
            text = text.replace(program, str(binary))
        (self.root / unit.name).write_text(text, encoding="utf-8")
        return self.root / unit.name

    def verify(self, path):
        done = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(path))
        return f"{done.stdout}{done.stderr}exit code {done.returncode}"

    def test_units_load_without_a_complaint(self):
        self.assertEqual([unit.name for unit in UNITS], ["kvpool-agent@.service", "kvpool-manager.service"])
        for unit in UNITS:
            with self.subTest(unit.name):
                self.assertEqual(self.verify(self.installed(unit)), "exit code 0")

    def test_a_mistake_in_a_unit_is_noticed(self):
        for unit in UNITS:
            with self.subTest(unit.name):
                broken = self.installed(unit, lambda text: text.replace("ProtectSystem=", "ProtectSytem="))
                self.assertIn("Unknown key", self.verify(broken))
                broken = self.installed(unit)
                shutil.rmtree(self.root / "bin")
                self.assertIn("not executable", self.verify(broken))

    def test_services_are_locked_down(self):
        for unit in UNITS:
            with self.subTest(unit.name):
                path = str(self.installed(unit))
                done = run("systemd-analyze", "security", "--offline=yes", f"--threshold={MOST_EXPOSURE}", path)
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    @unittest.skipUnless(os.geteuid() == 0, f"giving files away takes root, and this runs as user {os.geteuid()}")
    def test_user_and_folders(self):
        (self.root / "etc").mkdir()
        root = f"--root={self.root}"
        for command in [
            ("systemd-sysusers", root, str(DEPLOY / "sysusers.d/kvpool.conf")),
            ("systemd-tmpfiles", "--create", root, str(DEPLOY / "tmpfiles.d/kvpool.conf")),
        ]:
            done = run(*command)
            self.assertEqual(done.returncode, 0, done.stderr)
        users = (self.root / "etc/passwd").read_text(encoding="utf-8")
        uid = int(re.search(r"^kvpool:x:(\d+):", users, re.MULTILINE).group(1))
        tokens = (self.root / "etc/kvpool/tokens").stat()
        self.assertEqual((tokens.st_uid, tokens.st_mode & 0o777), (uid, 0o700))
        self.assertEqual((self.root / "etc/kvpool").stat().st_mode & 0o777, 0o755)


if __name__ == "__main__":
    unittest.main(verbosity=2)
