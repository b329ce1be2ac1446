#!/usr/bin/env bash
# Runs every example as its first lines instruct, with the headers and the one file in an empty folder. On the virtual clock
# the output must equal that in examples/expected; if it is random, the script there checks it. Examples with outside input are
# also driven by the Python scripts in tests/examples.
# CC chooses the compiler; with --single the example includes single_include/conc.h. Further arguments are the folders to test
# instead of all.
# Needs bash, coreutils, diffutils, awk, Python 3, pkg-config, nc of OpenBSD, socat, libcurl, cJSON, SQLite and GLib.
set -u
export LC_ALL=C
unset CONC_RANDOM CONC_CLOCK CONC_DEBUG CONC_SEED CONC_TRACE CONC_POLL CONC_STACK

cd "$(dirname "$0")/.." || exit 2
root=$PWD
headers=("$root"/conc*.h)
included='s/^$//' # the example as it is
if [ "${1-}" = --single ]; then
    shift
    headers=("$root/single_include/conc.h")
    included='s,^#include "../../conc_[a-z]*.h",#include "../../conc.h",'
fi
[ $# -gt 0 ] || set -- "$root"/examples/*/
folders=("${@%/}")
for folder in "${folders[@]}"; do
    [ -d "$root/examples/${folder##*/}" ] || { echo "usage: $0 [--single] [FOLDER...]" >&2 && exit 2; }
done
read -ra cc <<<"${CC:-cc}"
warnings=(-std=c11 -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wstrict-prototypes -Wundef)

tmp=$(mktemp -d) || exit 2
trap 'rm -rf "$tmp"' EXIT
passed=0
failed=0

# check NAME FILE: passes if FILE, which contains the mistakes, is empty
check() {
    if [ -s "$2" ]; then
        failed=$((failed + 1))
        echo "FAIL $1"
        awk '{ print "    " $0 }' "$2"
    else
        passed=$((passed + 1))
    fi
}

# run_it PROGRAM ARGUMENT...: writes its output to $box/out, its messages to $box/err, and a wrong exit status to $box/wrong
run_it() {
    timeout 60 "$@" >"$box/out" 2>"$box/err" </dev/null
    local status=$?
    [ $status -eq 0 ] || echo "exit status $status" >"$box/wrong"
}

# draws NAME: a seed reproduces the output, another seed changes it
draws() {
    CONC_RANDOM=20 CONC_CLOCK=virtual run_it ./x
    mv "$box/out" "$box/out20"
    CONC_RANDOM=20 CONC_CLOCK=virtual run_it ./x
    diff "$box/out20" "$box/out" >>"$box/wrong"
    check "$1: CONC_RANDOM=20 repeats" "$box/wrong"
    : >"$box/wrong"
    CONC_RANDOM=21 CONC_CLOCK=virtual run_it ./x
    cmp -s "$box/out20" "$box/out" && echo "the output is that of CONC_RANDOM=20" >>"$box/wrong"
    check "$1: CONC_RANDOM=21 draws other numbers" "$box/wrong"
    : >"$box/wrong"
}

# is_right EXPECTED: the output is that in examples/expected
is_right() {
    if [ -f "$1.txt" ]; then
        diff "$1.txt" "$box/out"
    else
        awk -f "$root/examples/expected/groups.awk" -f "$1.awk" "$box/err" "$box/out"
    fi
}

# has_its_property NAME EXPECTED: if examples/expected has a script, it accepts any order and any random numbers
has_its_property() {
    [ -f "$2.awk" ] && grep -q '^#include "../../conc' "${1#*/}.c" || return 0 # threads alone know no seed
    local seed
    for seed in {1..10}; do
        CONC_SEED=$seed CONC_RANDOM=$seed CONC_CLOCK=virtual run_it ./x
        awk -f "$root/examples/expected/groups.awk" -f "$2.awk" "$box/err" "$box/out" >>"$box/wrong"
        check "$1: right with CONC_SEED=$seed CONC_RANDOM=$seed" "$box/wrong"
        : >"$box/wrong"
    done
}

# eighty_percent: 80 % +- 2 % of 10,000 checks find the site online
eighty_percent() {
    local i online
    for ((i = 0; i < 2000; i++)); do
        CONC_RANDOM=$((i + 1)) CONC_CLOCK=virtual ./x
    done >"$box/out" 2>"$box/wrong"
    online=$(awk '/ is online$/ { n++ } END { print n + 0 }' "$box/out")
    [ "$online" -ge 7800 ] && [ "$online" -le 8200 ] || echo "$online of 10000 were online" >>"$box/wrong"
    check "$1: 80 % of 10,000 checks are online" "$box/wrong"
}

# real_clock NAME EXPECTED SECONDS: the output is the same, and takes so long; on a busy machine some tenths more
real_clock() {
    local before after ms least=$(($3 * 1000))
    before=$(date +%s%N)
    run_it ./x
    after=$(date +%s%N)
    ms=$(((after - before) / 1000000))
    [ $ms -ge $least ] && [ $ms -lt $((least + 1000)) ] || echo "it took $ms ms" >>"$box/wrong"
    sed "s/ $3\.[0-9] / $3.0 /" "$box/out" | diff "$2" - >>"$box/wrong"
    check "$1: the same in $3 s on the real clock" "$box/wrong"
    : >"$box/wrong"
}

# names_the_blocker NAME: debug mode names the broken program's tasks that block the loop, and only these
names_the_blocker() {
    "${cc[@]}" -DBROKEN "${1#*/}.c" -o broken >"$box/wrong" 2>&1
    CONC_DEBUG=1 CONC_CLOCK=virtual run_it ./broken
    grep ' blocked the loop' "$box/err" >"$box/held"
    awk '/handler/ { n++ } END { if (!n) print "no handler is named" }' "$box/held" >>"$box/wrong"
    grep -v handler "$box/held" >>"$box/wrong"
    check "$1: CONC_DEBUG=1 names the task that blocked the loop" "$box/wrong"
}

# reaches_its_goal NAME: with --goal it reaches the course's figure; its exit status tells whether the counts are right
reaches_its_goal() {
    local seed
    for seed in {0..20}; do
        CONC_RANDOM=$seed CONC_CLOCK=virtual timeout 60 ./x --goal >"$box/out" 2>&1 || cat "$box/out" >>"$box/wrong"
    done
    check "$1: --goal is reached with 21 seeds" "$box/wrong"
}

# fails_under_a_seed NAME: a test that passes by luck fails in the order of seed 5, and so does the program
fails_under_a_seed() {
    timeout 60 ./x 5 >"$box/out" 2>&1
    local status=$?
    [ $status -eq 1 ] || echo "exit status $status" >>"$box/wrong"
    grep '^not ok' "$box/out" | grep -v TODO | grep -q '^not ok 6 ' || cat "$box/out" >>"$box/wrong"
    check "$1: a race fails in the order of seed 5" "$box/wrong"
}

# is_pictured NAME PICTURE TITLE: the picture in the documentation shows the example's trace
is_pictured() {
    CONC_TRACE=trace.json CONC_CLOCK=virtual run_it ./x
    python3 -B "$root/tests/timeline.py" trace.json picture.svg --title "$3" >>"$box/wrong" 2>&1
    cmp picture.svg "$root/examples/$2" >>"$box/wrong" 2>&1
    check "$1: examples/$2 is up to date" "$box/wrong"
}

# scenarios NAME SCRIPT: runs each of the script's scenarios with the example; any output is a mistake
scenarios() {
    local script=$root/tests/examples/$2 names scenario
    names=$(python3 -B "$script" --list 2>"$box/wrong") || names=none
    for scenario in $names; do
        python3 -B "$script" ./x "$scenario" >>"$box/wrong" 2>&1
        check "$1: ${scenario//_/ }" "$box/wrong"
        : >"$box/wrong"
    done
}

# lines_of FILE: the commands of its first comment, one a line
lines_of() { sed -n '/^   \(cc \|\.\/\|[A-Z_]*=[^ ]* \.\/\)/s/^ *//p; /\*\//q' "$1"; }

# libraries_of FILE: the options for its libraries, from its first lines, without warnings from foreign headers
libraries_of() {
    local line package
    line=$(lines_of "$1" | grep -m 1 '^cc ')
    package=$(grep -o 'pkg-config [^)]*' <<<"$line")
    { grep -o -e ' -l[a-z0-9]*' <<<"$line"; ${package:-true} | sed 's/-I/-isystem /g'; } | tr '\n' ' '
}

# opens_with_its_exercise FILE: it begins with at most ten lines: a title, commands that compile and run it, and a hint
opens_with_its_exercise() {
    sed '/\*\/$/q' "$1" | awk '
        NR == 1 && !/^\/\* [^.]*\./ { print "no title that ends with a full stop" }
        length > 100 { print "a line of over 100 columns: " $0 }
        /^   cc / { compiles = 1 }
        /^   (CONC_CLOCK=virtual )?\.\// { runs = 1 }
        /^   It prints .*\.\.\/expected\// { prints = 1 }
        /^   Hint: / { hint = 1 }
        END {
            if (NR > 10) print NR " lines, not ten"
            if (!compiles) print "no line that compiles it"
            if (!runs) print "no line that runs it"
            if (!prints) print "no line that says what it prints"
            if (!hint) print "no hint"
        }'
}

# lines_of_code FILE: the number of lines that are neither blank nor only comment
lines_of_code() {
    awk '
        inside { if (/\*\//) inside = 0; next }
        /^ *\/\*/ { if (!/\*\//) { inside = 1; next } if (/\*\/ *$/) next }
        NF { n++ }
        END { print n }' "$1"
}

# is_tiny NAME FILE: it is short enough to be seen at once
is_tiny() {
    local most=60 lines
    [[ $1 == *_bonus ]] && most=120
    [[ $1 == 1[0-2]_* ]] && most=250
    lines=$(lines_of_code "$2")
    [ "$lines" -le $most ] || echo "$lines lines of code, more than $most"
}

# as_its_lines_say EXPECTED: compiles it, and runs it in each way that needs no outside input
as_its_lines_say() {
    local line lines
    mapfile -t lines < <(lines_of "$name.c")
    for line in "${lines[@]}"; do
        case $line in
        "cc $name.c -o "*)
            [ -e x ] && continue
            timeout 300 sh -c "$line" >"$box/cc" 2>&1
            cat "$box/cc"
            line=${line#* -o }
            ln -s "${line%% *}" x
            ;;
        "./"* | "CONC_CLOCK=virtual ./"*)
            line=${line%%#*}
            [[ ${line#CONC_CLOCK=virtual } =~ ^\./[a-z_0-9]+\ *$ ]] || continue # with arguments it waits for somebody
            CONC_CLOCK=virtual run_it sh -c "$line"
            is_right "$1"
            ;;
        esac
    done
}

# no_warnings NAME: neither the example with the implementation, nor the optimised example alone, causes warnings
no_warnings() {
    local word includes=()
    for word in "${libraries[@]}"; do [[ $word == -l* ]] || includes+=("$word"); done
    "${cc[@]}" "${warnings[@]}" -fsyntax-only "${1#*/}.c" "${includes[@]}" >"$box/wrong" 2>&1
    sed '/^#define CONC_STATIC$/d' "${1#*/}.c" >declared.c
    "${cc[@]}" "${warnings[@]}" -O2 -c declared.c -o declared.o "${includes[@]}" >>"$box/wrong" 2>&1
    check "$1: no warnings" "$box/wrong"
}

mkdir -p "$tmp/bin"
cc[0]=$(command -v "${cc[0]}") || exit 2
{ echo '#!/bin/sh' && echo "exec ${cc[*]} \"\$@\""; } >"$tmp/bin/cc"
chmod +x "$tmp/bin/cc"
PATH=$tmp/bin:$PATH

sources=()
for folder in "${folders[@]##*/}"; do
    sources+=("$root/examples/$folder"/*.c)
done
for source in "${sources[@]}"; do
    name=$(basename "$source" .c)
    folder=$(basename "$(dirname "$source")")
    expected=$root/examples/expected/$folder/$name
    [ ! -f "$root/tests/apps/${folder%%_*}_$name.py" ] || continue # a program of its own tests
    box=$tmp/${folder}__$name
    mkdir -p "$box/examples/$folder" && cp "${headers[@]}" "$box/" && cd "$box/examples/$folder" || exit 2
    sed "$included" "$source" >"$name.c" || exit 2

    opens_with_its_exercise "$name.c" >"$box/wrong"
    is_tiny "$folder/$name" "$name.c" >>"$box/wrong"
    check "$folder/$name: opens with its exercise, and is tiny" "$box/wrong"
    : >"$box/wrong"
    as_its_lines_say "$expected" >"$box/said" 2>&1
    cat "$box/said" >>"$box/wrong"
    check "$folder/$name: as its lines say" "$box/wrong"
    [ -x x ] || continue
    read -ra libraries < <(libraries_of "$name.c")
    no_warnings "$folder/$name"

    : >"$box/wrong"
    CONC_CLOCK=virtual run_it ./x
    case $name in
    08_slow_step_warning | 16_task_deadlock) ;; # its messages are what it shows
    *) cat "$box/err" >>"$box/wrong" ;;
    esac
    check "$folder/$name: exit status 0, no messages" "$box/wrong"
    : >"$box/wrong"
    has_its_property "$folder/$name" "$expected"

    case $folder/$name in
    02_tasks/03_site_checker)
        draws "$folder/$name"
        eighty_percent "$folder/$name"
        ;;
    02_tasks/07_restaurant) draws "$folder/$name" ;;
    01_start/06_freezer) names_the_blocker "$folder/$name" ;;
    01_start/0[78]_* | 03_errors/05_graceful_shutdown | 09_io/0[1237]_* | 10_patterns/04_profiler)
        scenarios "$folder/$name" "${name#*_}.py"
        ;;
    04_sync/08_queue_system) reaches_its_goal "$folder/$name" ;;
    10_patterns/05_testing) fails_under_a_seed "$folder/$name" ;;
    02_tasks/01_coffee_shop)
        real_clock "$folder/$name" "$expected.txt" 5
        is_pictured "$folder/$name" coffee_shop.svg "Three drinks at once"
        ;;
    esac
done

for expected in "$root"/examples/expected/*/*; do
    name=${expected#"$root/examples/expected/"}
    [ -e "$root/examples/${name%.*}.c" ] || echo "no example for $name"
done >"$tmp/wrong"
check "each expected output has its example" "$tmp/wrong"

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
