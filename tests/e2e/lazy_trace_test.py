#!/usr/bin/env python3
"""Start traces: what programs wanted first is fetched ahead of them the next time, elsewhere too."""
from lazy_scene import SMALL, SMALL_BYTES, SMALL_FILES, TRACE_TYPE, LazyScene
from registries import needs_registry
from registry_test import noise, support_store
from support import entry, layer, main, needs_fuse, needs_program, needs_root, sha256, wait_for

START = [0, 80, 160, 7, 87, 167]  # Files that a program reads when it starts: of pairs of neighbouring parts.


@needs_registry
@needs_program("skopeo")
@needs_root
@needs_fuse
class LazyTraceTest(LazyScene):
    def start_program(self, target):
        for number in START:
            self.assertEqual(noise(SMALL_BYTES, 1000 + number), (target / f"small/{number:03}").read_bytes())

    def figures(self, what):
        print(f"{what}: {len(self.layer_requests())} requests, {self.layer_bytes()} of {self.blob_bytes()} bytes")
        return len(self.layer_requests())

    def cold_start(self, what):
        self.proxy.forget()
        target = self.mount("--ro")
        self.start_program(target)
        count = self.figures(what)
        self.lamina.call("umount", "m")
        return count

    def start_of_another_node(self):
        """What a node with a trace of it asks for."""
        with support_store(self) as self.lamina:
            self.lamina.call("pull", "--lazy=always", self.name)
            self.assertEqual(1, len(list((self.lamina.store / "traces").iterdir())))
            return self.cold_start("with a trace")

    def traces(self):
        folder = self.lamina.store / "traces"
        return [path.read_text() for path in folder.iterdir()] if folder.exists() else []

    def test_a_trace_is_published_beside_the_index_and_another_node_asks_less_often(self):
        self.lamina.call("pull", "--lazy=always", self.name)
        first = self.cold_start("without a trace")
        self.lamina.call("push", "--index", self.name)
        self.assertEqual(3, len(self.artifact_blobs(TRACE_TYPE)))  # With the start bundle and its directory.
        again = self.start_of_another_node()
        self.assertLess(again, first)

    def test_with_a_trace_bytes_come_before_anybody_reads(self):
        self.lamina.call("pull", "--lazy=always", self.name)
        self.cold_start("without a trace")
        self.lamina.call("push", "--index", self.name)
        self.publish_artifact(TRACE_TYPE, [blob for blob, _ in self.artifact_blobs(TRACE_TYPE)][:1])  # No bundle.
        with support_store(self) as self.lamina:
            self.lamina.call("pull", "--lazy=always", self.name)
            self.proxy.forget()
            target = self.mount("--ro")
            wait_for(self.layer_requests)
            self.start_program(target)

    def test_runs_are_merged_and_published_again_only_when_they_add_something(self):
        self.lamina.call("pull", "--lazy=always", self.name)
        self.cold_start("without a trace")
        self.lamina.call("push", "--index", self.name)
        published = self.artifact_blobs(TRACE_TYPE)[0][1]
        self.lamina.call("push", "--index", self.name)
        self.assertEqual(published, self.artifact_blobs(TRACE_TYPE)[0][1])
        self.assertEqual(1, len([one for one in self.artifacts()["manifests"] if one["artifactType"] == TRACE_TYPE]))

    def test_a_trace_of_other_images_is_not_believed(self):
        for bad in (f"lamina start trace 1\n\n{sha256(b'elsewhere')}\n", "nonsense", ""):
            with self.subTest(bad):
                self.publish_artifact(TRACE_TYPE, [self.upload(bad.encode(), TRACE_TYPE)] if bad else [])
                with support_store(self) as self.lamina:
                    self.lamina.call("pull", "--lazy=always", self.name)
                    self.assertEqual([], self.traces())
                    self.assertIn("start trace not used", (self.lamina.store / "lamina.sock.log").read_text())
                    self.start_program(self.mount("--ro"))

    def test_another_version_of_the_image_starts_with_the_trace_of_the_first(self):
        self.lamina.call("pull", "--lazy=always", self.name)
        self.cold_start("without a trace")
        self.lamina.call("umount", "m", "--discard", check=False)
        self.lamina.call("rmi", self.name)
        self.lamina.call("daemon", "stop")
        self.lamina.call("gc")
        self.layout.add("next", [layer(entry("first", data=noise(300_000, 77))), SMALL])
        self.digest = self.registry.push(f"oci:{self.folder}/source:next", "wide:2")
        self.name = f"{self.proxy.host}/wide:2"
        self.publish(self.name)
        self.lamina.call("pull", "--lazy=always", self.name)
        self.proxy.forget()
        target = self.mount("--ro")
        wait_for(self.layer_requests)
        self.start_program(target)


if __name__ == "__main__":
    main()
