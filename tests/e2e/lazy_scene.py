"""What the tests of lazy images share: an image in a registry with its index, and counts of what is asked for."""
import gzip

from registry_test import RegistryTest, noise, support_store
from support import entry, layer

SMALL_FILES = 240
SMALL_BYTES = 100_000
SMALL = layer(entry("small", "dir"), *[entry(f"small/{number:03}", data=noise(SMALL_BYTES, 1000 + number))
                                       for number in range(SMALL_FILES)])


class LazyScene(RegistryTest):
    """One node has pushed the image `self.name` with its index; `self.lamina` is another one."""
    layers = [SMALL]

    def setUp(self):
        super().setUp()
        self.name = f"{self.proxy.host}/wide:1"
        self.layout.add("wide", self.layers, compress=lambda tar: gzip.compress(tar, 1))
        self.digest = self.registry.push(f"oci:{self.folder}/source:wide", "wide:1")
        (self.folder / "registries.conf").write_text(f'[[registry]]\nlocation = "{self.proxy.host}"\ninsecure = true\n')
        self.publish(self.name)
        self.proxy.forget()

    def publish(self, name):
        with support_store(self) as first:
            first.call("pull", name)
            pushed = first.json("push", "--index", name)
        self.assertEqual((self.digest, 0), (pushed["manifest_digest"], pushed["layers_sent"]))

    def mount(self, *options, name="m"):
        target = self.lamina.make_folder(name)
        self.lamina.call("mount", self.name, target, "--name", name, *options)
        return target

    def manifest(self):
        return self.lamina.json("inspect", self.name)["manifest"]

    def layer_requests(self):
        digests = [blob["digest"] for blob in self.manifest()["layers"]]
        return [seen for seen in self.proxy.requests("/blobs/") if seen.path.split("/")[-1] in digests]

    def layer_bytes(self):
        return sum(seen.sent_bytes for seen in self.layer_requests())

    def blob_bytes(self):
        return sum(blob["size"] for blob in self.manifest()["layers"])

    def most_often_sent(self):
        """How many requests brought the byte that came most often."""
        edges = []
        for seen in self.layer_requests():
            first = int(seen.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
            edges += [(first, seen.path, 1), (first + seen.sent_bytes, seen.path, -1)]
        most, now = 0, {}
        for _, path, step in sorted(edges, key=lambda edge: (edge[1], edge[0], edge[2])):
            now[path] = now.get(path, 0) + step
            most = max(most, now[path])
        return most
