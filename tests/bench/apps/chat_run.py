"""chat_run.py WHO PROGRAMS CLIENTS SECONDS: starts a chat server, and has the load of PROGRAMS/apps_chat_conc talk to it on the
same two processors: CLIENTS in rooms of twenty, each of whom says something once a second. Prints "-", as the time on the clock
is given; the milliseconds of the server on the processors, from when all have joined until all messages have come;
RECEIVED/SUM, the sum of their senders, numbers and places in the order of their rooms; and the median and the 99th percentile
of the latency in milliseconds. Before that other rooms have talked for two seconds."""
import os
import re
import subprocess
import sys

WARM = 2  # seconds
ROOM = 20


def command(who, programs):
    address = "127.0.0.1:0"
    if who == "conc":
        return [f"{programs}/apps_chat_conc", "--listen", address, "--quiet"]
    if who == "go":
        return [f"{programs}/apps_chat_go", address]
    return [sys.executable, f"{os.path.dirname(__file__)}/chat_{who}.py", address]


def load(programs, address, server, clients, seconds):
    """received, sum, ms of the server, p50, p99; fewer received than said: the program has told, and failed."""
    done = subprocess.run([f"{programs}/apps_chat_conc", "--load", address, "--clients", str(clients), "--seconds", str(seconds),
                           "--server", str(server.pid), "--figures"], stdout=subprocess.PIPE, text=True, timeout=seconds + 60)
    figures = done.stdout.split()
    if figures and int(figures[0]) < clients * ROOM * seconds:
        sys.exit(f"it does not hold {clients * ROOM} messages a second: {figures[0]} of {clients * ROOM * seconds} came in time")
    if done.returncode:
        sys.exit("the load failed")
    return figures


def main(who, programs, clients, seconds):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])  # which the children inherit
    server = subprocess.Popen(command(who, programs), stdout=subprocess.PIPE, text=True)
    try:
        listens = re.search(r"127\.0\.0\.1:\d+", server.stdout.readline())
        if not listens:
            sys.exit("the server does not start")
        load(programs, listens[0], server, clients, WARM)
        received, total, used, p50, p99 = load(programs, listens[0], server, clients, seconds)
    finally:
        server.kill()
        server.wait()
    print(f"- {used} {received}/{total} {p50} {p99}")


main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
