from scenarios import Running, equal, main, prepared_pipe


def lines_from_a_pipe_are_read_at_once_and_its_end_ends_nothing_else(program):
    with prepared_pipe("one\ntwo") as typed, Running(program, clock="virtual", stdin=typed) as poller:
        equal(poller.end(), (0, ""), "exit status and messages")
        equal(poller.lines[:4], ["0.0 s  status: pending", "0.0 s  you typed: one", "0.0 s  you typed: two",
                                 "0.0 s  end of input"], "the first lines")
        equal(sum("heartbeat" in line for line in poller.lines), 7, "heartbeats")
        equal(sum("status" in line for line in poller.lines), 4, "polls")
        equal(poller.lines[-1], "3.0 s  status: ready", "the last line")


def a_file_is_read_as_a_pipe_is(program):
    with open("typed", "w+", encoding="ascii") as file:
        file.write("one\n")
        file.seek(0)
        with Running(program, clock="virtual", stdin=file) as poller:
            equal(poller.end(), (0, ""), "exit status and messages")
            equal(poller.lines[1:3], ["0.0 s  you typed: one", "0.0 s  end of input"], "the input's lines")


def a_line_that_comes_later_is_handled_between_two_polls(program):
    with Running(program, clock="virtual", in_step=True) as poller:
        poller.read_until("1.0 s  status: pending")
        poller.type("late\n")
        poller.read_until("you typed: late")
        equal(poller.end(), (0, ""), "exit status and messages")
        equal(poller.lines[-1], "3.0 s  status: ready", "the last line")


def without_an_end_of_input_it_ends_all_the_same(program):
    with Running(program, clock="virtual") as poller:
        equal(poller.end(), (0, ""), "exit status and messages")
        equal(sum("input" in line for line in poller.lines), 0, "ends of the input")
        equal(sum("heartbeat" in line for line in poller.lines), 7, "heartbeats")


if __name__ == "__main__":
    main(__name__)
