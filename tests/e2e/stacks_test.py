#!/usr/bin/env python3
"""The rules of stacks of folders through the kernel: marks of every kind, as overlayfs reads them where it knows them,
and layers that are malformed or change under the mount."""
import errno
import os
import pathlib
import stat

from support import main, needs_fuse, needs_root
from unions import UnionTest, fuse, unmount

OVERLAY = "trusted.overlay."


def whiteout(path):
    os.mknod(path, stat.S_IFCHR, 0)


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@needs_fuse
@needs_root
class StackTest(UnionTest):
    def setUp(self):
        super().setUp()
        self.top, self.low, self.mnt = (self.folder / name for name in ("top", "low", "mnt"))
        for folder in (self.top, self.low, self.mnt):
            folder.mkdir()
        self.addCleanup(unmount, self.mnt)

    def mount(self, more=""):
        unmount(self.mnt)
        fuse(f"lowerdir={self.top}:{self.low}{more}", self.mnt)

    def names(self, folder="."):
        return set(os.listdir(self.mnt / folder))

    def error_of(self, name, call=os.lstat):
        with self.assertRaises(OSError) as caught:
            call(self.mnt / name)
        return errno.errorcode[caught.exception.errno]

    def test_folders_are_merged_down_to_the_first_thing_that_is_none(self):
        """[stacks.merging]"""
        third = self.folder / "third"
        for number, folder in enumerate((self.top, self.low, third)):
            write(folder / f"merged/own{number}", str(number))
            write(folder / "merged/same", str(number))
            (folder / "merged").chmod(0o750 + number)
            os.setxattr(folder / "merged", f"user.n{number}", b"1")
        write(self.top / "cut/a")
        write(self.low / "cut")
        write(third / "cut/c")
        fuse(f"lowerdir={self.top}:{self.low}:{third}", self.mnt)
        self.assertEqual({"own0", "own1", "own2", "same"}, self.names("merged"))
        self.assertEqual("0", (self.mnt / "merged/same").read_text())
        self.assertEqual(0o750, stat.S_IMODE((self.mnt / "merged").stat().st_mode))
        self.assertEqual(["user.n0"], os.listxattr(self.mnt / "merged"))
        self.assertEqual({"a"}, self.names("cut"))

    def test_whiteouts_of_every_kind_hide_what_lies_further_down(self):
        """[stacks.whiteouts]"""
        for name in ("device/gone", "device/stays", "attribute/gone", "attribute/empty", "aufs/gone", "aufs/both",
                     "without/gone"):
            write(self.low / name, "low")
        write(self.top / "device/own", "top")
        whiteout(self.top / "device/gone")
        for name in ("attribute", "without"):
            write(self.top / name / "gone")
            os.setxattr(self.top / name / "gone", "user.overlay.whiteout", b"y")
        write(self.top / "attribute/empty")
        os.setxattr(self.top / "attribute", "user.overlay.opaque", b"x")
        for name in (".wh.gone", ".wh.both"):
            write(self.top / "aufs" / name)
        write(self.top / "aufs/both", "beside")
        self.mount()
        self.assertEqual([{"own", "stays"}, {"empty"}, {"both"}, {"gone"}],
                         [self.names(name) for name in ("device", "attribute", "aufs", "without")])
        self.assertEqual("beside", (self.mnt / "aufs/both").read_text())
        self.assertEqual("", (self.mnt / "attribute/empty").read_text())
        self.assertEqual("ENOENT", self.error_of("device/gone"))

    def test_opaque_folders_of_every_kind_show_nothing_from_below(self):
        """[stacks.opaque]"""
        marks = {"trusted": (OVERLAY + "opaque", b"y"), "user": ("user.overlay.opaque", b"y"),
                 "fuse": ("user.fuseoverlayfs.opaque", b"yes"), "none": ("user.overlay.opaque", b"n")}
        for name, mark in marks.items():
            write(self.low / name / "low")
            write(self.top / name / "top")
            os.setxattr(self.top / name, *mark)
        write(self.low / "aufs/low")
        write(self.top / "aufs/.wh..wh..opq")
        os.setxattr(self.top, OVERLAY + "opaque", b"y")  # Of the root it says nothing.
        self.mount()
        self.assertEqual([{"top"}, {"top"}, {"top"}, {"top", "low"}, set()],
                         [self.names(name) for name in ("trusted", "user", "fuse", "none", "aufs")])
        self.assertEqual({*marks, "aufs"}, self.names())
        write(self.top / ".wh..wh..opq")
        write(self.low / "hidden")
        self.mount()
        self.assertEqual({*marks, "aufs"}, self.names())

    def test_names_that_only_look_like_marks_are_names(self):
        """[stacks.plain]"""
        for name in ("full", "folder", "plain"):
            write(self.low / name, "low")
        write(self.top / ".wh.full", "full")
        (self.top / ".wh.folder").mkdir()
        write(self.top / ".wh.plain")
        os.setxattr(self.top / ".wh.plain", "user.overlay.plain", b"y")
        self.mount()
        self.assertEqual({"full", "folder", "plain", ".wh.full", ".wh.folder", ".wh.plain"}, self.names())

    def test_redirects_lead_to_another_name_below_and_malformed_ones_nowhere(self):
        """[stacks.redirect], [stacks.malformed]"""
        write(self.low / "old/low", "low")
        write(self.low / "deep/old/low", "deep")
        write(self.low / "data", "data")
        for name, value in (("absolute", b"/deep/old"), ("beside", b"old"), ("up", b"/../low/old"), ("empty", b"")):
            write(self.top / name / "top")
            os.setxattr(self.top / name, OVERLAY + "redirect", value)
        for name, value in (("whole", b"/data"), ("lost", b"/none")):
            write(self.top / name)
            os.truncate(self.top / name, 4)
            os.setxattr(self.top / name, OVERLAY + "metacopy", b"")
            os.setxattr(self.top / name, OVERLAY + "redirect", value)
        write(self.top / "odd")
        os.setxattr(self.top / "odd", OVERLAY + "metacopy", b"\0")
        self.mount()
        self.assertEqual([{"top", "low"}] * 2, [self.names(name) for name in ("absolute", "beside")])
        self.assertEqual(["deep", "low", "data"], [(self.mnt / name).read_text() for name in
                                                   ("absolute/low", "beside/low", "whole")])
        self.assertEqual(["EIO"] * 4, [self.error_of(name) for name in ("up", "empty", "lost", "odd")])
        self.mount(",redirect_dir=nofollow")
        self.assertEqual(["EPERM"] * 2, [self.error_of(name) for name in ("absolute", "beside")])
        self.mount(",metacopy=off")
        self.assertEqual("EPERM", self.error_of("whole"))

    def test_attributes_that_steer_the_union_are_not_shown_and_nested_ones_come_through(self):
        """[stacks.hidden-xattrs]"""
        write(self.top / "file")
        for name in (OVERLAY + "origin", "user.overlay.impure", "user.fuseoverlayfs.opaque",
                     "user.containers.override_stat", OVERLAY + "overlay.opaque", "user.overlay.overlay.x",
                     "user.mine"):
            os.setxattr(self.top / "file", name, name.encode())
        self.mount()
        self.assertEqual({OVERLAY + "opaque", "user.overlay.x", "user.mine"}, set(os.listxattr(self.mnt / "file")))
        self.assertEqual(b"trusted.overlay.overlay.opaque", os.getxattr(self.mnt / "file", OVERLAY + "opaque"))
        self.assertEqual("ENODATA", self.error_of("file", lambda path: os.getxattr(path, "user.overlay.impure")))

    def test_a_malformed_owner_kept_in_an_attribute_is_an_error(self):
        """[stacks.override-stat]"""
        os.setxattr(self.top, "user.containers.override_stat", b"0:0:0755")
        for name, value in (("good", b"12:34:4755"), ("device", b"0:6:0660:block:8:1"), ("bad", b"1:x:0")):
            write(self.top / name)
            os.setxattr(self.top / name, "user.containers.override_stat", value)
        self.mount(",dev,suid")
        status = (self.mnt / "good").stat()
        self.assertEqual((12, 34, 0o104755), (status.st_uid, status.st_gid, status.st_mode))
        status = (self.mnt / "device").stat()
        self.assertEqual((6, os.makedev(8, 1), True), (status.st_gid, status.st_rdev, stat.S_ISBLK(status.st_mode)))
        self.assertEqual("EIO", self.error_of("bad"))

    def test_a_folder_stays_what_it_was_when_it_was_first_looked_into(self):
        """[stacks.first-look], [stacks.stale]"""
        for name in ("kept", "gone", "replaced", "rewritten"):
            write(self.low / "folder" / name, "low")
        self.mount()
        self.assertEqual({"kept", "gone", "replaced", "rewritten"}, self.names("folder"))
        (self.low / "folder/gone").unlink()
        write(self.low / "folder/replacement", "other")
        (self.low / "folder/replacement").rename(self.low / "folder/replaced")
        write(self.low / "folder/new", "new")
        write(self.low / "folder/rewritten", "LOW")
        self.assertEqual({"kept", "gone", "replaced", "rewritten"}, self.names("folder"))
        self.assertEqual("ENOENT", self.error_of("folder/new"))
        self.assertEqual(["ESTALE"] * 2, [self.error_of(f"folder/{name}", pathlib.Path.read_text)
                                          for name in ("gone", "replaced")])
        self.assertEqual(["low", "LOW"], [(self.mnt / "folder" / name).read_text() for name in ("kept", "rewritten")])


if __name__ == "__main__":
    main()
