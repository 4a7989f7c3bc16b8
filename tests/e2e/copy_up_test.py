#!/usr/bin/env python3
"""Changes of what lies below, through the kernel, one property at a time: of a file nothing gets lost by its first
change, on an image and on folders, nor by the next mount."""
import mmap
import os
import pathlib
import shutil
import socket
import stat
import tempfile
import unittest

from rich_tree import CAPABILITY, ODD_NAMES, TIMES, acl
from support import main, needs_fuse, needs_program, needs_root, whole_blocks_in_holes
from unions import KINDS, Union

NAME_BYTES, PATH_BYTES = 255, 4095
DEEP = 19  # folders of 200 letters, as deep as the path of a layer can be
DEEPER = 50  # as many again on the mount: deeper than one path can say


def build(tree):
    for name in ("modes", "times", "parent", "xattrs", "links", "numbers", "open", "chain", "kinds", "removed"):
        (tree / name).mkdir()
    for number, mode in enumerate((0o4755, 0o2755, 0o6711, 0o1644, 0, 0o777)):
        path = tree / f"modes/{number}"
        path.write_text("content")
        os.chown(path, 1000 + number, 2000 + number)
        path.chmod(mode)
    for name, time in TIMES.items():
        (tree / "times" / name).write_text("content")
        os.utime(tree / "times" / name, ns=(time + 5, time))
    (tree / "parent/file").write_text("content")
    (tree / "parent/linked").symlink_to("file")
    build_attributes(tree)
    with open(tree / "holes", "wb") as file:
        file.truncate(64 << 20)
        for at in (0, 20 << 20, 40 << 20):
            os.pwrite(file.fileno(), b"data" * 1024, at)
    (tree / "links/a").write_text("content")
    for name in ("b", "c"):
        os.link(tree / "links/a", tree / "links" / name)
    for name in ("written", "chmodded", "renamed", "truncated", "linked", "folder/inside"):
        (tree / "numbers" / name).parent.mkdir(exist_ok=True)
        (tree / "numbers" / name).write_text("content")
    (tree / "open/file").write_text("0123456789" * 1000)
    (tree / "open/removed").write_text("content")
    for name in ("removed/file", "removed/other"):
        (tree / name).write_text("content")
    (tree / "removed/folder").mkdir()
    build_kinds(tree)
    build_names(tree)
    for folder, _, _ in os.walk(tree, topdown=False):
        os.utime(folder, ns=(TIMES["before"], TIMES["last"]))


def build_attributes(tree):
    for name in ("user", "acl", "capability", "written"):
        (tree / "xattrs" / name).write_text("content")
        (tree / "xattrs" / name).chmod(0o755)
    os.setxattr(tree / "xattrs/user", "user.a", bytes(range(256)))
    os.setxattr(tree / "xattrs/user", "user.empty", b"")
    os.setxattr(tree / "xattrs/user", "trusted.t", b"1")
    os.setxattr(tree / "xattrs/user", "security.s", b"1")
    acl(tree / "xattrs/acl", "u:1234:rw", "m::rwx")
    for name in ("capability", "written"):
        os.setxattr(tree / "xattrs" / name, "security.capability", CAPABILITY)
    chain = tree / "chain/one/two"
    chain.mkdir(parents=True)
    (chain / "file").write_text("content")
    (tree / "chain/one").chmod(0o3750)
    os.chown(tree / "chain/one", 7, 8)
    os.chown(chain, 9, 10)
    acl(chain, "u:1234:rwx")
    acl(chain, "u:1234:r-x", default=True)
    os.setxattr(chain, "user.folder", b"1")


def build_kinds(tree):
    kinds = tree / "kinds"
    (kinds / "symlink").symlink_to("t" * 3000)
    os.mkfifo(kinds / "fifo", 0o604)
    os.mknod(kinds / "device", stat.S_IFCHR | 0o640, os.makedev(1, 3))
    for name in ("symlink", "fifo", "device"):
        os.lchown(kinds / name, 5, 6)
        os.utime(kinds / name, ns=(1, 2), follow_symlinks=False)


def build_names(tree):
    (tree / ("n" * NAME_BYTES)).write_text("content")
    (tree / ("d" * NAME_BYTES)).mkdir()
    (tree / ("d" * NAME_BYTES) / ("e" * NAME_BYTES)).write_text("content")
    at = os.open(tree, os.O_PATH)
    for _ in range(DEEP):
        os.mkdir("p" * 200, dir_fd=at)
        below = os.open("p" * 200, os.O_PATH, dir_fd=at)
        os.close(at)
        at = below
    with os.fdopen(os.open("end", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=at), "w") as file:
        file.write("content")
    os.close(at)


def look(path):
    """What a change of something else leaves as it is."""
    status = os.lstat(path)
    names = os.listxattr(path, follow_symlinks=False)
    return {"mode": status.st_mode, "owner": (status.st_uid, status.st_gid), "mtime": status.st_mtime_ns,
            "number": status.st_ino,
            "atime": status.st_atime_ns, "size": status.st_size, "nlink": status.st_nlink, "device": status.st_rdev,
            "xattrs": [(name, os.getxattr(path, name, follow_symlinks=False)) for name in sorted(names)]}


def touch(path):
    """A change of nothing that look() tells of."""
    os.setxattr(path, "trusted.touched", b"1")
    os.removexattr(path, "trusted.touched")


@needs_fuse
@needs_root
@needs_program("setfacl")
class CopyUpTest(unittest.TestCase):
    """One mount of each kind for all tests; each test has files of its own in it."""

    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp(prefix="lamina-union-", dir="/var/tmp"))
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        (cls.folder / "tree").mkdir()
        build(cls.folder / "tree")
        cls.unions = []
        for kind in KINDS:
            cls.unions.append(Union(kind, cls.folder / kind, cls.folder / "tree"))
            cls.addClassCleanup(cls.unions[-1].close)

    def on_each(self, check):
        for union in self.unions:
            with self.subTest(union.kind):
                check(union)

    def stays(self, union, paths, change):
        before = {path: look(union / path) for path in paths}
        for path in paths:
            change(union / path)
            self.assertEqual(before[path], look(union / path), path)
        union.remount()
        for path in paths:
            self.assertEqual(before[path], look(union / path), f"{path} after a remount")

    def test_modes_set_id_bits_and_owners_stay(self):
        """[upper.copies], [upper.unseen-copies]"""
        self.on_each(lambda union: self.stays(union, [f"modes/{number}" for number in range(6)], touch))

    def test_nanosecond_times_stay_also_before_1970_and_after_2038(self):
        """[upper.copies]"""
        self.on_each(lambda union: self.stays(union, [f"times/{name}" for name in TIMES], touch))

    def test_the_times_of_the_folder_stay(self):
        """[upper.copies]"""
        def change(path):
            os.truncate(path / "file", 3)
            os.chown(path / "linked", 1, 1, follow_symlinks=False)

        self.on_each(lambda union: self.stays(union, ["parent"], change))

    def test_xattrs_acls_and_capabilities_stay(self):
        """[upper.copies], [attributes.xattrs-kept]"""
        self.on_each(lambda union: self.stays(union, ["xattrs/user", "xattrs/acl", "xattrs/capability"], touch))

    def test_a_write_takes_the_capability_and_a_mapping_does_not(self):
        """[data.privileges], [data.mapping], [attributes.chown]"""
        def check(union):
            path = union / "xattrs/written"
            with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
                mapping[0:1] = b"C"
                mapping.flush()
            self.assertEqual(CAPABILITY, os.getxattr(path, "security.capability"))
            with open(path, "r+b") as file:
                file.write(b"c")
            self.assertEqual([], os.listxattr(path))
            self.assertEqual("content", path.read_text())
            os.setxattr(path, "security.capability", CAPABILITY)
            os.chown(path, 1, 1)
            self.assertEqual([], os.listxattr(path))

        self.on_each(check)

    def test_holes_stay_holes(self):
        """[upper.copies]"""
        def check(union):
            path = union / "holes"
            before, blocks = whole_blocks_in_holes(path), path.stat().st_blocks
            with open(path, "r+b") as file:
                os.pwrite(file.fileno(), b"x", 30 << 20)
            block = (30 << 20) // 4096
            expected = [part for begin, end in before for part in
                        ([(begin, block), (block + 1, end)] if begin <= block < end else [(begin, end)])]
            self.assertEqual(expected, whole_blocks_in_holes(path))
            self.assertLessEqual(path.stat().st_blocks, blocks + 64)
            union.remount()
            self.assertEqual(expected, whole_blocks_in_holes(path))

        self.on_each(check)

    def test_hard_links_stay_one_file(self):
        """[upper.hard-links], [inodes.links]"""
        def check(union):
            names = [union / f"links/{name}" for name in "abc"]
            number = names[0].stat().st_ino
            names[1].write_text("CONTENT")
            for _ in range(2):
                self.assertEqual([("CONTENT", number, 3)] * 3,
                                 [(name.read_text(), name.stat().st_ino, name.stat().st_nlink) for name in names])
                union.remount()
            names[0].unlink()
            os.link(names[1], names[0].with_name("d"))
            names[1].unlink()
            self.assertEqual([2, 2], [names[2].with_name(name).stat().st_nlink for name in "cd"])
            union.remount()
            self.assertEqual([(number, 2)] * 2, [(path.stat().st_ino, path.stat().st_nlink) for path in
                                                 (names[2].with_name("c"), names[2].with_name("d"))])

        self.on_each(check)

    def test_inode_numbers_stay_and_listings_say_the_same(self):
        """[inodes.stay], [stacks.numbers], [upper.numbers]"""
        def numbers(folder):
            entries = list(os.scandir(folder))
            return {entry.name: (entry.inode(), entry.stat(follow_symlinks=False).st_ino) for entry in entries}

        def check(union):
            folder = union / "numbers"
            before = numbers(folder)
            inside = (folder / "folder/inside").stat().st_ino
            (folder / "written").write_text("changed")
            (folder / "chmodded").chmod(0o600)
            (folder / "renamed").rename(folder / "moved")
            os.truncate(folder / "truncated", 0)
            os.link(folder / "linked", folder / "link")
            (folder / "folder").rename(folder / "folder2")
            before |= {"moved": before.pop("renamed"), "link": before["linked"], "folder2": before.pop("folder")}
            for _ in range(2):
                self.assertEqual(before, numbers(folder))
                self.assertTrue(all(listed == number for listed, number in before.values()))
                self.assertEqual(inside, (folder / "folder2/inside").stat().st_ino)
                self.assertEqual({union.path.stat().st_dev}, {os.lstat(folder / name).st_dev for name in before})
                union.remount()

        self.on_each(check)

    def test_open_descriptors_and_mappings_see_what_is_written_later(self):
        """[inodes.nameless], [upper.nameless]"""
        def check(union):
            path = union / "open/file"
            with open(path, "rb", buffering=0) as reader, open(path, "rb") as mapped, \
                    mmap.mmap(mapped.fileno(), 0, prot=mmap.PROT_READ) as mapping:
                self.assertEqual(b"0123", mapping[0:4])
                status = os.fstat(reader.fileno())
                with open(path, "r+b", buffering=0) as writer:
                    writer.write(b"abcd")
                    self.assertEqual(b"abcd", reader.read(4))
                    self.assertEqual(b"abcd", mapping[0:4])
                    writer.truncate(5)
                self.assertEqual(b"4", reader.read())
                now = os.fstat(reader.fileno())
                self.assertEqual((status.st_ino, 5), (now.st_ino, now.st_size))
                os.fchmod(reader.fileno(), 0o611)
                path.rename(path.with_name("moved"))
                self.assertEqual(0o611, stat.S_IMODE(path.with_name("moved").stat().st_mode))
            with open(union / "open/removed", "r+b", buffering=0) as file:
                (union / "open/removed").unlink()
                file.write(b"C")
                self.assertEqual((b"Content", 0), (os.pread(file.fileno(), 99, 0), os.fstat(file.fileno()).st_nlink))

        self.on_each(check)

    def test_folders_on_the_way_stay_what_they_are(self):
        """[upper.copies], [upper.unseen-copies]"""
        self.on_each(lambda union: self.stays(union, ["chain/one", "chain/one/two"],
                                              lambda path: os.truncate(next(path.rglob("file")), 2)))

    def test_symlinks_fifos_and_devices_stay_what_they_are(self):
        """[upper.copies]"""
        def check(union):
            (union / "kinds/moved").mkdir()
            for name in ("symlink", "fifo", "device"):
                before = look(union / "kinds" / name)
                if name == "symlink":
                    del before["atime"]  # To copy it is to read it.
                target = union / "kinds/moved" / name
                (union / "kinds" / name).rename(target)
                self.assertEqual(before, {key: look(target)[key] for key in before})
                union.remount()
                self.assertEqual(before, {key: look(target)[key] for key in before})
            self.assertEqual("t" * 3000, os.readlink(union / "kinds/moved/symlink"))
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(str(union / "kinds/socket"))
                made.listen()
                (union / "kinds/socket").rename(union / "kinds/moved/socket")
                with socket.socket(socket.AF_UNIX) as client:
                    client.connect(str(union / "kinds/moved/socket"))

        self.on_each(check)

    def test_names_of_255_bytes(self):
        """[names.limits]"""
        def check(union):
            (union / ("n" * NAME_BYTES)).write_text("changed")
            (union / ("n" * NAME_BYTES)).rename(union / ("m" * NAME_BYTES))
            (union / ("d" * NAME_BYTES)).rename(union / ("f" * NAME_BYTES))
            os.link(union / ("f" * NAME_BYTES) / ("e" * NAME_BYTES), union / ("l" * NAME_BYTES))
            for _ in range(2):
                self.assertEqual("changed", (union / ("m" * NAME_BYTES)).read_text())
                self.assertEqual(["e" * NAME_BYTES], os.listdir(union / ("f" * NAME_BYTES)))
                self.assertEqual(2, (union / ("l" * NAME_BYTES)).stat().st_nlink)
                union.remount()
            for call in (lambda: (union / ("n" * 256)).mkdir(), lambda: os.lstat(union / ("n" * 256)),
                         lambda: (union / ("m" * NAME_BYTES)).rename(union / ("m" * 256))):
                with self.assertRaisesRegex(OSError, "File name too long"):
                    call()

        self.on_each(check)

    def test_paths_of_path_max_and_beyond(self):
        def check(union):
            folder = str(union.path)
            while len(folder) + 201 <= PATH_BYTES - 10:
                folder += "/" + "p" * 200
            os.makedirs(folder, exist_ok=True)
            longest = folder + "/" + "x" * (PATH_BYTES - len(folder) - 1)
            pathlib.Path(longest).write_text("longest")
            os.chmod(longest, 0o600)
            with self.assertRaisesRegex(OSError, "File name too long"):
                os.stat(longest + "x")
            self.assertEqual("changed", self.at_the_end(union, "changed"))
            union.remount()
            self.assertEqual("longest", pathlib.Path(longest).read_text())
            self.assertEqual("changed", self.at_the_end(union))
            shutil.rmtree(union / ("p" * 200))
            self.assertFalse((union / ("p" * 200)).exists())

        self.on_each(check)

    @staticmethod
    def at_the_end(union, text=None):
        at = os.open(union.path, os.O_PATH)
        for level in range(DEEP + DEEPER):
            if level == DEEP and text:
                with os.fdopen(os.open("end", os.O_WRONLY | os.O_TRUNC, dir_fd=at), "w") as file:
                    file.write(text)
            if level >= DEEP and text and not os.access("p" * 200, os.F_OK, dir_fd=at):
                os.mkdir("p" * 200, dir_fd=at)
            below = os.open("p" * 200, os.O_PATH, dir_fd=at)
            if level == DEEP and text:
                os.rename("end", "moved", src_dir_fd=at, dst_dir_fd=below)
            elif level > DEEP and text:
                os.rename("moved", "moved", src_dir_fd=at, dst_dir_fd=below)
            os.close(at)
            at = below
        with os.fdopen(os.open("moved", os.O_RDONLY, dir_fd=at)) as file:
            found = file.read()
        os.close(at)
        return found

    def test_names_that_mean_something_elsewhere(self):
        """[names.wh]"""
        def check(union):
            folder = os.fsencode(union / "odd")
            os.mkdir(folder)
            for name in ODD_NAMES:
                path = os.path.join(folder, name)
                with open(path, "wb") as file:
                    file.write(name)
                os.mkdir(os.path.join(folder, b"d" + name[1:]))
                os.rename(path, os.path.join(folder, b"r" + name[1:]))
                os.rename(os.path.join(folder, b"r" + name[1:]), path)
                if not name.startswith(b"n" * 9):
                    os.link(path, path + b"-link")
            for _ in range(2):
                for name in ODD_NAMES:
                    with open(os.path.join(folder, name), "rb") as file:
                        self.assertEqual(name, file.read())
                self.assertEqual(3 * len(ODD_NAMES) - 1, len(os.listdir(folder)))
                union.remount()
            shutil.rmtree(folder)

        self.on_each(check)

    def test_what_was_removed_stays_so_and_what_replaces_it_is_new(self):
        """[inodes.replaced], [inodes.opaque]"""
        def check(union):
            folder = union / "removed"
            numbers = {name: os.lstat(folder / name).st_ino for name in ("file", "folder")}
            (folder / "file").unlink()
            (folder / "folder").rmdir()
            (folder / "other").unlink()
            (folder / "file").mkdir()
            (folder / "folder").write_text("new")
            for _ in range(2):
                self.assertEqual({"file", "folder"}, set(os.listdir(folder)))
                self.assertEqual([], os.listdir(folder / "file"))
                self.assertNotIn(os.lstat(folder / "file").st_ino, numbers.values())
                union.remount()

        self.on_each(check)


if __name__ == "__main__":
    main()
