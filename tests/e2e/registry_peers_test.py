#!/usr/bin/env python3
"""pull and push with containerd and umoci: what each of them puts into a registry the other takes, with equal files."""
import json
import subprocess
import time

from registries import needs_registry
from registry_test import BASE, TOP, RegistryTest
from support import entry, layer, main, manifest, needs_fuse, needs_program, needs_root, overlay_of, run

CHANGED = layer(entry("etc", "dir"), entry("etc/motd", data="changed\n"), entry(".wh.more"),
                entry("etc/.wh..wh..opq"), entry("etc/only", data="this\n"))


class Containerd:
    def __init__(self, folder):
        folder.mkdir()
        self.socket = folder / "sock"
        (folder / "config.toml").write_text(
            f'version = 2\nroot = "{folder}/root"\nstate = "{folder}/state"\n'
            f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n[grpc]\n  address = "{self.socket}"\n')
        self.log = open(folder / "log", "wb")
        self.process = subprocess.Popen(["containerd", "-c", folder / "config.toml"], stdout=self.log,
                                        stderr=subprocess.STDOUT)
        for _ in range(1200):
            if self.ctr("version", check=False).returncode == 0:
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise AssertionError("containerd does not serve: " + (folder / "log").read_text())

    def ctr(self, *words, check=True):
        return run("ctr", "-a", self.socket, *words, check=check)

    def close(self):
        self.process.terminate()
        self.process.wait(60)
        self.log.close()


@needs_registry
@needs_program("skopeo")
@needs_root
@needs_fuse
class PeersTest(RegistryTest):
    def mounted(self, image, name="m"):
        target = self.lamina.make_folder(f"mount-{name}")
        self.lamina.call("mount", image, target, "--name", name)
        return target

    def overlay(self, *layers):
        merged = overlay_of(self.lamina.make_folder("stack"), layers)
        self.addCleanup(run, "umount", merged)
        return manifest(merged)[1:]  # No layer says anything of the root.

    @needs_program("containerd")
    def test_what_containerd_pushes_is_pulled_and_what_is_pushed_containerd_mounts(self):
        containerd = Containerd(self.folder / "containerd")
        self.addCleanup(containerd.close)
        archive = self.folder / "image.tar"
        run("skopeo", "copy", "--quiet", "--insecure-policy", self.source, f"oci-archive:{archive}:image:1")
        containerd.ctr("images", "import", "--base-name", "image", archive)
        ours, theirs = f"{self.registry.host}/ours:1", f"{self.registry.host}/theirs:1"
        listed = containerd.ctr("images", "ls", "-q").stdout.split()
        containerd.ctr("images", "tag", listed[0], theirs)
        containerd.ctr("images", "push", "--plain-http", theirs)
        self.assertEqual(self.registry.digest("theirs:1"), self.pull("theirs:1")["manifest_digest"])
        target = self.mounted(f"{self.proxy.host}/theirs:1")
        self.assertEqual(self.overlay(BASE, TOP), manifest(target)[1:])

        (target / "etc/motd").write_text("mine\n")
        (target / "more").unlink()
        expected = manifest(target)[1:]
        self.lamina.call("commit", "m", "mine:1")
        pushed = self.push("mine:1", "ours:1")
        containerd.ctr("images", "pull", "--plain-http", ours)
        self.assertIn(pushed["manifest_digest"], containerd.ctr("images", "ls", f"name=={ours}").stdout)
        mount = self.lamina.make_folder("containerd-mount")
        containerd.ctr("images", "mount", ours, mount)
        self.addCleanup(run, "umount", "-R", mount, check=False)
        self.assertEqual(expected, manifest(mount)[1:])

    @needs_program("umoci")
    def test_what_umoci_makes_is_pulled_and_what_is_pushed_umoci_unpacks(self):
        self.layout.add("changed", [BASE, TOP, CHANGED])
        theirs = self.folder / "source"
        run("umoci", "config", "--image", f"{theirs}:changed", "--config.workingdir", "/etc")
        digest = self.registry.push(f"oci:{theirs}:changed", "theirs:1")
        self.assertEqual(digest, self.pull("theirs:1")["manifest_digest"])
        target = self.mounted(f"{self.proxy.host}/theirs:1")
        self.assertEqual(self.overlay(BASE, TOP, CHANGED), manifest(target)[1:])
        (target / "etc/new").write_text("new\n")
        expected = manifest(target)[1:]
        self.lamina.call("commit", "m", "mine:1")
        self.push("mine:1", "ours:1")
        back = self.folder / "back"
        run("skopeo", "copy", "--quiet", "--insecure-policy", "--src-tls-verify=false",
            f"docker://{self.registry.host}/ours:1", f"oci:{back}:ours")
        bundle = self.folder / "bundle"
        run("umoci", "unpack", "--image", f"{back}:ours", bundle)
        self.assertEqual(expected, manifest(bundle / "rootfs")[1:])
        self.assertEqual("/etc", json.loads((bundle / "config.json").read_text())["process"]["cwd"])


if __name__ == "__main__":
    main()
