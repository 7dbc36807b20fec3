"""Finds the functions of a C++ file and the lines they span, by counting braces.

A heuristic, not a parser: it relies on formatted code without preprocessor conditionals. Lambdas and
local classes count as part of the function around them.

SPDX-License-Identifier: Apache-2.0
"""

import re

TOKENS = re.compile(
    r"""
    (?P<raw>R"(?P<mark>[^()\s\\]{0,16})\(.*?\)(?P=mark)") | (?P<string>"(?:\\.|[^"\\\n])*") |
    (?P<digits>\b\d[\w']*) | (?P<char>'(?:\\.|[^'\\\n])+') |
    (?P<line>//[^\n]*) | (?P<block>/\*.*?\*/) | (?P<directive>^[ \t]*\#(?:\\\n|[^\n])*)
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
TEMPLATE = re.compile(r"^\s*template\s*<")
CONTAINER = re.compile(r"^\s*(inline\s+)?(namespace|class|struct|union|enum|extern)\b")
CONTINUES = re.compile(r"\s*[,{]")
FUNCTION_NAME = re.compile(r"(operator\s*\S+?|operator\(\)|~?[\w:]+)\s*\(")


def blank(text):
    """The text with strings, comments and directives blanked; lines stay where they were."""

    def replacement(match):
        if match.lastgroup == "digits":
            return match.group()
        return re.sub(r"[^\n]", " ", match.group())

    return TOKENS.sub(replacement, text)


def without_template(head):
    """The head of a declaration without `template <...>` before it."""
    while TEMPLATE.match(head):
        depth, position = 0, head.index("<")
        for position in range(position, len(head)):
            depth += {"<": 1, ">": -1}.get(head[position], 0)
            if depth == 0:
                break
        head = head[position + 1 :]
    return head


def kind(head):
    """What the brace after `head` opens: a container of declarations, data, a function, a value."""
    head = without_template(head)
    if CONTAINER.match(head):
        return "container"
    if head.count("(") > head.count(")"):
        return "value"  # a default argument, say
    if re.search(r"=\s*[\w:<>, ]*$", head) or "(" not in head:
        return "data"
    return "function"


def functions(text):
    """[(name, first line, last line)] of all functions with a body, outermost ones only."""
    code = blank(text)
    found, stack = [], []  # stack: (kind, head, line of the head's first character)
    head, head_line, line = "", 1, 1
    for position, char in enumerate(code):
        line += char == "\n"
        inside = any(entry[0] != "container" for entry in stack)
        if char == "{":
            stack.append(("inner" if inside else kind(head), head, head_line))
            head = head if inside or stack[-1][0] != "container" else ""
        elif char == "}" and stack:
            what, opened, first = stack.pop()
            # `: a_{1}, b_{2} {`: a brace of an initialiser list; the body is still to come.
            goes_on = what == "value" or CONTINUES.match(code, position + 1) is not None
            if what == "function" and not goes_on:
                name = FUNCTION_NAME.search(without_template(opened))
                found.append((name.group(1) if name else "function", first, line))
            if what != "inner" and not goes_on:
                head = ""
        elif not inside:
            if char == ";" or (char == ":" and head.strip() in ("public", "private", "protected")):
                head = ""
            elif head or not char.isspace():
                head_line = head_line if head else line
                head += char
    return found
