"""Shared by the scripts here that drive an example from outside, like a user with a keyboard or a network.

python3 -B X.py --list            lists the scenarios, one per line
python3 -B X.py PROGRAM NAME      runs one of them; prints only mistakes
"""
import fcntl
import inspect
import os
import signal
import subprocess
import sys

HANGS = 100  # seconds


def default_signals():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)


def one_line_pipe():
    """A pipe that holds one write at a time."""
    reader, writer = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    return reader, writer


def prepared_pipe(text):
    """A pipe that already contains text, followed by its end."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with open(writer, "w", encoding="utf-8") as file:
        file.write(text)
    return open(reader, encoding="utf-8")


class Running:
    """A started example, whose output is read while it goes on. Killed, if need be, when the block is left.

    in_step: it is never more than two lines ahead of what was read."""

    def __init__(self, *command, clock="real", stdin=subprocess.PIPE, in_step=False):
        reader, writer = one_line_pipe() if in_step else os.pipe2(os.O_CLOEXEC)
        self.output = os.fdopen(reader, encoding="utf-8")
        self.process = subprocess.Popen(
            ["stdbuf", "-oL", *command], stdin=stdin, stdout=writer, stderr=subprocess.PIPE, text=True,
            preexec_fn=default_signals, env={**os.environ, "CONC_CLOCK": clock})
        os.close(writer)
        self.lines = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.output.close()
        self.process.communicate()

    def read_until(self, word):
        """Returns the next line that contains the word. All lines are kept in self.lines."""
        for line in self.output:
            self.lines.append(line.rstrip("\n"))
            if word in line:
                return self.lines[-1]
        raise AssertionError(f"no {word!r} in {self.lines}; messages: {self.process.stderr.read()!r}")

    def type(self, text):
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def kill(self, number):
        self.process.send_signal(number)

    def end(self):
        """Reads until it has ended; returns its exit status (negative: the signal that killed it) and its messages."""
        self.lines += self.output.read().splitlines()
        return self.process.wait(), self.process.stderr.read()


def equal(found, wanted, what):
    if found != wanted:
        print(f"{what}: expected {wanted!r:.300}, found {found!r:.300}")


def hangs(*_):
    raise TimeoutError(f"nothing more happened for {HANGS} s")


def main(script):
    names = {name: call for name, call in vars(sys.modules[script]).items()
             if inspect.isfunction(call) and call.__module__ == script and not name.startswith("_")}
    if sys.argv[1:] == ["--list"]:
        print("\n".join(names))
    else:
        signal.signal(signal.SIGALRM, hangs)
        signal.alarm(HANGS)
        names[sys.argv[2]](sys.argv[1])
