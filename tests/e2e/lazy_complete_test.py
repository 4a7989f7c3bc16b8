#!/usr/bin/env python3
"""Lazy images become whole: what is missing is fetched, all of it compared, and what was not true of it put aside."""
import concurrent.futures
import ctypes
import os
import signal
import struct
import subprocess

from lazy_scene import INDEX_TYPE, SMALL_BYTES, SMALL_FILES, LazyScene
from registries import needs_registry
from registry_test import noise, support_store
from support import entry, layer, main, needs_fuse, needs_program, needs_root, sha256, wait_for

OVERLAP = 1.15
FOOTER = 96  # Of a recipe (store/FORMAT.md, "Recipe").


def entries(**changed):
    """The entries of a layer; `changed` replaces some, None takes one away, `more` adds one."""
    named = {"etc": entry("etc", "dir"), "motd": entry("etc/motd", data="hello\n"),
             "link": entry("etc/link", "symlink", target="motd"), "gone": entry("etc/.wh.gone"),
             "attr": entry("etc/attr", data="a", xattrs={"user.color": b"red"}),
             "data": entry("data", data=noise(90_000, 5))}
    return [value for value in (named | changed).values() if value]


TRUTH = layer(*entries())
SWAPPED = entries()
SWAPPED[1], SWAPPED[2] = SWAPPED[2], SWAPPED[1]
LIES = {  # What the line says -> the layer that the index tells of.
    'etc/motd": its mode is 0644, the index says 0600': entries(motd=entry("etc/motd", data="hello\n", mode=0o600)),
    'etc/motd": its owner is 0, the index says 7': entries(motd=entry("etc/motd", data="hello\n", owner=(7, 0))),
    'etc/motd": its group is 0, the index says 8': entries(motd=entry("etc/motd", data="hello\n", owner=(0, 8))),
    'etc/motd": its size is 6, the index says 7': entries(motd=entry("etc/motd", data="hello\n!")),
    'etc/motd": its content': entries(motd=entry("etc/motd", data="jello\n")),
    'etc/motd": its time is 1700000000': entries(motd=entry("etc/motd", data="hello\n", mtime=1)),
    'etc/link": its link target is "motd", the index says "attr"': entries(
        link=entry("etc/link", "symlink", target="attr")),
    'etc/attr": its xattr "user.color" is "red", the index says "bad"': entries(
        attr=entry("etc/attr", data="a", xattrs={"user.color": b"bad"})),
    'whiteout "etc/.wh.gone": the index lacks': entries(gone=entry("etc/.wh.gono")),
    'its place in the order': SWAPPED,
    'etc/more": the layer has no such entry': entries(more=entry("etc/more", "dir")),
    'etc/link": the index lacks this entry': entries(link=None),
}


def checksum(data):
    function = ctypes.CDLL("libxxhash.so.0").XXH3_64bits
    function.restype, function.argtypes = ctypes.c_uint64, [ctypes.c_char_p, ctypes.c_size_t]
    return function(data, len(data))


def passed_off_as(recipe, tar):
    """The recipe of one tar as that of another one."""
    footer = bytes.fromhex(sha256(tar)[7:]) + recipe[-FOOTER + 32:-8]
    return recipe[:-FOOTER] + footer + struct.pack("<Q", checksum(footer))


@needs_registry
@needs_program("skopeo")
@needs_root
@needs_fuse
class LazyLieTest(LazyScene):
    layers = [TRUTH]

    def recipe_of(self, tar):
        with support_store(self) as other:
            self.layout.add(sha256(tar)[7:19], [tar])
            other.call("import", f"oci:{self.folder}/source:{sha256(tar)[7:19]}")
            return (other.store / f"layers/{sha256(tar)[7:]}.recipe").read_bytes()

    def publish_lie(self, tar):
        self.assertEqual(len(TRUTH), len(tar))
        (recipe, _), (points, _) = self.artifact_blobs(INDEX_TYPE)
        false = self.upload(passed_off_as(self.recipe_of(tar), TRUTH), recipe["mediaType"])
        self.publish_artifact(INDEX_TYPE, [{**false, "annotations": recipe["annotations"]}, points])

    def test_an_index_that_lies_in_any_field_is_found_out_and_its_image_put_aside(self):
        for says, false in LIES.items():
            with self.subTest(says):
                self.publish_lie(layer(*false))
                with support_store(self) as self.lamina:
                    self.lamina.call("pull", "--lazy=always", self.name)
                    self.assertIn(says, self.lamina.fails("complete", self.name))
                    self.assertEqual("quarantined", self.state())

    def test_a_quarantined_image_is_refused_by_all_that_would_use_it(self):
        self.publish_lie(layer(*entries(motd=entry("etc/motd", data="hello\n", mode=0o4755))))
        self.lamina.call("pull", "--lazy=always", self.name)
        self.mount()  # Nothing is known against it yet.
        says = 'is quarantined: "etc/motd": its mode is 0644, the index says 4755'
        self.assertIn(says, self.lamina.fails("push", self.name))
        os.kill(self.lamina.daemon_pid(), signal.SIGKILL)
        image = self.lamina.json("images")["images"][0]
        self.assertEqual("quarantined", image["state"])
        self.assertIn(says, image["quarantine"])
        self.assertIn("quarantined", self.lamina.call("images").stdout)
        for words in (["mount", self.name, self.lamina.make_folder("n")], ["commit", "m", "mine:1"],
                      ["push", "--index", self.name], ["save", self.name, f"oci:{self.folder}/saved"],
                      ["complete", self.name], ["pull", self.name], ["pull", "--lazy=always", self.name]):
            self.assertIn(says, self.lamina.fails(*words))
        self.lamina.call("umount", "m", "--discard")
        self.lamina.call("rmi", self.name)
        self.lamina.call("gc")
        self.lamina.call("pull", self.name)
        self.assertEqual("verified", self.state())


@needs_registry
@needs_program("skopeo")
@needs_root
@needs_fuse
class LazyCompleteTest(LazyScene):
    def setUp(self):
        super().setUp()
        self.lamina.call("pull", "--lazy=always", self.name)
        self.proxy.forget()

    def check_all(self, target):
        for number in range(SMALL_FILES):
            self.assertEqual(noise(SMALL_BYTES, 1000 + number), (target / f"small/{number:03}").read_bytes())

    def restart_with(self, **variables):
        os.kill(self.lamina.daemon_pid(), signal.SIGKILL)
        self.lamina.environment = {**self.lamina.environment, **variables}
        self.lamina.call("images")

    def test_what_was_read_is_not_fetched_again_and_no_registry_is_needed_afterwards(self):
        target = self.mount("--ro")
        for number in range(0, SMALL_FILES, 50):
            (target / f"small/{number:03}").read_bytes()
        self.assertEqual("lazy", self.state())
        self.assertIn("verified", self.lamina.call("complete", self.name).stdout)
        print(f"complete: {len(self.layer_requests())} requests, {self.layer_bytes()} of {self.blob_bytes()} bytes")
        self.assertLess(self.layer_bytes(), self.blob_bytes() * OVERLAP)
        self.registry.close()
        self.check_all(target)
        self.assertEqual("verified", self.state())
        self.assertEqual([], self.lamina.json("verify", "--data")["problems"])
        left = [path.name for path in (self.lamina.store / "layers").iterdir() if path.suffix != ".recipe"]
        self.assertEqual([], left)

    def test_it_goes_on_where_a_killed_daemon_was(self):
        self.proxy.bytes_per_second = 4_000_000
        first = subprocess.Popen([self.lamina.program, "--store", self.lamina.store, "complete", self.name],
                                 env=self.lamina.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: len(self.layer_requests()) >= 3)
        os.kill(self.lamina.daemon_pid(), signal.SIGKILL)
        self.assertNotEqual(0, first.wait(60))
        self.proxy.bytes_per_second = None
        self.lamina.call("complete", self.name)
        self.assertEqual("verified", self.state())
        self.assertLess(self.layer_bytes(), self.blob_bytes() * 1.9)
        self.assertEqual([], self.lamina.json("verify", "--data")["problems"])

    def test_it_stops_at_once_when_its_client_goes(self):
        client = subprocess.Popen([self.lamina.program, "--store", self.lamina.store, "complete", self.name, "--rate",
                                   "100k"], env=self.lamina.environment, stderr=subprocess.DEVNULL)
        wait_for(self.layer_requests)
        client.send_signal(signal.SIGINT)
        client.wait(60)
        self.assertEqual("lazy", self.state())
        target = self.mount("--ro")
        self.assertEqual(noise(SMALL_BYTES, 1200), (target / "small/200").read_bytes())
        self.lamina.call("complete", self.name)
        self.assertEqual("verified", self.state())

    def test_two_at_once_and_readers_between_them_share_what_comes(self):
        target = self.mount("--ro")
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            work = [pool.submit(self.lamina.call, "complete", self.name) for _ in range(2)]
            work.append(pool.submit(self.lamina.call, "save", self.name, f"oci:{self.folder}/saved"))
            work.append(pool.submit(self.check_all, target))
            for part in work:
                part.result()
        self.assertEqual("verified", self.state())
        self.assertLess(self.layer_bytes(), self.blob_bytes() * 1.3)

    def test_mounted_images_are_completed_in_the_background_also_by_the_next_daemon(self):
        self.restart_with(LAMINA_COMPLETE="on")
        self.proxy.bytes_per_second = 4_000_000
        target = self.mount("--ro")
        wait_for(self.layer_requests)
        os.kill(self.lamina.daemon_pid(), signal.SIGKILL)
        self.proxy.bytes_per_second = None
        wait_for(lambda: self.state() == "verified", 120)
        self.registry.close()
        self.check_all(target)

    def test_a_registry_that_is_gone_or_lies_costs_nothing_but_the_try(self):
        blob = self.manifest()["layers"][0]["digest"]
        self.proxy.fault(blob, times=999, status=404)
        self.lamina.fails("complete", self.name)
        self.assertEqual("lazy", self.state())
        self.proxy.rules.clear()
        self.proxy.fault(blob, times=999, change_at=40_000)
        self.lamina.fails("complete", self.name)
        self.assertEqual("lazy", self.state())
        self.proxy.rules.clear()
        self.lamina.call("complete", self.name)
        self.assertEqual("verified", self.state())

    def test_a_store_may_refuse_to_mount_what_is_not_verified(self):
        self.restart_with(LAMINA_REQUIRE_VERIFIED="true")
        self.assertIn("lamina complete", self.lamina.fails("mount", self.name, self.lamina.make_folder("m")))
        self.assertEqual({}, self.lamina.mounts())
        self.lamina.call("complete", self.name)
        self.check_all(self.mount("--ro"))


if __name__ == "__main__":
    main()
