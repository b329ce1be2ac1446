"""web_run.py WHO PROGRAMS COUNT FIGURES: starts a web server on one processor, and drives it by PROGRAMS/apps_web_load on
another. Prints milliseconds on the clock, milliseconds of the server on its processor, and COUNT/RIGHT, for COUNT requests
after a warm-up. Adds to the file FIGURES: WHO, requests a second of processor time, the milliseconds of the 99th percentile
at half of the rate that it has reached, and KiB of memory that 1000 idle connections take."""
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

NGINX = """daemon off; master_process off; pid %(folder)s/pid; error_log stderr; worker_rlimit_nofile 4096;
events { worker_connections 4096; }
http {
    access_log off; default_type application/json; keepalive_requests 100000000;
    client_body_temp_path %(folder)s/b; proxy_temp_path %(folder)s/p; fastcgi_temp_path %(folder)s/f;
    uwsgi_temp_path %(folder)s/u; scgi_temp_path %(folder)s/s;
    server { listen 127.0.0.1:%(port)d;
%(locations)s    }
}
"""
USERS = (("Ada", 36), ("Grace", 85), ("Edsger", 72))
HERE = pathlib.Path(__file__).resolve().parent


def nginx(port, folder):
    locations = "".join('        location = /users/%d { return 200 \'{"id":%d,"name":"%s","email":"%s@example.org","age":%d}\'; }\n'
                        % (i, i, name, name.lower(), age) for i, (name, age) in enumerate(USERS, 1))
    config = pathlib.Path(folder) / "nginx.conf"
    config.write_text(NGINX % {"folder": folder, "port": port, "locations": locations})
    return ["nginx", "-p", folder, "-c", str(config)]


def command(who, programs, port, folder):
    address = f"127.0.0.1:{port}"
    if who == "conc":
        return [f"{programs}/apps_web_conc", "--listen", address, "--loops", "1", "--quiet", "--page",
                str(HERE.parents[2] / "examples/12_projects/01_web_framework.html")]
    if who == "go":
        return [f"{programs}/apps_web_go", address]
    if who == "nginx":
        return nginx(port, folder)
    return [sys.executable, "-m", "uvicorn", "--app-dir", str(HERE), "--port", str(port), "--no-access-log", "--log-level",
            "error", "--timeout-keep-alive", "600", "web_fastapi:app"]


def processor_seconds(pid):
    return sum(int(path.read_text().split()[0]) for path in pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e9


def memory(pid):
    """KiB that are resident and its own."""
    return sum(int(line.split()[1]) for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
               if line.startswith("Private_"))


def wait_until_answers(port, server):
    end = time.monotonic() + 30
    while True:
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        if server.poll() is not None or time.monotonic() > end:
            sys.exit("the server does not answer")
        time.sleep(0.02)


def main():
    who, programs, count, figures = sys.argv[1], pathlib.Path(sys.argv[2]).resolve(), int(sys.argv[3]), sys.argv[4]
    processors = sorted(os.sched_getaffinity(0))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]

    def load(*words, **more):
        os.sched_setaffinity(0, {processors[-1]})  # which the child inherits
        return subprocess.Popen([f"{programs}/apps_web_load", f"127.0.0.1:{port}", *map(str, words)], stdout=subprocess.PIPE,
                                text=True, **more)

    def asked(*words):
        client = load(*words)
        out = client.communicate(timeout=250)[0]
        if client.returncode:
            sys.exit("the client failed")
        return out.split()

    with tempfile.TemporaryDirectory() as folder:
        os.sched_setaffinity(0, {processors[0]})
        server = subprocess.Popen(command(who, programs, port, folder), stdout=subprocess.DEVNULL, cwd=folder,
                                  env={**os.environ, "GOMAXPROCS": "1", "PYTHONDONTWRITEBYTECODE": "1"})
        try:
            wait_until_answers(port, server)
            asked(max(count // 5, 1))
            before = processor_seconds(server.pid)
            wall, right = asked(count)
            used = processor_seconds(server.pid) - before
            rate = count / float(wall) * 1e3
            _, late, _ = asked(max(min(count, int(rate * 2)), 100), f"{rate / 2:.0f}")  # at most 4 s
            small = memory(server.pid)
            idle = load("idle", 1000, stdin=subprocess.PIPE)
            if idle.stdout.readline() != "open\n":
                sys.exit("1000 connections do not open")
            large = memory(server.pid)
            idle.communicate()
        finally:
            server.send_signal(signal.SIGKILL)
            server.wait()
    print(f"{float(wall):.3f} {used * 1e3:.3f} {count}/{right}")
    with open(figures, "a") as file:
        print(who, f"{count / used if used else 0:.0f} {late} {large - small}", file=file)


main()
