#!/usr/bin/env python3
"""Programs that notice what a file system does differently (git, rsync, tar, SQLite): on every kind of mount they
do what they do on the disk itself."""
import contextlib
import multiprocessing
import os
import pathlib
import sqlite3
import unittest

from rich_tree import describe, difference, make_rich_tree
from support import main, needs_fuse, needs_program, needs_root, run, wait_for
from unions import UnionTest

GIT_ENVIRONMENT = {**os.environ, "HOME": "/nowhere", "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "A",
                   "GIT_AUTHOR_EMAIL": "a@b", "GIT_AUTHOR_DATE": "1700000000 +0000", "GIT_COMMITTER_NAME": "A",
                   "GIT_COMMITTER_EMAIL": "a@b", "GIT_COMMITTER_DATE": "1700000000 +0000", "GIT_CONFIG_COUNT": "1",
                   "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
JOURNALS = ("delete", "truncate", "persist", "memory", "wal", "off")
WRITERS, ROWS = 3, 12


def git(folder, *words):
    return run("git", "-C", folder, *words, env=GIT_ENVIRONMENT).stdout


def make_repository(tree):
    """Some commits, one branch beside, loose objects and a pack."""
    folder = tree / "repository"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    for commit in range(12):
        for number in range(15):
            path = folder / f"dir{number % 5}/file{number}"
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{commit} {number}\n" * (1 + 7 * number))
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", f"commit {commit}")
        if commit == 6:
            git(folder, "gc", "-q")
            git(folder, "branch", "side")


def use_repository(folder, clone):
    """What a day with git is. Returns what of it must be the same everywhere."""
    git(folder, "clone", "-q", folder / "repository", clone)
    git(folder / clone, "mv", "dir0", "moved")
    git(folder / clone, "commit", "-q", "-m", "a moved folder")
    git(folder / clone, "gc", "-q", "--aggressive", "--prune=now")
    git(folder / clone, "fsck", "--full", "--strict")
    own = folder / "repository"
    git(own, "checkout", "-q", "side")
    (own / "dir1/new").write_text("new\n")
    git(own, "add", "-A")
    git(own, "commit", "-q", "-m", "beside")
    git(own, "rebase", "-q", "main")
    git(own, "repack", "-q", "-a", "-d")
    git(own, "prune", "--expire=now")
    git(own, "gc", "-q", "--prune=now")
    git(own, "worktree", "add", "-q", "../worktree", "main")
    return state_of(folder, clone)


def state_of(folder, clone):
    said = []
    for name in (clone, "repository", "worktree"):
        git(folder / name, "fsck", "--full", "--strict")
        said += [git(folder / name, "rev-parse", "HEAD"), git(folder / name, "status", "--porcelain"),
                 git(folder / name, "ls-files", "--stage")]
    return said


@needs_fuse
@needs_root
class GitTest(UnionTest):
    def test_clone_commit_rebase_gc_and_fsck(self):
        expected = []

        def build(tree):
            make_repository(tree)
            plain = self.folder / "plain"
            plain.mkdir()
            run("cp", "-a", tree / "repository", plain)
            expected.extend(use_repository(plain, "clone"))

        def check(union):
            self.assertEqual("", git(union / "repository", "status", "--porcelain"))
            self.assertEqual(expected, use_repository(union.path, "clone"))
            git(union / "clone", "update-index", "--refresh")
            git(union / "repository", "update-index", "--refresh")
            union.remount()
            for name in ("clone", "repository", "worktree"):  # By what stat says alone: nothing changed.
                self.assertEqual("", git(union / name, "diff-files", "--name-only"))
            self.assertEqual(expected, state_of(union.path, "clone"))

        self.on_each(build, check)


class CopyTest(UnionTest):
    """Copies a tree with everything onto a mount and back, and one that lies below."""

    def there_and_back(self, copy, has_sockets):
        rich = self.folder / "rich"
        rich.mkdir()
        make_rich_tree(rich, has_sockets)
        expected = describe(rich)

        def build(tree):
            make_rich_tree(tree, has_sockets=False, has_odd_names=False)  # Neither can be in a layer.

        def check(union):
            below = describe(self.folder / "tree")
            self.assertEqual("", difference(below, describe(union.path)))
            copy(rich, union / "copied")
            self.assertEqual("", difference(expected, describe(union / "copied")))
            union.remount()
            self.assertEqual("", difference(expected, describe(union / "copied")))
            back, from_below = self.folder / f"back-{union.kind}", self.folder / f"below-{union.kind}"
            copy(union / "copied", back)
            self.assertEqual("", difference(expected, describe(back)))
            run("rm", "-rf", union / "copied")
            copy(union.path, from_below)
            self.assertEqual("", difference(below[1:], describe(from_below)[1:]))

        self.on_each(build, check)


@needs_fuse
@needs_root
@needs_program("setfacl")
class RsyncTest(CopyTest):
    @needs_program("rsync")
    def test_rsync_there_and_back(self):
        def copy(source, target):
            target.mkdir()
            options = ("--archive", "--hard-links", "--acls", "--xattrs", "--sparse", "--numeric-ids")
            run("rsync", *options, f"{source}/", f"{target}/")
            again = run("rsync", *options, "--checksum", "--itemize-changes", "--dry-run", f"{source}/", f"{target}/")
            self.assertEqual("", again.stdout)

        self.there_and_back(copy, has_sockets=True)

    def test_tar_there_and_back(self):
        def copy(source, target):
            target.mkdir()
            archive = self.folder / "archive.tar"
            run("tar", "--create", "--xattrs", "--xattrs-include=*", "--acls", "--sparse", "--numeric-owner",
                "--format=posix", "--file", archive, "--directory", source, "--warning=no-file-ignored", ".")
            run("tar", "--extract", "--xattrs", "--xattrs-include=*", "--acls", "--same-owner", "--same-permissions",
                "--numeric-owner", "--file", archive, "--directory", target)

        self.there_and_back(copy, has_sockets=False)  # Archives have none.


def write_rows(path, writer, journal):
    connection = sqlite3.connect(path, timeout=120)
    set_journal(connection, journal)
    for row in range(ROWS):
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO rows VALUES (?, ?, ?)", (writer, row, os.urandom(2000)))
        connection.execute("UPDATE total SET count = count + 1")
        connection.execute("COMMIT")
    connection.close()


def set_journal(connection, journal):
    """SQLite's busy handler is not asked when several set WAL at once."""
    def is_set():
        try:
            connection.execute(f"PRAGMA journal_mode={journal}")
            return True
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            return False
    wait_for(is_set, 120)


def make_database(path):
    connection = sqlite3.connect(path)
    connection.executescript("CREATE TABLE rows (writer, row, data); CREATE TABLE total (count);"
                             "INSERT INTO total VALUES (0); CREATE UNIQUE INDEX both ON rows (writer, row);")
    connection.execute("INSERT INTO rows VALUES (-1, 0, ?)", (os.urandom(100_000),))
    connection.commit()
    connection.close()


@needs_fuse
@needs_root
class SqliteTest(UnionTest):
    def check_database(self, path, rows):
        with contextlib.closing(sqlite3.connect(path)) as connection:
            self.assertEqual([("ok",)], connection.execute("PRAGMA integrity_check").fetchall())
            self.assertEqual([(rows,)], connection.execute("SELECT count FROM total").fetchall())
            self.assertEqual([(rows + 1,)], connection.execute("SELECT count(*) FROM rows").fetchall())

    def use(self, path, journal):
        """Several processes write at once. In the modes without a journal on disk a rollback is not needed here."""
        with contextlib.closing(sqlite3.connect(path)) as connection:
            before = connection.execute("SELECT count FROM total").fetchone()[0]
        process = multiprocessing.get_context("fork").Process
        writers = [process(target=write_rows, args=(str(path), number + before, journal)) for number in range(WRITERS)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(300)
            self.assertEqual(0, writer.exitcode, journal)
        self.check_database(path, before + WRITERS * ROWS)

    def test_every_journal_mode_with_concurrent_writers(self):
        def build(tree):
            for journal in JOURNALS:
                make_database(tree / journal)

        def check(union):
            for journal in JOURNALS:
                with self.subTest(journal):
                    self.use(union / journal, journal)
                    make_database(union / f"new-{journal}")
                    self.use(union / f"new-{journal}", journal)
            union.remount()
            for journal in JOURNALS:
                self.check_database(union / journal, WRITERS * ROWS)
                self.check_database(union / f"new-{journal}", WRITERS * ROWS)
            self.use(union / "wal", "wal")

        self.on_each(build, check)


if __name__ == "__main__":
    main()
