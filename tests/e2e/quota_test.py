#!/usr/bin/env python3
"""Limits on the changes of a mount, through the kernel: of an image in the store, and of an upper folder."""
import errno
import json
import mmap
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import support
from support import Layout, StoreTest, entry, layer, main, needs_fuse, needs_root, run, wait_for

BLOCK = 4096
MIB = 1 << 20


def size_of(path):
    """What df shows: size and use, in bytes and in inodes."""
    status = os.statvfs(path)
    return {"bytes": status.f_blocks * status.f_frsize, "inodes": status.f_files,
            "used_bytes": (status.f_blocks - status.f_bfree) * status.f_frsize,
            "used_inodes": status.f_files - status.f_ffree}


class QuotaCase:
    def assert_refused(self, work, *arguments):
        with self.assertRaises(OSError) as caught:
            work(*arguments)
        self.assertEqual(errno.EDQUOT, caught.exception.errno)

    def append(self, path, size_bytes):
        """One write(2); how much of it was taken."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            return os.write(fd, b"x" * size_bytes)
        finally:
            os.close(fd)

    def wait_for_use(self, size_bytes):
        """A file that was removed goes when the kernel has said so."""
        wait_for(lambda: self.quota()["used_bytes"] <= size_bytes)


class Attacks(QuotaCase):
    """What might get past a limit, on mounts of each kind: `mnt`, with the files small and big (1 MiB) below;
    set_quota(LIMITS); quota(). `slack`: by how much a folder's own blocks may pass a limit."""
    slack = 0

    def assert_holds(self, limit):
        self.assertLessEqual(self.quota()["used_bytes"], limit + self.slack)

    def begin(self, blocks, inodes=0):
        """A limit of so many blocks more than what is used."""
        limit = self.quota()["used_bytes"] + blocks * BLOCK
        self.set_quota(f"{limit}:{inodes}")
        return limit

    def test_holes_cost_nothing_until_they_are_filled(self):
        """[quota.account] [quota.upper]"""
        limit = self.begin(8)
        with open(self.mnt / "sparse", "wb", buffering=0) as file:
            file.truncate(1 << 40)
            file.truncate(1 << 30)
            for number in range(7):
                self.assertEqual(1, os.pwrite(file.fileno(), b"x", number << 20))
            for number in range(20, 40):
                try:
                    os.pwrite(file.fileno(), b"x", number << 20)
                except OSError as error:
                    self.assertEqual(errno.EDQUOT, error.errno)
            self.assert_refused(os.pwrite, file.fileno(), b"x" * 9 * BLOCK, 1 << 29)
            self.assert_holds(limit)
            file.truncate(0)
            self.assertEqual(6 * BLOCK, os.pwrite(file.fileno(), b"x" * 6 * BLOCK, 0))
            file.truncate(BLOCK)
            self.assertEqual(5 * BLOCK, os.pwrite(file.fileno(), b"x" * 5 * BLOCK, BLOCK))
        self.assert_holds(limit)

    def test_unnamed_files_and_unlinked_ones_count_while_they_are_open(self):
        """[quota.account] [quota.upper]"""
        limit = self.begin(16)
        before = self.quota()["used_bytes"]
        unnamed = os.open(self.mnt, os.O_TMPFILE | os.O_RDWR)
        self.assertEqual(8 * BLOCK, os.write(unnamed, b"u" * 8 * BLOCK))
        unlinked = os.open(self.mnt / "unlinked", os.O_CREAT | os.O_RDWR)
        self.assertEqual(6 * BLOCK, os.write(unlinked, b"u" * 6 * BLOCK))
        os.unlink(self.mnt / "unlinked")
        self.assert_refused(os.write, unnamed, b"x" * 4 * BLOCK)
        self.assert_refused(os.write, unlinked, b"x" * 4 * BLOCK)
        self.assertGreaterEqual(self.quota()["used_bytes"], before + 14 * BLOCK)
        os.close(unlinked)
        self.wait_for_use(before + 8 * BLOCK + self.slack)
        os.link(f"/proc/self/fd/{unnamed}", self.mnt / "named", src_dir_fd=unnamed, follow_symlinks=True)
        os.close(unnamed)
        self.assertEqual(8 * BLOCK, (self.mnt / "named").stat().st_size)
        self.assertGreaterEqual(self.quota()["used_bytes"], before + 8 * BLOCK)
        os.unlink(self.mnt / "named")
        self.wait_for_use(before + self.slack)
        self.assert_holds(limit)

    def test_names_cost_no_data_and_the_last_one_frees_it(self):
        """[quota.account] [quota.removing]"""
        self.begin(8)
        before = self.quota()["used_bytes"]
        self.append(self.mnt / "one", 6 * BLOCK)
        for name in "abc":
            os.link(self.mnt / "one", self.mnt / name)
        self.assertLessEqual(self.quota()["used_bytes"], before + 6 * BLOCK + self.slack)
        self.assert_refused(self.append, self.mnt / "a", 4 * BLOCK)
        for name in ("one", "a", "b"):
            os.unlink(self.mnt / name)
        self.assertGreaterEqual(self.quota()["used_bytes"], before + 6 * BLOCK)
        self.append(self.mnt / "over", 1)
        os.rename(self.mnt / "over", self.mnt / "c")
        self.wait_for_use(before + BLOCK + self.slack)
        self.assertEqual(6 * BLOCK, self.append(self.mnt / "c", 6 * BLOCK))

    def test_a_mapping_that_finds_no_room_says_so_when_it_is_synced(self):
        """[quota.mapped]"""
        limit = self.begin(8)
        with open(self.mnt / "mapped", "w+b") as file:
            file.truncate(64 * BLOCK)
            mapped = mmap.mmap(file.fileno(), 64 * BLOCK)
            mapped[:] = b"m" * (64 * BLOCK)
            with self.assertRaises(OSError):
                mapped.flush()
            self.assert_holds(limit)
            mapped.close()
        os.unlink(self.mnt / "mapped")
        self.assertEqual(BLOCK, self.append(self.mnt / "goes on", BLOCK))

    def test_writes_past_the_end_of_numbers(self):
        """[quota.refused]"""
        limit = self.begin(4)
        file = os.open(self.mnt / "far", os.O_CREAT | os.O_RDWR)
        self.addCleanup(os.close, file)
        for offset in (2**63 - 1, 2**63 - BLOCK):
            with self.assertRaises(OSError):
                os.pwrite(file, b"x" * BLOCK, offset)
        for offset, size in ((0, 2**62), (2**62, 2**62), (0, 2**63 - 1), (BLOCK, 5 * BLOCK)):
            with self.assertRaises(OSError):
                os.posix_fallocate(file, offset, size)
        self.assert_holds(limit)
        self.assertEqual(2 * BLOCK, os.pwrite(file, b"x" * 2 * BLOCK, 0))

    def test_ranges_that_are_copied_count(self):
        """[quota.refused]"""
        limit = self.begin(16)
        source = os.open(self.mnt / "big", os.O_RDONLY)
        target = os.open(self.mnt / "copy", os.O_CREAT | os.O_RDWR)
        copied = 0
        try:
            while copied < MIB:
                copied += os.copy_file_range(source, target, MIB - copied)
        except OSError as error:
            self.assertEqual(errno.EDQUOT, error.errno)
        os.close(source)
        os.close(target)
        self.assertLess(copied, 17 * BLOCK)
        self.assert_holds(limit)

    def test_xattrs_can_be_removed_at_a_limit(self):
        """[quota.removing]"""
        os.setxattr(self.mnt / "small", "user.a", b"a" * 2000)
        self.set_quota("1:1")
        os.removexattr(self.mnt / "small", "user.a")
        self.assert_refused(self.append, self.mnt / "new", 8 * BLOCK)
        os.unlink(self.mnt / "small")
        os.unlink(self.mnt / "big")

    def test_many_at_once_do_not_pass_a_limit(self):
        """[quota.refused]"""
        limit = self.begin(64)
        script = """
import os, random, sys
random.seed(int(sys.argv[2]))
for step in range(400):
    path = os.path.join(sys.argv[1], "f%d" % random.randrange(8))
    try:
        kind = random.randrange(4)
        if kind == 0: os.unlink(path)
        elif kind == 1: os.truncate(path, random.randrange(100_000))
        else:
            fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
            try: os.pwrite(fd, b"x" * random.randrange(1, 60_000), random.randrange(100_000))
            finally: os.close(fd)
    except OSError as error:
        if error.errno not in (122, 2): raise
"""
        writers = [subprocess.Popen([sys.executable, "-c", script, self.mnt, str(seed)]) for seed in range(3)]
        while any(writer.poll() is None for writer in writers):
            self.assert_holds(limit)
        self.assertEqual([0, 0, 0], [writer.returncode for writer in writers])
        for name in os.listdir(self.mnt):
            os.unlink(self.mnt / name)
        self.wait_for_use(limit - 64 * BLOCK + self.slack)

    def test_limits_that_make_no_sense(self):
        """[quota.live]"""
        before = self.quota()
        for text in ("-1", "1:", "18446744073709551616", "4611686018427387904", "9999999T", "1e9", "0x10", "1.5G"):
            self.assertTrue(self.refusal(text), text)
        self.assertEqual(before, self.quota())
        self.set_quota("4611686018427387903:4611686018427387903")
        self.assertEqual(BLOCK, self.append(self.mnt / "new", BLOCK))
        self.assertGreater(size_of(self.mnt)["bytes"], 1 << 61)
        self.set_quota("1:1")
        self.assertEqual(0, size_of(self.mnt)["bytes"])
        self.assert_refused(self.append, self.mnt / "new", 8 * BLOCK)
        self.assert_refused(os.mkdir, self.mnt / "folder")
        self.set_quota("0")
        self.assertEqual(BLOCK, self.append(self.mnt / "new", BLOCK))


@needs_fuse
class StoreQuota(StoreTest, QuotaCase):
    def setUp(self):
        super().setUp()
        Layout(self.lamina.folder / "layout").add("test:1", [layer(
            entry("etc", "dir"), entry("etc/motd", data="hello\n" * 1000), entry("etc/hosts", data="localhost"))])
        self.lamina.call("import", f"oci:{self.lamina.folder}/layout")
        self.target = self.lamina.make_folder("mnt")

    def mount(self, *words):
        self.lamina.call("mount", *words, self.target)

    def quota(self, *words):
        return self.lamina.json("quota", "work", *words)

    def test_a_limit_holds_is_shown_and_is_kept(self):
        """[quota.refused] [quota.statfs] [quota.kept]"""
        self.mount("test:1", "--name", "work", "--quota", "1M,50")
        shown = size_of(self.target)
        self.assertEqual((MIB, 50, 0), (shown["bytes"], shown["inodes"], shown["used_bytes"]))
        self.assertEqual(MIB, self.append(self.target / "full", MIB))
        self.assert_refused(self.append, self.target / "full", 1)
        self.assert_refused(self.append, self.target / "etc/motd", 1)
        self.assertEqual(MIB, (self.target / "full").stat().st_size)
        self.assertEqual("hello\n" * 1000, (self.target / "etc/motd").read_text())
        (self.target / "etc/hosts").unlink()
        used = self.quota()
        self.assertEqual(MIB, used["used_bytes"])
        shown = size_of(self.target)
        self.assertEqual((used["used_bytes"], used["used_inodes"]), (shown["used_bytes"], shown["used_inodes"]))

        self.lamina.call("umount", "work")
        self.mount("test:1", "--name", "work")
        self.assertEqual(used, self.quota())
        self.assert_refused(self.append, self.target / "full", 1)
        self.lamina.call("umount", "work")
        self.mount("test:1", "--name", "work", "--quota", "2M")
        self.assertEqual({"bytes": 2 * MIB, "inodes": 0}, {key: self.quota()[key] for key in ("bytes", "inodes")})
        self.assertEqual(1, self.append(self.target / "full", 1))

    def test_inodes(self):
        self.mount("test:1", "--name", "work", "--quota", "0,10")
        made = 0
        with self.assertRaises(OSError) as caught:
            for made in range(100):
                (self.target / f"file{made}").touch()
        self.assertEqual(errno.EDQUOT, caught.exception.errno)
        self.assertEqual(9, made)  # The root counts: its times have changed.
        self.assert_refused(os.mkdir, self.target / "folder")
        self.assert_refused(os.chmod, self.target / "etc/motd", 0o600)
        self.assertNotIn("folder", os.listdir(self.target))
        (self.target / "file0").unlink()
        (self.target / "again").touch()
        self.assert_refused(os.symlink, "x", self.target / "symlink")

    def test_limits_change_while_it_runs(self):
        """[quota.live]"""
        self.mount("test:1", "--name", "work")
        self.assertEqual({"bytes": 0, "inodes": 0}, {key: self.quota()[key] for key in ("bytes", "inodes")})
        with open(self.target / "open", "wb", buffering=0) as file:
            self.assertEqual(8 * BLOCK, file.write(b"x" * 8 * BLOCK))
            self.assertEqual(4 * BLOCK, self.quota("16K")["bytes"])
            self.assert_refused(file.write, b"y")
            self.assertEqual(8 * BLOCK, self.quota()["used_bytes"])
            self.quota("64K,1000")
            self.assertEqual(8 * BLOCK, file.write(b"y" * 8 * BLOCK))
            self.assert_refused(file.write, b"z")
            self.quota("0")
            self.assertEqual(BLOCK, file.write(b"z" * BLOCK))
        self.assertIn("no limit", self.lamina.call("quota", "work").stdout)
        self.assertEqual(17 * BLOCK, self.lamina.mounts()["work"]["server"]["changes"]["used_bytes"])

    def test_data_that_was_mapped_and_removed_files(self):
        self.mount("test:1", "--name", "work", "--quota", "64K")
        file = open(self.target / "held", "wb", buffering=0)
        file.write(b"x" * 16 * BLOCK)
        os.unlink(self.target / "held")
        self.assert_refused(self.append, self.target / "next", 1)
        file.close()
        os.sync()
        self.assertEqual(1, self.append(self.target / "next", 1))

    def test_what_is_refused(self):
        for text in ("x", "-1", "1,2,3", "10Q", ""):
            self.assertIn("quota", self.lamina.fails("mount", "test:1", self.target, "--quota", text or ","))
        self.mount("test:1", "--name", "work", "--ro")
        self.assertIn("read-only", self.lamina.fails("quota", "work", "1M"))
        self.lamina.call("umount", "work")
        self.mount("test:1", "--name", "kept")
        self.lamina.call("umount", "kept")
        self.assertIn("not mounted", self.lamina.fails("quota", "kept", "1M"))
        self.assertIn("no mount", self.lamina.fails("quota", "nothing"))


@needs_fuse
class ImageAttacks(StoreTest, Attacks):
    def setUp(self):
        super().setUp()
        Layout(self.lamina.folder / "layout").add("test:1", [layer(
            entry("big", data=b"b" * MIB), entry("small", data="small"))])
        self.lamina.call("import", f"oci:{self.lamina.folder}/layout")
        self.mnt = self.lamina.make_folder("mnt")
        self.lamina.call("mount", "test:1", "--name", "work", self.mnt)

    def quota(self):
        return self.lamina.json("quota", "work")

    def set_quota(self, text):
        self.lamina.call("quota", "work", text.replace(":", ","))

    def refusal(self, text):
        return self.lamina.fails("quota", "work", "--", text.replace(":", ","))

    def server(self):
        return self.lamina.mounts()["work"]["server"]

    def kill(self):
        """Returns when the next server answers."""
        server = self.server()
        os.kill(server["pid"], signal.SIGKILL)
        wait_for(lambda: (self.server() or server)["pid"] != server["pid"])  # None: it takes longer to start.

    def remount(self):
        self.lamina.call("umount", "work")
        self.lamina.call("mount", "test:1", "--name", "work", self.mnt)

    def test_what_was_set_last_holds_in_the_next_server_and_at_the_next_mount(self):
        """[quota.kept] [quota.account]"""
        self.lamina.call("umount", "work")
        self.lamina.call("mount", "test:1", "--name", "work", self.mnt, "--quota", "1M,100")
        self.append(self.mnt / "full", 16 * BLOCK)
        self.set_quota("64K:7")
        known = self.quota()
        self.assertEqual((16 * BLOCK, 7, 16 * BLOCK), (known["bytes"], known["inodes"], known["used_bytes"]))
        for again in (self.kill, self.kill, self.remount, self.kill):
            again()
            self.assertEqual(known, self.quota())
            self.assert_refused(self.append, self.mnt / "full", 1)
            self.assertEqual(16 * BLOCK, size_of(self.mnt)["bytes"])

    def test_a_kept_limit_that_is_damaged_is_told_and_harms_no_mount_that_runs(self):
        """[quota.kept]"""
        self.set_quota("64K")
        kept = pathlib.Path(self.lamina.mounts()["work"]["folder"], "quota")
        kept.write_text("lamina-quota 1\n64K")
        self.kill()
        self.assertEqual("small", (self.mnt / "small").read_text())
        self.set_quota("64K")
        kept.write_text("nonsense")
        self.lamina.call("umount", "work")
        self.assertIn("quota", self.lamina.fails("mount", "test:1", "--name", "work", self.mnt))
        self.lamina.call("mount", "test:1", "--name", "work", "--quota", "1M", self.mnt)
        self.assertEqual(MIB, self.quota()["bytes"])

    def test_servers_that_die_near_a_limit(self):
        """[quota.kept] [quota.refused] [quota.account]"""
        limit = self.begin(32)
        script = """
import os, random, sys
random.seed(int(sys.argv[2]))
sizes = {}
for step in range(100_000):
    path = os.path.join(sys.argv[1], "w%s-%d" % (sys.argv[2], random.randrange(4)))
    if os.path.exists(os.path.join(sys.argv[1], "stop")): break
    try:
        if random.randrange(3) == 0:
            if os.path.exists(path): os.unlink(path)
            sizes[path] = 0
        else:
            with open(path, "ab", buffering=0) as file: sizes[path] = sizes.get(path, 0) + file.write(b"x" * 9000)
    except OSError as error:
        if error.errno != 122: raise
    if os.path.exists(path): assert os.path.getsize(path) == sizes.get(path, 0), (path, os.path.getsize(path), sizes)
"""
        writers = [subprocess.Popen([sys.executable, "-c", script, self.mnt, str(seed)]) for seed in range(2)]
        for number in range(12):
            time.sleep(0.05 * (number % 3))
            self.kill()
            self.assert_holds(limit)
        (self.mnt / "stop").touch()
        self.assertEqual([0, 0], [writer.wait(120) for writer in writers])
        self.assertEqual(12, self.server()["restarts"])
        known = self.quota()
        self.remount()  # Frees unlinked files of which the kernel's last word was lost with a server.
        for what, used in self.quota().items():
            self.assertLessEqual(used, known[what], what)
        for name in os.listdir(self.mnt):
            os.unlink(self.mnt / name)
        self.wait_for_use(0)


class UpperCase(unittest.TestCase, QuotaCase):
    base = "/dev/shm"  # Where folders and xattrs take no blocks.

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="lamina-quota-", dir=self.base))
        self.addCleanup(self.take_away)
        for name in ("lower", "upper", "work", "mnt"):
            (self.folder / name).mkdir()
        (self.folder / "lower/big").write_bytes(b"b" * MIB)
        (self.folder / "lower/small").write_text("small")
        self.mnt = self.folder / "mnt"

    def take_away(self):
        run("umount", "-l", self.mnt, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def mount(self, quota):
        options = ",".join(f"{key}={self.folder}/{name}" for key, name in
                           (("lowerdir", "lower"), ("upperdir", "upper"), ("workdir", "work")))
        run(support.BUILD / "fuse/lamina-fuse", "-o", f"{options},quota={quota}", self.mnt)

    def program(self, word, check=True):
        return run(support.BUILD / "fuse/lamina-fuse", "--state", self.folder / "work", word, check=check)

    def quota(self, limit=None):
        word = "--quota" if limit is None else f"--quota={limit}"
        return json.loads(self.program(word).stdout)


@needs_fuse
@needs_root
class UpperQuota(UpperCase):
    def test_a_limit_holds_is_shown_and_changes_while_it_runs(self):
        """[quota.refused] [quota.upper] [quota.live] [quota.statfs]"""
        self.mount("512K:6")
        self.assertEqual(MIB // 2, self.append(self.mnt / "new", MIB // 2))
        self.assert_refused(self.append, self.mnt / "new", 1)
        self.assert_refused(self.append, self.mnt / "big", 1)
        self.assertEqual(["new"], os.listdir(self.folder / "upper"))
        shown = size_of(self.mnt)
        self.assertEqual({"bytes": MIB // 2, "inodes": 6, "used_bytes": MIB // 2, "used_inodes": 1}, shown)
        (self.mnt / "small").unlink()
        self.assertEqual(2, size_of(self.mnt)["used_inodes"])

        self.assertEqual(2 * MIB, self.quota("2M")["bytes"])
        self.assertEqual(1, self.append(self.mnt / "big", 1))
        used = self.quota()
        self.assertEqual(MIB + MIB // 2 + BLOCK, used["used_bytes"])
        run("umount", self.mnt)
        self.mount("1K")
        self.assertEqual(used["used_bytes"], self.quota()["used_bytes"])
        self.assertEqual(used["used_inodes"], self.quota()["used_inodes"])
        self.assert_refused(self.append, self.mnt / "new", 1)
        (self.mnt / "big").unlink()
        self.assertEqual(MIB // 2, self.quota()["used_bytes"])
        self.assertEqual(0, self.quota("0")["bytes"])
        self.assertEqual(1, self.append(self.mnt / "new", 1))

    def test_a_full_upper_can_be_emptied(self):
        """[quota.removing]"""
        self.mount("0:4")
        for name in "abcd":
            (self.mnt / name).touch()
        self.assert_refused((self.mnt / "e").touch)
        self.assert_refused(os.rename, self.mnt / "small", self.mnt / "moved")
        for name in os.listdir(self.mnt):
            (self.mnt / name).unlink()
        self.assertEqual([], os.listdir(self.mnt))
        (self.mnt / "new").touch()

    def test_wrong_limits_are_refused(self):
        for text in ("", "x", "1:2:3"):
            with self.assertRaisesRegex(AssertionError, "quota"):
                self.mount(text)
            self.assertFalse(os.path.ismount(self.mnt))


@needs_fuse
@needs_root
class UpperAttacks(UpperCase, Attacks):
    slack = 4 * BLOCK

    def setUp(self):
        super().setUp()
        self.mount("0")
        self.set_quota("1T")

    def set_quota(self, text):
        self.quota(text)

    def refusal(self, text):
        ran = self.program(f"--quota={text}", check=False)
        return ran.returncode in (1, 2) and len(ran.stderr.strip().splitlines()) == 1

    def test_what_is_counted_is_what_lies_there(self):
        """[quota.upper]"""
        random.seed(1)
        for number in range(200):
            path = self.mnt / f"f{random.randrange(12)}"
            with open(path, "ab") as file:
                file.write(b"x" * random.randrange(50_000))
            if number % 3 == 0:
                os.truncate(path, random.randrange(100_000))
            if number % 5 == 0:
                os.rename(path, self.mnt / f"f{random.randrange(12)}")
            if number % 7 == 0:
                os.sync()
        os.sync()
        counted = self.quota()
        self.quota("0")
        self.quota("1T")
        self.assertLessEqual(abs(self.quota()["used_bytes"] - counted["used_bytes"]), self.slack)
        self.assertEqual(self.quota()["used_inodes"], counted["used_inodes"])


class DiskAttacks(UpperAttacks):
    base = os.environ.get("TMPDIR", "/var/tmp")


if __name__ == "__main__":
    main()
