#!/usr/bin/env python3
"""lamina explain: its numbers are those that the registry saw, its waits name what was read, its picture holds all."""
import base64
import json
import os
import re
import signal
import xml.dom.minidom

from lazy_scene import SMALL, SMALL_BYTES, LazyScene
from registries import needs_registry
from registry_test import noise, support_store
from support import Layout, entry, layer, main, needs_fuse, needs_program, needs_root, wait_for

LINKS = layer(entry("link", "symlink", target="small/000"), entry("pipe", "fifo"))
JUMPS = (200, 40, 125)
PASSWORD = "not-for-any-log"


@needs_registry
@needs_program("skopeo")
@needs_root
@needs_fuse
class ExplainTest(LazyScene):
    layers = [SMALL, LINKS]

    def pull(self, *options):
        self.lamina.call("pull", "--lazy=always", *options, self.name)
        self.proxy.forget()

    def read(self, target, *numbers):
        for number in numbers:
            self.assertEqual(noise(SMALL_BYTES, 1000 + number), (target / f"small/{number:03}").read_bytes())
        self.settled_bytes()

    def start_of(self, of="m"):
        return self.lamina.json("explain", of)["start"]

    def log(self):
        return (self.lamina.store / "fetches/log").read_text()

    def agree(self, start):
        """With what the proxy saw; it notes a request when it has sent its bytes."""
        wait_for(lambda: len(self.layer_requests()) == start["request_count"])
        self.assertEqual(self.layer_bytes(), start["fetched_bytes"])

    def test_requests_and_bytes_are_those_that_the_registry_saw(self):
        self.pull()
        self.proxy.delay = 0.05
        self.read(self.mount("--ro"), *JUMPS)
        explained = self.lamina.json("explain", "m")
        self.agree(explained["start"])
        lazy = explained["layers"][0]
        self.assertEqual("lazy", lazy["state"])
        self.assertEqual(self.layer_bytes(), sum(sum_["bytes"] for sum_ in lazy["fetched"]))
        self.assertEqual({f"{self.proxy.host}/wide"}, {sum_["source"] for sum_ in lazy["fetched"]})
        self.assertTrue(all(sum_["first_byte_us"] >= 50_000 for sum_ in lazy["fetched"]))
        self.assertEqual(self.manifest()["layers"][0]["size"], lazy["blob_bytes"])
        parts = ("missing", "waited", "prefetched", "rest", "local")
        self.assertEqual(lazy["chunk_bytes"], sum(lazy[f"{part}_bytes"] for part in parts))
        self.assertGreater(lazy["missing_bytes"], 0)
        self.assertEqual(0, lazy["local_bytes"])

    def test_waits_name_what_was_read_and_what_they_waited_for(self):
        self.pull()
        self.proxy.delay = 0.1
        self.read(self.mount("--ro"), *JUMPS)
        start = self.start_of()
        self.assertGreaterEqual(start["wait_count"], len(JUMPS))
        self.assertEqual({f"/small/{number:03}" for number in JUMPS},
                         {path for wait in start["waits"] for path in wait["paths"]})
        self.assertLessEqual(len(start["longest_waits"]), 10)
        requests = {request["sent_us"]: request for request in start["requests"]}
        for wait in start["longest_waits"][:len(JUMPS)]:
            self.assertGreater(wait["end_us"] - wait["begin_us"], 90_000)
            self.assertEqual(requests[wait["request_us"]]["kind"], wait["kind"])
        self.assertEqual(start["wait_us"], sum(wait["end_us"] - wait["begin_us"] for wait in start["waits"]))
        text = self.lamina.call("explain", "m").stdout
        self.assertIn("/small/200", text)
        self.assertIn(f"lamina complete {self.name}", text)

    def test_fetched_is_told_against_read(self):
        self.pull()
        self.read(self.mount("--ro"), *JUMPS)
        start = self.start_of()
        self.assertTrue(start["reads_known"])
        self.assertEqual(len(JUMPS) * SMALL_BYTES, start["read_bytes"])
        self.assertEqual(start["waited_bytes"] + start["prefetched_bytes"], start["read_bytes"] + start["unread_bytes"])
        self.lamina.call("umount", "m")
        after = self.start_of(self.name)  # The mount is gone, and still known.
        self.assertFalse(after["reads_known"])
        self.assertEqual([start["mount"], start["wait_us"]], [after["mount"], after["wait_us"]])

    def test_of_one_file_only_its_own_bytes_are_told(self):
        self.pull()
        self.read(self.mount("--ro"), 200)
        here = self.lamina.json("explain", "m", "/small/200")
        self.assertEqual([SMALL_BYTES, 1], [here["size_bytes"], len(here["layers"])])
        self.assertEqual([SMALL_BYTES, 0], [here["layers"][0][key] for key in ("waited_bytes", "missing_bytes")])
        self.assertEqual(1, here["start"]["request_count"])
        missing = self.lamina.json("explain", self.name, "small/010")
        self.assertEqual(SMALL_BYTES, missing["layers"][0]["missing_bytes"])
        self.assertEqual([0, 0], [missing["start"][key] for key in ("request_count", "wait_count")])

    def test_chunks_that_another_image_has_name_it_and_are_not_fetched(self):
        twin = Layout(self.folder / "twin")
        twin.add("twin:1", [layer(entry("copy", data=noise(SMALL_BYTES, 1000)))])
        self.lamina.call("import", f"oci:{twin.folder}:twin:1")
        self.pull()
        shared = self.lamina.json("explain", self.name, "/small/000")["layers"][0]
        self.assertEqual([{"image": "twin:1", "bytes": SMALL_BYTES}], shared["shares"])
        self.assertEqual([SMALL_BYTES, 0], [shared[key] for key in ("local_bytes", "missing_bytes")])
        self.assertIn(f"shared with twin:1 ({SMALL_BYTES // 1000} kB)", self.lamina.call("explain", self.name).stdout)

    def test_a_layer_that_is_not_lazy_says_why(self):
        def why(of):
            return self.lamina.json("explain", of)["layers"][0]["why"]
        self.lamina.call("import", f"oci:{self.folder}/source:wide", "--name", "here:1")
        self.assertIn("imported", why("here:1"))
        self.registry.push(f"oci:{self.folder}/source:wide", "plain:1")
        for options, says in (("--lazy=auto", "no index"), ("--lazy=never", "not told to be lazy")):
            with support_store(self) as self.lamina:
                plain = f"{self.proxy.host}/plain:1"
                self.lamina.call("pull", options, plain)
                self.assertIn(says, why(plain))
                self.assertIn(f"from {self.proxy.host}/plain", why(plain))
                self.assertEqual("", self.start_of(plain)["mount"])
                hints = self.lamina.json("explain", plain)["hints"]
                self.assertEqual(options == "--lazy=auto", any("push --index" in hint for hint in hints))

    def test_what_completes_a_layer_is_told_as_its_rest(self):
        self.pull()
        self.read(self.mount("--ro"), 100)
        self.lamina.call("complete", self.name)
        explained = self.lamina.json("explain", "m")
        done = explained["layers"][0]
        self.assertEqual(["verified", "was lazy; all of it has come, and is verified"], [done["state"], done["why"]])
        self.assertGreater(done["rest_bytes"], done["waited_bytes"])
        self.assertEqual(0, done["missing_bytes"])
        self.agree(explained["start"])

    def test_what_a_start_trace_fetches_is_told_and_its_lack_hinted_at(self):
        self.pull()
        self.read(self.mount("--ro"), *JUMPS)
        self.lamina.call("umount", "m")
        self.lamina.call("push", "--index", self.name)
        self.assertTrue(any("start trace" in hint for hint in self.lamina.json("explain", self.name)["hints"]))
        with support_store(self) as self.lamina:
            self.pull()
            wait_for(lambda: self.lamina.json("explain", self.name)["bundles"])
            self.read(self.mount("--ro"), *JUMPS)
            bundle, = self.lamina.json("explain", self.name)["bundles"]
            self.assertEqual(("trace", 1, 0), (bundle["kind"], bundle["requests"], bundle["failures"]))

    def test_the_picture_holds_every_request_and_wait(self):
        self.pull()
        self.proxy.delay = 0.02
        self.read(self.mount("--ro"), *range(0, 240, 7))
        path = self.folder / "start.svg"
        start = self.lamina.json("explain", "m", "--chart", path)["start"]
        self.agree(start)
        rectangles = xml.dom.minidom.parse(str(path)).getElementsByTagName("rect")
        bars = [bar for bar in rectangles if bar.getAttribute("class") == "request"]
        self.assertEqual(start["request_count"], len(bars))
        self.assertEqual(self.layer_bytes(), sum(int(bar.getAttribute("data-bytes")) for bar in bars))
        titles = [title.firstChild.data for title in xml.dom.minidom.parse(str(path)).getElementsByTagName("title")]
        self.assertTrue(any("of /small/007" in title for title in titles))
        self.assertIn("only .svg", self.lamina.fails("explain", "m", "--chart", self.folder / "start.png"))

    def test_the_log_outlives_a_daemon_that_is_killed(self):
        self.pull()
        target = self.mount("--ro")
        self.read(target, 200)
        before = self.start_of()
        os.kill(self.lamina.daemon_pid(), signal.SIGKILL)
        after = self.start_of()
        self.assertEqual([before["begun_us"], before["requests"]], [after["begun_us"], after["requests"]])
        self.read(target, 40)
        self.agree(self.start_of())

    def test_no_credentials_are_in_the_log_or_the_answer(self):
        self.proxy.require_tokens({"someone": PASSWORD})
        secret = base64.b64encode(f"someone:{PASSWORD}".encode()).decode()
        (self.folder / "auth.json").write_text(json.dumps({"auths": {self.proxy.host: {"auth": secret}}}))
        self.pull("--authfile", self.folder / "auth.json")
        target = self.mount("--ro")
        self.read(target, 200)
        words = [PASSWORD, secret, "someone", *self.proxy.tokens["valid"]]
        (self.folder / "auth.json").write_text("{}")
        self.proxy.expire_tokens()
        os.kill(self.lamina.daemon_pid(), signal.SIGKILL)
        self.lamina.call("images")
        with self.assertRaises(OSError):
            self.read(target, 40)
        explained = self.lamina.json("explain", "m")
        self.assertTrue(any(wait["error"] for wait in explained["start"]["waits"]))
        told = self.log() + json.dumps(explained) + self.lamina.call("explain", "m").stdout
        for word in words:
            self.assertNotIn(word, told)

    def test_the_log_is_counted_by_df_and_left_by_gc(self):
        self.pull()
        self.read(self.mount("--ro"), *JUMPS)
        usage = self.lamina.json("df")
        on_disk = sum(usage[f"{part}_bytes"] for part in ("pack", "index", "recipe", "tree", "mount", "other"))
        self.assertAlmostEqual(self.lamina.store_bytes(), on_disk, delta=1000)  # The daemon's log grows.
        before = self.log()
        self.lamina.call("gc")
        self.assertEqual(before, self.log())

    def test_what_cannot_be_explained_is_refused_in_one_line(self):
        self.pull()
        for of in ("none", "/nowhere", "none:1"):
            self.assertIn("no mount", self.lamina.fails("explain", of))
        for path, says in (("/small", "is a directory"), ("/link", 'symbolic link to "small/000"'),
                           ("/pipe", "not a regular file"), ("/none", "no such file")):
            self.assertIn(says, self.lamina.fails("explain", self.name, path))
        path = self.folder / "start.svg"
        self.assertIn("no start of it is known", self.lamina.fails("explain", self.name, "--chart", path))
        self.assertFalse(path.exists())
        self.assertEqual(2, self.lamina.call("explain", check=False).returncode)

    def test_a_damaged_log_costs_its_damaged_lines_alone(self):
        self.pull()
        self.read(self.mount("--ro"), *JUMPS)
        lines = self.log().splitlines()
        request = next(number for number, line in enumerate(lines) if '"request"' in re.split(r",", line)[0])
        before = self.start_of()["request_count"]
        lines[request] = lines[request][:50]
        (self.lamina.store / "fetches/log").write_text("\n".join(lines)[:-30])
        explained = self.lamina.json("explain", "m")
        self.assertEqual(before - 1, explained["start"]["request_count"])
        self.assertTrue(any("2 lines of the fetch log are damaged" in hint for hint in explained["hints"]))


if __name__ == "__main__":
    main()
