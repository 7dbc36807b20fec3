"""The format check catches a file that clang-format would change.

SPDX-License-Identifier: Apache-2.0
"""

import unittest

from check_case import CheckCase

SCRIPT = "check_format.py"


class CheckFormatTest(CheckCase):
    def setUp(self):
        super().setUp()
        self.write(".clang-format", "BasedOnStyle: Google\n")
        self.write("common/a.h", "int A();\n")

    def test_formatted_tree_passes(self):
        self.assert_clean(SCRIPT)

    def test_unformatted_file_is_found(self):
        self.write("common/b.cc", "int  B( ) {return 1;}\n")
        self.assert_finds("common/b.cc:1", SCRIPT)

    def test_an_ignored_folder_does_not_count(self):
        self.write(".gitignore", "/build/\n")
        self.write("build/b.cc", "int  B( ) {return 1;}\n")
        self.assert_clean(SCRIPT)

    def test_a_tree_without_sources_is_a_mistake(self):
        (self.root / "common/a.h").unlink()
        self.assert_finds("no C++ file found", SCRIPT)


if __name__ == "__main__":
    unittest.main()
