#!/usr/bin/env bash
# Instructions of conc per switch, spawn, timeout: the difference between two runs that do N and 2 N of them, counted by
# valgrind and so the same each time. What the kernel does, and its clock (a system call under valgrind), is not counted.
#   tests/bench/callgrind.sh [NAME...]
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/../.."

names=("$@")
(($#)) || names=(switch2 switch1000 spawn_join spawn_group timeout timer_arm)
program=build/bench/bench_conc
n=100000
armed=100000

if ! command -v valgrind >/dev/null; then
    echo "install valgrind" >&2
    exit 1
fi
mkdir -p build/bench
"${CC:-cc}" -O2 -g tests/bench/bench_conc.c -o $program

# instructions NAME COUNT
instructions() {
    local log
    if ! log=$(valgrind --tool=callgrind --callgrind-out-file=/dev/null $program "$1" "$2" $armed 2>&1); then
        echo "$log" >&2
        return 1
    fi
    awk '/Collected *:/ { print $NF }' <<<"$log"
}

printf '%-12s %s\n' "" "instructions"
for name in "${names[@]}"; do
    once=$(instructions "$name" $n)
    twice=$(instructions "$name" $((2 * n)))
    awk -v name="$name" -v once="$once" -v twice="$twice" -v n=$n \
        'BEGIN { printf "%-12s %.1f\n", name, (twice - once) / n }'
done
