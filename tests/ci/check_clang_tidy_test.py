"""The clang-tidy check finds the changed files, checks them, and says what it left out.

SPDX-License-Identifier: Apache-2.0
"""

import json
import unittest

from check_case import CheckCase

SCRIPT = "check_clang_tidy.py"
GOOD = "int* Nothing() { return nullptr; }\n"
BAD = "int* Nothing() { return 0; }\n"


class CheckClangTidyTest(CheckCase):
    def setUp(self):
        super().setUp()
        self.write(".gitignore", "/build/\n")
        checks = "Checks: '-*,modernize-use-nullptr'\nWarningsAsErrors: '*'\nHeaderFilterRegex: '.*'\n"
        self.write(".clang-tidy", checks)
        self.write("agent/old.cc", BAD)
        self.write("agent/new.h", GOOD)
        self.write("agent/new.cc", '#include "agent/new.h"\n')
        self.commit("the state of main")
        self.git("update-ref", "refs/remotes/origin/main", "HEAD")
        units = ["agent/old.cc", "agent/new.cc"]
        commands = [
            {"directory": str(self.root), "file": unit, "command": f"c++ -I. -c {unit}"} for unit in units
        ]
        self.write("build/compile_commands.json", json.dumps(commands))

    def commit(self, message):
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)

    def options(self, budget):
        return "--build", self.root / "build", "--budget", str(budget)

    def test_only_changed_files_count(self):
        self.write("agent/new.cc", '#include "agent/new.h"\nint a;\n')
        self.commit("a change")
        output = self.assert_clean(SCRIPT, *self.options(60))
        self.assertIn("[1/1] agent/new.cc: ok", output)

    def test_finding_in_a_changed_header(self):
        self.write("agent/new.h", BAD)
        self.commit("a change")
        self.assert_finds("[modernize-use-nullptr", SCRIPT, *self.options(60))

    def test_change_that_is_not_committed(self):
        self.write("agent/new.h", BAD)
        self.assert_finds("[modernize-use-nullptr", SCRIPT, *self.options(60))

    def test_on_main_itself_a_short_history_counts_whole(self):
        output = self.assert_finds("agent/old.cc: FINDINGS", SCRIPT, *self.options(60))
        self.assertIn("of the whole history", output)

    def test_a_precompiled_header_hides_no_missing_include(self):
        self.write("build/cmake_pch.hxx", GOOD)
        use = {"directory": str(self.root), "file": "agent/use.cc"}
        use["command"] = f"c++ -I. -Winvalid-pch -include {self.root}/build/cmake_pch.hxx -c agent/use.cc"
        self.write("build/compile_commands.json", json.dumps([use]))
        self.write("agent/use.cc", "int* use = Nothing();\n")
        self.commit("a change")
        self.assert_finds("use of undeclared identifier 'Nothing'", SCRIPT, *self.options(60))

    def test_what_the_budget_leaves_out_is_named(self):
        output = self.assert_clean(SCRIPT, *self.options(-1))
        self.assertIn("2 units left out", output)
        self.assertIn("agent/old.cc", output)


if __name__ == "__main__":
    unittest.main()
