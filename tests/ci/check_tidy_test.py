"""The tidy check catches each thing that it names, and leaves good files alone.

SPDX-License-Identifier: Apache-2.0
"""

import unittest

from check_case import HEAD, CheckCase

SCRIPT = "check_tidy.py"
SCHEMA_HEAD = "# What it is.\n# SPDX-License-Identifier: Apache-2.0\n"


def function(lines, head="void F() {"):
    """A C++ function of that many lines."""
    return head + "\n" + "  f();\n" * (lines - 2) + "}\n"


class CheckTidyTest(CheckCase):
    def setUp(self):
        super().setUp()
        self.write("agent/good.cc", HEAD + "namespace kvpool {\n" + function(70) + "}\n")
        self.write("scripts/good.py", '"""A.\n\nSPDX-License-Identifier: Apache-2.0\n"""\n')
        self.write("scripts/good", "#!/bin/sh\n# SPDX-License-Identifier: Apache-2.0\n")

    def test_good_tree_passes(self):
        self.assert_clean(SCRIPT)

    def test_long_file_outside_tests(self):
        self.write("agent/long.h", HEAD + "int a;\n" * 598)
        self.write("tests/agent/long_test.cc", HEAD + "int a;\n" * 598)
        output = self.assert_finds("agent/long.h:1: 601 lines", SCRIPT)
        self.assertIn("1 findings", output)

    def test_long_functions(self):
        class_body = "class C final : public B {\n public:\n" + function(71, "  int M() const {") + "};\n"
        constructor = function(71, "C::C() : a_{1},\n    b_{2} {")  # one line more for its head
        template = function(71, "template <typename T>\nT Make(T x = {1}) {")
        lambda_inside = "void L() {\n" + function(70, "  g([&](int a) {") + "}\n"
        parts = [class_body, constructor, template, lambda_inside]
        self.write("agent/long.cc", HEAD + "namespace kvpool {\n" + "".join(parts) + "}\n")
        output = self.assert_finds("agent/long.cc:7: M: 71 lines", SCRIPT)
        self.assertIn("C::C: 72 lines", output)
        self.assertIn("Make: 72 lines", output)
        self.assertIn("L: 72 lines", output)
        self.assertIn("4 findings", output)

    def test_braces_that_are_no_blocks(self):
        tricky = 'const char* kA = "{";\nconst char* kB = R"x({{{)x";\nchar c = \'{\';  // {{\n'
        table = "constexpr int kTable[] = {\n" + "    1'000,\n" * 100 + "};\n"
        self.write("agent/tricky.cc", HEAD + tricky + table + function(70))
        self.assert_clean(SCRIPT)
        self.write("agent/tricky.cc", HEAD + tricky + table + function(71))
        self.assert_finds("agent/tricky.cc:109: F: 71 lines", SCRIPT)

    def test_long_python_function(self):
        head = '"""A.\n\nSPDX-License-Identifier: Apache-2.0\n"""\n'
        self.write("scripts/long.py", head + "def f():\n" + "    f()\n" * 70)
        self.assert_finds("scripts/long.py:5: f: 71 lines", SCRIPT)

    def test_conditional(self):
        self.write("kernels/a.h", HEAD + "#  ifdef X\n#endif\n")
        self.assert_finds("kernels/a.h:4: preprocessor conditional", SCRIPT)

    def test_left_over_marker_in_any_text_file(self):
        for marker in ["TO" + "DO", "FIX" + "ME", "<" * 7 + " HEAD"]:
            with self.subTest(marker):
                self.write("docs/page.md", f"# Page\n\n{marker}\n")
                self.assert_finds("docs/page.md:3: left-over marker", SCRIPT)

    def test_path_of_one_machine(self):
        self.write("docs/page.md", "see /" + "home/me/x and ${HOME}/src/y\n")
        self.assert_finds("docs/page.md:1: path of one machine", SCRIPT)

    def test_missing_first_comment_and_licence(self):
        self.write("agent/bare.h", "#pragma once\n")
        self.write("scripts/bare", "true\n")
        output = self.assert_finds("agent/bare.h:1: must begin with a comment", SCRIPT)
        self.assertIn("agent/bare.h:1: the first comment lacks", output)
        self.assertIn("scripts/bare:1: must begin with a comment", output)

    def test_schema_ids(self):
        first, second = "@0xb7a4c1902e5fd683", "@0xf3068b9d17ac42e5"
        self.write("proto/a.capnp", f"{SCHEMA_HEAD}{first};\nstruct A {second} {{\n}}\n")
        self.write("proto/b.capnp", f"{SCHEMA_HEAD}{second};\nenum B {{\n}}\n")
        output = self.assert_finds("proto/b.capnp:3: id 0xf3068b9d17ac42e5 is already taken", SCRIPT)
        self.assertIn("at proto/a.capnp:4", output)
        self.assertIn("proto/b.capnp:4: type without an explicit id", output)


if __name__ == "__main__":
    unittest.main()
