#!/usr/bin/env bash
# Tests servers written with conc with common client programs: redis-benchmark, wrk, curl, nc and socat, with epoll and
# with poll(2). Nothing is timed. CC and CFLAGS choose how to compile; --single uses single_include/conc.h.
# Exit status 77: nothing was tested, because a program is missing or too few descriptors may be open.
set -u
export LC_ALL=C
unset CONC_CLOCK CONC_DEBUG CONC_SEED CONC_TRACE CONC_POLL CONC_STACK http_proxy all_proxy ALL_PROXY

cd "$(dirname "$0")/.." || exit 2
root=$PWD
header=$root/conc.h
case "${1-}" in
"") ;;
--single) header=$root/single_include/conc.h ;;
*) echo "usage: $0 [--single]" >&2 && exit 2 ;;
esac
read -ra cc <<<"${CC:-cc}"
read -ra cflags <<<"${CFLAGS:--O2}"
warnings=(-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wstrict-prototypes -Wundef)
limit=30   # seconds for any one program; fewer once one has hung
most=20000 # descriptors that a program here may open
passed=0
failed=0

lacks() {
    while read -r program package; do
        command -v "$program" >/dev/null || echo "$package"
    done <<<"redis-benchmark redis-tools
wrk wrk
curl curl
nc netcat-openbsd
socat socat"
}

mapfile -t lacking < <(lacks)
if ((${#lacking[@]})); then
    echo "install ${lacking[*]}"
    exit 77
fi
ulimit -n $most 2>/dev/null || ulimit -n "$(ulimit -Hn)"
if [ "$(ulimit -n)" -lt 1200 ]; then
    echo "only $(ulimit -n) descriptors may be open, but 1200 are needed"
    exit 77
fi

files=$(ulimit -n)
tmp=$(mktemp -d) || exit 2
started=()
end_all() {
    ((${#started[@]})) && kill -9 "${started[@]}" 2>/dev/null
    rm -rf "$tmp"
}
trap end_all EXIT
wrong=$tmp/wrong

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

# build NAME: compiles tests/clients/NAME.c, in folders that contain only what it includes
build() {
    local source=$tmp/build/tests/clients/$1.c
    cp "$root/tests/clients/$1.c" "$source" && cp "$header" "$tmp/build/conc.h" || exit 2
    "${cc[@]}" "${cflags[@]}" "${warnings[@]}" "$source" -o "$tmp/$1" 2>"$wrong" || echo "exit status $?" >>"$wrong"
    check "$1 compiles without warnings"
    [ -x "$tmp/$1" ] || exit 1
}

# ---- servers ----

# start PROGRAM ARGUMENTS...: starts a server, whose first output becomes $address, with $host and $port; descriptor 3 reads
# the rest. It may open $files descriptors.
start() {
    mkfifo "$tmp/said" || exit 2
    # --foreground, because otherwise SIGTERM reaches the server twice, and the second one kills it
    (ulimit -n "$files" && exec timeout --foreground -k 5 $((2 * limit)) "$tmp/$1" "${@:2}") \
        >"$tmp/said" 2>"$tmp/messages" &
    server=$!
    started=("$server")
    exec 3<"$tmp/said"
    rm "$tmp/said"
    address=
    read -r -t $limit -u 3 address || echo "it does not print its address" >>"$wrong"
    host=${address%:*}
    port=${address##*:}
    path=${address#unix:}
}

# stop NAME [ANSWERED]: ends the server as a shell would. It must notice the signal and end by itself: it prints a last
# line, and must have answered at least ANSWERED lines.
stop() {
    local status last=
    kill -TERM "$server"
    wait "$server" 2>/dev/null
    status=$?
    started=()
    [ $status -eq 143 ] || echo "exit status $status" >>"$wrong"
    read -r -t $limit -u 3 last || echo "it did not end by itself" >>"$wrong"
    exec 3<&-
    [ -z "${2-}" ] || [ "${last%% *}" -ge "$2" ] || echo "$last, of $2" >>"$wrong"
    cat "$tmp/messages" >>"$wrong"
    check "$1: SIGTERM ends the server cleanly, with exit status 143, and it had no complaints"
}

# ---- clients ----

# tool PROGRAM ARGUMENTS...: writes its output to $tmp/out, its messages to $tmp/err, and a wrong exit status to $wrong
tool() {
    timeout -k 5 $limit "$@" >"$tmp/out" 2>"$tmp/err"
    local status=$?
    [ $status -ne 124 ] || limit=5
    [ $status -eq 0 ] || echo "$1: exit status $status" >>"$wrong"
}

# differs EXPECTED: the differences between $tmp/out and EXPECTED (a file)
differs() { diff "$1" "$tmp/out" | head -n 20 >>"$wrong"; }

# redis REQUESTS ARGUMENTS...: sends that many PINGs, all of which must be answered. It first asks for a configuration,
# which no server here has.
redis() {
    local requests=$1
    shift
    tool redis-benchmark -t ping_inline -n "$requests" "$@" </dev/null
    grep -q "^ *$requests requests completed" "$tmp/out" || echo "not all requests were answered" >>"$wrong"
    grep -hi error "$tmp/out" >>"$wrong"
    grep -vE "Could not fetch server CONFIG|Keepalive disabled" "$tmp/err" >>"$wrong"
    total=$((total + requests))
}

many_pings() {
    local to=(-h "$host" -p "$port")
    total=0
    redis 50000 "${to[@]}" -c 64
    check "$1: redis-benchmark, 64 connections: all requests are answered"
    redis 200000 "${to[@]}" -c 64 -P 16
    check "$1: redis-benchmark, 64 connections, 16 requests at a time: all requests are answered"
    redis 50000 "${to[@]}" -c 1000
    check "$1: redis-benchmark, 1000 connections: all requests are answered"
    redis 3000 "${to[@]}" -c 8 -k 0
    check "$1: redis-benchmark, a connection for each request: all requests are answered"
}

test_pings() {
    start line_server 127.0.0.1:0
    many_pings "$1"
    stop "$1" "$total"

    start line_server "unix:$tmp/socket"
    [ "$path" = "$tmp/socket" ] || echo "its address is $address" >>"$wrong"
    check "$1: a server on a Unix socket says its path"
    total=0
    redis 50000 -s "$path" -c 64
    check "$1: redis-benchmark, 64 connections to a Unix socket: all requests are answered"
    stop "$1, Unix socket" "$total"
}

# With few descriptors, so that a leak is noticed.
test_once() {
    files=100
    start line_server 127.0.0.1:0 once
    tool "$tmp/client" once "$address" 5000 8
    cat "$tmp/err" >>"$wrong"
    check "$1: a connection accepted, served one request and closed, 5000 times"
    stop "$1, one request a connection" 5000

    start line_server 127.0.0.1:0 late
    tool "$tmp/client" once "$address" 1000 8
    cat "$tmp/err" >>"$wrong"
    check "$1: a handler that goes on after it closed its connection does not touch another one"
    stop "$1, late handlers" 1000
    files=$(ulimit -n)
}

# half_closed NAME PROGRAM...: sends lines, closes its side, and must get all of them back
half_closed() {
    local name=$1
    shift
    tool "$@" <"$tmp/few"
    differs "$tmp/few"
    check "$name: all replies arrive after the client closed its side"
    tool "$@" <"$tmp/many"
    differs "$tmp/many"
    check "$name: so do those to 100,000 lines"
    tool "$@" < <(printf 'one\r\ntwo')
    differs <(printf 'one\ntwo\n')
    check "$name: a last line without an end is a line"
    tool "$@" </dev/null
    differs /dev/null
    check "$name: a client that says nothing gets nothing"
}

test_half_closed() {
    printf 'one\ntwo\n\nthree\n' >"$tmp/few"
    seq 100000 >"$tmp/many"
    start line_server 127.0.0.1:0 echo
    half_closed "$1, nc" nc -N "$host" "$port"
    half_closed "$1, socat" socat -t $limit - "TCP:$address"
    stop "$1, half-closed"
    start line_server "unix:$tmp/socket" echo
    half_closed "$1, nc, Unix socket" nc -N -U "$path"
    half_closed "$1, socat, Unix socket" socat -t $limit - "UNIX-CONNECT:$path"
    stop "$1, half-closed, Unix socket"
}

# Clients that misbehave: the others must still be served.
test_rude() {
    start line_server 127.0.0.1:0 echo
    tool socat -u - "TCP:$address" < <(seq 10000)
    tool nc -N "$host" "$port" <"$tmp/few"
    differs "$tmp/few"
    check "$1: a client that leaves without reading its replies does no harm"
    timeout -k 5 $limit nc -N "$host" "$port" < <(head -c 70000 /dev/zero | tr '\0' x) >"$tmp/out" 2>/dev/null
    [ ! -s "$tmp/out" ] || echo "it was answered" >>"$wrong"
    tool nc -N "$host" "$port" <"$tmp/few"
    differs "$tmp/few"
    grep -q "line_server.c" "$tmp/messages" || echo "no message reports it" >>"$wrong"
    check "$1: a line beyond the limit ends its connection with an error, and no other"
    : >"$tmp/messages"
    stop "$1, rude clients"
}

# piled NAME LINES: sends lines without a pause, and reads the answers late
piled() {
    tool "$tmp/client" pile "$address" "$2"
    cat "$tmp/err" >>"$wrong"
    check "$1: $2 lines are answered to a client that reads when it can send no more"
}

test_piles() {
    start line_server 127.0.0.1:0
    piled "$1" 20000
    piled "$1" 2000000
    stop "$1, late readers" 2020002
    start line_server "unix:$tmp/socket"
    piled "$1, Unix socket" 20000
    piled "$1, Unix socket" 2000000
    [ "$(cat "$tmp/out")" -lt 500000 ] || echo "it accepted $(cat "$tmp/out") lines although no answer was read" >>"$wrong"
    check "$1: a server whose answers are not read does not read on"
    stop "$1, late readers, Unix socket" 2020002
}

http() { tool curl --silent --show-error --max-time $limit --noproxy '*' "$@"; }

test_http() {
    local url
    start http_server 127.0.0.1:0
    url=http://$address/

    http "$url"
    differs <(echo "hello, world")
    check "$1: curl gets the page"
    http -w '%{num_connects}\n' "$url" "$url" "$url"
    differs <(printf 'hello, world\n%s\n' 1 && printf 'hello, world\n%s\n' 0 0)
    check "$1: curl gets three pages on one connection"
    http --head -w '%{http_code}\n' "$url"
    tr -d '\r' <"$tmp/out" | grep -qx 'Content-Length: 13' || echo "no length" >>"$wrong"
    [ "$(tail -n 1 "$tmp/out")" = 200 ] || cat "$tmp/out" >>"$wrong"
    grep hello "$tmp/out" >>"$wrong"
    check "$1: curl asks for the headers alone"
    http -w '%{http_code} %{num_connects}\n' "${url}nowhere" "$url"
    differs <(printf 'not found\n404 1\nhello, world\n200 0\n')
    check "$1: curl gets a 404, and the next page on the same connection"
    http --data-binary "@$tmp/many" "$url"
    differs "$tmp/many"
    check "$1: curl posts 600 KB, and gets them back"
    http --http1.0 -w '%{num_connects}\n' "$url" "$url"
    differs <(printf 'hello, world\n%s\n' 1 1)
    check "$1: curl with HTTP/1.0 gets a connection for each page"

    tool wrk -t 1 -c 64 -d 1 "$url"
    grep -E 'Socket errors|Non-2xx' "$tmp/out" >>"$wrong"
    grep -qE '^ *[1-9][0-9]* requests in ' "$tmp/out" || echo "no requests were answered" >>"$wrong"
    check "$1: wrk, 64 connections, has no errors"
    stop "$1, http_server"

    start http_server "unix:$tmp/socket"
    http --unix-socket "$path" http://localhost/
    differs <(echo "hello, world")
    check "$1: curl gets the page by a Unix socket"
    stop "$1, http_server, Unix socket"
}

# hold CONNECTIONS: starts the idle client, which reads commands from 4 and writes to 5
hold() {
    mkfifo "$tmp/told" "$tmp/tells" || exit 2
    timeout -k 5 $((2 * limit)) "$tmp/client" idle "$address" "$1" <"$tmp/told" >"$tmp/tells" 2>"$tmp/idle_err" &
    idle_client=$!
    started+=("$idle_client")
    exec 4>"$tmp/told" 5<"$tmp/tells"
    rm "$tmp/told" "$tmp/tells"
}

# tell LINE ANSWER: sends the idle client a line ("" for none), and waits for its answer
tell() {
    local said=
    [ -z "$1" ] || (echo "$1" >&4) # SIGPIPE would end the subshell alone
    read -r -t $limit -u 5 said
    [ "$said" = "$2" ] || echo "the idle client answered \"$said\"" >>"$wrong"
}

# test_idle NAME CONNECTIONS
test_idle() {
    local idle=$(($(ulimit -n) - 200))
    [ $idle -le "$2" ] || idle=$2
    start line_server 127.0.0.1:0
    hold "$idle"
    total=0
    tell "" "$idle held"
    check "$1: $idle connections, each served once, are held"
    redis 20000 -h "$host" -p "$port" -c 64
    check "$1: redis-benchmark, 64 connections, while $idle are idle: all requests are answered"
    tell ask "$idle answered"
    check "$1: $idle connections that were idle are served again"
    stop "$1, $idle connections open" $((total + 2 * idle))
    tell end "$idle ended"
    exec 4>&-
    wait "$idle_client" || echo "the idle client: exit status $?" >>"$wrong"
    exec 5<&-
    cat "$tmp/idle_err" >>"$wrong"
    check "$1: each of $idle connections was closed when the server ended"
}

mkdir -p "$tmp/build/tests/clients"
: >"$wrong"
for program in client line_server http_server; do
    build $program
done
for backend in epoll poll; do
    export CONC_POLL=$backend
    test_pings $backend
    test_once $backend
    test_half_closed $backend
    test_rude $backend
    test_piles $backend
    test_http $backend
    if [ $backend = epoll ]; then
        test_idle epoll 10000
    else
        test_idle poll 1000
    fi
done

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
