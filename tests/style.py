#!/usr/bin/env python3
"""Measures how dense the three headers are: prints the figures, and fails if one exceeds its limit.

    tests/style.py          prints the figures
    tests/style.py --where  also prints the lines that count

The limits are rules (no nested conditional expression, no line over 100 columns, no function over 45 lines, at most 12
conditional expressions in 1000 lines of code) or, where the code is already better, its present figure. A statement that is
split to please this script, and reads worse, is a defect: raise the limit instead, and give the reason in the commit.
"""
import pathlib
import re
import statistics
import sys

TOP = pathlib.Path(__file__).resolve().parent.parent
HEADERS = ("conc.h", "conc_sync.h", "conc_pool.h")
WIDEST = 100

# for the three headers together
LIMITS = {
    "conditional expressions in 1000 lines of code": 11.0,
    "nested conditional expressions": 0,
    "assignments in a condition or a conditional expression, apart from while": 0,
    "statements with three or more && or ||, in 1000 lines of code": 2.5,
    f"lines over {WIDEST} columns": 0,
    "lines of the longest function": 40,
    "median of the lines of a function": 8,
}


def blank(match):
    """Replaces everything but line ends by spaces."""
    return re.sub(r"[^\n]", " ", match.group(0))


def code_of(text):
    """Blanks comments, strings, characters and preprocessor lines; each line keeps its number."""
    text = re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', blank, text, flags=re.S)
    return re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", blank, text, flags=re.M)


def statements(code):
    """Yields (number of its first line, text) for each piece between ; { and }."""
    line = 1
    for piece in re.split(r"([;{}])", code):
        start = line + piece[:len(piece) - len(piece.lstrip())].count("\n")
        line += piece.count("\n")
        yield start, piece


ASSIGNMENT = re.compile(r"[^=!<>]=(?!=)")


def conditions(piece):
    """Yields the text in the parentheses after each `if`, and between the ? and the : of each conditional expression."""
    for word in re.finditer(r"\bif \(", piece):
        depth = 1
        for end in range(word.end(), len(piece)):
            depth += {"(": 1, ")": -1}.get(piece[end], 0)
            if depth == 0:
                break
        yield piece[word.end():end]
    yield from re.findall(r"\?([^:]*):", piece)


def functions(code):
    """Yields (number of the first line, lines of the body) for each function, whose braces are in the first column."""
    begin = None
    lines = code.split("\n")
    for number, line in enumerate(lines, 1):
        if line == "{" and lines[number - 2].rstrip().endswith(")"):
            begin = number
        elif line == "}" and begin:
            yield begin, number - begin - 1
            begin = None


def measure(name, found):
    """Adds (header, line) to `found` for each thing that is counted in the header."""
    text = (TOP / name).read_text(encoding="utf-8")
    code = code_of(text)
    for number, piece in statements(code):
        questions = piece.count("?")
        if questions:
            found["?:"] += [(name, number)] * questions
        if questions > 1:
            found["nested"].append((name, number))
        if any(ASSIGNMENT.search(condition) for condition in conditions(piece)):
            found["assigning"].append((name, number))
        if len(re.findall(r"&&|\|\|", piece)) >= 3:
            found["long"].append((name, number))
    found["wide"] += [(name, n) for n, line in enumerate(text.split("\n"), 1) if len(line) > WIDEST]
    found["functions"] += [(name, n, size) for n, size in functions(code)]
    found["lines"] += [(name, n) for n, line in enumerate(code.split("\n"), 1) if line.strip()]


def main():
    found = {key: [] for key in ("?:", "nested", "assigning", "long", "wide", "functions", "lines")}
    for name in HEADERS:
        measure(name, found)
    lines, sizes = len(found["lines"]), [size for _, _, size in found["functions"]]
    figures = (round(1000 * len(found["?:"]) / lines, 1), len(found["nested"]), len(found["assigning"]),
               round(1000 * len(found["long"]) / lines, 1), len(found["wide"]), max(sizes),
               statistics.median(sizes))
    print(f"{lines} lines of code, {len(sizes)} functions")
    worse = 0
    for (what, limit), figure in zip(LIMITS.items(), figures):
        over = figure > limit
        worse += over
        print(f"{figure:>7}  {what}; at most {limit}" + (": WORSE" if over else ""))
    if worse or "--where" in sys.argv:
        found["longest"] = [(name, n) for name, n, size in found["functions"] if size > LIMITS["lines of the longest function"]]
        for key in ("nested", "assigning", "long", "wide", "longest"):
            for name, number in found[key]:
                print(f"{name}:{number}: {key}")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
