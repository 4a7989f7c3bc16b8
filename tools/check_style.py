#!/usr/bin/env python3
"""Checks sizes: a function has at most 70 lines, a file 800, a line 120 characters.

Usage: check_style.py ROOT. Functions are found by their braces at file or class level; exceptions stand in
EXCEPTIONS with a reason, and the list only shrinks. Exit 1 if something is too big.
"""
import pathlib
import re
import sys

FOLDERS = ("store", "fuse", "daemon", "client", "tests", "tools")
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_LINE_CHARACTERS = 800, 70, 120
EXCEPTIONS = {}  # "file: function's first line" -> reason
NOT_A_FUNCTION = re.compile(
    r"^\s*(namespace|class|struct|enum|union|extern|#|constexpr .*=|static .*= *\{|const .*=|inline .*=)")
COMMENT_OR_STRING = re.compile(r'//.*|"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'')


def functions(lines):
    """Yields (first line number, text of it, line count) of each outermost body that is no type or namespace."""
    depth, stack, start, head = 0, [], None, ""
    for number, raw in enumerate(lines, 1):
        line = COMMENT_OR_STRING.sub('""', raw)
        if line.startswith("#"):
            continue
        for character in line:
            if character == "{":
                opens_scope = start is None and (NOT_A_FUNCTION.match(head or line) or "(" not in (head or "") + line)
                stack.append(opens_scope)
                if start is None and not opens_scope:
                    start, first = number, (head or line).strip()
                    base = len(stack)
            elif character == "}" and stack:
                stack.pop()
                if start is not None and len(stack) < base:
                    yield start, first, number - start + 1
                    start = None
        head = "" if not line.strip() or line.rstrip().endswith((";", "}", "{", ":")) else (head or line)


def problems_of(path, name):
    lines = path.read_text().splitlines()
    if len(lines) > MAX_FILE_LINES:
        yield f"{name}: {len(lines)} lines, at most {MAX_FILE_LINES}"
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LINE_CHARACTERS and "http" not in line:
            yield f"{name}:{number}: {len(line)} characters, at most {MAX_LINE_CHARACTERS}"
    if path.suffix == ".py":
        return
    for number, first, count in functions(lines):
        if count > MAX_FUNCTION_LINES and f"{name}: {first}" not in EXCEPTIONS:
            yield f"{name}:{number}: function of {count} lines, at most {MAX_FUNCTION_LINES}: {first}"


def main():
    root = pathlib.Path(sys.argv[1])
    paths = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*"))
             if path.suffix in (".h", ".cpp", ".py") and "golden" not in path.parts]
    found = [problem for path in paths for problem in problems_of(path, path.relative_to(root))]
    print("\n".join(found) if found else f"{len(paths)} files: all of a readable size")
    return 1 if found or not paths else 0


if __name__ == "__main__":
    sys.exit(main())
