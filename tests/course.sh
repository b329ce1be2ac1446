#!/usr/bin/env bash
# Does the exercises as a learner would, in a copy of the course that it vendors into an empty folder: each starting point
# must compile and be judged wrong, and each solution must be judged right. The arguments are folders; none: all.
# CC chooses the compiler. The implementation is compiled once and linked with each exercise, because this tests the course.
# Needs bash, coreutils, awk, diffutils, and the libraries of the exercises.
set -u
export LC_ALL=C
cd "$(dirname "$0")/.." || exit 2
root=$PWD
read -ra cc <<<"${CC:-cc}"
tmp=$(mktemp -d) || exit 2
trap 'rm -rf "$tmp"' EXIT
export TMPDIR=$tmp
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

# compiler: a command like $CC that links files with the implementation compiled before
compiler() {
    cat <<END
#!/bin/bash
arguments=()
for word in "\$@"; do
    if [[ \$word == *.c && \$word != */* ]]; then
        sed '/^#define CONC_STATIC/s,.*,/* the implementation is linked */,' "\$word" >"linked_\$word"
        grep -q '^#include .*conc' "\$word" && arguments+=("$tmp/conc.o")
        word=linked_\$word
    fi
    arguments+=("\$word")
done
exec ${cc[*]} "\${arguments[@]}"
END
}

"$root/examples/course" vendor "$tmp/course" >"$tmp/said" 2>"$tmp/wrong" || echo "exit status $?" >>"$tmp/wrong"
size=$(find "$tmp/course" -type f -printf '%s\n' | awk '{ n += $1 } END { print n }')
[ "$size" -le $((1 << 20)) ] || echo "it has $size bytes, more than 1 MB" >>"$tmp/wrong"
check "the course is vendored into an empty folder" "$tmp/wrong"
cd "$tmp/course" || exit 1
printf '#define CONC_IMPLEMENTATION\n#include "conc.h"\n' >"$tmp/conc.c"
"${cc[@]}" -O1 -I. -c "$tmp/conc.c" -o "$tmp/conc.o" >"$tmp/wrong" 2>&1
check "its header compiles" "$tmp/wrong"
compiler >"$tmp/cc" && chmod +x "$tmp/cc"
export CC=$tmp/cc

# starts NAME NUMBER: the starting point compiles without warnings, and is judged wrong
starts() {
    ./course start "$2" >"$tmp/said" 2>&1 || { echo "course start: exit status $?" && cat "$tmp/said"; }
    grep -q 'Your turn' "your/$3" || grep -q '^#ifdef BROKEN' "$1" || echo "\"Your turn\" is missing"
    if ./course check "$2" >"$tmp/said" 2>&1; then
        echo "the starting point is judged right"
    fi
    grep -q 'Not right yet.' "$tmp/said" || { echo "course check prints:" && cat "$tmp/said"; }
    grep -q 'warning:' "$tmp/said" && grep -A 3 'warning:' "$tmp/said"
    ./course hint "$2" >"$tmp/said" 2>&1 || cat "$tmp/said"
}

# is_solved SOLUTION NUMBER FILE: the solution is judged right
is_solved() {
    cp "$1" "your/$3"
    ./course check "$2" >"$tmp/said" 2>&1 || echo "course check: exit status $?"
    [ "$(tail -n 1 "$tmp/said")" = Right. ] || cat "$tmp/said"
    ./course list | grep -q "^  \* $2 " || echo "course list does not show it as done"
}

# has WORDS COMMAND...: the command succeeds and prints the words
has() {
    local words=$1
    shift
    "$@" >"$tmp/said" 2>&1 || echo "$*: exit status $?"
    grep -q -e "$words" "$tmp/said" || { echo "$*: it does not print \"$words\", but:" && cat "$tmp/said"; }
}

# other_commands: the commands besides start and check, with the coffee shop; a copy elsewhere; refusals
other_commands() {
    local all
    all=$(./course list | grep -c '^  ')
    has "^0 of $all exercises are done" ./course progress
    has 'Next: 01/01' ./course progress
    ./course start 02/01 >/dev/null
    ./course check 02/01 >"$tmp/said" 2>&1
    grep -q 'Starting to make Espresso... *| (nothing)' "$tmp/said" || echo "no comparison of expected and printed lines"
    cp 02_tasks/01_coffee_shop.c your/02_01_coffee_shop.c
    has '^Right.' timeout 100 ./course watch 2/1
    has "^1 of $all exercises are done" ./course progress
    has '^make_latte  *-*#' ./course picture 02/01
    has 'static int make_latte' ./course solution your/02_01_coffee_shop.c
    has 'Your turn' env COURSE_YOUR="$tmp/elsewhere" ./course start 01/01
    grep -q 'return 0;' "$tmp/elsewhere/01_01_hello_goodbye.c" || echo "COURSE_YOUR has no effect"
    ./course check 01/01 >"$tmp/said" 2>&1
    [ $? -eq 2 ] || echo "checking without an answer does not exit with 2"
    ./course check 99/99 >"$tmp/said" 2>&1 && echo "there is an exercise 99/99"
    ./course vendor . >"$tmp/said" 2>&1 && echo "it is vendored over itself"
    mkdir -p "$tmp/mine" && echo mine >"$tmp/mine/README.md"
    ./course vendor "$tmp/mine" >"$tmp/said" 2>&1 && echo "it is vendored over other files"
    has 'The course is in' ./course vendor "$tmp/again"
    has 'The course is in' ./course vendor "$tmp/again"
}

# nothing_stays: an endless program and its child are ended by the limit and by Ctrl+C
nothing_stays() {
    printf '#include <unistd.h>\nint main(void) { fork(); for (;;) {} }\n' >your/01_01_hello_goodbye.c
    sed 's/^limit=.*/limit=1/' course >quick_course && chmod +x quick_course
    ./quick_course check 01/01 >"$tmp/said" 2>&1
    grep -q 'did not end within 1 seconds' "$tmp/said" || cat "$tmp/said"
    timeout -s INT 2 ./course check 01/01 >"$tmp/said" 2>&1
    sleep 0.2
    ps -A -o args= | grep -F "$tmp/course." | grep -v grep
    ls -d "$tmp"/course.* 2>/dev/null
    rm -f your/01_01_hello_goodbye.c quick_course
}

if [ $# -eq 0 ] || [ "${1%/}" = 01_start ]; then
    other_commands >"$tmp/wrong" 2>&1
    check "list, progress, watch, picture, solution, vendor" "$tmp/wrong"
    nothing_stays >"$tmp/wrong" 2>&1
    check "no program and no folder stays" "$tmp/wrong"
    rm -rf your
fi

[ $# -gt 0 ] || set -- [0-9]*_*/
for folder in "$@"; do
    for solution in "${folder%/}"/*.c; do
        file=${solution##*/}
        number=${folder%%_*}/${file%%_*}
        file=${folder%%_*}_$file
        starts "$solution" "$number" "$file" >"$tmp/wrong" 2>&1
        check "$number starts, and is not right yet" "$tmp/wrong"
        is_solved "$solution" "$number" "$file" >"$tmp/wrong" 2>&1
        check "$number is solved" "$tmp/wrong"
    done
done

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
