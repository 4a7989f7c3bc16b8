#!/usr/bin/env python3
"""pull and push: what registries, podman and skopeo give and take, digest for digest; what goes wrong ends well."""
import base64
import json
import pathlib
import random
import shutil
import subprocess

import registries
import support
from changes_test import Podman
from registries import Proxy, Registry, environment_with, make_certificates, needs_registry
from support import (Layout, StoreTest, entry, layer, main, manifest, needs_fuse, needs_program, needs_root, overlay_of,
                     run)

INSECURE = "--tls-verify=false"


def noise(size, seed):
    return random.Random(seed).randbytes(size)


BASE = layer(entry("etc", "dir"), entry("etc/motd", data="below\n"), entry("etc/gone", data="x"),
             entry("data", data=noise(3_000_000, 1)))
TOP = layer(entry("etc", "dir"), entry("etc/motd", data="hello\n"), entry("etc/.wh.gone"),
            entry("more", data=noise(1_500_000, 2)), entry("link", "symlink", target="etc/motd"))


class RegistryTest(StoreTest):
    """With a registry, a proxy before it, and a layout "source" that holds image:1."""
    users = None
    tls = None

    def setUp(self):
        super().setUp()
        self.folder = self.lamina.folder
        self.lamina.environment = environment_with(self.folder, **{name: self.lamina.environment[name]
                                                                   for name in ("LAMINAD", "LAMINA_FUSE")})
        self.registry = Registry(self.folder / "registry", self.users, self.tls)
        self.addCleanup(self.registry.close)
        self.proxy = Proxy(self.registry.port)
        self.addCleanup(self.proxy.close)
        self.layout = Layout(self.folder / "source")
        self.layout.add("image:1", [BASE, TOP])
        self.source = f"oci:{self.folder}/source:image:1"

    def pull(self, name, *options):
        return self.lamina.json("pull", INSECURE, *options, f"{self.proxy.host}/{name}")

    def push(self, image, name, *options):
        return self.lamina.json("push", INSECURE, *options, image, f"{self.proxy.host}/{name}")

    def pull_fails(self, name, *options, says):
        error = self.lamina.fails("pull", INSECURE, *options, f"{self.proxy.host}/{name}")
        for text in [says] if isinstance(says, str) else says:
            self.assertIn(text, error)
        self.assertEqual([], self.lamina.json("images")["images"])
        self.assertEqual([], self.lamina.json("verify", "--data")["problems"])
        return error

    def blobs_sent(self):
        return self.proxy.requests("/blobs/uploads/.*digest=", "PUT")

    def layers_fetched(self):
        return [seen for seen in self.proxy.requests("/blobs/sha256:") if seen.sent_bytes > 10_000]


@needs_registry
@needs_program("skopeo")
class PullTest(RegistryTest):
    @needs_root
    @needs_fuse
    def test_what_skopeo_pushed_is_pulled_and_its_mount_is_equal(self):
        digest = self.registry.push(self.source, "image:1")
        pulled = self.pull("image:1")
        self.assertEqual(digest, pulled["manifest_digest"])
        self.assertEqual([f"{self.proxy.host}/image:1"], pulled["names"])
        target = self.lamina.make_folder("mount")
        self.lamina.call("mount", f"{self.proxy.host}/image:1", target, "--ro", "--name", "m")
        merged = overlay_of(self.lamina.make_folder("stack"), [BASE, TOP])
        self.addCleanup(run, "umount", merged)
        self.assertEqual(manifest(merged)[1:], manifest(target)[1:])  # No layer says anything of the root.
        self.lamina.call("umount", "m")

    def test_layers_that_the_store_has_are_not_fetched(self):
        self.registry.push(self.source, "image:1")
        self.layout.add("image:2", [BASE, layer(entry("new", data=noise(100_000, 3)))])
        digest = self.registry.push(f"oci:{self.folder}/source:image:2", "image:2")
        self.pull("image:1")
        self.assertEqual(2, len(self.layers_fetched()))
        self.proxy.forget()
        self.pull("image:1")
        self.assertEqual([], self.layers_fetched())
        self.pull(f"image@{digest}", "--name", "by-digest")
        self.assertEqual(1, len(self.layers_fetched()))
        self.assertEqual("hello\n", self.lamina.call("cat", f"{self.proxy.host}/image:1", "/etc/motd").stdout)
        self.assertEqual("below\n", self.lamina.call("cat", "by-digest", "/etc/motd").stdout)

    def test_docker_media_types_and_zstd_layers_are_pulled(self):
        docker = self.registry.push(self.source, "docker:1", "--format", "v2s2")
        self.assertEqual(docker, self.pull("docker:1")["manifest_digest"])
        self.layout.add("z:1", [TOP], compress=run_zstd, media="tar+zstd")
        zstd = self.registry.push(f"oci:{self.folder}/source:z:1", "z:1")
        self.assertEqual(zstd, self.pull("z:1")["manifest_digest"])
        self.assertEqual([], self.lamina.json("verify", "--data")["problems"])

    def test_the_platform_is_chosen_in_image_indexes(self):
        def arm(config, _):
            config["architecture"] = "arm64"
        self.layout.add("arm", [layer(entry("arm", data="arm"))], spoil=arm)
        both = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}
        for described, architecture in zip(self.layout.manifests[-2:], ("amd64", "arm64")):
            both["manifests"].append({**{key: described[key] for key in ("mediaType", "digest", "size")},
                                      "platform": {"os": "linux", "architecture": architecture}})
        index = self.layout.blob(json.dumps(both).encode())
        self.layout.manifests.append({"mediaType": both["mediaType"], **index,
                                      "annotations": {"org.opencontainers.image.ref.name": "both"}})
        (self.layout.folder / "index.json").write_text(json.dumps(
            {"schemaVersion": 2, "mediaType": both["mediaType"], "manifests": self.layout.manifests}))
        self.registry.push(f"oci:{self.folder}/source:both", "both:1", "--all")
        self.pull("both:1", "--platform", "linux/arm64", "--name", "arm")
        self.assertEqual("arm", self.lamina.call("cat", "arm", "/arm").stdout)
        self.pull("both:1", "--platform", "linux/amd64")
        error = self.lamina.fails("pull", INSECURE, "--platform", "linux/s390x", f"{self.proxy.host}/both:1")
        self.assertIn("no image for linux/s390x; there are: linux/amd64, linux/arm64", error)

    def test_what_is_not_there_ends_with_one_line(self):
        self.registry.push(self.source, "image:1")
        self.pull_fails("image:2", says=["404", "manifest unknown"])
        self.pull_fails("other:1", says=["404"])
        self.pull_fails(f"image@sha256:{'0' * 64}", says=["404"])
        self.pull_fails("image:1@sha256:short", says=["sha256:<64 hex digits>"])
        self.assertIn("Could not resolve", self.lamina.fails("pull", "registry.invalid/image:1"))
        closed = registries.free_port()
        self.assertIn(f"127.0.0.1:{closed}", self.lamina.fails("pull", f"127.0.0.1:{closed}/image:1"))
        self.assertIn("no such folder", self.lamina.fails("pull", "--cert-dir", "/nowhere", "a.example/x"))


@needs_registry
@needs_program("skopeo")
class PushTest(RegistryTest):
    def setUp(self):
        super().setUp()
        self.lamina.call("import", self.source)

    def test_a_push_sends_what_the_registry_lacks_and_says_its_digest(self):
        pushed = self.push("image:1", "mine:1")
        self.assertEqual(2, pushed["layers_sent"])
        self.assertEqual(pushed["manifest_digest"], self.registry.digest("mine:1"))
        self.assertEqual(3, len(self.blobs_sent()))
        self.proxy.forget()
        again = self.push("image:1", "mine:2")
        self.assertEqual((pushed["manifest_digest"], 2, 0), (again["manifest_digest"], again["layers_there"],
                                                             again["layers_sent"]))
        self.assertEqual([], self.blobs_sent())
        out = self.folder / "out"
        run("skopeo", "copy", "--insecure-policy", "--src-tls-verify=false",
            f"docker://{self.registry.host}/mine:1", f"oci:{out}:mine")
        self.lamina.call("import", f"oci:{out}:mine", "--name", "back")
        ids = {name: image["id"] for image in self.lamina.json("images")["images"] for name in image["names"]}
        self.assertEqual(ids["image:1"], ids["back"] if "back" in ids else ids["back:latest"])

    def test_layers_are_mounted_from_another_repository_of_the_registry(self):
        self.push("image:1", "first:1")
        self.lamina.call("tag", "image:1", f"{self.proxy.host}/first:1")
        self.proxy.forget()
        pushed = self.push("image:1", "second:1")
        self.assertEqual((2, 0), (pushed["layers_mounted"], pushed["layers_sent"]))
        self.assertTrue(all(seen.sent_bytes < 10_000 for seen in self.blobs_sent()))

    def test_a_pulled_image_keeps_its_digest_where_its_layers_are(self):
        digest = self.registry.push(self.source, "origin:1")
        self.pull("origin:1")
        pushed = self.push(f"{self.proxy.host}/origin:1", "origin:2")
        self.assertEqual((digest, 0), (pushed["manifest_digest"], pushed["layers_sent"]))
        other = self.push(f"{self.proxy.host}/origin:1", "other:1")  # mounted: the same blobs
        self.assertEqual((digest, 2), (other["manifest_digest"], other["layers_mounted"]))

    def test_blobs_are_the_same_whoever_makes_them(self):
        first = self.push("image:1", "a:1")
        with support_store(self) as other:
            other.call("import", self.source)
            second = other.json("push", INSECURE, "image:1", f"{self.proxy.host}/b:1")
        self.assertEqual(first["manifest_digest"], second["manifest_digest"])

    def test_zstd_layers_are_sent_on_request(self):
        pushed = self.push("image:1", "z:1", "--compression", "zstd")
        raw = json.loads(run("skopeo", "inspect", "--raw", "--tls-verify=false",
                             f"docker://{self.registry.host}/z:1").stdout)
        self.assertEqual({"application/vnd.oci.image.layer.v1.tar+zstd"}, {blob["mediaType"] for blob in raw["layers"]})
        self.assertEqual(2, pushed["layers_sent"])
        self.lamina.call("rmi", "image:1")
        self.lamina.call("gc")
        self.assertEqual(pushed["manifest_digest"], self.pull("z:1")["manifest_digest"])

    @needs_root
    @needs_program("podman")
    @needs_program("busybox")
    def test_a_pushed_image_runs_in_podman(self):
        busybox = pathlib.Path(shutil.which("busybox")).read_bytes()
        self.layout.add("box", [layer(entry("bin", "dir"), entry("bin/busybox", data=busybox, mode=0o755),
                                      *[entry(f"bin/{name}", "link", target="bin/busybox", mode=0o755)
                                        for name in ("sh", "cat", "true")],
                                      *[entry(name, "dir") for name in ("etc", "proc", "sys", "dev", "tmp")],
                                      entry("etc/motd", data="from lamina\n"))])
        podman = Podman(self.folder / "podman")
        self.addCleanup(podman.close)
        podman.find_way_to_run(f"oci:{self.folder}/source:box")
        self.lamina.call("import", f"oci:{self.folder}/source:box", "--name", "box")
        pushed = self.push("box", "box:1")
        podman.call("rmi", "-a", "-f")
        podman.call("pull", "--quiet", INSECURE, f"{self.registry.host}/box:1")
        self.assertEqual("from lamina\n", podman.run(f"{self.registry.host}/box:1", "cat", "/etc/motd").stdout)
        podman.call("push", "--quiet", INSECURE, f"{self.registry.host}/box:1", f"{self.registry.host}/back:1")
        self.assertEqual(pushed["manifest_digest"], self.registry.digest("box:1"))
        self.pull("back:1")
        self.assertEqual("from lamina\n", self.lamina.call("cat", f"{self.proxy.host}/back:1", "/etc/motd").stdout)

    def test_a_push_that_cannot_be_says_why(self):
        self.assertIn("absent", self.lamina.fails("push", "absent:1", "a.example/x"))
        self.assertIn("a push names a tag", self.lamina.fails("push", "image:1", f"a.example/x@sha256:{'0' * 64}"))
        image_id = self.lamina.json("images")["images"][0]["id"]
        self.assertIn("say where", self.lamina.fails("push", image_id))
        self.proxy.fault("/blobs/uploads/", times=9, method="POST", status=403,
                         body=b'{"errors":[{"code":"DENIED","message":"not for you"}]}')
        self.assertIn("not for you", self.lamina.fails("push", INSECURE, "image:1", f"{self.proxy.host}/mine:1"))

    def test_uploads_go_on_after_failures(self):
        self.proxy.fault("/blobs/uploads/.*digest=", method="PUT", status=500)
        self.proxy.fault("/blobs/uploads/$", method="POST", reset=True)
        self.proxy.fault("/manifests/", method="PUT", status=503, headers={"Retry-After": "1"})
        pushed = self.push("image:1", "mine:1")
        self.assertEqual(pushed["manifest_digest"], self.registry.digest("mine:1"))


def run_zstd(tar):
    return subprocess.run(["zstd", "-q", "-c"], input=tar, check=True, capture_output=True).stdout


def support_store(test):
    class Scope:
        def __enter__(self):
            self.lamina = support.Lamina()
            self.lamina.environment = test.lamina.environment
            return self.lamina

        def __exit__(self, *_):
            self.lamina.close()
    return Scope()


@needs_registry
@needs_program("skopeo")
@needs_program("htpasswd")
class PasswordTest(RegistryTest):
    users = {"alice": "s3cret-word"}

    def setUp(self):
        super().setUp()
        self.registry.push(self.source, "image:1", "--dest-creds", "alice:s3cret-word")

    def test_credentials_come_from_the_command_or_from_files(self):
        error = self.pull_fails("image:1", says=["401", "credentials"])
        self.assertNotIn("s3cret", error)
        error = self.pull_fails("image:1", "--creds", "alice:wrong-word", says=["401", "credentials"])
        self.assertNotIn("wrong-word", error)
        self.pull("image:1", "--creds", "alice:s3cret-word", "--name", "one")
        pair = base64.b64encode(b"alice:s3cret-word").decode()
        auth = self.folder / "auth.json"
        auth.write_text(json.dumps({"auths": {self.proxy.host: {"auth": pair}}}))
        self.pull("image:1", "--authfile", auth, "--name", "two")
        self.push("one", "mine:1", "--authfile", auth)
        docker = self.folder / "home/.docker"
        docker.mkdir()
        shutil.copy(auth, docker / "config.json")
        self.pull("image:1", "--name", "three")
        self.assertEqual(0, self.log_text().count("s3cret-word") + self.log_text().count(pair))

    def log_text(self):
        return "".join(path.read_text(errors="replace") for path in self.folder.rglob("*.log"))


@needs_registry
@needs_program("skopeo")
@needs_program("openssl")
class TlsTest(RegistryTest):
    def setUp(self):
        authority = pathlib.Path(support.tempfile.mkdtemp(prefix="lamina-e2e-tls-", dir="/var/tmp"))
        self.addCleanup(shutil.rmtree, authority, True)
        self.certificates = make_certificates(authority / "tls")
        self.tls = authority / "tls"
        super().setUp()

    def test_a_registry_with_an_authority_of_its_own(self):
        run("skopeo", "copy", "--quiet", "--insecure-policy", "--dest-cert-dir", self.certificates, self.source,
            f"docker://{self.registry.host}/image:1")
        error = self.lamina.fails("pull", f"{self.registry.host}/image:1")
        self.assertIn("certificate", error)
        self.lamina.call("pull", "--cert-dir", self.certificates, f"{self.registry.host}/image:1")
        self.lamina.call("pull", INSECURE, f"{self.registry.host}/image:1", "--name", "two")
        pushed = self.lamina.json("push", "--cert-dir", self.certificates, "two", f"{self.registry.host}/mine:1")
        self.assertEqual(pushed["manifest_digest"],
                         self.registry.digest("mine:1", "--cert-dir", str(self.certificates)))
        home = self.folder / f"home/.config/containers/certs.d/{self.registry.host}"
        home.mkdir(parents=True)
        shutil.copy(self.certificates / "ca.crt", home)
        self.lamina.call("pull", f"{self.registry.host}/image:1", "--name", "three")


if __name__ == "__main__":
    main()
