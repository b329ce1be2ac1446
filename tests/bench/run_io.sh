#!/usr/bin/env bash
# What a request costs a server: builds the same line server with conc and with its peers, has them serve the same
# clients in turn, and prints one table: medians, the ratio conc/peer, and the targets.
#   tests/bench/run_io.sh [--quick] [ROUNDS]
# ROUNDS is 5 unless given. --quick: one round with small counts, to see that all works.
# The figure is the processor time of the server alone, as the client is what limits the rate; the two are kept on
# processors of their own. Debian packages that are missing are installed when that needs no password; otherwise the
# peer is left out, and without redis-tools nothing can be measured.
set -euo pipefail
# shellcheck source=tests/bench/common.sh
source "$(dirname "$0")/common.sh"
unset CONC_CLOCK CONC_DEBUG CONC_SEED CONC_TRACE CONC_POLL CONC_STACK

results=$out/io_results.txt
said=$out/io_said
names=(ping64 ping64_p16 ping1000 once idle)
peers=(conc raw)
limit=120 # seconds for any one program
idle=10000

# ---- packages ----

have() {
    case $1 in
    redis-tools) command -v redis-benchmark ;;
    golang-go) command -v go ;;
    libuv1-dev) "$cc" -E -include uv.h -x c /dev/null ;;
    python3-uvloop) python_with_uvloop ;;
    esac >/dev/null 2>&1
}

# The package is for the system's Python, which need not be the first.
python_with_uvloop() {
    local python
    for python in python3 /usr/bin/python3; do
        "$python" -c 'import sys, uvloop; print(sys.executable)' 2>/dev/null && return
    done
    return 1
}

# ---- building ----

build() {
    case $1 in
    client) "$cc" -O2 tests/clients/client.c -o $out/io_client ;;
    conc) "$cc" -O2 tests/clients/line_server.c -o $out/io_conc ;;
    raw) "$cc" -O2 tests/bench/io/server_raw.c -o $out/io_raw ;;
    libuv) "$cc" -O2 tests/bench/io/server_libuv.c -o $out/io_libuv -luv ;;
    go) go build -o $out/io_go tests/bench/io/server_go.go ;;
    uvloop) ;; # nothing to build
    esac
}

# ---- one server at a time ----

# The first two processors that may be used; one serves for both where there is no other.
choose_processors() {
    local list part all=()
    list=$(taskset -cp $$)
    for part in $(tr , ' ' <<<"${list##*: }"); do
        mapfile -t -O ${#all[@]} all < <(seq "${part%-*}" "${part#*-}")
    done
    server_on=${all[0]}
    client_on=${all[1]:-$server_on}
    [[ $client_on != "$server_on" ]] || echo "one processor: server and client share it, and the figures say little"
}

# start PEER MODE: its process in $server, its address in $address, $host and $port
start() {
    local program=("$out/io_$1")
    [[ $1 != uvloop ]] || program=("$python" tests/bench/io/server_uvloop.py)
    rm -f "$said"
    mkfifo "$said"
    taskset -c "$server_on" "${program[@]}" 127.0.0.1:0 "$2" >"$said" &
    server=$!
    exec 3<"$said"
    read -r -t $limit -u 3 address || return 1
    host=${address%:*}
    port=${address##*:}
}

stop() {
    kill "$server" 2>/dev/null || true
    { wait "$server" || true; } 2>/dev/null
    exec 3<&- 4>&- 5<&-
    server=
}

client() { timeout $limit taskset -c "$client_on" "$@"; }

# Sets rate, the requests a second.
redis() {
    local requests=$1
    shift
    client redis-benchmark -h "$host" -p "$port" -t ping_inline --csv -n "$requests" "$@" >$out/io_out 2>$out/io_err ||
        return 1
    rate=$(awk -F '"' '$2 == "PING_INLINE" { print $4 }' $out/io_out)
    [[ -n $rate ]]
}

once() { rate=$(client $out/io_client once "$address" "$1" "$2"); }

# What the server has used, once it rests: it may still be closing connections when the client has ended.
processor_time() {
    local now=0 before tries
    for ((tries = 0; tries < 100; tries++)); do
        before=$now
        now=$($out/io_client cpu "$server") || return 1
        ((now - before >= 100000)) || break
        sleep 0.02
    done
    echo "$now"
}

# measure NAME COMMAND REQUESTS ARGUMENTS...: a round to warm up, then one that counts
measure() {
    local name=$1 command=$2 requests=$3 before after
    shift 3
    "$command" $((requests / 20)) "$@" || return 1
    before=$(processor_time) || return 1
    "$command" "$requests" "$@" || return 1
    after=$(processor_time) || return 1
    awk -v name="$name" -v ns=$((after - before)) -v n="$requests" -v rate="$rate" \
        'BEGIN { print name, ns / n / 1000, "us"; print name "_rate", rate / 1000, "1000/s" }' >>$out/io_figures
}

resident_kilobytes() { awk '/^VmRSS:/ { print $2 }' "/proc/$server/status"; }

# The connections are served once before they idle, so that what they leave behind is counted.
measure_idle() {
    local before after requests=$1 count idle_client
    client $out/io_client idle "$address" 1 </dev/null >/dev/null || return 1
    before=$(resident_kilobytes)
    rm -f $out/io_told $out/io_tells
    mkfifo $out/io_told $out/io_tells
    client $out/io_client idle "$address" $idle <$out/io_told >$out/io_tells &
    idle_client=$!
    exec 4>$out/io_told 5<$out/io_tells
    read -r -t $limit -u 5 count _ || return 1
    after=$(resident_kilobytes)
    awk -v kb=$((after - before)) -v n="$count" 'BEGIN { print "idle", kb / n, "KB" }' >>$out/io_figures
    measure busy_idle redis "$requests" -c 64 || return 1
    exec 4>&- 5<&-
    wait $idle_client
}

# The same with and without them, each on a server of its own.
measure_busy() {
    measure busy redis "$1" -c 64 || return 1
    stop
    start "$2" pong && measure_idle "$1"
}

# run_one PEER NAME
run_one() {
    local ok=1 thousands=1000
    [[ -z $quick ]] || thousands=20
    : >$out/io_figures
    if [[ $2 == once ]]; then
        start "$1" once || ok=
    else
        start "$1" pong || ok=
    fi
    [[ -z $ok ]] || case $2 in
    ping64) measure ping64 redis $((150 * thousands)) -c 64 ;;
    ping64_p16) measure ping64_p16 redis $((1000 * thousands)) -c 64 -P 16 ;;
    ping1000) measure ping1000 redis $((150 * thousands)) -c 1000 ;;
    once) measure once once $((20 * thousands)) 8 ;;
    idle) measure_busy $((50 * thousands)) "$1" ;;
    esac || ok=
    if [[ -n $ok ]]; then
        awk -v peer="$1" -v round="$round" '{ print peer, round, $0 }' $out/io_figures >>$results
    else
        echo "$1 $2 failed" >&2
        [[ $1 != conc ]] || failed=1
    fi
    stop
}

# ---- the table ----

table() {
    awk -v peers="${peers[*]}" -v rounds="$rounds" -v quick="$quick" -v idle=$idle '
    function median(list, n,    i, j, t) {
        for (i = 2; i <= n; i++)
            for (j = i; j > 1 && list[j - 1] > list[j]; j--) {
                t = list[j]; list[j] = list[j - 1]; list[j - 1] = t
            }
        return n == 0 ? "" : n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2
    }
    function figure(peer, name,    i, n, list) {
        for (i = 1; i <= rounds; i++)
            if ((peer, name, i) in value)
                list[++n] = value[peer, name, i]
        return median(list, n + 0)
    }
    # Round by round, as the machine may be slower in one than in another. Of two things of one peer, or of two peers.
    function ratio(peer1, name1, peer2, name2,    i, n, list) {
        for (i = 1; i <= rounds; i++)
            if (value[peer1, name1, i] > 0 && value[peer2, name2, i] > 0)
                list[++n] = value[peer1, name1, i] / value[peer2, name2, i]
        return median(list, n + 0)
    }
    function show(x) { return x == "" ? "-" : sprintf(x < 10 ? "%.2f" : x < 1000 ? "%.1f" : "%.0f", x) }
    function result(ok, text) { return sprintf("  %-22s %s", text, quick ? "" : ok ? "yes" : "NO") }
    function peer_columns(name, no_ratio,    i) {
        for (i = 2; i <= count; i++)
            printf " %9s %6s", show(figure(peer[i], name)), no_ratio ? "" : show(ratio("conc", name, peer[i], name))
    }
    # most: of conc/raw; below: a peer that conc has to be below
    function row(name, most, below,    own, ok, text) {
        own = figure("conc", name)
        if (own == "")
            return
        ok = !most || ratio("conc", name, "raw", name) <= most
        text = most ? show(most) " raw" : ""
        if (below && figure(below, name) != "") {
            ok = ok && ratio("conc", name, below, name) < 1
            text = text ", below " below
        }
        printf "%-16s %-6s %8s", name, unit[name], show(own)
        peer_columns(name)
        print text ? result(ok, text) : ""
    }
    function row_idle(most,    own) {
        own = figure("conc", "idle")
        if (own == "")
            return
        printf "%-16s %-6s %8s", "idle", "KB", show(own)
        peer_columns("idle", 1)
        print result(own <= most, show(most) " KB")
    }
    # The rate with idle connections over that without
    function row_kept(least,    i, own) {
        own = ratio("conc", "busy_idle_rate", "conc", "busy_rate")
        if (own == "")
            return
        printf "%-16s %-6s %8s", "rate_kept", "", show(own)
        for (i = 2; i <= count; i++)
            printf " %9s %6s", show(ratio(peer[i], "busy_idle_rate", peer[i], "busy_rate")), ""
        print result(own >= least, "at least " show(least))
    }
    { value[$1, $3, $2] = $4; unit[$3] = $5 }
    END {
        count = split(peers, peer, " ")
        printf "%-16s %-6s %8s", "", "", "conc"
        for (i = 2; i <= count; i++)
            printf " %9s %6s", peer[i], "ratio"
        printf "  %-22s %s\n", "target", "met"
        row("ping64", 1.05, "libuv")
        row("ping64_p16", 1.05)
        row("ping1000")
        row("once", 1.1)
        row_idle(6)
        row("busy")
        row("busy_idle")
        row_kept(0.95)
        print ""
        row("ping64_rate")
        row("ping64_p16_rate")
        row("ping1000_rate")
        row("once_rate")
        row("busy_rate")
        row("busy_idle_rate")
        print ""
        print "us: processor time of the server for one request, user and system. ratio: conc/peer, median of rounds"
        print "ping64, ping64_p16, ping1000: redis-benchmark, 64 or 1000 connections, 16 requests at a time in p16"
        print "once: 8 connections at a time, each accepted, served one request, and closed"
        print "idle: resident memory for each of " idle " connections that were served once"
        print "busy, busy_idle: 64 connections, without those, and while those are idle"
        print "rate_kept: the rate with them over that without"
        if (quick)
            print "Small counts: these figures mean nothing."
    }' $results
}

mkdir -p $out
: >$results
failed=0
server=
trap '[[ -z $server ]] || kill "$server" 2>/dev/null; rm -f $out/io_said $out/io_told $out/io_tells' EXIT
install_packages redis-tools golang-go libuv1-dev python3-uvloop
if ! have redis-tools; then
    echo "install redis-tools" >&2
    exit 1
fi
ulimit -n 20000 2>/dev/null || ulimit -n "$(ulimit -Hn)"
(($(ulimit -n) > idle + 200)) || idle=$(($(ulimit -n) - 200))
choose_processors
build client
build conc
build raw
add_peer libuv libuv1-dev
add_peer go golang-go
python=$(python_with_uvloop || true)
add_peer uvloop python3-uvloop
run_in_turn
table
exit $failed
