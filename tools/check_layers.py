#!/usr/bin/env python3
"""Checks which folder includes which: store <- daemon, store/read_view.h <- fuse, client/api.h <- daemon and fuse.

Usage: check_layers.py ROOT. Prints each include that breaks the rule; exit 1 if there is one.
"""
import pathlib
import re
import sys

# Headers of store/ that fuse/ may see: what a mount reads, and values and files that have no rules of their own.
FUSE_SEES = {"store/read_view.h", "store/digest.h", "store/error.h", "store/file.h", "store/file_ops.h",
             "store/guarded.h", "store/tar_writer.h", "client/api.h"}
ALLOWED = {
    "store": lambda path: path.startswith("store/"),
    "client": lambda path: path.startswith("client/"),
    "fuse": lambda path: path.startswith("fuse/") or path in FUSE_SEES,
    "daemon": lambda path: path.startswith(("daemon/", "store/")) or path == "client/api.h",
}
FORBIDDEN_SYSTEM = {"store": re.compile(r"fuse|boost/asio|boost/beast|iostream"), "client": re.compile(r"fuse_|sqlite")}
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def problems_of(path, folder):
    for number, line in enumerate(path.read_text().splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        is_ours, name = match.group(1) == '"', match.group(2)
        if is_ours and not ALLOWED[folder](name):
            yield f"{path}:{number}: {folder}/ may not include \"{name}\""
        if not is_ours and folder in FORBIDDEN_SYSTEM and FORBIDDEN_SYSTEM[folder].search(name):
            yield f"{path}:{number}: {folder}/ may not include <{name}>"


def main():
    root = pathlib.Path(sys.argv[1])
    files = [(path, folder) for folder in ALLOWED for path in sorted((root / folder).rglob("*"))
             if path.suffix in (".h", ".cpp")]
    found = [problem for path, folder in files for problem in problems_of(path, folder)]
    print("\n".join(found) if found else f"{len(files)} files: includes point the right way")
    return 1 if found or not files else 0


if __name__ == "__main__":
    sys.exit(main())
