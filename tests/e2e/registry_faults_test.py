#!/usr/bin/env python3
"""Trouble between us and a registry: what passes is waited out, what lies is never kept, no secret goes astray."""
import base64
import json
import os
import pathlib
import signal
import subprocess
import time

from registries import Proxy, needs_registry
from registry_test import INSECURE, RegistryTest, noise
from support import entry, layer, main, needs_program, sha256, wait_for

SECRET = "s3cret-word"
PAIR = base64.b64encode(f"alice:{SECRET}".encode()).decode()


class FaultTest(RegistryTest):
    def setUp(self):
        super().setUp()
        self.digest = self.registry.push(self.source, "image:1")
        raw = json.loads(self.registry.blob_path(self.digest).read_text())
        self.layers = [blob["digest"] for blob in raw["layers"]]
        self.sizes = [blob["size"] for blob in raw["layers"]]

    def conf(self, text):
        (self.folder / "registries.conf").write_text(text)

    def conf_with_mirrors(self, *mirrors):
        lines = [f'[[registry]]\nlocation = "{self.proxy.host}"\ninsecure = true\n']
        lines += [f'[[registry.mirror]]\nlocation = "{mirror.host}"\ninsecure = true\n' for mirror in mirrors]
        self.conf("".join(lines))

    def second_proxy(self, **options):
        proxy = Proxy(self.registry.port, **options)
        self.addCleanup(proxy.close)
        return proxy

    def check_pulled(self):
        self.assertEqual("hello\n", self.lamina.call("cat", f"{self.proxy.host}/image:1", "/etc/motd").stdout)
        self.assertEqual([], self.lamina.json("verify", "--data")["problems"])


@needs_registry
@needs_program("skopeo")
class PassingTroubleTest(FaultTest):
    def test_server_errors_and_broken_connections_are_waited_out(self):
        self.proxy.fault("/manifests/1", times=2, status=500)
        self.proxy.fault(self.layers[0], reset=True)
        self.proxy.fault(self.layers[1], status=503)
        self.assertEqual(self.digest, self.pull("image:1")["manifest_digest"])
        self.check_pulled()

    def test_what_retry_after_asks_for_is_waited_for(self):
        self.proxy.fault("/manifests/1", status=429, headers={"Retry-After": "2"})
        begun = time.monotonic()
        self.pull("image:1")
        self.assertGreaterEqual(time.monotonic() - begun, 2)

    def test_a_registry_that_asks_for_too_long_a_wait_is_given_up_at_once(self):
        self.proxy.fault("/manifests/1", times=9, status=429, headers={"Retry-After": "3600"})
        self.pull_fails("image:1", says="429")
        self.assertEqual(1, len(self.proxy.requests("/manifests/1")))

    def test_a_layer_that_breaks_off_goes_on_where_it_was(self):
        for number, layer_digest in enumerate(self.layers):
            self.proxy.fault(layer_digest, cut_after=self.sizes[number] // 2)
        self.pull("image:1")
        self.check_pulled()
        for number, layer_digest in enumerate(self.layers):
            first, second = self.proxy.requests(layer_digest)
            self.assertEqual(f"bytes={self.sizes[number] // 2}-", second.headers.get("Range"))
            self.assertEqual(self.sizes[number], first.sent_bytes + second.sent_bytes)

    def test_a_registry_without_ranges_begins_at_the_front(self):
        self.proxy.fault(self.layers[0], cut_after=1_000_000)
        self.proxy.fault(self.layers[0], drop_range=True)
        self.pull("image:1")
        self.check_pulled()

    def test_a_layer_that_stalls_is_asked_for_again(self):
        self.proxy.fault(self.layers[0], stall_after=self.sizes[0] // 3)
        self.pull("image:1")
        self.check_pulled()
        self.assertEqual(2, sum(self.layers[0] in path for path in self.proxy.arrived))

    def test_a_mirror_is_first_and_the_registry_stands_in(self):
        mirror = self.second_proxy()
        self.conf_with_mirrors(mirror)
        self.lamina.call("pull", f"{self.proxy.host}/image:1")
        self.check_pulled()
        self.assertEqual([], self.proxy.requests("/blobs/"))
        self.assertEqual(2, len([seen for seen in mirror.requests("/blobs/sha256:") if seen.sent_bytes > 10_000]))

    def test_bytes_of_a_mirror_that_are_wrong_are_fetched_from_the_registry(self):
        mirror = self.second_proxy()
        self.conf_with_mirrors(mirror)
        mirror.fault(self.layers[0], times=9, change_at=self.sizes[0] // 2)
        mirror.fault(self.layers[1], times=9, status=404)
        self.lamina.call("pull", f"{self.proxy.host}/image:1")
        self.check_pulled()
        self.assertEqual(1, len(self.proxy.requests(self.layers[0])))
        self.assertEqual(1, len(self.proxy.requests(self.layers[1])))

    def test_a_large_layer_comes_in_ranges_side_by_side_whatever_breaks(self):
        self.layout.add("large", [layer(entry("large", data=noise(20_000_000, 7)))])
        raw = self.registry.blob_path(self.registry.push(f"oci:{self.folder}/source:large", "large:1")).read_text()
        blob = json.loads(raw)["layers"][0]
        self.proxy.fault(blob["digest"], times=2, cut_after=700_000)
        self.proxy.fault(blob["digest"], reset=True)
        self.pull("large:1")
        self.assertEqual([], self.lamina.json("verify", "--data")["problems"])
        ranges = {seen.headers.get("Range") for seen in self.proxy.requests(blob["digest"])}
        self.assertIn("bytes=2097152-4194303", ranges)
        self.assertGreaterEqual(len(ranges), 10)
        sent = sum(seen.sent_bytes for seen in self.proxy.requests(blob["digest"]))
        self.assertLess(sent, blob["size"] + 4_000_000)

    def test_a_large_layer_of_a_registry_without_ranges_comes_in_one_stream(self):
        self.layout.add("large", [layer(entry("large", data=noise(12_000_000, 8)))])
        self.registry.push(f"oci:{self.folder}/source:large", "large:1")
        self.proxy.fault("/blobs/", times=99, drop_range=True)
        self.pull("large:1")
        self.assertEqual([], self.lamina.json("verify", "--data")["problems"])

    def test_killed_in_the_middle_nothing_half_is_there_and_whole_layers_are_used(self):
        self.proxy.fault(self.layers[1], stall_after=self.sizes[1] // 2)
        words = [self.lamina.program, "--store", self.lamina.store, "pull", INSECURE, f"{self.proxy.host}/image:1"]
        client = subprocess.Popen([str(word) for word in words], env=self.lamina.environment, stderr=subprocess.DEVNULL)
        self.addCleanup(client.kill)
        wait_for(self.has_recipe, seconds=60)
        os.kill(self.lamina.daemon_pid(), signal.SIGKILL)
        self.assertNotEqual(0, client.wait(60))
        self.assertEqual([], self.lamina.json("images")["images"])
        self.assertEqual([], self.lamina.json("verify", "--data")["problems"])
        self.assertEqual([], list((self.lamina.store / "staging").iterdir()))
        self.proxy.forget()
        self.pull("image:1")
        self.check_pulled()
        self.assertEqual([], self.proxy.requests(self.layers[0]))

    def has_recipe(self):
        folder = self.lamina.store / "layers"
        return folder.exists() and any(folder.iterdir())


@needs_registry
@needs_program("skopeo")
class LyingRegistryTest(FaultTest):
    def test_layers_that_are_not_what_the_manifest_promises(self):
        self.proxy.fault(self.layers[0], times=9, change_at=1_000_000)
        self.pull_fails("image:1", says=["layer 1"])
        self.proxy.rules.clear()
        self.proxy.fault(self.layers[0], times=9, extra=b"more")
        self.pull_fails("image:1", says=["manifest promises"])
        self.proxy.rules.clear()
        self.proxy.fault(self.layers[0], times=9, alter=lambda data: data[:-7])
        self.pull_fails("image:1", says=["manifest promises"])
        self.proxy.rules.clear()
        self.proxy.fault(self.layers[0], cut_after=1_000_000)
        another = f"bytes 5-{self.sizes[0] - 1}/{self.sizes[0]}"
        self.proxy.fault(self.layers[0], times=9, headers={"Content-Range": another})
        self.pull_fails("image:1", says=["another range"])
        self.proxy.rules.clear()
        self.pull("image:1")
        self.check_pulled()

    def test_documents_that_lie(self):
        raw = self.registry.blob_path(self.digest).read_bytes()
        config = json.loads(raw)["config"]["digest"]
        cases = [
            ("/manifests/1", {"alter": lambda data: data + b" "}, "promised as"),
            ("/manifests/1", {"headers": {"Content-Type": "application/vnd.docker.distribution.manifest.v2+json"}},
             "says of itself"),
            ("/manifests/1", {"status": 200, "body": b"<html>login</html>"}, ""),
            ("/manifests/1", {"status": 200, "body": b"{}"}, ""),
            ("/manifests/1", {"status": 200, "body": b'"' + b"x" * (5 << 20) + b'"'}, "bytes"),
            (f"/manifests/{self.digest}", {"change_at": 40}, "digest"),
            (config, {"change_at": 9}, "digest"),
            (config, {"alter": lambda data: data + b" "}, "bytes"),
        ]
        for pattern, what, says in cases:
            self.proxy.rules.clear()
            self.proxy.fault(pattern, times=9, **what)
            name = f"image@{self.digest}" if self.digest in pattern else "image:1"
            with self.subTest(pattern=pattern, what=list(what)):
                self.pull_fails(name, says=says)

    def test_image_indexes_that_never_end(self):
        index = b""
        for _ in range(6):
            described = {"mediaType": "application/vnd.oci.image.index.v1+json",
                         "digest": sha256(index or b"{}"), "size": len(index or b"{}")}
            inner = index
            index = json.dumps({"schemaVersion": 2, "mediaType": described["mediaType"],
                                "manifests": [described]}).encode()
            if inner:
                self.proxy.fault(f"/manifests/{sha256(inner)}", times=99, status=200, body=inner)
        self.proxy.fault("/manifests/1", status=200, body=index)
        self.pull_fails("image:1", says="nested deeper than 4")

    def test_redirects_in_a_circle_end(self):
        self.proxy.fault("/manifests/1", times=99, status=307, headers={"Location": "/v2/image/manifests/1"})
        self.pull_fails("image:1", says="five redirects")
        self.assertEqual(6, len(self.proxy.requests("/manifests/1")))


@needs_registry
@needs_program("skopeo")
class SecretsTest(FaultTest):
    """Who sees Authorization: the registry, and where its tokens come from. Nobody else, whatever the registry says."""

    def setUp(self):
        super().setUp()
        self.elsewhere = self.second_proxy()
        self.creds = ("--creds", f"alice:{SECRET}")

    def tearDown(self):
        self.assertEqual([], [seen.path for seen in self.elsewhere.seen if self.has_secret(seen)])
        texts = [path.read_text(errors="replace") for path in self.folder.rglob("*.log")]
        self.assertFalse([text for text in texts if SECRET in text or PAIR in text or "token-" in text])

    @staticmethod
    def has_secret(seen):
        values = [*seen.headers.values(), seen.path]
        return "Authorization" in seen.headers or any(SECRET in value or PAIR in value for value in values)

    def test_tokens_are_fetched_with_the_password_and_renewed_once_for_all(self):
        self.proxy.require_tokens({"alice": SECRET})
        error = self.pull_fails("image:1", says=["gives no token", "no credentials are known"])
        self.assertNotIn("Authorization", error)
        self.pull_fails("image:1", "--creds", "alice:wrong", says="may be wrong")
        self.pull("image:1", *self.creds)
        self.check_pulled()
        self.assertEqual(1, self.proxy.tokens["given"])
        sent = [seen for seen in self.proxy.requests("/v2/") if self.has_secret(seen)]
        self.assertTrue(all(seen.headers["Authorization"].startswith("Bearer ") for seen in sent))

    def test_a_token_that_runs_out_in_the_middle_is_renewed(self):
        self.proxy.require_tokens()
        self.proxy.fault(self.layers[0], cut_after=self.sizes[0] // 2)
        for layer_digest in self.layers:
            self.proxy.fault(layer_digest, status=401, headers={
                "WWW-Authenticate": f'Bearer realm="http://{self.proxy.host}/token",service="t"'})
        self.pull("image:1")
        self.check_pulled()
        self.assertLessEqual(self.proxy.tokens["given"], 3)

    def test_redirects_to_other_ports_carry_nothing(self):
        self.proxy.require_tokens({"alice": SECRET})
        for layer_digest in self.layers:
            address = f"http://{self.elsewhere.host}/v2/image/blobs/{layer_digest}?signature=abc"
            self.proxy.fault(layer_digest, times=1, status=401, headers={
                "WWW-Authenticate": f'Bearer realm="http://{self.proxy.host}/token",service="t"'})
            self.proxy.fault(layer_digest, times=9, status=307, headers={"Location": address})
        self.pull("image:1", *self.creds)
        self.check_pulled()
        self.assertEqual(2, len(self.elsewhere.requests("/blobs/")))

    def test_a_redirect_back_carries_nothing_either(self):
        self.proxy.require_tokens({"alice": SECRET})
        back = f"http://{self.proxy.host}/v2/other/secret"
        self.proxy.fault(self.layers[0], times=9, status=302, headers={
            "Location": f"http://{self.elsewhere.host}/bounce"})
        self.elsewhere.fault("/bounce", times=9, status=302, headers={"Location": back})
        self.pull_fails("image:1", *self.creds, says="401")
        returned = self.proxy.requests("/v2/other/secret")
        self.assertTrue(returned)
        self.assertFalse([seen for seen in returned if self.has_secret(seen)])

    def test_a_host_that_is_redirected_to_gets_no_answer_to_its_challenge(self):
        self.proxy.fault(self.layers[0], times=9, status=307, headers={"Location": f"http://{self.elsewhere.host}/x"})
        for scheme in (f'Bearer realm="http://{self.elsewhere.host}/token"', 'Basic realm="x"'):
            self.elsewhere.fault("/x", times=4, status=401, headers={"WWW-Authenticate": scheme})
        self.pull_fails("image:1", *self.creds, says="401")

    def test_mirrors_get_no_credentials_of_the_registry(self):
        self.conf_with_mirrors(self.elsewhere)
        self.elsewhere.fault("/", times=99, status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        auth = self.folder / "auth.json"
        auth.write_text(json.dumps({"auths": {self.proxy.host: {"auth": PAIR}}}))
        self.lamina.call("pull", *self.creds, f"{self.proxy.host}/image:1")
        self.lamina.call("pull", "--authfile", auth, f"{self.proxy.host}/image:1")
        self.check_pulled()

    def test_other_hosts_credentials_stay_in_the_file(self):
        near_miss = [self.proxy.host + "0", self.proxy.host[:-1], "127.0.0.1", "0.0.1:" + str(self.proxy.port), "evil"]
        auth = self.folder / "auth.json"
        auth.write_text(json.dumps({"auths": {host: {"auth": PAIR} for host in near_miss}}))
        self.proxy.fault("/manifests/1", times=9, status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        self.pull_fails("image:1", "--authfile", auth, says="401")
        self.assertFalse([seen for seen in self.proxy.seen if self.has_secret(seen)])

    def test_a_server_that_repeats_what_it_was_sent_is_not_quoted(self):
        body = json.dumps({"errors": [{"code": "X", "message": f"you are alice:{SECRET} {PAIR}"}]}).encode()
        self.proxy.fault("/manifests/1", status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        self.proxy.fault("/manifests/1", times=9, status=403, body=body)
        error = self.pull_fails("image:1", *self.creds, says="403")
        self.assertNotIn(SECRET, error)
        self.assertNotIn(PAIR, error)

    def test_a_signed_address_is_not_in_errors(self):
        self.proxy.fault(self.layers[0], times=9, status=307, headers={
            "Location": f"http://{self.elsewhere.host}/x?signature=very-private"})
        self.elsewhere.fault("/x", times=9, status=404)
        self.assertNotIn("very-private", self.pull_fails("image:1", says="404"))

    def test_user_information_in_an_address_is_refused(self):
        self.proxy.fault(self.layers[0], times=9, status=307, headers={
            "Location": f"http://alice:{SECRET}@{self.elsewhere.host}/x"})
        self.assertNotIn(SECRET, self.pull_fails("image:1", says="user or a password"))

    def test_the_process_list_does_not_show_the_password(self):
        self.proxy.fault("/manifests/1", delay=3)
        words = [self.lamina.program, "--store", self.lamina.store, "pull", INSECURE, *self.creds,
                 f"{self.proxy.host}/image:1"]
        client = subprocess.Popen([str(word) for word in words], env=self.lamina.environment, stdout=subprocess.DEVNULL)
        self.addCleanup(client.kill)
        wait_for(lambda: "/v2/image/manifests/1" in self.proxy.arrived, seconds=60)
        for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes()
            except OSError:
                continue
            is_ours = str(self.lamina.store).encode() in words
            self.assertFalse(is_ours and SECRET.encode() in words, words)
        self.assertEqual(0, client.wait(60))

    def test_a_proxy_gets_what_is_for_the_registry_and_nothing_of_its_own(self):
        tunnel = self.second_proxy()
        self.lamina.environment["http_proxy"] = f"http://{tunnel.host}"
        self.lamina.call("pull", INSECURE, f"{self.proxy.host}/image:1")
        self.assertTrue(tunnel.requests("http://"))
        self.assertEqual([], self.proxy.requests("/manifests/"))
        self.lamina.environment["no_proxy"] = "127.0.0.1"
        tunnel.forget()
        self.lamina.call("pull", INSECURE, f"{self.proxy.host}/image:1")
        self.assertEqual([], tunnel.requests("http://"))


if __name__ == "__main__":
    main()
