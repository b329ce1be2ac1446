#!/usr/bin/env python3
"""Writes single_include/conc.h: all modules in one file, the same bytes each time.

    ./amalgamate.py            writes the file
    ./amalgamate.py --check    compares it with what would be written; exit code 1 and a diff when it differs

A module's #include of another module is replaced by that module, once. Include guards and implementation guards stay as
they are. The licence, which may stand at the end of each module, comes once, at the end, from LICENSE.
"""
import difflib
import itertools
import pathlib
import re
import sys

MODULES = ["conc.h", "conc_sync.h", "conc_pool.h"]  # in this order; conc.h must exist
TOP = pathlib.Path(__file__).resolve().parent
RESULT = "single_include/conc.h"

INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"')
LICENCE = re.compile(r"/\*(?:(?!\*/).)*Permission is hereby granted(?:(?!\*/).)*\*/\s*", re.DOTALL)


def read(name):
    """The file's text, with \\n as its only line end whatever the checkout made of it."""
    return (TOP / name).read_text(encoding="utf-8")


def inlined(module, done):
    """The module's lines between banners, with those of modules that it includes and that are not in done yet."""
    done.add(module)
    yield f"/* ==== begin {module} ==== */"
    for line in LICENCE.sub("", read(module)).rstrip().split("\n"):
        include = INCLUDE.match(line)
        if not include:
            yield line
        elif include[1] not in MODULES:
            sys.exit(f"{module} includes {include[1]}, which is no module: {', '.join(MODULES)}")
        elif include[1] in done:
            yield f'/* #include "{include[1]}": above */'
        else:
            yield from inlined(include[1], done)
    yield f"/* ==== end {module} ==== */"
    yield ""


def amalgamated():
    present = [m for m in MODULES if m == "conc.h" or (TOP / m).exists()]
    lines = [read("conc.h").split("\n", 1)[0].rstrip(" */"), " *"]
    lines += [f" * {', '.join(present)} in one file, written by amalgamate.py: change those, not this.", " */"]
    done = set()
    for module in present:
        if module not in done:
            lines += inlined(module, done)
    lines.append("/*")
    lines += [f" * {line}".rstrip() for line in read("LICENSE").strip().split("\n")]
    lines.append(" */")
    return "\n".join(lines) + "\n"


def main(arguments):
    if arguments not in ([], ["--check"]):
        sys.exit(__doc__)
    target = TOP / RESULT
    wanted = amalgamated().encode()
    if not arguments:
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(wanted)
        return 0
    found = target.read_bytes() if target.exists() else b""
    if found == wanted:
        return 0
    print(f"{RESULT} is not what amalgamate.py makes of the modules now; run: make amalgamate")
    old, new = (text.decode(errors="replace").split("\n") for text in (found, wanted))
    for line in itertools.islice(difflib.unified_diff(old, new, RESULT, "the modules", n=1, lineterm=""), 20):
        print(line)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
