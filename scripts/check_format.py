"""Fails when a C++ file is not formatted as .clang-format says. Changes nothing.

To repair: clang-format-14 -i FILE...

SPDX-License-Identifier: Apache-2.0
"""

import subprocess
import sys

import source_tree

FORMATTER = "clang-format-14"


def main():
    args = source_tree.parser(__doc__.splitlines()[0]).parse_args()
    paths = [str(path) for path in source_tree.cpp_files(args.root)]
    if not paths:
        sys.exit("no C++ file found")
    command = [FORMATTER, "--dry-run", "--Werror", "--style=file", *paths]
    code = subprocess.run(command, cwd=args.root, check=False).returncode
    if code:
        print(f"to repair: {FORMATTER} -i FILE...")
    else:
        print(f"{len(paths)} files checked, 0 findings")
    sys.exit(code)


if __name__ == "__main__":
    main()
