#!/usr/bin/env python3
"""Mounts of 100,000 files whose server may have 1,024 files open: over folders, and of an image with a log."""
import os
import pathlib
import resource
import shutil
import tempfile
import unittest

import support
from support import main, needs_fuse, needs_root, run

DESCRIPTORS = 1024
FOLDERS, FILES = 500, 200  # Together 100,000.
HELD_OPEN = 2000


def make_tree(folder):
    for number in range(FOLDERS):
        path = folder / f"d{number}"
        path.mkdir(parents=True)
        at = os.open(path, os.O_RDONLY)
        for file in range(FILES):
            os.close(os.open(f"f{file}", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=at))
        (path / "f0").write_text(f"{number}\n")
        os.close(at)


def limited(*words, **options):
    """Runs a program whose files, and those of whatever it starts, are limited."""
    return run("sh", "-c", f'ulimit -n {DESCRIPTORS}; exec "$@"', "_", *words, **options)


@needs_fuse
@needs_root
class LargeTest(unittest.TestCase):
    def setUp(self):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        if limit[1] < HELD_OPEN + 100:
            self.skipTest(f"needs {HELD_OPEN} open files")
        resource.setrlimit(resource.RLIMIT_NOFILE, (HELD_OPEN + 100, limit[1]))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, limit)
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="lamina-large-", dir="/var/tmp"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        make_tree(self.folder / "tree")
        self.mnt = self.folder / "mnt"
        self.mnt.mkdir()

    def check(self):
        """Every name is looked up; files of all folders are held open together, changed, and read back."""
        count = sum(len(files) for _, _, files in os.walk(self.mnt))
        self.assertEqual(FOLDERS * FILES, count)
        sizes = sum(entry.stat().st_size for folder in os.scandir(self.mnt) for entry in os.scandir(folder.path))
        self.assertEqual(sum(len(f"{number}\n") for number in range(FOLDERS)), sizes)
        held = []
        for number in range(HELD_OPEN):
            path = self.mnt / f"d{number % FOLDERS}/f{number // FOLDERS}"
            held.append(os.open(path, os.O_RDWR))
        for number, file in enumerate(held):
            os.pwrite(file, f"changed {number}\n".encode(), 0)
        for number in range(0, HELD_OPEN, 2):
            (self.mnt / f"d{number % FOLDERS}/f{number // FOLDERS}").unlink()
        for number, file in enumerate(held):
            self.assertEqual(f"changed {number}\n".encode(), os.pread(file, 100, 0))
            os.close(file)
        self.assertEqual(FOLDERS * FILES - HELD_OPEN // 2, sum(len(files) for _, _, files in os.walk(self.mnt)))

    def test_over_folders(self):
        """[stacks.descriptors]"""
        for name in ("upper", "work"):
            (self.folder / name).mkdir()
        at = self.folder
        options = f"lowerdir={at}/tree,upperdir={at}/upper,workdir={at}/work,volatile"
        limited(support.BUILD / "fuse/lamina-fuse", "-o", options, self.mnt)
        try:
            self.check()
        finally:
            run("umount", self.mnt)

    def test_of_an_image(self):
        lamina = support.Lamina(self.folder)
        self.addCleanup(lamina.close)
        limited(lamina.program, "--store", lamina.store, "import", f"dir:{self.folder}/tree", "--name", "large",
                env=lamina.environment)  # Starts the daemon, and that the server.
        lamina.call("mount", "large", self.mnt)
        self.check()


if __name__ == "__main__":
    main()
