#!/usr/bin/env python3
"""Builds and runs every test in every configuration, and finally prints how many passed and failed.

    tests/run.py                     everything; what `make test` does
    tests/run.py --quick             each tests/test_*.c once, with gcc, not optimised
    tests/run.py tsan group          only tests with all these words in their names
    tests/run.py test_locks.c::NAME  only that test of the file, in every configuration that uses Check
    tests/run.py --list [word ...]   prints only the names
    tests/run.py --times [word ...]  also prints which took longest

A word that no name contains is an error.

A new tests/test_*.c needs no registration: it is found by its name. Its first comment can exclude configurations, by
their names in CONFIGS and RUNS below, with the reason in brackets:

    Not under: valgrind, seeds (it measures real time)

name a library or compiler option that it needs ("Needs -luv"), and limit the number of seeds if the test takes long because it
waits for real time or starts processes: "Seeds: 20 (real time)". TEST_SEEDS=1000 in the environment runs 1000 seeds instead of
fifty; CONC_SEED=n runs a test by hand with one seed.
"""
import concurrent.futures
import difflib
import functools
import os
import pathlib
import platform
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

TOP = pathlib.Path(__file__).resolve().parent.parent
BUILD = "build/tests"
IMPLEMENTATION = "tests/compile/impl.c"

X86 = platform.machine() in ("x86_64", "AMD64")
WARNINGS = "-Wall -Wextra -Werror"
NOT_LINUX = "-U__linux__ -U__linux -U__gnu_linux__"  # compiles conc's code for systems like FreeBSD; it runs on Linux, too
SANITIZE = "-fno-sanitize-recover=all -fno-omit-frame-pointer"
VALGRIND = "valgrind -q --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite --vgdb=no"


@dataclass
class Config:
    """One way to build every test file, and to run the program."""
    name: str
    compiler: str
    layout: str = "."  # the directory of conc.h: the modules, or single_include
    plain: bool = False  # without the Check library, which cross compilers do not have
    runner: str = ""  # precedes the program
    sanitized: bool = False
    linked: bool = True  # one implementation is linked with each test file, which is not optimised; False: each test
    # file includes its own, as users' programs do, so that the compiler can inline it
    variants: bool = False  # tests run in all ways of waiting; False: in one, because programs run slowly
    only: str = ""  # a pattern of the files that it builds; empty: all


STACKS = r"test_(generators|overflow|stacks|tasks)\.c"
SWITCHES = r"test_(errors|generators|random_(programs|sync|generators)|stacks|static_variables|tasks|timeouts|overflow)\.c"
INLINED = SWITCHES + (r"|test_(descriptors|errno|futures|gather|group\w*|guard_report|locals|locks)\.c"
                      r"|test_(queues|scopes|streams|time)\.c")

# Threads and processes, for which neither stack switching nor the processor matters.
WITH_POOLS = (r"|test_(channels|children|files|loop_run|names|offload|pool|post|procs|select_pool|shared|sandbox)\.c"
              r"|test_(background|cancel|last_error|queues|select|serve|spawn_copy|transports|growth)\.c")

POLLERS = (r"test_(children|descriptors|embed\w*|forks|net_faults|other_loops|poller|post|random_io|run|select)\.c"
           r"|test_(signals|streams|time)\.c")

# Each option of conc.h has a row, and so does each layout, compiler and processor; optimisation levels vary with them. Options
# that change only stack switching are for the files that test it, and for random programs.
CONFIGS = [
    Config("gcc", f"gcc -std=gnu11 -O2 {WARNINGS}", variants=True),
    Config("single", "gcc -O2", layout="single_include", only=SWITCHES),
    Config("clang", f"clang -O2 {WARNINGS}", only=INLINED + WITH_POOLS),
    Config("asan", f"clang -O1 -fsanitize=address,undefined {SANITIZE}", sanitized=True),
    Config("gcc-asan", f"gcc -O1 -fsanitize=address,undefined {SANITIZE}", sanitized=True, only=SWITCHES),
    Config("tsan", f"clang -O1 -fsanitize=thread {SANITIZE}", sanitized=True),
    Config("ucontext", "gcc -O0 -DCONC_USE_UCONTEXT", only=INLINED),
    Config("no-epoll", f"clang -O0 -DCONC_NO_EPOLL {NOT_LINUX}", variants=True),
    # as on macOS, with a stand-in for its system calls
    Config("kqueue", f"gcc -std=gnu11 -O1 {WARNINGS} -DCONC__KQUEUE -Itests/kqueue", only=POLLERS),
    Config("save-fpu", "gcc -O3 -DCONC_SAVE_FPU" + " -fcf-protection=full" * X86, linked=False, only=STACKS),
    Config("static", "clang -O3 -DCONC_STATIC", layout="single_include", linked=False,
           only=SWITCHES + r"|test_(futures|group\w*|locals|queues|random_io|scopes)\.c"),
    Config("aarch64", "aarch64-linux-gnu-gcc -O2 -static", plain=True, runner="qemu-aarch64", only=INLINED),
    Config("aarch64-bti", "aarch64-linux-gnu-gcc -O3 -static -mbranch-protection=standard", plain=True,
           runner="qemu-aarch64", only=STACKS),
    Config("riscv64", "riscv64-linux-gnu-gcc -O2 -static", plain=True, runner="qemu-riscv64", only=SWITCHES),
]


@dataclass
class Run:
    """Another way to run the programs of the first configuration."""
    name: str
    environment: dict = field(default_factory=dict)
    runner: str = ""
    seeds: range = range(0)
    only: str = ""  # as in Config


ONCE = {"TEST_ONCE": "1"}  # tests run in one way of waiting, the loop's default

# Checks of tests/compile/run.sh that do not depend on the compiler, and the compiler to omit.
ONE_COMPILER = {"macos": "gcc", **dict.fromkeys(
    ("debugger_unwinds_a_parked_task", "inlined", "library_exported", "library_hidden", "places", "posix_source",
     "upgraded_library", "workers"), "clang")}

RUNS = [Run(f"seeds {n}-{n + 49}", seeds=range(n, n + 50)) for n in range(1, int(os.environ.get("TEST_SEEDS", "50")), 50)]
# Valgrind is slow if programs abort, or send much; ASan checks those alone.
RUNS += [
    Run("valgrind", ONCE, runner=VALGRIND, only=r"^(?!.*test_(embed|lost_scope|random_(io|posts)|trace|wait_reports)\.c)"),
    Run("poll", {"CONC_POLL": "poll"}, only=POLLERS),
]

ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(("CONC_", "CK_", "MAKE", "MFLAGS"))}
ENVIRONMENT.update(
    CK_TIMEOUT_MULTIPLIER="2",
    ASAN_OPTIONS="detect_stack_use_after_return=1",
    UBSAN_OPTIONS="print_stacktrace=1",
    TSAN_OPTIONS="halt_on_error=1 die_after_fork=0",
)
SLOW = {"CK_TIMEOUT_MULTIPLIER": "6"}
LIMIT = 600  # seconds for one command
SKIPPED = 77  # exit code of a check that does not apply on this machine


def shortened(output, first=20, last=60):
    """The output without its middle part: compilers print the important lines first, programs last."""
    lines = output.rstrip().split("\n")
    if len(lines) > first + last:
        lines[first:-last] = [f"[... {len(lines) - first - last} lines ...]"]
    return "\n".join(lines)


class Failed(Exception):
    """Its text is printed as the failure."""


class Skipped(Exception):
    """Its text is the reason why the check does not apply here."""


def with_default_signals():
    """Returns a prefix for commands, so that they do not ignore signals, as in the background or under nohup."""
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGTSTP, signal.SIGTTIN,
               signal.SIGTTOU)
    ignored = [number.name[3:] for number in numbers if signal.getsignal(number) == signal.SIG_IGN]
    return ["env", "--default-signal=" + ",".join(ignored)] if ignored else []


class Commands:
    """Runs commands, and can end those still running."""

    def __init__(self):
        self.prefix = with_default_signals()
        self.lock = threading.Lock()
        self.running = set()
        self.stopped = False

    def run(self, argv, environment=None):
        """Returns the command's output, including stderr. Raises Failed, with the output, if its exit code is not 0."""
        environment = environment or {}
        with self.lock:
            if self.stopped:
                raise Failed("interrupted")
            process = subprocess.Popen([*self.prefix, *argv], cwd=TOP, env={**ENVIRONMENT, **environment},
                                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                       start_new_session=True)
            self.running.add(process)
        try:
            output, _ = process.communicate(timeout=LIMIT)
            how = f"exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            self.end(process)
            how = f"ended after {LIMIT} seconds"
            try:
                output, _ = process.communicate(timeout=5)
            except subprocess.TimeoutExpired as expired:
                output = expired.output or b""
                process.wait()
                how += ", and a process that it left behind holds its output open"
        finally:
            with self.lock:
                self.running.discard(process)
        output = output.decode(errors="replace")
        if process.returncode == SKIPPED:
            raise Skipped(output.strip())
        if process.returncode:
            words = [f"{k}={shlex.quote(v)}" for k, v in environment.items()] + [shlex.quote(a) for a in argv]
            raise Failed(f"$ {' '.join(words)}\n{shortened(output)}\n[{how}]")
        return output

    @staticmethod
    def end(process):
        """Kills all of the command's session, because Check puts its children into their own process groups."""
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if os.getsid(int(entry.name)) == process.pid:
                    os.kill(int(entry.name), signal.SIGKILL)
            except ProcessLookupError:
                pass

    def stop(self):
        with self.lock:
            self.stopped = True
            for process in self.running:
                self.end(process)


commands = Commands()


class Builds:
    """Builds each program and each implementation once, even if several checks need it at the same time."""

    def __init__(self):
        self.lock = threading.Lock()
        self.results = {}

    def get(self, source, config):
        """Returns the path of this file's program. Raises Failed if it does not compile."""
        with self.lock:
            first = (source, config.name) not in self.results
            result = self.results.setdefault((source, config.name), concurrent.futures.Future())
        if first:
            try:
                result.set_result(self.build(source, config))
            except Exception as failure:
                result.set_exception(failure)
        return result.result()

    def build(self, source, config):
        result = f"{BUILD}/{config.name}/{pathlib.Path(source).stem}"
        (TOP / result).parent.mkdir(parents=True, exist_ok=True)
        (TOP / result).unlink(missing_ok=True)
        command = [*shlex.split(config.compiler), "-g", "-pthread", f"-I{config.layout}", source, "-o", result]
        if "/adapters/" in source:
            command += ["-Iexamples/common"]
        if "--quick" in sys.argv:
            command += ["-O0"]
        if source == IMPLEMENTATION:
            commands.run([*command, "-c"])
            return result
        if config.linked and not has_options(source):
            command += ["-DCONC_TEST_LINKED", "-O0", self.get(IMPLEMENTATION, config)]
        elif config.linked and config is not CONFIGS[0]:
            command += ["-O0"]  # other files compile the same code with optimisation
        command += ["-DCONC_TEST_PLAIN", "-lm"] if config.plain else check_library()
        command += needed(source)
        commands.run(command)
        return result


def needed(source):
    """Returns the options that the file needs according to its first comment: "Needs -luv" or "Needs libpq (pkg-config)"."""
    words = re.findall(r"Needs ([^\n*]+)", first_comment(source))
    options = [option for line in words for option in re.findall(r"-[lfI][\w=/.-]+", line)]
    for package in re.findall(r"Needs ([\w.-]+) \(pkg-config\)", first_comment(source)):
        options += shlex.split(commands.run(["pkg-config", "--cflags", "--libs", package]))
    return options


def has_options(source):
    """Does the file set options of the implementation, so that it needs its own?"""
    return re.search(r"^ *# *define +CONC_", (TOP / source).read_text(encoding="utf-8"), re.MULTILINE)


@functools.lru_cache(None)
def check_library():
    return shlex.split(commands.run(["pkg-config", "--cflags", "--libs", "check"]))


builds = Builds()


def run_program(program, runner, environment, may_be_empty=False):
    """Raises Failed unless the program reports that all its tests passed, and that there were some."""
    output = commands.run([*shlex.split(runner), f"./{program}"], environment)
    counts = re.findall(r"^(\d+) passed, (\d+) failed$", output, re.MULTILINE)
    if not counts or counts[-1][1] != "0":
        raise Failed(f"$ {program}\n{shortened(output)}\n[it ended without reporting that no test failed]")
    if counts[-1][0] == "0" and not may_be_empty:
        raise Failed(f"$ {program}\n{shortened(output)}\n[it has no tests]")


def in_config(source, config):
    environment = SLOW if config.sanitized or config.runner else {}
    if not config.variants:
        environment = {**environment, **ONCE}
    runner = without_random_addresses() if config.sanitized else config.runner
    run_program(builds.get(source, config), runner, environment)


def in_run(source, run):
    try:
        program = builds.get(source, CONFIGS[0])
    except Failed:
        raise Failed(f"{source} does not compile: see {CONFIGS[0].name}") from None
    for seed in seeds_of(source, run):
        run_program(program, run.runner, {"CONC_SEED": str(seed)}, may_be_empty=True)
    if not run.seeds:
        run_program(program, run.runner, {**run.environment, **(SLOW if run.runner else {})})


@functools.lru_cache(None)
def without_random_addresses():
    """Returns a prefix for sanitized programs: older sanitizers sometimes fail because the kernel randomizes addresses
    more than they expect. Some containers do not allow turning that off."""
    try:
        commands.run(["setarch", "-R", "true"])
        return "setarch -R"
    except (Failed, FileNotFoundError):
        return ""


def first_comment(source):
    return (TOP / source).read_text(encoding="utf-8").split("*/")[0]


def left_out(source):
    """Returns the names of configurations that the file's first comment excludes."""
    names = re.search(r"Not under: ([^(]*)", first_comment(source))
    return {name.strip(" *\n") for name in names[1].split(",")} if names else set()


def seeds_of(source, run):
    """Returns the run's seeds that apply to the file."""
    most = re.search(r"Seeds: (\d+)", first_comment(source))
    return [seed for seed in run.seeds if not most or seed <= int(most[1])]


def is_for(config, source):
    """Does the configuration apply to the file? Adapters do not switch or wait differently: gcc and the sanitizers suffice."""
    threads = re.search(r"conc_pool\.h|pthread\.h", (TOP / source).read_text(encoding="utf-8"))
    return "/adapters/" not in source or config.name in ("gcc", "asan", "tsan" if threads else "")


def checks_of_file(source, quick):
    excluded = left_out(source)
    unknown = excluded - {c.name for c in CONFIGS} - {r.name.split()[0] for r in RUNS}
    if unknown:
        sys.exit(f"{source} excludes {', '.join(sorted(unknown))}, which does not exist")
    for config in CONFIGS[:1] if quick else CONFIGS:
        if config.name not in excluded and re.search(config.only, source) and is_for(config, source):
            yield f"{source} ({config.name})", in_config, (source, config)
    for run in [] if quick or "/adapters/" in source else RUNS:
        if run.name.split()[0] in excluded or not re.search(run.only, source):
            continue
        if not run.seeds or seeds_of(source, run):
            yield f"{source} ({run.name})", in_run, (source, run)


def command_check(name, *argv, **environment):
    return name, commands.run, (list(argv), environment)


def program_of(test):
    """Returns the program of a test: tests/apps/10_02_connection_pool.py tests examples/10_patterns/02_connection_pool.c."""
    folder, name = test.stem.split("_", 1)
    return next((TOP / "examples").glob(f"{folder}_*/{name}.c")).relative_to(TOP / "examples")


def checks_of_project():
    folders = sorted(path.name for path in (TOP / "examples/expected").glob("[0-9]*"))  # tests/apps has the programs
    for folder in folders:
        yield command_check(f"examples/{folder} (gcc, modules)", "tests/examples.sh", folder, CC="gcc")
    for folder in (folders[0], *folders[-3:]):  # tests/course.sh compiles all of them with clang
        yield command_check(f"examples/{folder} (clang, single_include)", "tests/examples.sh", "--single", folder,
                            CC="clang")
    with_libraries = [folder for folder in folders if folder >= "09"]
    for compiler in ("gcc", "clang", "musl-gcc"):
        for part in (folders[:4], [folder for folder in folders[4:] if folder not in with_libraries]):
            yield command_check(f"course/{part[0]} to {part[-1]} ({compiler})", "tests/course.sh", *part, CC=compiler)
    for compiler in ("gcc", "clang"):
        yield command_check(f"course/{with_libraries[0]} and on ({compiler})", "tests/course.sh", *with_libraries,
                            CC=compiler)
    for test in sorted((TOP / "tests/apps").glob("[0-9]*.py")):
        yield command_check(f"apps/{test.stem} (gcc)", f"tests/apps/{test.name}")
        yield command_check(f"apps/{test.stem} (asan)", f"tests/apps/{test.name}", SANITIZE="address")
        if "conc_pool.h" in (TOP / "examples" / program_of(test)).read_text(encoding="utf-8"):
            yield command_check(f"apps/{test.stem} (tsan)", f"tests/apps/{test.name}", SANITIZE="thread")
    yield command_check("real clients", "tests/clients.sh")
    yield command_check("gdb script", "tests/gdb.sh")
    yield command_check("README.md", "tests/readme.py")
    yield command_check("vendoring", "tests/vendoring.sh")
    yield command_check("cheat sheet", "tests/cheatsheet.py")
    yield command_check("single_include is up to date", "./amalgamate.py", "--check")
    yield command_check("format", "tests/format.sh")
    yield command_check("style", "tests/style.py")
    yield command_check("run.py refuses words that choose nothing", "tests/run_test.py")
    for name in commands.run(["tests/compile/run.sh", "--list"]).split():
        for compiler, layout in (("gcc", "."), ("clang", "single_include")):
            if compiler == ONE_COMPILER.get(name):
                continue
            label = "modules" if layout == "." else layout
            yield command_check(f"compile: {name} ({compiler}, {label})", "tests/compile/run.sh", name,
                                CC=compiler, LAYOUT=layout)


def all_checks(quick):
    """Returns each check as (name, function, arguments), in starting order: first builds that others need, then long ones."""
    sources = sorted(str(p.relative_to(TOP)) for p in (TOP / "tests").glob("test_*.c" if quick else "**/test_*.c"))
    of_files = [check for source in sources for check in checks_of_file(source, quick)]
    of_project = [] if quick else list(checks_of_project())

    def place(check):
        _, function, arguments = check
        if function is in_config:
            return 0 if arguments[1] is CONFIGS[0] else 3
        if function is in_run:
            return 2 if arguments[1].seeds or arguments[1].runner else 4
        return 1 if check[0].startswith(("apps", "examples", "course", "real", "compile: warnings")) else 5
    return sorted(of_files + of_project, key=place)


class Report:
    """Prints only failures, and on a terminal a progress line."""

    def __init__(self, total):
        self.total, self.passed, self.failed, self.times = total, 0, [], []
        self.terminal = sys.stderr.isatty()

    def add(self, name, failure):
        if isinstance(failure, Skipped):
            self.total -= 1
            self.progress("")
            print(f"skipped: {name}: {failure}", flush=True)
        elif failure:
            self.failed.append(name)
            self.progress("")
            print(f"FAILED: {name}\n{failure}\n", flush=True)
        else:
            self.passed += 1
        self.progress(f"{self.passed + len(self.failed)} of {self.total}")

    def progress(self, text):
        if self.terminal:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    def timed(self, name, function, arguments):
        start = time.monotonic()
        try:
            return function(*arguments)
        finally:
            self.times.append((time.monotonic() - start, name))

    def print_times(self, most=40):
        for seconds, name in sorted(self.times, reverse=True)[:most]:
            print(f"{seconds:6.1f} s  {name}")

    def end(self, seconds):
        self.progress("")
        for name in self.failed:
            print(f"FAILED: {name}")
        if self.terminal:
            print(f"{seconds:.0f} seconds")
        print(f"{self.passed} passed, {len(self.failed)} failed", flush=True)
        return 1 if self.failed or not self.passed else 0


def run_all(checks, times, quick):
    start = time.monotonic()
    report = Report(len(checks))
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # a third of the time programs wait; if each file's tests run only once, half of it
    workers = 2 * processors if quick else processors + (processors + 1) // 2
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        names = {pool.submit(report.timed, name, function, arguments): name for name, function, arguments in checks}
        try:
            for done in concurrent.futures.as_completed(names):
                report.add(names[done], done.exception())
        except KeyboardInterrupt:
            commands.stop()
            sys.exit("interrupted")
    if times:
        report.print_times()
    return report.end(time.monotonic() - start)


def chosen(checks, words):
    """Returns the checks with all these words in their names. If none has them, ends the program, because a typing error must
    not look like success."""
    some = [c for c in checks if all(word in c[0] for word in words)]
    if some:
        return some
    unknown = [word for word in words if not any(word in c[0] for c in checks)]
    if unknown:
        sys.exit("\n".join(f"no test has {word!r} in its name" + nearest(word, checks) for word in unknown))
    sys.exit(f"no test has all of these in its name: {' '.join(words)}")


def nearest(word, checks):
    names = {name for c in checks for name in [*re.findall(r"[\w.-]+", c[0]), pathlib.Path(c[0].split(" ")[0]).stem]}
    similar = difflib.get_close_matches(word, names, 3, 0.7)
    return f"; there is {', '.join(similar)}" if similar else ""


def main(arguments):
    options = {a for a in arguments if a.startswith("-")}
    if options - {"--quick", "--list", "--times"}:
        sys.exit(__doc__)
    words = [a.split("::")[0] for a in arguments if a not in options]
    for case in [a.split("::")[1] for a in arguments if "::" in a]:
        ENVIRONMENT["CK_RUN_CASE"] = case
    checks = chosen(all_checks("--quick" in options), words)
    if "--list" in options:
        print("\n".join(name for name, _, _ in checks))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    return run_all(checks, "--times" in options, "--quick" in options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
