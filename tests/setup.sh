#!/usr/bin/env bash
# Installs what the tests need: on Debian and its derivatives, as root or with a sudo that asks for no password. Elsewhere it
# lists what is missing, and what for, and exits with 1.
set -eu
cd "$(dirname "$0")/.."
mkdir -p build/setup
log=build/setup/log

# Can this compiler build a program from these lines with these options?
builds()
{
    local source=$1
    shift
    printf '%s\n' "$source" 'int main(void) { return 0; }' >build/setup/program.c
    "$@" build/setup/program.c -o build/setup/program >>"$log" 2>&1
}

# What for | package(s) on Debian; "a/b": the first that exists | a command that succeeds if it is installed
needs()
{
    cat <<'TABLE'
all tests|gcc libc6-dev|builds '#include <stdio.h>' gcc
all tests|check pkg-config|pkg-config --exists check
all tests|python3|python3 -c 'import dataclasses'
compile tests|g++|builds '#include <cstdio>' g++ -x c++
compile tests|binutils|command -v nm && command -v readelf
compile tests, gdb script|gdb|gdb -nx --batch -ex 'python print(6 * 7)' | grep -qx 42
compile tests, clang|clang|builds '#include <stdio.h>' clang && builds '#include <cstdio>' clang++ -x c++
compile tests, musl|musl-tools|builds '#include <stdio.h>' musl-gcc
sanitizers, gcc|gcc|builds '' gcc -fsanitize=address,undefined
sanitizers, clang|libclang-rt-dev/libclang-rt-14-dev|builds '' clang -fsanitize=address,undefined
sanitizers, clang|libclang-rt-dev/libclang-rt-14-dev|builds '' clang -fsanitize=thread
memory, valgrind|valgrind libc6-dbg|builds '' gcc && valgrind -q build/setup/program
aarch64|gcc-aarch64-linux-gnu libc6-dev-arm64-cross|builds '#include <stdio.h>' aarch64-linux-gnu-gcc -static
aarch64|qemu-user|command -v qemu-aarch64
riscv64|gcc-riscv64-linux-gnu libc6-dev-riscv64-cross|builds '#include <stdio.h>' riscv64-linux-gnu-gcc -static
riscv64|qemu-user|command -v qemu-riscv64
sockets, libuv|libuv1-dev|builds '#include <uv.h>' gcc -luv
examples|libcurl4-openssl-dev|builds '#include <curl/curl.h>' gcc -lcurl
examples|libcjson-dev|builds '#include <cjson/cJSON.h>' gcc -lcjson
examples|libglib2.0-dev|pkg-config --exists glib-2.0
examples|libsqlite3-dev|builds '#include <sqlite3.h>' gcc -lsqlite3
adapters, HTTP|libhttp-parser-dev|builds '#include <http_parser.h>' gcc -lhttp_parser
adapters, HTTP|curl|command -v curl
adapters, Redis|libhiredis-dev|builds '#include <hiredis/hiredis.h>' gcc -lhiredis
adapters, Redis|redis-server|command -v redis-server
adapters, PostgreSQL|libpq-dev|builds '#include <libpq-fe.h>' gcc -I/usr/include/postgresql -lpq
adapters, PostgreSQL|postgresql|ls /usr/lib/postgresql/*/bin/postgres
adapters, TLS|libssl-dev openssl|builds '#include <openssl/ssl.h>' gcc -lssl -lcrypto && command -v openssl
adapters, WebSocket|libwslay-dev|builds '#include <wslay/wslay.h>' gcc -lwslay
programs, real clients|python3-websockets|/usr/bin/python3 -c 'import websockets'
programs, HTML|libxml2-dev pkg-config|pkg-config --exists libxml-2.0
programs, pages|chromium chromium-driver|command -v chromium && command -v chromedriver
host names|libnss-wrapper|LD_PRELOAD=libnss_wrapper.so true 2>&1 | { ! grep -q .; }
examples, real clients|netcat-openbsd|nc -h 2>&1 | grep -q 'N.*[Ss]hutdown'
examples, real clients|socat|command -v socat
vendoring|git|git --exec-path && [ -e "$(git --exec-path)/git-subtree" ]
vendoring|cmake|command -v cmake
real clients|curl|command -v curl
real clients|redis-tools|command -v redis-benchmark
real clients|wrk|command -v wrk
format|clang-format|command -v clang-format-14 || command -v clang-format
TABLE
}

# Prints the lines of the table whose command fails.
missing()
{
    local what packages test
    while IFS='|' read -r what packages test; do
        eval "$test" >>"$log" 2>&1 || printf '%s|%s\n' "$what" "$packages"
    done < <(needs)
}

# Fails if nothing may be installed.
as_root()
{
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# Prints the first package of "a/b/c" that exists, for each word.
existing()
{
    local word package
    for word in "$@"; do
        for package in ${word//\// }; do
            if [ -n "$(apt-cache madison "$package" 2>>"$log")" ]; then break; fi
        done
        echo "$package"
    done
}

install()
{
    local words packages
    as_root apt-get update >>"$log" 2>&1 || echo "apt-get update failed; see $log"
    mapfile -t words < <(cut -d '|' -f 2 <<<"$1" | tr ' ' '\n' | sort -u)
    mapfile -t packages < <(existing "${words[@]}")
    echo "installing: ${packages[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends "${packages[@]}" >>"$log" 2>&1 ||
        echo "apt-get install failed; the end of $log:" "$(tail -n 5 "$log")"
}

: >"$log"
lacking=$(missing)
if [ -n "$lacking" ] && command -v apt-get >/dev/null && as_root true 2>>"$log"; then
    install "$lacking"
    lacking=$(missing)
fi
if [ -n "$lacking" ]; then
    echo "Nothing was tested, because something is missing (with Debian's package names):"
    sort -u <<<"$lacking" | awk -F '|' '{gsub("/", " or ", $2); printf "    for %s: %s\n", $1, $2}'
    exit 1
fi
