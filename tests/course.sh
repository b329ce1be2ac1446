#!/usr/bin/env bash
# Does the exercises as a learner would, in a copy of the course that it vendors into an empty folder: each starting point
# compiles and is told not to be right, and each solution is told to be right. Folders are the arguments; none: all.
# CC chooses the compiler. The implementation is compiled once, and linked with each exercise: what is tried here is the course.
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

# check NAME FILE: passes when FILE, which holds what is wrong, is empty
check() {
    if [ -s "$2" ]; then
        failed=$((failed + 1))
        echo "FAIL $1"
        awk '{ print "    " $0 }' "$2"
    else
        passed=$((passed + 1))
    fi
}

# compiler: a command as $CC, but files that hold the implementation are linked with one that was compiled before
compiler() {
    cat <<END
#!/bin/bash
arguments=()
for word in "\$@"; do
    if [[ \$word == *.c ]]; then
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

# starts NAME NUMBER: the starting point compiles without warnings, and is not right
starts() {
    ./course start "$2" >"$tmp/said" 2>&1 || { echo "course start: exit status $?" && cat "$tmp/said"; }
    grep -q 'Your turn' "your/$3" || grep -q DBROKEN "your/$3" || echo "nothing says \"Your turn\""
    if ./course check "$2" >"$tmp/said" 2>&1; then
        echo "the starting point is told to be right"
    fi
    grep -q 'Not right yet.' "$tmp/said" || { echo "course check says:" && cat "$tmp/said"; }
    grep -q 'warning:' "$tmp/said" && grep -A 3 'warning:' "$tmp/said"
    ./course hint "$2" >"$tmp/said" 2>&1 || cat "$tmp/said"
}

# is_solved SOLUTION NUMBER FILE: the solution is right
is_solved() {
    cp "$1" "your/$3"
    ./course check "$2" >"$tmp/said" 2>&1 || echo "course check: exit status $?"
    [ "$(tail -n 1 "$tmp/said")" = Right. ] || cat "$tmp/said"
    ./course list | grep -q "^  \* $2 " || echo "course list does not show it as done"
}

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
