#!/usr/bin/env python3
"""Each command that `lamina --help` lists has a manual page and completion, with every option that its help shows.

Usage: docs_test.py LAMINA ROOT
"""
import pathlib
import re
import subprocess
import sys


def help_of(program, *command):
    return subprocess.run([program, *command, "--help"], check=True, capture_output=True, text=True).stdout


def options_in(text):
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - {"--help", "--version"}


def problems_of(program, root):
    overview = help_of(program)
    commands = re.findall(r"^  ([a-z]+) {2,}", overview.split("Subcommands:")[1], re.MULTILINE)
    if len(commands) < 17:
        yield f"only {len(commands)} commands are found in the help"
    completion = (root / "client/lamina.bash").read_text()
    overview_page = (root / "docs/man/lamina.1").read_text()
    for command in commands:
        page = root / f"docs/man/lamina-{command}.1"
        if not page.exists():
            yield f"{command}: no manual page"
            continue
        text = page.read_text().replace("\\-", "-")
        for option in sorted(options_in(help_of(program, command))):
            if option not in text:
                yield f"{command}: {option} is not in its manual page"
            if option not in completion:
                yield f"{command}: {option} is not completed"
        everywhere = {"--store", "--socket", "--json"}
        for option in sorted(options_in(text) - options_in(help_of(program, command)) - everywhere):
            yield f"{command}: {option} stands in its manual page only"
        if not re.search(rf"commands='[^']*\b{command}\b", completion):
            yield f"{command}: is not completed"
        if f"lamina\\-{command} (1)" not in overview_page:
            yield f"{command}: is not in lamina(1)"


def main():
    found = list(problems_of(sys.argv[1], pathlib.Path(sys.argv[2])))
    print("\n".join(found) if found else "every command and option has its page and completion")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
