#!/usr/bin/env python3
"""The web framework: what clients see, on raw sockets, with curl, wrk and a browser; its log; how it ends."""
import base64
import concurrent.futures
import contextlib
import functools
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time

import apps
import browser

SOURCE = "12_projects/01_web_framework.c"
ADA = {"id": 1, "name": "Ada", "email": "ada@example.org", "age": 36}


@functools.cache
def program():
    return apps.compiled(SOURCE)


class Web:
    """The server while it runs, and its clients."""

    def __init__(self, process):
        self.process = process
        apps.until(lambda: "listens on" in self.log() or process.poll() is not None, "it listens")
        apps.check(process.poll() is None, self.log())
        self.port = int(re.search(r"listens on https?://127\.0\.0\.1:(\d+), \d+ loops\n", self.log())[1])

    def log(self):
        return self.process.out.read_text(errors="replace")

    def ask(self, method, path, body=None, **headers):
        """(status, headers, body)"""
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20 * apps.SLOW)
        with contextlib.closing(client):
            client.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
            answer = client.getresponse()
            return answer.status, answer.headers, answer.read()

    def json(self, method, path, body=None, **headers):
        """(status, value)"""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        status, _, answer = self.ask(method, path, body, Content_Type="application/json", **headers)
        return status, json.loads(answer) if answer else None

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=20 * apps.SLOW)

    def raw(self, data, shut=False):
        """Returns everything that the server sends until it closes."""
        with self.connect() as s:
            s.sendall(data)
            if shut:
                s.shutdown(socket.SHUT_WR)
            return read_all(s)

    def sessions(self):
        """Returns how many are open; all opened ones must be closed eventually."""
        stats = self.json("GET", "/stats")[1]
        return stats["sessionsOpened"] - stats["sessionsClosed"]

    def stop(self, status=0):
        self.process.send_signal(signal.SIGTERM)
        apps.check(self.process.wait(30 * apps.SLOW) == status, self.process.returncode, self.log()[-2000:])


@contextlib.contextmanager
def web(*arguments, cwd=None):
    page = apps.TOP / "examples/12_projects/01_web_framework.html"
    with apps.started(program(), "--listen", "127.0.0.1:0", "--page", page, *arguments, cwd=cwd) as process:
        yield Web(process)


def read_all(s):
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := s.recv(65536):
            data += piece
    return data


def status_of(answer):
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else None


# ---- routing ----

def test_routes():
    with web() as w:
        apps.check(w.json("GET", "/users/1") == (200, ADA))
        for path in ("/users/1?x=1", "/us%65rs/1", "/users/01"):
            apps.check(w.json("GET", path) == (200, ADA), path)
        for path in ("/users/", "/users/x", "/users/1x", "/users/1/", "/users//1", "/users/+1", "/users/1%2F", "/users/-",
                     "/users/9223372036854775808", "/Users/1", "//users/1", "/x", "/users/1/2", "/numbers", "/users/999"):
            apps.check(w.json("GET", path)[0] == 404, path, w.json("GET", path))
        for path in ("/users/%", "/users/%zz", "/files/%00"):
            apps.check(w.json("GET", path)[0] == 400, path)
        apps.check(w.json("GET", "/files/" + "x" * 1100)[0] == 414)


def test_methods():
    with web() as w:
        for path, allow in (("/users", "GET, HEAD, POST, OPTIONS"), ("/users/1", "GET, HEAD, DELETE, OPTIONS"),
                            ("/echo", "POST, OPTIONS")):
            status, headers, body = w.ask("PATCH", path)
            apps.check((status, headers["Allow"]) == (405, allow), path, status, headers)
            apps.check(json.loads(body) == {"error": "this path does not support this method"}, body)
            status, headers, body = w.ask("OPTIONS", path)
            apps.check((status, headers["Allow"], body) == (204, allow, b""), path, status, headers)
        apps.check(w.ask("OPTIONS", "*")[0] == 204)
        status, headers, body = w.ask("HEAD", "/users/1")
        apps.check((status, headers["Content-Length"], body) == (200, "56", b""), status, headers, body)
        apps.check(w.ask("HEAD", "/echo")[0] == 405)
        apps.check(status_of(w.raw(b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n")) == 501)


# ---- middleware and dependencies ----

def lines_of(w, request):
    """Returns the log's text for this id, without the id."""
    return [line.split(" ", 1)[1] for line in w.log().splitlines() if line.startswith(request + " ")]


def settled(w, request):
    """The same, when the request is over."""
    apps.until(lambda: "out log_access" in lines_of(w, request), f"the end of {request}")
    return lines_of(w, request)


def test_middleware_and_dependencies_come_in_order():
    with web("--verbose") as w:
        w.ask("GET", "/users/2", X_Request_Id="good")
        lines = settled(w, "good")
        apps.check(re.fullmatch(r"127.0.0.1:\d+ GET /users/2: 200, 60 bytes, [\d.]+ ms", lines[5]), lines)
        apps.check(lines[:5] + lines[6:] == [
            "in log_access", "open a_session", "in get_user", "out get_user", "close a_session", "out log_access"], lines)

        apps.check(w.ask("GET", "/fail", X_Request_Id="bad")[0] == 500)
        lines = settled(w, "bad")
        apps.check(lines[3:6] == ["out fail", "close a_session", "rolled back: Input/output error"], lines)
        apps.check(re.search(r"GET /fail: 500, 29 bytes, .* ms; this always fails$", lines[6]), lines)

        status, _, body = w.ask("DELETE", "/users/3", X_Request_Id="refused")
        apps.check((status, json.loads(body)) == (401, {"error": "this needs a token"}), status, body)
        lines = settled(w, "refused")
        apps.check(lines[:3] == ["in log_access", "in require_token", "out require_token"], lines)
        apps.check(w.ask("GET", "/users/3")[0] == 200)
        apps.check(w.ask("DELETE", "/users/3", Authorization="Bearer secret!")[0] == 401)
        apps.check(w.ask("DELETE", "/users/3", Authorization="Bearer secret")[0] == 204)
        apps.check(w.ask("GET", "/users/3")[0] == 404)
        apps.check(w.sessions() == 0)


def test_dependencies_close_after_the_response():
    """The client has the whole response before the session is closed: so says the order of the log, in which the handler's
    end comes after it has sent; and a client that does not read holds the session."""
    with web("--verbose", "--timeout", 1) as w, w.connect() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.sendall(b"POST /slow/300 HTTP/1.1\r\nHost: x\r\nX-Request-Id: slow\r\n\r\n")
        apps.until(lambda: "in slow_change" in lines_of(w, "slow"), "it runs")
        apps.check(w.sessions() == 1)
        apps.check(s.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n"))
        lines = settled(w, "slow")
        apps.check(lines.index("out slow_change") < lines.index("close a_session"), lines)
        apps.until(lambda: w.sessions() == 0, "it is closed")


def test_dependencies_close_when_the_client_leaves():
    with web("--verbose") as w:
        for how in ("closes", "resets", "shuts", "pipelines"):
            with w.connect() as s:
                s.sendall(f"POST /slow/60000 HTTP/1.1\r\nHost: x\r\nX-Request-Id: {how}\r\n\r\n".encode())
                apps.until(lambda: "in slow_change" in lines_of(w, how), "it runs")
                apps.check(w.sessions() == 1)
                if how == "resets":
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                if how == "pipelines":
                    s.sendall(b"GET / HTTP/1.1\r\n")
                if how == "shuts":
                    s.shutdown(socket.SHUT_WR)
                    settled(w, how)
            lines = settled(w, how)
            apps.check(lines[lines.index("close a_session") + 1] == "rolled back: cancelled", how, lines)
            apps.check(any(line.endswith("; the client left") for line in lines), how, lines)
            apps.until(lambda: w.sessions() == 0, "it is closed")


def test_dependencies_close_when_the_time_is_over():
    with web("--verbose") as w:
        status, value = w.json("POST", "/slow/60000", X_Request_Id="late")
        apps.check((status, value) == (503, {"error": "this took too long"}), status, value)
        lines = settled(w, "late")
        apps.check("rolled back: cancelled" in lines, lines)
        apps.check(any(re.search(r"POST /slow/60000: 503, .*timed out", line) for line in lines), lines)
        apps.check(w.sessions() == 0)


def test_a_hundred_requests_at_once():
    with web("--loops", 1) as w, concurrent.futures.ThreadPoolExecutor(100) as pool:
        began = time.monotonic()
        answers = list(pool.map(lambda i: w.ask("POST", "/slow/500"), range(100)))
        apps.check([answer[0] for answer in answers] == [200] * 100)
        apps.check(time.monotonic() - began < 25 * apps.SLOW)  # one after the other they would take 50 s
        apps.check(w.sessions() == 0)


# ---- validation ----

def errors_of(w, body, path="/users", method="POST"):
    status, value = w.json(method, path, body)
    apps.check(status == 422, body, status, value)
    return {error["field"]: error["reason"] for error in value["errors"]}


def test_a_user_is_added():
    with web("--loops", 2) as w:
        status, headers, body = w.ask("POST", "/users", b'{"name": "Al\\u00e4n", "age": 41} \r\n',
                                      Content_Type="Application/JSON; charset=utf-8")
        apps.check((status, headers["Location"]) == (201, "/users/4"), status, headers)
        apps.check(json.loads(body) == {"id": 4, "name": "Alän", "email": "", "age": 41}, body)
        for _ in range(8):  # whichever loop answers
            apps.check(w.json("GET", "/users/4")[1]["name"] == "Alän")
        users = w.json("GET", "/users?after=2&limit=1")[1]["users"]
        apps.check([user["id"] for user in users] == [3], users)


def test_bad_bodies_are_answered_with_422():
    good = {"name": "A", "age": 1}
    cases = [
        ({}, {"name": "is missing", "age": "is missing"}),
        ({"name": "", "age": 151}, {"name": "must have at least 1 bytes", "age": "must be at most 150"}),
        ({"name": "x" * 41, "age": -1}, {"name": "must have at most 40 bytes", "age": "must be at least 0"}),
        ({"name": 1, "age": "1"}, {"name": "must be text", "age": "must be a number"}),
        ({"name": None, "age": 1.5}, {"name": "must be text", "age": "must be a whole number"}),
        ({**good, "email": 1, "admin": True}, {"email": "must be text", "admin": "is unknown"}),
        ({**good, "Name": "B"}, {"Name": "is unknown"}),
        (b'{"name": "A", "age": 1, "age": 2}', {"age": "occurs twice"}),
        (b'{"name": "A", "age": 1e999}', {"age": "must be a whole number"}),
        (b'{"name": "\xff", "age": 1}', {"name": "is not UTF-8"}),
        (b'{"name": "\xed\xa0\x80", "age": 1}', {"name": "is not UTF-8"}),
        (b'{"name": "a\\u0000b", "age": 1}', {"body": "must have no NUL in its text"}),
        (b"[]", {"body": "must be a JSON object"}),
        (b"", {"body": "is not JSON, from byte 1 on"}),
        (b'{"name": "A", "age": 1} x', {"body": "is not JSON, from byte 25 on"}),
        (b'{"name": "A", "age": 1', {"body": "is not JSON, from byte 22 on"}),
        (b"[" * 5000, None),
    ]
    with web() as w:
        for body, expected in cases:
            found = errors_of(w, body)
            apps.check(expected is None or found == expected, body, found)
        for path, expected in (("/users?limit=x", {"limit": "must be a number"}), ("/users?limit=0", {"limit": "must be at least 1"}),
                               ("/users?after=1.5&limit=101", {"after": "must be a whole number", "limit": "must be at most 100"}),
                               ("/users?limit=%zz", {"limit": "a broken escape, or an encoded NUL"})):
            apps.check(errors_of(w, None, path, "GET") == expected, path, errors_of(w, None, path, "GET"))
        apps.check(w.ask("POST", "/users", b"{}", Content_Type="text/plain")[0] == 415)
        apps.check(len(w.json("GET", "/users")[1]["users"]) == 3)  # nothing was added
        apps.check(w.sessions() == 0)


def test_a_body_that_is_too_large_is_refused():
    with web() as w:
        answer = w.raw(b"POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 65537\r\n\r\n{")
        apps.check(status_of(answer) == 413, answer)
        answer = w.raw(b"POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" +
                       b"10000\r\n" + b" " * 65536 + b"\r\n1\r\n \r\n0\r\n\r\n")
        apps.check(status_of(answer) == 413, answer)
        apps.check(w.sessions() == 0)


# ---- streams ----

def test_a_stream_comes_in_chunks():
    with web() as w:
        status, headers, body = w.ask("GET", "/numbers/100000")
        apps.check((status, headers["Transfer-Encoding"]) == (200, "chunked"), status, headers)
        apps.check(body == b"".join(b"%d\n" % i for i in range(1, 100001)))
        answer = w.raw(b"GET /numbers/3 HTTP/1.0\r\n\r\n")
        apps.check(answer.endswith(b"\r\n\r\n1\n2\n3\n") and b"chunked" not in answer, answer)


def memory_of(pid):
    return int(re.search(r"VmRSS:\s+(\d+)", open(f"/proc/{pid}/status").read())[1])


def test_a_client_that_does_not_read_holds_the_stream_and_nobody_else():
    with web("--loops", 1, "--timeout", 60) as w, contextlib.ExitStack() as stack:
        w.ask("GET", "/numbers/1000")
        before = memory_of(w.process.pid)
        for _ in range(10):
            s = stack.enter_context(w.connect())
            s.sendall(b"GET /numbers/100000000 HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(20):
            apps.check(w.ask("GET", "/users/1")[0] == 200)
        grown = memory_of(w.process.pid) - before
        apps.check(grown < 8192 * apps.SLOW, grown, "KiB")  # 10 times 900 MB were asked for
        s.recv(100)


def test_a_client_that_stalls_is_given_up():
    with web("--timeout", 0.3) as w, w.connect() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.sendall(b"GET /numbers/100000000 HTTP/1.1\r\nHost: x\r\nX-Request-Id: stalls\r\n\r\n")
        apps.until(lambda: any("the client stalled" in line for line in lines_of(w, "stalls")), "it is given up")
        apps.check(w.raw(b"POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{")
                   .startswith(b"HTTP/1.1 408 "))


def test_a_body_is_echoed_while_it_comes():
    """More than any buffer holds; the response begins before the body has ended."""
    with web() as w:
        with w.connect() as s:
            s.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
            apps.until(lambda: b"hello" in s.recv(4096, socket.MSG_PEEK), "it comes back")
            s.sendall(b"0\r\n\r\n")
        file = apps.folder() / "large"
        file.write_bytes(os.urandom(1 << 20) * (8 if apps.SANITIZE else 40))
        for how in ("Content-Length", "Transfer-Encoding: chunked"):
            headers = ["-H", how] if ":" in how else []
            back = subprocess.run(["curl", "-s", "--noproxy", "*", "--data-binary", f"@{file}", *headers, "-H", "Expect: 100-continue",
                                   f"http://127.0.0.1:{w.port}/echo"], capture_output=True, timeout=60 * apps.SLOW).stdout
            apps.check(back == file.read_bytes(), how, len(back))


def test_events_end_when_the_client_leaves():
    with web("--verbose") as w:
        with w.connect() as s:
            s.sendall(b"GET /events HTTP/1.1\r\nHost: x\r\nX-Request-Id: events\r\n\r\n")
            data = b""
            while b"data: 2\n\n" not in data:
                data += s.recv(4096)
            apps.check(b"Content-Type: text/event-stream\r\n" in data and b"data: 1\n\n" in data, data)
        apps.check(any(line.endswith("; the client left") for line in settled(w, "events")))


# ---- files ----

def test_files():
    top = apps.folder()
    (top / "site/sub dir").mkdir(parents=True)
    (top / "secret.txt").write_text("secret")
    site = top / "site"
    (site / "a.txt").write_text("0123456789")
    (site / "sub dir/index.html").write_text("<p>index")
    (site / ".hidden").write_text("hidden")
    (site / "empty.css").write_text("")
    (site / "link.txt").symlink_to(top / "secret.txt")
    (site / "up").symlink_to(top)
    os.mkfifo(site / "fifo")
    large = os.urandom(300000)
    (site / "large.bin").write_bytes(large)
    with web("--files", site) as w:
        status, headers, body = w.ask("GET", "/files/a.txt")
        apps.check((status, body, headers["Content-Type"], headers["X-Content-Type-Options"]) ==
                   (200, b"0123456789", "text/plain; charset=utf-8", "nosniff"), status, headers, body)
        tag, date = headers["ETag"], headers["Last-Modified"]
        apps.check(w.ask("HEAD", "/files/a.txt")[1]["Content-Length"] == "10")
        apps.check(w.ask("GET", "/files/large.bin")[2] == large)
        apps.check(w.ask("GET", "/files/empty.css")[2] == b"")
        status, headers, body = w.ask("GET", "/files/sub%20dir/")
        apps.check((status, body, headers["Content-Type"]) == (200, b"<p>index", "text/html; charset=utf-8"), status, headers)
        status, headers, body = w.ask("GET", "/files/sub%20dir")
        apps.check((status, headers["Location"]) == (301, "/files/sub%20dir/"), status, headers)
        for path in ("none", "..", "../secret.txt", "%2e%2e/secret.txt", "..%2fsecret.txt", "sub dir/../a.txt", ".hidden", "link.txt",
                     "up/secret.txt", "fifo", "/a.txt", "a.txt/", "a.txt/b", "/etc/passwd", "", "x" * 300, "."):
            status, _, body = w.ask("GET", "/files/" + path.replace(" ", "%20"))
            apps.check(status == 404 and b"secret" not in body, path, status, body)

        for headers, status in (({"If-None-Match": tag}, 304), ({"If-None-Match": f'"x", W/{tag}'}, 304), ({"If-None-Match": "*"}, 304),
                                ({"If-None-Match": '"x"'}, 200), ({"If-None-Match": '"x"', "If-Modified-Since": date}, 200),
                                ({"If-Modified-Since": date}, 304), ({"If-Modified-Since": "Sun, 06 Nov 1994 08:49:37 GMT"}, 200),
                                ({"If-Modified-Since": "yesterday"}, 200)):
            answer = w.ask("GET", "/files/a.txt", **headers)
            apps.check(answer[0] == status and (status == 200) == (answer[2] != b""), headers, answer)
        for range_, status, part in (("bytes=2-4", 206, b"234"), ("bytes=7-", 206, b"789"), ("bytes=-2", 206, b"89"),
                                     ("bytes=-20", 206, b"0123456789"), ("bytes=8-99", 206, b"89"), ("bytes=10-", 416, b""),
                                     ("bytes=-0", 416, b""), ("bytes=3-2", 200, b"0123456789"), ("bytes=0-1,3-4", 200, b"0123456789"),
                                     ("lines=1-2", 200, b"0123456789"), ("bytes=-", 200, b"0123456789"),
                                     ("bytes=99999999999999999999-", 416, b"")):
            answer = w.ask("GET", "/files/a.txt", Range=range_)
            apps.check((answer[0], answer[2]) == (status, part), range_, answer)
        apps.check(w.ask("GET", "/files/a.txt", Range="bytes=2-4")[1]["Content-Range"] == "bytes 2-4/10")
        apps.check(w.ask("GET", "/files/a.txt", Range="bytes=2-4", If_Range=tag)[0] == 206)
        apps.check(w.ask("GET", "/files/a.txt", Range="bytes=2-4", If_Range='"x"')[0] == 200)
        apps.check(w.ask("GET", "/files/large.bin", Range="bytes=100000-199999")[2] == large[100000:200000])


# ---- WebSockets ----

class Socket:
    """A client in a few lines; frames of less than 126 bytes."""

    def __init__(self, w, path="/socket", **headers):
        self.s = w.connect()
        key = base64.b64encode(os.urandom(16)).decode()
        fields = {"Host": "x", "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13",
                  "Sec-WebSocket-Key": key, **{name.replace("_", "-"): value for name, value in headers.items()}}
        self.s.sendall(f"GET {path} HTTP/1.1\r\n".encode() + b"".join(
            f"{name}: {value}\r\n".encode() for name, value in fields.items() if value) + b"\r\n")
        self.head = b""
        while b"\r\n\r\n" not in self.head:
            piece = self.s.recv(1)
            apps.check(piece, "no answer:", self.head)
            self.head += piece

    def send(self, opcode, data):
        mask = os.urandom(4)
        self.s.sendall(bytes([0x80 | opcode, 0x80 | len(data)]) + mask + bytes(c ^ mask[i % 4] for i, c in enumerate(data)))

    def receive(self):
        head = self.s.recv(2, socket.MSG_WAITALL)
        return head and (head[0] & 15, self.s.recv(head[1], socket.MSG_WAITALL) if head[1] else b"")


def test_a_websocket_echoes():
    with web("--loops", 1) as w:
        s = Socket(w, X_Request_Id="ws")
        apps.check(s.head.startswith(b"HTTP/1.1 101 "), s.head)
        for opcode, data in ((1, "grüß".encode()), (2, b"\0\xff"), (1, b"")):
            s.send(opcode, data)
            apps.check(s.receive() == (opcode, data))
        s.send(9, b"ping")
        apps.check(s.receive() == (10, b"ping"))
        apps.check(w.ask("GET", "/users/1")[0] == 200)
        s.send(8, b"\x03\xe8bye")
        apps.check(s.receive()[1][:2] == b"\x03\xe8")
        apps.until(lambda: any(re.search(r"GET /socket: 101, 0 bytes", line) for line in lines_of(w, "ws")), "it is logged")
        for headers, status in (({"Upgrade": None}, 426), ({"Sec_WebSocket_Key": None}, 400), ({"Sec_WebSocket_Version": "12"}, 426)):
            refused = Socket(w, **headers)
            apps.check(status_of(refused.head) == status, headers, refused.head)
        s = Socket(w)
        s.send(1, b"\xff")  # not UTF-8
        apps.check(s.receive()[1][:2] == b"\x03\xef")


def test_a_websocket_is_told_that_the_server_stops():
    with web() as w:
        s = Socket(w)
        s.send(1, b"x")
        apps.check(s.receive() == (1, b"x"))
        w.process.send_signal(signal.SIGINT)
        apps.check(s.receive() == (8, b"\x03\xe9the server stops"))
        s.send(8, b"\x03\xe9")
        apps.check(w.process.wait(20 * apps.SLOW) == 0, w.log())


# ---- the log ----

def test_each_request_has_an_id():
    with web() as w:
        given = w.ask("GET", "/users/1", X_Request_Id="mine-1")[1]["X-Request-Id"]
        apps.check(given == "mine-1", given)
        made = {w.ask("GET", "/users/1", X_Request_Id=bad)[1]["X-Request-Id"] for bad in ("a b", "x" * 41, "é", "")}
        apps.check(len(made) == 4 and all(re.fullmatch(r"\d+-\d+", one) for one in made), made)
        apps.check(re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", w.ask("GET", "/x")[1]["Date"]))
        apps.until(lambda: "GET /x: 404" in w.log(), "it is logged")
        apps.check(len([line for line in w.log().splitlines() if line.split()[0] in made]) == 4, w.log())


def test_a_log_that_nobody_reads_holds_no_request():
    with contextlib.ExitStack() as stack:
        reader, writer = os.pipe()
        page = apps.TOP / "examples/12_projects/01_web_framework.html"
        process = subprocess.Popen(apps.command(program(), "--listen", "127.0.0.1:0", "--loops", 1, "--verbose", "--page", page),
                                   stdout=writer, stderr=subprocess.STDOUT, env=apps.environment(), start_new_session=True)
        os.close(writer)
        stack.callback(process.wait)
        stack.callback(process.kill)
        port = int(re.search(rb":(\d+),", os.read(reader, 200))[1])
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=20 * apps.SLOW)
        for _ in range(1200):  # each has 7 lines
            client.request("GET", "/users/1")
            apps.check(client.getresponse().read())
        data = b""
        while b"lines are lost: the log is read too slowly" not in data:
            data += os.read(reader, 65536)
        os.close(reader)
        for _ in range(10):
            client.request("GET", "/users/1")
            apps.check(client.getresponse().read())
        process.send_signal(signal.SIGTERM)
        apps.check(process.wait(20 * apps.SLOW) == 0)


# ---- HTTP: what two servers may read in two ways, and clients that are slow ----

def test_bad_framing_is_refused():
    get, post = b"GET /users/1 HTTP/1.1\r\nHost: x\r\n", b"POST /echo HTTP/1.1\r\nHost: x\r\n"
    refused = {
        "both lengths": post + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "two lengths": post + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "the same length twice": post + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
        "a list of lengths": post + b"Content-Length: 5, 5\r\n\r\nhello",
        "a signed length": post + b"Content-Length: +5\r\n\r\nhello",
        "a hex length": post + b"Content-Length: 0x5\r\n\r\nhello",
        "a space before the colon": post + b"Content-Length : 5\r\n\r\nhello",
        "a folded header": post + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        "a bare LF": b"GET /users/1 HTTP/1.1\nHost: x\n\n",
        "a bare CR": get + b"A: b\rTransfer-Encoding: chunked\r\n\r\n",
        "a NUL": get + b"A: \0\r\n\r\n",
        "no Host": b"GET /users/1 HTTP/1.1\r\n\r\n",
        "two Hosts": get + b"Host: y\r\n\r\n",
        "a chunk's sign": post + b"Transfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n",
        "a chunk's 0x": post + b"Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
        "a space in the target": b"GET /users/1 x HTTP/1.1\r\nHost: x\r\n\r\n",
        "a lower-case version": b"GET /users/1 http/1.1\r\nHost: x\r\n\r\n",
        "chunked in HTTP/1.0": b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    }
    others = {501: post + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 417: post + b"Expect: 200-ok\r\n\r\n",
              505: b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 431: get + b"A: " + b"a" * 20000 + b"\r\n\r\n",
              414: b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"}
    smuggled = b"GET /stats HTTP/1.1\r\nHost: x\r\n\r\n"
    with web() as w:
        for what, request in refused.items():
            answer = w.raw(request + smuggled)
            apps.check(status_of(answer) == 400 and answer.count(b"HTTP/1.1 ") == 1, what, answer)
            apps.check(b"sessions" not in answer and b"Connection: close" in answer, what, answer)
        for status, request in others.items():
            answer = w.raw(request)
            apps.check(status_of(answer) == status, status, answer)
        answer = w.raw(post + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nX\r\n")  # broken in the middle: it is cut
        apps.check(answer.endswith(b"5\r\nhello\r\n"), answer)
        answer = w.raw(post + b"Content-Length: 5\r\n\r\nhe", shut=True)
        apps.check(b"HTTP/1.1 200" in answer and answer.endswith(b"he") and b"llo" not in answer, answer)
        apps.check(w.ask("GET", "/users/1")[0] == 200)
        apps.until(lambda: "refused with 400: there is no Host, or more than one" in w.log(), "refusals are logged")


def test_slow_clients_are_given_up():
    with web("--timeout", 0.3) as w, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(w.connect()) for _ in range(50)]
        for s in slow:
            s.sendall(b"GET /users/1 HTTP/1.1\r\nHost")
        apps.check(w.ask("GET", "/users/1")[0] == 200)
        for s in slow:
            apps.check(status_of(read_all(s)) == 408)


def test_pipelined_requests_are_answered_in_order():
    with web() as w:
        requests = b"".join(b"GET /users/%d HTTP/1.1\r\nHost: x\r\n\r\n" % (i % 3 + 1) for i in range(100))
        answer = w.raw(b"\r\n" + requests + b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nlast"
                       b"GET /users/9 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        names = re.findall(rb'"name":"(\w+)"', answer)
        apps.check(names == [(b"Ada", b"Grace", b"Edsger")[i % 3] for i in range(100)], names)
        apps.check(b"\r\n\r\nlastHTTP/1.1 404 " in answer, answer[-600:])
        apps.check(w.raw(b"GET /users/1 HTTP/1.0\r\n\r\n").count(b"HTTP/1.1 200") == 1)


def test_100_continue():
    head = b"Host: x\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: 22\r\n\r\n"
    with web() as w:
        with w.connect() as s:
            s.sendall(b"POST /users HTTP/1.1\r\n" + head)
            apps.check(s.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n")
            s.sendall(b'{"name":"A", "age": 1}')
            apps.check(s.recv(1000).startswith(b"HTTP/1.1 201 "))
        answer = w.raw(b"POST /users/1 HTTP/1.1\r\n" + head)  # it is refused before the body
        apps.check(status_of(answer) == 405 and b"100 Continue" not in answer, answer)


# ---- TLS, loops ----

def test_https():
    where = apps.folder()
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-addext",
                    "subjectAltName=IP:127.0.0.1", "-keyout", where / "key.pem", "-out", where / "cert.pem"], check=True,
                   capture_output=True)
    with web("--certificate", where / "cert.pem", "--key", where / "key.pem", "--verbose") as w:
        url = f"https://127.0.0.1:{w.port}"
        curl = ["curl", "-s", "--noproxy", "*", "--cacert", where / "cert.pem"]
        answer = subprocess.run([*curl, url + "/users/1", url + "/numbers/100000"], capture_output=True, check=True).stdout
        apps.check(answer.startswith(json.dumps(ADA, separators=(",", ":")).encode()) and answer.endswith(b"\n100000\n"))
        with w.connect() as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
            read_all(plain)
        apps.until(lambda: "no TLS: 127.0.0.1" in w.log(), "it is logged")
        context = ssl.create_default_context(cafile=where / "cert.pem")
        with context.wrap_socket(w.connect(), server_hostname="127.0.0.1") as s:
            s.sendall(b"POST /slow/60000 HTTP/1.1\r\nHost: x\r\nX-Request-Id: tls\r\n\r\n")
            apps.until(lambda: "in slow_change" in lines_of(w, "tls"), "it runs")
        apps.check(any(line.endswith("; the client left") for line in settled(w, "tls")))
        w.stop()
    done = apps.run(program(), "--certificate", where / "none", status=1)
    apps.check("none: No such file" in done.stderr, done.stderr)


def test_all_loops_serve():
    with web("--loops", 3) as w:
        loops = set()

        def all_serve():
            loops.add(w.ask("GET", "/users/1")[1]["X-Request-Id"].split("-")[0])
            return loops == {"0", "1", "2"}
        apps.until(all_serve, "each loop has served")
        apps.check("3 loops" in w.log())


# ---- the end ----

def test_a_stop_lets_running_requests_end():
    with web("--verbose") as w, contextlib.ExitStack() as stack:
        idle, fresh, busy = (stack.enter_context(w.connect()) for _ in range(3))
        idle.sendall(b"GET /users/1 HTTP/1.1\r\nHost: x\r\n\r\n")
        idle.recv(4096)
        busy.sendall(b"POST /slow/1000 HTTP/1.1\r\nHost: x\r\nX-Request-Id: busy\r\n\r\n")
        apps.until(lambda: "in slow_change" in lines_of(w, "busy"), "it runs")
        w.process.send_signal(signal.SIGINT)
        apps.check(idle.recv(1) == b"" and fresh.recv(1) == b"")  # closed at once
        answer = read_all(busy)
        apps.check(status_of(answer) == 200 and b"Connection: close" in answer, answer)
        apps.check(w.process.wait(20 * apps.SLOW) == 0, w.log())
        apps.check("web stops" in w.log() and "close a_session" in lines_of(w, "busy"), w.log())


def test_a_stop_cuts_short_what_takes_too_long():
    with web("--verbose", "--grace", 0.2) as w, w.connect() as busy, w.connect() as stream:
        busy.sendall(b"POST /slow/60000 HTTP/1.1\r\nHost: x\r\nX-Request-Id: busy\r\n\r\n")
        stream.sendall(b"GET /numbers/1000000000 HTTP/1.1\r\nHost: x\r\nX-Request-Id: stream\r\n\r\n")
        for one, handler in (("busy", "in slow_change"), ("stream", "in stream_numbers")):
            apps.until(lambda: handler in lines_of(w, one), "it runs")  # noqa: B023
        w.stop(status=1)
        apps.check("requests were cut short after 0.2 s" in w.log(), w.log())
        for line in ("close a_session", "rolled back: cancelled"):
            apps.check(line in lines_of(w, "busy"), w.log())
        apps.check(not read_all(stream).endswith(b"0\r\n\r\n"))  # it does not look complete


def test_ctrl_c_at_any_moment():
    for moment in ("start", "idle", "load"):
        with web("--quiet") as w, contextlib.ExitStack() as stack:
            if moment == "load":
                wrk = subprocess.Popen(["wrk", "-t1", "-c32", "-d20s", f"http://127.0.0.1:{w.port}/users/1"],
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                stack.callback(wrk.wait)
                stack.callback(wrk.kill)
                apps.until(lambda: w.json("GET", "/stats")[1]["sessionsOpened"] > 1000, "it is under load")
            elif moment == "idle":
                stack.enter_context(w.connect())
            w.process.send_signal(signal.SIGINT)
            apps.check(w.process.wait(20 * apps.SLOW) == 0, moment, w.log())
    with web("--verbose", "--grace", 60) as w, w.connect() as busy:
        busy.sendall(b"POST /slow/60000 HTTP/1.1\r\nHost: x\r\nX-Request-Id: busy\r\n\r\n")
        apps.until(lambda: "in slow_change" in lines_of(w, "busy"), "it runs")
        w.process.send_signal(signal.SIGINT)
        apps.until(lambda: "web stops" in w.log(), "it stops")
        time.sleep(0.15)  # conc treats an immediate second signal as the same Ctrl+C
        w.process.send_signal(signal.SIGINT)
        apps.check(w.process.wait(20 * apps.SLOW) in (-2, 130), w.process.returncode)


def test_arguments():
    done = apps.run(program(), "--help")
    apps.check("--listen ADDRESS" in done.stdout and done.stderr == "", done.stdout)
    for words, reason in ((["x"], "x is not an option"), (["--x"], "--x is not an option"), (["--loops"], "--loops needs a value"),
                          (["--loops", "x"], "--loops needs a number"), (["--loops", "0"], "--loops is out of range"),
                          (["--quiet=1"], "--quiet=1 takes no value"), (["--grace=-1"], "--grace=-1 is out of range")):
        done = apps.run(program(), *words, status=2)
        apps.check(reason in done.stderr and done.stdout == "", words, done.stderr)
    with web() as w:
        for _ in range(2):
            done = apps.run(program(), "--listen", f"127.0.0.1:{w.port}", status=1)
            apps.check("Address already in use" in done.stderr, done.stderr)
    done = apps.run(program(), "--listen", "nonsense", status=1)
    apps.check("nonsense" in done.stderr, done.stderr)
    with apps.started(program(), "--listen", "127.0.0.1:0") as process:  # in a folder without the page
        w = Web(process)
        apps.check("01_web_framework.html is not here" in w.log(), w.log())
        apps.check(w.json("GET", "/") == (404, {"error": "the server has no page"}))


def test_the_goal():
    done = apps.run(program(), "--goal")
    apps.check(re.fullmatch(r"web listens on http://127\.0\.0\.1:\d+, \d+ loops\n"
                            r"answers  goal: 20000 right; measured: 20000\n"
                            r"rate     goal: 10000 requests a second; measured: \d+ \(by wrk\)\n", done.stdout), done.stdout)
    path = apps.folder()
    (path / "setarch").symlink_to(shutil.which("setarch"))
    done = apps.run(program(), "--goal", PATH=path)  # without wrk
    apps.check(re.search(r"measured: \d+ \(these\)\n$", done.stdout), done.stdout)


# ---- the page ----

def test_the_page():
    with web() as w, browser.Browser() as page:
        page.open(f"http://127.0.0.1:{w.port}/")
        page.until("return document.querySelectorAll('#users tr').length", 3)
        page.type("input[name=name]", "Alan")
        page.type("input[name=age]", "200\n")
        page.until("return document.querySelector('#age-why').textContent", "must be at most 150")
        page.run("document.querySelector('input[name=age]').value = ''")
        page.type("input[name=age]", "41\n")
        page.until("return document.querySelectorAll('#users tr').length", 4)
        page.until("return document.querySelector('#users tr:last-child').textContent", "4Alan41")
        page.type("input[name=text]", "hello\n")
        page.until("return document.querySelector('#echoes li')?.textContent", "hello")
        page.click("#stream")
        page.until("return document.querySelector('#bytes').textContent", "6,888,896")
        page.until("return Number(document.querySelector('#events').textContent) > 1", True)
        apps.check(all("422" in error for error in page.errors()), page.errors())  # Chromium says so of each 4xx
        w.process.send_signal(signal.SIGTERM)
        page.until("return document.querySelector('#echoes li').textContent", "closed: 1001 the server stops")
        apps.check(w.process.wait(20 * apps.SLOW) == 0)


apps.main(globals())
