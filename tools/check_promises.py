#!/usr/bin/env python3
"""Checks that the promises of fuse/SEMANTICS.md have tests, and that no test names a promise that is not there.

Usage: check_promises.py [--list] ROOT. A promise is a name like `[names.wh]` in code font behind what it says. A test
names it as `[names.wh]`: in the tags of a TEST_CASE, in the promises of a script of the union table, or in the
docstring of a test_ function or class. A test may name only what it would fail without. Each promise is tested both
without a mount (tests/fuse, tests/store) and through the kernel (tests/e2e), but for those of ONE_SIDE, which say why.
Scripts of the table run on both sides. --list prints all promises with their tests. Exit 1 if something is missing.
"""
import ast
import pathlib
import re
import sys

SEMANTICS = "fuse/SEMANTICS.md"
UNIT, KERNEL = "without a mount", "through the kernel"
FOLDERS = {"tests/fuse": (UNIT,), "tests/store": (UNIT,), "tests/e2e": (KERNEL,)}
TABLE = "tests/fuse/union_table.cpp"  # run by tests/fuse/union_table_test.cpp and tests/e2e/union_table_test.cpp

NAME = r"[a-z]+\.[a-z0-9-]+"
TAG = re.compile(rf"\[({NAME})\]")
DECLARED = re.compile(rf"`\[({NAME})\]`")
LITERALS = r'((?:"(?:\\.|[^"\\])*"\s*)+)'
TEST_CASE = re.compile(rf"TEST_CASE\(\s*{LITERALS}(?:,\s*{LITERALS})?\)")
SCRIPT = re.compile(rf"\{{{LITERALS},\s*{LITERALS},\s*\{{\{{")

# Promise -> (the side that tests it, why the other does not).
ONE_SIDE = {
    "stacks.xfs-acls": (KERNEL, "it takes an xfs, and the tests of disks make one"),
    "listings.cookies": (UNIT, "a mount does not show which server answers"),
    "listings.parts": (UNIT, "the kernel decides how much of a folder it asks for at once"),
    "data.in-place": (UNIT, "a mount does not show where bytes lie"),
    "data.whole": (UNIT, "a power cut at a chosen step takes a disk that is a model"),
    "data.one-moment": (UNIT, "nothing outside can hold a read open between its two halves"),
    "upper.one-step": (UNIT, "a kill between two chosen calls takes a hook in the keeper"),
    "upper.synced-copies": (UNIT, "a mount does not show what was synced"),
    "upper.sync": (UNIT, "a mount does not show what was synced"),
    "upper.owners-beside": (KERNEL, "the server's options choose it; its form is [stacks.override-stat]"),
    "steps.space": (UNIT, "a mount does not show what space is whose"),
    "steps.whole": (UNIT, "memory and room that end at a chosen step take a keeper that is a model"),
    "steps.full": (UNIT, "memory and room that end at a chosen step take a keeper that is a model"),
    "quota.mapped": (KERNEL, "mappings are the kernel's"),
    "init.reply": (UNIT, "what the kernel makes of it is [requests.cached] and [requests.changes]"),
    "requests.cached": (KERNEL, "without a kernel there are no requests to count"),
    "requests.changes": (KERNEL, "without a kernel there are no requests to count"),
    "owners.user-mount": (KERNEL, "the server exchanges the numbers, not the union"),
    "errors.one-request": (KERNEL, "it is the server's boundary to the kernel"),
    "errors.log": (UNIT, "no mount is broken so often in a test"),
    **{f"death.{name}": (KERNEL, "without a mount there is no server to kill") for name in (
        "unseen", "once", "poison", "stuck", "errors", "upgrade", "alone", "next-mount", "readers")},
}


def text_of(literals):
    return "".join(re.findall(r'"((?:\\.|[^"\\])*)"', literals or ""))


def tests_of_cpp(source, pattern):
    """(name, tags) of each TEST_CASE, or of each script of the table."""
    for match in pattern.finditer(source):
        yield text_of(match[1]), text_of(match[2])


def tests_of_python(source):
    """(name, docstring) of each test function, and of each class with tests."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            yield node.name, ast.get_docstring(node) or ""


def tests_in(root):
    """(file, name of the test, sides, promises) of every test that names a promise."""
    for folder, sides in FOLDERS.items():
        for path in sorted((root / folder).rglob("*")):
            file = str(path.relative_to(root))
            if path.suffix == ".cpp":
                is_table = file == TABLE
                found = tests_of_cpp(path.read_text(), SCRIPT if is_table else TEST_CASE)
                run_on = (UNIT, KERNEL) if is_table else sides
            elif path.suffix == ".py":
                found, run_on = tests_of_python(path.read_text()), sides
            else:
                continue
            for name, text in found:
                if promises := TAG.findall(text):
                    yield file, name, run_on, promises


def problems_of(declared, tests):
    for name in sorted({name for name in declared if declared.count(name) > 1}):
        yield f"{SEMANTICS}: [{name}] stands there twice"
    for file, test, _, names in tests:
        for name in names:
            if name not in declared:
                yield f"{file}: \"{test}\" names [{name}], which {SEMANTICS} does not promise"
    for name, (side, _) in ONE_SIDE.items():
        if name not in declared:
            yield f"ONE_SIDE: [{name}] is no promise"
        if any(other != side for _, _, sides, names in tests if name in names for other in sides):
            yield f"ONE_SIDE: [{name}] is tested on both sides"
    for name in declared:
        wanted = (ONE_SIDE[name][0],) if name in ONE_SIDE else (UNIT, KERNEL)
        for side in wanted:
            if not any(name in names and side in sides for _, _, sides, names in tests):
                yield f"{SEMANTICS}: no test names [{name}] {side}"


def print_list(declared, tests):
    for name in declared:
        print(name)
        for side in (UNIT, KERNEL):
            found = [f"{file}: {test}" for file, test, sides, names in tests if name in names and side in sides]
            if not found and name in ONE_SIDE:
                found = [f"none, for {ONE_SIDE[name][1]}"]
            for line in found or ["NONE"]:
                print(f"    {side}: {line}")


def main():
    words = sys.argv[1:]
    root = pathlib.Path(words[-1])
    declared = DECLARED.findall((root / SEMANTICS).read_text())
    tests = list(tests_in(root))
    if "--list" in words:
        print_list(declared, tests)
    found = list(problems_of(declared, tests))
    print("\n".join(found) if found else f"{len(declared)} promises: all have tests")
    return 1 if found or not declared else 0


if __name__ == "__main__":
    sys.exit(main())
