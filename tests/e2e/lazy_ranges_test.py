#!/usr/bin/env python3
"""How lazy mounts ask registries: neighbours in one request, ahead of who reads on, each byte once for all mounts."""
import concurrent.futures
import os
import signal
import threading

from lazy_scene import SMALL_BYTES, SMALL_FILES, LazyScene
from registries import needs_registry
from registry_test import noise
from support import main, needs_fuse, needs_program, needs_root

PARTS = SMALL_FILES * SMALL_BYTES // (512 << 10) + 1
OVERLAP = 1.15  # What ends in the next part comes with both.


def check(test, target, number):
    test.assertEqual(noise(SMALL_BYTES, 1000 + number), (target / f"small/{number:03}").read_bytes())


@needs_registry
@needs_program("skopeo")
@needs_root
@needs_fuse
class LazyRangesTest(LazyScene):
    def setUp(self):
        super().setUp()
        self.lamina.call("pull", "--lazy=always", self.name)
        self.proxy.forget()

    def say(self, what):
        count, sent = len(self.layer_requests()), self.layer_bytes()
        print(f"{what}: {count} requests, {sent} of {self.blob_bytes()} bytes")
        return count

    def test_who_reads_on_asks_for_several_parts_at_once(self):
        target = self.mount("--ro")
        for number in range(SMALL_FILES):
            check(self, target, number)
        self.assertLessEqual(self.say("one reader"), PARTS // 3)
        self.assertLess(self.layer_bytes(), self.blob_bytes() * OVERLAP)

    def test_many_small_files_at_once_ask_in_no_more_requests_than_there_are_parts(self):
        self.proxy.delay = 0.05
        target = self.mount("--ro")
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda number: check(self, target, number), range(SMALL_FILES)))
        self.assertLessEqual(self.say("sixteen readers"), PARTS)
        self.assertLess(self.layer_bytes(), self.blob_bytes() * OVERLAP)

    def test_who_jumps_gets_what_he_asks_for_and_no_more(self):
        target = self.mount("--ro")
        for number in (200, 40, 125):
            check(self, target, number)
        self.assertLessEqual(self.say("three jumps"), 3)
        self.assertLess(self.layer_bytes(), self.blob_bytes() * 0.15)

    def test_many_mounts_of_one_image_that_start_together_fetch_each_byte_once(self):
        targets = [self.mount("--ro", name=f"m{number}") for number in range(50)]
        start = threading.Barrier(len(targets))

        def read(target):
            start.wait()
            for number in range(0, SMALL_FILES, 40):
                check(self, target, number)
        with concurrent.futures.ThreadPoolExecutor(len(targets)) as pool:
            list(pool.map(read, targets))
        self.say("fifty mounts")
        self.assertLessEqual(self.layer_bytes(), self.blob_bytes() * OVERLAP)
        self.assertLessEqual(self.most_often_sent(), 2)

    def test_readers_share_what_a_registry_that_is_gone_costs(self):
        target = self.mount("--ro")
        blob = self.manifest()["layers"][0]["digest"]
        self.proxy.fault(blob, times=2, reset=True)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: check(self, target, number), [5] * 8))
        self.assertLess(len(self.layer_requests()), 8)

    def test_a_part_that_is_wrong_fails_those_alone_who_read_it(self):
        target = self.mount("--ro")
        blob = self.manifest()["layers"][0]["digest"]
        check(self, target, 0)
        self.proxy.fault(blob, times=1, change_at=30_000)
        results = {}
        for number in range(20, SMALL_FILES, 15):
            try:
                check(self, target, number)
                results[number] = True
            except OSError:
                results[number] = False
        self.assertLessEqual(list(results.values()).count(False), 3)
        for number in range(SMALL_FILES):
            check(self, target, number)
        self.assertEqual([], self.lamina.json("verify", "--data")["problems"])

    def test_a_daemon_that_is_killed_over_readers_is_followed_by_one_that_serves_them(self):
        target = self.mount("--ro")
        self.proxy.bytes_per_second = 20_000_000
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            reads = [pool.submit(check, self, target, number) for number in range(0, SMALL_FILES, 30)]
            for _ in range(3):
                self.lamina.call("images")  # Starts the next one.
                os.kill(self.lamina.daemon_pid(), signal.SIGKILL)
            self.lamina.call("images")
            for read in reads:
                read.result()
        self.assertEqual([], self.lamina.json("verify", "--data")["problems"])


if __name__ == "__main__":
    main()
