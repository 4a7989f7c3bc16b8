#!/usr/bin/env python3
"""Layers on file systems of each kind: uppers on ext4, xfs, btrfs and tmpfs, which go to and fro between us and the
kernel's overlayfs, also when they are full; lowers on all of those, on read-only ones, and on ones that are FUSE."""
import errno
import os
import re
import shutil

from rich_tree import describe, difference, make_rich_tree
from support import main, needs_fuse, needs_program, needs_root, run
from unions import UnionTest, copy_tree, fuse, spread, unmount

ACL_OF_XFS = re.compile(" trusted.SGI_ACL_[A-Z]+=[0-9a-f]+")  # xfs lists its own form of them, too
MEGABYTES = {"xfs": 320, "btrfs": 128}  # as small as they can be made


class DiskTest(UnionTest):
    maxDiff = 10_000

    def disk(self, kind, megabytes=64, name=None, options=""):
        """A fresh file system of a kind, mounted; skips the test where that cannot be."""
        path = self.folder / (name or f"disk-{kind}")
        path.mkdir()
        if kind == "tmpfs":
            run("mount", "-t", "tmpfs", "-o", f"size={megabytes}m{options}", "tmpfs", path)
        else:
            self.make_image(kind, path, megabytes)
        self.addCleanup(unmount, path)
        return path

    def make_image(self, kind, path, megabytes):
        if not shutil.which(f"mkfs.{kind}", path=os.environ["PATH"] + ":/sbin:/usr/sbin"):
            self.skipTest(f"needs mkfs.{kind}")
        image = path.with_suffix(".image")
        with open(image, "wb") as file:
            file.truncate(max(megabytes, MEGABYTES.get(kind, 0)) << 20)
        run(f"mkfs.{kind}", *(["-q", "-b", "4096", "-m", "0"] if kind == "ext4" else ["-q"]), image)
        mounted = run("mount", "-o", "loop", image, path, check=False)
        if mounted.returncode != 0:
            self.skipTest(f"{kind} cannot be mounted here: {mounted.stderr.strip()}")

    def folders(self, base, *names):
        for name in names:
            (base / name).mkdir()
        return [base / name for name in names]

    def mount(self, lowers, upper=None, work=None, more=""):
        """Mounts at self.mnt, which is made when it is not there; unmounted in the end."""
        self.mnt = self.folder / "mnt"
        if not self.mnt.exists():
            self.mnt.mkdir()
            self.addCleanup(unmount, self.mnt)
        options = "lowerdir=" + ":".join(map(str, lowers))
        if upper:
            options += f",upperdir={upper},workdir={work}"
        return fuse(options + more, self.mnt)

    def remount(self, more=""):
        unmount(self.mnt)
        self.mount(*self.layers, more=more)

    def kernel_shows(self, lowers, upper, work, options="redirect_dir=on,index=on,metacopy=on", change=None):
        """The tree as overlayfs has it, after it was changed there."""
        merged = self.folder / "merged"
        merged.mkdir(exist_ok=True)
        run("mount", "-t", "overlay", "overlay", "-o",
            f"lowerdir={':'.join(map(str, lowers))},upperdir={upper},workdir={work},{options}", merged)
        try:
            if change:
                change(merged)
            return [ACL_OF_XFS.sub("", line) for line in describe(merged, lists_whiteouts=True)]
        finally:
            unmount(merged)

    def tree(self, path):
        path.mkdir(exist_ok=True)
        make_rich_tree(path, has_odd_names=False)
        return path


def change_everything(root, moves_folders=True):
    """One change of each kind, on things of below and on new ones."""
    (root / "plain").write_text("changed")
    (root / "setuid").chmod(0o4711)
    os.chown(root / "setgid", 5, 6)
    os.utime(root / "time-last", ns=(1, 4_000_000_000_000_000_002))
    os.setxattr(root / "xattrs", "user.new", b"1")
    os.removexattr(root / "xattrs", "user.empty")
    os.truncate(root / "sparse", 3 << 20)
    with open(root / "sparse", "r+b") as file:
        os.pwrite(file.fileno(), b"x" * 4096, 2 << 20)
    (root / "folder-acl/inherited").write_text("new")
    if moves_folders:
        (root / "deep").rename(root / "moved")
    else:
        (root / "moved").mkdir()
    os.rename(root / "fifo", root / "moved/fifo")
    os.unlink(root / "second")
    os.link(root / "first", root / "fourth")
    (root / "empty").unlink()
    (root / "sticky").rmdir()
    (root / "sticky").mkdir(mode=0o711)
    (root / "sticky/inside").write_text("inside")
    os.symlink("plain", root / "new-link")
    (root / "big").rename(root / "moved/big")
    (root / "dangling").unlink()
    (root / "dangling").mkdir()
    for number in range(100):
        (root / f"moved/n{number}").write_text(str(number))


def change_again(root):
    """After change_everything: what was new is old now, and what moved moves on."""
    (root / "moved/big").rename(root / "sticky/big")
    (root / "sticky/big").write_text("small")
    (root / "plain").unlink()
    (root / "fourth").chmod(0o600)
    os.rename(root / "xattrs", root / "new-link")
    (root / "dangling").rmdir()
    (root / "dangling").write_text("a file now")
    shutil.rmtree(root / "folder-acl")
    os.truncate(root / "time-first", 100_000)
    (root / "again").mkdir()
    os.link(root / "setuid", root / "again/setuid")


@needs_fuse
@needs_root
@needs_program("setfacl")
class UpperTest(DiskTest):
    """On an upper of each file system everything is as on a plain folder, and overlayfs shows the same of it."""

    def stack(self, disk):
        """plain/, a lower with the same in it, and an upper on a disk."""
        plain = self.tree(self.folder / "plain")
        lower, = self.folders(self.folder, "lower")
        copy_tree(plain, lower)
        self.layers = ([lower], *self.folders(disk, "upper", "work"))
        return plain

    def shown(self, plain):
        """What the mount shows, which but for the times of now is what the plain folder shows."""
        self.assertEqual("", difference(describe(plain, has_times=False)[1:], describe(self.mnt, has_times=False)[1:]))
        return describe(self.mnt)

    def go_round(self, disk, kernel="redirect_dir=on,index=on,metacopy=on", ours="", moves_folders=True):
        """Changes it by us, shows it by both, changes it by the kernel, shows it by both."""
        plain = self.stack(self.disk(disk))
        self.mount(*self.layers, more=ours)
        self.shown(plain)
        for root in (plain, self.mnt):
            change_everything(root, moves_folders)
        live = self.shown(plain)
        self.remount(ours)
        self.assertEqual("", difference(live, describe(self.mnt)))
        unmount(self.mnt)
        self.assertEqual("", difference(live, self.kernel_shows(*self.layers, options=kernel)))
        change_again(plain)
        kernels = self.kernel_shows(*self.layers, options=kernel, change=change_again)
        self.mount(*self.layers, more=ours)
        self.assertEqual("", difference(self.shown(plain), kernels))

    def test_ext4(self):
        """[stacks.index], [upper.at-rest], [stacks.numbers]"""
        self.go_round("ext4")

    def test_xfs(self):
        """[stacks.xfs-acls]"""
        self.go_round("xfs")

    def test_btrfs(self):
        self.go_round("btrfs")

    def test_tmpfs(self):
        self.go_round("tmpfs")

    def test_attributes_of_users_namespace(self):
        """Where overlayfs follows no redirects, and so knows no moved folders."""
        self.go_round("ext4", "userxattr,index=on", ",userxattr", moves_folders=False)


@needs_fuse
@needs_root
class FullTest(DiskTest):
    """A full upper is an error of the call that meets it; the mount goes on, and nothing half-made is left."""

    BIG = 24 << 20

    @staticmethod
    def overwrite(path):
        with path.open("r+b", buffering=0) as file:
            file.write(b"x")

    def fill(self, disk, code, make_room=lambda: None):
        lower, = self.folders(self.folder, "lower")
        big = os.urandom(self.BIG)
        (lower / "big").write_bytes(big)
        (lower / "small").write_text("small")
        self.layers = ([lower], *self.folders(disk, "upper", "work"))
        self.mount(*self.layers)
        path = self.mnt / "big"
        for call in (lambda: self.overwrite(path), lambda: path.chmod(0o600), lambda: path.rename(self.mnt / "moved"),
                     lambda: os.link(path, self.mnt / "link"), lambda: os.setxattr(path, "user.a", b"1")):
            with self.assertRaises(OSError) as caught:
                call()
            self.assertEqual(errno.errorcode[code], errno.errorcode[caught.exception.errno])
            self.assertEqual([], os.listdir(self.layers[2] / "work"))
        with self.assertRaises(OSError) as caught, (self.mnt / "filler").open("wb", buffering=0) as file:
            for _ in range(200):
                file.write(bytes(range(256)) * 1024)
        self.assertEqual(errno.errorcode[code], errno.errorcode[caught.exception.errno])
        self.assertEqual({"big", "small", "filler"}, set(os.listdir(self.mnt)))
        self.assertEqual(big, (self.mnt / "big").read_bytes())
        size = (self.mnt / "filler").stat().st_size
        unmount(self.mnt)
        self.assertEqual([["filler"], []], [os.listdir(self.layers[1]), os.listdir(self.layers[2] / "work")])
        self.mount(*self.layers)
        self.assertEqual((big, size), ((self.mnt / "big").read_bytes(), (self.mnt / "filler").stat().st_size))
        make_room()
        (self.mnt / "filler").unlink()
        (self.mnt / "small").write_text("changed")
        self.assertEqual("changed", (self.layers[1] / "small").read_text())

    def test_the_next_call_has_the_room_of_a_removed_file(self):
        """[upper.room] The kernel's word that nobody has it open may come behind that call."""
        disk = self.disk("tmpfs", megabytes=16)
        self.mount(self.folders(self.folder, "lower"), *self.folders(disk, "upper", "work"))
        for _ in range(1000):
            with (self.mnt / "big").open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, 10 << 20)
            (self.mnt / "big").unlink()
        with (self.mnt / "open").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 10 << 20)
            (self.mnt / "open").unlink()
            with (self.mnt / "other").open("wb") as other, self.assertRaises(OSError) as caught:
                os.posix_fallocate(other.fileno(), 0, 10 << 20)
        self.assertEqual(errno.ENOSPC, caught.exception.errno)

    def test_what_needs_no_room_is_done_on_a_disk_that_has_none(self):
        """[upper.truncate], [upper.full-links]: both files below are larger than the disk."""
        disk = self.disk("tmpfs", megabytes=8)
        lower, = self.folders(self.folder, "lower")
        for name in ("cut", "linked"):
            (lower / name).write_bytes(os.urandom(self.BIG))
        os.link(lower / "linked", lower / "other")
        self.layers = ([lower], *self.folders(disk, "upper", "work"))
        self.mount(*self.layers)
        os.truncate(self.mnt / "cut", 5)
        self.assertEqual((lower / "cut").read_bytes()[:5], (self.mnt / "cut").read_bytes())
        (self.mnt / "other").unlink()
        self.assertEqual({"cut", "linked"}, set(os.listdir(self.mnt)))
        self.assertEqual(1, (self.mnt / "linked").stat().st_nlink)
        self.remount()
        self.assertEqual({"cut", "linked"}, set(os.listdir(self.mnt)))
        self.assertEqual(2, (self.mnt / "linked").stat().st_nlink)  # One too many: nothing could be written of it.
        self.assertEqual((lower / "linked").read_bytes(), (self.mnt / "linked").read_bytes())

    def test_a_full_disk(self):
        """[upper.errors]"""
        self.fill(self.disk("ext4", megabytes=20), errno.ENOSPC)

    def test_a_full_tmpfs(self):
        self.fill(self.disk("tmpfs", megabytes=16), errno.ENOSPC)

    def test_a_used_up_quota(self):
        """[upper.errors]"""
        disk = self.disk("btrfs", megabytes=256)
        run("btrfs", "quota", "enable", disk)
        run("btrfs", "subvolume", "create", disk / "limited")
        run("btrfs", "qgroup", "limit", "16M", disk / "limited")
        # A file that may be open is moved away when it is removed, for which btrfs wants room.
        self.fill(disk / "limited", errno.EDQUOT, lambda: run("btrfs", "qgroup", "limit", "64M", disk / "limited"))


@needs_fuse
@needs_root
@needs_program("setfacl")
class LowerTest(DiskTest):
    def check_lowers(self, lowers, tree):
        """Through an upper on the usual disk: what lies below is shown as it is, and can be changed."""
        self.layers = (lowers, *self.folders(self.folder, "upper", "work"))
        self.mount(*self.layers)
        expected, found = describe(tree), describe(self.mnt)
        self.assertEqual("", difference(expected[1:], found[1:]))
        before = {path: os.lstat(self.mnt / path).st_ino for path in ("plain", "deep", "sparse")}
        for root in (tree, self.mnt):
            change_everything(root)
        for _ in range(2):
            expected, found = describe(tree, has_times=False), describe(self.mnt, has_times=False)
            self.assertEqual("", difference(expected[1:], found[1:]))
            self.assertEqual([before[path] for path in ("plain", "deep", "sparse")],
                             [os.lstat(self.mnt / path).st_ino for path in ("plain", "moved", "sparse")])
            self.remount()

    def test_lowers_on_four_file_systems_one_of_them_read_only(self):
        tree = self.tree(self.folder / "tree")
        disks = [self.disk(kind) for kind in ("xfs", "btrfs", "tmpfs", "ext4")]
        lowers = [self.folders(disk, "lower")[0] for disk in disks]
        spread(tree, lowers)
        run("mount", "-o", "remount,ro", disks[1])
        self.check_lowers(lowers, tree)

    @needs_program("mksquashfs")
    def test_a_squashfs_of_the_kernel_and_one_by_fuse(self):
        tree = self.tree(self.folder / "tree")
        parts = self.folders(self.folder, "part0", "part1")
        spread(tree, parts)
        lowers = self.folders(self.folder, "lower0", "lower1")
        programs = [["mount", "-o", "loop,ro"], ["squashfuse", "-o", "allow_other"]]
        if not (parts[0] / "plain").exists():
            programs.reverse()  # Its links stay links over a remount only where files have handles: not by FUSE.
        for part, lower, mount in zip(parts, lowers, programs):
            image = part.with_suffix(".squashfs")
            run("mksquashfs", part, image, "-quiet", "-no-progress", "-xattrs")
            if not shutil.which(mount[0]) or run(*mount, image, lower, check=False).returncode != 0:
                self.skipTest(f"{mount[0]} cannot mount a squashfs here")
            self.addCleanup(unmount, lower)
        self.layers = (lowers, *self.folders(self.folder, "upper", "work"))
        self.mount(*self.layers)
        (self.mnt / "plain").write_text("changed")
        (self.mnt / "deep").rename(self.mnt / "moved")
        self.remount()
        self.assertEqual("changed", (self.mnt / "first").read_text())
        self.assertEqual((tree / "big").read_bytes(), (self.mnt / "big").read_bytes())
        self.assertEqual("end", next((self.mnt / "moved").rglob("end")).read_text())

    def test_another_mount_of_ours(self):
        tree = self.tree(self.folder / "tree")
        parts = self.folders(self.folder, "part0", "part1")
        spread(tree, parts)
        inner, = self.folders(self.folder, "inner")
        fuse(f"lowerdir={parts[0]}:{parts[1]},dev,suid", inner)
        self.addCleanup(unmount, inner)
        self.check_lowers([inner], tree)


if __name__ == "__main__":
    main()
