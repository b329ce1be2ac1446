import http.server
import socket
import threading
from signal import SIGINT

from scenarios import Running, equal, main


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        with self.server.lock:
            self.server.connections += 1

    def do_GET(self):
        with self.server.lock:
            self.server.in_flight += 1
            self.server.peak = max(self.server.peak, self.server.in_flight)
        self.answer(self.path.split("/")[1])
        with self.server.lock:
            self.server.in_flight -= 1

    def answer(self, word):
        if word == "meet":
            self.server.meeting.wait()
        if word == "hangs":
            self.server.over.wait()
        status = {"broken": 500, "moved": 302}.get(word, 200)
        body = b"x" * 10_000_000 if word == "large" else b'{"path": "%s"}' % self.path.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 302:
            self.send_header("Location", "/here")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class _Server(http.server.ThreadingHTTPServer):
    """Counts connections and requests in flight; those for /meet are answered when `together` of them are there."""
    daemon_threads = True
    request_queue_size = 100

    def __init__(self, together=1):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock, self.meeting, self.over = threading.Lock(), threading.Barrier(together), threading.Event()
        self.in_flight = self.peak = self.connections = 0
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_):
        pass  # the client hung up


def _refusing_url():
    """The socket keeps the port, and does not listen."""
    keeper = socket.socket()
    keeper.bind(("127.0.0.1", 0))
    return keeper, f"http://127.0.0.1:{keeper.getsockname()[1]}/"


def bodies_come_in_the_order_of_the_urls_from_requests_in_flight_at_once(program):
    server = _Server(together=20)
    paths = [f"/meet/{n}" for n in range(20)]
    with Running(program, *[server.url + path for path in paths]) as client:
        equal(client.end(), (0, ""), "exit status and messages")
        equal(client.lines, [f'{server.url}{path}: {len(path) + 12} bytes, {{"path": "{path}"}}' for path in paths],
              "its output")
        equal(server.peak, 20, "requests in flight at once")


def each_url_has_its_own_error_and_the_others_succeed(program):
    server = _Server()
    keeper, refusing = _refusing_url()
    urls = [server.url + "/1", server.url + "/broken", refusing, "nonsense://x", server.url + "/hangs",
            server.url + "/2"]
    with keeper, Running(program, *urls) as client:
        equal(client.end(), (0, ""), "exit status and messages")
        starts = [f"{urls[0]}: 14 bytes", *[f"Error fetching {url}: " for url in urls[1:5]], f"{urls[5]}: 14 bytes"]
        for line, start in zip(client.lines, starts, strict=True):
            equal(line[:len(start)], start, "the beginning of a line")
        for line, words in zip(client.lines[1:5], ["500", "onnect", "nonsense", "out of time"], strict=True):
            equal(words in line, True, f"whether {words!r} is in {line!r}")


def a_connection_is_used_again(program):
    server = _Server()
    with Running(program, server.url + "/moved") as client:
        equal(client.end(), (0, ""), "exit status and messages")
        equal(client.lines, [f'{server.url}/moved: 17 bytes, {{"path": "/here"}}'], "its output")
        equal((server.peak, server.connections), (1, 1), "requests at once, connections")


def a_large_body_arrives_whole(program):
    server = _Server()
    with Running(program, server.url + "/large") as client:
        equal(client.end(), (0, ""), "exit status and messages")
        equal(client.lines, [f"{server.url}/large: 10000000 bytes, " + "x" * 60], "its output")


def ctrl_c_gives_up_what_is_under_way(program):
    server = _Server(together=2)
    with Running(program, server.url + "/meet/1", server.url + "/hangs") as client:
        server.meeting.wait()
        client.kill(SIGINT)
        equal(client.end(), (130, ""), "exit status and messages")
        equal(client.lines, [], "its output")


if __name__ == "__main__":
    main(__name__)
