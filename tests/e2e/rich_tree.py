"""A folder with one of everything that a copy can lose, and lines that say all of it."""
import os
import pathlib
import socket
import stat
import struct
import time

from support import manifest, run

CAPABILITY = struct.pack("<IIIII", 0x02000000 | 1, 1 << 10, 0, 0, 0)  # cap_net_bind_service=ep
TIMES = {"before": -1_000_000_000_123_456_789, "first": 1, "last": 4_102_444_800_987_654_321,
         "usual": 1_700_000_000_000_000_007}
ODD_NAMES = [b".wh.x", b".wh..wh..opq", b"two\nlines", b"\xff\xfe\x80", b"-", b"a b\t\x01", b"#1", b"back\\slash",
             b"n" * 255]


def acl(path, *entries, default=False):
    for entry in entries:
        run("setfacl", *(["-d"] if default else []), "-m", entry, path)


def make_files(root):
    (root / "plain").write_bytes(b"plain\n" * 1000)
    (root / "empty").write_bytes(b"")
    for name, mode in (("setuid", 0o4755), ("setgid", 0o2711), ("none", 0), ("all", 0o6777)):
        (root / name).write_text(name)
        os.chown(root / name, 1000 + len(name), 2000)
        (root / name).chmod(mode)
    for name, when in TIMES.items():
        (root / f"time-{name}").write_text(name)
        os.utime(root / f"time-{name}", ns=(when, when))
    with open(root / "sparse", "wb") as file:
        file.truncate(8 << 20)
        for at in (1 << 20, 5 << 20):
            file.seek(at)
            file.write(b"data" * 2048)
    with open(root / "hole-at-the-end", "wb") as file:
        file.write(b"x" * 5000)
        file.truncate(3 << 20)
    (root / "big").write_bytes(os.urandom(2 << 20))


def make_attributes(root):
    for name in ("xattrs", "acl", "capability"):
        (root / name).write_text(name)
    os.setxattr(root / "xattrs", "user.text", b"value")
    os.setxattr(root / "xattrs", "user.empty", b"")
    os.setxattr(root / "xattrs", "user.bytes", bytes(range(256)) * 4)
    os.setxattr(root / "xattrs", "trusted.root", b"only root's")
    os.setxattr(root / "xattrs", "security.other", b"1")
    acl(root / "acl", "u:1234:rw", "g:4321:r", "m::rwx")
    (root / "capability").chmod(0o755)
    os.setxattr(root / "capability", "security.capability", CAPABILITY)
    folder = root / "folder-acl"
    folder.mkdir()
    acl(folder, "u:1234:rwx")
    acl(folder, "u:1234:rwx", "g::r-x", default=True)
    os.setxattr(folder, "user.folder", b"yes")


def make_kinds(root):
    (root / "link").symlink_to("plain")
    (root / "dangling").symlink_to("/no/such/" + "t" * 200)
    os.lchown(root / "link", 1001, 1002)
    os.utime(root / "link", ns=(5, 6), follow_symlinks=False)
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o660, os.makedev(240, 77))
    (root / "links").mkdir()
    for name in ("first", "second", "links/third"):
        os.link(root / "plain", root / name)
    os.symlink("target", root / "linked-link")
    os.link(root / "linked-link", root / "links/linked-link", follow_symlinks=False)
    (root / "sticky").mkdir(mode=0o700)
    (root / "sticky").chmod(0o3777)
    deep = root / "deep"
    deep.mkdir()
    os.makedirs(deep / "/".join(["d" * 40] * 10))
    (deep / "/".join(["d" * 40] * 10) / "end").write_text("end")


def make_names(root):
    names = os.fsencode(root / "names")
    os.mkdir(names)
    for name in ODD_NAMES:
        with open(os.path.join(names, name), "wb") as file:
            file.write(name)
        os.mkdir(os.path.join(names, name[:250] + b".dir"))


def make_old(root, since_ns):
    """What got its times since then lies back further: programs that copy leave times alone that differ by less than a
    second."""
    for folder, folders, files in os.walk(os.fsencode(root), topdown=False):
        for path in [os.path.join(folder, name) for name in folders + files] + [folder]:
            if since_ns - 10**9 <= os.lstat(path).st_mtime_ns <= time.time_ns():
                os.utime(path, ns=(TIMES["usual"], TIMES["usual"]), follow_symlinks=False)


def make_rich_tree(root, has_sockets=True, has_odd_names=True):
    """Needs root. `has_odd_names`: without them, no name is a mark to any reader of layers."""
    root, begin_ns = pathlib.Path(root), time.time_ns()
    make_files(root)
    make_attributes(root)
    make_kinds(root)
    if has_odd_names:
        make_names(root)
    if has_sockets:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(root / "socket"))
    for folder, _, _ in os.walk(root, topdown=False):
        os.utime(folder, ns=(1_600_000_000_000_000_001, 1_600_000_000_123_456_789))
    make_old(root, begin_ns)


def describe(root, **options):
    """All that a manifest can say."""
    return manifest(root, has_holes=True, has_link_counts=True, **options)


def difference(expected, found):
    """The first lines that are not the same; empty: none."""
    expected, found = set(expected), set(found)
    return "\n".join([f"missing: {line}" for line in sorted(expected - found)[:4]] +
                     [f"instead: {line}" for line in sorted(found - expected)[:4]])
