#!/usr/bin/env python3
"""Tests examples/CHEATSHEET.md: every name in tests/course_names.txt must be in the left column of a table, each row's C code
and each block must compile, and the headers must contain the fixed parts of the messages that it explains.

CC chooses the compiler.
"""
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

TOP = pathlib.Path(__file__).resolve().parent.parent
SHEET = (TOP / "examples/CHEATSHEET.md").read_text(encoding="utf-8")
HEADERS = [TOP / name for name in ("conc.h", "conc_sync.h", "conc_pool.h")]

PRELUDE = """#include "conc_sync.h"
#include "conc_pool.h"
#include <cjson/cJSON.h>
#include <curl/curl.h>
#include <pthread.h>
#include <semaphore.h>
#include <sys/wait.h>
#include <unistd.h>
typedef struct { int fd; } connection;
static inline int connection_close(connection *c) { return c->fd; }
CONC_AUTO_TYPE(connection, connection_close)
int f(void *arg), g(void *arg), app(void *arg), handler(int fd, void *arg);
void posted(void *arg);
void *worker(void *arg);
"""
# Variables that rows may use. A row's own declaration hides them.
GIVEN = """
    int x = 1, result = 0, numbers[] = {1, 2, 3};
    bool ready = true;
    const char *url = "", *text = "";
    conc_group group = {0};
    conc_task task = {0};
    conc_lock lock = {0};
    conc_sem semaphore = CONC_SEM(5);
    conc_event event = {0};
    conc_queue queue = CONC_QUEUE(int, 10);
    conc_channel channel = CONC_CHANNEL(int, 10);
    conc_gen open_gen = {0}, *gen_pointer = &open_gen;
    conc_pool pool = {.threads = 4};
    conc_procs procs = {.workers = 4};
    conc_job job = {0};
    conc_stream stream = {0};
    conc_loop *loop = NULL;
    conc_local request_id = {0};
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
    pthread_t thread = {0};
    pid_t process = 0;
"""


def rows():
    """Yields the rows of the tables of Python and C, as (left cell, right cell)."""
    for line in SHEET.split("\n## Recipes")[0].split("\n"):
        cells = re.fullmatch(r"\| (.*?) \| (.*) \|", line)
        if cells and cells[1] != "Python":
            yield cells[1], cells[2]


def fragments(cell):
    """Returns the statements of a cell: text in backquotes that ends like a statement or a block."""
    return [code for code in re.findall(r"`([^`]*)`", cell) if re.search(r"[;}]$", code)]


def functions():
    """Yields each row's code as a function, named after the row."""
    for number, (left, right) in enumerate(rows()):
        code = fragments(right)
        generator = "gen_emit" in right
        gen = "conc_gen *gen = gen_pointer;" if generator else "conc_gen gen = open_gen;"
        for part, text in enumerate(code):
            if "int body(" in text or text.startswith(".group"):
                continue
            yield left, (f"int row_{number}_{part}(void);\nint row_{number}_{part}(void)\n{{{GIVEN}"
                         f"    {gen}\n    {{\n        {text}\n    }}\n    return 0;\n}}\n")


def compiled(source, name):
    """Returns the compiler's output, with all warnings except those of unused names; it should be empty."""
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, name)
        path.write_text(source, encoding="utf-8")
        command = [*shlex.split(os.environ.get("CC", "cc")), "-std=gnu11", "-Wall", "-Wextra", "-Wno-unused", "-fsyntax-only",
                   f"-I{TOP}", str(path)]
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.stdout or ("" if done.returncode == 0 else f"exit code {done.returncode}")


def faults():
    lefts = " ".join(left for left, _ in rows())
    for name in (TOP / "tests/course_names.txt").read_text(encoding="utf-8").split("\n"):
        if name and not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", lefts):
            yield f"{name} has no row"
    with_code = {left for left, _ in functions()}
    if len(with_code) < 60:
        yield f"only {len(with_code)} rows have code"
    said = compiled(PRELUDE + "".join(code for _, code in functions()), "rows.c")
    if said:
        yield said
    for block in re.findall(r"^```c\n(.*?)^```$", SHEET, re.MULTILINE | re.DOTALL):
        said = compiled(PRELUDE + block, "block.c")
        if said:
            yield f"{block}\n{said}"
    headers = "".join(re.sub(r'"\s*"', "", header.read_text(encoding="utf-8")) for header in HEADERS)
    for message in re.findall(r"^\| `conc: (.*?)`", SHEET, re.MULTILINE):
        for part in re.split(r"\.\.\.|[\d.]+ s", message):
            if part.strip() and part.strip() not in headers:
                yield f"no message contains {part.strip()!r}"


def main():
    found = list(faults())
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
