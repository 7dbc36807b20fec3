"""What kvpoolctl says of itself: its bash completion completes, its manual page is one, and both have what --help has.

    cli_documents_test.py KVPOOLCTL

SPDX-License-Identifier: Apache-2.0
"""

import re
import shutil
import subprocess
import sys
import unittest

PROGRAM = []


def run(*command, text=None):
    return subprocess.run(command, input=text, capture_output=True, check=False, encoding="utf-8")


def kvpoolctl(*args):
    done = run(*PROGRAM, *args)
    if done.returncode != 0:
        raise AssertionError(done.stderr)
    return done.stdout


def commands(*parents):
    """The names under "Subcommands:" of a help text."""
    block = kvpoolctl(*parents, "--help").partition("Subcommands:\n")[2].partition("\n\n")[0]
    return re.findall(r"^  (\S+)", block, re.MULTILINE)


def all_commands():
    found = []
    for name in commands():
        found += [(name, inner) for inner in commands(name)] or [(name,)]
    return found


def flags(*command):
    options = kvpoolctl(*command, "--help").partition("Example")[0]
    return set(re.findall(r"(?<!\S)--[a-z-]+", options))


class CliDocumentsTest(unittest.TestCase):
    def complete(self, *words):
        script = kvpoolctl("completion", "bash")
        quoted = " ".join(f'"{word}"' for word in ("kvpoolctl", *words))
        script += f'COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; _kvpoolctl; echo "${{COMPREPLY[@]}}"\n'
        done = run("bash", "--norc", "-u", text=script)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout.split()

    def test_help_names_many_commands(self):
        self.assertGreater(len(all_commands()), 18)
        self.assertIn(("operator", "create"), all_commands())

    def test_commands_are_completed(self):
        self.assertEqual(set(commands()) - set(self.complete("")), set())
        self.assertEqual(self.complete("des"), ["describe"])
        self.assertEqual(self.complete("operator", "c"), ["create"])
        self.assertEqual(self.complete("-o", "json", "tok"), ["token"])
        self.assertEqual(self.complete("nothing", "like-this", "x"), [])

    def test_flags_are_completed(self):
        for command in all_commands():
            with self.subTest(command):
                completed = set(self.complete(*command, "--"))
                self.assertEqual(flags(*command) - completed, set())
        self.assertEqual(self.complete("set", "tenant", "chat", "--weig"), ["--weight"])

    def test_arguments_are_completed(self):
        self.assertEqual(self.complete("get", "ten"), ["tenant", "tenants"])
        self.assertEqual(self.complete("drain", "a"), ["agent"])
        self.assertEqual(set(self.complete("-o", "")), {"table", "json"})
        self.assertEqual(set(self.complete("set", "tenant", "chat", "--over-deadline", "")), {"hold", "preempt"})
        self.assertIn("scissorhands", self.complete("set", "tenant", "chat", "--policy", "sc"))
        self.assertEqual(self.complete("set", "tenant", "chat", "--limit", ""), [], "any size")
        self.assertEqual(self.complete("apply", "-f", __file__[:-1]), [__file__])

    def test_the_manual_page_has_every_command_and_flag(self):
        page = kvpoolctl("man").replace("\\-", "-")
        for command in all_commands():
            with self.subTest(command):
                section = re.search(rf'^\.SS "kvpoolctl {" ".join(command)}[ "].*?(?=^\.S[SH])', page, re.M | re.S)
                self.assertIsNotNone(section)
                options = page.partition(".SH COMMANDS")[0]
                missing = {flag for flag in flags(*command) if flag not in section.group(0) + options}
                self.assertEqual(missing, set())
        for heading in ("NAME", "SYNOPSIS", "OPTIONS", "EXAMPLES", "EXIT STATUS"):
            self.assertIn(f"\n.SH {heading}\n", page)

    @unittest.skipUnless(shutil.which("groff"), "groff is not installed")
    def test_groff_takes_the_manual_page(self):
        done = run("groff", "-man", "-ww", "-Tutf8", text=kvpoolctl("man"))
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("KVPOOLCTL(1)", done.stdout)

    def test_another_shell_is_a_mistake(self):
        self.assertEqual(run(*PROGRAM, "completion", "fish").returncode, 2)


if __name__ == "__main__":
    PROGRAM = sys.argv[1:]
    unittest.main(argv=sys.argv[:1], verbosity=2)
