#!/usr/bin/env python3
"""Start bundles: what a start wants comes in one request, and nothing else; what is wrong with it, by the layers."""

import json
import subprocess

from lazy_scene import INDEX_TYPE, SMALL, SMALL_BYTES, TRACE_TYPE, LazyScene
from registries import needs_registry
from registry_test import noise, support_store
from support import entry, layer, main, needs_fuse, needs_program, needs_root, sha256, wait_for

START = [200, 3, 90, 150, 4, 31]  # Files that the program reads, in this order.
BUNDLE_TYPE = "application/vnd.lamina.start-bundle.v1"
DIRECTORY_TYPE = "application/vnd.lamina.start-bundle-directory.v1"


@needs_registry
@needs_program("skopeo")
@needs_root
@needs_fuse
class StartBundleTest(LazyScene):
    def setUp(self):
        super().setUp()
        self.publish_start()

    def publish_start(self):
        with support_store(self) as self.lamina:
            self.pull()
            self.start_program(self.mount("--ro"))
            self.lamina.call("push", "--index", self.name)  # While it is mounted.
        self.trace, self.directory, self.bundle = [blob for blob, _ in self.artifact_blobs(TRACE_TYPE)]
        self.proxy.forget()

    def publish_other(self, number):
        self.layout.add(f"other{number}", [SMALL, layer(entry("other", data=noise(300_000, number)))])
        self.digest = self.registry.push(f"oci:{self.folder}/source:other{number}", f"wide:{number}")
        self.name = f"{self.proxy.host}/wide:{number}"
        self.publish(self.name)

    def start_program(self, target):
        for number in START:
            self.assertEqual(noise(SMALL_BYTES, 1000 + number), (target / f"small/{number:03}").read_bytes())

    def bundle_requests(self):
        return self.proxy.requests(self.bundle["digest"])

    def bundle_has_come(self):
        return sum(seen.sent_bytes for seen in self.bundle_requests()) == self.bundle["size"]

    def pull(self):
        self.lamina.call("pull", "--lazy=always", self.name)

    def log(self):
        return (self.lamina.store / "lamina.sock.log").read_text()

    def test_it_holds_what_was_read_and_no_more(self):
        self.assertEqual((DIRECTORY_TYPE, BUNDLE_TYPE), (self.directory["mediaType"], self.bundle["mediaType"]))
        read = len(START) * SMALL_BYTES
        self.assertLess(read * 0.99, self.bundle["size"])
        self.assertLess(self.bundle["size"], read * 1.01)
        in_bundle = [line.split()[0] for line in self.artifact_blobs(TRACE_TYPE)[1][1].decode().splitlines()
                     if line.startswith("sha256:")]
        self.assertEqual(self.trace_lines(), in_bundle)

    def test_a_start_gets_all_of_it_in_one_request_and_asks_no_layer(self):
        with support_store(self) as self.lamina:
            self.pull()
            wait_for(self.bundle_has_come)
            self.start_program(self.mount("--ro"))
            self.assertEqual(1, len(self.bundle_requests()))
            self.assertEqual([], self.layer_requests())
            explained = self.lamina.json("explain", self.name)
            self.assertEqual([("trace", 1, self.bundle["size"])],
                             [(one["kind"], one["requests"], one["bytes"]) for one in explained["bundles"]])
            layer = explained["layers"][0]
            self.assertEqual((len(START) * SMALL_BYTES, 0), (layer["waited_bytes"] + layer["prefetched_bytes"],
                                                             layer["local_bytes"]))
            self.assertIn("start bundle", self.lamina.call("explain", self.name).stdout)

    def test_who_reads_while_it_comes_waits_for_it(self):
        self.proxy.fault(self.bundle["digest"], delay=1.5)
        with support_store(self) as self.lamina:
            self.pull()
            self.start_program(self.mount("--ro"))
            self.assertEqual([], self.layer_requests())
            waits = self.lamina.json("explain", "m")["start"]["waits"]
            self.assertTrue(waits and all(wait["kind"] == "trace" for wait in waits), waits)

    def test_another_file_does_not_wait_for_it(self):
        self.proxy.fault(self.bundle["digest"], delay=20)
        with support_store(self) as self.lamina:
            self.pull()
            self.assertEqual(noise(SMALL_BYTES, 1120), (self.mount("--ro") / "small/120").read_bytes())
            self.assertFalse(self.bundle_has_come())

    def test_what_it_does_not_bring_comes_by_the_layers(self):
        faults = {"gone": {"status": 404}, "cut": {"cut_after": 200_000}, "changed": {"change_at": 300_000},
                  "reset": {"reset": True}, "all of it for a range": {"drop_range": True, "change_at": 0}}
        for what, fault in faults.items():
            with self.subTest(what):
                self.proxy.rules.clear()
                self.proxy.fault(self.bundle["digest"], times=50, **fault)
                with support_store(self) as self.lamina:
                    self.pull()
                    self.start_program(self.mount("--ro"))
                    self.lamina.call("umount", "m")
                    self.lamina.call("verify", "--data")

    def test_one_of_another_image_is_not_believed_and_nothing_of_it_is_stored(self):
        data = noise(SMALL_BYTES, 5)
        self.proxy.rules.clear()
        for text in (f"lamina start bundle 1\nframe {len(data)}\n{sha256(data)} {len(data)}\n", "nonsense"):
            with self.subTest(text):
                self.publish_artifact(TRACE_TYPE, [self.trace, self.upload(text.encode(), DIRECTORY_TYPE),
                                                   self.upload(data, BUNDLE_TYPE)])
                with support_store(self) as self.lamina:
                    self.pull()
                    self.assertIn("start trace not used", self.log())
                    self.assertEqual([], [path.name for path in (self.lamina.store / "packs").glob("*.pack")])
                    self.start_program(self.mount("--ro"))

    def test_a_directory_that_lies_about_sizes_costs_a_way_by_the_layers_and_nothing_else(self):
        text = self.artifact_blobs(TRACE_TYPE)[1][1].decode()
        first = next(line for line in text.splitlines() if line.startswith("sha256:"))
        lie = text.replace(first, f"{first.split()[0]} {int(first.split()[1]) - 1}")
        self.publish_artifact(TRACE_TYPE, [self.trace, self.upload(lie.encode(), DIRECTORY_TYPE), self.bundle])
        with support_store(self) as self.lamina:
            self.pull()
            self.start_program(self.mount("--ro"))
            self.assertNotEqual([], self.layer_requests())

    def artifact_requests(self):
        digests = "|".join(entry["digest"] for entry in self.artifacts()["manifests"])
        return self.proxy.requests(f"/manifests/({digests})")

    def test_what_is_published_is_known_from_its_list(self):
        with support_store(self) as self.lamina:
            self.pull()
            self.assertEqual([], self.artifact_requests())

    def test_a_list_that_lies_about_what_it_names_is_not_believed(self):
        index = self.artifacts()
        for entry in index["manifests"]:
            entry["annotations"]["lamina.manifest"] = entry["annotations"]["lamina.manifest"].replace("0", "1")
        self.ask_registry("PUT", f"/v2/wide/manifests/{self.digest.replace(':', '-')}", json.dumps(index).encode(),
                          index["mediaType"])
        with support_store(self) as self.lamina:
            self.pull()
            self.assertEqual(2, len(self.artifact_requests()))
            wait_for(self.bundle_has_come)
            self.start_program(self.mount("--ro"))
            self.assertEqual([], self.layer_requests())

    def trace_lines(self):
        return self.artifact_blobs(TRACE_TYPE)[0][1].decode().splitlines()[2:]

    def test_what_starts_from_an_image_that_is_whole_is_published_too(self):
        lazily = self.trace_lines()
        self.publish_other(2)
        with support_store(self) as self.lamina:
            self.lamina.call("pull", self.name)
            self.start_program(self.mount())
            self.lamina.call("umount", "m")
            self.lamina.call("push", "--index", self.name)
        self.assertEqual(lazily, self.trace_lines())

    def test_no_reader_of_another_image_waits_until_one_is_trusted(self):
        self.publish_other(2)
        self.publish_start()
        started, index = self.name, self.artifact_blobs(INDEX_TYPE)
        self.publish_other(3)
        with support_store(self) as self.lamina:
            self.pull()
            target = self.mount("--ro")
            self.proxy.forget()
            for blob, _ in index:
                self.proxy.fault(blob["digest"], times=9, delay=30)
            pulling = subprocess.Popen([self.lamina.program, "--store", self.lamina.store, "pull", "--lazy=always",
                                        started], env=self.lamina.environment, stderr=subprocess.DEVNULL)
            self.addCleanup(pulling.kill)
            wait_for(self.bundle_has_come)
            self.assertEqual(noise(SMALL_BYTES, 1200), (target / "small/200").read_bytes())
            self.assertNotEqual([], self.layer_requests())
            self.assertIsNone(pulling.poll())
            pulling.kill()
            pulling.wait()

    def test_what_is_here_is_not_fetched(self):
        with support_store(self) as self.lamina:
            self.lamina.call("pull", self.name)
            self.proxy.forget()
            self.lamina.call("pull", "--lazy=always", self.name)
            self.assertEqual([], self.bundle_requests())

    def test_a_daemon_that_ends_while_it_comes_leaves_a_whole_image(self):
        self.proxy.fault(self.bundle["digest"], delay=30)
        with support_store(self) as self.lamina:
            self.pull()
            self.lamina.call("daemon", "stop")
            self.start_program(self.mount("--ro"))
            self.lamina.call("umount", "m")
            self.lamina.call("verify", "--data")


if __name__ == "__main__":
    main()
