"""Shared by the tests of the programs: compiles a program as its first lines instruct, starts real servers on free loopback
ports with their own folders, and checks what the programs print and leave behind.

A test is a file tests/apps/NAME.py with functions whose names begin with test_; its last line is `apps.main(globals())`.
It prints "N passed, M failed", and exits with 1 if one failed. SANITIZE=address (or thread) in the environment compiles the
programs with that sanitizer; `tests/apps/NAME.py word` runs only the tests with this word in their names.
"""
import atexit
import contextlib
import os
import pathlib
import pwd
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
SANITIZE = os.environ.get("SANITIZE", "")
SLOW = 4 if SANITIZE else 1  # how much a sanitizer slows programs down
BOX = pathlib.Path(tempfile.mkdtemp(prefix="conc-apps-"))  # for everything; removed at the end
atexit.register(shutil.rmtree, BOX, ignore_errors=True)


class Wrong(Exception):
    """A failed expectation of a test."""


def check(condition, *words):
    if not condition:
        raise Wrong(" ".join(str(word) for word in words))


def folder():
    """Creates a new, empty folder."""
    return pathlib.Path(tempfile.mkdtemp(dir=BOX))


def left_in(where):
    """Returns what a program has left in its TMPDIR, except a file that ThreadSanitizer leaves if a process is killed while
    it starts."""
    return [path for path in where.rglob("*") if not path.name.startswith("tsan.rodata.")]


TAKEN = set()  # ports that free_port has returned


def free_port():
    """Returns a free port below those that the system gives to clients, so that no connection takes it meanwhile."""
    while True:
        port = random.randrange(15000, 32000)
        with socket.socket() as s, contextlib.suppress(OSError):
            if port not in TAKEN:
                s.bind(("127.0.0.1", port))
                TAKEN.add(port)
                return port


def compiled(source, *options):
    """Compiles examples/`source` with the first line `cc ...` in its first comment, with warnings as errors, and returns the
    program's path."""
    path = TOP / "examples" / source
    line = re.search(r"^ *(?:/\* )?(cc .*?)$", path.read_text(encoding="utf-8").split("*/")[0], re.MULTILINE)
    check(line, f"{source}: its first comment has no line that begins with cc")
    program = BOX / path.stem
    words = re.sub(r" -o \S+", f" -o {shlex.quote(str(program))}", line[1]).split(" ", 1)[1]
    warnings = "-g -Wall -Wextra -Werror" + (f" -O1 -fsanitize={SANITIZE}" if SANITIZE else "")
    compiler = os.environ.get("CC", "clang" if SANITIZE else "gcc")
    command = f"{compiler} {warnings} {' '.join(options)} {words}"
    done = subprocess.run(command, shell=True, cwd=path.parent, capture_output=True, text=True)
    check(done.returncode == 0, f"$ {command}\n{done.stderr[:4000]}")
    return program


def environment(**more):
    ours = {k: v for k, v in os.environ.items() if not k.startswith("CONC_")}
    ours.update(TSAN_OPTIONS="halt_on_error=1", ASAN_OPTIONS="detect_stack_use_after_return=1", LC_ALL="C")
    ours.update({k: str(v) for k, v in more.items()})
    return ours


def command(program, *arguments):
    """Older sanitizers sometimes fail because the kernel randomizes addresses more than they expect."""
    before = ["setarch", "-R"] if SANITIZE and shutil.which("setarch") else []
    return [*before, str(program), *(str(a) for a in arguments)]


def run(program, *arguments, limit=60, status=0, cwd=None, **more):
    """Returns the program's output; it must end with this status (None: any). stderr is in .stderr."""
    done = subprocess.run(command(program, *arguments), env=environment(**more), cwd=cwd or folder(), capture_output=True,
                          text=True, timeout=limit * SLOW, stdin=subprocess.DEVNULL)
    check(status is None or done.returncode == status,
          f"$ {program} {' '.join(map(str, arguments))}: status {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done


@contextlib.contextmanager
def started(program, *arguments, cwd=None, **more):
    """The running program: a Popen, with its output in .out (a file). It is killed at the end if it is still running."""
    cwd = cwd or folder()
    out = open(BOX / f"out-{time.monotonic_ns()}", "w+b")
    process = subprocess.Popen(command(program, *arguments), env=environment(**more), cwd=cwd, stdout=out,
                               stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True)
    process.out = pathlib.Path(out.name)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        out.close()


def until(condition, what, limit=30):
    """Waits until condition() is true."""
    end = time.monotonic() + limit * SLOW
    while not condition():
        check(time.monotonic() < end, "in vain waited until", what)
        time.sleep(0.005)


def processes():
    """Returns {pid: parent} of all processes that have not ended."""
    found = {}
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = stat.read_text().rsplit(")", 1)[1].split()[:2]
            if state != "Z":
                found[int(stat.parent.name)] = int(parent)
    return found


def children_of(pid, deep=False):
    """Returns the running processes that it started; deep: including theirs."""
    parents = processes()
    found = [child for child, parent in parents.items() if parent == pid]
    for child in found if deep else []:
        found += [grandchild for grandchild, parent in parents.items() if parent == child]
    return found


def is_gone(pid):
    return pid not in processes()


def answers(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


class Server:
    """A server on a loopback port, in its own folder."""

    def __init__(self, argv, port, where, user=None):
        self.argv, self.port, self.folder, self.user, self.process = argv, port, where, user, None
        self.end_signal = signal.SIGKILL

    def start(self):
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen([str(a) for a in self.argv], cwd=self.folder, stdout=log, stderr=log,
                                            stdin=subprocess.DEVNULL, user=self.user, start_new_session=True)
        until(lambda: answers(self.port) or self.process.poll() is not None, f"{self.argv[0]} answers")
        check(self.process.poll() is None, f"{self.argv[0]} ended:", (self.folder / "log").read_text()[-2000:])

    def stop(self, how=None):
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, how or self.end_signal)
            self.process.wait()
            self.process = None

    def restart(self, how=None):
        self.stop(how)
        self.start()


@contextlib.contextmanager
def serving(server):
    server.start()
    try:
        yield server
    finally:
        server.stop()


def redis():
    """with redis() as server: a Redis server on 127.0.0.1:server.port."""
    port, where = free_port(), folder()
    return serving(Server(["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", where], port, where))


def postgres():
    """with postgres() as server: a PostgreSQL server; server.conninfo is for libpq. It does not run as root."""
    programs = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    port, where = free_port(), folder()
    user = "postgres" if os.getuid() == 0 else None
    if user:
        BOX.chmod(0o755)
        os.chown(where, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    subprocess.run([programs / "initdb", "-D", where / "data", "-A", "trust", "-U", "postgres", "--no-sync", "-E", "UTF8"],
                   check=True, user=user, cwd=where, stdout=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C"})
    server = Server([programs / "postgres", "-D", where / "data", "-p", port, "-k", where, "-c", "fsync=off", "-c",
                     "listen_addresses=127.0.0.1"], port, where, user)
    server.end_signal = signal.SIGQUIT  # ends immediately, like a crash, but leaves no shared memory
    server.conninfo = f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
    return serving_postgres(server, programs)


@contextlib.contextmanager
def serving_postgres(server, programs):
    with serving(server):
        until(lambda: subprocess.run([programs / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(server.port)]).returncode == 0,
              "PostgreSQL is ready")
        yield server


def main(names):
    passed = failed = 0
    for name, test in list(names.items()):  # a warning adds a name
        if not name.startswith("test_") or not all(word in name for word in sys.argv[1:]):
            continue
        try:
            test()
            passed += 1
        except (Wrong, subprocess.SubprocessError, OSError) as wrong:
            failed += 1
            print(f"FAIL {name}\n    " + str(wrong).replace("\n", "\n    "))
            if not isinstance(wrong, Wrong):
                traceback.print_exc()
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed or not passed else 0)
