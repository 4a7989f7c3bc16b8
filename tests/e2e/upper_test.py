#!/usr/bin/env python3
"""The upper folder holds every change that was answered: while the mount lives, and when fusermount3 -u has returned.

It is read as others would: by find, by tar, and through another read-only mount of it, ours and the kernel's in turn.
LAMINA_UPPER_ROUNDS says how many times (25).
"""
import hashlib
import io
import mmap
import os
import random
import re
import shutil
import stat
import subprocess
import tarfile
import unittest

import folders_test
import support
from support import main, manifest, needs_fuse, needs_program, needs_root, run

ROUNDS = int(os.environ.get("LAMINA_UPPER_ROUNDS", "25"))
LOWER_FILES = 20
LOWER_FOLDERS = 8


class Changes:
    """Random changes to a mount. `files`: what must be at which path; None: nothing. Folders that are renamed are
    others than those of these files, so that a path says the same all along."""

    def __init__(self, mnt, seed):
        self.mnt, self.random, self.files, self.count = mnt, random.Random(seed), {}, 0

    def bytes(self):
        return self.random.randbytes(self.random.choice([0, 1, 100, 4096, 70_000]))

    def new_name(self):
        self.count += 1
        return f"n{self.count}"

    def write_new(self):
        path = f"new/{self.new_name()}"
        self.files[path] = self.bytes()
        (self.mnt / path).write_bytes(self.files[path])

    def change_lower(self):
        path = f"low/f{self.random.randrange(LOWER_FILES)}"
        if not (self.mnt / path).exists():
            return
        before = (self.mnt / path).read_bytes()
        data = bytearray(before)
        with open(self.mnt / path, "r+b", buffering=0) as file:
            offset = self.random.randrange(len(data) + 1)
            piece = self.bytes()
            file.seek(offset)
            file.write(piece)
            data[offset:offset + len(piece)] = piece
            if self.random.random() < 0.3:
                size = self.random.randrange(len(data) + 1)
                file.truncate(size)
                del data[size:]
        if data != before:  # else it may still be the lower's
            self.files[path] = bytes(data)

    def change_mapped(self):
        path = f"low/f{self.random.randrange(LOWER_FILES)}"
        if not (self.mnt / path).exists() or (self.mnt / path).stat().st_size == 0:
            return
        with open(self.mnt / path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            mapped[0] ^= 255
            mapped.flush()
            self.files[path] = bytes(mapped)

    def replace(self):
        path = f"low/f{self.random.randrange(LOWER_FILES)}"
        self.files[path] = self.bytes()
        (self.mnt / "new/part").write_bytes(self.files[path])
        (self.mnt / "new/part").rename(self.mnt / path)

    def remove(self):
        paths = [path for path, data in self.files.items() if data is not None]
        paths.append(f"low/f{self.random.randrange(LOWER_FILES)}")
        path = self.random.choice(paths)
        (self.mnt / path).unlink(missing_ok=True)
        self.files[path] = None

    def rename_folder(self):
        name = self.random.choice(sorted(os.listdir(self.mnt / "folders")))
        (self.mnt / "folders" / name).rename(self.mnt / "folders" / self.new_name())

    def change_folder(self):
        folder = self.mnt / "folders" / self.random.choice(sorted(os.listdir(self.mnt / "folders")))
        kind = self.random.randrange(5)
        if kind == 0:
            (folder / self.new_name()).mkdir(mode=0o2750)
        elif kind == 1:
            os.symlink("../elsewhere", folder / self.new_name())
        elif kind == 2:
            os.mkfifo(folder / self.new_name())
        elif kind == 3:
            folder.chmod(self.random.randrange(0o700, 0o1000))
        else:
            os.setxattr(folder, "user.note", self.bytes()[:1000])

    def change_attributes(self):
        paths = [path for path, data in self.files.items() if data is not None]
        if not paths:
            return
        path = self.mnt / self.random.choice(paths)
        os.chown(path, self.random.randrange(5), self.random.randrange(5))
        os.chmod(path, self.random.choice([0o600, 0o4755, 0o644]))
        os.utime(path, ns=(0, self.random.randrange(2**60)))
        if self.random.random() < 0.3:
            os.link(path, self.mnt / "links" / self.new_name())

    def make(self, count):
        kinds = [self.write_new, self.write_new, self.change_lower, self.change_lower, self.change_mapped, self.replace,
                 self.remove, self.rename_folder, self.change_folder, self.change_folder, self.change_attributes]
        for _ in range(count):
            self.random.choice(kinds)()


@needs_fuse
@needs_root
@needs_program("fusermount3")
class UpperTest(folders_test.FolderTest):
    def setUp(self):
        super().setUp()
        for number in range(LOWER_FILES):
            self.make_lower("ab"[number % 2], f"low/f{number}", os.urandom(number * 5000))
        for number in range(LOWER_FOLDERS):
            self.make_lower("a", f"folders/d{number}/x", b"x")
            self.make_lower("b", f"folders/d{number}/y/z", b"z")
        for name in ("new", "links"):
            (self.folder / "b" / name).mkdir()
        self.other = self.folder / "other"
        self.other.mkdir()

    def make_lower(self, lower, path, data):
        path = self.folder / lower / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def found(self):
        """What find says that the upper has: (type, size, owner, mode) by path."""
        out = run("find", self.folder / "upper", "-mindepth", "1", "-printf", "%P\t%y\t%s\t%U:%G\t%m\n").stdout
        return {line.split("\t", 1)[0]: line.split("\t")[1:] for line in out.splitlines()}

    def packed(self):
        """The bytes of every file in a tar of the upper, by path; None: a whiteout."""
        result = subprocess.run(["tar", "-C", self.folder / "upper", "--xattrs", "-cf", "-", "."], capture_output=True,
                                check=True, timeout=60)
        self.assertEqual(b"", result.stderr)
        files = {}
        with tarfile.open(fileobj=io.BytesIO(result.stdout)) as archive:
            for member in archive:
                path = member.name.removeprefix("./")
                if member.isreg() or member.islnk():
                    files[path] = hashlib.sha256(archive.extractfile(member).read()).hexdigest()
                elif member.ischr():
                    files[path] = None
        return files

    def shown(self, folder=None):
        """The manifest; but a removed name may count as a link until the mount has ended and begun again."""
        return [re.sub(r" links=\[b'[^']*'\]$", "", line) for line in manifest(folder or self.mnt)]

    def mounted_elsewhere(self, by_the_kernel):
        lowers = ":".join(str(self.folder / name) for name in ("upper", "a", "b"))
        if by_the_kernel:
            run("mount", "-t", "overlay", "overlay", "-o", f"ro,redirect_dir=follow,lowerdir={lowers}", self.other)
        else:
            run(support.BUILD / "fuse/lamina-fuse", "-o", f"lowerdir={lowers}", self.other)
        try:
            return self.shown(self.other)
        finally:
            run("umount", self.other)

    def check_upper(self, files, shown, by_the_kernel):
        found, packed = self.found(), self.packed()
        for path, data in files.items():
            if data is None:
                is_below = any(os.path.lexists(self.folder / lower / path) for lower in "ab")
                self.assertEqual("c" if is_below else None, found.get(path, [None])[0], (path, self.seed))
                self.assertIsNone(packed.get(path), path)
            else:
                self.assertEqual(["f", str(len(data))], found[path][:2], (path, self.seed))
                self.assertEqual(hashlib.sha256(data).hexdigest(), packed[path], (path, self.seed))
        self.assertEqual(shown, self.mounted_elsewhere(by_the_kernel), self.seed)

    def test_every_change_that_was_answered_is_in_the_upper_at_once_and_when_fusermount3_has_returned(self):
        """[upper.at-rest]"""
        for number in range(ROUNDS):
            if number % 50 == 0:
                for name in ("upper", "work"):
                    shutil.rmtree(self.folder / name)
                    (self.folder / name).mkdir()
                files = {}
            self.fuse(self.writable())
            self.seed = f"round {number}"
            changes = Changes(self.mnt, number)
            changes.count = number * 1000
            changes.files = files
            changes.make(30)
            self.check_upper(files, self.shown(), by_the_kernel=number % 2 == 1)
            changes.make(10)
            shown = self.shown()
            run("fusermount3", "-u", self.mnt)
            self.check_upper(files, shown, by_the_kernel=number % 2 == 0)
        self.wait_until_gone()


@needs_fuse
@needs_root
class FormTest(folders_test.FolderTest):
    """Which marks are in the upper, and what a mount finds there."""

    def upper(self, name):
        return self.folder / "upper" / name

    def kernel(self, options="redirect_dir=on,index=on"):
        lowers = f"{self.folder}/a:{self.folder}/b"
        run("mount", "-t", "overlay", "overlay", "-o",
            f"lowerdir={lowers},upperdir={self.folder}/upper,workdir={self.folder}/work,{options}", self.mnt)

    def test_whiteouts_opaque_folders_and_redirects(self):
        """[upper.whiteouts]"""
        (self.folder / "b/empty").mkdir()
        self.fuse(self.writable())
        (self.mnt / "below").unlink()
        (self.mnt / "new").write_text("x")
        (self.mnt / "new").unlink()
        (self.mnt / "empty").rmdir()
        (self.mnt / "empty").mkdir()
        (self.mnt / "fresh").mkdir()
        (self.mnt / "tree").rename(self.mnt / "fresh/moved")
        for name in ("below", "tree"):
            status = os.lstat(self.upper(name))
            self.assertTrue(stat.S_ISCHR(status.st_mode) and status.st_rdev == 0, name)
        self.assertFalse(os.path.lexists(self.upper("new")))
        self.assertEqual(b"y", os.getxattr(self.upper("empty"), "trusted.overlay.opaque"))
        self.assertNotIn("trusted.overlay.opaque", os.listxattr(self.upper("fresh")))
        self.assertEqual(b"/tree", os.getxattr(self.upper("fresh/moved"), "trusted.overlay.redirect"))

    def test_a_device_that_would_be_a_whiteout_cannot_be_made(self):
        """[upper.no-device-0]"""
        self.fuse(self.writable())
        with self.assertRaises(PermissionError):
            os.mknod(self.mnt / "device", stat.S_IFCHR | 0o600, 0)
        os.mknod(self.mnt / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        self.assertEqual(["device"], os.listdir(self.folder / "upper"))

    def test_what_lies_in_the_work_folder_is_removed_by_the_next_mount(self):
        """[upper.leftovers], [upper.nameless]"""
        self.fuse(self.writable())
        work = self.folder / "work/work"
        with open(self.mnt / "held", "w", encoding="ascii"):
            (self.mnt / "held").unlink()
            self.assertEqual(["#"], [name[0] for name in os.listdir(work)])
        unnamed = os.open(self.mnt, os.O_TMPFILE | os.O_WRONLY)
        self.assertIn("#", [name[0] for name in os.listdir(work)])
        os.close(unnamed)
        self.unmount()
        self.wait_until_gone()
        (work / "#7").mkdir(mode=0)
        (work / "#7/inside").write_text("x")
        (work / "#8").write_text("x")
        self.fuse(self.writable())
        self.assertEqual([], os.listdir(work))

    def test_a_file_whose_name_looks_like_a_whiteout_is_marked_as_none(self):
        """[upper.wh]"""
        self.fuse(self.writable())
        (self.mnt / ".wh.file").touch()
        (self.mnt / "x").touch()
        (self.mnt / "x").rename(self.mnt / ".wh.below")
        self.unmount()
        for name in (".wh.file", ".wh.below"):
            self.assertIn("trusted.overlay.plain", os.listxattr(self.upper(name)))
        self.fuse(f"lowerdir={self.folder}/upper:a:b")
        self.assertEqual({".wh.file", ".wh.below", "file", "below", "tree"}, set(os.listdir(self.mnt)))

    def test_attributes_that_steer_a_union_are_kept_under_another_name(self):
        """[upper.xattrs]"""
        self.fuse(self.writable())
        for name in ("trusted.overlay.opaque", "user.overlay.redirect"):
            os.setxattr(self.mnt / "tree", name, b"y")
        with self.assertRaises(PermissionError):
            os.setxattr(self.mnt / "tree", "user.fuseoverlayfs.opaque", b"y")
        kept = os.listxattr(self.upper("tree"))
        for name in ("trusted.overlay.overlay.opaque", "user.overlay.overlay.redirect"):
            self.assertIn(name, kept)
        self.assertNotIn("trusted.overlay.opaque", kept)
        self.unmount()
        self.fuse(self.writable())
        self.assertEqual({"trusted.overlay.opaque", "user.overlay.redirect"}, set(os.listxattr(self.mnt / "tree")))
        self.assertEqual(["leaf"], os.listdir(self.mnt / "tree"))

    def test_allocated_room_is_the_uppers(self):
        """[upper.fallocate]"""
        self.fuse(self.writable())
        with open(self.mnt / "new", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, 4 << 20)
        self.assertLessEqual(4 << 20, self.upper("new").stat().st_blocks * 512)

    def test_data_that_an_earlier_mount_left_below_is_brought_up_before_its_file_changes(self):
        """[upper.metacopy]"""
        names = ("written", "renamed", "linked")
        for name in names:
            (self.folder / "b" / name).write_text("from below")
        self.kernel("redirect_dir=on,index=on,metacopy=on")
        for name in names:
            (self.mnt / name).chmod(0o600)
        self.unmount()
        self.assertEqual(["\0" * 10] * 3, [self.upper(name).read_text() for name in names])
        self.fuse(self.writable())
        self.assertEqual(["from below"] * 3, [(self.mnt / name).read_text() for name in names])
        with open(self.mnt / "written", "r+b") as file:
            file.write(b"FROM")
        (self.mnt / "renamed").rename(self.mnt / "moved")
        os.link(self.mnt / "linked", self.mnt / "link")
        expected = {"written": "FROM below", "moved": "from below", "linked": "from below", "link": "from below"}
        self.assertEqual(expected, {name: self.upper(name).read_text() for name in expected})
        self.unmount()
        self.wait_until_gone()
        self.kernel()  # Which follows no metacopy here: all is whole.
        self.assertEqual(expected, {name: (self.mnt / name).read_text() for name in expected})


if __name__ == "__main__":
    main()
