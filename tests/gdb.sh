#!/usr/bin/env bash
# Tests tests/conc_gdb.py with tests/gdb/parked.c: in the process, and in a core file that gdb writes of it, with gcc and
# clang, with and without optimisation. --single uses single_include/conc.h.
# Exit status 77: nothing was tested, because a program is missing, or the processor is not x86-64.
# Needs gdb with Python (not gdb-minimal), gcc, clang, and the permission to trace other processes.
set -u
export LC_ALL=C
unset CONC_CLOCK CONC_DEBUG CONC_SEED CONC_TRACE CONC_POLL CONC_STACK DEBUGINFOD_URLS

cd "$(dirname "$0")/.." || exit 2
root=$PWD
headers=("$root"/conc.h "$root"/conc_sync.h)
case "${1-}" in
"") ;;
--single) headers=("$root/single_include/conc.h") ;;
*) echo "usage: $0 [--single]" >&2 && exit 2 ;;
esac
warnings=(-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wstrict-prototypes -Wundef)
passed=0
failed=0

lacking=()
for program in gdb gcc clang; do
    command -v $program >/dev/null || lacking+=("$program")
done
if ((${#lacking[@]})); then
    echo "install ${lacking[*]}"
    exit 77
fi
if [ "$(uname -m)" != x86_64 ]; then
    echo "on $(uname -m), compilers do not tell gdb where thread-local variables are"
    exit 77
fi
if ! gdb -nx --batch -ex 'python print(6 * 7)' 2>&1 | grep -qx 42; then
    echo "this gdb has no Python: install gdb, not gdb-minimal"
    exit 77
fi

tmp=$(mktemp -d) || exit 2
trap 'rm -rf "$tmp"' EXIT
wrong=$tmp/wrong
out=$tmp/out
errors=$tmp/errors
: >"$wrong"

# check NAME: passes if $wrong, which contains the mistakes, is empty; empties it
check() {
    if [ -s "$wrong" ]; then
        failed=$((failed + 1))
        echo "FAIL $1"
        awk '{ print "    " $0 }' "$wrong"
    else
        passed=$((passed + 1))
    fi
    : >"$wrong"
}

# debug ARGUMENT...: writes gdb's output to $out, and its errors and warnings to $errors, which is not compared
debug() {
    timeout -k 5 120 gdb -nx --batch -ex 'set width 0' -ex 'set disable-randomization off' \
        -ex "source $root/tests/conc_gdb.py" "$@" >"$out" 2>"$errors" </dev/null
    local status=$?
    [ $status -ne 124 ] || echo "gdb did not end" >>"$wrong"
    ! grep -n -e Traceback -e 'Python Exception' -e 'Backtrace stopped' "$out" "$errors" >>"$wrong"
}

# part NAME: gdb's output after `echo == NAME`, up to the next such line
part() { awk -v name="== $1" '/^== / { here = $0 == name; next } here' "$out"; }

# says TEXT: a line of gdb's output is this text, or ends with it
says() {
    awk -v text="$1" 'substr($0, length($0) - length(text) + 1) == text { found = 1 } END { exit !found }' "$out" "$errors" ||
        { echo "it does not print \"$1\", but:" && cat "$out" "$errors"; } >>"$wrong"
}

cd "$tmp" && cp "${headers[@]}" "$root/tests/gdb/parked.c" . || exit 2
if [ "${1-}" = --single ]; then
    sed -i 's/"conc_sync.h"/"conc.h"/' parked.c
fi

printf 'int main(void) { return 0; }\n' >nothing.c && gcc -g nothing.c -o nothing || exit 2
debug -ex run ./nothing
if ! grep -q 'exited normally' "$out"; then
    echo "gdb cannot control a process here; in a container that needs --cap-add=SYS_PTRACE. It prints:"
    cat "$out" "$errors"
    exit 1
fi

# build NAME COMPILER OPTION...: compiles parked.c
build() {
    "${@:2}" "${warnings[@]}" parked.c -o "$1" -pthread 2>"$wrong" || echo "exit status $?" >>"$wrong"
    check "${*:2} compiles without warnings"
    [ -x "$1" ] || exit 1
}

# ---- the tree ----

cat >tree <<'TREE'
thread 1 (LWP N), 14 tasks:
    1  main: running
         group at parked.c, 8 children:
    2      sleeps at parked.c: sleeps forever
    3      sleeps_an_hour at parked.c: sleeps for another 3600 s
    4      joins at parked.c: joins sleeps at parked.c
    5      locks at parked.c: sleeps forever
    6      nests at parked.c: waits for 2 children of the group at parked.c
             group at parked.c, 1 child:
    7          gets at parked.c: waits to get from a queue <jobs>
             group at parked.c, 2 children:
    8          locks at parked.c: waits for a lock that locks at parked.c acquired at parked.c
    9          the diver: sleeps forever (spawned at parked.c)
   10      consumes at parked.c: sleeps forever
   11      is_stubborn at parked.c: waits for 1 child of the group at parked.c, cancelled
             group at parked.c, 1 child, cancelled:
   12          shields at parked.c: sleeps forever
   13      never_starts at parked.c: ready
       background, 1 child:
   14    sleeps at parked.c: sleeps forever
thread 2 (LWP N), 3 tasks:
   15  main: waits for 2 children of the group at parked.c
         group at parked.c, 2 children:
   16      sleeps_an_hour at parked.c: sleeps for another 3600 s
   17      announces at parked.c: running
TREE

# Removes what differs between builds or processes.
common() { sed -E 's/parked\.c:[0-9]+/parked.c/g; s/0x[0-9a-f]+ (<jobs>)/\1/; s/LWP [0-9]+/LWP N/'; }

test_tree() {
    part tasks | common | diff tree - >>"$wrong"
    check "$1: conc tasks"
}

# ---- backtraces ----

# of NUMBER: the lines of a task's backtrace, from the output of conc bt
of() { part all | awk -v number="$1" '/^[0-9]+ / { here = $1 == number } here'; }

# goes_through NUMBER FUNCTION...: the task's backtrace has these, innermost first, and ends with the last one
goes_through() {
    of "$1" | awk -v wanted="${*:2}" '
        BEGIN { n = split(wanted, functions, " "); at = 1 }
        NR > 1 { for (i = 2; i < NF; i++) if ($i == functions[at] && $(i + 1) ~ /^\(/) { at++; break } }
        END { if (at <= n) print "no " functions[at] " where it belongs" }' >>"$wrong"
    of "$1" | tail -n 1 | grep -q " ${*: -1} (" || echo "the last one is not ${*: -1}" >>"$wrong"
    [ ! -s "$wrong" ] || of "$1" >>"$wrong"
    check "$name: the backtrace of task $1 has ${*:2}"
}

test_backtraces() {
    local name=$1 number
    goes_through 2 conc_sleep conc__task_main
    goes_through 4 joins conc__task_main
    goes_through 5 conc_sleep locks conc__task_main
    goes_through 6 conc_group_wait nests conc__task_main
    goes_through 7 gets conc__task_main
    goes_through 8 locks conc__task_main
    goes_through 9 conc_sleep deepest deeper deep dives conc__task_main
    goes_through 10 conc_sleep emits conc__gen_main conc_gen_next consumes conc__task_main
    goes_through 12 conc_sleep conc__task_main
    goes_through 15 other_app conc__main_task conc__task_main

    for number in 1 17; do
        of $number | grep -q 'is running on thread [12] (LWP [0-9]*): see its own bt$' || of $number >>"$wrong"
    done
    of 13 | grep -qx '    has not started yet' || of 13 >>"$wrong"
    check "$name: nothing is made up for tasks that run, or have not started"

    part all | grep -n ' conc__park\b' >>"$wrong"
    check "$name: conc's own functions on the way to the switch are left out"
    diff <(of 9) <(part one) >>"$wrong"
    check "$name: conc bt 9 is its part of conc bt"
    part full | grep -qE '^ +outer = \{' || part full >>"$wrong"
    check "$name: conc bt 6 -full has local variables"
    part before | grep -q '^#1 .* app (' || echo "it has none" >>"$wrong"
    diff <(part before) <(part after) >>"$wrong"
    check "$name: the selected thread and frame, and its own backtrace, are as before"
}

look=(-ex 'thread 1' -ex 'frame 1')
look+=(-ex 'echo == before\n' -ex 'thread' -ex 'frame' -ex 'bt')
look+=(-ex 'echo == tasks\n' -ex 'conc tasks' -ex 'echo == all\n' -ex 'conc bt' -ex 'echo == one\n' -ex 'conc bt 9')
look+=(-ex 'echo == full\n' -ex 'conc bt 6 -full' -ex 'echo == after\n' -ex 'thread' -ex 'frame' -ex 'bt')
look+=(-ex 'echo == end\n')

# looked_at NAME: checks what gdb printed of the process or core file
looked_at() {
    [ ! -s "$wrong" ] || { echo "of:" && cat "$out"; } >>"$wrong"
    check "$1: gdb has no complaints"
    test_tree "$1"
    test_backtraces "$1"
}

# If guard regions are made with MADV_GUARD_INSTALL, from Linux 6.13 on, gdb writes core files without the stacks. So these
# guard regions are made with mprotect.
test_build() {
    local name="$*"
    build parked "$@" -DNO_GUARD_ADVICE
    rm -f core
    debug -ex 'break all_parked' -ex run "${look[@]}" -ex 'generate-core-file core' ./parked
    looked_at "$name, live"
    [ -s core ] || { echo "gdb wrote no core file:" && cat "$out"; } >>"$wrong"
    check "$name: a core file"
    debug "${look[@]}" ./parked core
    looked_at "$name, core file"
}

# With guard regions, and the core file of a program that crashes, if the system writes one to the folder.
test_dying() {
    local files
    build parked gcc -O2 -g
    rm -f core*
    ulimit -c unlimited 2>/dev/null
    debug -ex 'break all_parked' -ex run "${look[@]}" -ex 'signal SIGABRT' ./parked
    looked_at "guarded stacks, live"
    files=(core*)
    if [ -s "${files[0]}" ]; then
        debug "${look[@]}" ./parked "${files[0]}"
        looked_at "guarded stacks, the system's core file"
    else
        echo "not tested: a core file of the system, which wrote none ($(cat /proc/sys/kernel/core_pattern))"
    fi
}

# ---- errors ----

test_refusals() {
    local no_threads=(-iex "set libthread-db-search-path $tmp/none" -iex 'set auto-load libthread-db off')
    build parked gcc -O2 -g -DNO_GUARD_ADVICE
    rm -f core*
    debug -ex 'conc tasks' ./parked
    says "conc: there is no process and no core file"
    debug -ex 'break no_run_yet' -ex run -ex 'conc tasks' -ex 'conc bt' ./parked
    says "conc: no thread has a run"
    check "without a process or a run, that is said"

    debug -ex 'break all_parked' -ex run -ex 'generate-core-file core' \
        -ex 'conc bt 18' -ex 'conc bt x' -ex 'conc tasks 1' \
        -ex 'set var conc__here->run.main.scope->inner = conc__here->run.main.scope' -ex 'conc tasks' \
        -ex 'set var conc__here->run.main.stack->slab = 0' -ex 'conc bt' \
        -ex 'set var conc__here = (void *)8' -ex 'conc bt' ./parked
    says "conc: there is no task 18: see conc tasks"
    says "usage: conc bt [NUMBER | all] [OPTIONS OF bt]"
    says "usage: conc tasks"
    says "conc: a list is damaged: it contains a cycle"
    says "gdb leaves them out of those that it writes on Linux 6.13 and later, and the system does not"
    grep -hq '^conc: Cannot access memory at address 0x' "$out" "$errors" || cat "$out" >>"$wrong"
    check "wrong arguments and damaged memory have errors of one line"

    debug "${no_threads[@]}" -ex 'conc tasks' ./parked core
    grep -hq "^conc: the thread-local conc__here cannot be read; set .conc_loop to a task's handle.loop: " "$out" "$errors" ||
        cat "$out" >>"$wrong"
    check "without libthread_db, that is said"
    # shellcheck disable=SC2016 # this is gdb's variable
    debug "${no_threads[@]}" -ex 'set $conc_loop = sleeping.loop' "${look[@]}" ./parked core
    part tasks | common | diff <(sed '/^thread 2/,$d; s/^thread 1 (LWP N)/the thread of $conc_loop/' tree) - >>"$wrong"
    part one | grep -q ' deepest (' || part one >>"$wrong"
    check "and a task's handle shows its run"

    build parked gcc -O2
    debug -ex 'break all_parked' -ex run -ex 'conc tasks' ./parked
    says "conc: no debug information of conc.h: compile the file with CONC_IMPLEMENTATION or CONC_STATIC with -g"
    check "without debug information, that is said"

    build parked gcc -O2 -g -DCONC_USE_UCONTEXT
    debug -ex 'break all_parked' -ex run "${look[@]}" ./parked
    test_tree CONC_USE_UCONTEXT
    of 9 >nine
    grep -qx '    no backtrace: it does not stand in a function (CONC_USE_UCONTEXT has none)' nine ||
        cat nine >>"$wrong"
    check "CONC_USE_UCONTEXT: that there are no backtraces is said"
}

test_build gcc -O2 -g
test_build gcc -O0 -g
test_build clang -O2 -g -DCONC_STATIC
test_dying
test_refusals

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
