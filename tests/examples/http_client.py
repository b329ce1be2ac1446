import http.server
import json
import socket
import threading

from scenarios import Running, equal, main

USERS = 4


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with self.server.lock:
            self.server.in_flight += 1
            self.server.peak = max(self.server.peak, self.server.in_flight)
        status, body = self.server.answer(int(self.path.removeprefix("/users/")))
        with self.server.lock:
            self.server.in_flight -= 1
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class _Server(http.server.ThreadingHTTPServer):
    """Asks answer(user) for the status and the body of each answer."""
    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer, self.lock, self.in_flight, self.peak = answer, threading.Lock(), 0, 0
        self.address = f"127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, *_):
        pass  # the client hung up


def _gets(program, server, answers):
    """The program prints these answers, in the order of the users."""
    with Running(program, server.address) as client:
        equal(client.end(), (0, ""), "exit status and messages")
        equal(client.lines, [*[f"/users/{n + 1}: {answers[n]}" for n in range(USERS)],
                             f"At most {USERS} requests at once"], "its output")


def _name(text):
    return 200, json.dumps({"name": text}).encode()


def names_come_in_the_order_of_the_users_from_requests_in_flight_at_once(program):
    together = threading.Barrier(USERS)

    def answer(user):
        together.wait()
        return _name(f"name {user}")

    server = _Server(answer)
    _gets(program, server, [f"name {n + 1}" for n in range(USERS)])
    equal(server.peak, USERS, "requests in flight at once")


def each_user_has_its_own_error_and_the_others_succeed(program):
    answers = [_name("Ada"), (404, b"<html>Not Found</html>"), (200, b'{"name": 3}'), _name("Grace")]
    _gets(program, _Server(lambda user: answers[user - 1]),
          ["Ada", *["Error fetching: no name in the answer"] * 2, "Grace"])


def what_is_too_long_is_cut_or_refused(program):
    answers = [_name("x" * 79), _name("x" * 80), _name("x" * 2000), _name("x" * 1_000_000)]
    server = _Server(lambda user: answers[user - 1])
    with Running(program, server.address) as client:
        equal(client.end(), (0, ""), "exit status and messages")
        equal(client.lines[:2], [f"/users/{n}: " + "x" * 79 for n in (1, 2)], "what fits, and what is cut")
        equal([line.startswith(f"/users/{n}: Error fetching: ") for n, line in zip((3, 4), client.lines[2:4])],
              [True, True], f"whether the others are refused: {client.lines[2:4]}")


def json_of_all_kinds_is_decoded(program):
    answers = [(200, b'{"name": "\\u00e9 \\"x\\" 100%s"}'), (200, b'{"id": [1, {"name": "no"}], "name": "yes"}'),
               (200, b'[{"name": "no"}]'), (200, b"")]
    missing = "Error fetching: no name in the answer"
    _gets(program, _Server(lambda user: answers[user - 1]), ['\u00e9 "x" 100%s', "yes", missing, missing])


def a_server_that_is_not_there_is_said(program):
    with socket.socket() as keeper:  # it keeps the port, and does not listen
        keeper.bind(("127.0.0.1", 0))
        with Running(program, f"127.0.0.1:{keeper.getsockname()[1]}") as client:
            equal(client.end(), (0, ""), "exit status and messages")
            equal(["onnect" in line for line in client.lines[:USERS]], [True] * USERS, f"what is said: {client.lines}")


def a_request_that_hangs_is_given_up_after_3_s(program):
    over = threading.Event()
    server = _Server(lambda user: over.wait() if user == 2 else _name("x"))
    _gets(program, server, ["x", "Error fetching: Timeout was reached", "x", "x"])


if __name__ == "__main__":
    main(__name__)
