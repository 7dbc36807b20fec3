"""The limits check finds a constant that is missing somewhere, and leaves a complete table alone.

SPDX-License-Identifier: Apache-2.0
"""

import unittest

from check_case import HEAD, CheckCase

SCRIPT = "check_limits.py"
README = "| limit | value | past it |\n|---|---|---|\n| `kOne` `kTwo` | 1, 2 | refused |\n"


class CheckLimitsTest(CheckCase):
    def setUp(self):
        super().setUp()
        lines = "inline constexpr uint32_t kOne = 1;\ninline constexpr uint64_t kTwo = 2 * kOne;\n"
        self.write("proto/limits.h", HEAD + lines)
        self.write("proto/README.md", README)
        self.write("agent/a.cc", HEAD + "int a = limits::kOne + limits::kTwo;\n")
        self.write("tests/agent/a_test.cc", HEAD + "int a = limits::kOne + limits::kTwo + 1;\n")

    def test_complete(self):
        self.assert_clean(SCRIPT)

    def test_no_row(self):
        self.write("proto/README.md", README.replace(" `kTwo`", ""))
        self.assert_finds("proto/limits.h:5: kTwo has no row", SCRIPT)

    def test_a_row_of_nothing(self):
        self.write("proto/README.md", README + "| `kThree` | 3 | refused |\n")
        self.assert_finds("proto/README.md:4: kThree is not in proto/limits.h", SCRIPT)

    def test_not_enforced(self):
        self.write("agent/a.cc", HEAD + "int a = limits::kOne;\n")
        self.assert_finds("no code uses limits::kTwo", SCRIPT)

    def test_named_in_a_comment_alone(self):
        self.write("agent/a.cc", HEAD + "int a = limits::kOne;  // below limits::kTwo\n")
        self.assert_finds("no code uses limits::kTwo", SCRIPT)

    def test_not_tested(self):
        self.write("tests/agent/a_test.cc", HEAD + "int a = limits::kTwo;\n")
        self.assert_finds("no test names limits::kOne", SCRIPT)


if __name__ == "__main__":
    unittest.main()
