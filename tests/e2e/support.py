"""What the end-to-end tests share: a store of their own with its daemon, image layouts, manifests of folders.

Each test file is run as FILE BUILD_FOLDER; it ends with status 77 (skipped) only when every test in it was skipped.
"""
import errno
import gzip
import hashlib
import io
import json
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import tarfile
import tempfile
import time
import unittest

BUILD = pathlib.Path(os.environ.get("LAMINA_BUILD", "build")).resolve()
IS_ROOT = os.geteuid() == 0
EXIT_SKIPPED = 77
USER = 54_321  # an ordinary user that no machine has
os.environ["LIBMOUNT_FORCE_MOUNT2"] = "always"  # Else newer versions of mount(8) refuse an option of over 255 bytes.


def can_mount():
    return os.path.exists("/dev/fuse") and os.access("/dev/fuse", os.R_OK | os.W_OK)


needs_root = unittest.skipUnless(IS_ROOT, "needs root")
needs_fuse = unittest.skipUnless(can_mount(), "needs /dev/fuse")


def needs_program(name):
    return unittest.skipUnless(shutil.which(name), f"needs {name}")


def run(*words, check=True, **options):
    options.setdefault("timeout", 300)
    result = subprocess.run([str(word) for word in words], capture_output=True, text=True, **options)
    if check and result.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, words))}: exit {result.returncode}\n{result.stdout}\n{result.stderr}")
    return result


def as_user(folder, script, binds=()):
    """Words with which root runs `script`, the path of a shell script, as USER in a mount namespace of its own: he has
    a name, home `folder`, subordinate ids, and /dev/fuse is everybody's. `binds`: (source, target) to mount there too.
    /proc is mounted afresh: where something hides a part of it, a user namespace would get none.
    """
    if not shutil.which("setpriv"):
        raise unittest.SkipTest("needs setpriv")
    os.chmod(folder, 0o755)
    account = pathlib.Path(folder, "account")
    account.mkdir()
    try:
        os.mknod(account / "fuse", 0o666 | stat.S_IFCHR, os.makedev(10, 229))
    except OSError as error:
        raise unittest.SkipTest(f"no device node can be made: {error}") from error
    os.chmod(account / "fuse", 0o666)
    lines = {"passwd": f"lamina-test:x:{USER}:{USER}::{folder}:/bin/sh", "group": f"lamina-test:x:{USER}:",
             "subuid": "lamina-test:700000:65536", "subgid": "lamina-test:700000:65536"}
    for name, line in lines.items():
        original = pathlib.Path("/etc", name)
        original.touch()
        (account / name).write_text(f"{original.read_text()}{line}\n")
    binds = [(account / "fuse", "/dev/fuse"), *((account / name, f"/etc/{name}") for name in lines), *binds]
    enter = " && ".join([*(f'mount --bind "{source}" "{target}"' for source, target in binds),
                         "mount -t proc proc /proc", "mount --make-rshared /", f'cd "{folder}"',
                         f'exec setpriv --reuid {USER} --regid {USER} --init-groups --inh-caps=-all sh "{script}"'])
    return ["unshare", "--mount", "--propagation", "slave", "sh", "-c", enter]


def without_unified_cgroups(*words):
    """Words that run `words` where crun, which refuses cgroups of both versions at once, does not see those of the
    second."""
    return ["unshare", "--mount", "--propagation", "slave", "sh", "-c",
            'umount /sys/fs/cgroup/unified; exec "$@"', "_", *words]


class Lamina:
    """A store in a folder of its own, and the programs of the build folder on it."""

    def __init__(self, base=None):
        base = base or os.environ.get("TMPDIR", "/var/tmp")
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="lamina-e2e-", dir=base))
        self.store = self.folder / "store"
        self.program = BUILD / "client/lamina"
        self.environment = {**os.environ, "LAMINAD": str(BUILD / "daemon/laminad"),
                            "LAMINA_FUSE": str(BUILD / "fuse/lamina-fuse"),
                            # What happens in idle time must not depend on the machine.
                            "LAMINA_UPKEEP_AFTER": "0", "LAMINA_COMPLETE": "off"}

    def call(self, *words, check=True, **options):
        options.setdefault("env", self.environment)
        return run(self.program, "--store", self.store, *words, check=check, **options)

    def json(self, *words):
        return json.loads(self.call("--json", *words).stdout)

    def fails(self, *words):
        """The error of a command that must fail: one line, exit 1 or 2."""
        result = self.call(*words, check=False)
        assert result.returncode in (1, 2), f"{words}: exit {result.returncode}, {result.stdout}{result.stderr}"
        lines = result.stderr.strip().splitlines()
        assert len(lines) == 1, f"not one line: {result.stderr}"
        return lines[0]

    def make_folder(self, name):
        path = self.folder / name
        path.mkdir(exist_ok=True)
        return path

    def daemon_pid(self):
        return self.json("daemon", "status")["pid"]

    def mounts(self):
        return {mount["name"]: mount for mount in self.json("mounts")["mounts"]}

    def requests(self, name):
        return self.mounts()[name]["server"]["requests"]

    def store_bytes(self):
        return sum(path.lstat().st_size for path in self.store.rglob("*") if path.is_file() and not path.is_symlink())

    def close(self):
        if self.store.exists():
            for name, mount in self.mounts().items():
                self.call("umount", name, "--discard", check=False)
                if os.path.ismount(mount["mountpoint"]):
                    run("umount", "-l", mount["mountpoint"], check=False)
            self.call("daemon", "stop", check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


class StoreTest(unittest.TestCase):
    """A test with a fresh store; `self.lamina`."""

    def setUp(self):
        self.lamina = Lamina()
        self.addCleanup(self.lamina.close)


# ---- images ------------------------------------------------------------------------------------------------------

KINDS = {"file": tarfile.REGTYPE, "dir": tarfile.DIRTYPE, "link": tarfile.LNKTYPE, "symlink": tarfile.SYMTYPE,
         "char": tarfile.CHRTYPE, "block": tarfile.BLKTYPE, "fifo": tarfile.FIFOTYPE}


def entry(path, kind="file", data=b"", **attributes):
    """One entry of a layer: (TarInfo, data)."""
    info = tarfile.TarInfo(path)
    info.type = KINDS[kind]
    info.mode = attributes.pop("mode", 0o755 if kind == "dir" else 0o644)
    info.mtime = attributes.pop("mtime", 1_700_000_000)
    info.linkname = attributes.pop("target", "")
    info.devmajor, info.devminor = attributes.pop("device", (0, 0))
    info.uid, info.gid = attributes.pop("owner", (0, 0))
    for name, value in attributes.pop("xattrs", {}).items():
        info.pax_headers[f"SCHILY.xattr.{name}"] = value.decode("utf-8", "surrogateescape")
    if "exact_mtime" in attributes:
        info.pax_headers["mtime"] = attributes.pop("exact_mtime")
    assert not attributes, attributes
    data = data.encode() if isinstance(data, str) else data
    info.size = len(data) if kind == "file" else 0
    return info, data


def layer(*entries):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    return out.getvalue()


def sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Layout:
    """An OCI image layout that grows by add(); `spoil` lets a test break config or manifest before they are written."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        (self.folder / "blobs/sha256").mkdir(parents=True)
        (self.folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        self.manifests = []

    def blob(self, data):
        (self.folder / "blobs/sha256" / sha256(data)[7:]).write_bytes(data)
        return {"digest": sha256(data), "size": len(data)}

    def add(self, name, layers, command=("/bin/sh",), compress=gzip.compress, media="tar+gzip", spoil=None):
        config = {"architecture": "amd64", "os": "linux",
                  "config": {"Cmd": list(command), "Env": ["PATH=/bin:/usr/bin"]},
                  "rootfs": {"type": "layers", "diff_ids": [sha256(tar) for tar in layers]},
                  "history": [{"created_by": f"layer {number}"} for number in range(len(layers))]}
        manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": None,
                    "layers": [{"mediaType": f"application/vnd.oci.image.layer.v1.{media}", **self.blob(compress(tar))}
                               for tar in layers]}
        if spoil:
            spoil(config, manifest)
        manifest["config"] = {"mediaType": "application/vnd.oci.image.config.v1+json",
                              **self.blob(json.dumps(config).encode())}
        described = {"mediaType": manifest["mediaType"], **self.blob(json.dumps(manifest).encode()),
                     "annotations": {"org.opencontainers.image.ref.name": name}}
        self.manifests.append(described)
        (self.folder / "index.json").write_text(json.dumps(
            {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": self.manifests}))
        return described


# ---- manifests -----------------------------------------------------------------------------------------------------

HOLE_BLOCK = 4096


def whole_blocks_in_holes(path):
    """The blocks that lie whole in holes, as ranges of numbers: where in a block a hole begins is nobody's promise."""
    ranges = []
    with open(path, "rb") as file:
        size, at = os.fstat(file.fileno()).st_size, 0
        while at < size:
            try:
                data = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                data = size
            begin, end = -(-at // HOLE_BLOCK), data // HOLE_BLOCK
            if end > begin:
                ranges.append((begin, end))
            at = size if data == size else os.lseek(file.fileno(), data, os.SEEK_HOLE)
    return ranges


def manifest(root, has_times=True, has_holes=False, has_link_counts=False, lists_whiteouts=False):
    """A line for each name of a tree: type, mode, owner, nanosecond time, size, bytes, holes, target, device, xattrs
    with ACLs and capabilities, and which names are one inode. Equal trees have equal lines. Without `has_link_counts`
    only whether a file has other names is told, and which. `lists_whiteouts`: the folder does so, as overlayfs where
    only one layer has it."""
    root = os.fsencode(root)
    lines, links = {}, {}
    pending = [b""]
    while pending:
        relative = pending.pop()
        path = os.path.join(root, relative) if relative else root
        if lists_whiteouts and not os.path.lexists(path):
            continue
        status = os.lstat(path)
        fields = [oct(status.st_mode), f"{status.st_uid}:{status.st_gid}"]
        if has_times:
            fields.append(str(status.st_mtime_ns))
        if stat.S_ISREG(status.st_mode):
            with open(path, "rb") as file:
                fields += [str(status.st_size), hashlib.file_digest(file, "sha256").hexdigest()]
            if has_holes:
                fields.append(f"holes={whole_blocks_in_holes(path)}")
        if stat.S_ISLNK(status.st_mode):
            fields.append(repr(os.readlink(path)))
        if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            fields.append(f"{os.major(status.st_rdev)},{os.minor(status.st_rdev)}")
        for name in sorted(xattr_names(path)):
            fields.append(f"{name}={os.getxattr(path, name, follow_symlinks=False).hex()}")
        if stat.S_ISDIR(status.st_mode):
            pending += [os.path.join(relative, name) for name in os.listdir(path)]
        elif has_link_counts or status.st_nlink > 1:
            if has_link_counts:
                fields.append(f"nlink={status.st_nlink}")
            links.setdefault((status.st_dev, status.st_ino), []).append(relative)
        lines[relative] = fields
    for group in links.values():
        for path in group:
            lines[path].append(f"links={sorted(group)}")
    return [f"/{path.decode('utf-8', 'backslashreplace')} {' '.join(fields)}" for path, fields in sorted(lines.items())]


def xattr_names(path):
    """None too where the mount says that no xattr can be."""
    try:
        return os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return []


def overlay_of(folder, layers):
    """Unpacks layer tars, bottom first, as runtimes do: each onto the kernel's overlay of those below. Needs root.
    Returns the path of the mounted stack; the caller unmounts it."""
    folder = pathlib.Path(folder)
    lowers, merged = [], folder / "merged"
    merged.mkdir(parents=True)
    (folder / "empty").mkdir()
    for number, tar in enumerate(layers):
        upper, work = folder / f"upper{number}", folder / f"work{number}"
        upper.mkdir()
        work.mkdir()
        below = ":".join([str(path) for path in reversed(lowers)] or [str(folder / "empty")])
        run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={below},upperdir={upper},workdir={work}", merged)
        try:
            apply_layer(merged, tar)
        finally:
            run("umount", merged)
        lowers.append(upper)
    stack = ":".join([str(path) for path in reversed(lowers)] + [str(folder / "empty")])
    run("mount", "-t", "overlay", "overlay", "-o", f"ro,lowerdir={stack}", merged)
    return merged


def apply_layer(target, tar):
    """Whiteouts first, since they are about what lies below, and what entries replace; then the rest by GNU tar."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for info in archive.getmembers():
            parent, base = os.path.split(info.name)
            if base == ".wh..wh..opq":
                for child in os.listdir(target / parent) if (target / parent).is_dir() else []:
                    remove(target / parent / child)
            elif base.startswith(".wh."):
                remove(target / parent / base[4:])
            elif not (info.isdir() and os.path.isdir(target / info.name) and not os.path.islink(target / info.name)):
                remove(target / info.name)
    result = subprocess.run(["tar", "--extract", "--xattrs", "--xattrs-include=*", "--preserve-permissions",
                             "--numeric-owner", "--exclude=.wh.*", "--directory", str(target)],
                            input=tar, capture_output=True, timeout=300)
    if result.returncode != 0:
        raise AssertionError(f"tar: {result.stderr.decode('utf-8', 'backslashreplace')}")


def remove(path):
    if os.path.islink(path) or not os.path.isdir(path):
        if os.path.lexists(path):
            os.unlink(path)
    else:
        shutil.rmtree(path)


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("waited in vain")
        time.sleep(0.02)


def main():
    """Runs the file's tests; the first argument is the build folder."""
    global BUILD
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-") and os.path.isdir(sys.argv[1]):
        BUILD = pathlib.Path(sys.argv.pop(1)).resolve()
    result = unittest.main(exit=False, verbosity=2).result
    if result.testsRun and len(result.skipped) == result.testsRun:
        sys.exit(EXIT_SKIPPED)
    sys.exit(0 if result.wasSuccessful() and result.testsRun else 1)
