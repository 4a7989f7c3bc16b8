"""Programs on a mount do not notice that its server is killed, and where a rule is left out they do."""
import json
import pathlib
import subprocess
import sys
import unittest

from support import BUILD, main, needs_fuse, needs_root

KILLTEST = pathlib.Path(__file__).resolve().parent.parent.parent / "tools/killtest"


def killtest(*words):
    result = subprocess.run([sys.executable, str(KILLTEST), "--build", str(BUILD), *words], capture_output=True,
                            text=True, timeout=850)
    try:
        return result.returncode, json.loads(result.stdout)
    except json.JSONDecodeError:
        raise AssertionError(f"exit {result.returncode}: {result.stdout}{result.stderr}") from None


@needs_fuse
@needs_root
class KillTest(unittest.TestCase):
    def test_a_thousand_servers_die_and_no_program_notices(self):
        exit_code, report = killtest("--kills", "1000", "--workloads", "names,mapped,sqlite,git,build,differential")
        print(json.dumps(report), file=sys.stderr)
        self.assertEqual((exit_code, report["errors"]), (0, []))
        self.assertGreaterEqual(report["restarts"], 1000)

    def finds_without(self, *words):
        exit_code, report = killtest("--kills", "3000", "--workloads", "names", *words)
        self.assertEqual(exit_code, 1, f"nothing was found: {report}")
        self.assertTrue(report["errors"])

    def test_requests_that_are_carried_out_twice_are_found(self):
        self.finds_without("--without", "seals", "--no-outside", "--points", "before_reply:30")

    def test_transactions_that_stay_half_done_are_found(self):
        self.finds_without("--without", "undo", "--no-outside", "--points", "arena:300")

    def test_requests_that_are_not_sent_again_are_found(self):
        self.finds_without("--options", "resend=off")


if __name__ == "__main__":
    main()
