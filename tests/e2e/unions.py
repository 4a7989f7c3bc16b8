"""Mounts of the three kinds over a tree that a test has made: an image of it (log keeper), one folder, and four folders
that it is spread over (directory keeper). For tests that are the same for all of them."""
import os
import pathlib
import shutil
import stat
import tempfile
import time
import unittest

import support
from support import Lamina, run

KINDS = ("image", "folder", "folders")
LAYERS = 4


def fuse(options, mountpoint, check=True, **more):
    """Calls lamina-fuse as podman does."""
    return run(support.BUILD / "fuse/lamina-fuse", "-o", options, mountpoint, check=check, **more)


def unmount(path):
    """Ends a mount as soon as nobody uses it, and by force when that takes long."""
    for _ in range(200):
        if not os.path.ismount(path) or run("umount", path, check=False).returncode == 0:
            return
        time.sleep(0.05)
    run("umount", "-l", path, check=False)


def copy_tree(source, target):
    """With all that it has; GNU cp keeps ACLs, xattrs and capabilities, links and holes."""
    run("cp", "--archive", "--sparse=always", f"{source}/.", target)


def spread(tree, layers):
    """Puts a tree into several layers: each has all folders, and of the rest each thing is in one, links together.
    What a layer does not have is below, so a lower layer has something else under some of the names of a higher one."""
    for number, layer in enumerate(layers):
        copy_tree(tree, layer)
        for folder, folders, files in os.walk(os.fsencode(layer), topdown=False):
            times = os.lstat(folder)
            for name in files + folders:
                path = os.path.join(folder, name)
                status = os.lstat(path)
                if not stat.S_ISDIR(status.st_mode) and home_of(tree, layer, path, len(layers)) != number:
                    os.unlink(path)
            os.utime(folder, ns=(times.st_atime_ns, times.st_mtime_ns))
    for number, layer in enumerate(layers[1:], 1):
        (pathlib.Path(layer) / "hidden").write_text(str(number))
    os.mknod(pathlib.Path(layers[0]) / "hidden", stat.S_IFCHR, 0)
    root = os.lstat(tree)
    os.utime(layers[0], ns=(root.st_atime_ns, root.st_mtime_ns))


def home_of(tree, layer, path, count):
    """The same for all names of an inode: it hangs on what the inode is in the tree itself."""
    return os.lstat(os.path.join(os.fsencode(tree), os.path.relpath(path, os.fsencode(layer)))).st_ino % count


class Union:
    """A mount of one kind; `path` is its mount point, `upper` the folder that takes its changes, if it has one."""

    def __init__(self, kind, folder, tree):
        self.kind, self.folder = kind, pathlib.Path(folder)
        self.path = self.folder / "mnt"
        self.upper = None
        self.path.mkdir(parents=True)
        self.lamina = None
        if kind == "image":
            self.lamina = Lamina(self.folder)
            self.lamina.call("import", f"dir:{tree}", "--name", "tree:1")
        else:
            layers = [self.folder / f"layer{number}" for number in range(1 if kind == "folder" else LAYERS)]
            self.upper = self.folder / "upper"
            for made in (*layers, self.upper, self.folder / "work"):
                made.mkdir()
            if kind == "folder":
                copy_tree(tree, layers[0])
            else:
                spread(tree, layers)
            shutil.copystat(tree, self.upper)  # Whose attributes are the root's.
            shutil.chown(self.upper, os.stat(tree).st_uid, os.stat(tree).st_gid)
            self.layers = layers
        self.start()

    def options(self):
        return (f"lowerdir={':'.join(map(str, self.layers))},upperdir={self.upper},workdir={self.folder}/work")

    def start(self, more=""):
        if self.lamina:
            self.lamina.call("mount", "tree:1", self.path, "--name", "work")
        else:
            fuse(self.options() + more, self.path)

    def stop(self):
        if self.lamina:
            self.lamina.call("umount", "work")
        else:
            run("umount", self.path)

    def remount(self):
        self.stop()
        self.start()

    def __truediv__(self, name):
        return self.path / name

    def close(self):
        if self.lamina:
            self.lamina.close()
        else:
            unmount(self.path)


class UnionTest(unittest.TestCase):
    """A test with a folder of its own, on the disk that the tests are on, and unions in it."""

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="lamina-union-", dir="/var/tmp"))
        self.folder.chmod(0o755)  # Other users come through.
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def on_each(self, build, check):
        """Runs `check(union)` once for each kind of mount, over what `build(path)` makes."""
        tree = self.folder / "tree"
        tree.mkdir()
        build(tree)
        for kind in KINDS:
            with self.subTest(kind):
                union = Union(kind, self.folder / kind, tree)
                try:
                    check(union)
                finally:
                    union.close()
