#!/usr/bin/env python3
"""How dense the three headers are: prints the figures, and fails if one is over its limit.

    tests/style.py          the figures
    tests/style.py --where  also the lines that count

The limits are rules (no nested conditional expression, no line over 100 columns, no function over 45 lines, at most 12
conditional expressions in 1000 lines of code) or, where the code is better already, what it has reached. A statement that is
split to please this script, and reads worse, is a defect: raise the limit instead, and say why in the commit.
"""
import pathlib
import re
import statistics
import sys

TOP = pathlib.Path(__file__).resolve().parent.parent
HEADERS = ("conc.h", "conc_sync.h", "conc_pool.h")
WIDEST = 100

# of the three headers together
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
    """The text with everything but its line ends made spaces."""
    return re.sub(r"[^\n]", " ", match.group(0))


def code_of(text):
    """The text without comments, strings, characters and preprocessor lines; each line keeps its number."""
    text = re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', blank, text, flags=re.S)
    return re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", blank, text, flags=re.M)


def statements(code):
    """(number of its first line, text) of each piece between ; { and }."""
    line = 1
    for piece in re.split(r"([;{}])", code):
        start = line + piece[:len(piece) - len(piece.lstrip())].count("\n")
        line += piece.count("\n")
        yield start, piece


ASSIGNMENT = re.compile(r"[^=!<>]=(?!=)")


def conditions(piece):
    """What stands in the parentheses after each `if`, and between the ? and the : of each conditional expression."""
    for word in re.finditer(r"\bif \(", piece):
        depth = 1
        for end in range(word.end(), len(piece)):
            depth += {"(": 1, ")": -1}.get(piece[end], 0)
            if depth == 0:
                break
        yield piece[word.end():end]
    yield from re.findall(r"\?([^:]*):", piece)


def functions(code):
    """(number of the first line, lines of the body) of each function: its braces stand in the first column."""
    begin = None
    lines = code.split("\n")
    for number, line in enumerate(lines, 1):
        if line == "{" and lines[number - 2].rstrip().endswith(")"):
            begin = number
        elif line == "}" and begin:
            yield begin, number - begin - 1
            begin = None


def measure(name, found):
    """Adds to `found` what is counted in the header: (header, line) of each."""
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
