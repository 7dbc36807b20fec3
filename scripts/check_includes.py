"""Fails on an include that the table in docs/architecture.md does not allow.

Three rules:
- a folder includes only the folders that its row names, always in quotes;
- files that must stay plain (kernels, and what kernels may include; the client's public header) reach
  no Cap'n Proto, KJ or Boost header, also not through other headers of ours;
- an include of ours is a path from the top to a file that exists (or that a schema generates).

SPDX-License-Identifier: Apache-2.0
"""

import pathlib
import re

import source_tree
from source_tree import Finding

# What a folder may include beside itself. `tests` mirrors the tree and may include all of it.
MAY_INCLUDE = {
    "proto": set(),
    "common": {"proto"},
    "kernels": set(),
    "agent": {"kernels", "common", "proto"},
    "manager": {"common", "proto"},
    "client": {"kernels", "common", "proto"},
    "worker": {"client", "kernels", "common", "proto"},
    "tests": {"worker", "client", "manager", "agent", "kernels", "common", "proto"},
}
# The files of common that kernels may include.
COMMON_FOR_KERNELS = {"common/units.h", "common/ids.h", "common/policy_spec.h"}
PUBLIC_HEADER = "client/kvpool.h"
RPC_AND_BOOST = re.compile(r"(capnp|kj|boost)/|.*\.capnp\.h$")
INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<([^>]+)>)')


def includes(text):
    """[(line, path, quoted)] of a file's text."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        match = INCLUDE.match(line)
        if match:
            quoted, angled = match.groups()
            found.append((number, quoted or angled, quoted is not None))
    return found


def is_plain(path):
    """Whether a file must reach no RPC or Boost header."""
    return path.startswith("kernels/") or path in COMMON_FOR_KERNELS or path == PUBLIC_HEADER


def allowed(source, target):
    here, there = source.split("/")[0], target.split("/")[0]
    if here == "kernels" and target in COMMON_FOR_KERNELS:
        return True
    return there == here or there in MAY_INCLUDE[here]


def exists(root, target):
    generated_from = target[: -len(".h")] if target.endswith(".capnp.h") else target
    return (root / generated_from).is_file()


def check_direct(root, source, lines):
    """The rules that need only the file itself."""
    for number, target, quoted in lines:
        ours = "/" in target and target.split("/")[0] in MAY_INCLUDE
        if ours and not quoted:
            yield Finding(source, number, f"<{target}> is ours: write it in quotes")
        elif quoted and (target.startswith(".") or "/" not in target):
            yield Finding(source, number, f'"{target}" must be a path from the repository\'s top')
        elif ours and not exists(root, target):
            yield Finding(source, number, f'"{target}" does not exist')
        elif ours and not allowed(source, target):
            here = source.split("/")[0]
            yield Finding(source, number, f'{here} may not include "{target}"')


def forbidden_chain(source, graph):
    """The shortest chain of includes from a file to an RPC or Boost header, or None."""
    queue, seen = [[source]], {source}
    for chain in queue:
        for _, target, quoted in graph.get(chain[-1], []):
            if RPC_AND_BOOST.match(target):
                return chain + [target]
            if quoted and target not in seen:
                seen.add(target)
                queue.append(chain + [target])
    return None


def check(root):
    """(findings, number of files checked)"""
    paths = [str(path) for path in source_tree.cpp_files(root)]
    graph = {path: includes(source_tree.text(root, pathlib.Path(path)) or "") for path in paths}
    findings = []
    for path, lines in graph.items():
        if path.split("/")[0] not in MAY_INCLUDE:
            findings.append(Finding(path, 1, "C++ outside the folders of the house"))
            continue
        findings.extend(check_direct(root, path, lines))
        chain = forbidden_chain(path, graph) if is_plain(path) else None
        if chain:
            findings.append(Finding(path, 1, "reaches " + " -> ".join(chain[1:])))
    if any(path.startswith("client/") for path in paths) and PUBLIC_HEADER not in graph:
        findings.append(Finding(PUBLIC_HEADER, 1, "the client's public header is missing"))
    return findings, len(paths)


def main():
    args = source_tree.parser(__doc__.splitlines()[0]).parse_args()
    source_tree.finish(*check(args.root))


if __name__ == "__main__":
    main()
