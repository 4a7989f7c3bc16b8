#!/usr/bin/env python3
"""lamina df --chart: the picture of a real store adds up to what df says, and what cannot be drawn is refused."""
import os
import random
import re
import xml.dom.minidom

from support import Layout, StoreTest, entry, layer, main, needs_fuse

MIB = 1 << 20


def some_bytes(seed, megabytes):
    return random.Random(seed).randbytes(megabytes * MIB)


class Chart(StoreTest):
    def setUp(self):
        super().setUp()
        base = layer(entry("base", data=some_bytes("base", 4)))
        two = layer(entry("two", data=some_bytes("two", 2)))
        layout = Layout(self.lamina.folder / "layout")
        layout.add("one:1", [base])
        layout.add("two:1", [base, two])
        layout.add("three:1", [base, two, layer(entry("three", data=some_bytes("three", 3)))])
        self.lamina.call("import", f"oci:{layout.folder}:one:1")
        for name in ("two:1", "three:1"):
            self.lamina.call("import", f"oci:{layout.folder}:{name}")
        self.path = self.lamina.folder / "chart.svg"

    def draw(self):
        usage = self.lamina.json("df", "--chart", self.path)
        text = self.path.read_text()
        xml.dom.minidom.parseString(text)
        return usage, text

    def on_disk(self, usage):
        return sum(usage[f"{part}_bytes"] for part in ("pack", "index", "recipe", "tree", "mount", "other"))

    def sum_of_areas(self, text):
        return sum(int(number) for number in re.findall('data-bytes="([0-9]+)"', text))

    def test_areas_add_up_to_what_df_says_and_lies_there(self):
        usage, text = self.draw()
        self.assertEqual(self.on_disk(usage), self.sum_of_areas(text))
        self.assertAlmostEqual(self.lamina.store_bytes(), self.sum_of_areas(text), delta=1000)  # The log grows.
        self.assertIn("shared by one:1, two:1, three:1", text)
        self.assertIn("shared by two:1, three:1", text)
        self.assertIn("three:1 alone", text)
        self.assertNotIn("one:1 alone", text)
        self.assertIn("100 %", text)

    def test_shares_add_up_to_what_images_have(self):
        usage, _ = self.draw()
        for place, image in enumerate(usage["images"]):
            mine = [share for share in usage["shares"] if place in share["images"]]
            self.assertEqual(image["stored_bytes"], sum(share["stored_bytes"] for share in mine))
            self.assertEqual(image["unique_bytes"], sum(share["stored_bytes"] for share in mine
                                                        if share["images"] == [place]))
        self.assertLessEqual(sum(share["stored_bytes"] for share in usage["shares"]), usage["pack_bytes"])

    def test_what_no_image_has_is_drawn_too(self):
        self.lamina.call("rmi", "three:1")
        usage, text = self.draw()
        self.assertEqual(self.on_disk(usage), self.sum_of_areas(text))
        self.assertIn("chunks of no image", text)
        for name in ("two:1", "one:1"):
            self.lamina.call("rmi", name)
        usage, text = self.draw()
        self.assertEqual(self.on_disk(usage), self.sum_of_areas(text))

    @needs_fuse
    def test_mounts_are_drawn(self):
        mnt = self.lamina.make_folder("mnt")
        self.lamina.call("mount", "one:1", "--name", "work", mnt)
        (mnt / "new").write_bytes(some_bytes("new", 2))
        os.sync()
        self.lamina.call("umount", "work")
        usage, text = self.draw()
        self.assertGreater(usage["mount_bytes"], 2 * MIB)
        self.assertIn("mounts and their changes", text)
        self.assertEqual(self.on_disk(usage), self.sum_of_areas(text))

    def test_what_cannot_be_drawn_is_refused_in_one_line(self):
        self.assertIn("only .svg", self.lamina.fails("df", "--chart", self.lamina.folder / "chart.png"))
        self.assertIn("only .svg", self.lamina.fails("df", "--chart", self.lamina.folder / "chart"))
        self.assertIn("No such file", self.lamina.fails("df", "--chart", self.lamina.folder / "none/chart.svg"))
        self.assertIn("cannot be written", self.lamina.fails("df", "--chart", "/dev/full/chart.svg"))
        self.assertFalse((self.lamina.folder / "chart.png").exists())


if __name__ == "__main__":
    main()
