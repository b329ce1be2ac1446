#!/usr/bin/env python3
"""The HTTP server of test_fetch.c: fetch_server.py PORT [tls]. Its files are in the current folder."""
import gzip
import http.server
import ssl
import subprocess
import sys
import threading

state = {"accepted": 0, "open": 0, "most": 0}
lock = threading.Lock()


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        with lock:
            state["accepted"] += 1
            state["open"] += 1
            state["most"] = max(state["most"], state["open"])

    def finish(self):
        super().finish()
        with lock:
            state["open"] -= 1

    def log_message(self, *args):
        pass

    def reply(self, body, status=200, headers=()):
        body = body if isinstance(body, bytes) else body.encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer(self):
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        what, *words = self.path.strip("/").split("/")
        getattr(self, f"answer_{what}")(sent, *words)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_PURGE = answer

    def answer_hello(self, _sent):
        self.reply("hello, world\n")

    def answer_number(self, _sent, number):
        self.reply(number)

    def answer_echo(self, sent):
        """The request, as it came."""
        headers = "".join(f"{name}: {value}\n" for name, value in self.headers.items())
        self.reply(f"{self.command} {self.path}\n{headers}\n".encode() + sent)

    def answer_status(self, _sent, status):
        self.reply("no", int(status), [("Retry-After", "7"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")])

    def answer_redirect(self, _sent, status, left):
        target = f"/redirect/{status}/{int(left) - 1}" if int(left) > 1 else "/echo"
        self.reply("elsewhere", int(status), [("Location", target)])

    def answer_ftp(self, _sent):
        self.reply("elsewhere", 302, [("Location", "ftp://127.0.0.1:1/")])

    def answer_chunked(self, _sent):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for word in (b"one ", b"two ", b"three"):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(word), word))
        self.wfile.write(b"0\r\n\r\n")

    def answer_big(self, _sent, size):
        self.reply(bytes(ord("a") + i % 26 for i in range(int(size))))

    def answer_gzip(self, _sent, size):
        self.reply(gzip.compress(b"x" * int(size)), headers=[("Content-Encoding", "gzip")])

    def answer_state(self, _sent):
        with lock:
            self.reply(f"{state['accepted']} {state['most']}")

    def answer_hang(self, _sent):
        threading.Event().wait()


def main():
    server = Server(("127.0.0.1", int(sys.argv[1])), Handler)
    if sys.argv[2:] == ["tls"]:
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                        "-keyout", "key.pem", "-out", "cert.pem", "-days", "2", "-subj", "/CN=localhost",
                        "-addext", "subjectAltName=IP:127.0.0.1"], check=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain("cert.pem", "key.pem")
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.serve_forever()


main()
