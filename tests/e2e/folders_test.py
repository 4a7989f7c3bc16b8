#!/usr/bin/env python3
"""lamina-fuse over folders: what it is called with, how it begins and ends, and what it refuses."""
import os
import pathlib
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import unittest

import support
from support import main, needs_fuse, needs_root, run

FUSE_MAGIC = "65735546"


class FolderTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="lamina-folders-", dir="/var/tmp"))
        self.addCleanup(self.take_away)
        for name in ("a", "b", "upper", "work", "mnt"):
            (self.folder / name).mkdir()
        (self.folder / "a/file").write_text("a\n")
        (self.folder / "b/file").write_text("b\n")
        (self.folder / "b/below").write_text("b\n")
        (self.folder / "a/tree").mkdir()
        (self.folder / "a/tree/leaf").write_text("leaf\n")
        self.mnt = self.folder / "mnt"

    def take_away(self):
        for line in reversed(pathlib.Path("/proc/mounts").read_text().splitlines()):
            if str(self.folder) in line:
                run("umount", "-l", line.split()[1], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def fuse(self, options, *words, check=True, **kwargs):
        words = words or (self.mnt,)
        return run(support.BUILD / "fuse/lamina-fuse", "-o", options, *words, check=check, cwd=self.folder, **kwargs)

    def writable(self, more="", lower="a:b"):
        return f"lowerdir={lower},upperdir=upper,workdir=work{more}"

    def unmount(self):
        run("umount", self.mnt)

    def refused(self, options, says, *words, status=1):
        result = self.fuse(options, *words, check=False)
        self.assertEqual(status, result.returncode, result.stderr)
        self.assertEqual(1, len(result.stderr.splitlines()), result.stderr)
        for text in [says] if isinstance(says, str) else says:
            self.assertIn(text, result.stderr)
        self.assertFalse(os.path.ismount(self.mnt))

    def servers(self):
        found = []
        for process in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
                if os.fsencode(self.mnt) in words and b"lamina-fuse" in words[0] and \
                        ") Z" not in (process / "stat").read_text():
                    found.append(int(process.name))
            except OSError:
                continue
        return found

    def wait_until_gone(self):
        end = time.monotonic() + 10
        while self.servers():
            self.assertLess(time.monotonic(), end, "the server does not end")
            time.sleep(0.01)


@needs_fuse
@needs_root
class CallTest(FolderTest):
    def test_podmans_way_to_call_it(self):
        (self.folder / "link").symlink_to("a")
        result = self.fuse("lowerdir=link:./b,upperdir=upper,workdir=work,,volatile,private,made-up=1,", self.mnt)
        self.assertEqual("a\n", (self.mnt / "file").read_text())
        self.assertEqual("b\n", (self.mnt / "below").read_text())
        self.assertEqual("", result.stdout)
        self.assertEqual(["private", "made-up"], [line.split()[2] for line in result.stderr.splitlines()])
        self.assertEqual(FUSE_MAGIC, run("stat", "-f", "-c", "%t", self.mnt).stdout.strip())
        run("fusermount3", "-u", self.mnt)
        self.wait_until_gone()

    def test_without_an_upper_it_is_read_only(self):
        self.fuse("lowerdir=a:b")
        with self.assertRaises(OSError) as caught:
            (self.mnt / "new").write_text("x")
        self.assertEqual("Read-only file system", caught.exception.strerror)

    def test_changes_are_in_the_upper_when_a_call_has_returned(self):
        self.fuse(self.writable())
        for number in range(1000):
            (self.mnt / "tree/leaf").write_text(f"{number}\n")
            self.assertEqual(f"{number}\n", (self.folder / "upper/tree/leaf").read_text())
        (self.mnt / "file").unlink()
        self.assertTrue(stat.S_ISCHR(os.lstat(self.folder / "upper/file").st_mode))
        self.assertEqual("leaf\n", (self.folder / "a/tree/leaf").read_text())

    def test_it_is_mounted_again_as_soon_as_it_is_unmounted_and_shows_the_same(self):
        for number in range(30):
            self.fuse(self.writable())
            (self.mnt / f"file{number}").write_text("x")
            run("fusermount3", "-u", self.mnt)
            self.assertEqual(number + 3, len(os.listdir(self.folder / "upper")) + 2)
        self.wait_until_gone()

    def test_names_with_colons_commas_and_backslashes(self):
        for name in ("c:d", "e,f", "g\\h"):
            (self.folder / name).mkdir()
            (self.folder / name / name).write_text(name)
        self.fuse(r"lowerdir=c\:d:e\,f:g\\h")
        self.assertEqual(["c:d", "e,f", "g\\h"], sorted(os.listdir(self.mnt)))

    def test_nothing_but_its_own_files_stays_open(self):
        inherited = os.open("/dev/null", os.O_RDONLY)
        begin = time.monotonic()
        subprocess.run([support.BUILD / "fuse/lamina-fuse", "-o", self.writable(), self.mnt], cwd=self.folder,
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True,
                       pass_fds=[inherited], timeout=20)  # waits for the end of standard error too
        self.assertLess(time.monotonic() - begin, 5)
        server, = self.servers()
        links = {name: os.readlink(f"/proc/{server}/fd/{name}") for name in os.listdir(f"/proc/{server}/fd")}
        self.assertEqual({"/dev/null"}, {links[name] for name in ("0", "1", "2")})
        self.assertEqual([], [link for name, link in links.items() if int(name) > 2 and link == "/dev/null"])
        self.assertEqual("/", os.readlink(f"/proc/{server}/cwd"))
        os.close(inherited)

    def test_sources_names_and_flags_of_the_mount(self):
        self.fuse("lowerdir=a,fsname=my name,noexec,nosuid,atime,lazytime,rw", self.mnt)
        line = next(line for line in pathlib.Path("/proc/mounts").read_text().splitlines() if str(self.mnt) in line)
        self.assertTrue(line.startswith("my_name ") or line.startswith("my\\040name "), line)
        self.assertLessEqual({"noexec", "nosuid", "nodev", "ro"}, set(line.split()[3].split(",")))
        self.unmount()
        self.fuse("lowerdir=a", "source", self.mnt)
        self.assertIn(f"source {self.mnt} fuse.lamina", pathlib.Path("/proc/mounts").read_text())

    def test_owners_are_mapped_and_squashed(self):
        os.chown(self.folder / "a/file", 5, 6)
        self.fuse(self.writable(",uidmapping=:0:1000:10,gidmapping=0:2000:10:10:3000:5"))
        status = os.stat(self.mnt / "file")
        self.assertEqual((1005, 2006), (status.st_uid, status.st_gid))
        (self.mnt / "new").write_text("x")
        os.chown(self.mnt / "new", 1003, 3001)
        status = os.stat(self.folder / "upper/new")
        self.assertEqual((3, 11), (status.st_uid, status.st_gid))
        self.unmount()
        self.fuse(self.writable(",squash_to_uid=77,squash_to_gid=78"))
        status = os.stat(self.mnt / "file")
        self.assertEqual((77, 78), (status.st_uid, status.st_gid))

    def test_owners_and_modes_are_kept_beside_the_files_when_the_mount_says_so(self):
        """[upper.owners-beside], [stacks.override-stat]"""
        self.fuse(self.writable(",xattr_permissions=2"))
        (self.mnt / "new").write_text("x")
        (self.mnt / "folder").mkdir(mode=0o700)
        for name, mode in (("new", 0o4711), ("folder", 0o3755), ("file", 0o640)):
            os.chown(self.mnt / name, 5, 6)
            (self.mnt / name).chmod(mode)
        with open(self.mnt / "new", "a", encoding="ascii") as file:
            file.write("y")
        def attributes():  # less the device, which may be another one after the next mount
            statuses = {name: (self.mnt / name).stat() for name in ("new", "folder", "file")}
            return {name: (*status[:2], *status[3:6]) for name, status in statuses.items()}
        shown = attributes()
        self.unmount()
        for name, text in (("new", "5:6:4711:file"), ("folder", "5:6:3755:dir"), ("file", "5:6:640:file")):
            path = self.folder / "upper" / name
            self.assertEqual(text, os.getxattr(path, "user.containers.override_stat").decode())
            self.assertEqual((os.geteuid(), os.getegid()), (path.stat().st_uid, path.stat().st_gid))
        self.fuse(self.writable(",xattr_permissions=2"))
        self.assertEqual(shown, attributes())

    def test_five_hundred_lowers_with_1024_descriptors(self):
        """[stacks.merging]"""
        for number in range(500):
            (self.folder / f"l{number}").mkdir()
            (self.folder / f"l{number}/f{number}").write_text(str(number))
            (self.folder / f"l{number}/top").write_text(str(number))
        options = "lowerdir=" + ":".join(f"{self.folder}/l{number}" for number in range(500))
        result = run("sh", "-c", 'ulimit -n 1024; exec "$@"', "_", support.BUILD / "fuse/lamina-fuse", "-o",
                     options + f",upperdir={self.folder}/upper,workdir={self.folder}/work", self.mnt)
        self.assertEqual("", result.stderr)
        self.assertEqual(501, len(os.listdir(self.mnt)))
        self.assertEqual("0", (self.mnt / "top").read_text())
        self.assertEqual("499", (self.mnt / "f499").read_text())

    def test_a_mount_point_inside_of_a_lower_does_not_lead_into_itself(self):
        """[stacks.places]"""
        (self.folder / "a/inside").mkdir()
        self.fuse("lowerdir=a", self.folder / "a/inside")
        result = run("timeout", "10", "find", self.folder / "a/inside", "-name", "leaf")
        self.assertEqual(str(self.folder / "a/inside/tree/leaf"), result.stdout.strip())

    def test_over_its_own_lower(self):
        self.fuse(self.writable(lower="a"), self.folder / "a")
        (self.folder / "a/new").write_text("x")
        self.assertEqual(["file", "new", "tree"], sorted(os.listdir(self.folder / "a")))
        self.assertEqual(["new"], os.listdir(self.folder / "upper"))

    def test_in_the_foreground_it_stays_and_ends_by_a_signal(self):
        with subprocess.Popen([support.BUILD / "fuse/lamina-fuse", "-f", "-o", "lowerdir=a", self.mnt],
                              cwd=self.folder) as process:
            end = time.monotonic() + 10
            while not os.path.ismount(self.mnt) and time.monotonic() < end:
                time.sleep(0.01)
            self.assertEqual("a\n", (self.mnt / "file").read_text())
            process.send_signal(signal.SIGTERM)
            self.assertEqual(0, process.wait(10))
        self.assertFalse(os.path.ismount(self.mnt))

    def test_the_kernels_overlayfs_takes_over_what_it_left(self):
        self.fuse(self.writable())
        (self.mnt / "file").unlink()
        (self.mnt / "tree").rename(self.mnt / "moved")
        os.link(self.mnt / "below", self.mnt / "linked")
        (self.mnt / "moved/leaf").write_text("changed\n")
        expected = support.manifest(self.mnt)
        self.unmount()
        self.wait_until_gone()
        options = ",".join(f"{key}={self.folder}/{value}" for key, value in
                           (("upperdir", "upper"), ("workdir", "work")))
        run("mount", "-t", "overlay", "overlay", "-o",
            f"lowerdir={self.folder}/a:{self.folder}/b,{options},redirect_dir=on,index=on", self.mnt)
        self.assertEqual(expected, support.manifest(self.mnt))


@needs_fuse
@needs_root
class RefusalTest(FolderTest):
    def test_folders_that_are_missing_or_none(self):
        self.refused("lowerdir=a:none", ["lower folder none", "No such file"])
        self.refused(self.writable().replace("upper,", "none,"), ["upper folder none", "No such file"])
        self.refused(self.writable().replace("=work", "=none"), ["work folder none", "No such file"])
        self.refused("lowerdir=a/file", ["lower folder a/file", "not a folder"])
        self.refused("lowerdir=a", "No such file", self.folder / "nowhere")
        self.refused("lowerdir=a", "not a folder", self.folder / "a/file")
        self.refused("lowerdir=a,upperdir=upper", "workdir")
        self.refused("upperdir=upper,workdir=work", "lowerdir", status=2)
        self.assertEqual([], os.listdir(self.folder / "upper"))

    def test_folders_that_overlap(self):
        self.refused(self.writable(lower="a:upper"), "the same folder")
        self.refused("lowerdir=a:a", "the same folder")
        self.refused("lowerdir=a:a/tree", "overlaps")
        self.refused("lowerdir=a,upperdir=a/tree,workdir=work", "overlaps")
        self.refused("lowerdir=a/tree,upperdir=a,workdir=work", "overlaps")
        (self.folder / "upper/work").mkdir()
        self.refused("lowerdir=a,upperdir=upper,workdir=upper/work", "overlaps")
        self.refused("lowerdir=a,upperdir=upper,workdir=upper", "the same folder")
        (self.folder / "upper/mnt").mkdir()
        self.refused(self.writable(), "mount point", self.folder / "upper/mnt")

    def test_an_upper_in_use(self):
        self.fuse(self.writable())
        other, work = self.folder / "other", self.folder / "work2"
        other.mkdir()
        work.mkdir()
        for options in (self.writable(), f"lowerdir=b,upperdir={self.folder}/upper,workdir=work2"):
            result = self.fuse(options, other, check=False)
            self.assertEqual(1, result.returncode)
            self.assertIn("in use by another mount", result.stderr)
            self.assertFalse(os.path.ismount(other))
        self.assertEqual("a\n", (self.mnt / "file").read_text())

    def test_a_work_folder_on_another_file_system(self):
        disk = self.folder / "disk"
        disk.mkdir()
        run("mount", "-t", "tmpfs", "tmpfs", disk)
        (disk / "work").mkdir()
        self.refused(f"lowerdir=a,upperdir=upper,workdir={disk}/work", "another file system")
        self.assertEqual([], os.listdir(disk / "work"))

    def test_an_upper_that_is_read_only(self):
        disk = self.folder / "disk"
        disk.mkdir()
        run("mount", "-t", "tmpfs", "tmpfs", disk)
        for name in ("upper", "work"):
            (disk / name).mkdir()
        run("mount", "-o", "remount,ro", disk)
        self.refused(f"lowerdir=a,upperdir={disk}/upper,workdir={disk}/work", "Read-only file system")

    def test_an_upper_without_extended_attributes(self):
        image, disk = self.folder / "image", self.folder / "disk"
        disk.mkdir()
        with open(image, "wb") as file:
            file.truncate(8 << 20)
        if not shutil.which("mkfs.vfat") or run("mkfs.vfat", image, check=False).returncode or \
                run("mount", "-o", "loop", image, disk, check=False).returncode:
            self.skipTest("no vfat can be made")
        for name in ("upper", "work"):
            (disk / name).mkdir()
        self.refused(f"lowerdir=a,upperdir={disk}/upper,workdir={disk}/work", "extended attributes")

    def test_an_upper_whose_file_system_leaves_no_whiteouts(self):
        disk = self.folder / "disk"
        disk.mkdir()
        self.fuse(self.writable(), disk)
        for name in ("u", "w"):
            (disk / name).mkdir()
        self.refused(f"lowerdir=b,upperdir={disk}/u,workdir={disk}/w", ["work folder", "RENAME_WHITEOUT"])
        self.assertEqual([], os.listdir(disk / "w"))

    def test_layers_that_cannot_be_read(self):
        if not shutil.which("setpriv"):
            self.skipTest("needs setpriv")
        (self.folder / "b").chmod(0o700)
        self.folder.chmod(0o755)
        self.mnt.chmod(0o777)
        program = self.folder / "lamina-fuse"
        shutil.copy(support.BUILD / "fuse/lamina-fuse", program)
        result = run("setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups", program, "-o", "lowerdir=b",
                     self.mnt, check=False, cwd=self.folder)
        self.assertEqual(1, result.returncode)
        self.assertEqual("lamina-fuse: lower folder b: Permission denied\n", result.stderr)

    def test_a_wrong_command_line_exits_with_2(self):
        for options in ("lowerdir=", "lowerdir=a,uidmapping=1:2", "lowerdir=a,squash_to_uid=x", "lowerdir=a,cache=0"):
            self.refused(options, "lamina-fuse: ", status=2)
        self.refused("lowerdir=a", "mount point", "one", "two", "three", status=2)


if __name__ == "__main__":
    main()
