#!/usr/bin/env bash
# Vendors the course into an empty git repository in each way that examples/README.md documents, with its commands, and does an
# exercise in the copy: course start, then the solution, then course check must print "Right.". The address is a repository made
# of this checkout's files, which is deleted before the exercise; there is also no network, if the system allows that. The copies
# are at different depths, and course is called from different folders.
# CC chooses the compiler. Needs bash, coreutils, findutils, tar, awk, git with subtree, CMake.
set -u
export LC_ALL=C
cd "$(dirname "$0")/.." || exit 2
if [ -z "${WITHOUT_NETWORK-}" ] && unshare -rn true 2>/dev/null; then
    WITHOUT_NETWORK=1 exec unshare -rn "tests/${0##*/}"
fi
root=$PWD
tmp=$(mktemp -d) || exit 2
trap 'rm -rf "$tmp"' EXIT
export TMPDIR=$tmp HOME=$tmp
export GIT_CONFIG_NOSYSTEM=1 GIT_CEILING_DIRECTORIES=$tmp
git config --global user.name Teacher
git config --global user.email teacher@example.org
git config --global init.defaultBranch main
git config --global protocol.file.allow always # for the submodule: its address is a folder here
unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE
passed=0
failed=0

# repository FOLDER: makes a repository of this checkout's files
repository() {
    mkdir -p "$1"
    tar -c --exclude=./.git --exclude=./build --exclude=./examples/your . | tar -x -C "$1"
    (cd "$1" && git init -q && git add -A && git commit -qm "conc")
}

# block WAY KIND: prints the ```KIND blocks below the heading of the way
block() {
    awk -v heading="### $1" -v start="\`\`\`$2" '
        /^##/ { inside = $0 == heading }
        /^```$/ { copying = 0 }
        copying { print }
        inside && $0 == start { copying = 1 }' "$root/examples/README.md"
}

# vendored WAY FOLDER: runs the way's commands in an empty repository at FOLDER
vendored() {
    mkdir -p "$2" && cd "$2" || return
    git init -q && git commit -q --allow-empty -m "Empty"
    block "$1" cmake | sed "s,URL,file://$tmp/conc," >CMakeLists.txt
    [ -s CMakeLists.txt ] || rm CMakeLists.txt
    block "$1" sh | sed "s,URL,file://$tmp/conc," >"$tmp/commands"
    [ -s "$tmp/commands" ] || echo "examples/README.md has no commands for it"
    sh -e "$tmp/commands" >"$tmp/said" 2>&1 </dev/null || { cat "$tmp/commands" "$tmp/said" && return; }
    grep -q '^    01/01  Hello, Goodbye' "$tmp/said" || { echo "course list prints:" && cat "$tmp/said"; }
}

# done_in FOLDER: starts and solves an exercise in the copy there, from inside the folder and from outside
done_in() {
    cd "$1" || return
    course=$(find . -name course -type f -perm -u+x -not -path './build/*')
    [ -n "$course" ] || { echo "there is no course in it" && return; }
    mkdir -p "$tmp/away"
    (cd "${course%/*}" && ./course start 01/01) >"$tmp/said" 2>&1 || cat "$tmp/said"
    cp "${course%/*}/01_start/01_hello_goodbye.c" "${course%/*}/your/01_01_hello_goodbye.c"
    (cd "$tmp/away" && "$1/$course" check 01/01) >"$tmp/said" 2>&1
    [ "$(tail -n 1 "$tmp/said")" = Right. ] || { echo "course check prints:" && cat "$tmp/said"; }
    "$course" progress | grep -q '^1 of ' || echo "course progress does not count it"
    for page in $(cd "${course%/*}" && grep -oh '](\([0-9][^)#]*/\)*[A-Z]*\.md' README.md CONCEPTS.md | sort -u); do
        [ -f "${course%/*}/${page#*(}" ] || echo "a page links ${page#*(}, which does not exist"
    done
    ignored=$(cd "${course%/*}" && git check-ignore your/01_01_hello_goodbye.c)
    [ -n "$ignored" ] || echo "git does not ignore learners' files"
}

# try WAY FOLDER
try() {
    repository "$tmp/conc"
    (vendored "$1" "$tmp/$2") >"$tmp/wrong" 2>&1
    rm -rf "$tmp/conc" # what was vendored does not need it any more
    [ -s "$tmp/wrong" ] || (done_in "$tmp/$2") >"$tmp/wrong" 2>&1
    if [ -s "$tmp/wrong" ]; then
        failed=$((failed + 1))
        echo "FAIL $1"
        awk '{ print "    " $0 }' "$tmp/wrong"
    else
        passed=$((passed + 1))
    fi
}

try "The course alone" school
try "git subtree" "a/school"
try "git submodule" "a/b/c/school"
try "CMake FetchContent" "a b/school"
try "A plain copy" "one/two/three/four/five/school"

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
