#!/usr/bin/env python3
"""Bundles say what umoci's say; lamina run runs programs as runtimes do and leaves nothing behind, killed or not."""
import json
import os
import pathlib
import pty
import shlex
import shutil
import signal
import subprocess
import time
import unittest

import support
from support import Layout, StoreTest, entry, layer, main, needs_fuse, needs_program, needs_root, run

CONTAINERS = pathlib.Path("/run/lamina/containers")
TOOLS = "sh ls cat id env sleep pwd touch rm kill tty true false test mount trap grep".split()
PASSWD = "root:x:0:0::/root:/bin/sh\napp:x:1001:1002::/home/app:/bin/sh\n"
GROUP = "root:x:0:\nstaff:x:50:\nextra:x:77:app\nmore:x:78:root,app\n"


def tools_layer():
    busybox = pathlib.Path(shutil.which("busybox")).read_bytes()
    return layer(*[entry(name, "dir") for name in ("bin", "etc", "proc", "sys", "dev", "tmp", "root", "srv")],
                 entry("bin/busybox", data=busybox, mode=0o755),
                 *[entry(f"bin/{name}", "link", target="bin/busybox", mode=0o755) for name in TOOLS],
                 entry("etc/passwd", data=PASSWD), entry("etc/group", data=GROUP))


def config_of(**members):
    def spoil(config, _):
        config["config"] = members
    return spoil


def by_destination(config):
    return {mount["destination"]: mount for mount in config["mounts"]}


@needs_fuse
@needs_program("umoci")
class BundleTest(StoreTest):
    FULL = {"User": "app:staff", "Env": ["PATH=/bin", "A=b=c", "EMPTY=", "A=again", "HOME=/image"],
            "Entrypoint": ["/bin/ep", "x"], "Cmd": ["c1", "c 2"], "WorkingDir": "/srv/w",
            "Labels": {"k": "v", "org.opencontainers.image.author": "other", "quote": "\"\n"},
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}}, "Volumes": {"/data": {}, "/var/x": {}},
            "StopSignal": "SIGUSR1"}
    IMAGES = {"full": FULL, "empty": {}, "name": {"User": "app"}, "number": {"User": "1234"},
              "numbers": {"User": "1001:77"}, "group": {"User": ":more"}, "command": {"Cmd": ["a"]},
              "nulls": {"Cmd": None, "Env": None, "Labels": None, "Volumes": None}}

    def setUp(self):
        super().setUp()
        self.layout = self.lamina.folder / "layout"
        layout = Layout(self.layout)
        files = layer(entry("etc", "dir"), entry("etc/passwd", data=PASSWD), entry("etc/group", data=GROUP))
        for name, members in self.IMAGES.items():
            layout.add(f"{name}", [files], spoil=config_of(**members))

        def authored(config, _):
            config.update({"author": "Some One", "created": "2020-01-02T03:04:05.123Z", "architecture": "arm64"})
            del config["config"]
        layout.add("authored", [files], spoil=authored)
        self.names = [*self.IMAGES, "authored"]
        self.lamina.call("import", f"oci:{self.layout}")

    def bundle(self, name, *options):
        folder = self.lamina.folder / f"bundle-{name}"
        mount = self.lamina.call("bundle", f"{name}:latest" if ":" not in name else name, folder, *options)
        self.addCleanup(self.lamina.call, "umount", folder / "rootfs", "--discard", check=False)
        self.assertTrue(os.path.ismount(folder / "rootfs"), mount.stdout)
        return folder, json.loads((folder / "config.json").read_text())

    def compared(self, name, *options):
        theirs = self.lamina.folder / f"umoci-{name}{''.join(options)}"
        run("umoci", "unpack", *options, "--image", f"{self.layout}:{name}", theirs)
        expected = json.loads((theirs / "config.json").read_text())
        folder, config = self.bundle(name, *options)
        self.assertEqual(expected.pop("hostname"), "umoci-default")
        self.assertEqual(config.pop("hostname"), "lamina")
        self.assertEqual(by_destination(expected), by_destination(config))
        for one in (expected, config):
            one["linux"]["namespaces"].sort(key=lambda item: item["type"])
            del one["mounts"]
        for member in expected | config:
            self.assertEqual(expected.get(member), config.get(member), f"{name}: {member}")
        self.lamina.call("umount", folder / "rootfs", "--discard")
        shutil.rmtree(folder)

    @needs_root  # umoci's bundles of other owners; an ordinary user's are rootless, below.
    def test_every_field_is_umocis(self):
        for name in self.names:
            with self.subTest(name):
                self.compared(name)

    def test_every_field_of_a_rootless_bundle_is_umocis(self):
        for name in ("full", "empty", "name"):
            with self.subTest(name):
                self.compared(name, "--rootless")

    def test_the_rootfs_is_a_mount_whose_changes_are_kept_by_name(self):
        folder, config = self.bundle("full", "--name", "kept")
        self.assertNotIn("readonly", config["root"])
        (folder / "rootfs/new").write_text("kept")
        self.lamina.call("umount", folder / "rootfs")
        shutil.rmtree(folder)
        result = json.loads(self.lamina.call("--json", "bundle", "full", folder, "--name", "kept").stdout)
        self.assertEqual(["bundle", "mount"], list(result))
        self.assertEqual("kept", (folder / "rootfs/new").read_text())

    def test_a_read_only_bundle_says_so_and_is_so(self):
        folder, config = self.bundle("empty", "--ro")
        self.assertTrue(config["root"]["readonly"])
        with self.assertRaises(OSError):
            (folder / "rootfs/new").write_text("x")

    def test_bad_input_is_one_line_and_leaves_nothing(self):
        layout = Layout(self.lamina.folder / "bad")
        files = layer(entry("etc", "dir"), entry("etc/passwd", data=PASSWD))
        link = layer(entry("etc", "dir"), entry("etc/passwd", "dir"))
        bad = {"nobody": ({"User": "nobody"}, "nobody"), "nogroup": ({"User": "app:none"}, "none"),
               "range": ({"User": "2147483648"}, "2147483648"), "env": ({"Env": ["NOEQUALS"]}, "NOEQUALS"),
               "noname": ({"Env": ["=x"]}, "=x"), "cmd": ({"Cmd": "text"}, "Cmd"), "labels": ({"Labels": []}, "Labels"),
               "nul": ({"Cmd": ["a\0b"]}, "NUL"), "numbers": ({"Env": [1]}, "Env")}
        for name, (members, _) in bad.items():
            layout.add(name, [files], spoil=config_of(**members))
        layout.add("folder", [link], spoil=config_of(User="app"))
        bad["folder"] = ({}, "passwd")
        self.lamina.call("import", f"oci:{layout.folder}")
        target = self.lamina.folder / "bundle"
        for name, (_, says) in bad.items():
            with self.subTest(name):
                self.assertIn(says, self.lamina.fails("bundle", name, target))
                self.assertFalse(target.exists())
                self.assertEqual({}, self.lamina.mounts())
        target.mkdir()
        self.assertIn("nobody", self.lamina.fails("bundle", "nobody", target))
        self.assertEqual([], os.listdir(target))
        (target / "file").write_text("x")
        self.assertIn("not empty", self.lamina.fails("bundle", "full", target))
        self.assertIn("not a folder", self.lamina.fails("bundle", "full", target / "file"))
        self.assertIn("No such file", self.lamina.fails("bundle", "full", target / "a/b"))
        self.assertIn("absent", self.lamina.fails("bundle", "absent", target / "new"))
        self.assertEqual(["file"], os.listdir(target))

    @needs_root
    @needs_program("runc")
    @needs_program("crun")
    def test_runc_and_crun_run_the_bundle(self):
        Layout(self.lamina.folder / "tools").add("tools", [tools_layer()])
        self.lamina.call("import", f"oci:{self.lamina.folder}/tools")
        folder, config = self.bundle("tools")
        config["process"].update(terminal=False, args=["sh", "-c", "cat /etc/passwd && touch /new && exit 9"])
        (folder / "config.json").write_text(json.dumps(config))
        state = self.lamina.make_folder("state")
        for runtime in ("runc", "crun"):
            words = [runtime, "--root", state / runtime, "run", "--bundle", folder, f"lamina-{os.getpid()}"]
            result = run(*words, check=False)
            if "hybrid" in result.stderr:  # of cgroups
                result = run(*support.without_unified_cgroups(*words), check=False)
            self.assertEqual((9, PASSWD), (result.returncode, result.stdout), result.stderr)
            (folder / "rootfs/new").unlink()


@needs_fuse
@needs_root
@needs_program("busybox")
class RunTest(StoreTest):
    RUNTIME = "runc"

    def setUp(self):
        super().setUp()
        if not shutil.which(self.RUNTIME):
            self.skipTest(f"needs {self.RUNTIME}")
        self.lamina.environment["LAMINA_RUNTIME"] = shutil.which(self.RUNTIME)
        Layout(self.lamina.folder / "tools").add("tools", [tools_layer()], command=("sh", "-c", "echo own command"))
        self.lamina.call("import", f"oci:{self.lamina.folder}/tools")
        probe = self.lamina.call("run", "tools", "true", check=False)
        if probe.returncode != 0 and "hybrid" in probe.stderr:  # of cgroups: it runs where it does not see them
            self.lamina.environment["LAMINA_RUNTIME"] = str(self.without_unified_cgroups())
            probe = self.lamina.call("run", "tools", "true", check=False)
        if probe.returncode != 0:
            self.skipTest(f"{self.RUNTIME} runs no container here: {probe.stderr.strip()}")

    def without_unified_cgroups(self):
        program = self.lamina.folder / "runtime"
        program.write_text(f'#!/bin/sh\nexec {shlex.join(support.without_unified_cgroups(self.RUNTIME))} "$@"\n')
        program.chmod(0o755)
        return program

    def sh(self, script, *options, check=True):
        return self.lamina.call("run", *options, "tools", "sh", "-c", script, check=check)

    def start(self, script, **options):
        words = [str(self.lamina.program), "--store", str(self.lamina.store), "run", "tools", "sh", "-c", script]
        return subprocess.Popen(words, env=self.lamina.environment, stdout=subprocess.PIPE, text=True, **options)

    def containers(self):
        return [name for name in os.listdir(CONTAINERS) if name.startswith("run-") and
                str(self.lamina.store) in (CONTAINERS / name / "state").read_text()]

    def assert_nothing_left(self):
        self.assertEqual([], self.containers())
        self.assertEqual({}, self.lamina.mounts())
        self.assertEqual([], os.listdir(self.lamina.store / "mounts"))

    def test_the_images_command_or_another_runs_and_its_status_is_ours(self):
        self.assertEqual("own command\n", self.lamina.call("run", "tools").stdout)
        for status in (0, 1, 3, 125, 255):
            self.assertEqual(status, self.sh(f"exit {status}", check=False).returncode)
        self.assertEqual(128 + 9, self.sh("sleep 100 & kill -9 $!; wait $!; exit $?", check=False).returncode)
        self.assert_nothing_left()

    def test_what_follows_the_image_is_the_programs(self):
        result = self.lamina.call("run", "tools", "sh", "-c", 'echo "$@"', "x", "--json", "--user", "-e", "--", "a b")
        self.assertEqual("--json --user -e -- a b\n", result.stdout)

    def test_options_change_what_the_image_says(self):
        folder = self.lamina.make_folder("shared")
        (folder / "file").write_text("host\n")
        result = self.sh("id; pwd; echo $ONE $TWO; cat /mnt/file; touch /mnt/new; touch /ro/new || echo refused",
                         "--user", "app", "-w", "/srv", "-e", "ONE=1", "--env", "TWO=2", "-v", f"{folder}:/mnt",
                         "-v", f"{folder}:/ro:ro", check=False)
        self.assertEqual(["uid=1001(app) gid=1002 groups=77(extra),78(more)", "/srv", "1 2", "host"],
                         result.stdout.splitlines()[:4], result.stderr)
        self.assertEqual("refused", self.sh("touch /ro/new || echo refused", "-v", f"{folder}:/ro:ro").stdout.strip())
        self.assertEqual("Read-only", self.sh("touch /new 2>&1 | grep -o Read-only", "--ro").stdout.strip())
        self.assertEqual("y\n", self.lamina.call("run", "--entrypoint", "/bin/sh", "tools", "-c", "echo y").stdout)

    def test_standard_files_are_passed_through(self):
        script = "cat; echo bad >&2; test -t 0 || echo no tty"
        result = self.lamina.call("run", "tools", "sh", "-c", script, input="in\n")
        self.assertEqual(("in\nno tty\n", "bad\n"), (result.stdout, result.stderr))

    def test_on_a_terminal_it_has_one(self):
        master, slave = pty.openpty()
        with subprocess.Popen([str(self.lamina.program), "--store", str(self.lamina.store), "run", "tools", "sh", "-c",
                               "test -t 0 && test -t 1 && tty; read line; echo got $line"], env=self.lamina.environment,
                              stdin=slave, stdout=slave, stderr=slave, start_new_session=True) as process:
            os.close(slave)
            os.write(master, b"typed\n")
            seen = b""
            while b"got typed" not in seen:
                seen += os.read(master, 1000)
            self.assertEqual(0, process.wait(20))
        os.close(master)
        self.assertIn(b"/dev/pts/", seen)
        self.assert_nothing_left()

    def test_signals_reach_the_program(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            script = f"trap 'exit 42' {number.name[3:]}; echo ready; while true; do sleep 0.05; done"
            with self.start(script) as process:
                self.assertEqual("ready\n", process.stdout.readline())
                process.send_signal(number)
                self.assertEqual(42, process.wait(20), number)
        self.assert_nothing_left()

    def test_a_client_that_was_killed_leaves_nothing_after_the_next_run(self):
        with self.start("echo ready; sleep 1000") as process:
            self.assertEqual("ready\n", process.stdout.readline())
            left = self.containers()
            self.assertEqual(1, len(left))
            process.kill()
            process.wait()
            self.assertEqual(left, self.containers())
            self.assertEqual("x\n", self.sh("echo x").stdout)
        self.assert_nothing_left()
        self.assertNotIn(left[0], pathlib.Path("/proc/mounts").read_text())

    def test_killed_at_any_time_it_leaves_nothing_after_the_next_run(self):
        for delay in [number * 0.012 for number in range(12)]:
            with self.start("echo ready; exit 0") as process:
                time.sleep(delay)
                process.kill()
        self.assertEqual("x\n", self.sh("echo x").stdout)
        self.assert_nothing_left()

    def test_ended_by_a_signal_before_the_program_runs_it_leaves_nothing(self):
        for delay in [number * 0.015 for number in range(10)]:
            with self.start("trap 'exit 1' TERM; while true; do sleep 0.05; done") as process:
                time.sleep(delay)
                while process.poll() is None:  # a runtime that starts may not pass the first one on
                    process.terminate()
                    time.sleep(0.1)
        self.sh("true")
        self.assert_nothing_left()

    def test_containers_that_run_are_left_alone(self):
        with self.start("echo ready; read line < /dev/null; sleep 2; echo still here") as process:
            self.assertEqual("ready\n", process.stdout.readline())
            self.sh("true")
            self.assertEqual("still here\n", process.stdout.readline())
            self.assertEqual(0, process.wait(20))

    def test_bad_input_is_one_line_and_leaves_nothing(self):
        self.assertIn("absent", self.lamina.fails("run", "absent", "true"))
        self.assertIn("nobody", self.lamina.fails("run", "--user", "nobody", "tools"))
        self.assertIn("NOEQUALS", self.lamina.fails("run", "--env", "NOEQUALS", "tools"))
        self.assertIn("/no/such", self.lamina.fails("run", "--volume", "/no/such:/x", "tools"))
        for volume in ("/tmp", "/tmp:relative", ":/x", "/tmp:/x:maybe"):
            self.assertIn("--volume", self.lamina.fails("run", "--volume", volume, "tools"))
        self.assertIn("/no/such/runtime", self.lamina.fails("run", "--runtime", "/no/such/runtime", "tools"))
        self.assertNotEqual(0, self.lamina.call("run", "tools", "no-such-program", check=False).returncode)
        for words in (["run"], ["run", "--network", "what", "tools"]):
            self.assertEqual(2, self.lamina.call(*words, check=False).returncode)
        self.assert_nothing_left()


USER_SCRIPT = """
cd "$HOME"
lamina() { "$HOME/build/client/lamina" "$@"; }
lamina import "oci:$HOME/layout" >/dev/null
lamina run tools sh -c 'id -u; echo written > /new; cat /new; exit 5'
echo "status $?"
lamina --json mounts
lamina daemon stop >/dev/null
ls "$XDG_RUNTIME_DIR/lamina/containers"
"""


@needs_fuse
@needs_root
@needs_program("busybox")
@needs_program("runc")
class UserRunTest(StoreTest):
    def test_an_ordinary_user_runs_a_container_as_its_root(self):
        home = self.lamina.folder
        Layout(home / "layout").add("tools", [tools_layer()])
        (home / "script").write_text(USER_SCRIPT)
        (home / "build").mkdir()
        (home / "xdg").mkdir(mode=0o700)
        run("chown", "-R", f"{support.USER}:{support.USER}", home)
        words = support.as_user(home, home / "script", [(support.BUILD, home / "build")])
        environment = {"PATH": os.environ["PATH"], "HOME": str(home), "XDG_RUNTIME_DIR": str(home / "xdg"),
                       "LAMINA_STORE": str(home / "store"), "LAMINAD": str(home / "build/daemon/laminad"),
                       "LAMINA_FUSE": str(home / "build/fuse/lamina-fuse")}
        result = run(*words, env=environment, timeout=120)
        self.assertEqual("", result.stderr)
        self.assertEqual(["0", "written", "status 5", '{"mounts":[]}', "lock"], result.stdout.splitlines())


class CrunTest(RunTest):
    RUNTIME = "crun"


del StoreTest

if __name__ == "__main__":
    main()
