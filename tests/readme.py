#!/usr/bin/env python3
"""Follows the instructions of README.md in an empty directory, and compares the results.

A ```c block that begins with a comment such as /* hello.c */ is saved under that name. Each ```console block has one
command, after "$ ", and the output it must have, on the virtual clock. `make test` is omitted, because it runs this script.
Every ```c block must compile without warnings; missing includes are added.

On the course's pages, the ```c blocks of a page must compile as one file; files in backquotes, exercise numbers and links must
exist; lines of prose have at most 130 characters. The tables of examples/README.md must have a row for each exercise, and no
other rows.
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

TOP = pathlib.Path(__file__).resolve().parent.parent
COURSE = TOP / "examples"
EXERCISES = sorted(COURSE.glob("[0-9][0-9]_*/[0-9][0-9]_*.c"))
PAGES = [COURSE / "README.md", COURSE / "CONCEPTS.md", *sorted(COURSE.glob("*/README.md"))]


def check(directory, block):
    """Runs the block's command; returns whether its output is the rest of the block."""
    command, _, wanted = block.partition("\n")
    done = subprocess.run(["sh", "-c", command[2:]], cwd=directory, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, env={**os.environ, "CONC_CLOCK": "virtual"})
    if done.returncode == 0 and done.stdout == wanted:
        return True
    print(f"README.md says\n{block}but the command's exit code is {done.returncode}, and it prints\n{done.stdout}")
    return False


def compiles(directory, block, page="README.md"):
    """Compiles the block alone; returns whether the compiler prints nothing."""
    start = "" if "#include" in block else '#define CONC_STATIC\n#include "conc_sync.h"\n#include "conc_pool.h"\n'
    pathlib.Path(directory, "block.c").write_text(start + block, encoding="utf-8")
    command = ["cc", "-Wall", "-Wextra", "-Wpedantic", "-Wno-unused-function", "-fsyntax-only", "-Iexamples/common",
               "-isystem/usr/include/postgresql", "block.c"]
    done = subprocess.run(command, cwd=directory, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if not done.stdout and done.returncode == 0:
        return True
    print(f"{page} has\n{block}for which the compiler prints\n{done.stdout}")
    return False


def anchor(heading):
    """Returns the part after the # in a link to this heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def broken_links(page, text):
    anchors = {anchor(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, part = link.partition("#")
        if "://" in link:
            continue
        if path and not (page.parent / path).exists():
            yield f"{link} does not exist"
        elif not path and part not in anchors:
            yield f"{link} is not a heading"


def missing_files(page, text):
    """Yields names in backquotes that look like files but exist neither beside the page, nor in the project, nor in an
    exercise's folder. Files that a learner or a teacher writes, or that the text vendors, need not exist."""
    folders = [page.parent, COURSE, TOP, COURSE / "common", *COURSE.glob("[0-9]*")]
    for name in sorted(set(re.findall(r"`([\w.-]*/[\w./-]*|[\w-]+\.(?:c|h|md|py|sh|svg|txt|awk))`", text))):
        if name.startswith(("your/", "build/", "third_party/", "CMakeLists", "/")) or any((folder / name).exists() for folder in folders):
            continue
        yield f"`{name}` does not exist"


def missing_exercises(text):
    numbers = {f"{path.parent.name[:2]}/{path.name[:2]}" for path in EXERCISES}
    for number in sorted(set(re.findall(r"(?<![\w/])\d\d/\d\d(?![\w/])", text)) - numbers):
        yield f"there is no exercise {number}"


def wrong_rows(text):
    """Yields exercises without a row in the table under their folder's heading, and rows without an exercise."""
    rows = set()
    for folder, section in re.findall(r"^## (\d\d_\w+)[^\n]*\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL):
        rows |= {f"{folder}/{name}" for name in re.findall(r"^\| `(\w+\.c)` \|", section, re.MULTILINE)}
    files = {str(path.relative_to(COURSE)) for path in EXERCISES}
    yield from (f"{name} has no row" for name in sorted(files - rows))
    yield from (f"{name} has a row, but is not an exercise" for name in sorted(rows - files))


def long_lines(text, most=130):
    """Yields lines of prose that are too long to read in the file; table rows may be longer."""
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > most and not line.startswith("|"):
            yield f"line {number} has more than {most} characters"


def is_sound(directory, page):
    """Checks one page of the course; returns whether it has no mistakes."""
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(TOP)
    found = [*broken_links(page, text), *missing_files(page, text), *missing_exercises(text), *long_lines(text)]
    if page == COURSE / "README.md":
        found += wrong_rows(text)
    for fault in found:
        print(f"{name}: {fault}")
    blocks = re.findall(r"^```c\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return (not blocks or compiles(directory, "".join(blocks), name)) and not found


def main():
    text = (TOP / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    consoles = [text for kind, text in blocks if kind == "console" and text != "$ make test\n"]
    with tempfile.TemporaryDirectory() as directory:
        for header in TOP.glob("conc*.h"):
            shutil.copy(header, directory)
        shutil.copytree(TOP / "examples", f"{directory}/examples")
        for kind, text in blocks:
            name = re.match(r"/\* ([\w.]+) \*/\n", text)
            if kind == "c" and name:
                pathlib.Path(directory, name[1]).write_text(text, encoding="utf-8")
        results = [check(directory, text) for text in consoles]
        results += [compiles(directory, text) for kind, text in blocks if kind == "c"]
        results += [is_sound(directory, page) for page in PAGES]
    if not results:
        print("README.md has no commands")
    return 0 if results and all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
