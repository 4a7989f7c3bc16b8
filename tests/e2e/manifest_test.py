#!/usr/bin/env python3
"""A mounted image looks, line for line, like its layers unpacked and stacked by the kernel's overlayfs."""
import gzip
import json
import os
import pathlib
import subprocess
import unittest

from support import (Layout, StoreTest, entry, layer, main, manifest, needs_fuse, needs_program, needs_root,
                     overlay_of, run)

LONG = "n" * 255
DEEP = "/".join(["d" * 200] * 15)
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")  # cap_net_bind_service=ep


def base_layer():
    return layer(
        entry("./", "dir"), entry("etc", "dir", mtime=-1),
        entry("etc/motd", data="hello\n", exact_mtime="1234567890.123456789"),
        entry("etc/old", data="before 1970", exact_mtime="-12345.5"), entry("bin", "dir"),
        entry("bin/server", data=b"\x7fELF" + bytes(5000), mode=0o755, xattrs={"security.capability": CAPABILITY}),
        entry("bin/su", data="set-id", mode=0o4755), entry("bin/tool", data="one inode", mode=0o2755),
        entry("bin/tool-link", "link", target="bin/tool"), entry("dev", "dir"),
        entry("dev/null", "char", device=(1, 3), mode=0o666),
        entry("dev/disk", "block", device=(8, 300), mode=0o660, owner=(0, 6)),
        entry("run", "dir", mode=0o1777), entry("run/pipe", "fifo"), entry("home", "dir", owner=(1000, 100_000)),
        entry("home/link", "symlink", target="../etc/motd"), entry("home/dangling", "symlink", target="x" * 4000),
        entry(f"home/{LONG}", data="long name"), entry("home/ünïcode \\ \" name", data="odd"),
        entry("home/x", data="x", xattrs={"user.note": b"value", "user.empty": b""}),
        *[entry("/".join(["d" * 200] * depth), "dir") for depth in range(1, 16)], entry(DEEP + "/file", data="deep"),
        entry("opaque", "dir"), entry("opaque/below", data="hidden"), entry("opaque/both", data="below"),
        entry("gone", "dir"), entry("gone/file", data="x"), entry("gone/dir", "dir"),
        entry("gone/dir/inner", data="y"), entry("file-to-dir", data="file"), entry("dir-to-file", "dir"),
        entry("dir-to-file/x", data="x"), entry("link-to-dir", "symlink", target="etc"),
        entry("attributes", "dir", mode=0o700), entry("attributes/kept", data="kept"),
        entry("empty", data=""), entry("big", data=os.urandom(3_000_000)))


def upper_layer():
    return layer(
        entry("./", "dir"), entry("gone", "dir"), entry("gone/.wh.file"), entry("gone/.wh.dir"),
        entry("opaque", "dir", mode=0o711), entry("opaque/new", data="new"), entry("opaque/.wh..wh..opq"),
        entry("opaque/both", data="above"), entry("file-to-dir", "dir"), entry("file-to-dir/inner", data="inner"),
        entry("dir-to-file", data="now a file"), entry("link-to-dir", "dir"), entry("link-to-dir/inner", data="inner"),
        entry("attributes", "dir", mode=0o755, owner=(5, 6), mtime=77), entry("bin", "dir"),
        entry("bin/from-below", "link", target="bin/su"), entry("etc", "dir"), entry("etc/motd", data="changed"))


def sparse_layers(folder):
    """Written by GNU tar: a file with holes, in each of the three ways that it has."""
    folder = pathlib.Path(folder)
    folder.mkdir()
    tars = []
    for version in ("0.0", "0.1", "1.0"):
        path = folder / f"holes-{version}"
        with open(path, "wb") as file:
            file.truncate(50_000_000)
            file.seek(1_000_000)
            file.write(b"data")
            file.seek(49_000_000)
            file.write(os.urandom(100_000))
        tars.append(subprocess.run(["tar", "--create", "--sparse", f"--sparse-version={version}", "--format=posix",
                                    "--numeric-owner", "--directory", folder, path.name],
                                   check=True, capture_output=True).stdout)
    return tars


@needs_root
@needs_fuse
class ManifestTest(StoreTest):
    def compare(self, name, layers):
        target = self.lamina.make_folder("mnt")
        self.lamina.call("mount", name, target, "--ro", "--name", "compare")
        try:
            ours = manifest(target)
        finally:
            self.lamina.call("umount", "compare")
        theirs_at = overlay_of(self.lamina.folder / f"overlay-{name.replace(':', '-')}", layers)
        try:
            theirs = manifest(theirs_at)
        finally:
            run("umount", theirs_at)
        self.assertGreater(len(ours), 1)
        self.assertEqual(theirs, ours)

    def test_every_kind_of_entry_and_every_rule_of_stacking_is_as_in_the_kernels_overlay(self):
        # The last layer says what the root looks like: the kernel's overlay takes that from the topmost folder.
        layers = [base_layer(), upper_layer(), *sparse_layers(self.lamina.folder / "sparse"), layer(entry("./", "dir"))]
        Layout(self.lamina.folder / "layout").add("odd:1", layers)
        self.lamina.call("import", f"oci:{self.lamina.folder}/layout")
        self.compare("odd:1", layers)

    @needs_program("zstd")
    def test_uncompressed_and_zstd_layers_give_the_same_tree_as_gzip(self):
        layers = [base_layer(), upper_layer()]
        layout = Layout(self.lamina.folder / "layout")

        def zstd(data):
            return subprocess.run(["zstd", "-qc"], input=data, check=True, capture_output=True).stdout
        layout.add("g:1", layers)
        layout.add("z:1", layers, compress=zstd, media="tar+zstd")
        layout.add("u:1", layers, compress=bytes, media="tar")
        self.lamina.call("import", f"oci:{self.lamina.folder}/layout")
        images = self.lamina.json("images")["images"]
        self.assertEqual(3, len([name for image in images for name in image["names"]]))
        self.assertEqual(1, len({image["tree_digest"] for image in images}))

    @unittest.skipUnless(os.environ.get("LAMINA_CORPUS"), "LAMINA_CORPUS names no image layout")
    def test_every_image_of_the_corpus_is_as_in_the_kernels_overlay(self):
        corpus = pathlib.Path(os.environ["LAMINA_CORPUS"])
        self.lamina.call("import", f"oci:{corpus}")
        for described in json.loads((corpus / "index.json").read_text())["manifests"]:
            document = json.loads((corpus / "blobs/sha256" / described["digest"][7:]).read_text())
            layers = [gzip.decompress((corpus / "blobs/sha256" / one["digest"][7:]).read_bytes())
                      for one in document["layers"]]
            with self.subTest(described["annotations"]["org.opencontainers.image.ref.name"]):
                self.compare(described["annotations"]["org.opencontainers.image.ref.name"], layers)


if __name__ == "__main__":
    main()
