#!/usr/bin/env bash
# How long the compiler takes, without optimization: for an exercise from source to program, and for the declarations alone
# beside an empty file. Medians of 7, in turn.
#   tests/bench/compile_time.sh [EXERCISE.c]
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/../.."

exercise=${1:-examples/02_tasks/01_coffee_shop.c}
out=build/bench
times=7
cc=${CC:-cc}
if [[ ! -f $exercise ]]; then
    echo "there is no $exercise" >&2
    exit 1
fi

compile() {
    case $1 in
    exercise) "$cc" -O0 "$exercise" -o $out/exercise ;;
    declarations) "$cc" -O0 -I. -c $out/declarations.c -o $out/declarations.o ;;
    empty) "$cc" -O0 -c $out/empty.c -o $out/empty.o ;;
    esac
}

# In milliseconds.
timed() {
    local start=${EPOCHREALTIME/./}
    compile "$1"
    local end=${EPOCHREALTIME/./}
    echo "$1 $(((end - start) / 1000)).$(((end - start) / 100 % 10))"
}

median() { grep "^$1 " $out/compile_times.txt | cut -d' ' -f2 | sort -n | sed -n "$(((times + 1) / 2))p"; }

mkdir -p $out
: >$out/empty.c
echo '#include "conc.h"' >$out/declarations.c
: >$out/compile_times.txt
for what in exercise declarations empty; do
    compile $what
done
for ((i = 0; i < times; i++)); do
    for what in exercise declarations empty; do
        timed $what >>$out/compile_times.txt
    done
done

awk -v cc="$cc -O0" -v exercise="$(median exercise)" -v declarations="$(median declarations)" -v empty="$(median empty)" '
function row(what, ms, target) {
    printf "%-34s %8.1f ms %8s %4s\n", what, ms, target ? "< " target : "", target ? (ms < target ? "yes" : "NO") : ""
}
BEGIN {
    printf "%-34s %11s %8s %4s\n", cc, "", "target", "met"
    row("the exercise, to a program", exercise, 400)
    row("the declarations alone", declarations)
    row("an empty file", empty)
    row("the declarations over an empty file", declarations - empty, 20)
}'
