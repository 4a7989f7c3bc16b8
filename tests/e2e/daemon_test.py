#!/usr/bin/env python3
"""The daemon: started when absent, many clients at once, a clean end; mounts go on without it and are found again."""
import concurrent.futures
import json
import os
import pathlib
import shutil
import signal
import socket
import stat
import subprocess
import unittest

import support
from support import IS_ROOT, Layout, StoreTest, entry, layer, main, needs_fuse, needs_program, run, wait_for

SLOW_END = r"""
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
static int ended(const char* path, int result) {
  const size_t length = strlen(path);
  if (result == 0 && length >= 7 && strcmp(path + length - 7, "control") == 0)
    while (access(getenv("GATE"), F_OK) != 0) usleep(10000);
  return result;
}
int unlinkat(int folder, const char* path, int flags) {
  return ended(path, (int)syscall(SYS_unlinkat, folder, path, flags));
}
int unlink(const char* path) { return unlinkat(-100, path, 0); }
"""

TREE = layer(entry("etc", "dir"), entry("etc/motd", data="hello\n"), entry("big", data=os.urandom(2_000_000)))


class DaemonTest(StoreTest):
    def setUp(self):
        super().setUp()
        Layout(self.lamina.folder / "layout").add("test:1", [TREE])

    def http(self, method, target, body=""):
        words = ["curl", "-sS", "--unix-socket", str(self.lamina.store / "lamina.sock"), "-X", method,
                 f"http://lamina{target}", "-w", "\n%{http_code}"] + (["--data-binary", "@-"] if body else [])
        text, status = run(*words, input=body).stdout.rsplit("\n", 1)
        return int(status), text

    def test_the_first_command_starts_it_and_the_socket_is_for_its_user_alone(self):
        self.lamina.call("images")
        mode = os.stat(self.lamina.store / "lamina.sock").st_mode
        self.assertTrue(stat.S_ISSOCK(mode))
        self.assertEqual(0o600, stat.S_IMODE(mode))
        for folder in ["", "packs", "trees", "layers", "mounts", "staging"]:
            self.assertEqual(0o700, stat.S_IMODE(os.stat(self.lamina.store / folder).st_mode), folder)

    def test_clients_that_start_at_once_share_one_daemon(self):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda _: self.lamina.call("images", check=False), range(8)))
        self.assertEqual([0] * 8, [result.returncode for result in results], [result.stderr for result in results])
        self.assertTrue(self.lamina.daemon_pid())

    def test_many_clients_import_and_read_at_once(self):
        def work(number):
            if number % 2:
                self.lamina.call("import", f"oci:{self.lamina.folder}/layout")
            return self.lamina.call("images", check=False).returncode
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            self.assertEqual([0] * 16, list(pool.map(work, range(16))))
        self.assertEqual(1, len(self.lamina.json("images")["images"]))
        self.assertEqual([], self.lamina.json("verify", "--data")["problems"])

    def test_upkeep_compresses_and_a_repair_heals_what_it_finds(self):
        source = f"oci:{self.lamina.folder}/layout"
        self.lamina.call("import", source)
        self.assertEqual(1, self.lamina.json("upkeep", "--scrub")["packs_written"])
        self.assertEqual(0, self.lamina.json("upkeep", "--rate", "1M")["packs_written"])
        pack, = (self.lamina.store / "packs").glob("*.lpk")
        with open(pack, "r+b") as file:
            file.seek(1000)
            byte = file.read(1)[0]
            file.seek(1000)
            file.write(bytes([byte ^ 1]))
        self.assertEqual(1, self.lamina.call("verify", "--data", check=False).returncode)
        self.assertEqual(1, self.lamina.call("upkeep", "--scrub", check=False).returncode)
        self.assertEqual(2, self.lamina.call("verify", source, check=False).returncode)
        report = self.lamina.json("verify", "--repair", source)
        self.assertEqual([], report["problems"])
        self.assertIn("quarantine", " ".join(report["repaired"]))
        self.assertEqual("hello\n", self.lamina.call("cat", "test:1", "etc/motd").stdout)

    def test_sigterm_ends_it_cleanly_and_removes_the_socket(self):
        self.lamina.call("import", f"oci:{self.lamina.folder}/layout")
        pid = self.lamina.daemon_pid()
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not (self.lamina.store / "lamina.sock").exists())
        self.assertEqual(1, len(self.lamina.json("images")["images"]))
        self.assertNotEqual(pid, self.lamina.daemon_pid())

    def test_errors_have_a_status_a_code_and_a_message(self):
        self.lamina.call("images")
        for method, target, body, status, code in [
                ("GET", "/v1/image?image=absent", "", 404, "not_found"), ("GET", "/v1/image", "", 400, "usage"),
                ("GET", "/nonsense", "", 404, "not_found"), ("DELETE", "/v1/images", "", 404, "not_found"),
                ("POST", "/v1/import", "{", 400, "usage"), ("POST", "/v1/import", '{"sourze":"x"}', 400, "usage"),
                ("POST", "/v1/import", '{"source":"oci:relative"}', 400, "malformed"),
                ("POST", "/v1/mounts", '{"image":"x","mountpoint":"relative"}', 400, "malformed"),
                ("GET", "/v1/image?image=%zz", "", 400, "usage"), ("POST", "/v1/tag", "x" * (2 << 20), 400, "usage")]:
            with self.subTest(target):
                got, text = self.http(method, target, body)
                failure = json.loads(text)["error"]
                self.assertEqual((status, code), (got, failure["code"]), failure)
                self.assertTrue(failure["message"])

    def test_a_client_that_says_nothing_or_nonsense_hurts_nobody(self):
        self.lamina.call("images")
        silent = [socket.socket(socket.AF_UNIX) for _ in range(50)]
        for client in silent:
            client.connect(str(self.lamina.store / "lamina.sock"))
        for client in silent[:25]:
            client.send(b"GET /v1/images HTTP/1.1\r\nX: ")
        noise = socket.socket(socket.AF_UNIX)
        noise.connect(str(self.lamina.store / "lamina.sock"))
        noise.send(os.urandom(10_000))
        self.assertIn(b"400", noise.recv(1000))
        self.lamina.call("images")
        for client in [*silent, noise]:
            client.close()
        self.lamina.call("images")

    def test_events_of_an_import_are_lines_and_the_last_is_the_result(self):
        self.lamina.call("images")
        body = json.dumps({"source": f"oci:{self.lamina.folder}/layout"})
        status, text = self.http("POST", "/v1/import", body)
        events = [json.loads(line) for line in text.strip().splitlines()]
        self.assertEqual(200, status)
        self.assertEqual(["test:1"], events[-1]["result"]["images"][0]["names"])
        self.assertTrue(all("progress" in event for event in events[:-1]))

    @needs_fuse
    def test_a_mount_goes_on_without_the_daemon_and_is_found_again(self):
        self.lamina.call("import", f"oci:{self.lamina.folder}/layout")
        target = self.lamina.make_folder("mnt")
        self.lamina.call("mount", "test:1", target, "--name", "stays")
        os.kill(self.lamina.daemon_pid(), signal.SIGKILL)
        (target / "new").write_text("written without a daemon")
        self.assertEqual("hello\n", (target / "etc/motd").read_text())
        mount = self.lamina.mounts()["stays"]
        self.assertTrue(mount["running"])
        self.assertEqual(str(target), mount["mountpoint"])
        self.lamina.call("umount", target)
        self.assertFalse(os.path.ismount(target))
        self.lamina.call("mount", "test:1", target, "--name", "stays")
        self.assertEqual("written without a daemon", (target / "new").read_text())

    @needs_fuse
    def test_mounts_are_named_once_and_folders_are_used_once(self):
        self.lamina.call("import", f"oci:{self.lamina.folder}/layout")
        target, other = self.lamina.make_folder("mnt"), self.lamina.make_folder("other")
        self.lamina.call("mount", "test:1", target, "--name", "one")
        self.assertIn("one", self.lamina.fails("mount", "test:1", target, "--name", "two"))
        self.assertIn("one", self.lamina.fails("mount", "test:1", other, "--name", "one"))
        self.assertEqual(["one"], list(self.lamina.mounts()))
        self.lamina.call("umount", "one")
        self.assertIn("not mounted", self.lamina.fails("umount", "one"))
        self.lamina.call("umount", "one", "--discard")
        self.assertEqual({}, self.lamina.mounts())
        self.assertEqual([], os.listdir(self.lamina.store / "mounts"))

    def slow_ending_server(self):
        """A lamina-fuse that has closed its control socket and ends only when the file "gate" is there."""
        folder = self.lamina.folder
        (folder / "slow.c").write_text(SLOW_END)
        run("cc", "-shared", "-fPIC", "-o", folder / "slow.so", folder / "slow.c")
        program = folder / "lamina-fuse"
        program.write_text(f'#!/bin/sh\nLD_PRELOAD="{folder}/slow.so" GATE="{folder}/gate" '
                           f'exec "{support.BUILD}/fuse/lamina-fuse" "$@"\n')
        program.chmod(0o755)
        return program

    @needs_fuse
    @needs_program("cc")
    @unittest.skipUnless(IS_ROOT, "needs root")
    def test_what_was_unmounted_from_outside_is_discarded_when_its_server_has_ended(self):
        self.lamina.environment["LAMINA_FUSE"] = str(self.slow_ending_server())
        self.lamina.call("import", f"oci:{self.lamina.folder}/layout")
        target = self.lamina.make_folder("mnt")
        self.lamina.call("mount", "test:1", target, "--name", "one")
        control = pathlib.Path(self.lamina.mounts()["one"]["folder"], "control")
        run("umount", target)
        wait_for(lambda: not control.exists())
        words = [self.lamina.program, "--store", self.lamina.store, "umount", "one", "--discard"]
        with subprocess.Popen(words, env=self.lamina.environment) as process:
            with self.assertRaises(subprocess.TimeoutExpired):
                process.wait(0.5)
            (self.lamina.folder / "gate").touch()
            self.assertEqual(0, process.wait(20))
        self.assertEqual({}, self.lamina.mounts())

    @needs_fuse
    def test_servers_are_upgraded_under_open_files(self):
        self.lamina.call("import", f"oci:{self.lamina.folder}/layout")
        targets = [self.lamina.make_folder(name) for name in ("one", "two")]
        for target in targets:
            self.lamina.call("mount", "test:1", target, "--name", target.name)
        self.lamina.call("mount", "test:1", self.lamina.make_folder("gone"), "--name", "gone")
        self.lamina.call("umount", "gone")
        pids = {name: mount["server"]["pid"] for name, mount in self.lamina.mounts().items() if mount["running"]}
        with (targets[0] / "file").open("w") as file:
            upgraded = json.loads(self.lamina.call("--json", "mounts", "--upgrade").stdout)["mounts"]
            self.assertEqual({("one", True), ("two", True)}, {(one["name"], one["upgraded"]) for one in upgraded})
            file.write("written on")
        self.assertEqual("written on", (targets[0] / "file").read_text())
        for name, mount in self.lamina.mounts().items():
            self.assertEqual(mount["running"], name != "gone")
            if mount["running"]:
                self.assertEqual(1, mount["server"]["restarts"])
                self.assertNotEqual(pids[name], mount["server"]["pid"])
        self.assertEqual("two: upgraded\n", self.lamina.call("mounts", "--upgrade", "two").stdout)
        for words in (["--upgrade", "gone"], ["--upgrade", "none"], ["two"]):
            self.assertNotEqual(0, self.lamina.call("mounts", *words, check=False).returncode)
        self.assertEqual(1, self.lamina.mounts()["one"]["server"]["restarts"])

    @needs_fuse
    def test_a_program_that_cannot_go_on_leaves_the_old_server(self):
        self.lamina.environment["LAMINA_FUSE"] = str(self.lamina.folder / "lamina-fuse")
        shutil.copy(support.BUILD / "fuse/lamina-fuse", self.lamina.environment["LAMINA_FUSE"])
        self.lamina.call("import", f"oci:{self.lamina.folder}/layout")
        target = self.lamina.make_folder("mnt")
        self.lamina.call("mount", "test:1", target, "--name", "one")
        pathlib.Path(self.lamina.environment["LAMINA_FUSE"]).unlink()
        failed = self.lamina.call("mounts", "--upgrade", check=False)
        self.assertEqual(1, failed.returncode)
        self.assertIn("one: ", failed.stdout)
        self.assertIn("1 of 1 mounts go on with their old servers", failed.stderr)
        (target / "file").write_text("goes on")

    @needs_fuse
    @unittest.skipUnless(IS_ROOT, "needs root")
    def test_in_another_mount_namespace_the_mount_appears_there(self):
        self.lamina.call("import", f"oci:{self.lamina.folder}/layout")
        target = self.lamina.make_folder("mnt")
        command = f'"{self.lamina.program}" --store "{self.lamina.store}"'
        script = (f'{command} mount test:1 "{target}" --name inside >/dev/null && cat "{target}/etc/motd" '
                  f'&& {command} umount inside')
        result = subprocess.run(["unshare", "--mount", "--propagation", "slave", "sh", "-c", script],
                                env=self.lamina.environment, capture_output=True, text=True, timeout=60)
        self.assertEqual("hello\n", result.stdout, result.stderr)
        self.assertFalse(os.path.ismount(target))


if __name__ == "__main__":
    main()
