"""postgres_server.py: a PostgreSQL server of its own, on a free port and in a temporary folder, until stdin ends. Prints its
URL when it answers, and the table is there."""
import pathlib
import signal
import subprocess
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent.parent / "apps"))
import apps

# So that inserting measures no checkpoints and no vacuum.
CREATE = "CREATE TABLE payments (id BIGINT PRIMARY KEY, amount BIGINT NOT NULL) WITH (autovacuum_enabled = off)"

with apps.postgres() as server:
    url = f"postgres://postgres@127.0.0.1:{server.port}/postgres?sslmode=disable"
    psql = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"))[-1] / "psql"
    subprocess.run([psql, "-q", "-X", "-c", CREATE, url], check=True)
    print(url, flush=True)
    sys.stdin.read()
    server.stop(signal.SIGINT)  # as it should end: nothing is left in shared memory
