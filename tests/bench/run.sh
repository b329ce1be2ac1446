#!/usr/bin/env bash
# Builds the benchmarks of conc and of its peers, runs them in turn, and prints one table: medians, the ratio peer/conc, and
# the targets.
#   tests/bench/run.sh [--quick] [ROUNDS]
# ROUNDS is 5 unless given; the sleepers take part in at most 3. --quick: one round with small counts, to see that all works.
# Debian packages that are missing are installed when that needs no password; otherwise the peer is left out.
set -euo pipefail
# shellcheck source=tests/bench/common.sh
source "$(dirname "$0")/common.sh"

results=$out/results.txt
names=(clock switch2 switch1000 spawn_join spawn_group timeout timer_arm lock lock_pass queue1 queue1000 priority
    trace_event sleepers)
peers=(conc)

# ---- packages ----

have() {
    case $1 in
    g++) command -v g++ ;;
    golang-go) command -v go ;;
    python3) python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ;;
    libst-dev) "$cc" -E -include st.h -x c /dev/null ;;
    libboost-fiber-dev) g++ -E -include boost/fiber/all.hpp -x c++ /dev/null ;;
    esac >/dev/null 2>&1
}

# ---- building ----

build() {
    case $1 in
    conc) "$cc" -O2 tests/bench/bench_conc.c -o $out/bench_conc ;;
    go) go build -o $out/bench_go tests/bench/bench_go.go ;;
    fiber) g++ -O2 tests/bench/bench_fiber.cpp -o $out/bench_fiber -lboost_fiber -lboost_context ;;
    st) "$cc" -O2 tests/bench/bench_st.c -o $out/bench_st -lst ;;
    asyncio) ;; # nothing to build
    esac
}

# ---- running ----

program() {
    local peer=$1
    shift
    case $peer in
    asyncio) python3 tests/bench/bench_asyncio.py "$@" ;;
    *) "$out/bench_$peer" "$@" ;;
    esac
}

available_gigabytes() { awk '/^MemAvailable:/ { print int($2 * 1024 / 1e9) }' /proc/meminfo; }

# The counts for program PEER NAME; nothing for its own defaults.
counts() {
    case $2 in
    timer_arm) [[ -z $quick ]] || echo "20000 20000" ;;
    sleepers*)
        if [[ -n $quick ]]; then
            echo 10000
        elif [[ $1 == fiber ]] && (($(available_gigabytes) < 12)); then
            echo 100000 # a million take 9.2 GB
        fi
        ;;
    *) [[ -z $quick ]] || echo 20000 ;;
    esac
}

# Adds "PEER NAME VALUE UNIT" lines to the results.
run_one() {
    local peer=$1 name=$2 count lines
    program "$peer" | grep -x "$name" >/dev/null || return 0
    read -ra count <<<"$(counts "$peer" "$name")"
    if lines=$(program "$peer" "$name" "${count[@]}"); then
        awk -v peer="$peer" '{ print peer, $0 }' <<<"$lines" >>$results
    else
        echo "$peer $name failed" >&2
        [[ $peer != conc ]] || failed=1
    fi
}

run_all() {
    local round name peer
    for ((round = 1; round <= rounds; round++)); do
        echo "round $round of $rounds" >&2
        for name in "${names[@]}"; do
            [[ $name != sleepers* ]] || ((round <= 3)) || continue
            for peer in "${peers[@]}"; do
                run_one "$peer" "$name"
            done
        done
    done
}

# ---- the table ----

table() {
    awk -v peers="${peers[*]}" -v quick="$quick" '
    function median(key,    i, j, t, n, v) {
        n = count[key]
        for (i = 1; i <= n; i++)
            v[i] = value[key, i]
        for (i = 2; i <= n; i++)
            for (j = i; j > 1 && v[j - 1] > v[j]; j--) {
                t = v[j]; v[j] = v[j - 1]; v[j - 1] = t
            }
        return n % 2 ? v[(n + 1) / 2] : (v[n / 2] + v[n / 2 + 1]) / 2
    }
    function show(x) { return sprintf(x < 10 ? "%.2f" : x < 1000 ? "%.1f" : "%.0f", x) }
    # The figure that the target, or the ratio, speaks of.
    function figure(peer, name) { return median(peer " " name) - (name ~ /^sleepers.*_time$/ ? 1 : 0) }
    function comparable(peer, name) {
        if (name !~ /^sleepers/)
            return 1
        return name !~ /_alive$/ && median(peer " sleepers_count") == median("conc sleepers_count")
    }
    function peer_cell(peer, name,    ratio) {
        if (!count[peer " " name])
            return "-"
        ratio = "-"
        if (comparable(peer, name) && figure("conc", name) > 0)
            ratio = show(figure(peer, name) / figure("conc", name)) "x"
        return show(median(peer " " name)) "  " ratio
    }
    function row(name, kind, target,    i, n, list, own, met) {
        if (!count["conc " name])
            return
        own = figure("conc", name)
        if (kind == "over clock")
            own -= median("conc clock")
        if (kind == "over 1 s" && count["go " name])
            target = figure("go", name) / 2
        met = target == "" || quick ? "" : own <= target ? "yes" : "NO"
        printf "%-22s %-5s %9s %9s  %-10s %7s %4s", name, unit["conc " name], show(median("conc " name)), \
            show(own), kind, target == "" ? "" : show(target), met
        n = split(peers, list, " ")
        for (i = 2; i <= n; i++)
            printf " %18s", peer_cell(list[i], name)
        print ""
    }
    { key = $1 " " $2; value[key, ++count[key]] = $3; unit[key] = $4 }
    END {
        printf "%-22s %-5s %9s %9s  %-10s %7s %4s", "", "", "conc", "figure", "", "target", "met"
        n = split(peers, list, " ")
        for (i = 2; i <= n; i++)
            printf " %18s", list[i] "  ratio"
        print ""
        row("clock")
        row("switch2", "", 6)
        row("switch1000", "", 9)
        row("spawn_join", "", 20)
        row("spawn_group")
        row("timeout", "over clock", 20)
        row("timer_arm", "over clock", 40)
        row("lock", "", 3)
        row("lock_pass", "", 20)
        row("queue1", "", 20)
        row("queue1000", "", 8)
        row("priority", "", 150)
        row("trace_event", "", 100)
        row("sleepers_time", "over 1 s")
        row("sleepers_memory", "", 4.4)
        row("sleepers_alive")
        print ""
        print "Medians. ratio: peer/conc; of sleepers_time, the time over the 1 s, whose target is half of that of Go."
        print "alive: the most sleepers at once; where it is below the number of tasks, some ended before others began."
        for (i = 1; i <= n; i++)
            if (count[list[i] " sleepers_count"])
                printf "%s: %d sleepers\n", list[i], median(list[i] " sleepers_count")
        if (quick)
            print "Small counts: these figures mean nothing."
    }' $results
}

mkdir -p $out
: >$results
failed=0
build conc
install_packages g++ golang-go libboost-fiber-dev libst-dev python3
add_peer go golang-go
add_peer fiber g++ libboost-fiber-dev
add_peer st libst-dev
add_peer asyncio python3
run_all
table
exit $failed
