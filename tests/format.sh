#!/usr/bin/env bash
# Looks whether clang-format would change a C or C++ file (exit code 1, and what), or changes it: tests/format.sh --fix.
# Other versions than 14 format differently: exit code 77, nothing was looked at.
set -eu
cd "$(dirname "$0")/.."

format=$(command -v clang-format-14 || command -v clang-format || true)
case $("${format:-false}" --version || true) in
    *" version 14."*) ;;
    *) echo "clang-format 14 is needed, and there is ${format:-none}"; exit 77 ;;
esac
prune=(\( -name build -o -name single_include \) -prune)
mapfile -t files < <(find . "${prune[@]}" -o \( -name '*.[ch]' -o -name '*.cpp' \) -print | sort)
if [ "${1:-}" = --fix ]; then
    "$format" -i "${files[@]}"
else
    for file in "${files[@]}"; do
        "$format" "$file" | diff -u --label "$file" --label "$file, formatted" "$file" - || failed=1
    done
    [ -z "${failed:-}" ] || { echo "To change this: make format"; exit 1; }
fi
