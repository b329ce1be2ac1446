#!/usr/bin/env bash
# Checks the format of the C and C++ files: exit code 1, and the differences, if clang-format would change one. With --fix,
# formats them. Versions other than 14 format differently: exit code 77, nothing was checked.
set -eu
cd "$(dirname "$0")/.."

format=$(command -v clang-format-14 || command -v clang-format || true)
case $("${format:-false}" --version || true) in
    *" version 14."*) ;;
    *) echo "clang-format 14 is needed, but there is ${format:-none}"; exit 77 ;;
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
