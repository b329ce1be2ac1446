#!/usr/bin/env python3
"""Draws a trace (CONC_TRACE=file, conc_options.trace) as a picture.

    tests/timeline.py trace.json out.svg [--title TEXT]

Each task has a row, which shows when it ran and when it waited; the reason of a wait is a tooltip, and a label if there
is room. Thin arrows lead from a waking task to the woken one; small marks are spawns, cancels and timeouts. Needs only
Python 3.
"""
import argparse
import collections
import html
import json
import re
import sys

WIDTH = 880
ROWS = 60  # if there are more tasks, only the first are drawn
ROW, BAR = 30, 20
LETTER = 6.6  # the usual width of a letter at 12 px, rounded up
SMALL = 5.9  # its width at 11 px
TEXT = "#6e7781"  # middle grey, because the page may be white or black; used for everything directly on the page
RUNNING = "#e8590c"
READY, LIFE = "ready, while another task runs", "M-6 0H6"
WAITS = [  # pattern of the reason, fill, name in the legend
    (r"sleep", "#a9c9f5", "sleeping"),
    (r"lock|semaphore|barrier|limiter|room in", "#f5b5c0", "waiting for a lock or permit"),
    (r"queue|event|condition|latch|future|channel|first of", "#b5dfb0", "waiting for a queue or event"),
    (r"descriptor|\bfd\b|\bread|\bwrit|signal|stream", "#d3bff0", "waiting for input or output"),
    (r"job|pool|thread|process|offload", "#eedc9a", "waiting for a job"),
    (r"", "#ccd3db", "waiting for other tasks"),
]
MARKS = {  # fill, shape around 0,0
    "spawn": ("#2f9e44", "M-3.5 -5.5H3.5L0 .5Z"),
    "cancel": ("#e03131", "M-3.5 -3.5L3.5 3.5M3.5 -3.5L-3.5 3.5"),
    "timeout": ("#d97706", "M0 -4.5L4.5 0L0 4.5L-4.5 0Z"),
}
FONT = 'system-ui, -apple-system, "Segoe UI", "DejaVu Sans", Helvetica, Arial, sans-serif'
STYLE = f"""text {{ font: 12px {FONT}; fill: {TEXT} }}
text.title {{ font-size: 14px; font-weight: 600 }}
text.in {{ font-size: 11px; fill: #1f2933 }}
text.on {{ font-size: 11px; fill: #fff }}
text.small {{ font-size: 11px }}
.grid {{ stroke: {TEXT}; stroke-opacity: .25 }}
.life {{ stroke: {TEXT}; stroke-opacity: .5; stroke-width: 2 }}
.wake {{ stroke: {TEXT}; stroke-width: 1; fill: none; marker-end: url(#head) }}
.cancel {{ stroke: {MARKS["cancel"][0]}; stroke-width: 1.8 }}"""


class NoTrace(Exception):
    pass


Span = collections.namedtuple("Span", "name start length")
Mark = collections.namedtuple("Mark", "name at")


class Task:
    def __init__(self, tid):
        self.tid, self.name, self.label = tid, f"task {tid}", ""
        self.spans, self.marks = [], []

    def times(self):
        return [t for s in self.spans for t in (s.start, s.start + s.length)] + [m.at for m in self.marks]


class Trace:
    """The tasks that ran, in spawn order, and (from, at, to, at) of each wake."""

    def __init__(self, path):
        self.tasks, self.wakes, begun = {}, [], {}
        for event in read_events(path):
            try:
                kind, tid = event["ph"], int(event["tid"])
                name = str(event["name"])
                task = self.tasks.setdefault(tid, Task(tid))
                if kind == "M" and name == "thread_name":
                    task.name = str(event["args"]["name"])  # the last name counts: tasks may be renamed
                elif kind == "X":
                    task.spans.append(Span(name, time(event["ts"]), time(event["dur"])))
                elif kind == "i":
                    task.marks.append(Mark(name, time(event["ts"])))
                elif kind == "s":
                    begun[event["id"]] = (task, time(event["ts"]))
                elif kind == "f" and event["id"] in begun:
                    self.wakes.append((*begun.pop(event["id"]), task, time(event["ts"])))
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise NoTrace(f"an event lacks something, or it is odd ({error!r}): {event!r:.200}") from error
        self.tasks.pop(0, None)  # the loop, which is idle while no task runs
        self.tasks = [self.tasks[tid] for tid in sorted(self.tasks) if self.tasks[tid].spans]
        if not self.tasks:
            raise NoTrace("no task in it has run")
        self.end = max(t for task in self.tasks for t in task.times())
        self.name_rows()

    def name_rows(self):
        """Returns names without the spawn location, which is in the tooltip; equal names are numbered."""
        count, seen = collections.Counter(), collections.Counter()
        for task in self.tasks:
            task.label = re.sub(r" (at|\(spawned at) [^ ]+:\d+\)?$", "", task.name)
            count[task.label] += 1
        for task in self.tasks:
            seen[task.label] += 1
            if count[task.label] > 1:
                task.label += f" {seen[task.label]}"


def time(value):
    us = float(value)
    if not 0 <= us < 1e18:  # NaN is not
        raise ValueError(f"{value!r} is no time")
    return us


def read_events(path):
    with open(path, encoding="utf-8", errors="replace") as file:  # a task may be named anything
        text = file.read()
    if not text.lstrip().startswith("["):
        raise NoTrace("it does not begin with [")
    try:
        events = json.loads(text)
    except (ValueError, RecursionError):
        try:  # a killed program's trace has no end, and perhaps half a line
            events = json.loads(text[:text.rindex("\n")].rstrip().rstrip(",") + "]")
        except (ValueError, RecursionError) as error:
            raise NoTrace(f"it is no JSON: {error}") from error
    if not events or not all(isinstance(event, dict) for event in events):
        raise NoTrace("it is no list of events")
    return events


def number(x):
    return f"{x:.1f}".removesuffix(".0")


def seconds(us):
    """Returns the time as text, with three digits."""
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if us >= size:
            return f"{us / size:.4g} {unit}"
    return f"{us:.4g} µs" if us else "0"


def shorten(text, room, letter):
    """Returns as much of the text as fits; nothing if too little fits to be useful."""
    fits = int(room / letter)
    if len(text) <= fits:
        return text
    return text[:fits - 1] + "…" if fits > 8 else ""


def look(name):
    """Returns the fill, the class of a label in it, and the legend's text."""
    if name == "running":
        return RUNNING, "on", "running"
    return next((fill, "in", legend) for word, fill, legend in WAITS if re.search(word, name))


def steps(end):
    """Returns about seven round times for the axis, and their texts."""
    unit, size = next(((u, s) for u, s in (("s", 1e6), ("ms", 1e3)) if end >= s), ("µs", 1))
    step = next(s for p in range(-3, 12) for s in (10**p, 2 * 10**p, 5 * 10**p) if end / size / s <= 8)
    return [(i * step * size, f"{i * step:g} {unit}") for i in range(int(end / size / step + 1e-6) + 1)]


class Picture:
    def __init__(self, trace, title):
        self.trace, self.rows, self.out, self.legend, self.arrows = trace, trace.tasks[:ROWS], [], {}, set()
        self.title = title
        self.left = 20 + min(220, max(len(task.label) for task in self.rows) * LETTER)
        self.top = 38 if title else 14
        self.bottom = self.top + len(self.rows) * ROW
        if title:
            self.text(4, 18, title, "title")
        self.axis()
        for row, task in enumerate(self.rows):
            self.task(row, task)
        for wake in trace.wakes:
            self.wake(*wake)
        for row, task in enumerate(self.rows):  # above everything else
            self.marks(row, task)
        self.below()

    def x(self, us):
        return self.left + us / self.trace.end * (WIDTH - 24 - self.left) if self.trace.end else self.left

    def middle(self, row):
        return self.top + row * ROW + ROW / 2

    def add(self, element, tooltip=""):
        self.out.append(f"{element}><title>{html.escape(tooltip)}</title></{element[1:].split()[0]}>" if tooltip else
                        f"{element}/>")

    def text(self, x, y, text, kind="", anchor="start"):
        attributes = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor != "start" else "")
        self.out.append(f'<text x="{number(x)}" y="{number(y)}"{attributes}>{html.escape(text)}</text>')

    def axis(self):
        for at, text in steps(self.trace.end):
            x = number(self.x(at))
            self.add(f'<path class="grid" d="M{x} {self.top}V{self.bottom + 4}"')
            self.text(self.x(at), self.bottom + 18, text, "small", "middle")

    def task(self, row, task):
        middle, drawn = self.middle(row), {}
        label = shorten(task.label, self.left - 14, LETTER)
        self.out.append(f'<text x="4" y="{number(middle + 4)}"><title>{html.escape(task.name)}</title>'
                        f'{html.escape(label)}</text>')
        born, died = min(task.times()), max(task.times())
        if died - born > sum(span.length for span in task.spans) + .01:
            self.legend[READY] = LIFE
            self.add(f'<path class="life" d="M{number(self.x(born))} {number(middle)}H{number(self.x(died))}"',
                     f"{task.label}: {READY}")
        for span in sorted(task.spans, key=lambda span: span.name == "running"):  # steps are drawn over waits
            self.span(task, span, middle, drawn)

    def span(self, task, span, middle, drawn):
        fill, kind, legend = look(span.name)
        x, end = self.x(span.start), self.x(span.start + span.length)
        if span.name == "running":  # a step without length is visible too
            least = .5 if span.length else 2
            x, end = (x, end) if end - x > least else ((x + end - least) / 2, (x + end + least) / 2)
        elif end - x < .3:
            return
        place = round(x * 2), round(end * 2)
        if drawn.get(fill) == place:  # thousands of short spans become one
            return
        drawn[fill] = place
        self.legend[legend] = fill
        length = f"{span.name} · {seconds(span.length)}"
        self.add(f'<rect x="{number(x)}" y="{number(middle - BAR / 2)}" width="{number(max(.5, end - x))}" '
                 f'height="{BAR}" rx="{2 if end - x > 8 else 0}" fill="{fill}"',
                 f"{task.label}: {length}, from {seconds(span.start)} to {seconds(span.start + span.length)}")
        room = end - x - 10
        label = length if len(length) * SMALL <= room else shorten(span.name, room, SMALL)
        if label:
            self.text(x + 6, middle + 4, label, kind)

    def marks(self, row, task):
        at = collections.Counter((mark.name, number(self.x(mark.at))) for mark in task.marks)
        for (name, x), count in at.items():
            fill, shape = MARKS.get(name, (TEXT, "M-3 0A3 3 0 1 0 3 0A3 3 0 1 0 -3 0Z"))
            self.legend[name] = (fill, shape)
            y = self.middle(row) - BAR / 2 - (0 if name == "spawn" else 5)
            kind = 'class="cancel"' if name == "cancel" else f'fill="{fill}"'
            times = f" ({count} times)" if count > 1 else ""
            self.add(f'<path {kind} transform="translate({x} {number(y)})" d="{shape}"', f"{task.label}: {name}{times}")

    def wake(self, waker, start, woken, end):
        place = waker, woken, round(self.x(start)), round(self.x(end))
        if waker not in self.rows or woken not in self.rows or waker is woken or place in self.arrows:
            return
        self.arrows.add(place)
        (x, y), (to_x, to_y) = ((self.x(at), self.middle(self.rows.index(task)))
                                for task, at in ((waker, start), (woken, end)))
        down = 1 if to_y > y else -1
        y, to_y = y + down * BAR / 2, to_y - down * (BAR / 2 + 1)
        self.add(f'<path class="wake" d="M{number(x)} {number(y)}L{number(to_x)} {number(to_y)}"',
                 f"{waker.label} wakes {woken.label}")

    def below(self):
        """The meaning of the colours, and whether tasks were omitted."""
        x, y = 4, self.bottom + 44
        order = ["running", *(legend for _, _, legend in WAITS), READY, *self.legend]
        for legend, look_of in sorted(self.legend.items(), key=lambda item: order.index(item[0])):
            if x + 24 + len(legend) * SMALL > WIDTH:
                x, y = 4, y + 20
            if look_of == LIFE:
                self.add(f'<path class="life" transform="translate({number(x + 6)} {y - 4})" d="{LIFE}"')
            elif isinstance(look_of, tuple):
                kind = 'class="cancel"' if legend == "cancel" else f'fill="{look_of[0]}"'
                self.add(f'<path {kind} transform="translate({number(x + 6)} {number(y - 2)})" d="{look_of[1]}"')
            else:
                self.add(f'<rect x="{number(x)}" y="{y - 10}" width="12" height="12" rx="2" fill="{look_of}"')
            self.text(x + 18, y, legend, "small")
            x += 38 + len(legend) * SMALL
        if len(self.trace.tasks) > ROWS:
            y += 20
            self.text(4, y, f"and {len(self.trace.tasks) - ROWS} more tasks", "small")
        if not self.trace.end:
            y += 20
            self.text(4, y, "No time has passed: a run on the virtual clock in which nobody sleeps.", "small")
        self.height = y + 12

    def svg(self):
        return "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{self.height}" '
            f'viewBox="0 0 {WIDTH} {self.height}" role="img" aria-label="{html.escape(self.title or "Timeline")}">',
            f"<style>\n{STYLE}\n</style>",
            '<defs><marker id="head" viewBox="0 0 6 6" refX="5.5" refY="3" markerWidth="6" markerHeight="6" '
            f'orient="auto"><path d="M0 0L6 3L0 6Z" fill="{TEXT}"/></marker></defs>',
            *self.out, "</svg>", ""])


def main():
    parser = argparse.ArgumentParser(description="Draws a trace of conc as a picture.")
    parser.add_argument("trace")
    parser.add_argument("picture")
    parser.add_argument("--title", default="")
    arguments = parser.parse_args()
    try:
        picture = Picture(Trace(arguments.trace), arguments.title).svg()
        with open(arguments.picture, "w", encoding="utf-8", newline="\n") as file:
            file.write(picture)
    except NoTrace as error:
        sys.exit(f"{arguments.trace} is no trace: {error}")
    except OSError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
