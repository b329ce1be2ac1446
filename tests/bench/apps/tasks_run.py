"""tasks_run.py WHO ADDRESS COUNT: five worker processes on this Redis do COUNT tasks that do nothing. Prints the milliseconds
from the first of them that is added to the last that is done, and those of the producer and the workers on the processors.

WHO is
  conc       examples/11_apps/06_task_queue.c
  go         tasks_go.go, which calls the same functions in Redis
  go_stream  the same with a stream alone: no priorities, times, dependencies, retries, leases or names of tasks
  rq         RQ as it comes: a process for each task
  rq_simple  RQ's SimpleWorker: all tasks in the worker's own process
Before that a tenth of the tasks is done, so that all are connected and warm. The producer of RQ is this process; the others
start one, which is measured with its start. RQ does a tenth of the tasks, and its figures are multiplied by ten.
"""
import os
import resource
import socket
import subprocess
import sys
import time

WORKERS = 5
RQ_SHARE = 10
OUT = "build/bench/apps_tasks_"


class Redis:
    """Enough of a client, which needs no package."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.file = socket.create_connection((host, int(port))).makefile("rwb")

    def ask(self, *words):
        """A number; a string or nothing is one, too."""
        self.file.write((" ".join(words) + "\r\n").encode())
        self.file.flush()
        line = self.file.readline().decode().strip()
        if line.startswith("-"):
            sys.exit(line)
        if line.startswith("$") and line != "$-1":
            line = ":" + self.file.readline().decode().strip()
        return int(line[1:]) if line.startswith(":") else 0


def until(condition):
    while not condition():
        time.sleep(0.002)


class Program:
    """Workers and a producer that are programs, in C or in Go."""

    def __init__(self, worker, producer, done, workers):
        self.worker, self.producer, self.done, self.workers = worker, producer, done, workers

    def produce(self, count, run):
        words = [run if word == "run" else word for word in (*self.producer, str(count))]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


class Rq:
    done, workers = ("ZCARD", "rq:finished:default"), ("SCARD", "rq:workers")

    def __init__(self, address, *options):
        import redis
        import rq
        self.worker = ["rq", "worker", "-q", "-u", f"redis://{address}", *options]
        self.queue = rq.Queue(connection=redis.Redis.from_url(f"redis://{address}"))

    def produce(self, count, _):
        for start in range(0, count, 500):
            size = min(500, count - start)
            self.queue.enqueue_many([self.queue.prepare_data("operator.not_", (1,)) for _ in range(size)])


def peer(who, address):
    if who == "conc":
        program = [OUT + "conc", "--redis", address]
        return Program([*program, "--worker", "--quiet", "--slots", "500", "--name"],
                       [*program, "--enqueue", "noop", "--id", "run", "--count"], ("HGET", "tasks:counters", "done"), ("ZCARD", "tasks:seen"))
    if who in ("go", "go_stream"):
        program = [OUT + "go", address, who]
        return Program([*program, "worker"], [*program, "producer", "run"], ("HGET", "tasks:counters", "done"), ("ZCARD", "tasks:seen"))
    return Rq(address, *(["-w", "rq.SimpleWorker"] if who == "rq_simple" else []), "-n")


def processor_time(processes):
    """Of these, of their children that have ended, and of this process and its own, in seconds."""
    total = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    for process in processes:
        with open(f"/proc/{process.pid}/stat", encoding="ascii") as stat:
            total += sum(map(int, stat.read().rsplit(")", 1)[1].split()[13:15])) / os.sysconf("SC_CLK_TCK")
        total += time.clock_gettime(~process.pid << 3 | 2)  # the clock of its processor time: clock_getcpuclockid(3)
    return total


def measure(redis, who, workers, count):
    scale = RQ_SHARE if isinstance(who, Rq) else 1
    count //= scale
    warm = count // 10
    until(lambda: redis.ask(*who.workers) == WORKERS)
    who.produce(warm, "warm")
    until(lambda: redis.ask(*who.done) == warm)
    wall, processor = time.monotonic(), processor_time(workers)
    who.produce(count, "measured")
    until(lambda: redis.ask(*who.done) >= warm + count)
    wall, processor = (time.monotonic() - wall) * scale, (processor_time(workers) - processor) * scale
    print(f"{wall * 1e3:.3f} {processor * 1e3:.3f} {count * scale}/{(redis.ask(*who.done) - warm) * scale}")


def main(name, address, count):
    redis = Redis(address)
    redis.ask("FLUSHALL")
    subprocess.run([OUT + "conc", "--metrics", "--redis", address], check=True, stdout=subprocess.DEVNULL)  # loads the functions
    who = peer(name, address)
    workers = [subprocess.Popen([*who.worker, f"w{i}"], stdout=subprocess.DEVNULL) for i in range(WORKERS)]
    try:
        measure(redis, who, workers, count)
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()


main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
