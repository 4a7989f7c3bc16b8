#!/usr/bin/env python3
"""lamina-fuse in fuse-overlayfs' place: what podman, mount(8) and users of user namespaces may count on."""
import difflib
import os
import pathlib
import re
import shutil
import subprocess
import time
import unittest

import folders_test
import support
from support import USER, main, needs_fuse, needs_program, needs_root, run

FUSE_OVERLAYFS = shutil.which("fuse-overlayfs")


@needs_fuse
@needs_root
class OptionTest(folders_test.FolderTest):
    def options_of_the_mount(self):
        return run("findmnt", "-no", "OPTIONS", self.mnt).stdout.strip().split(",")

    def test_the_version_is_one_line(self):
        result = run(support.BUILD / "fuse/lamina-fuse", "--version", stdin=subprocess.DEVNULL)
        self.assertRegex(result.stdout, r"\Alamina-fuse [0-9.]+\n\Z")
        self.assertEqual("", result.stderr)

    def test_options_of_other_programs_are_taken_without_a_word(self):
        result = self.fuse(self.writable(',fsync=0,context="system_u:object_r:container_file_t:s0:c1,c2",remount,noacl,'
                                         "redirect_dir=on,index=off,xino=off,static_nlink,timeout=1,threaded=1,"
                                         "allow_other,default_permissions,nofail,_netdev,defaults,auto,async"))
        self.assertEqual("", result.stdout + result.stderr)
        (self.mnt / "new").write_text("x")

    def test_options_of_access_times_are_the_mounts(self):
        for given, shown in (("noatime", "noatime"), ("nodiratime", None), ("relatime", "relatime"),
                             ("strictatime", None), ("atime,diratime,norelatime,lazytime", None)):
            with self.subTest(given):
                result = self.fuse(self.writable("," + given))
                self.assertEqual("", result.stderr)
                if shown:
                    self.assertIn(shown, self.options_of_the_mount())
                self.unmount()

    def test_a_mount_is_remounted_with_other_flags(self):
        self.fuse(self.writable())
        # Without the helper of the type, and by the call that the kernel answers for FUSE.
        remount = ("env", "LIBMOUNT_FORCE_MOUNT2=always", "mount", "-i", "-o")
        run(*remount, "remount,ro,noexec", self.mnt)
        self.assertLessEqual({"ro", "noexec"}, set(self.options_of_the_mount()))
        with self.assertRaises(OSError):
            (self.mnt / "new").write_text("x")
        run(*remount, "remount,rw,noatime", self.mnt)
        (self.mnt / "new").write_text("x")
        self.assertLessEqual({"rw", "noatime"}, set(self.options_of_the_mount()))
        self.unmount()
        self.assertEqual("x", (self.folder / "upper/new").read_text())

    def test_a_mount_serves_as_soon_as_the_parent_has_returned(self):
        for _ in range(8):
            self.fuse("lowerdir=a:b")
            self.assertEqual(folders_test.FUSE_MAGIC, run("stat", "-f", "-c", "%t", self.mnt).stdout.strip())
            self.assertEqual("b\n", (self.mnt / "below").read_text())
            self.unmount()

    def test_with_d_each_request_is_printed_and_it_stays_in_the_foreground(self):
        with open(self.folder / "log", "w+") as log, \
                subprocess.Popen([support.BUILD / "fuse/lamina-fuse", "-d", "-o", "lowerdir=a", self.mnt],
                                 cwd=self.folder, stdout=log, stderr=log) as process:
            end = time.monotonic() + 10
            while not os.path.ismount(self.mnt) and time.monotonic() < end:
                time.sleep(0.01)
            self.assertEqual("a\n", (self.mnt / "file").read_text())
            self.assertIsNone(process.poll())
            run("fusermount3", "-u", self.mnt)
            self.assertEqual(0, process.wait(10))
            self.assertRegex((self.folder / "log").read_text(), "LOOKUP")

    def test_however_the_mount_is_taken_away_its_processes_end(self):
        for words in (("fusermount3", "-u"), ("umount",), ("fusermount3", "-uz"), ("umount", "-l")):
            with self.subTest(words=words):
                self.fuse(self.writable())
                self.assertNotEqual([], self.servers())
                name = "-".join(words)
                (self.mnt / name).write_text("answered")
                run(*words, self.mnt)
                self.assertEqual("answered", (self.folder / "upper" / name).read_text())
                self.wait_until_gone()


SLOW_SYNC = r"""
#include <stdlib.h>
#include <unistd.h>
int syncfs(int fd) {
  (void)fd;
  while (access(getenv("SYNC_GATE"), F_OK) != 0) usleep(10000);
  return 0;
}
"""


@needs_fuse
@needs_root
@needs_program("cc")
class SlowDiskTest(folders_test.FolderTest):
    def test_the_next_mount_of_an_upper_does_not_wait_until_the_disk_has_what_the_one_before_wrote(self):
        (self.folder / "sync.c").write_text(SLOW_SYNC)
        run("cc", "-shared", "-fPIC", "-o", self.folder / "sync.so", self.folder / "sync.c")
        slow = {**os.environ, "LD_PRELOAD": str(self.folder / "sync.so"), "SYNC_GATE": str(self.folder / "gate")}
        self.fuse(self.writable(), env=slow)
        (self.mnt / "new").write_text("x")
        self.unmount()
        before = self.servers()
        self.fuse(self.writable())
        self.assertEqual("x", (self.mnt / "new").read_text())
        self.assertNotEqual([], [server for server in before if server in self.servers()])
        self.unmount()
        (self.folder / "gate").touch()
        self.wait_until_gone()


OWNERS_SCRIPT = r"""
show() { (cd "$1" && find . -mindepth 1 -printf '%P %y %U:%G %m\n' | sort); }
said() { sed 's/.*: //'; }
cd "$1"; mkdir a upper work mnt
for id in 0 5 70000; do
  mkdir a/d$id; echo x > a/f$id; chown $id:$id a/d$id a/f$id; chmod 777 a/d$id; chmod 666 a/f$id
done
"$PROGRAM" -o "lowerdir=a,upperdir=upper,workdir=work,$OPTIONS" mnt 2>/dev/null
echo shown; show mnt
echo more >> mnt/f5; chmod 640 mnt/f70000; mkdir mnt/folder; ln -s x mnt/link
for id in $IDS; do
  setpriv --reuid $id --regid $id --clear-groups touch mnt/d0/by$id 2>&1 | said
  touch mnt/own$id; chown $id:$id mnt/own$id 2>&1 | said
done
echo changed; show mnt
umount mnt
"""


@needs_fuse
@needs_root
@needs_program("setpriv")
@unittest.skipUnless(FUSE_OVERLAYFS, "needs fuse-overlayfs")
class OwnersTest(folders_test.FolderTest):
    maxDiff = None

    def outcome(self, program, options, ids):
        folder = self.folder / pathlib.Path(program).name
        folder.mkdir()
        environment = {**os.environ, "PROGRAM": str(program), "OPTIONS": options, "IDS": ids}
        text = run("sh", "-c", OWNERS_SCRIPT, "_", folder, env=environment).stdout
        end = time.monotonic() + 10
        while os.path.ismount(folder / "mnt") and time.monotonic() < end:
            time.sleep(0.01)
        find = ("find", folder / "upper", "-mindepth", "1", "!", "-name", ".wh.*", "-printf", "%P %y %U:%G %m\n")
        kept = run(*find).stdout
        shutil.rmtree(folder)
        return [*text.splitlines(), *sorted(kept.splitlines())]

    def test_owners_are_shown_and_kept_as_fuse_overlayfs_does(self):
        self.folder.chmod(0o755)
        for options, ids in (("uidmapping=:0:100000:65536,gidmapping=:0:100000:65536", "0 5 100000 165535 300000"),
                             ("uidmapping=0:1000:10:10:3000:5,gidmapping=0:2000:10:10:3000:5", "0 1000 1009 3004 2003"),
                             ("squash_to_uid=77,squash_to_gid=78", "0 5 77 78"), ("squash_to_root", "0 5")):
            with self.subTest(options):
                theirs, ours = (self.outcome(program, options, ids)
                                for program in (FUSE_OVERLAYFS, support.BUILD / "fuse/lamina-fuse"))
                self.assertIn("own0", "\n".join(theirs))
                self.assertEqual("", "\n".join(difflib.unified_diff(theirs, ours, lineterm="")))


USER_SCRIPT = r"""
set -eu
mkdir low up work mnt low/tree low/closed; echo low > low/file; echo low > low/tree/leaf
echo low > low/closed/open; chmod 555 low/closed
mount_it() { "$FUSE" -o "lowerdir=low,upperdir=up,workdir=work$1" mnt; }
change() {
  stat -f -c %t mnt; cat mnt/file; echo "$1" > mnt/new; echo more >> mnt/file; rm mnt/tree/leaf; mv mnt/tree mnt/moved
  ln mnt/file mnt/link; chmod 600 mnt/file; ls mnt mnt/moved; cat up/new up/link; stat -c '%h %a' mnt/file
  exec 3>> mnt/closed/open; chmod 0 mnt/closed/open; echo more >&3; exec 3>&-
  chmod 444 mnt/closed/open; cat up/closed/open; stat -c %a up/closed up/closed/open
}
forget() { chmod -R u+rwX up; rm -rf up work; mkdir up work; }
mount_it ""; change user; fusermount3 -u mnt; cat up/new; ls up; forget
unshare --user --map-root-user --mount --propagation slave sh -euc "$(cat "$HOME/functions")
  mount_it ,volatile; change root; stat -c %u:%g mnt/new; umount mnt; cat up/new"
forget
unshare --user --map-root-user --map-auto --mount --propagation slave sh -euc "$(cat "$HOME/functions")
  mount_it ,volatile; change mapped; chown 5:6 mnt/new mnt/moved; stat -c %u:%g mnt/new mnt/moved
  setpriv --reuid 5 --regid 6 --clear-groups touch mnt/moved/mine; stat -c %u:%g mnt/moved/mine up/moved/mine
  umount mnt
  mount_it ''; stat -c %u:%g mnt/moved/mine; fusermount3 -u mnt; chmod -R u+rwX up; rm -rf up work"
"""
CHANGED = ["65735546", "low", "mnt:", "closed", "file", "link", "moved", "new", "", "mnt/moved:"]


@needs_fuse
@needs_root
@needs_program("fusermount3")
@needs_program("newuidmap")
class UserTest(folders_test.FolderTest):
    def test_it_mounts_for_a_user_and_for_the_root_of_a_user_namespace(self):
        """[upper.unprivileged]"""
        home = self.folder / "home"
        home.mkdir()
        (home / "script").write_text(USER_SCRIPT)
        (home / "functions").write_text(re.search(r"^mount_it.*?^forget[^\n]*", USER_SCRIPT, re.M | re.S).group())
        (home / "build").mkdir()
        run("chown", "-R", f"{USER}:{USER}", home)
        self.folder.chmod(0o755)
        self.mnt = home / "mnt"
        words = support.as_user(home, home / "script", [(support.BUILD, home / "build")])
        environment = {"PATH": os.environ["PATH"], "HOME": str(home), "FUSE": str(home / "build/fuse/lamina-fuse")}
        result = run(*words, env=environment, timeout=60, check=False)
        self.assertEqual((0, ""), (result.returncode, result.stderr), result.stdout)
        lines = []
        for who, more in (("user", ["user", "closed", "file", "link", "moved", "new", "tree"]),
                          ("root", ["0:0", "root"]), ("mapped", ["5:6", "5:6", "5:6", "5:6", "5:6"])):
            lines += [*CHANGED, who, "low", "more", "2 600", "low", "more", "555", "444", *more]
        self.assertEqual(lines, result.stdout.splitlines())
        self.wait_until_gone()


if __name__ == "__main__":
    main()
