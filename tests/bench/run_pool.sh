#!/usr/bin/env bash
# What a job costs on a thread or in a process, and what it costs the loop: builds the benchmarks of conc_pool.h and of
# its peers, runs them in turn, and prints one table: medians and minima of the rounds, and the targets.
#   tests/bench/run_pool.sh [--quick] [ROUNDS]
# ROUNDS is 5 unless given; each takes a minute. --quick: one round with small counts, to see that all works.
# Debian packages that are missing are installed when that needs no password; otherwise the peer is left out.
set -euo pipefail
# shellcheck source=tests/bench/common.sh
source "$(dirname "$0")/common.sh"

results=$out/pool_results.txt
names=(trip trip_idle jobs proc_trip proc_map proc_big beat_idle beat_threads beat_procs)
peers=(conc)
limit=120 # seconds for any one program

# ---- packages ----

have() {
    case $1 in
    g++) command -v g++ ;;
    golang-go) command -v go ;;
    libtbb-dev) g++ -E -include oneapi/tbb/task_group.h -x c++ /dev/null ;;
    libuv1-dev) "$cc" -E -include uv.h -x c /dev/null ;;
    python3) python3 -c 'import sys; sys.exit(sys.version_info < (3, 8))' ;;
    esac >/dev/null 2>&1
}

# ---- building ----

build() {
    case $1 in
    conc) "$cc" -O2 -pthread tests/bench/pool/pool_conc.c -o $out/pool_conc ;;
    tbb) g++ -O2 tests/bench/pool/pool_tbb.cpp -o $out/pool_tbb -ltbb ;;
    libuv) "$cc" -O2 tests/bench/pool/pool_libuv.c -o $out/pool_libuv -luv ;;
    go) go build -o $out/pool_go tests/bench/pool/pool_go.go ;;
    python) ;; # nothing to build
    esac
}

# ---- running ----

program() {
    local command=("$out/pool_$1")
    [[ $1 != python ]] || command=(python3 tests/bench/pool/pool_python.py)
    shift
    timeout $limit "${command[@]}" "$@"
}

# The count for NAME; nothing for the program's own.
count() {
    [[ -n $quick ]] || return 0
    case $1 in
    jobs | proc_map) echo 20000 ;;
    proc_big) echo 1 ;;
    trip_idle) echo 50 ;;
    beat_*) echo 200 ;;
    *) echo 1000 ;;
    esac
}

# Adds "PEER NAME VALUE UNIT" lines to the results. What conc's program measures without conc is of a peer of its own.
run_one() {
    local peer=$1 name=$2 lines
    program "$peer" | grep -x "$name" >/dev/null || return 0
    # shellcheck disable=SC2046 # no count, no argument
    if lines=$(program "$peer" "$name" $(count "$name")); then
        awk -v peer="$peer" '{ print sub(/_bare/, "", $1) ? "bare" : peer, $0 }' <<<"$lines" >>$results
    else
        echo "$peer $name failed" >&2
        [[ $peer != conc ]] || failed=1
    fi
}

# ---- the table ----

table() {
    awk -v peers="conc bare ${peers[*]:1}" -v quick="$quick" '
    function sort(list, n,    i, j, t) {
        for (i = 2; i <= n; i++)
            for (j = i; j > 1 && list[j - 1] > list[j]; j--) {
                t = list[j]; list[j] = list[j - 1]; list[j - 1] = t
            }
    }
    function summarize(peer, name,    i, n, list) {
        n = rounds[peer, name]
        for (i = 1; i <= n; i++)
            list[i] = value[peer, name, i]
        sort(list, n)
        least = list[1]
        median = n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2
    }
    function show(x) { return sprintf(x < 1 ? "%.3f" : x < 10 ? "%.2f" : x < 1000 ? "%.1f" : "%.0f", x) }
    function columns(peer, name) {
        if (!rounds[peer, name])
            return sprintf(" %8s %8s", "-", "")
        summarize(peer, name)
        return sprintf(" %8s %8s", show(median), show(least))
    }
    # kind: "most" or "least"; "": no target
    function row(name, kind, target,    i, met) {
        if (!rounds["conc", name])
            return
        summarize("conc", name)
        met = kind == "" || quick ? "" : (kind == "most" ? median <= target : median >= target) ? "yes" : "NO"
        printf "%-16s %-3s%s  %-9s %-3s", name, unit[name], columns("conc", name), \
            kind == "" ? "" : kind " " target, met
        for (i = 2; i <= count; i++)
            printf "%s", columns(peer[i], name)
        print ""
    }
    function beats(name) {
        row(name "_p50")
        row(name "_p99", "most", 1)
        row(name "_max")
    }
    { value[$1, $2, ++rounds[$1, $2]] = $3; unit[$2] = $4 }
    END {
        count = split(peers, peer, " ")
        printf "%-16s %-3s %8s %8s  %-9s %-3s", "", "", "conc", "min", "target", "met"
        for (i = 2; i <= count; i++)
            printf " %8s %8s", peer[i], "min"
        print ""
        row("trip", "most", 2)
        row("trip_idle")
        row("trip_idle_ratio", "most", 1.1)
        row("jobs", "most", 0.1)
        print ""
        row("proc_trip", "most", 5)
        row("proc_map", "most", 1)
        row("proc_big")
        row("memcpy")
        row("proc_big_ratio", "least", 0.5)
        print ""
        beats("beat_idle")
        beats("beat_threads")
        beats("beat_procs")
        print ""
        print "Medians and minima of the rounds. bare: without a library, in the program of conc and in turn with it"
        print "trip: from a task to a thread of the pool and back, one at a time, the median; goroutines share a thread"
        print "trip_idle: each after 2 ms of sleep; bare: futex to a thread, eventfd and epoll back; ratio: conc/bare"
        print "jobs: for each of many empty ones, submitted and waited for"
        print "proc_trip: 64 bytes to a process and back; proc_map: for each of many elements of 64 bytes"
        print "proc_big: 100 MB to a process and back; memcpy: 100 MB once; ratio: of the rates, counting both ways"
        print "beat: how late a sleep of 1 ms ends while nothing, 2 threads or 2 processes compute; bare: nanosleep"
        if (quick)
            print "Small counts: these figures mean nothing."
    }' $results
}

mkdir -p $out
: >$results
failed=0
build conc
install_packages g++ golang-go libtbb-dev libuv1-dev python3
add_peer tbb g++ libtbb-dev
add_peer libuv libuv1-dev
add_peer go golang-go
add_peer python python3
run_in_turn
table
exit $failed
