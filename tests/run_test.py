#!/usr/bin/env python3
"""Tests that tests/run.py fails if its words select no test, and names the wrong word."""
import pathlib
import subprocess
import sys

RUN = pathlib.Path(__file__).resolve().parent / "run.py"
REFUSED = {
    ("nothing_like_this",): "no test has 'nothing_like_this' in its name",
    ("--list", "nothing_like_this"): "no test has 'nothing_like_this' in its name",
    ("--quick", "nothing_like_this"): "no test has 'nothing_like_this' in its name",
    ("test_locks", "assan"): "no test has 'assan' in its name; there is asan",
    ("test_lokcs", "asan"): "no test has 'test_lokcs' in its name; there is test_locks",
    ("test_locks", "test_queues"): "no test has all of these in its name: test_locks test_queues",
}


def main():
    failed = 0
    for words, expected in REFUSED.items():
        ran = subprocess.run([RUN, *words], capture_output=True, text=True, check=False)
        if ran.returncode == 0 or expected not in ran.stderr or ran.stdout:
            print(f"run.py {' '.join(words)}: exit code {ran.returncode}\n{ran.stdout}{ran.stderr}")
            failed += 1
    ran = subprocess.run([RUN, "--list", "test_locks", "asan"], capture_output=True, text=True, check=False)
    if ran.returncode or "tests/test_locks.c (asan)" not in ran.stdout:
        print(f"run.py --list test_locks asan: exit code {ran.returncode}\n{ran.stdout}{ran.stderr}")
        failed += 1
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())
