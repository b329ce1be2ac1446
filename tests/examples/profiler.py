import json
import os
import pathlib
import subprocess
import sys
import xml.etree.ElementTree

from scenarios import equal, main

TIMELINE = pathlib.Path(__file__).resolve().parent.parent / "timeline.py"


def _report(program, *arguments):
    return subprocess.run([program, *arguments], text=True, stdout=subprocess.PIPE, check=True).stdout


def _trace(program):
    _report(program, "--trace", "trace.json")
    with open("trace.json", encoding="utf-8") as file:
        return json.load(file)


def _draw(trace):
    return subprocess.run([sys.executable, "-B", TIMELINE, trace, "trace.svg", "--title", "A <title>"], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)


def the_report_is_the_same_when_the_trace_is_kept_and_when_it_is_read_again(program):
    report = _report(program)
    equal(_report(program, "--trace", "trace.json"), report, "the report with --trace")
    equal(_report(program, "trace.json"), report[report.index("Tasks"):], "the report on the trace")


def the_spans_of_a_task_neither_overlap_nor_go_backwards(program):
    ends = {}
    for event in _trace(program):
        if event["ph"] == "X":
            start, end = event["ts"], event["ts"] + event["dur"]
            if start < ends.get(event["tid"], 0) - 0.0005 or end < start:
                print(f"the row's last span ends at {ends[event['tid']]}: {event}")
            ends[event["tid"]] = end
    equal(len(ends) > 5, True, "rows for the tasks and the loop")


def each_arrow_has_two_ends_and_goes_forward(program):
    begun = {event["id"]: event["ts"] for event in _trace(program) if event["ph"] == "s"}
    ended = {event["id"]: event["ts"] for event in _trace(program) if event["ph"] == "f"}
    equal(begun.keys(), ended.keys(), "arrows")
    equal([i for i in begun if begun[i] > ended.get(i, 0)], [], "arrows that go backwards")
    equal(bool(begun), True, "there are arrows")


def the_trace_is_drawn(program):
    _trace(program)
    done = _draw("trace.json")
    equal((done.returncode, done.stdout), (0, ""), "exit status and messages")
    text = "".join(xml.etree.ElementTree.parse("trace.svg").getroot().itertext())
    for wanted in ("A <title>", "order 3", "waits for a lock", "poster: running · 120 ms, from 30 ms to 150 ms"):
        equal(wanted in text, True, f"the picture has {wanted!r}")


def a_trace_without_its_end_is_drawn(program):
    _trace(program)
    text = pathlib.Path("trace.json").read_text(encoding="utf-8")
    pathlib.Path("trace.json").write_text(text[:len(text) * 2 // 3], encoding="utf-8")
    equal(_draw("trace.json").returncode, 0, "exit status")


def what_is_no_trace_is_refused(_):
    for content in (b"", b"no trace", b"[]", b"{}", b"[1, 2]", b"[{}]", b'[{"ph":"X","tid":1}]', b"\xff\xfe",
                    b"[" * 9999, b'[{"ph":"X","tid":1,"name":"running","ts":"x","dur":1}]'):
        pathlib.Path("nothing.json").write_bytes(content)
        done = _draw("nothing.json")
        equal((done.returncode, done.stdout.startswith("nothing.json is no trace: "), done.stdout.count("\n")),
              (1, True, 1), f"{content[:40]!r}: exit status, and whether one line says so: {done.stdout}")


def a_file_that_is_not_there_is_said(_):
    done = _draw("missing.json")
    equal((done.returncode, "missing.json" in done.stdout), (1, True), "exit status, and whether it is named")


if __name__ == "__main__":
    os.environ.pop("CONC_CLOCK", None)
    main(__name__)
