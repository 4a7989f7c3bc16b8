#!/usr/bin/env python3
"""The daemon is killed at any instant of an import, a commit, a removal, a collection, a tag: the next command finds a
sound store, in which what was asked is done as a whole or not at all, and all else is as it was.

Instants are drawn (LAMINA_SEED repeats a draw, LAMINA_KILLS says how many, 40 unless told), and steps are counted:
LAMINA_KILL_AT=n makes the daemon kill itself before the nth step that changes the disk (store/file_ops.h), for n = 1,
2, ... until the operation runs through. What lies in the store is compared with a model: {name: {path: bytes}}.
"""
import collections
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import time
import unittest

from support import Layout, StoreTest, can_mount, entry, layer, main

KILLS = int(os.environ.get("LAMINA_KILLS", "40"))
SEED = int(os.environ.get("LAMINA_SEED", random.SystemRandom().randrange(1 << 32)))
DF_FILES = ("pack_bytes", "index_bytes", "recipe_bytes", "tree_bytes", "mount_bytes", "other_bytes")
MOST_IMAGES = 6
MOST_STEPS = 1000


def say(*words):
    print(*words, file=sys.stderr, flush=True)


def any_of(model, content):
    """Each image of an import is there as a whole or not at all; which comes first is not promised. All is last."""
    states = [model]
    for name, files in content.items():
        states += [{**state, name: files} for state in states]
    return states


def kill(pid):
    """Returns when the process is dead: until then its socket still takes connections."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [], 60)
    finally:
        os.close(pidfd)


class CrashTest(StoreTest):
    def setUp(self):
        super().setUp()
        self.draw = random.Random(SEED)
        self.made = 0
        self.all_content = []  # Of every image that was ever asked for.
        self.slowest = 0  # Seconds until the first command after a kill was answered.
        self.changed = None  # What the mounts hold.

    # ---- images, and what the store is asked to do with them -----------------------------------------------------

    def new_layout(self, *names, size=600_000):
        """A layout of images that share their lower layer; returns its source and what each image holds."""
        self.made += 1
        layout = Layout(self.lamina.folder / f"layout{self.made}")
        shared = {"d/shared": self.draw.randbytes(size), "who": b"the layer below"}
        below = layer(entry("d", "dir"), *(entry(path, data=data) for path, data in shared.items()))
        content = {}
        for name in names:
            own = {"who": name.encode(), "d/own": self.draw.randbytes(size // 2), "empty": b""}
            layout.add(name, [below, layer(*(entry(path, data=data) for path, data in own.items()))],
                       compress=lambda tar: tar, media="tar")
            content[name] = {**shared, **own}
            self.all_content.append(content[name])
        return f"oci:{layout.folder}", content

    def make_mounts(self, image, content):
        """Two mounts with the same changes: `kept` is not mounted, `live` stays so. Returns what they hold."""
        changed = {**content, "who": b"changed", "d/new": self.draw.randbytes(300_000)}
        del changed["d/own"]
        for name in ("kept", "live"):
            target = self.lamina.make_folder(name)
            self.lamina.call("mount", image, target, "--name", name)
            for path in ("who", "d/new"):
                (target / path).write_bytes(changed[path])
            (target / "d/own").unlink()
        self.lamina.call("umount", "kept")
        self.all_content.append(changed)
        return changed

    def an_import(self, model):
        """(commands, the states in which the store may be found after a kill)."""
        names = [f"image{self.made}-{letter}:1" for letter in "ab"[:self.draw.randint(1, 2)]]
        if self.draw.random() < 0.25 and model:
            names[0] = self.draw.choice([name for name in model if name != "base:1"] or names)
        source, content = self.new_layout(*names)
        return [["import", source]], any_of(model, content)

    def a_commit(self, model):
        self.made += 1
        name = f"commit{self.made}:1"
        return [["commit", self.draw.choice(["kept", "live"]), name]], [model, {**model, name: self.changed}]

    def a_tag(self, model):
        self.made += 1
        name, old = f"tag{self.made}:1", self.draw.choice(list(model))
        return [["tag", old, name]], [model, {**model, name: model[old]}]

    def a_removal(self, model):
        name = self.draw.choice([name for name in model if name != "base:1"])
        return [["rmi", name], ["gc"]], [model, {key: files for key, files in model.items() if key != name}]

    def any_operation(self, model):
        if len(model) >= MOST_IMAGES or (len(model) > 2 and self.draw.random() < 0.25):
            return self.a_removal(model)
        return self.draw.choice([self.an_import, self.an_import, self.a_tag] +
                                [self.a_commit] * (2 if self.changed else 0))(model)

    # ---- what must hold after a kill -----------------------------------------------------------------------------

    def cat(self, name, path):
        result = subprocess.run([self.lamina.program, "--store", self.lamina.store, "cat", name, "/" + path],
                                env=self.lamina.environment, capture_output=True, timeout=60)
        self.assertEqual(0, result.returncode, result.stderr)
        return result.stdout

    def state(self):
        """All that can be read of the store's images: the model of what is there. An image whose name another took is
        listed without one until the next collection."""
        found = {}
        for image in self.lamina.json("images")["images"]:
            reference = image["names"][0] if image["names"] else image["id"]
            paths = [item["path"] for folder in ("/", "/d")
                     for item in self.lamina.json("ls", reference, folder)["entries"] if item["type"] == "file"]
            files = {path: self.cat(reference, path) for path in paths}
            self.assertTrue(files in self.all_content, f"an image that never was: {image}")
            found.update({name: files for name in image["names"]})
        return found

    def check(self, states):
        """The store opens at once, is sound, and is in one of the states; returns which."""
        began = time.monotonic()
        self.lamina.call("images", timeout=20)
        self.slowest = max(self.slowest, time.monotonic() - began)
        self.assertEqual([], self.lamina.json("verify")["problems"])
        found = self.state()
        if found not in states:
            brief = [{name: {path: len(data) for path, data in files.items()} for name, files in state.items()}
                     for state in [found, *states]]
            self.fail(f"half done or lost: found {brief[0]}, allowed {brief[1:]}")
        return states.index(found)

    def check_end(self):
        self.lamina.call("gc")
        self.assertEqual([], self.lamina.json("verify", "--data")["problems"])
        self.assertEqual([], os.listdir(self.lamina.store / "staging"))
        log = self.lamina.store / "lamina.sock.log"
        smallest = self.lamina.store_bytes() - log.stat().st_size
        usage = self.lamina.json("df")
        parts = sum(usage[part] for part in DF_FILES)
        self.assertEqual(0, usage["reclaimable_bytes"])
        self.assertLessEqual(smallest, parts, usage)  # The log may have grown; nothing else did.
        self.assertLessEqual(parts, smallest + log.stat().st_size, usage)
        self.assertEqual(smallest, self.lamina.store_bytes() - log.stat().st_size)

    # ---- the tests -----------------------------------------------------------------------------------------------

    def killed_after(self, seconds, commands):
        """Runs the commands one by one, kills the daemon after so long; true when they were done before."""
        pid = self.lamina.daemon_pid()
        end = time.monotonic() + seconds
        is_done = True
        for command in commands:
            client = subprocess.Popen([self.lamina.program, "--store", self.lamina.store, *command],
                                      env={**self.lamina.environment, "LAMINAD": "/bin/false"},
                                      stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            try:
                client.wait(max(0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                kill(pid)
                client.communicate(timeout=60)
                return False
            is_done = is_done and client.returncode == 0
            self.assertTrue(is_done, (command, client.communicate()))
        kill(pid)
        return True

    def test_a_kill_at_any_instant_leaves_a_sound_store(self):
        say(f"\nLAMINA_SEED={SEED} LAMINA_KILLS={KILLS}")
        source, model = self.new_layout("base:1", "other:1")
        self.lamina.call("import", source)
        self.changed = self.make_mounts("base:1", model["base:1"]) if can_mount() else None
        spans, tally = collections.defaultdict(lambda: 0.2), collections.Counter()
        for number in range(KILLS):
            commands, states = self.any_operation(model)
            kind = commands[0][0]
            seconds = self.draw.uniform(0, spans[kind])
            try:
                is_done = self.killed_after(seconds, commands)
                spans[kind] *= 0.8 if is_done else 1.1
                at = self.check(states[-1:] if is_done else states)
            except Exception:
                say(f"\nkill {number}, after {seconds:.4f} s of {commands}:")
                raise
            outcome = "done before" if is_done else "all" if at == len(states) - 1 else "part" if at else "nothing"
            tally[kind, outcome] += 1
            model = states[-1] if is_done else states[at]
            if self.changed:
                self.assertEqual(self.changed["d/new"], (self.lamina.folder / "live/d/new").read_bytes())
        self.check_end()
        say("; ".join(f"{kind} {what}: {count}" for (kind, what), count in sorted(tally.items())),
            f"; opens in at most {self.slowest:.2f} s")

    def kill_at_each_step(self, prepare, operation):
        """Each time from the same store; `operation` maps a model to (commands, states). Returns how many steps."""
        model = prepare()
        if self.lamina.store.exists():
            self.lamina.call("daemon", "stop")
            shutil.copytree(self.lamina.store, self.lamina.folder / "before")
        commands, states = operation(model)
        for step in range(1, MOST_STEPS):
            shutil.rmtree(self.lamina.store, ignore_errors=True)
            if (self.lamina.folder / "before").exists():
                shutil.copytree(self.lamina.folder / "before", self.lamina.store)
            dying = {**self.lamina.environment, "LAMINA_KILL_AT": str(step)}
            results = []
            for command in commands:
                results.append(self.lamina.call(*command, check=False, env=dying).returncode)
                if results[-1] != 0:
                    break
            is_done = results == [0] * len(commands)
            self.lamina.call("daemon", "stop", check=False)  # Else a later command meets the step.
            try:
                self.check(states[-1:] if is_done else states)
            except Exception:
                say(f"\nkill before step {step} of {commands}:")
                raise
            if is_done:
                break
            self.lamina.call("daemon", "stop")
        self.check_end()
        say(f"\n{commands[-1][0]}: {step - 1} steps")
        return step - 1

    def a_store_of_two(self):
        source, model = self.new_layout("base:1", "other:1", size=20_000)
        self.lamina.call("import", source)
        return model

    def test_a_kill_before_any_step_of_a_first_import_leaves_a_sound_store(self):
        def two_images(model):
            source, content = self.new_layout("base:1", "other:1", size=20_000)
            return [["import", source]], any_of(model, content)
        self.assertGreater(self.kill_at_each_step(dict, two_images), 20)

    def test_a_kill_before_any_step_of_a_removal_and_collection_leaves_a_sound_store(self):
        def removal(model):
            return [["rmi", "other:1"], ["gc"]], [model, {"base:1": model["base:1"]}]
        self.assertGreater(self.kill_at_each_step(self.a_store_of_two, removal), 5)

    @unittest.skipUnless(can_mount(), "needs /dev/fuse")
    def test_a_kill_before_any_step_of_a_commit_leaves_a_sound_store(self):
        def changed_store():
            model = self.a_store_of_two()
            self.changed = self.make_mounts("base:1", model["base:1"])
            self.lamina.call("umount", "live")
            return model
        def commit(model):
            return [["commit", "kept", "mine:1"]], [model, {**model, "mine:1": self.changed}]
        self.assertGreater(self.kill_at_each_step(changed_store, commit), 10)


if __name__ == "__main__":
    main()
