import os
import re
import subprocess

from scenarios import Running, equal, main

HELD = re.compile(r"^conc: (\w+)(?: \(spawned at 08_slow_step_warning\.c:\d+\))? blocked the loop for (\d\.\d+) s$")


def _warnings(program, **environment):
    done = subprocess.run([program], env={**os.environ, "CONC_CLOCK": "virtual", **environment}, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=True)
    held = [line for line in done.stderr.splitlines() if " blocked the loop" in line]
    return [match.groups() if (match := HELD.match(line)) else line for line in held], done.stderr


def the_slow_step_is_named_once_and_nothing_else(program):
    equal(_warnings(program)[0], [("draw_poster", "0.300")], "warnings")


def with_debug_mode_forbidden_there_are_no_messages(program):
    equal(_warnings(program, CONC_DEBUG="0"), ([], ""), "warnings and messages")


def a_call_that_blocks_is_reported_while_it_does_and_afterwards(program):
    with Running(program, "--read") as blocked:
        messages = [next(line for line in blocked.process.stderr if " has blocked the loop" in line)]
        equal(messages[0].split(" has blocked ")[0], "conc: main", "who is said to hold it")
        blocked.type("\n")
        status, rest = blocked.end()
        equal(status, 0, "exit status")
        held = [line for line in rest.splitlines() if " blocked the loop" in line]
        equal([match[1] if (match := HELD.match(line)) else line for line in held], ["main"], "afterwards")


if __name__ == "__main__":
    main(__name__)
