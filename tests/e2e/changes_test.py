#!/usr/bin/env python3
"""Changes to a mounted image: made by real programs, kept, listed, committed, saved, and run by other runtimes.

The real image is the first one of the layout that LAMINA_CORPUS names. Without it, a minimal Debian is made from the
machine's own package sources and kept in /var/cache/lamina-test (an ordinary user's: in TMPDIR).
"""
import functools
import gzip
import hashlib
import json
import os
import pathlib
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import unittest

import support
from support import (IS_ROOT, USER, Lamina, Layout, entry, layer, main, manifest, needs_fuse, needs_program,
                     needs_root, run)

SMALL_CHANGE = 1 << 20  # what is allocated ahead, for data and for the log, stays below this
PLAIN = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
HELLO_C = '#include <stdio.h>\nint main(void) { puts("compiled on the mount"); return 0; }\n'


# ---- the real image -----------------------------------------------------------------------------------------------

@functools.cache
def cache_folder():
    """Where what was downloaded is kept from run to run."""
    folder = pathlib.Path("/var/cache/lamina-test" if IS_ROOT else
                          os.path.join(os.environ.get("TMPDIR", "/var/tmp"), f"lamina-test-{os.geteuid()}"))
    folder.mkdir(mode=0o755, exist_ok=True)
    if folder.lstat().st_uid != os.geteuid():
        raise unittest.SkipTest(f"{folder} is another user's")
    return folder


def make_minimal_debian(path):
    """A tar of a minimal Debian, of this machine's release."""
    lines = pathlib.Path("/etc/os-release").read_text().splitlines()
    release = dict(line.split("=", 1) for line in lines if "=" in line).get("VERSION_CODENAME", "bookworm").strip('"')
    with tempfile.TemporaryDirectory(prefix="lamina-debian-", dir=cache_folder()) as work:
        tar = pathlib.Path(work) / "debian.tar"
        if IS_ROOT and shutil.which("mmdebstrap"):
            run("mmdebstrap", "--quiet", "--variant=minbase", release, tar, timeout=400,
                env={**os.environ, "TMPDIR": work})
        else:
            os.chmod(work, 0o755)
            packages = ["base-files", "libc6", "libgcc-s1", "dash", "coreutils", "libacl1", "libattr1", "libselinux1",
                        "libpcre2-8-0", "libgmp10", "bash", "libtinfo6", "sed", "grep", "tzdata"]
            run("apt-get", "download", *packages, cwd=work)
            for package in packages:  # base-files first: it makes the links of the root
                run("dpkg-deb", "-x", *pathlib.Path(work).glob(f"{package}_*.deb"), f"{work}/root")
            run("tar", "--create", "--owner=0", "--group=0", "--file", tar, "-C", f"{work}/root", ".")
        os.replace(tar, path)


@functools.cache
def real_image():
    """(layout, name) of a Debian image. Skips the test where there is none and none can be made."""
    if os.environ.get("LAMINA_CORPUS"):
        corpus = pathlib.Path(os.environ["LAMINA_CORPUS"])
        first = json.loads((corpus / "index.json").read_text())["manifests"][0]
        return corpus, first["annotations"]["org.opencontainers.image.ref.name"]
    layout = cache_folder() / "layout"
    if not layout.exists():
        tar = cache_folder() / "debian.tar"
        try:
            make_minimal_debian(tar)
        except (AssertionError, OSError, subprocess.SubprocessError) as error:
            raise unittest.SkipTest(f"no LAMINA_CORPUS, and no Debian can be made here: {error}") from None
        made = pathlib.Path(tempfile.mkdtemp(prefix="layout-", dir=cache_folder()))
        Layout(made).add("debian:test", [tar.read_bytes()], compress=functools.partial(gzip.compress, compresslevel=1))
        tar.unlink()
        os.replace(made, layout)
    return layout, "debian:test"


@functools.cache
def small_package():
    """A .deb that needs the C library alone."""
    folder = cache_folder()
    if not list(folder.glob("hello_*.deb")):
        try:
            run("apt-get", "download", "hello", cwd=folder)
        except AssertionError as error:
            raise unittest.SkipTest(f"needs the package hello: {error}") from None
    return next(folder.glob("hello_*.deb"))


class RealImageTest(unittest.TestCase):
    """Tests on one store that holds the real image; each has mounts of its own."""

    @classmethod
    def setUpClass(cls):
        cls.layout, cls.image = real_image()
        cls.lamina = Lamina()
        cls.addClassCleanup(cls.lamina.close)
        cls.lamina.call("import", f"oci:{cls.layout}:{cls.image}")

    def mount(self, name, *options):
        target = self.lamina.make_folder(name)
        self.lamina.call("mount", self.image, target, "--name", name, *options)
        self.addCleanup(self.lamina.call, "umount", name, "--discard", check=False)
        return target

    def diff(self, name):
        return self.lamina.call("diff", name).stdout.splitlines()


def blob(layout, digest):
    return pathlib.Path(layout) / "blobs" / digest.replace(":", "/")


def documents(layout, tag):
    """The manifest and the config of an image of a layout."""
    index = json.loads((pathlib.Path(layout) / "index.json").read_text())["manifests"]
    described = [one for one in index
                 if one.get("annotations", {}).get("org.opencontainers.image.ref.name") in (tag, tag.split(":")[-1])]
    assert len(described) == 1, index
    document = json.loads(blob(layout, described[0]["digest"]).read_text())
    return document, json.loads(blob(layout, document["config"]["digest"]).read_text())


# ---- what real programs do -----------------------------------------------------------------------------------------

def install_package(target):
    shutil.copy(small_package(), target / "root/hello.deb")
    run("chroot", target, "dpkg", "-i", "/root/hello.deb", env=PLAIN)
    (target / "root/hello.deb").unlink()


def commit_with_git(folder):
    folder.mkdir()
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    for person in ("AUTHOR", "COMMITTER"):
        environment |= {f"GIT_{person}_NAME": "Test", f"GIT_{person}_EMAIL": "test@example.org"}
    for number in range(50):
        (folder / f"file{number}").write_text(f"{number}\n" * 1000)

    def git(*words):
        return run("git", *words, cwd=folder, env=environment).stdout
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    (folder / "file0").write_text("changed\n")
    git("mv", "file1", "moved")
    git("commit", "--quiet", "-am", "second")
    git("gc", "--quiet")
    git("fsck", "--strict")
    assert not git("status", "--porcelain")
    assert len(git("log", "--oneline").splitlines()) == 2


def compile_program(folder):
    (folder / "program.c").write_text(HELLO_C)
    run("gcc", "-O1", "-g", "-static", "-o", folder / "program", folder / "program.c")
    assert run(folder / "program").stdout == "compiled on the mount\n"


def write_database(path, mode):
    """Transactions that are committed, and one that is rolled back."""
    database = sqlite3.connect(path, isolation_level=None)
    assert database.execute(f"PRAGMA journal_mode={mode}").fetchone()[0] == mode
    database.execute("PRAGMA synchronous=NORMAL")
    database.execute("CREATE TABLE data (number INTEGER PRIMARY KEY, bytes BLOB)")
    for transaction in range(20):
        database.execute("BEGIN")
        database.executemany("INSERT INTO data VALUES (?, ?)", [(transaction * 100 + number, bytes([transaction]) * 700)
                                                                for number in range(100)])
        database.execute("ROLLBACK" if transaction == 10 else "COMMIT")
    database.execute("DELETE FROM data WHERE number % 7 = 0")
    database.execute("VACUUM")
    other = sqlite3.connect(path)
    assert other.execute("SELECT count(*) FROM data").fetchone() == database.execute(
        "SELECT count(*) FROM data").fetchone()
    other.close()
    database.close()
    check_database(path)


def check_database(path):
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    rows = [number for number in range(2000) if number % 7 and not 1000 <= number < 1100]
    assert [row[0] for row in database.execute("SELECT number FROM data ORDER BY number")] == rows
    database.close()


def use_mount(target):
    """All of the above, in one mount."""
    install_package(target)
    commit_with_git(target / "srv/repository")
    compile_program(target / "opt")
    write_database(target / "srv/rollback.db", "delete")
    write_database(target / "srv/wal.db", "wal")


@needs_fuse
@needs_root
class ProgramsTest(RealImageTest):
    @needs_program("git")
    @needs_program("gcc")
    def test_programs_work_their_changes_are_kept_and_another_mount_sees_none(self):
        target, other = self.mount("programs"), self.mount("beside")
        before = manifest(other)
        use_mount(target)
        self.assertEqual(before, manifest(other))
        self.assertEqual([], self.diff("beside"))
        changed = self.diff("programs")
        for line in ("A /usr/bin/hello", "C /var/lib/dpkg/status", "A /opt/program", "A /srv/wal.db"):
            self.assertIn(line, changed)
        self.assertFalse([line for line in changed if line.endswith(("-journal", "-wal", "-shm", "hello.deb"))])

        used = manifest(target)
        self.lamina.call("umount", "programs")
        self.assertEqual([], os.listdir(target))
        self.lamina.call("mount", self.image, target, "--name", "programs")
        self.assertEqual(used, manifest(target))
        self.assertEqual(changed, self.diff("programs"))
        check_database(target / "srv/wal.db")
        self.assertEqual("Hello, world!\n", run("chroot", target, "hello", env=PLAIN).stdout)

    @needs_program("podman")
    @needs_program("gcc")
    def test_a_committed_image_is_loaded_by_podman_and_runs_with_the_changes_in_it(self):
        podman = Podman(self.lamina.folder / "podman")
        self.addCleanup(podman.close)
        podman.find_way_to_run(f"oci:{self.layout}:{self.image}")
        target = self.mount("tocommit")
        install_package(target)
        compile_program(target / "opt")
        write_database(target / "srv/wal.db", "wal")
        (target / "etc/debian_version").unlink()
        (target / "etc/apt").rename(target / "etc/moved")
        inside = sorted(os.listdir(target / "etc/moved"))
        database = hashlib.sha256((target / "srv/wal.db").read_bytes()).hexdigest()
        self.lamina.call("commit", "tocommit", "changed:1")
        archive = self.lamina.folder / "changed.tar"
        self.lamina.call("save", "changed:1", f"docker-archive:{archive}")
        podman.call("load", "-i", archive)
        image = next(one["id"] for one in self.lamina.json("images")["images"] if "changed:1" in one["names"])
        image = image.removeprefix("sha256:")
        self.assertIn(image, podman.call("images", "--no-trunc", "--format", "{{.ID}}").stdout)

        def inside_it(script):
            return podman.run(image, "sh", "-c", script).stdout
        self.assertEqual("Hello, world!\n", inside_it("LC_ALL=C hello"))
        self.assertEqual("compiled on the mount\n", inside_it("/opt/program"))
        self.assertEqual(database, inside_it("sha256sum /srv/wal.db").split()[0])
        self.assertEqual("gone\n", inside_it("test -e /etc/debian_version || test -e /etc/apt || echo gone"))
        self.assertEqual(inside, sorted(inside_it("ls -A /etc/moved").split()))

    def test_a_committed_image_mounts_as_what_was_committed(self):
        target = self.mount("same")
        make_scripted_changes(target)
        expected = manifest(target)
        self.lamina.call("commit", "same", "same:1")
        self.assertEqual(expected, manifest(target))
        committed = self.lamina.make_folder("committed")
        self.lamina.call("mount", "same:1", committed, "--ro", "--name", "committed")
        self.addCleanup(self.lamina.call, "umount", "committed")
        self.assertEqual(expected, manifest(committed))


class Podman:
    """Podman with its storage in a folder of its own, in the way that containers run on this machine."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        files = resource_limit_lines()
        (folder / "containers.conf").write_text(f'[containers]\n{files}\n[engine]\ncgroup_manager = "cgroupfs"\n'
                                                'events_logger = "file"\n')
        (folder / "policy.json").write_text('{"default":[{"type":"insecureAcceptAnything"}]}')
        (folder / "storage.conf").write_text(f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/root"\n'
                                             f'runroot = "{folder}/run"\n')
        self.environment = {**os.environ, "CONTAINERS_CONF": str(folder / "containers.conf"),
                            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf")}
        self.runtime, self.options = [], []

    def call(self, *words, check=True):
        return run("podman", *self.runtime, *words, check=check, env=self.environment, stdin=subprocess.DEVNULL)

    def run(self, image, *command, check=True):
        return self.call("run", "--rm", "--network=none", *self.options, image, *command, check=check)

    def find_way_to_run(self, source):
        """Runs `source`, an image that Lamina never saw, with each runtime there is. Skips the test when none can."""
        pulled = self.call("pull", "--quiet", source, check=False)
        if pulled.returncode != 0:
            raise unittest.SkipTest(f"podman cannot pull {source}: {pulled.stderr}")
        errors = []
        for runtime, options in (("crun", ["--cgroups=disabled"]), ("crun", []), ("runc", [])):
            self.runtime, self.options = ["--runtime", runtime], options
            result = self.run(pulled.stdout.strip(), "true", check=False)
            if result.returncode == 0:
                return
            errors.append(f"{runtime}: {result.stderr.strip()}")
        raise unittest.SkipTest(f"no container runs on this machine: {errors}")

    def close(self):
        for folder in ("root/overlay", "root"):
            while run("umount", "-l", self.folder / folder, check=False).returncode == 0:
                pass  # podman stacks them: one each time its storage is opened


def resource_limit_lines():
    """Podman's own defaults may be over what this process may set."""
    import resource
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return f'default_ulimits = ["nofile={hard}:{hard}", "nproc=32768:32768"]'


# ---- a list of changes ---------------------------------------------------------------------------------------------

def make_scripted_changes(target):
    """One change of each kind. Returns what `lamina diff` must say of them."""
    (target / "srv/new").write_text("new\n")
    (target / "opt/folder/inner").mkdir(parents=True)
    (target / "opt/folder/inner/file").write_bytes(os.urandom(300_000))
    os.symlink("../nowhere", target / "opt/link")
    os.mkfifo(target / "opt/pipe")
    os.link(target / "etc/host.conf", target / "opt/hard")
    (target / "etc/debian_version").unlink()
    shutil.rmtree(target / "usr/share/doc")
    (target / "etc/issue").rename(target / "etc/issue.moved")
    (target / "root").chmod(0o711)
    if IS_ROOT:
        os.chown(target / "var/cache", 5, 6)
    os.setxattr(target / "etc/passwd", "user.note", b"value")
    with open(target / "etc/group", "a") as file:
        file.write("more:x:999:\n")
    os.truncate(target / "etc/nsswitch.conf", 10)
    os.utime(target / "etc/shadow", ns=(1, 2))
    (target / "mnt").rmdir()
    (target / "mnt").write_text("a file now")
    (target / "etc/issue.net").unlink()
    (target / "etc/issue.net").mkdir()
    (target / "var/passing").write_text("made and removed")
    (target / "var/passing").unlink()
    return sorted(
        ["A /srv/new", "A /opt/folder", "A /opt/folder/inner", "A /opt/folder/inner/file", "A /opt/link", "A /opt/pipe",
         "A /opt/hard", "D /etc/debian_version", "D /usr/share/doc", "D /etc/issue", "A /etc/issue.moved", "C /root",
         "C /etc/passwd", "C /etc/group", "C /etc/nsswitch.conf", "C /etc/shadow", "C /mnt", "C /etc/issue.net",
         "C /srv", "C /opt", "C /etc", "C /usr/share", "C /var"] + ["C /var/cache"] * IS_ROOT)


@needs_fuse
@needs_root
class MountTest(RealImageTest):
    def test_diff_lists_exactly_what_changed(self):
        target = self.mount("scripted")
        self.assertEqual([], self.diff("scripted"))
        run("find", target, "-type", "f", "-exec", "sha256sum", "{}", "+")
        self.assertEqual([], self.diff("scripted"))
        expected = make_scripted_changes(target)
        self.assertEqual(expected, sorted(self.diff("scripted")))
        self.lamina.call("umount", "scripted")
        self.assertEqual(expected, sorted(self.diff("scripted")), "of a mount that is kept")

    def test_a_kept_mount_holds_everything_when_mounted_again_and_again(self):
        target = self.mount("kept")
        make_scripted_changes(target)
        expected = manifest(target)
        inodes = {path: (target / path).lstat().st_ino for path in ("srv/new", "etc/group", "etc/issue.moved", "etc")}
        for _ in range(2):
            self.lamina.call("umount", "kept")
            self.lamina.call("mount", self.image, target, "--name", "kept")
            self.assertEqual(expected, manifest(target))
            self.assertEqual(inodes, {path: (target / path).lstat().st_ino for path in inodes})

    def test_after_the_death_of_holder_and_server_a_mount_holds_what_was_synced_and_a_prefix_of_the_rest(self):
        target = self.mount("killed")
        make_scripted_changes(target)
        before = set(manifest(target, has_times=False))
        work = target / "srv/work"
        work.mkdir()
        for number in range(400):
            with open(work / f"{number:03}", "w") as file:
                file.write(f"{number}\n" * 2000)
                if number == 200:
                    file.flush()
                    os.fsync(file.fileno())
                    run("sync", "--file-system", target)
        server = self.lamina.mounts()["killed"]["server"]
        for process in (server["holder_pid"], server["pid"]):
            os.kill(process, signal.SIGKILL)
        run("umount", "-l", target, check=False)
        self.lamina.call("mount", self.image, target, "--name", "killed")
        names = sorted(os.listdir(work))
        self.assertGreaterEqual(len(names), 201)
        self.assertEqual([f"{number:03}" for number in range(len(names))], names)
        texts = [(work / name).read_text() for name in names]
        whole = [text == f"{number}\n" * 2000 for number, text in enumerate(texts)]
        self.assertTrue(all(whole[:201]))
        self.assertLessEqual(whole.count(False), 1, "more than one file is not whole")
        self.assertEqual(set(), {line for line in before if not line.startswith("/srv 0o")}
                         - set(manifest(target, has_times=False)))
        (work / "after").write_text("written after")
        self.assertEqual([], self.lamina.json("verify")["problems"])

    def test_a_read_only_mount_refuses_every_change(self):
        target = self.mount("readonly", "--ro")
        before = manifest(target)
        for change in (lambda: (target / "new").write_text("x"), lambda: open(target / "etc/passwd", "r+"),
                       lambda: (target / "etc/passwd").unlink(), lambda: (target / "new").mkdir(),
                       lambda: (target / "mnt").rmdir(), lambda: (target / "etc/passwd").rename(target / "x"),
                       lambda: (target / "etc").chmod(0o700), lambda: os.link(target / "etc/passwd", target / "x"),
                       lambda: os.symlink("x", target / "x"), lambda: os.mkfifo(target / "x"),
                       lambda: os.setxattr(target / "etc/passwd", "user.x", b""), lambda: os.utime(target / "etc"),
                       lambda: os.truncate(target / "etc/passwd", 0)):
            with self.assertRaisesRegex(OSError, "Read-only file system"):
                change()
        self.assertEqual(before, manifest(target))

    def test_discarded_changes_are_gone_and_the_name_is_free(self):
        target = self.mount("discarded")
        (target / "etc/passwd").unlink()
        (target / "srv/big").write_bytes(os.urandom(5_000_000))
        self.lamina.call("umount", "discarded", "--discard")
        self.assertNotIn("discarded", self.lamina.mounts())
        self.lamina.call("mount", self.image, target, "--name", "discarded")
        self.assertEqual([], self.diff("discarded"))
        self.assertTrue((target / "etc/passwd").exists())
        self.assertFalse((target / "srv/big").exists())

    def test_mounts_at_once_are_apart(self):
        one, two = self.mount("one"), self.mount("two")
        (one / "srv/file").write_text("one")
        (two / "srv/file").write_text("two")
        (two / "etc/hosts").unlink(missing_ok=True)
        (one / "etc/passwd").write_text("one")
        self.assertEqual("one", (one / "srv/file").read_text())
        self.assertEqual("two", (two / "srv/file").read_text())
        self.assertNotEqual("one", (two / "etc/passwd").read_text())
        self.assertEqual(["A /srv/file", "C /etc/passwd", "C /srv"], sorted(self.diff("one")))

    def test_a_mount_of_another_image_under_a_kept_name_is_refused(self):
        self.mount("named")
        self.lamina.call("umount", "named")
        self.lamina.call("tag", self.image, "alias:1")
        self.lamina.call("mount", "alias:1", self.lamina.make_folder("named"), "--name", "named")
        self.lamina.call("umount", "named")
        Layout(self.lamina.folder / "other").add("other:1", [layer(entry("x", data="x"))])
        self.lamina.call("import", f"oci:{self.lamina.folder}/other")
        self.assertIn("named", self.lamina.fails("mount", "other:1", self.lamina.folder / "named", "--name", "named"))


# ---- saved images --------------------------------------------------------------------------------------------------

class SavedTest(RealImageTest):
    def save(self):
        folder = self.lamina.folder / f"saved-{self.id().rsplit('.', 1)[1]}"
        self.lamina.call("save", self.image, f"oci:{folder}:again")
        return folder

    def test_a_saved_image_has_the_same_id_and_layers_and_importing_it_adds_nothing(self):
        folder = self.save()
        original, config = documents(self.layout, self.image)
        saved, saved_config = documents(folder, "again")
        self.assertEqual(original["config"]["digest"], saved["config"]["digest"])
        self.assertEqual(config, saved_config)
        for described, diff_id in zip(saved["layers"], config["rootfs"]["diff_ids"], strict=True):
            data = blob(folder, described["digest"]).read_bytes()
            self.assertEqual(described["digest"], support.sha256(data))
            data = gzip.decompress(data) if described["mediaType"].endswith("gzip") else data
            self.assertEqual(diff_id, support.sha256(data))
        before = self.lamina.json("df")["pack_bytes"]
        self.lamina.call("import", f"oci:{folder}")
        self.assertEqual(before, self.lamina.json("df")["pack_bytes"])
        self.assertEqual(1, len({image["id"] for image in self.lamina.json("images")["images"]
                                 if self.image in image["names"] or "again" in str(image["names"])}))

    @needs_program("skopeo")
    def test_skopeo_copies_a_saved_image(self):
        folder = self.save()
        copy = self.lamina.folder / "copy"
        run("skopeo", "--insecure-policy", "copy", f"oci:{folder}:again", f"dir:{copy}")
        config = documents(self.layout, self.image)[0]["config"]["digest"]
        self.assertEqual(config, json.loads((copy / "manifest.json").read_text())["config"]["digest"])

    @needs_program("umoci")
    @needs_root
    @needs_fuse
    def test_umoci_unpacks_a_saved_image_to_what_the_mount_shows(self):
        folder = self.save()
        bundle = self.lamina.folder / "bundle"
        run("umoci", "unpack", "--image", f"{folder}:again", bundle)
        target = self.mount("asumoci", "--ro")
        theirs, ours = manifest(bundle / "rootfs"), manifest(target)
        self.assertEqual(theirs[1:], ours[1:])  # the root itself is not always in a layer


# ---- what changes cost ---------------------------------------------------------------------------------------------

def disk_bytes(folder):
    return sum(path.lstat().st_blocks * 512 for path in pathlib.Path(folder).rglob("*"))


@needs_fuse
class CostTest(unittest.TestCase):
    FILE_BYTES = 1 << 30
    ENTRIES = 10_000

    @classmethod
    def setUpClass(cls):
        cls.lamina = Lamina()
        cls.addClassCleanup(cls.lamina.close)
        source = cls.lamina.make_folder("source")
        cls.block = os.urandom(1 << 20)
        with open(source / "big", "wb") as file:
            for _ in range(cls.FILE_BYTES // len(cls.block)):
                file.write(cls.block)
        (source / "many").mkdir()
        for number in range(cls.ENTRIES):
            (source / f"many/file{number:05}").write_text(f"{number}\n")
        cls.lamina.call("import", f"dir:{source}", "--name", "cost:1")
        shutil.rmtree(source)

    def setUp(self):
        self.mount()
        self.addCleanup(self.lamina.call, "umount", "cost", "--discard")

    def mount(self, *options):
        self.target = self.lamina.make_folder("mnt")
        self.lamina.call("mount", "cost:1", self.target, "--name", "cost", *options)

    def changes(self):
        return self.lamina.mounts()["cost"]["server"]["changes"]

    def test_the_first_write_to_a_large_file_copies_nothing(self):
        """[data.no-copy]"""
        before, disk = self.changes(), disk_bytes(self.lamina.store)
        with open(self.target / "big", "r+b") as file:
            file.seek(123_456_789)
            file.write(b"\xff" * 4096)
            file.flush()
            os.fsync(file.fileno())
        self.assertLessEqual(self.changes()["extent_bytes"] - before["extent_bytes"], 2 * 4096)
        self.assertLess(disk_bytes(self.lamina.store) - disk, SMALL_CHANGE)
        with open(self.target / "big", "rb") as file:
            file.seek(123_456_789 - 4096)
            place = (123_456_789 - 4096) % len(self.block)
            around = (self.block * 2)[place:place + 3 * 4096]
            self.assertEqual(around[:4096] + b"\xff" * 4096 + around[2 * 4096:], file.read(3 * 4096))
        self.assertEqual(self.FILE_BYTES, (self.target / "big").stat().st_size)

    def test_truncating_and_chmodding_a_large_file_copies_nothing(self):
        before, disk = self.changes(), disk_bytes(self.lamina.store)
        os.truncate(self.target / "big", self.FILE_BYTES - 5)
        (self.target / "big").chmod(0o600)
        os.truncate(self.target / "big", self.FILE_BYTES + 5)
        self.assertLessEqual(self.changes()["extent_bytes"] - before["extent_bytes"], 4096)
        self.assertLess(disk_bytes(self.lamina.store) - disk, SMALL_CHANGE)
        with open(self.target / "big", "rb") as file:
            file.seek(self.FILE_BYTES - 10)
            self.assertEqual(self.block[-10:-5] + bytes(10), file.read())

    def test_renaming_a_folder_of_the_image_is_one_record_however_much_it_holds(self):
        """[inodes.records]"""
        before = self.changes()
        (self.target / "many").rename(self.target / "moved")
        after = self.changes()
        self.assertLess(after["log_bytes"] - before["log_bytes"], 1024)
        for kind in ("nodes", "names"):
            self.assertLessEqual(after[kind] - before[kind], 4, kind)
        self.assertEqual(self.ENTRIES, len(os.listdir(self.target / "moved")))
        self.assertFalse((self.target / "many").exists())
        self.assertEqual("9999\n", (self.target / "moved/file09999").read_text())

    def requests_of(self, use, but=None):
        """The requests, `but` one kind, that `use` makes the kernel send, the first time and again: the least of a few
        times, for whoever makes the kernel drop its caches meanwhile costs a pass, not the promise."""
        def sent():
            requests = self.lamina.requests("cost")
            return requests["total"] - requests.get(but, 0)

        def count():
            before = sent()
            use()
            return sent() - before

        first, again = count(), count()
        for _ in range(4):
            if again == 0:
                break
            again = min(again, count())
        return first, again

    def read_all(self):
        for number in range(self.ENTRIES):  # Python's own open would ask each file whether it is a terminal
            descriptor = os.open(self.target / f"many/file{number:05}", os.O_RDONLY)
            assert os.read(descriptor, 100) == f"{number}\n".encode()
            os.close(descriptor)

    def list_all(self):
        run("ls", "-lR", self.target)

    def look_for_absent(self):
        for number in range(1000):
            self.assertFalse(os.path.lexists(self.target / f"many/absent{number}"))

    def test_what_was_done_once_sends_no_request_the_second_time(self):
        for name in ("read_all", "look_for_absent"):
            with self.subTest(name):
                first, second = self.requests_of(getattr(self, name))
                self.assertGreater(first, 0)
                self.assertEqual(0, second, self.lamina.requests("cost"))

    def test_listing_everything_again_asks_a_writable_mount_about_folders_alone_and_a_read_only_one_nothing(self):
        self.list_all()  # and brings every inode in, the folders' access times with it
        # ls of coreutils 9.7, not 9.1, asks of each name which xattrs it has, and the kernel remembers no such list.
        self.assertLessEqual(self.requests_of(self.list_all, but="listxattr")[1], 8)
        self.lamina.call("umount", "cost", "--discard")
        self.mount("--ro")
        for name in ("list_all", "read_all", "look_for_absent"):
            with self.subTest(name):
                self.assertEqual(0, self.requests_of(getattr(self, name))[1], self.lamina.requests("cost"))


# ---- an ordinary user ----------------------------------------------------------------------------------------------

USER_SCRIPT = """
set -eu
lamina() { "$BUILD/client/lamina" "$@"; }
mkdir mnt
lamina import "oci:$WORK/layout" >/dev/null
lamina mount test:1 "$WORK/mnt" --name mine >/dev/null
cat mnt/etc/motd
echo changed > mnt/etc/motd
mkdir mnt/new && echo file > mnt/new/file && rm mnt/gone
lamina diff mine
lamina commit mine mine:1 >/dev/null
lamina umount mine
lamina mount test:1 "$WORK/mnt" --name mine >/dev/null
cat mnt/etc/motd
lamina umount mine --discard
lamina mount mine:1 "$WORK/mnt" --ro --name made >/dev/null
cat mnt/etc/motd mnt/new/file
test ! -e mnt/gone
lamina umount made
lamina --json verify --data
lamina daemon stop >/dev/null
"""


class UserTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="lamina-user-", dir="/var/tmp"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        user = (USER, USER) if IS_ROOT else (os.geteuid(), os.getegid())
        Layout(self.folder / "layout").add("test:1", [layer(
            entry("./", "dir", owner=user), entry("etc", "dir", owner=user),
            entry("etc/motd", data="hello\n", owner=user), entry("gone", data="x"),
            entry("root's", data="root's", mode=0o600))])
        (self.folder / "script").write_text(USER_SCRIPT)

    def command(self):
        if not IS_ROOT:
            return ["sh", str(self.folder / "script")]
        for path in [self.folder, self.folder / "layout", *(self.folder / "layout").rglob("*")]:
            os.chown(path, USER, USER)
        (self.folder / "build").mkdir()
        return support.as_user(self.folder, self.folder / "script", [(support.BUILD, self.folder / "build")])

    @needs_program("fusermount3")
    @needs_fuse
    def test_a_user_imports_mounts_changes_and_commits(self):
        command = self.command()
        build = self.folder / "build" if IS_ROOT else support.BUILD
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "WORK": str(self.folder),
                       "BUILD": str(build), "LAMINA_STORE": str(self.folder / "store"),
                       "LAMINAD": str(build / "daemon/laminad"),
                       "LAMINA_FUSE": str(build / "fuse/lamina-fuse")}
        result = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=120)
        self.assertEqual("", result.stderr)
        self.assertEqual(0, result.returncode, result.stdout)
        lines = result.stdout.splitlines()
        self.assertEqual("hello", lines[0])
        self.assertEqual(["A /new", "A /new/file", "C /etc/motd", "D /gone"], sorted(lines[1:5]))
        self.assertEqual(["changed", "changed", "file"], lines[5:8])
        self.assertEqual([], json.loads(lines[8])["problems"])
        self.assertFalse(os.path.ismount(self.folder / "mnt"))


if __name__ == "__main__":
    main()
