#!/usr/bin/env python3
"""A store that may have only so many bytes (laminad --max-bytes): what commands do, say and leave."""
import random
import subprocess

import support
from support import Layout, StoreTest, entry, layer, main, needs_fuse, run

MIB = 1 << 20
LIMIT = 40 * MIB


def some_bytes(seed, megabytes=10):
    return random.Random(seed).randbytes(megabytes * MIB)


class SizeLimit(StoreTest):
    def setUp(self):
        super().setUp()
        self.lamina.environment["LAMINA_MAX_BYTES"] = str(LIMIT)
        self.layout = Layout(self.lamina.folder / "layout")

    def bring(self, name, megabytes=10, check=True):
        """Imports an image that has nothing in common with others; what was said on standard error."""
        self.layout.add(name, [layer(entry("data", data=some_bytes(name, megabytes)))], compress=lambda tar: tar,
                        media="tar")
        return self.lamina.call("import", f"oci:{self.layout.folder}:{name}", check=check).stderr

    def names(self):
        return [image["names"][0] for image in self.lamina.json("images")["images"]]

    def data(self, name):
        return subprocess.run([self.lamina.program, "--store", self.lamina.store, "cat", name, "/data"], check=True,
                              env=self.lamina.environment, capture_output=True).stdout

    def test_what_was_used_longest_ago_goes_and_is_told(self):
        for name in ("one:1", "two:1", "three:1"):
            self.assertEqual("", self.bring(name))
        said = self.bring("four:1")
        self.assertEqual(1, len(said.splitlines()), said)
        self.assertIn('removed image "one:1"', said)
        self.assertEqual(["two:1", "three:1", "four:1"], self.names())
        self.assertLessEqual(self.lamina.store_bytes(), LIMIT)
        usage = self.lamina.json("df")
        self.assertEqual(LIMIT, usage["max_bytes"])
        self.assertIn("limit", self.lamina.call("df").stdout)
        self.lamina.call("save", "two:1", f"oci:{self.lamina.folder}/saved")
        self.assertIn('removed image "three:1"', self.bring("five:1"))
        self.assertEqual(["two:1", "four:1", "five:1"], self.names())
        for name in self.names():
            self.assertEqual(some_bytes(name), self.data(name))
        self.assertEqual([], self.lamina.json("verify", "--data")["problems"])

    def test_what_is_pinned_stays_and_one_line_says_that_it_is_too_much(self):
        for name in ("one:1", "two:1", "three:1"):
            self.bring(name)
            self.lamina.call("pin", name)
        said = self.bring("four:1")
        self.assertEqual(1, len(said.splitlines()), said)
        self.assertIn(f"may have {LIMIT}", said)
        self.assertEqual(["one:1", "two:1", "three:1", "four:1"], self.names())
        self.assertEqual(some_bytes("four:1"), self.data("four:1"))
        self.assertIn("may have", self.lamina.call("upkeep").stderr)
        self.lamina.call("unpin", "two:1")
        self.assertIn('removed image "two:1"', self.lamina.call("upkeep").stderr)
        self.assertEqual(["one:1", "three:1", "four:1"], self.names())

    def test_an_image_that_is_larger_than_the_store_may_be_stays(self):
        self.bring("one:1")
        said = self.bring("large:1", 50)
        self.assertEqual(2, len(said.splitlines()), said)
        self.assertEqual(["large:1"], self.names())
        self.assertEqual(some_bytes("large:1", 50), self.data("large:1"))
        self.lamina.call("upkeep")
        self.assertEqual(["large:1"], self.names())
        self.bring("small:1", 1)
        self.assertEqual(["small:1"], self.names())

    @needs_fuse
    def test_what_is_mounted_or_has_kept_changes_stays(self):
        mnt = self.lamina.make_folder("mnt")
        self.bring("one:1")
        self.bring("two:1")
        self.lamina.call("mount", "one:1", "--name", "kept", mnt)
        (mnt / "new").write_text("changed")
        self.lamina.call("umount", "kept")
        self.lamina.call("mount", "two:1", "--name", "live", "--ro", mnt)
        with open(mnt / "data", "rb") as file:
            self.bring("three:1")
            self.assertIn('removed image "three:1"', self.bring("four:1"))
            self.assertEqual(some_bytes("two:1"), file.read())
        self.lamina.call("umount", "live")
        self.assertIn('removed image "two:1"', self.bring("five:1"))
        self.assertEqual(["one:1", "four:1", "five:1"], self.names())
        self.lamina.call("mount", "--name", "kept", "one:1", mnt)
        self.assertEqual("changed", (mnt / "new").read_text())

    @needs_fuse
    def test_a_commit_keeps_the_limit_too(self):
        mnt = self.lamina.make_folder("mnt")
        for name in ("one:1", "two:1", "three:1"):
            self.bring(name)
        self.lamina.call("mount", "three:1", "--name", "work", mnt)
        (mnt / "more").write_bytes(some_bytes("more", 6))
        said = self.lamina.call("commit", "work", "made:1").stderr
        self.assertIn('removed image "one:1"', said)
        self.assertIn("made:1", self.names())

    def test_without_a_limit_nothing_goes(self):
        for text in ("0", ""):
            self.lamina.environment["LAMINA_MAX_BYTES"] = text
            for number in range(5):
                self.assertEqual("", self.bring(f"image{number}{text}:1"))
            self.assertEqual(0, self.lamina.json("df")["max_bytes"])
            self.lamina.call("daemon", "stop")
        self.assertEqual(10, len(self.names()))

    def test_limits_that_make_no_sense_are_refused(self):
        for text in ("-1", "x", "1", "1M", "15M", "10Q", "1e9", "99999999999999999999", "9999999T", "1.5G", " 1G"):
            ran = run(support.BUILD / "daemon/laminad", "--store", self.lamina.store, f"--max-bytes={text}",
                      check=False)
            self.assertEqual((2, 1), (ran.returncode, len(ran.stderr.strip().splitlines())), ran.stderr)
            self.assertFalse(self.lamina.store.exists())
        self.lamina.environment["LAMINA_MAX_BYTES"] = "nonsense"
        self.assertIn("nonsense", self.lamina.fails("images"))

    def test_clients_at_once(self):
        """Each has its image when its command ends, or another one has come after it; nothing is damaged."""
        for number in range(6):
            self.layout.add(f"image{number}:1", [layer(entry("data", data=some_bytes(number)))],
                            compress=lambda tar: tar, media="tar")
        self.lamina.call("images")
        clients = [subprocess.Popen([self.lamina.program, "--store", self.lamina.store, "import",
                                     f"oci:{self.layout.folder}:image{number}:1"], env=self.lamina.environment,
                                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for number in range(6)]
        self.assertEqual([0] * 6, [client.wait(300) for client in clients])
        self.assertLessEqual(len(self.names()), 4)
        self.lamina.call("upkeep")
        self.assertLessEqual(self.lamina.store_bytes(), LIMIT)
        self.assertEqual([], self.lamina.json("verify", "--data")["problems"])


if __name__ == "__main__":
    main()
