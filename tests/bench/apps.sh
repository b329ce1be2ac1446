#!/usr/bin/env bash
# What programs of the course cost beside what one would write without conc: builds both, has them do the same work in
# turn, and prints one table: medians of the time on the clock and on the processors, and ratios.
#   tests/bench/apps.sh [--quick] [ROUNDS] [WORK...]
# ROUNDS is 9 unless given. --quick: one round with small counts, to see that all works. The works; none: all.
#   sql    1000 inserts at once over 10 connections to one PostgreSQL, which the script starts; asyncpg as it comes, and
#          without the statement that its pool adds to each; Go with lib/pq. Those prepare the statement once on each
#          connection; conc sends it as text each time, which is more work for the server
#   cache  gets of 1000 keys from a cache with LRU and a limit of age, which has them all; a Python cache on OrderedDict
#   fetch  5000 GETs of 1000 bytes, 50 at a time, from one server on loopback; libcurl's multi interface in a loop of its
#          own, with a handle for each request as fetch.h has, and with 50 that are used again
#   tasks  5000 tasks that do nothing, over five worker processes on one Redis with an append-only file; Go with redigo calls
#          the same functions in Redis, or uses a stream alone (go_stream), which has none of what the task queue can; RQ as it
#          comes, with a process for each task, and its SimpleWorker: a tenth of the tasks, and the figures multiplied by ten. The
#          processor time is that of producer and workers
#   etl    100,000 records of two CSV files, a SQLite table and a feed over TCP, checked, converted, and written to SQLite
#          and to JSON lines, with checkpoints; Python with asyncio, a pool of processes, and threads that load
#   scrape 1500 pages of 10 sites, 10 requests at once, robots.txt obeyed, into SQLite: the course's scraper; aiohttp with
#          lxml; Scrapy
#   dash   2000 dashboards, 20 at a time, of four calls at once to the services of the course's orchestrator: the calls
#          alone, with aiohttp, with Go's net/http; and, as a peer of conc's own, the whole orchestrator, with its circuit
#          breakers, caches and traces
#   web    the route /users/{id} of examples/12_projects/01_web_framework.c: JSON with a parameter, 64 clients; net/http;
#          FastAPI on uvicorn; nginx, which sends constants. One processor for each, another for the clients. A table of
#          its own has requests a second of processor time, the latency at half of the rate that was reached, and memory
#   chat   500 users in rooms of 20, each of whom says something once a second for 10 s: 10,000 messages a second are delivered;
#          gorilla/websocket; Python's websockets. The load of the course's chat server talks to all three, on the same two
#          processors. It counts from when all have joined; a server that it has to wait for more than 5 s in the end does not
#          hold the rate, and fails. The peers have rooms, order and history; the course's server has presence, limits of users
#          and TLS in addition. A table of its own has the latency, and messages a second of the server's processor time
# A program connects, and does the work once or a part of it, before it measures itself: no start-up is in the figures,
# and no server. It then prints how much it has done and the sum of its results, which have to be those of conc.
# Nothing is installed: the script says what is missing. The figures of all rounds stay in build/bench/apps_results.txt.
set -euo pipefail
names=(sql cache fetch tasks etl scrape dash web chat)
more_usage=" [WORK...]; the works: ${names[*]}"
works=() options=()
for word in "$@"; do
    if [[ " ${names[*]} " == *" $word "* ]]; then
        works+=("$word")
    else
        options+=("$word")
    fi
done
((${#works[@]} == 0)) || names=("${works[@]}")
((${#options[@]})) || options=(9)
set -- "${options[@]}"
# shellcheck source=tests/bench/common.sh
source "$(dirname "$0")/common.sh"
unset CONC_CLOCK CONC_DEBUG CONC_SEED CONC_TRACE CONC_POLL CONC_STACK
unset http_proxy HTTP_PROXY all_proxy ALL_PROXY

sources=tests/bench/apps
results=$out/apps_results.txt
web_results=$out/apps_web_results.txt
python=${PYTHON:-/usr/bin/python3} # the packages are for the system's, which need not be the first
limit=300                          # seconds for any one program
services=(users orders recommendations notifications)
peers=()
operations=1000 passes=1000 requests=5000 tasks=5000 lines=25025 # lines: of each source; one of 1001 is bad
pages=1500 dashboards=2000 answers=40000 chatters=500 talk=10 # talk: seconds
[[ -z $quick ]] || operations=200 passes=20 requests=500 tasks=1000 lines=2002 dashboards=200 answers=2000 chatters=100 talk=2

# ---- packages ----

have() {
    case $1 in
    postgresql) compgen -G '/usr/lib/postgresql/*/bin/initdb' ;;
    libpq-dev) pkg-config libpq ;;
    libhiredis-dev) pkg-config hiredis ;;
    libcurl4-openssl-dev) pkg-config 'libcurl >= 7.87' ;;
    libsqlite3-dev) pkg-config sqlite3 ;;
    libcjson-dev) pkg-config libcjson ;;
    libhttp-parser-dev) "$cc" -E -include http_parser.h -x c /dev/null ;;
    golang-go) command -v go ;;
    golang-github-lib-pq-dev) [[ -d /usr/share/gocode/src/github.com/lib/pq ]] ;;
    python3) "$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' ;;
    golang-github-gomodule-redigo-dev) [[ -d /usr/share/gocode/src/github.com/gomodule/redigo ]] ;;
    golang-github-gorilla-websocket-dev) [[ -d /usr/share/gocode/src/github.com/gorilla/websocket ]] ;;
    python3-asyncpg) "$python" -c 'import asyncpg' ;;
    python3-rq) "$python" -c 'import rq' && command -v rq ;;
    libxml2-dev) pkg-config libxml-2.0 ;;
    uvicorn) "$python" -c 'import uvicorn' ;;
    nginx-light) command -v nginx ;;
    libwslay-dev) "$cc" -E -include wslay/wslay.h -x c /dev/null ;;
    libssl-dev) pkg-config 'libssl >= 3' ;;
    python3-*) "$python" -c "import ${1#python3-}" ;;
    *) command -v "$1" ;;
    esac >/dev/null 2>&1
}

# tell_missing PACKAGE...
tell_missing() {
    local package missing=()
    for package in "$@"; do
        have "$package" || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    echo "missing; to install it on Debian: sudo apt-get install --no-install-recommends ${missing[*]}"
}

# ---- building: a peer is WORK.WHO ----

# compile NAME LIBRARY...
compile() {
    local name=$1
    shift
    # shellcheck disable=SC2046 # several options
    "$cc" -O2 "$sources/$name.c" -o "$out/apps_$name" $( (($# == 0)) || pkg-config --cflags --libs "$@")
}

# compile_go NAME
compile_go() {
    GOPATH=/usr/share/gocode GO111MODULE=off GOFLAGS='' go build -o "$out/apps_$1" "$sources/$1.go"
}

# compile_server SOURCE NAME LIBRARY...: also with http-parser, of which pkg-config does not know
compile_server() {
    local source=$1 name=$2
    shift 2
    # shellcheck disable=SC2046 # several options
    "$cc" -O2 "$source" -o "$out/apps_$name" -lhttp_parser $(pkg-config --cflags --libs "$@")
}

build() {
    case $1 in
    sql.conc) compile sql_conc libpq ;;
    sql.go) compile_go sql_go ;;
    cache.conc) compile cache_conc hiredis ;;
    fetch.conc)
        compile fetch_conc libcurl &&
            "$cc" -O2 $sources/http_server.c -o $out/apps_http_server -lhttp_parser
        ;;
    fetch.libcurl) compile fetch_libcurl libcurl ;;
    tasks.conc) "$cc" -O2 examples/11_apps/06_task_queue.c -o $out/apps_tasks_conc -lhiredis ;;
    tasks.go) compile_go tasks_go ;;
    etl.conc)
        # shellcheck disable=SC2046 # several options
        compile etl_conc sqlite3 libcjson &&
            "$cc" -O2 $sources/etl_sources.c -o $out/apps_etl_sources $(pkg-config --cflags --libs sqlite3 libcjson)
        ;;
    scrape.conc)
        compile_server $sources/scrape_conc.c scrape_conc libxml-2.0 libcurl sqlite3 &&
            compile_server examples/11_apps/03_web_scraper.c web_scraper libxml-2.0 libcurl sqlite3
        ;;
    dash.conc)
        compile_server $sources/dash_conc.c dash_conc libcurl libcjson &&
            compile_server examples/11_apps/04_orchestrator.c orchestrator libcurl libcjson
        ;;
    dash.go) compile_go dash_go ;;
    web.conc)
        "$cc" -O2 examples/12_projects/01_web_framework.c -o $out/apps_web_conc -lhttp_parser -lcjson -lwslay -lssl -lcrypto &&
            "$cc" -O2 $sources/web_load.c -o $out/apps_web_load
        ;;
    web.go) compile_go web_go ;;
    chat.conc) "$cc" -O2 examples/11_apps/07_chat_server.c -o $out/apps_chat_conc -lwslay -lhttp_parser -lcjson -lssl -lcrypto ;;
    chat.go) compile_go chat_go ;;
    *) ;; # nothing to build
    esac
}

# ---- the servers ----

servers=() pipes=() addresses=()

# start COMMAND...: a server that prints its address, here in $address, and ends when its stdin does
start() {
    local to from
    mkfifo "$box/hears" "$box/says"
    "$@" <"$box/hears" >"$box/says" &
    servers+=($!)
    exec {to}>"$box/hears" {from}<"$box/says"
    pipes+=("$to")
    rm "$box/hears" "$box/says"
    read -r -t 60 -u "$from" address || exit 1
}

# shellcheck disable=SC2317 # the trap calls it
stop_all() {
    local pipe
    for pipe in "${pipes[@]}"; do
        exec {pipe}>&-
    done
    ((${#servers[@]} == 0)) || wait "${servers[@]}" || true
    rm -rf "$box"
}

start_servers() {
    if [[ " ${peers[*]} " == *" sql.conc "* ]]; then
        start "$python" $sources/postgres_server.py
        url=$address
    fi
    if [[ " ${peers[*]} " == *" fetch.conc "* ]]; then
        start $out/apps_http_server
        http=$address
    fi
    if [[ " ${peers[*]} " == *" tasks.conc "* ]]; then
        start "$python" $sources/redis_server.py
        redis=$address
    fi
    if [[ " ${peers[*]} " == *" etl.conc "* ]]; then
        start $out/apps_etl_sources "$box/in" $lines 2>/dev/null
        feed=$address
    fi
    if [[ " ${peers[*]} " == *" scrape.conc "* ]]; then
        # shellcheck disable=SC2016 # the other bash expands it
        start bash -c '"$0" --site 127.0.0.1:0 & cat; kill $!' $out/apps_web_scraper
        sites=${address##*localhost:} sites=${sites%%/*} # their port
    fi
    if [[ " ${peers[*]} " == *" dash.conc "* ]]; then
        for service in "${services[@]}"; do
            start $out/apps_orchestrator --child "$service" 127.0.0.1:0 delay=0 trace=/dev/null
            addresses+=("${address##* }")
        done
    fi
}

# ---- running ----

program() {
    local command=()
    case $1 in
    sql.conc) command=("$out/apps_sql_conc" "$url" "$operations") ;;
    sql.asyncpg) command=("$python" "$sources/sql_python.py" "$url" "$operations") ;;
    sql.asyncpg_noreset) command=("$python" "$sources/sql_python.py" "$url" "$operations" noreset) ;;
    sql.go) command=("$out/apps_sql_go" "$url" "$operations") ;;
    cache.conc) command=("$out/apps_cache_conc" "$passes") ;;
    cache.python) command=("$python" "$sources/cache_python.py" "$passes") ;;
    fetch.conc) command=("$out/apps_fetch_conc" "$http" "$requests") ;;
    fetch.libcurl) command=("$out/apps_fetch_libcurl" "$http" "$requests") ;;
    fetch.libcurl_reuse) command=("$out/apps_fetch_libcurl" "$http" "$requests" reuse) ;;
    tasks.*) command=("$python" "$sources/tasks_run.py" "${1#*.}" "$redis" "$tasks") ;;
    etl.conc) command=("$out/apps_etl_conc" "$box/in" "$feed" "$box/out") ;;
    etl.python) command=("$python" "$sources/etl_python.py" "$box/in" "$feed" "$box/out") ;;
    scrape.conc) command=("$out/apps_scrape_conc" "$sites") ;;
    scrape.*) command=("$python" "$sources/scrape_${1#*.}.py" "$sites") ;;
    dash.conc) command=("$out/apps_dash_conc" "$dashboards" "${addresses[@]}") ;;
    dash.whole) command=("$out/apps_dash_conc" "$dashboards" "${addresses[@]}" whole) ;;
    dash.aiohttp) command=("$python" "$sources/dash_aiohttp.py" "$dashboards" "${addresses[@]}") ;;
    dash.go) command=("$out/apps_dash_go" "$dashboards" "${addresses[@]}") ;;
    web.*) command=("$python" "$sources/web_run.py" "${1#*.}" "$out" "$answers" "$web_results") ;;
    chat.*) command=("$python" "$sources/chat_run.py" "${1#*.}" "$out" "$chatters" "$talk") ;;
    esac
    rm -rf "$box/out"
    timeout --foreground $limit "${command[@]}"
}

# run_one WORK.WHO WORK: adds "ROUND WORK WHO MS MS COUNT/SUM" to the results, with two percentiles if there are any; the first
# MS is - if the time on the clock is no result
run_one() {
    local line
    [[ $1 == "$2".* ]] || return 0
    if line=$(program "$1"); then
        echo "$round $2 ${1#*.} $line" >>$results
    else
        echo "$1 failed" >&2
        failed=1
    fi
}

# ---- the table ----

# Fails if somebody has done something else.
table() {
    awk -v peers="${peers[*]}" -v rounds="$rounds" -v quick="$quick" \
        -v counts="sql $operations cache $((passes * 1000)) fetch $requests tasks $tasks chat $((chatters * 20 * talk))" \
        -v more="etl $((4 * (lines - lines / 1001))) scrape $pages dash $dashboards web $answers" '
    function median(list, n,    i, j, t) {
        for (i = 2; i <= n; i++)
            for (j = i; j > 1 && list[j - 1] > list[j]; j--) {
                t = list[j]; list[j] = list[j - 1]; list[j - 1] = t
            }
        return n == 0 ? "" : n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2
    }
    function figure(work, who, what,    i, n, list) {
        for (i = 1; i <= rounds; i++)
            if ((work, who, what, i) in value)
                list[++n] = value[work, who, what, i]
        return median(list, n + 0)
    }
    # Round by round, as the machine may be slower in one than in another.
    function ratio(work, who, what,    i, n, list) {
        for (i = 1; i <= rounds; i++)
            if ((work, "conc", what, i) in value && (work, who, what, i) in value && value[work, "conc", what, i] > 0)
                list[++n] = value[work, who, what, i] / value[work, "conc", what, i]
        return median(list, n + 0)
    }
    function show(x) { return x == "" ? "-" : sprintf(x < 10 ? "%.2f" : x < 1000 ? "%.1f" : "%.0f", x) }
    function cells(work, who, what) {
        return sprintf(" %9s %9s %6s", show(figure(work, "conc", what)), show(figure(work, who, what)),
                       show(ratio(work, who, what)))
    }
    function row(work, who,    same) {
        if (work == last_work)
            work_shown = ""
        else
            work_shown = last_work = work
        same = result[work, "conc"] != "" && result[work, who] == result[work, "conc"] && !differs[work, who]
        failed = failed || !same
        printf "%-6s %-16s%s  %s  %s\n", work_shown, who, cells(work, who, "wall"), cells(work, who, "processor"),
               same ? "yes" : "NO"
    }
    function rates(work,    i, part, rate) {
        if (figure(work, "conc", "wall") == "")
            return
        if (!has_rates++)
            print "\nThousands a second, on the clock"
        printf "%-6s", work
        for (i = 1; i <= n; i++) {
            split(peer[i], part, ".")
            rate = figure(work, part[2], "wall")
            if (part[1] == work && rate != "")
                printf "  %s %s", part[2], show(count[work] / rate)
        }
        print ""
    }
    # The time of one piece, and the processor time of it.
    function pieces(work,    i, part, who) {
        for (i = 1; i <= n; i++) {
            split(peer[i], part, ".")
            who = part[2]
            if (part[1] != work || figure(work, who, "p50") == "")
                continue
            if (!has_pieces++)
                printf "\n%-23s %9s %9s %9s\n", "A page, a dashboard; ms", "median", "99 of 100", "processor"
            printf "%-6s %-16s %9s %9s %9s\n", work, who, show(figure(work, who, "p50")), show(figure(work, who, "p99")),
                   show(figure(work, who, "processor") / count[work])
        }
    }
    # The latency of a message at a fixed rate, its processor time, and how many a second of that makes.
    function messages(work,    i, part, who, late, used) {
        for (i = 1; i <= n; i++) {
            split(peer[i], part, ".")
            who = part[2]
            used = figure(work, who, "processor")
            if (part[1] != work || used <= 0)
                continue
            if (!has_messages++)
                printf "\n%-23s %9s %9s   %13s   %18s\n", "A message; ms", "median", "99 of 100", "processor, us",
                       "a processor second"
            late = figure(work, who, "p99")
            printf "%-6s %-16s %9s %9s   %13s   %18s%s\n", work, who, show(figure(work, who, "p50")), show(late),
                   show(used / count[work] * 1e3), show(count[work] / used * 1e3),
                   (late > 1000 ? "  does not hold the rate" : "")
        }
    }
    {
        if ($4 != "-")
            value[$2, $3, "wall", $1] = $4
        value[$2, $3, "processor", $1] = $5
        if (NF > 6) {
            value[$2, $3, "p50", $1] = $7
            value[$2, $3, "p99", $1] = $8
        }
        if (($2, $3) in result && result[$2, $3] != $6)
            differs[$2, $3] = 1
        result[$2, $3] = $6
    }
    END {
        n = split(counts " " more, part, " ")
        for (i = 1; i < n; i += 2)
            count[part[i]] = part[i + 1]
        n = split(peers, peer, " ")
        printf "%-23s %26s   %26s\n", "", "on the clock, ms", "on the processors, ms"
        printf "%-6s %-16s %9s %9s %6s   %9s %9s %6s  %s\n", "work", "peer", "conc", "peer", "ratio", "conc", "peer",
               "ratio", "same"
        for (i = 1; i <= n; i++) {
            split(peer[i], part, ".")
            if (part[2] != "conc")
                row(part[1], part[2])
            else if (result[part[1], "conc"] !~ "^" count[part[1]] "/" || differs[part[1], "conc"]) {
                print part[1] ": conc has not done the work"
                failed = 1
            }
        }
        rates("sql")
        rates("cache")
        rates("fetch")
        rates("tasks")
        rates("etl")
        rates("scrape")
        rates("dash")
        rates("web")
        pieces("scrape")
        pieces("dash")
        messages("chat")
        print "\nratio: peer/conc, the median of the ratios of " rounds (rounds == 1 ? " round" : " rounds") \
              "; above 1 conc takes less. same: the peer has the same results as conc."
        print "On the processors: user and system, of the program that does the work, without the server; in web and chat" \
              " of the server."
        if (quick)
            print "Small counts: these figures mean nothing."
        exit failed
    }' $results
}

# The servers of web: medians of all rounds.
web_table() {
    [[ -s $web_results ]] || return 0
    printf '\nweb      requests a processor second   99 %% within ms, at half load   KiB for 1000 idle connections\n'
    local who column figures
    for who in conc go nginx fastapi; do
        figures=()
        for column in 2 3 4; do
            figures+=("$(awk -v who=$who -v column=$column '$1 == who { print $column }' $web_results | sort -n |
                awk '{ all[NR] = $1 } END { print NR ? all[int((NR + 1) / 2)] : "-" }')")
        done
        printf '%-8s %29s %31s %31s\n' $who "${figures[@]}"
    done
}

# add WORK.WHO PACKAGE...: only where the work is wanted, and conc takes part
add() {
    [[ " ${names[*]} " == *" ${1%.*} "* ]] || return 0
    [[ $1 == *.conc || " ${peers[*]} " == *" ${1%.*}.conc "* ]] || return 0
    add_peer "$@"
}

mkdir -p $out
: >$results
: >$web_results
failed=0
box=$(mktemp -d)
trap stop_all EXIT
((${#works[@]})) ||
    tell_missing pkg-config python3 postgresql libpq-dev python3-asyncpg golang-go golang-github-lib-pq-dev libhiredis-dev \
        libcurl4-openssl-dev libhttp-parser-dev redis-server golang-github-gomodule-redigo-dev python3-rq libxml2-dev \
        libsqlite3-dev libcjson-dev python3-aiohttp python3-lxml python3-scrapy libwslay-dev libssl-dev \
        nginx-light python3-fastapi uvicorn golang-github-gorilla-websocket-dev python3-websockets
add sql.conc pkg-config python3 postgresql libpq-dev
add sql.asyncpg python3-asyncpg
add sql.asyncpg_noreset python3-asyncpg
add sql.go golang-go golang-github-lib-pq-dev
if [[ -f examples/10_patterns/03_cache.c ]]; then
    add cache.conc pkg-config libhiredis-dev
else
    echo "cache is left out: there is no examples/10_patterns/03_cache.c"
fi
add cache.python python3
add fetch.conc pkg-config libcurl4-openssl-dev libhttp-parser-dev
add fetch.libcurl
add fetch.libcurl_reuse
if [[ -f examples/11_apps/06_task_queue.c ]]; then
    add tasks.conc pkg-config python3 libhiredis-dev redis-server
else
    echo "tasks is left out: there is no examples/11_apps/06_task_queue.c"
fi
add tasks.go golang-go golang-github-gomodule-redigo-dev
add tasks.go_stream golang-go golang-github-gomodule-redigo-dev
add tasks.rq python3-rq
add tasks.rq_simple python3-rq
add etl.conc pkg-config libsqlite3-dev libcjson-dev
add etl.python python3
add scrape.conc pkg-config libcurl4-openssl-dev libhttp-parser-dev libxml2-dev libsqlite3-dev libcjson-dev
add scrape.aiohttp python3-aiohttp python3-lxml
add scrape.scrapy python3-scrapy
add dash.conc pkg-config libcurl4-openssl-dev libhttp-parser-dev libcjson-dev
add dash.whole
add dash.aiohttp python3-aiohttp
add dash.go golang-go
add web.conc python3 libhttp-parser-dev libcjson-dev libwslay-dev libssl-dev
add web.go golang-go
add web.nginx nginx-light
add web.fastapi python3-fastapi uvicorn
add chat.conc python3 libhttp-parser-dev libcjson-dev libwslay-dev libssl-dev
add chat.go golang-go golang-github-gorilla-websocket-dev
add chat.websockets python3-websockets
if ((${#peers[@]} == 0)); then
    echo "nothing can be measured" >&2
    exit 1
fi
start_servers
run_in_turn
table || failed=1
web_table
exit $failed
