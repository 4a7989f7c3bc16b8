#!/usr/bin/env python3
"""What a layer, or who works on a mount, must never reach: files of the host beside the layers, others' rights."""
import errno
import os
import pwd
import shutil
import stat

import support
from rich_tree import describe
from support import main, needs_fuse, needs_root, run
from unions import UnionTest, fuse, unmount

USER = pwd.getpwnam("nobody").pw_uid  # fusermount3 wants one that has a name
OVERLAY = "trusted.overlay."


def attempt(work):
    """What a hostile tree makes of a call is not the point."""
    try:
        return work()
    except OSError as error:
        return errno.errorcode[error.errno]


class SafetyTest(UnionTest):
    def make(self, *names):
        for name in names:
            (self.folder / name).mkdir(parents=True)
        return [self.folder / name for name in names]

    def mount(self, lowers="lower", more=""):
        self.mnt = self.folder / "mnt"
        self.mnt.mkdir(exist_ok=True)
        self.addCleanup(unmount, self.mnt)
        return fuse(f"lowerdir={lowers},upperdir=upper,workdir=work{more}", self.mnt, cwd=self.folder)


def everything_on(root):
    """Tries every change on every name of a tree, the deepest first, and on what symlinks in it lead to."""
    for folder, folders, files in os.walk(root, topdown=False):
        for name in folders + files:
            path = os.path.join(folder, name)
            for follows in (False, True):
                attempt(lambda: os.chown(path, 4242, 4242, follow_symlinks=follows))
                attempt(lambda: os.utime(path, ns=(1, 1), follow_symlinks=follows))
                for attribute in ("trusted.a", "user.a", "security.a"):
                    attempt(lambda: os.setxattr(path, attribute, b"1", follow_symlinks=follows))
                    attempt(lambda: os.removexattr(path, attribute, follow_symlinks=follows))
            attempt(lambda: os.chmod(path, 0o7777))
            attempt(lambda: os.truncate(path, 1))
            attempt(lambda: os.link(path, path + ".link", follow_symlinks=False))
            attempt(lambda: os.rename(path, path + ".moved"))
            attempt(lambda: os.rename(path + ".moved", path))
            attempt(lambda: os.listdir(path))
            attempt(lambda: open(path + "/new", "w").close())
            attempt(lambda: os.mkdir(path + "/newdir"))
            attempt(lambda: os.unlink(path) if os.path.islink(path) or not os.path.isdir(path) else shutil.rmtree(path))


@needs_fuse
@needs_root
class CanaryTest(SafetyTest):
    """Beside the layers lies a folder that stays what it is, whatever links, marks and races in the layers say."""

    def setUp(self):
        super().setUp()
        self.canary, self.lower, self.upper, self.work = self.make("canary", "lower", "upper", "work")
        (self.canary / "file").write_text("content")
        (self.canary / "folder").mkdir()
        (self.canary / "folder/inside").write_text("inside")
        os.setxattr(self.canary / "file", "user.canary", b"1")
        self.before = self.state()

    def state(self):
        """Times too: even a read that goes through the wrong name shows."""
        times = [(str(path), os.lstat(path).st_ctime_ns) for path in sorted(self.canary.rglob("*"))]
        return describe(self.canary), times

    def tearDown(self):
        unmount(self.mnt)
        self.assertEqual(self.before, self.state())

    def plant(self, folder):
        """Symlinks of all kinds to the canary, in the place of files and of folders."""
        for number, target in enumerate((self.canary, self.canary / "file", "../canary", "../canary/file",
                                         "../../canary/folder", "../" * 40 + str(self.canary)[1:])):
            (folder / f"link{number}").symlink_to(target)
        (folder / "tree/sub").mkdir(parents=True)
        (folder / "tree/sub/link").symlink_to(self.canary)
        (folder / "tree/up").symlink_to("../../canary")

    def inside(self):
        """In a root of its own, where no link of the layers is followed by the kernel to the host."""
        child = os.fork()
        if child == 0:
            try:
                os.chroot(self.mnt)
                os.chdir("/")
                everything_on("/")
            finally:
                os._exit(0)
        os.waitpid(child, 0)

    def test_links_in_lowers_and_uppers(self):
        self.plant(self.lower)
        second, = self.make("second")
        self.plant(second)
        for name in ("link0", "link1"):
            (second / name).unlink()
            (second / name).mkdir()
            (second / name / "below").write_text("below")
        self.mount("lower:second")
        self.inside()
        unmount(self.mnt)
        planted, = self.make("upper/planted")
        self.plant(planted)
        self.mount("lower:second")
        self.inside()

    def test_redirects_and_origins_that_lead_outside(self):
        """[stacks.redirect]"""
        handle = bytes([0, 0xfb, 0x1d, 0, 1]) + bytes(16) + b"12345678"
        for number, value in enumerate((b"../canary", b"/../canary", b"..", b"/", b"", b"a/b", b"/" + b"x" * 4000,
                                        b"\0", os.fsencode(self.canary), b"folder\n")):
            for prefix in (OVERLAY, "user.overlay."):
                path = self.upper / f"{prefix}{number}"
                path.mkdir()
                attempt(lambda: os.setxattr(path, prefix + "redirect", value))
                attempt(lambda: os.setxattr(path, prefix + "opaque", b"nonsense"))
                file = self.upper / f"{prefix}file{number}"
                file.write_text("")
                for name, data in (("redirect", value), ("metacopy", b"\0\1\2"), ("origin", handle), ("nlink", b"U+x")):
                    attempt(lambda: os.setxattr(file, prefix + name, data))
        (self.lower / "good").write_text("good")
        self.mount()
        self.inside()
        (self.mnt / "after").write_text("serves")
        self.assertEqual("serves", (self.upper / "after").read_text())

    def test_work_and_index_that_are_links(self):
        for name in ("work", "index"):
            link = self.work / name
            link.symlink_to(self.canary)
            with self.assertRaises(AssertionError) as caught:
                self.mount()
            self.assertIn(name, str(caught.exception))
            self.assertFalse(os.path.ismount(self.mnt))
            link.unlink()
        self.mount()

    def test_links_that_appear_under_the_mount(self):
        """Layers may not change, but when they do, the server does not leave them either. [stacks.places]"""
        (self.lower / "tree/sub").mkdir(parents=True)
        (self.lower / "tree/sub/file").write_text("file")
        (self.upper / "own/sub").mkdir(parents=True)
        (self.upper / "own/sub/folder").mkdir()
        self.mount()
        for path in ("tree/sub/file", "own/sub/folder"):
            os.stat(self.mnt / path)
        for base, name in ((self.lower / "tree", "sub"), (self.upper / "own", "sub"), (self.work, "work")):
            (base / name).rename(base / "aside")
            (base / name).symlink_to(self.canary)
        for name in ("file", "folder"):
            for path in (f"tree/sub/{name}", f"own/sub/{name}", f"own/{name}"):
                attempt(lambda: (self.mnt / path).write_text("overwritten"))
                attempt(lambda: (self.mnt / path).chmod(0o777))
                attempt(lambda: (self.mnt / path).rename(self.mnt / "stolen"))
        everything_on(self.mnt / "tree")
        self.assertTrue(os.path.ismount(self.mnt))


@needs_fuse
@needs_root
class RightsTest(SafetyTest):
    PROGRAM = "/usr/bin/id"

    def as_user(self, *words, **options):
        return run("setpriv", "--reuid", USER, "--regid", USER, "--clear-groups", "--", *words, **options)

    def setUp(self):
        super().setUp()
        self.lower, self.upper, self.work = self.make("lower", "upper", "work")
        shutil.copy(self.PROGRAM, self.lower / "id")
        (self.lower / "id").chmod(0o6777)

    def runs_as(self, path):
        return self.as_user(path, "-u").stdout.strip()

    def test_a_set_id_program_of_a_nosuid_mount_gains_nothing_by_being_copied_up(self):
        self.mount(more=",nosuid")
        self.assertEqual(str(USER), self.runs_as(self.mnt / "id"))
        self.as_user("touch", self.mnt / "id")  # Which copies it up.
        self.assertTrue((self.upper / "id").exists())
        self.assertEqual(str(USER), self.runs_as(self.mnt / "id"))
        self.upper.chmod(0o700)

    def test_where_the_mount_allows_it_it_runs_as_its_owner_before_and_after(self):
        self.mount()
        self.assertEqual("0", self.runs_as(self.mnt / "id"))
        (self.mnt / "id").chmod(0o6755)
        self.assertEqual("0", self.runs_as(self.mnt / "id"))

    def test_who_writes_to_a_set_id_program_has_none(self):
        self.mount()
        self.as_user("sh", "-c", 'cat "$1" >>"$2"', "_", "/dev/null", self.mnt / "id")
        self.as_user("sh", "-c", 'echo >>"$1"', "_", self.mnt / "id")
        self.assertEqual(0o777, stat.S_IMODE((self.mnt / "id").stat().st_mode))
        self.assertEqual(0o777, stat.S_IMODE((self.upper / "id").stat().st_mode))
        self.assertEqual(str(USER), self.runs_as(self.mnt / "id"))

    def test_a_users_own_mount_gives_him_no_file_of_root(self):
        """In a mount namespace where /dev/fuse is everyone's, as it is on most machines."""
        for folder in (self.upper, self.work, *self.make("mnt")):
            os.chown(folder, USER, USER)
        shutil.copy(support.BUILD / "fuse/lamina-fuse", self.folder)
        os.mknod(self.folder / "fuse", stat.S_IFCHR | 0o600, os.makedev(10, 229))
        (self.folder / "fuse").chmod(0o666)
        user = f"setpriv --reuid {USER} --regid {USER} --clear-groups"
        script = f"""
            mount --bind fuse /dev/fuse || exit 77
            {user} ./lamina-fuse -o lowerdir=lower,upperdir=upper,workdir=work mnt || exit 77
            {user} sh -c 'touch mnt/id; chmod 4755 mnt/id; setfattr -n user.a -v 1 mnt/id; mv mnt/id mnt/moved' 2>errors
            find upper -mindepth 1 ! -type c -printf 'owner %U:%G\\n'
            for program in mnt/id mnt/moved upper/id upper/moved; do
                {user} sh -c '[ ! -x "$1" ] || echo runs as $("$1" -u)' _ $program
            done
            umount mnt; cat errors >&2"""
        result = run("unshare", "--mount", "--propagation", "slave", "sh", "-c", script, check=False, cwd=self.folder)
        if result.returncode == 77:
            self.skipTest(f"no user may mount here: {result.stderr}")
        self.assertEqual(0, result.returncode, result.stderr)
        lines = set(result.stdout.splitlines())
        self.assertIn(f"runs as {USER}", lines, result.stderr)
        self.assertLessEqual(lines, {f"owner {USER}:{USER}", f"runs as {USER}"})


if __name__ == "__main__":
    main()
