#!/usr/bin/env python3
"""Does what README.md tells a reader to do, in an empty directory, and compares what comes of it.

A ```c block that begins with a comment such as /* hello.c */ is saved under that name. Each ```console block has one
command, after "$ ", and the output it must have, on the virtual clock. `make test` is left out, as that runs this. Every ```c
block compiles without a warning, with the includes that it leaves out.
"""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

TOP = pathlib.Path(__file__).resolve().parent.parent


def check(directory, block):
    """Runs the block's command; True when its output is the rest of the block."""
    command, _, wanted = block.partition("\n")
    done = subprocess.run(["sh", "-c", command[2:]], cwd=directory, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, env={**os.environ, "CONC_CLOCK": "virtual"})
    if done.returncode == 0 and done.stdout == wanted:
        return True
    print(f"README.md says\n{block}but the command gave exit code {done.returncode} and this:\n{done.stdout}")
    return False


def compiles(directory, block):
    """Compiles the block alone; True when the compiler says nothing."""
    start = "" if "#include" in block else '#define CONC_STATIC\n#include "conc_sync.h"\n#include "conc_pool.h"\n'
    pathlib.Path(directory, "block.c").write_text(start + block, encoding="utf-8")
    command = ["cc", "-Wall", "-Wextra", "-Wpedantic", "-Wno-unused-function", "-fsyntax-only", "block.c"]
    done = subprocess.run(command, cwd=directory, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if not done.stdout and done.returncode == 0:
        return True
    print(f"README.md has\n{block}of which the compiler says\n{done.stdout}")
    return False


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
    if not results:
        print("README.md has no command to try")
    return 0 if results and all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
