#!/usr/bin/env python3
"""Does what README.md tells a reader to do, in an empty directory, and compares what comes of it.

A ```c block that begins with a comment such as /* hello.c */ is saved under that name. Each ```console block has one
command, after "$ ", and the output it must have, on the virtual clock. `make test` is left out, as that runs this. Every ```c
block compiles without a warning, with the includes that it leaves out.

On the pages of the course the ```c blocks of a page compile as one file, and what they name exists: files in backquotes,
exercises by their numbers, links; prose has lines of at most 130 characters. The tables of examples/README.md have a row
for each exercise, and no other rows.
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
    """Runs the block's command; True when its output is the rest of the block."""
    command, _, wanted = block.partition("\n")
    done = subprocess.run(["sh", "-c", command[2:]], cwd=directory, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, env={**os.environ, "CONC_CLOCK": "virtual"})
    if done.returncode == 0 and done.stdout == wanted:
        return True
    print(f"README.md says\n{block}but the command gave exit code {done.returncode} and this:\n{done.stdout}")
    return False


def compiles(directory, block, page="README.md"):
    """Compiles the block alone; True when the compiler says nothing."""
    start = "" if "#include" in block else '#define CONC_STATIC\n#include "conc_sync.h"\n#include "conc_pool.h"\n'
    pathlib.Path(directory, "block.c").write_text(start + block, encoding="utf-8")
    command = ["cc", "-Wall", "-Wextra", "-Wpedantic", "-Wno-unused-function", "-fsyntax-only", "-Iexamples/common",
               "-isystem/usr/include/postgresql", "block.c"]
    done = subprocess.run(command, cwd=directory, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if not done.stdout and done.returncode == 0:
        return True
    print(f"{page} has\n{block}of which the compiler says\n{done.stdout}")
    return False


def anchor(heading):
    """What a link to this heading says after the #."""
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
            yield f"{link} is no heading"


def missing_files(page, text):
    """Names in backquotes that look like files and are none: beside the page, in the project, or in an exercise's folder.
    What a learner or a teacher writes, and what is in a folder that the text has vendored, is made later."""
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
    """Exercises without a row in the table under their folder's heading, and rows without an exercise."""
    rows = set()
    for folder, section in re.findall(r"^## (\d\d_\w+)[^\n]*\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL):
        rows |= {f"{folder}/{name}" for name in re.findall(r"^\| `(\w+\.c)` \|", section, re.MULTILINE)}
    files = {str(path.relative_to(COURSE)) for path in EXERCISES}
    yield from (f"{name} has no row" for name in sorted(files - rows))
    yield from (f"{name} has a row, and is no exercise" for name in sorted(rows - files))


def long_lines(text, most=130):
    """Lines of prose that are hard to read as they stand in the file; rows of tables may be longer."""
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > most and not line.startswith("|"):
            yield f"line {number} has more than {most} characters"


def is_sound(directory, page):
    """Looks over one page of the course; True when nothing is wrong with it."""
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
        print("README.md has no command to try")
    return 0 if results and all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
