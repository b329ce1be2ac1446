"""Shows the tasks of a program written with conc.h in gdb: in a stopped process, and in a core file.

    (gdb) source tests/conc_gdb.py
    (gdb) conc tasks         the tree of groups and tasks of each thread that has a run: a task's number, its name, what
                             it waits for, whether it is cancelled, and where it was spawned
    (gdb) conc bt            a backtrace of each task that is not running
    (gdb) conc bt 7          the backtrace of task 7 of the tree
    (gdb) conc bt 7 -full    words after the number (or the word all) are options of gdb's bt

The numbers are those of `conc tasks` while the process is stopped. A running task is on its thread's stack: `thread 2`
and `bt` show it. The file that has CONC_IMPLEMENTATION or CONC_STATIC must be compiled with -g. Backtraces
work on x86-64, aarch64 and riscv64, but not with CONC_USE_UCONTEXT. Core files that gdb writes itself lack the
stacks from Linux 6.13 on; those that the system writes when a program crashes have them.

A thread's run is found through a thread-local variable. To read it, gdb needs the C library's libthread_db, which it has
for programs of its own system; on aarch64 and riscv64, the compilers' debug information does not locate the variable. If
it cannot be read, any task's handle leads to its run:

    (gdb) set $conc_loop = handle.loop       in effect until it is set to 0

This script depends on the sections >>diagnostics (the tree) and >>switch (the saved state of a parked task) of conc.h.
"""
import re
import types

import gdb
import gdb.unwinder

# Program counter, stack pointer, frame pointer and base pointer, by gdb's processor names
REGISTERS = {
    "i386:x86-64": ("rip", "rsp", "rbp", "rbx"),
    "aarch64": ("pc", "sp", "x29", "x19"),
    "riscv:rv64": ("pc", "sp", "fp", "s1"),
}
DONE = 2  # CONC__DONE


def text(pointer):
    """Returns a string of the program, or a substitute if a core file lacks it."""
    try:
        return pointer.string(errors="replace") if pointer else "?"
    except gdb.MemoryError:
        return "?"


def place_of(spawned):
    return text(spawned).rpartition(" at ")[2]


def counted(n, one, many):
    return f"{int(n)} {one if n == 1 else many}"


def chain(first, field):
    """Yields the items of a list of the program, which may be damaged."""
    seen = set()
    while first:
        if int(first) in seen:
            raise gdb.GdbError("conc: a list is damaged: it contains a cycle")
        seen.add(int(first))
        yield first
        first = first[field]


# ---- runs and their trees ----


def runs():
    """Yields all runs: the owner, a thread, and its conc_loop."""
    loop = gdb.convenience_variable("conc_loop")
    if loop:
        return [("the thread of $conc_loop", gdb.selected_thread(), loop.cast(gdb.lookup_type("conc_loop").pointer()))]
    threads = sorted(gdb.selected_inferior().threads(), key=lambda thread: thread.num)
    if not threads:
        raise gdb.GdbError("conc: there is no process and no core file")
    variables = gdb.lookup_static_symbols("conc__here")  # one in each file that has CONC_STATIC
    if not variables:
        raise gdb.GdbError("conc: no debug information of conc.h: compile the file with CONC_IMPLEMENTATION or "
                           "CONC_STATIC with -g")
    found, unread = {}, None
    for thread in threads:
        for variable in variables:
            try:
                thread.switch()
                loop = variable.value(gdb.newest_frame())
                if loop:
                    whose = f"thread {thread.num} (LWP {thread.ptid[1] or thread.ptid[0]})"
                    found.setdefault(int(loop), (whose, thread, loop))
            except gdb.error as error:
                # a thread that has never used one of the program's libraries does not have its variables yet
                if "not yet allocated" not in str(error):
                    unread = " ".join(str(error).split())
    if unread and not found:
        raise gdb.GdbError("conc: the thread-local conc__here cannot be read; set $conc_loop to a task's handle.loop: "
                           f"{unread}")
    if unread:
        print(f"conc: cannot tell whether some threads have a run: {unread}")
    if not found:
        raise gdb.GdbError("conc: no thread has a run")
    return found.values()


def groups_of(task):
    """Returns the groups with children, outermost first."""
    group_type = task["group"].type
    offset = next(f.bitpos // 8 for f in group_type.target().fields() if f.name == "scope")
    outermost = None
    for outermost in chain(task["scope"], "outer"):
        pass
    for scope in chain(outermost, "inner"):
        if scope["is_group"]:
            group = gdb.Value(int(scope) - offset).cast(group_type)
            if group["children"]:
                yield group


def tree(loop):
    """Yields all groups and tasks as (depth, is it a task, pointer), parents first; without recursion, because the tree may
    be deep."""
    if loop["run"]["main"]["state"] != DONE and not loop["run"]["main"]["stack"]["slab"]:
        raise gdb.GdbError("conc: the tasks' stacks are not in this core file; gdb leaves them out of those that it "
                           "writes on Linux 6.13 and later, and the system does not")
    todo = [(0, True, loop["run"]["main"].address)]
    if loop["run"]["background"]["children"]:
        todo.insert(0, (0, False, loop["run"]["background"].address))
    seen = set()
    while todo:
        depth, is_task, it = todo.pop()
        if int(it) in seen:
            raise gdb.GdbError("conc: the tree of tasks is damaged: one is in it twice")
        seen.add(int(it))
        yield depth, is_task, it
        below = groups_of(it) if is_task else chain(it["children"], "younger")
        todo += [(depth + 1, not is_task, one) for one in reversed(list(below))]


# ---- descriptions ----


def of_task(wait):
    return text(wait["on"].cast(wait["task"].type)["name"])


def of_group(wait):
    group = wait["on"].cast(wait["task"]["group"].type)
    return f"{counted(group['live'], 'child', 'children')} of the group at {place_of(group['scope']['place'])}"


def of_sleep(wait):
    timer = wait.cast(gdb.lookup_type("conc__sleeper").pointer())["timer"]
    if not timer["next"]:
        return "forever"
    return f"for another {int(timer['at'] - wait['task']['loop']['clock']['now']) / 1e9:.9g} s"


def of_lock(wait):
    lock = wait["on"].cast(gdb.lookup_type("conc_lock").pointer())
    place = text(lock["place"])
    try:
        owner = lock["owner"]
        if owner["serial"] == lock["serial"] and owner["state"] != DONE:
            return f"that {text(owner['name'])} acquired at {place}"
    except gdb.MemoryError:  # the owner has ended
        pass
    return f"acquired at {place}"


def of_descriptor(wait):
    wanted = ["hang up", "be readable", "be writable", "be readable or writable"]
    events = wanted[int(wait["value"]) & 3]
    return f"descriptor {wait['on'].cast(gdb.lookup_type('conc__fd').pointer())['number']} to {events}"


# By the function with which conc_dump completes the sentence
WHOM = {
    "conc__waited_task_details": of_task,
    "conc__children_details": of_group,
    "conc__sleep_details": of_sleep,
    "conc__lock_details": of_lock,
    "conc__fd_details": of_descriptor,
}


def state_of(loop, task):
    wait = task["wait"]
    if task == loop["self"]:
        return "running"
    if not wait:
        return "ended" if task["state"] == DONE else "ready"
    kind = wait["kind"]
    words = text(kind["what"])
    if kind["details"]:
        function = re.search(r"<(\w+)", kind["details"].format_string(symbols=True))
        say = WHOM.get(function and function[1])
        if say:
            words += " " + say(wait)
        elif wait["on"]:  # an address, and the variable's name
            words += " " + wait["on"].format_string(symbols=True)
        else:
            words += " ..."
    return words


def task_line(loop, task):
    spawned = f" (spawned at {place_of(task['spawned'])})" if task["name"] != task["spawned"] else ""
    return f"{text(task['name'])}: {state_of(loop, task)}{', cancelled' if task['pending'] else ''}{spawned}"


def group_line(group):
    name = "background" if group["background"] else f"group at {place_of(group['scope']['place'])}"
    cancelled = ", cancelled" if group["scope"]["effective"] else ""
    return f"{name}, {counted(group['live'], 'child', 'children')}{cancelled}:"


# ---- backtraces ----


class Parked(gdb.unwinder.Unwinder):
    """While it is enabled, the thread's innermost frame seems to be called from where a task is parked: a core file's
    registers cannot be set, and those of a live process are better left alone."""

    def __init__(self):
        super().__init__("conc")
        self.enabled = False

    def start(self, context):
        """Makes the selected thread seem to be called from a saved context."""
        frame = gdb.newest_frame()
        names = REGISTERS[frame.architecture().name()]
        now = [frame.read_register(name) for name in names]
        self.innermost = [int(value) for value in now[:2]]
        then = (context[1], context[0], context[2], context[3])
        self.saved = [(name, gdb.Value(int(t)).cast(n.type)) for name, t, n in zip(names, then, now)]
        self.enabled, self.used = True, False
        gdb.invalidate_cached_frames()

    def stop(self):
        self.enabled = False
        gdb.invalidate_cached_frames()

    def __call__(self, pending):
        (pc, _), (sp, _), *_ = self.saved
        if [int(pending.read_register(name)) for name in (pc, sp)] != self.innermost:
            return None
        # gdb refuses callers whose frames are below: nothing is below 0
        zero = gdb.Value(0).cast(self.saved[1][1].type)
        info = pending.create_unwind_info(types.SimpleNamespace(sp=zero, pc=pending.read_register(pc)))
        for register in self.saved:
            info.add_saved_register(*register)
        self.used = True
        return info


PARKED = Parked()
gdb.unwinder.register_unwinder(None, PARKED, replace=True)


def uninteresting():
    """Returns how many frames come first: the thread's own, and then those of conc's functions."""
    own = 1
    frame = gdb.newest_frame()
    while frame.type() == gdb.INLINE_FRAME:
        frame = frame.older()
        own += 1
    frame, inside = frame.older(), own
    while frame and (frame.name() or "").startswith("conc__"):
        frame = frame.older()
        inside += 1
    return inside if frame else own


def frames_at(context, options):
    """Returns bt's lines for a saved context, from the first function that is not conc's."""
    if gdb.newest_frame().architecture().name() not in REGISTERS:
        return "    no backtraces on this processor\n"
    at = context[1].format_string(symbols=True)
    if "<" not in at:
        return "    no backtrace: it does not stand in a function (CONC_USE_UCONTEXT has none)\n"
    if not context[2] and not re.search(r"\+\d+>$", at):
        return "    has not started yet\n"
    try:
        PARKED.start(context)
        first = uninteresting()
        lines = gdb.execute("backtrace " + options, to_string=True)
    finally:
        PARKED.stop()
    if not PARKED.used:  # gdb's lines contain its error
        raise gdb.GdbError("conc: gdb does not unwind from there: " + lines.partition("\n")[0])
    lines = re.split(rf"^(?=#{first} )", lines, maxsplit=1, flags=re.M)[1:]
    return re.sub(r"^#(\d+) *", lambda n: f"#{int(n[1]) - first:<3}", "".join(lines), flags=re.M)


def backtrace(loop, task, options):
    """A generator's body is on its own stack, and its consumer on another one."""
    yield frames_at(task["context"], options)
    stack = task["stack"]
    inside = {int(g["stack"]): g for g in chain(loop["generators"]["first"], "next") if g["consumer"]}
    while int(stack) in inside:
        generator = inside.pop(int(stack))
        yield "of a generator, whose consumer is at\n" + frames_at(generator["outer"], options)
        stack = generator["outside"]


# ---- commands ----


class Command(gdb.Command):
    """Reports an error in one line, and keeps the user's thread and frame selected."""

    def invoke(self, arguments, from_tty):
        thread = gdb.selected_thread()
        frame = None
        try:
            if thread:
                frame = gdb.selected_frame()
            self.run(arguments)
        except gdb.GdbError:
            raise
        except KeyboardInterrupt:
            raise gdb.GdbError("conc: interrupted") from None
        except Exception as error:  # such as damaged memory, or another version of conc.h
            raise gdb.GdbError(f"conc: {' '.join(str(error).split()) or type(error).__name__}") from None
        finally:
            if thread and thread.is_valid():
                thread.switch()
                if frame and frame.is_valid():
                    frame.select()


class Conc(gdb.Command):
    """Tasks of conc.h: conc tasks, conc bt [NUMBER | all] [OPTIONS OF bt]"""

    def __init__(self):
        super().__init__("conc", gdb.COMMAND_STACK, gdb.COMPLETE_NONE, prefix=True)


class Tasks(Command):
    """The tree of groups and tasks of each thread that has a run: what each waits for, and where it was spawned."""

    def __init__(self):
        super().__init__("conc tasks", gdb.COMMAND_STACK, gdb.COMPLETE_NONE)

    def run(self, arguments):
        if arguments:
            raise gdb.GdbError("usage: conc tasks")
        number = 0
        for whose, _, loop in runs():
            print(f"{whose}, {counted(loop['counters']['spawned'] - loop['counters']['finished'], 'task', 'tasks')}:")
            for depth, is_task, it in tree(loop):
                number += is_task
                label, line = (number, task_line(loop, it)) if is_task else ("", group_line(it))
                print(f"{label:>5} {'':{depth * 2}} {line}")


class Backtrace(Command):
    """The backtrace of a task that is not running, or of all of them: conc bt [NUMBER | all] [OPTIONS OF bt]"""

    def __init__(self):
        super().__init__("conc bt", gdb.COMMAND_STACK, gdb.COMPLETE_NONE)

    def run(self, arguments):
        which, _, options = (arguments or "all").partition(" ")
        if which != "all" and not which.isdecimal():
            raise gdb.GdbError("usage: conc bt [NUMBER | all] [OPTIONS OF bt]")
        tasks = ((run, it) for run in runs() for _, is_task, it in tree(run[-1]) if is_task)
        known = False
        for number, ((whose, thread, loop), task) in enumerate(tasks, 1):
            if which not in ("all", str(number)):
                continue
            known = True
            print(f"{number} {task_line(loop, task)}")
            if task == loop["self"]:
                print(f"    is running on {whose}: see its own bt")
                continue
            thread.switch()
            for part in backtrace(loop, task, options):
                print(part, end="")
        if not known:
            raise gdb.GdbError(f"conc: there is no task {which}: see conc tasks")


Conc()
Tasks()
Backtrace()
