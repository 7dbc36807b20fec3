"""Holds proto/limits.h, its table in proto/README.md, the code and the tests against each other.

Each constant has a row of the table, is used by code outside tests, and is named by a test, which goes
past it. A row names only constants that exist.

SPDX-License-Identifier: Apache-2.0
"""

import pathlib
import re

import cpp_functions
import source_tree
from source_tree import Finding

HEADER = pathlib.PurePosixPath("proto/limits.h")
TABLE = pathlib.PurePosixPath("proto/README.md")
CONSTANT = re.compile(r"^inline constexpr \w+ (k\w+) =")
USE = re.compile(r"\blimits::(k\w+)")
ROW_HEAD = re.compile(r"^\|((?: `k\w+`)+) \|")


def constants(text):
    """{name: line}"""
    lines = enumerate(text.splitlines(), start=1)
    return {match.group(1): line for line, code in lines if (match := CONSTANT.match(code))}


def rows(text):
    """{name: line} of the first column."""
    found = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if match := ROW_HEAD.match(line):
            found.update(dict.fromkeys(re.findall(r"k\w+", match.group(1)), number))
    return found


def uses(root):
    """(names that code uses, names that tests use)"""
    code, tests = set(), set()
    for path in source_tree.cpp_files(root):
        named = USE.findall(cpp_functions.blank(source_tree.text(root, path) or ""))
        (tests if path.parts[0] == "tests" else code).update(named)
    return code, tests


def check(root):
    """(findings, number of files checked)"""
    limits = constants(source_tree.text(root, HEADER))
    table = rows(source_tree.text(root, TABLE))
    code, tests = uses(root)
    findings = []
    for name, line in limits.items():
        if name not in table:
            findings.append(Finding(HEADER, line, f"{name} has no row in the table of {TABLE}"))
        if name not in code:
            findings.append(Finding(HEADER, line, f"no code uses limits::{name}: enforce it"))
        if name not in tests:
            findings.append(Finding(HEADER, line, f"no test names limits::{name}: go past it once"))
    for name in table.keys() - limits.keys():
        findings.append(Finding(TABLE, table[name], f"{name} is not in {HEADER}"))
    return findings, len(source_tree.cpp_files(root))


def main():
    args = source_tree.parser(__doc__.splitlines()[0]).parse_args()
    source_tree.finish(*check(args.root))


if __name__ == "__main__":
    main()
