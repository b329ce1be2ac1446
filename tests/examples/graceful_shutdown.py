from signal import SIGINT, SIGTERM
from time import sleep

from scenarios import Running, equal, main


def _stops_at(program, number):
    with Running(program, "1") as work:
        work.read_until("working")
        work.kill(number)
        equal(work.end(), (128 + number, ""), "exit status and messages")
        equal([line for line in work.lines if "working" not in line], ["Cleaning up...", "Cleanup complete"],
              "what it said besides working")
        equal(work.lines[-1], "Cleanup complete", "the last line")


def ctrl_c_cancels_the_work_which_cleans_up_and_the_exit_status_is_130(program):
    _stops_at(program, SIGINT)


def so_does_sigterm_and_the_exit_status_is_143(program):
    _stops_at(program, SIGTERM)


def a_second_ctrl_c_kills_while_the_clean_up_hangs(program):
    with Running(program, "3600") as work:
        work.read_until("working")
        work.kill(SIGINT)
        work.read_until("Cleaning up")
        sleep(0.2)  # what comes within 0.1 s counts as the same Ctrl+C
        work.kill(SIGINT)
        equal(work.end(), (-SIGINT, ""), "exit status and messages")
        equal(work.lines[-1], "Cleaning up...", "the last line")


def a_clean_up_that_takes_too_long_is_cut_short_and_not_called_complete(program):
    with Running(program, "11", clock="virtual") as work:
        status, errors = work.end()
        equal((status, "timed out" in errors), (1, True), "exit status, and whether stderr says so")
        equal(work.lines[-1], "Cleaning up...", "the last line")


if __name__ == "__main__":
    main(__name__)
