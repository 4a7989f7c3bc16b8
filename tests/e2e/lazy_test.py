#!/usr/bin/env python3
"""Images that are mounted before their layers are here: bytes come when they are read, and are what they should be."""
import errno
import os
import signal
import subprocess

from lazy_scene import LazyScene
from registries import needs_registry
from registry_test import BASE, TOP, noise
from support import Lamina, entry, layer, main, manifest, needs_fuse, needs_program, needs_root, overlay_of, run

WIDE = layer(entry("wide", "dir"), *[entry(f"wide/{number:02}", data=noise(1_500_000, 100 + number))
                                     for number in range(20)])


@needs_registry
@needs_program("skopeo")
@needs_root
@needs_fuse
class LazyTest(LazyScene):
    layers = [WIDE, BASE, TOP]

    def test_only_what_is_read_is_fetched(self):
        pulled = self.lamina.json("pull", "--lazy=always", self.name)
        self.assertEqual((self.digest, True), (pulled["manifest_digest"], pulled["lazy"]))
        self.assertEqual(0, self.layer_bytes())
        target = self.mount("--ro")
        self.assertEqual(0, self.layer_bytes())
        self.assertEqual("hello\n", (target / "etc/motd").read_text())
        total = sum(blob["size"] for blob in self.manifest()["layers"])
        fetched = self.settled_bytes()
        self.assertGreater(fetched, 0)
        self.assertEqual(noise(1_500_000, 105), (target / "wide/05").read_bytes())
        fetched = self.settled_bytes()
        self.assertLess(fetched, total / 2)
        self.assertEqual(noise(1_500_000, 105), (target / "wide/05").read_bytes())
        self.assertEqual(fetched, self.settled_bytes())
        self.assertEqual([], self.lamina.json("verify", "--data")["problems"])

    def test_all_of_it_read_through_the_mount_is_equal(self):
        self.lamina.call("pull", "--lazy=always", self.name)
        target = self.mount("--ro")
        merged = overlay_of(self.lamina.make_folder("stack"), self.layers)
        self.addCleanup(run, "umount", merged)
        self.assertEqual(manifest(merged)[1:], manifest(target)[1:])
        total = sum(blob["size"] for blob in self.manifest()["layers"])
        self.assertLess(self.layer_bytes(), total * 1.1)  # Each byte once, but for chunks that end in the next part.

    def test_what_is_pulled_whole_or_committed_is_compared_with_its_digests(self):
        self.lamina.call("pull", "--lazy=always", self.name)
        target = self.mount()
        (target / "new").write_text("mine\n")
        self.lamina.call("commit", "m", "mine:1")
        self.assertFalse(any(image["lazy"] for image in self.lamina.json("images")["images"]))
        self.lamina.call("umount", "m", "--discard")
        self.proxy.forget()
        self.lamina.call("pull", self.name)
        self.assertEqual(0, self.layer_bytes())
        self.assertEqual([], self.lamina.json("verify", "--data")["problems"])

    def test_wrong_bytes_reach_nobody_and_are_not_kept(self):
        self.lamina.call("pull", "--lazy=always", self.name)
        blob = self.manifest()["layers"][0]["digest"]
        target = self.mount("--ro")
        self.proxy.fault(blob, times=999, change_at=500_000)
        with self.assertRaises(OSError):
            (target / "wide/00").read_bytes()
        self.proxy.rules.clear()
        self.assertEqual(noise(1_500_000, 100), (target / "wide/00").read_bytes())
        self.assertEqual([], self.lamina.json("verify", "--data")["problems"])

    def test_reads_outlive_the_daemon(self):
        self.lamina.call("pull", "--lazy=always", self.name)
        target = self.mount("--ro")
        self.assertEqual("hello\n", (target / "etc/motd").read_text())
        os.kill(self.lamina.daemon_pid(), signal.SIGKILL)
        reader = subprocess.Popen(["sha256sum", str(target / "wide/19")], stdout=subprocess.PIPE, text=True)
        self.addCleanup(reader.kill)
        self.assertEqual("hello\n", (target / "etc/motd").read_text())
        self.lamina.call("images")  # Starts the daemon, which the waiting read finds.
        self.assertEqual(0, reader.wait(60))

    def test_a_full_disk_keeps_no_reader_from_his_bytes(self):
        disk = self.lamina.make_folder("disk")
        run("mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk)
        self.addCleanup(run, "umount", "-l", disk)
        small = Lamina(base=disk)
        self.addCleanup(small.close)
        small.environment = self.lamina.environment
        small.call("pull", "--lazy=always", self.name)
        target = small.make_folder("m")
        small.call("mount", self.name, target, "--name", "m", "--ro")
        with open(disk / "filler", "wb", buffering=0) as filler, self.assertRaises(OSError) as full:
            while True:
                filler.write(bytes(4096))
        self.assertEqual(errno.ENOSPC, full.exception.errno)
        for number in (5, 6):
            self.assertEqual(noise(1_500_000, 100 + number), (target / f"wide/{number:02}").read_bytes())
        (disk / "filler").unlink()
        self.assertEqual(noise(1_500_000, 107), (target / "wide/07").read_bytes())
        self.assertEqual([], small.json("verify", "--data")["problems"])

    def test_an_image_without_an_index_says_what_makes_one(self):
        self.registry.push(self.source, "image:1")
        error = self.lamina.fails("pull", "--lazy=always", f"{self.proxy.host}/image:1")
        self.assertIn("push --index", error)
        pulled = self.lamina.json("pull", "--lazy=auto", f"{self.proxy.host}/image:1")
        self.assertFalse(pulled["lazy"])


if __name__ == "__main__":
    main()
