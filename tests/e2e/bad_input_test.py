#!/usr/bin/env python3
"""Bad input ends with one line that says what and why, a non-zero exit, and an unchanged store."""
import gzip
import io
import json
import os
import pathlib
import tarfile
import zlib

from support import Lamina, Layout, StoreTest, entry, layer, main, needs_fuse, needs_root, run, sha256

GOOD = layer(entry("etc", "dir"), entry("etc/motd", data="hello\n"))


class BadInputTest(StoreTest):
    def setUp(self):
        super().setUp()
        Layout(self.lamina.folder / "good").add("good:1", [GOOD])
        self.lamina.call("import", f"oci:{self.lamina.folder}/good")
        self.before = self.lamina.json("images")
        self.count = 0

    def refused(self, *words, says):
        error = self.lamina.fails(*words)
        for text in [says] if isinstance(says, str) else says:
            self.assertIn(text, error)
        self.assertEqual(self.before, self.lamina.json("images"))
        verified = self.lamina.json("verify", "--data")
        self.assertEqual([], verified["problems"])

    def refused_layers(self, layers, says, **options):
        self.count += 1
        folder = self.lamina.folder / f"bad{self.count}"
        Layout(folder).add("bad:1", layers, **options)
        self.refused("import", f"oci:{folder}", says=says)
        self.assertEqual([], os.listdir(self.lamina.store / "staging"))
        return folder

    def test_a_source_that_is_not_there_or_no_image(self):
        self.refused("import", "oci:/no/such/layout", says="/no/such/layout")
        self.refused("import", "docker-archive:/no/such.tar", says="/no/such.tar")
        self.refused("import", "nonsense:/x", says="nonsense")
        junk = self.lamina.folder / "junk"
        junk.write_bytes(os.urandom(5000))
        self.refused("import", f"oci-archive:{junk}", says=str(junk))
        self.refused("import", f"docker-archive:{junk}", says=str(junk))
        empty = self.lamina.make_folder("empty")
        self.refused("import", f"oci:{empty}", says="oci-layout")
        self.refused("import", f"oci:{self.lamina.folder}/good:absent", says="absent")

    def test_truncated_and_flipped_blobs(self):
        for change in (lambda data: data[:-5], lambda data: data[:len(data) // 2], lambda data: b"",
                       lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:], lambda data: data + b"x"):
            self.count += 1
            layout = Layout(self.lamina.folder / f"damaged{self.count}")
            layout.add("bad:1", [layer(entry("file", data=os.urandom(1000)))])
            blobs = {path: path.stat().st_size for path in (layout.folder / "blobs/sha256").iterdir()}
            largest = max(blobs, key=blobs.get)
            largest.write_bytes(change(largest.read_bytes()))
            self.refused("import", f"oci:{layout.folder}", says="lamina: ")

    def test_promises_that_the_layers_do_not_keep(self):
        def wrong_diff_id(config, _):
            config["rootfs"]["diff_ids"][0] = sha256(b"something else")

        def missing_layer(_, manifest):
            manifest["layers"][0]["digest"] = sha256(b"nowhere")

        def wrong_size(_, manifest):
            manifest["layers"][0]["size"] += 1

        def unknown_type(_, manifest):
            manifest["layers"][0]["mediaType"] = "application/vnd.example.squashfs"

        def too_few(config, _):
            config["rootfs"]["diff_ids"] = []
        fresh = layer(entry("fresh", data="not yet in the store"))
        self.refused_layers([fresh], ["diff ID", sha256(b"something else")], spoil=wrong_diff_id)
        self.refused_layers([fresh], sha256(b"nowhere")[7:19], spoil=missing_layer)
        self.refused_layers([fresh], "the manifest promises", spoil=wrong_size)
        self.refused_layers([fresh], "application/vnd.example.squashfs", spoil=unknown_type)
        self.refused_layers([fresh], "diff", spoil=too_few)

    def test_layers_that_reach_outside_or_contradict_themselves(self):
        self.refused_layers([layer(entry("../outside", data="x"))], "..")
        self.refused_layers([layer(entry("a/../../outside", data="x"))], "..")
        self.refused_layers([layer(entry("/absolute", data="x"))], "/absolute")
        self.refused_layers([layer(entry("link", "link", target="../../etc/passwd"))], "..")
        self.refused_layers([layer(entry("link", "link", target="nothing"))], "nothing")
        self.refused_layers([layer(entry("file", data="x"), entry("file/below", data="y"))], "file")
        through_link = layer(entry("dir", "symlink", target="/etc"), entry("dir/below", data="y"))
        self.refused_layers([through_link], "has entries below it")

    def test_a_file_where_a_directory_was_and_duplicates_are_no_error(self):
        layers = [layer(entry("a", "dir"), entry("a/b", data="x"), entry("c", data="1"), entry("c", data="2")),
                  layer(entry("a", data="file"))]
        Layout(self.lamina.folder / "fine").add("fine:1", layers)
        self.lamina.call("import", f"oci:{self.lamina.folder}/fine")
        self.assertEqual("file", self.lamina.call("cat", "fine:1", "/a").stdout)
        self.assertEqual("2", self.lamina.call("cat", "fine:1", "/c").stdout)

    def test_a_bomb_is_refused_while_memory_stays_small(self):
        compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
        header = io.BytesIO()
        info = tarfile.TarInfo("zeros")
        info.size = 10 << 30
        header.write(info.tobuf(tarfile.GNU_FORMAT))
        blob = compressor.compress(header.getvalue())
        zeros = bytes(16 << 20)
        for _ in range(640):  # 10 GiB
            blob += compressor.compress(zeros)
        blob += compressor.flush()
        self.refused_layers([b"unused"], "200 times its size", compress=lambda _: blob)
        status = pathlib.Path(f"/proc/{self.lamina.daemon_pid()}/status").read_text()
        peak_kib = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
        self.assertLess(peak_kib, 256 * 1024)

    def test_names_that_nothing_has(self):
        self.refused("inspect", "absent:1", says="absent:1")
        self.refused("rmi", "absent:1", says="absent:1")
        self.refused("save", "absent:1", f"docker-archive:{self.lamina.folder}/x.tar", says="absent:1")
        self.refused("ls", "good:1", "/absent", says="absent")
        self.refused("cat", "good:1", "/etc", says="/etc")
        self.refused("tag", "good:1", "Not A Name", says="Not A Name")
        self.refused("umount", "absent", says="absent")
        self.refused("diff", "absent", says="absent")
        self.refused("commit", "absent", "new:1", says="absent")
        self.refused("mount", "absent:1", str(self.lamina.make_folder("mnt")), says="absent:1")
        self.refused("mount", "good:1", "/no/such/folder", says="/no/such/folder")

    def test_a_wrong_command_line_exits_with_2(self):
        for words in (["import"], ["nonsense"], ["images", "--nonsense"], []):
            result = self.lamina.call(*words, check=False)
            self.assertEqual(2, result.returncode, words)
            self.assertTrue(result.stderr.strip())

    def test_a_socket_path_that_is_too_long(self):
        result = self.lamina.call("--socket", "/tmp/" + "x" * 120, "images", check=False)
        self.assertEqual(2, result.returncode)
        self.assertIn("at most 107", result.stderr)

    def test_a_store_of_another_version(self):
        self.lamina.call("daemon", "stop")
        version = self.lamina.store / "format"
        good = version.read_bytes()
        version.write_bytes(good.replace(b"1", b"999"))
        try:
            self.assertIn("format", self.lamina.fails("images"))
        finally:
            version.write_bytes(good)
        self.assertEqual(self.before, self.lamina.json("images"))

    def test_a_store_in_use_by_another_daemon(self):
        result = self.lamina.call("--socket", self.lamina.folder / "other.sock", "images", check=False)
        self.assertEqual(1, result.returncode)
        self.assertIn("in use", result.stderr)
        self.assertEqual(self.before, self.lamina.json("images"))

    @needs_fuse
    def test_an_image_in_use_is_removed_only_when_forced_and_the_mount_goes_on(self):
        target = self.lamina.make_folder("mnt")
        self.lamina.call("mount", "good:1", target, "--name", "user")
        self.refused("rmi", "good:1", says="mount")
        self.lamina.call("rmi", "--force", "good:1")
        self.lamina.call("gc")
        self.assertEqual("hello\n", (target / "etc/motd").read_text())
        self.lamina.call("umount", "user")
        self.lamina.call("gc")
        self.lamina.call("mount", "good:1", target, "--name", "user", check=False)
        self.lamina.call("umount", "user", "--discard", check=False)


@needs_root
class FullDiskTest(StoreTest):
    def setUp(self):
        super().setUp()
        image = self.lamina.folder / "disk"
        with open(image, "wb") as file:
            file.truncate(24 << 20)
        run("mkfs.ext4", "-q", "-m", "0", image)
        self.disk = self.lamina.make_folder("small")
        run("mount", "-o", "loop", image, self.disk)
        self.addCleanup(run, "umount", "-l", self.disk, check=False)
        self.small = Lamina(self.disk)
        self.addCleanup(self.small.close)

    def test_a_full_disk_during_an_import_leaves_the_store_as_it_was(self):
        Layout(self.lamina.folder / "good").add("good:1", [GOOD])
        self.small.call("import", f"oci:{self.lamina.folder}/good")
        before = self.small.json("images")
        huge = layer(entry("random", data=os.urandom(40 << 20)))
        Layout(self.lamina.folder / "huge").add("huge:1", [huge], compress=lambda data: gzip.compress(data, 1))
        self.assertIn("No space", self.small.fails("import", f"oci:{self.lamina.folder}/huge"))
        self.assertEqual(before, self.small.json("images"))
        self.assertEqual([], self.small.json("verify", "--data")["problems"])
        self.small.call("gc")
        self.assertEqual("hello\n", self.small.call("cat", "good:1", "/etc/motd").stdout)

    @needs_fuse
    def test_a_full_disk_during_a_commit_leaves_store_and_mount_as_they_were(self):
        Layout(self.lamina.folder / "good").add("good:1", [GOOD])
        self.small.call("import", f"oci:{self.lamina.folder}/good")
        before = self.small.json("images")
        target = self.lamina.make_folder("mnt")
        self.small.call("mount", "good:1", target, "--name", "work")
        changed = os.urandom(6 << 20)
        (target / "changed").write_bytes(changed)
        self.small.call("diff", "work")  # Everything has reached the disk.
        room = os.statvfs(self.disk)
        (self.disk / "filler").write_bytes(bytes(room.f_bavail * room.f_frsize - (2 << 20)))
        self.assertIn("No space", self.small.fails("commit", "work", "new:1"))
        self.assertEqual(before, self.small.json("images"))
        self.assertEqual([], self.small.json("verify", "--data")["problems"])
        self.assertEqual(changed, (target / "changed").read_bytes())
        (self.disk / "filler").unlink()
        self.small.call("commit", "work", "new:1")
        self.small.call("umount", "work", "--discard")
        self.small.call("mount", "new:1", target, "--ro", "--name", "again")
        self.assertEqual(changed, (target / "changed").read_bytes())
        self.small.call("umount", "again")


if __name__ == "__main__":
    main()
