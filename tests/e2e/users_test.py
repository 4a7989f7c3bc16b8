#!/usr/bin/env python3
"""Two users and root, and what each may do: the same as on the disk itself, before and after permissions change, when
everything has been looked at before. And what a union never does for a user: give him another's rights."""
import errno
import json
import os
import stat
import struct
import unittest

from rich_tree import acl, describe, difference
from support import main, needs_fuse, needs_program, needs_root, run
from unions import UnionTest

TEAM = 3100
USERS = {"root": (0, 0, []), "alice": (3001, 3001, [TEAM]), "bob": (3002, 3002, [])}
ALICE, BOB = USERS["alice"][0], USERS["bob"][0]
SCRIPT = "#!/bin/sh\nexit 0\n"
RAW_ACL = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in (
    (1, 6, 0xffffffff), (2, 4, BOB), (4, 0, 0xffffffff), (16, 4, 0xffffffff), (32, 0, 0xffffffff)))


def own(path, uid, gid, mode):
    os.chown(path, uid, gid)
    path.chmod(mode)


def build(tree):
    """Folders and files that differ in what they allow to whom."""
    tree.chmod(0o755)
    folders = {"open": (0, 0, 0o777), "sticky": (0, 0, 0o1777), "team": (ALICE, TEAM, 0o2770),
               "private": (ALICE, ALICE, 0o700),
               "through": (ALICE, ALICE, 0o711), "listed": (ALICE, TEAM, 0o744), "acl": (ALICE, ALICE, 0o700),
               "inherit": (ALICE, TEAM, 0o2775)}
    files = {"mine": (ALICE, ALICE, 0o600), "shared": (ALICE, TEAM, 0o664), "script": (ALICE, TEAM, 0o750),
             "world": (BOB, BOB, 0o666), "set": (ALICE, TEAM, 0o6775), "roots": (0, 0, 0o644)}
    for name, (uid, gid, mode) in folders.items():
        (tree / name).mkdir()
        for file, owner in files.items():
            (tree / name / file).write_text(SCRIPT)
            own(tree / name / file, *owner)
        (tree / name / "sub").mkdir()
        own(tree / name / "sub", ALICE, TEAM, 0o770)
        own(tree / name, uid, gid, mode)
    acl(tree / "acl", f"u:{BOB}:rwx", "m::rwx")
    acl(tree / "acl/mine", f"u:{BOB}:rw", f"g:{TEAM}:r")
    acl(tree / "acl/script", f"u:{BOB}:r-x", "m::r--")
    acl(tree / "inherit", f"u:{BOB}:rwx", "o::r-x", default=True)


def attempt(work):
    try:
        result = work()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "ok" if result is None else result


def shown(path):
    status = os.lstat(path)
    return [oct(status.st_mode), status.st_uid, status.st_gid]


def touch_bytes(path, flags):
    descriptor = os.open(path, flags)
    try:
        os.write(descriptor, SCRIPT[:4].encode())
    finally:
        os.close(descriptor)
    return shown(path)


def make_file(path):
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return shown(path) + sorted(os.listxattr(path))


def make_folder(path):
    os.mkdir(path, 0o777)
    return shown(path) + sorted(os.listxattr(path))


def execute(path):
    return os.waitstatus_to_exitcode(os.waitpid(os.posix_spawn(path, [path], {}), 0)[1])


def look(path):
    """What leaves everything as it is."""
    yield lambda: shown(path)
    for mode in (os.R_OK, os.W_OK, os.X_OK):
        yield lambda mode=mode: os.access(path, mode, effective_ids=True)
    yield lambda: sorted(os.listdir(path))
    yield lambda: os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    yield lambda: os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    yield lambda: os.getxattr(path, "user.none")
    yield lambda: len(os.listxattr(path))
    if os.path.basename(path) in ("script", "set", "roots"):
        yield lambda: execute(path)


def change(path, user):
    uid, gid, _ = USERS[user]
    yield lambda: touch_bytes(path, os.O_WRONLY)
    yield lambda: os.truncate(path, len(SCRIPT))
    yield lambda: touch_bytes(path, os.O_WRONLY | os.O_CREAT)
    for mode in (0o6755, 0o2775, 0o640, 0o770):
        yield lambda mode=mode: [os.chmod(path, mode), shown(path)]
    for owner, group in ((-1, TEAM), (-1, gid), (uid, gid), (uid, -1), (BOB, -1), (-1, 4000)):
        yield lambda owner=owner, group=group: [os.chown(path, owner, group), shown(path)]
    yield lambda: os.utime(path)
    yield lambda: os.utime(path, (1, 1))
    for name in ("user.a", "trusted.a", "security.a"):
        yield lambda name=name: os.setxattr(path, name, b"1")
        yield lambda name=name: os.removexattr(path, name)
    yield lambda: [os.setxattr(path, "system.posix_acl_access", RAW_ACL), shown(path)]
    yield lambda: os.removexattr(path, "system.posix_acl_access")
    yield lambda: os.link(path, f"{path}.link-{user}")
    yield lambda: os.rename(path, path)


def make(path, user):
    yield lambda: make_file(f"{path}/new-{user}")
    yield lambda: make_folder(f"{path}/dir-{user}")
    yield lambda: os.symlink("target", f"{path}/symlink-{user}")
    yield lambda: os.mkfifo(f"{path}/fifo-{user}")
    yield lambda: os.mknod(f"{path}/device-{user}", stat.S_IFCHR | 0o600, os.makedev(1, 3))


def meddle(path, user):
    """With what the others have made in a folder."""
    for other in USERS:
        if other == user:
            continue
        yield lambda other=other: os.rename(f"{path}/new-{other}", f"{path}/moved-{other}")
        yield lambda other=other: os.rename(f"{path}/moved-{other}", f"{path}/new-{other}")
        yield lambda other=other: os.rename(f"{path}/new-{user}", f"{path}/new-{other}")
        yield lambda other=other: os.unlink(f"{path}/symlink-{other}")
        yield lambda other=other: os.rmdir(f"{path}/dir-{other}")


def as_user(user, work):
    """The answers of a child process that has become a user."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            uid, gid, groups = USERS[user]
            os.umask(0o022)
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            os.write(writing, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answers:
        text = answers.read()
    os.waitpid(child, 0)
    return json.loads(text)


def paths_of(root):
    found = []
    for folder in sorted(os.listdir(root)):
        names = ("mine", "shared", "script", "world", "set", "roots", "sub")
        found += [f"{folder}"] + [f"{folder}/{name}" for name in names]
    return found


def looks(root):
    """What each user sees of each path: twice, so that the second time comes from what is cached."""
    def work():
        return [f"{path}: {attempt(step)}" for _ in range(2) for path in paths_of(root)
                for step in look(f"{root}/{path}")]
    return {user: as_user(user, work) for user in USERS}


def changes(root):
    """What each may do; after each user root puts things back as they were."""
    said = []
    for path in paths_of(root):
        full = f"{root}/{path}"
        status = os.lstat(full)
        kept = {name: os.getxattr(full, name) for name in os.listxattr(full)}
        for user in USERS:
            said += as_user(user, lambda full=full, path=path, user=user: [
                f"{user} {path} {number}: {attempt(step)}" for number, step in enumerate(change(full, user))])
            os.chown(full, status.st_uid, status.st_gid)
            os.chmod(full, stat.S_IMODE(status.st_mode))
            for name in os.listxattr(full):
                os.removexattr(full, name)
            for name, value in kept.items():
                os.setxattr(full, name, value)
            if os.path.lexists(f"{full}.link-{user}"):
                os.unlink(f"{full}.link-{user}")
    return said


def makings(root):
    said = []
    for step in (make, meddle):
        for path in [path for path in paths_of(root) if os.path.isdir(f"{root}/{path}")]:
            for user in USERS:
                said += as_user(user, lambda path=path, user=user: [
                    f"{user} {step.__name__} {path} {number}: {attempt(work)}"
                    for number, work in enumerate(step(f"{root}/{path}", user))])
    return said


def change_permissions(root):
    """By root and by owners, while all is in the kernel's caches."""
    os.chmod(f"{root}/open", 0o700)
    os.chmod(f"{root}/private", 0o755)
    os.chown(f"{root}/team", BOB, TEAM)
    os.chmod(f"{root}/through", 0o710)
    os.chown(f"{root}/through", ALICE, BOB)
    acl(f"{root}/acl", f"u:{BOB}:---")
    acl(f"{root}/sticky/mine", f"u:{BOB}:rw")
    os.chmod(f"{root}/inherit/world", 0o640)
    return as_user("alice", lambda: [attempt(work) for work in (
        lambda: os.chmod(f"{root}/listed", 0o777), lambda: os.chmod(f"{root}/acl/script", 0o777),
        lambda: os.chown(f"{root}/inherit/shared", -1, ALICE), lambda: os.chmod(f"{root}/private/mine", 0o604))])


def by_kept_descriptors(root):
    """What may be done to files of a set-id mode by who had opened them, and could not open them now."""
    path = f"{root}/open/roots"
    os.chown(path, 0, TEAM)  # Alice is of the group.
    answers = []
    with open(path, "rb+", buffering=0) as kept, open(f"{root}/open/world", "rb") as source:
        ways = {"write": lambda: kept.write(b"1"), "pwrite": lambda: os.pwrite(kept.fileno(), b"2", 7),
                "writev": lambda: os.writev(kept.fileno(), [b"3", b"4"]), "truncate": lambda: kept.truncate(9),
                "allocate": lambda: os.posix_fallocate(kept.fileno(), 0, 20),
                "copy": lambda: os.copy_file_range(source.fileno(), kept.fileno(), 4, 0, 0),
                "send": lambda: os.sendfile(kept.fileno(), source.fileno(), 0, 4),
                "chown": lambda: os.chown(path, -1, -1), "fchown": lambda: os.fchown(kept.fileno(), -1, -1),
                "lchown": lambda: os.lchown(path, -1, -1)}
        for user in USERS:
            for mode in (0o4755, 0o6755, 0o2755, 0o2744):
                for name, way in ways.items():
                    os.chmod(path, mode)
                    answers.append([user, oct(mode), name, as_user(user, lambda: [attempt(way), shown(path)])])
    return answers


@needs_fuse
@needs_root
@needs_program("setfacl")
class PermissionTest(UnionTest):
    maxDiff = 4000

    def everything(self, root):
        root = str(root)
        yield looks(root)
        yield changes(root)
        yield by_kept_descriptors(root)
        yield looks(root)
        yield change_permissions(root)
        yield looks(root)
        yield makings(root)
        yield looks(root)
        yield describe(root, has_times=False)

    def test_everyone_may_do_what_he_may_on_the_disk_itself(self):
        """[attributes.owner], [attributes.umask], [attributes.acl], [attributes.chown],
        [attributes.chown-nobody], [attributes.late-set-id], [data.privileges]"""
        plain = self.folder / "plain"
        plain.mkdir()
        build(plain)
        expected = list(self.everything(plain))

        def check(union):
            for number, found in enumerate(self.everything(union.path)):
                if isinstance(found, list):
                    self.assertEqual([], [[*pair] for pair in zip(expected[number], found) if pair[0] != pair[1]],
                                     f"step {number}: on the disk, and in the mount")
                self.assertEqual(expected[number], found, f"step {number}")
            union.remount()
            self.assertEqual("", difference(expected[-1], describe(union.path, has_times=False)))
            self.assertEqual(expected[-2], looks(str(union.path)))

        self.on_each(build, check)


if __name__ == "__main__":
    main()
