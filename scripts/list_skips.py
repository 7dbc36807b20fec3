"""Prints which tests the last CTest run left out, and why, from its log. Decides nothing: always exits 0.

Knows how GoogleTest and unittest (with --verbose) say it.

SPDX-License-Identifier: Apache-2.0
"""
import pathlib
import re
import sys

GOOGLETEST = re.compile(r"^\[ RUN      \] (?P<test>\S+)\n(?:(?!\[ RUN).*\n)*?\S+: Skipped\n(?P<why>.*)$", re.M)
UNITTEST = re.compile(r"^(?P<test>\S+ \(\S+\)).* \.\.\. skipped ['\"](?P<why>.*)['\"]$", re.M)


def skips(log):
    """(test, reason) of each test that was left out, in the log's order."""
    found = [match for pattern in (GOOGLETEST, UNITTEST) for match in pattern.finditer(log)]
    return [(match["test"], match["why"].strip() or "no reason given") for match in sorted(found, key=lambda m: m.start())]


def main():
    log = pathlib.Path(sys.argv[1]).read_text(encoding="utf-8", errors="replace")
    left_out = skips(log)
    print(f"{len(left_out)} tests were left out" + (":" if left_out else ""))
    for test, why in left_out:
        print(f"  {test}: {why}")


if __name__ == "__main__":
    main()
