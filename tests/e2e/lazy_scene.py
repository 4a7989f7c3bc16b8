"""What the tests of lazy images share: an image in a registry with its index, and counts of what is asked for."""
import gzip
import http.client
import json
import time

from registry_test import RegistryTest, noise, support_store
from support import entry, layer, sha256

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
MANIFEST_TYPES = f"{MANIFEST_TYPE}, application/vnd.oci.image.index.v1+json, */*"
INDEX_TYPE = "application/vnd.lamina.index.v1"
TRACE_TYPE = "application/vnd.lamina.start-trace.v1"
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

    def state(self):
        return self.lamina.json("inspect", self.name)["image"]["state"]

    def manifest(self):
        return self.lamina.json("inspect", self.name)["manifest"]

    def layer_requests(self):
        digests = [blob["digest"] for blob in self.manifest()["layers"]]
        return [seen for seen in self.proxy.requests("/blobs/") if seen.path.split("/")[-1] in digests]

    def layer_bytes(self):
        return sum(seen.sent_bytes for seen in self.layer_requests())

    def settled_bytes(self):
        """The same when no more come: a reader has what he wants before its request has ended."""
        before = -1
        while before != self.layer_bytes():
            before = self.layer_bytes()
            time.sleep(0.3)
        return before

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

    # ---- what others may publish -----------------------------------------------------------------------------------

    def ask_registry(self, method, path, body=None, kind="application/octet-stream"):
        connection = http.client.HTTPConnection("127.0.0.1", self.registry.port, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": kind, "Accept": MANIFEST_TYPES})
            response = connection.getresponse()
            data = response.read()
            self.assertLess(response.status, 300, (method, path, data))
            return response, data
        finally:
            connection.close()

    def upload(self, data, kind):
        begun, _ = self.ask_registry("POST", "/v2/wide/blobs/uploads/")
        place = begun.headers["Location"].split(self.registry.host)[-1]
        self.ask_registry("PUT", f"{place}&digest={sha256(data)}", data)
        return {"mediaType": kind, "digest": sha256(data), "size": len(data)}

    def artifacts(self):
        return json.loads(self.ask_registry("GET", f"/v2/wide/manifests/{self.digest.replace(':', '-')}")[1])

    def artifact_blobs(self, kind):
        """Descriptors and bytes of what is published as this type."""
        found = [entry for entry in self.artifacts()["manifests"] if entry["artifactType"] == kind][-1]
        document = json.loads(self.ask_registry("GET", f"/v2/wide/manifests/{found['digest']}")[1])
        return [(blob, self.ask_registry("GET", f"/v2/wide/blobs/{blob['digest']}")[1]) for blob in document["layers"]]

    def publish_artifact(self, kind, blobs):
        """In place of all others of its type."""
        subject = {"mediaType": MANIFEST_TYPE, "digest": self.digest,
                   "size": len(self.ask_registry("GET", f"/v2/wide/manifests/{self.digest}")[1])}
        text = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "artifactType": kind,
                           "config": self.upload(b"{}", "application/vnd.oci.empty.v1+json"), "layers": blobs,
                           "subject": subject}).encode()
        self.ask_registry("PUT", f"/v2/wide/manifests/{sha256(text)}", text, MANIFEST_TYPE)
        index = self.artifacts()
        index["manifests"] = [entry for entry in index["manifests"] if entry["artifactType"] != kind]
        index["manifests"].append({"mediaType": MANIFEST_TYPE, "digest": sha256(text), "size": len(text),
                                   "artifactType": kind})
        self.ask_registry("PUT", f"/v2/wide/manifests/{self.digest.replace(':', '-')}", json.dumps(index).encode(),
                          index["mediaType"])
