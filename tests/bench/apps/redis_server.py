"""redis_server.py: a Redis server of its own, on a free port and in a temporary folder, with an append-only file that it
brings to the disk each second, until stdin ends. Prints its address when it answers."""
import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent.parent / "apps"))
import apps

port, where = apps.free_port(), apps.folder()
argv = ["redis-server", "--port", port, "--bind", "127.0.0.1", "--dir", where, "--save", "", "--appendonly", "yes",
        "--auto-aof-rewrite-percentage", "0"]  # a rewrite would be measured with whoever has it
with apps.serving(apps.Server(argv, port, where)):
    print(f"127.0.0.1:{port}", flush=True)
    sys.stdin.read()
