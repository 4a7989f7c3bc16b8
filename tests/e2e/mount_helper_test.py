#!/usr/bin/env python3
"""mount(8), umount(8) and fstab mount images: in a mount namespace where /usr/sbin has mount.lamina."""
import os
import pathlib
import subprocess
import unittest

import support
from support import Layout, StoreTest, entry, layer, main, needs_fuse, needs_program, needs_root, run

TREE = layer(entry("etc", "dir"), entry("etc/motd", data="hello\n"),
             entry("run.sh", data="#!/bin/sh\necho ran\n", mode=0o755))
SKIPPED = 99


@needs_fuse
@needs_root
class MountHelperTest(StoreTest):
    def setUp(self):
        super().setUp()
        Layout(self.lamina.folder / "layout").add("test:1", [TREE])
        self.lamina.call("import", f"oci:{self.lamina.folder}/layout")
        self.target = self.lamina.make_folder("mnt")
        programs = self.lamina.make_folder("programs")
        for name in ("mount.lamina", "lamina"):
            (programs / name).symlink_to(support.BUILD / "client" / name)
        (programs / "mount.fuse.lamina").symlink_to("mount.lamina")
        (programs / "lamina-fuse").symlink_to(support.BUILD / "fuse/lamina-fuse")
        self.fstab = self.lamina.folder / "fstab"

    def inside(self, script, check=True):
        """Runs a script in a mount namespace of its own, where the programs are installed. $M is the mount point."""
        enter = (f'mount -t overlay overlay -o lowerdir="{self.lamina.folder}/programs":/usr/sbin /usr/sbin '
                 f'|| exit {SKIPPED}; set -e; {script}')
        environment = {**self.lamina.environment, "LAMINA_STORE": str(self.lamina.store), "M": str(self.target),
                       "T": str(self.lamina.folder)}
        result = subprocess.run(["unshare", "--mount", "--propagation", "slave", "sh", "-c", enter], env=environment,
                                capture_output=True, text=True, timeout=120)
        if result.returncode == SKIPPED:
            self.skipTest(f"/usr/sbin cannot be overlaid: {result.stderr}")
        if check:
            self.assertEqual(0, result.returncode, result.stdout + result.stderr)
            self.assertEqual("", result.stderr)
        return result

    def fails(self, command, says):
        result = self.inside(f"{command} && exit 0; echo status $?; ! mountpoint -q $M", check=False)
        self.assertEqual("status 32", result.stdout.strip(), result.stderr)
        self.assertEqual(1, len(result.stderr.strip().splitlines()), result.stderr)
        self.assertIn(says, result.stderr)

    def test_mount_and_umount(self):
        result = self.inside("mount -t lamina test:1 $M; cat $M/etc/motd; findmnt -no FSTYPE,OPTIONS $M; "
                             "echo new > $M/new; umount $M; ! mountpoint -q $M; "
                             "mount -t lamina test:1 $M; cat $M/new; umount $M")
        lines = result.stdout.splitlines()
        self.assertEqual(["hello", "new"], [lines[0], lines[2]])
        self.assertTrue(lines[1].startswith("fuse.lamina "), lines[1])
        self.assertIn("rw", lines[1].split()[1].split(","))
        name = str(self.target)[1:].replace("-", "_2d").replace("/", "-")
        self.assertEqual([name], list(self.lamina.mounts()))

    def test_the_type_fuse_lamina_and_the_older_form(self):
        self.assertEqual("hello\n", self.inside("mount -t fuse.lamina test:1 $M -o ro; cat $M/etc/motd; "
                                                "! touch $M/x 2>/dev/null; umount $M").stdout)
        self.assertEqual("hello\n", self.inside("mount -t fuse lamina#test:1 $M; cat $M/etc/motd; umount $M").stdout)

    def test_fstab(self):
        self.fstab.write_text(f"test:1 {self.target} lamina name=fromtab,nofail,_netdev,x-systemd.automount,"
                              "comment=words,noatime 0 0\n")
        result = self.inside("mount -T $T/fstab $M; cat $M/etc/motd; umount $M; mount -a -T $T/fstab; cat $M/etc/motd; "
                             "umount $M; mount -f -T $T/fstab $M; ! mountpoint -q $M")
        self.assertEqual("hello\nhello\n", result.stdout)
        self.assertEqual(["fromtab"], list(self.lamina.mounts()))

    def test_options(self):
        result = self.inside("mount -t lamina test:1 $M -o noexec,nosuid,nodev,name=a; findmnt -no OPTIONS $M; "
                             "$M/run.sh 2>&1 | grep -o denied; umount $M; "
                             "mount -t lamina test:1 $M -o dev,name=b; findmnt -no OPTIONS $M; $M/run.sh; umount $M; "
                             "mount -r -t lamina test:1 $M -o name=c; findmnt -no OPTIONS $M; umount $M")
        lines = result.stdout.splitlines()
        self.assertLessEqual({"noexec", "nosuid", "nodev"}, set(lines[0].split(",")))
        self.assertEqual("denied", lines[1])
        self.assertFalse({"noexec", "nosuid", "nodev"} & set(lines[2].split(",")), lines[2])
        self.assertEqual("ran", lines[3])
        self.assertIn("ro", lines[4].split(","))

    def test_folders_and_images_in_one_mount(self):
        for name in ("low/etc", "up", "work"):
            (self.lamina.folder / name).mkdir(parents=True)
        (self.lamina.folder / "low/etc/motd").write_text("folder\n")
        (self.lamina.folder / "low/etc/more").write_text("more\n")
        upper = "upperdir=$T/up,workdir=$T/work"
        result = self.inside(f"mount -t lamina none $M -o lowerdir=$T/low,image=test:1,{upper}; cat $M/etc/motd; "
                             "$M/run.sh; echo new >> $M/run.sh; rm $M/etc/more; ls $M/etc; "
                             "lamina gc >/dev/null; umount $M; "
                             "mount -t lamina none $M -o image=test:1,lowerdir=$T/low; cat $M/etc/motd $M/etc/more; "
                             "umount $M; tail -1 $T/up/run.sh")
        self.assertEqual(["folder", "ran", "motd", "hello", "more", "new"], result.stdout.splitlines())
        self.fails("mount -t lamina none $M -o lowerdir=$T/low,image=absent:1", "absent:1")
        self.fails("mount -t lamina none $M -o lowerdir=$T/absent,image=test:1", "absent")

    def test_marks_in_an_image_steer_nothing(self):
        """[stacks.images]"""
        marks = {"opaque": b"y", "redirect": b"/secret"}
        tar = layer(*[entry(f"{prefix}{mark}", "dir", xattrs={f"{prefix}.overlay.{mark}": value})
                      for prefix in ("user", "trusted") for mark, value in marks.items()])
        Layout(self.lamina.folder / "marked").add("marked:1", [tar])
        self.lamina.call("import", f"oci:{self.lamina.folder}/marked")
        for name in ("useropaque", "trustedopaque", "secret"):
            (self.lamina.folder / "low" / name).mkdir(parents=True)
            (self.lamina.folder / "low" / name / "below").touch()
        result = self.inside("mount -t lamina none $M -o image=marked:1,lowerdir=$T/low; cd $M; "
                             "ls useropaque trustedopaque userredirect trustedredirect; cd /; umount $M")
        self.assertEqual(["trustedopaque:", "below", "trustedredirect:", "useropaque:", "below", "userredirect:"],
                         [line for line in result.stdout.splitlines() if line])

    def test_folders_by_the_type_fuse_lamina_are_remounted_too(self):
        for name in ("low", "up", "work"):
            self.lamina.make_folder(name)
        result = self.inside("mount -t fuse.lamina src $M -o lowerdir=$T/low,upperdir=$T/up,workdir=$T/work; "
                             "findmnt -rno SOURCE,FSTYPE $M; echo new > $M/new; mount -o remount,ro $M; "
                             "touch $M/x 2>&1 | grep -o Read-only; mount -o remount,rw $M; touch $M/x; umount $M; "
                             "ls $T/up")
        self.assertEqual(["src fuse.lamina", "Read-only", "new", "x"], result.stdout.splitlines())

    def test_a_line_of_fstab_for_users_is_without_set_id_bits_devices_and_programs(self):
        self.fstab.write_text(f"test:1 {self.target} lamina user,noauto,x-gvfs-hide,ro 0 0\n")
        result = self.inside("mount -T $T/fstab $M; findmnt -no OPTIONS $M; cat $M/etc/motd; umount $M")
        options, text = result.stdout.splitlines()
        self.assertLessEqual({"ro", "nosuid", "nodev", "noexec"}, set(options.split(",")))
        self.assertEqual("hello", text)

    def test_fake_mounts_nothing(self):
        self.inside("mount -f -t lamina test:1 $M; ! mountpoint -q $M; mount -f -t fuse.lamina test:1 $M; "
                    "! mountpoint -q $M; mount.lamina -fnsv test:1 $M -N x -t lamina -o rw; ! mountpoint -q $M")
        self.assertEqual({}, self.lamina.mounts())

    def test_remount(self):
        result = self.inside("mount -t lamina test:1 $M; mount -o remount,ro $M; touch $M/x 2>&1 | grep -o Read-only; "
                             "mount -o remount,rw $M; touch $M/x; ls $M; umount $M")
        self.assertEqual(["Read-only", "etc", "run.sh", "x"], result.stdout.splitlines())

    def test_the_daemon_is_started_when_none_runs(self):
        self.lamina.call("daemon", "stop")
        self.assertEqual("hello\n", self.inside("mount -t lamina test:1 $M; cat $M/etc/motd; umount $M; "
                                                "lamina daemon stop").stdout)

    def test_bad_input_is_one_line_and_mounts_nothing(self):
        self.fails("mount -t lamina absent:1 $M", "absent:1")
        self.fails("mount -t lamina test:1 $M -o name=/bad/", "mount name")
        self.fails("mount.lamina test:1 $M/none", "none")
        self.fails("mount.lamina test:1 /etc/passwd", "not a folder")
        self.fails("mount -t lamina test:1 $M -o cache=1", "cache=1")
        result = self.inside("mount -t lamina test:1 $M -o name=one; mkdir $T/two; "
                             "mount -t lamina test:1 $T/two -o name=one || echo $?; umount $M", check=False)
        self.assertEqual("32\n", result.stdout)
        self.assertIn("is mounted at", result.stderr)
        for words in ([], ["one"], ["a", "b", "c"], ["a", "b", "-o"], ["a", "b", "--nonsense"]):
            result = run(support.BUILD / "client/mount.lamina", *words, check=False)
            self.assertEqual(1, result.returncode, words)
            self.assertEqual(1, len(result.stderr.strip().splitlines()))

    def test_help_and_version(self):
        self.assertIn("usage", run(support.BUILD / "client/mount.lamina", "--help").stdout)
        self.assertIn("mount.lamina", run(support.BUILD / "client/mount.lamina", "-V").stdout)


if __name__ == "__main__":
    main()
