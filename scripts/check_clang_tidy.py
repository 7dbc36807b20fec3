"""Runs clang-tidy on the C++ files that changed, newest change first, within a time budget.

Changed means: since the branch left origin/main; on main itself, in the last commits. A changed header is
checked through one translation unit that includes it. What the budget leaves out is named. Precompiled
headers are left out, so a unit that does not include what it uses from them is a finding.

SPDX-License-Identifier: Apache-2.0
"""

import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import check_includes
import source_tree

CLANG_TIDY = "clang-tidy-14"
COMMITS_ON_MAIN = 20
PRECOMPILED_HEADER = re.compile(r"-include \S*/cmake_pch\.hxx")


def git(root, *arguments):
    """Output lines of a git command, or None when it fails."""
    done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, check=False)
    return done.stdout.decode().splitlines() if done.returncode == 0 else None


def base_commit(root):
    """The commit to compare with; None means that every file counts as changed."""
    fork = git(root, "merge-base", "HEAD", "origin/main")
    if fork and fork != git(root, "rev-parse", "HEAD"):
        return fork[0]
    back = git(root, "rev-parse", "--verify", "--quiet", f"HEAD~{COMMITS_ON_MAIN}")
    return back[0] if back else None


def changed_files(root, base):
    """Changed C++ files that still exist: uncommitted ones, then by commit, newest first."""
    history = [f"{base}..HEAD"] if base else ["HEAD"]
    names = git(root, "diff", "--name-only", "HEAD") or []
    names += git(root, "log", "--name-only", "--format=", *history) or []
    present = {str(path) for path in source_tree.cpp_files(root)}
    return [name for name in dict.fromkeys(names) if name in present]


def units_of(root, build):
    """The translation units of ours that the build compiles, relative to root."""
    commands = json.loads((build / "compile_commands.json").read_text(encoding="utf-8"))
    present = {str(path) for path in source_tree.cpp_files(root)}
    absolute = [pathlib.Path(entry["directory"], entry["file"]) for entry in commands]
    ours = [path for path in absolute if path.is_relative_to(root)]
    return [name for name in (str(path.relative_to(root)) for path in ours) if name in present]


def write_commands(build, folder):
    """The build's commands without its precompiled headers: they are GCC's, and hide a missing include."""
    commands = (build / "compile_commands.json").read_text(encoding="utf-8")
    plain = PRECOMPILED_HEADER.sub("", commands)
    pathlib.Path(folder, "compile_commands.json").write_text(plain, encoding="utf-8")


def unit_for(root, name, units):
    """The translation unit that checks a file: itself, or the nearest one that includes it."""
    if name in units:
        return name
    users = [
        unit
        for unit in units
        if name in (path for _, path, _ in check_includes.includes((root / unit).read_text()))
    ]
    stem = pathlib.PurePath(name).stem
    return min(users, key=lambda unit: (stem not in unit, unit), default=None)


def run_all(root, commands, units, budget, jobs):
    """(units with findings, units left out)"""
    end = time.monotonic() + budget

    def run_one(unit):
        if time.monotonic() > end:
            return unit, None, ""
        # The build may name warnings and options that only its own compiler knows.
        ignored = ("unknown-warning-option", "unused-command-line-argument")
        extra = [f"--extra-arg=-Wno-{name}" for name in ignored]
        command = [CLANG_TIDY, "--quiet", *extra, "-p", commands, unit]
        done = subprocess.run(command, cwd=root, capture_output=True, check=False)
        return unit, done.returncode == 0, done.stdout.decode() + done.stderr.decode()

    bad, skipped = [], []
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for number, (unit, clean, output) in enumerate(pool.map(run_one, units), start=1):
            if clean is None:
                skipped.append(unit)
                continue
            print(f"[{number}/{len(units)}] {unit}: {'ok' if clean else 'FINDINGS'}", flush=True)
            if not clean:
                bad.append(unit)
                print(output)
    return bad, skipped


def main():
    parser = source_tree.parser(__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, required=True, help="a configured build folder")
    parser.add_argument("--budget", type=float, default=100, help="seconds to start new files in")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="files at a time")
    args = parser.parse_args()
    root, build = args.root.resolve(), args.build.resolve()

    base = base_commit(root)
    names = changed_files(root, base)
    units = units_of(root, build)
    chosen = [unit_for(root, name, units) for name in names]
    todo = list(dict.fromkeys(unit for unit in chosen if unit))
    since = f"changed since {base[:12]}" if base else "of the whole history"
    print(f"{len(names)} C++ files {since}: {len(todo)} translation units to check")
    with tempfile.TemporaryDirectory() as commands:
        write_commands(build, commands)
        bad, skipped = run_all(root, commands, todo, args.budget, args.jobs)
    if skipped:
        print(f"{len(skipped)} units left out after {args.budget:.0f} s: {' '.join(skipped)}")
    print(f"{len(todo) - len(skipped)} units checked, {len(bad)} with findings")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
