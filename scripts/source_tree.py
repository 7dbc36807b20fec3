"""The files of the repository that the checks look at, and how a check reports what it found.

Not a check itself. Lists what git tracks or would track, so build folders never count.

SPDX-License-Identifier: Apache-2.0
"""

import argparse
import pathlib
import subprocess
import sys

CPP = (".h", ".cc", ".cu", ".cuh")


class Finding:
    """One violation: where it is and what to do about it."""

    def __init__(self, path, line, text):
        self.path, self.line, self.text = path, line, text

    def __str__(self):
        return f"{self.path}:{self.line}: {self.text}"


def parser(description):
    """An argument parser with the option that every check has."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument(
        "--root",
        type=pathlib.Path,
        default=pathlib.Path(__file__).resolve().parent.parent,
        help="top of the git working tree to check",
    )
    return result


def files(root):
    """Paths relative to root, in order: tracked files and new files that git does not ignore."""
    listed = subprocess.run(
        ["git", "-C", root, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
    ).stdout.decode()
    names = sorted(set(listed.split("\0")) - {""})
    return [pathlib.PurePosixPath(name) for name in names if (root / name).is_file()]


def cpp_files(root):
    return [path for path in files(root) if path.suffix in CPP]


def text(root, path):
    """The file's text, or None when it is not UTF-8 text."""
    try:
        return (root / path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def finish(findings, checked):
    """Prints the findings and ends the process: 0 when there is none."""
    for finding in findings:
        print(finding)
    print(f"{checked} files checked, {len(findings)} findings")
    sys.exit(1 if findings else 0)
