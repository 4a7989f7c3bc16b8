#!/usr/bin/env python3
"""A mount, of an image or of folders, is a root: for chroot, unshare, bubblewrap, systemd-nspawn, runc and crun."""
import io
import json
import os
import shutil
import subprocess
import tarfile
import unittest

import support
from containers_test import tools_layer
from support import Layout, StoreTest, entry, layer, main, needs_fuse, needs_program, needs_root, run

TREE = layer(entry("srv", "dir"), entry("srv/tree", "dir"), entry("srv/tree/leaf", data="leaf\n"),
             entry("srv/gone", data="gone\n"), entry("etc", "dir"), entry("etc/motd", data="hello\n"),
             entry("etc/os-release", data="ID=test\n"), entry("usr", "dir"), entry("run", "dir"), entry("var", "dir"),
             entry("etc/machine-id", data=""))
SCRIPT = ("cat /etc/motd; echo more >> /etc/motd; rm /srv/gone; mv /srv/tree /srv/moved; id -u > /srv/new; "
          "cat /srv/*/leaf")
READ_ONLY = "cat /etc/motd; touch /srv/new 2>/dev/null || echo refused"


@needs_fuse
@needs_root
@needs_program("busybox")
class RootTest(StoreTest):
    def setUp(self):
        super().setUp()
        self.target = self.lamina.make_folder("root")
        self.layers = [tools_layer(), TREE]

    def mount_image(self, *options):
        if not (self.lamina.folder / "layout").exists():
            Layout(self.lamina.folder / "layout").add("tools", self.layers)
            self.lamina.call("import", f"oci:{self.lamina.folder}/layout")
        self.lamina.call("mount", "tools", self.target, "--name", "root", *options)

    def mount_folders(self, *options):
        folders = [self.lamina.make_folder(f"layer{number}") for number in (1, 0)]
        for folder, tar in zip(reversed(folders), self.layers):
            with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
                archive.extractall(folder, filter="fully_trusted")
        words = f"lowerdir={folders[0]}:{folders[1]}"
        if "--ro" not in options:
            words += f",upperdir={self.lamina.make_folder('upper')},workdir={self.lamina.make_folder('work')}"
        run(support.BUILD / "fuse/lamina-fuse", "-o", words, self.target)

    def unmount(self):
        run("umount", self.target)
        if (self.lamina.store / "mounts").exists():
            for name in self.lamina.mounts():
                self.lamina.call("umount", name, "--discard")
        for name in ("upper", "work"):
            shutil.rmtree(self.lamina.folder / name, ignore_errors=True)

    def check(self, *words, read_only=()):
        """Both kinds of mount, at `target`: runs `words` and a script, and looks from outside at what it changed."""
        for mount in (self.mount_image, self.mount_folders):
            with self.subTest(mount.__name__):
                mount()
                self.addCleanup(run, "umount", "-l", self.target, check=False)
                result = run(*words, "/bin/sh", "-c", SCRIPT)
                self.assertEqual("hello\nleaf\n", result.stdout, result.stderr)
                self.assertEqual("hello\nmore\n", (self.target / "etc/motd").read_text())
                self.assertEqual(["moved", "new"], sorted(os.listdir(self.target / "srv")))
                self.assertEqual("0\n", (self.target / "srv/new").read_text())
                self.unmount()
                mount("--ro")
                result = run(*(read_only or words), "/bin/sh", "-c", READ_ONLY)
                self.assertEqual("hello\nrefused\n", result.stdout, result.stderr)
                self.unmount()

    def test_chroot(self):
        self.check("chroot", self.target)

    def test_unshare_with_a_root_of_its_own(self):
        self.check("unshare", "--mount", "--propagation", "slave", "--pid", "--fork", "--root", self.target)

    @needs_program("bwrap")
    def test_bubblewrap(self):
        words = (self.target, "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--unshare-pid",
                 "--unshare-ipc", "--die-with-parent")
        self.check("bwrap", "--bind", *words, read_only=("bwrap", "--ro-bind", *words))

    @needs_program("systemd-nspawn")
    def test_systemd_nspawn(self):
        words = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--pipe", "-D", self.target]
        self.check(*words, read_only=[*words, "--read-only"])

    def run_bundle_of_folders(self, runtime):
        """What `spec` of the runtime writes, with our mount as its rootfs."""
        bundle = self.lamina.make_folder("bundle")
        self.target = bundle / "rootfs"
        self.target.mkdir()
        self.mount_folders()
        self.addCleanup(run, "umount", "-l", self.target, check=False)
        run(runtime, "spec", cwd=bundle)
        config = json.loads((bundle / "config.json").read_text())
        config["root"]["readonly"] = False
        config["process"].update(terminal=False, args=["/bin/sh", "-c", SCRIPT])
        config["process"].pop("rlimits", None)
        (bundle / "config.json").write_text(json.dumps(config))
        state = self.lamina.make_folder("state")
        words = [runtime, "--root", state, "run", "--bundle", bundle, f"lamina-{os.getpid()}"]
        result = run(*words, check=False, stdin=subprocess.DEVNULL)
        if "hybrid" in result.stderr:
            result = run(*support.without_unified_cgroups(*words), check=False, stdin=subprocess.DEVNULL)
        self.assertEqual((0, "hello\nleaf\n"), (result.returncode, result.stdout), result.stderr)
        self.assertEqual(["moved", "new"], sorted(os.listdir(self.target / "srv")))
        run("umount", self.target)

    @needs_program("runc")
    def test_runc_runs_a_bundle_over_folders(self):
        self.run_bundle_of_folders("runc")

    @needs_program("crun")
    def test_crun_runs_a_bundle_over_folders(self):
        self.run_bundle_of_folders("crun")


del StoreTest

if __name__ == "__main__":
    main()
