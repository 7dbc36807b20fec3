"""Fails on what a reader should not meet: the house rules that no compiler checks.

- a source file over 600 lines outside tests/, a function over 70 lines;
- a preprocessor conditional outside the list below;
- a left-over marker, a merge conflict, a path of somebody's machine;
- a source file without a first comment or without its licence line;
- two equal ids in the Cap'n Proto schemas, or a type without an explicit id.

SPDX-License-Identifier: Apache-2.0
"""

import ast
import re

import cpp_functions
import source_tree
from source_tree import Finding

FILE_LINES = 600
FUNCTION_LINES = 70
# Files that may hold preprocessor conditionals. One translation unit per variant is the rule.
MAY_HAVE_CONDITIONALS = set()

COMMENT_STARTS = {".py": ('"""', "#!"), ".capnp": ("#",), "": ("#!",)}
LICENCE = "SPDX-License-Identifier: Apache-2.0"
CONDITIONAL = re.compile(r"^\s*#\s*(if|ifdef|ifndef|elif)\b")
# Written in pieces, so that this file does not hold them.
MARKER = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX|HA" r"CK)\b|^(<{7}|>{7}) ")
MACHINE_PATH = re.compile(r"(?<![\w.}])/(home|root|work|Users)/\w")
SCHEMA_ID = re.compile(r"@(0x[0-9a-f]{16})\b")
SCHEMA_TYPE = re.compile(r"^\s*(struct|interface|enum)\s+(\w+)\s*(\{|\(|extends)")


def is_source(path):
    """C++, Python, schemas and the scripts without an extension."""
    scripts = path.parts[0] in ("scripts", ".ci") and path.suffix == ""
    return scripts or path.suffix in source_tree.CPP + (".py", ".capnp")


def check_head(path, text):
    starts = COMMENT_STARTS.get(path.suffix, ("//",))
    if not text.startswith(starts):
        yield Finding(path, 1, f"must begin with a comment ({' or '.join(starts)}): what it is")
    if LICENCE not in "\n".join(text.splitlines()[:40]):
        yield Finding(path, 1, f"the first comment lacks '{LICENCE}'")


def functions(path, text):
    """[(name, first line, last line)]"""
    if path.suffix in source_tree.CPP:
        return cpp_functions.functions(text)
    if path.suffix == ".py":
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
        return [(node.name, node.lineno, node.end_lineno) for node in nodes]
    return []


def check_lengths(path, text):
    lines = text.count("\n")
    if lines > FILE_LINES and path.parts[0] != "tests":
        yield Finding(path, 1, f"{lines} lines, at most {FILE_LINES}: split it")
    for name, first, last in functions(path, text):
        if last - first + 1 > FUNCTION_LINES:
            length = last - first + 1
            yield Finding(path, first, f"{name}: {length} lines, at most {FUNCTION_LINES}")


def check_lines(path, text):
    conditionals = path.suffix not in source_tree.CPP or str(path) in MAY_HAVE_CONDITIONALS
    for number, line in enumerate(text.splitlines(), start=1):
        if not conditionals and CONDITIONAL.match(line):
            yield Finding(path, number, "preprocessor conditional: choose by translation unit")
        if MARKER.search(line):
            yield Finding(path, number, "left-over marker")
        if MACHINE_PATH.search(line):
            yield Finding(path, number, "path of one machine")


def check_schema(path, text, seen):
    for number, line in enumerate(text.splitlines(), start=1):
        code = line.split("#")[0]
        if SCHEMA_TYPE.match(code):
            yield Finding(path, number, "type without an explicit id")
        for match in SCHEMA_ID.finditer(code):
            first = seen.setdefault(match.group(1), f"{path}:{number}")
            if first != f"{path}:{number}":
                yield Finding(path, number, f"id {match.group(1)} is already taken at {first}")


def check(root):
    """(findings, number of files checked)"""
    findings, schema_ids, checked = [], {}, 0
    for path in source_tree.files(root):
        text = source_tree.text(root, path)
        if text is None:
            continue
        checked += 1
        findings.extend(check_lines(path, text))
        if is_source(path):
            findings.extend(check_head(path, text))
            findings.extend(check_lengths(path, text))
        if path.suffix == ".capnp":
            findings.extend(check_schema(path, text, schema_ids))
    return findings, checked


def main():
    args = source_tree.parser(__doc__.splitlines()[0]).parse_args()
    source_tree.finish(*check(args.root))


if __name__ == "__main__":
    main()
