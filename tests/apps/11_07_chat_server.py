#!/usr/bin/env python3
"""examples/11_apps/07_chat_server.c: rooms, history, presence, limits and recovery; clients that violate RFC
6455; clients that do not read; a thousand users; two browsers; and Python's websockets as a foreign client."""
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.request

import apps
import browser
from apps import check, until

CHAT = apps.compiled("11_apps/07_chat_server.c")
PAGE = apps.TOP / "examples/11_apps/07_chat_server.html"


# ---- a client: raw frames, so that it can be as bad as it likes ----

class Closed(Exception):
    """The server closed with this code; 1006: without a close."""

    def __init__(self, code):
        super().__init__(f"closed with {code}")
        self.code = code


class Client:
    def __init__(self, port, room=None, name=None, after=None, small=False, target="/chat", headers=""):
        self.socket = socket.socket()
        if small:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(20 * apps.SLOW)
        self.socket.connect(("127.0.0.1", port))
        self.data, self.skipped = b"", []
        self.socket.sendall((f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                             "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
                             f"{headers}\r\n").encode())
        while b"\r\n\r\n" not in self.data:
            self.more()
        self.head, self.data = self.data.split(b"\r\n\r\n", 1)
        if b" 101 " in self.head:
            check(b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in self.head, self.head)
        if room is not None:
            self.joined = self.join(room, name, after)

    def more(self):
        try:
            data = self.socket.recv(65536)
        except ConnectionResetError:
            data = b""
        if not data:
            raise Closed(1006)
        self.data += data

    def frame(self, first, payload, mask=b"\x12\x34\x56\x78"):
        n = len(payload)
        length = struct.pack("!B", 0x80 | n) if n < 126 else struct.pack("!BH", 0xfe, n)
        if n > 65535:
            length = struct.pack("!BQ", 0xff, n)
        self.socket.sendall(bytes([first]) + length + mask + bytes(c ^ mask[i % 4] for i, c in enumerate(payload)))

    def send(self, **message):
        self.frame(0x81, json.dumps(message).encode())

    def say(self, room, text):
        self.send(type="say", room=room, text=text)

    def next_frame(self):
        while len(self.data) < 2:
            self.more()
        size, n = self.data[1], 2
        check(size < 128, "a server masks nothing")
        if size > 125:
            n = 4 if size == 126 else 10
            while len(self.data) < n:
                self.more()
            size = int.from_bytes(self.data[2:n], "big")
        while len(self.data) < n + size:
            self.more()
        first, payload, self.data = self.data[0], self.data[n:n + size], self.data[n + size:]
        return first, payload

    def receive(self):
        first, payload = self.next_frame()
        if first == 0x89:
            self.frame(0x8a, payload)
            return self.receive()
        if first == 0x88:
            raise Closed(int.from_bytes(payload[:2], "big") if payload else 1005)
        check(first == 0x81, "the frame begins with", hex(first))
        return json.loads(payload)

    def join(self, room, name=None, after=None):
        message = {"type": "join", "room": room}
        message.update({} if name is None else {"name": name}, **({} if after is None else {"after": after}))
        self.send(**message)
        answer = self.until("joined", "error")
        check(answer["type"] == "joined", answer)
        return answer

    def until(self, *types):
        """The next message of one of these types."""
        while True:
            message = self.receive()
            if message["type"] in types:
                return message
            self.skipped.append(message)

    def sees_leave(self, name, times=1):
        """Waits until this has happened so often since the client joined, including earlier waits."""
        left = {"type": "left", "room": "tea", "name": name}
        while self.skipped.count(left) < times:
            self.skipped.append(self.receive())

    def said(self, count):
        """Returns the texts of the next chat messages, and the id of the last."""
        messages = [self.until("said") for _ in range(count)]
        self.last = messages[-1]["id"] if messages else None
        check([m["id"] for m in messages] == sorted({m["id"] for m in messages}), messages)
        return [m["text"] for m in messages]

    def has_nothing_more(self):
        """All earlier messages have been answered, and nothing else arrives before a ping's reply."""
        self.frame(0x89, b"?")
        first, payload = self.next_frame()
        check((first, payload) == (0x8a, b"?"), hex(first), payload)

    def closed_with(self):
        try:
            while True:
                self.receive()
        except Closed as closed:
            return closed.code

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@contextlib.contextmanager
def chat(*arguments, rate=1000, port=None):
    """A running server: .port, .log() and .status()."""
    port = port or apps.free_port()
    with apps.started(CHAT, "--listen", f"127.0.0.1:{port}", "--page", PAGE, "--rate", rate, "--burst", rate, *arguments) as s:
        s.port = port
        s.log = lambda: s.out.read_text()
        s.status = lambda: dict(line.split() for line in get(port, "/status").splitlines())
        until(lambda: f"chat listens on {'https' if '--certificate' in arguments else 'http'}://127.0.0.1:{port}/"
              in s.log() or s.poll() is not None, "the server listens")
        check(s.poll() is None, s.log())
        yield s
        if s.poll() is None:
            ends_well(s)


def ends_well(s, number=signal.SIGINT):
    """Whatever a test did, a signal must end the server, with status 0 and without a sanitizer's report."""
    s.send_signal(number)
    check(s.wait(20 * apps.SLOW) == 0, s.returncode, s.log()[-2000:])
    check("chat stops: " in s.log(), s.log()[-2000:])
    check("Sanitizer" not in s.log() and "conc:" not in s.log(), s.log()[-3000:])


def get(port, path, method="GET"):
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method)
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read().decode()


def status_of(port, path, method="GET"):
    try:
        get(port, path, method)
        return 200
    except urllib.error.HTTPError as error:
        return error.code


# ---- requirement 2: rooms ----

def test_a_room_gets_each_message_once_and_in_order():
    with chat() as s, contextlib.ExitStack() as all_of:
        tea = [all_of.enter_context(Client(s.port, "tea", f"t{i}")) for i in range(5)]
        milk = all_of.enter_context(Client(s.port, "milk", "m"))
        both = all_of.enter_context(Client(s.port, "tea", "both"))
        both.join("milk")
        threads = [threading.Thread(target=lambda c=c, i=i: [c.say("tea", f"{i} {n}") for n in range(50)])
                   for i, c in enumerate(tea)]
        for t in threads:
            t.start()
        heard = [c.said(250) for c in tea]
        for t in threads:
            t.join()
        check(all(h == heard[0] for h in heard), "not all heard the same")
        check(sorted(heard[0]) == sorted(f"{i} {n}" for i in range(5) for n in range(50)))
        for i in range(5):
            mine = [int(text.split()[1]) for text in heard[0] if text.split()[0] == str(i)]
            check(mine == list(range(50)), mine)
        check(both.said(250) == heard[0])
        both.say("milk", "only here")
        check(milk.said(1) == ["only here"] and both.said(1) == ["only here"])
        milk.has_nothing_more()
        both.send(type="leave", room="tea")
        both.has_nothing_more()
        tea[0].say("tea", "without both")
        check(tea[4].said(1) == ["without both"])
        both.has_nothing_more()
        milk.say("tea", "I am not there")
        check(milk.until("error")["text"] == "You are not in that room.")
        check(s.status()["messages"] == "252", s.status())


# ---- requirement 4: presence ----

def test_presence_says_who_is_there():
    with chat() as s, Client(s.port, "tea", "Ann") as ann:
        check(ann.joined["members"] == ["Ann"], ann.joined)
        with Client(s.port, "tea", "Bob") as bob:
            check(sorted(bob.joined["members"]) == ["Ann", "Bob"], bob.joined)
            check(ann.receive() == {"type": "arrived", "room": "tea", "name": "Bob"})
            with Client(s.port, "tea", "Bob") as second:  # the same user once more is no news
                check(sorted(second.joined["members"]) == ["Ann", "Bob"], second.joined)
            until(lambda: s.status()["clients"] == "2", "the second is gone")
            ann.has_nothing_more()
        check(ann.receive() == {"type": "left", "room": "tea", "name": "Bob"})
        with Client(s.port, "tea", "Cem") as cem:
            check(ann.receive() == {"type": "arrived", "room": "tea", "name": "Cem"})
            cem.send(type="leave", room="tea")
            check(ann.receive() == {"type": "left", "room": "tea", "name": "Cem"})
            cem.has_nothing_more()
        ann.has_nothing_more()
        until(lambda: "Bob joins tea" in s.log() and "Cem is gone: closed with 1006" in s.log(), "the log has it")


# ---- requirements 3 and 6: history, and recovery of what was missed ----

def test_a_client_that_comes_back_gets_exactly_what_it_missed():
    with chat() as s, Client(s.port, "tea", "Ann") as ann, Client(s.port, "tea", "Bob") as bob:
        for n in range(5):
            ann.say("tea", f"before {n}")
        check(bob.said(5)[-1] == "before 4")
        seen = bob.last
        bob.close()
        ann.sees_leave("Bob")
        for n in range(7):
            ann.say("tea", f"missed {n}")
        check(sum(message["type"] == "said" for message in ann.skipped) + len(ann.said(7)) == 12)
        with Client(s.port, "tea", "Bob", after=seen) as back:
            check(back.joined["complete"] is True, back.joined)
            check(back.said(7) == [f"missed {n}" for n in range(7)])
            ann.say("tea", "live")
            check(back.said(1) == ["live"])
            back.has_nothing_more()
            seen = back.last
        ann.sees_leave("Bob", 2)
        with Client(s.port, "tea", "Bob", after=seen) as back:  # nothing was missed
            back.has_nothing_more()
        ann.sees_leave("Bob", 3)
        with Client(s.port, "tea", "New") as new:  # the whole history
            check(new.said(13)[0] == "before 0")
            new.has_nothing_more()


def test_nothing_is_lost_or_doubled_while_others_talk():
    with chat() as s, Client(s.port, "tea", "Ann") as ann:
        talk = threading.Thread(target=lambda: [ann.say("tea", str(n)) for n in range(150)])
        talk.start()
        heard, last = [], 0
        while len(heard) < 150:  # it connects and disconnects all the time
            with Client(s.port, "tea", "Bob", after=last) as bob:
                heard += bob.said(min(7, 150 - len(heard)))
                last = bob.last
        talk.join()
        check(heard == [str(n) for n in range(150)], heard)


def test_what_history_has_no_more_is_said_to_be_gone():
    with chat() as s, Client(s.port, "tea", "Ann") as ann:
        ann.say("tea", "0")
        ann.said(1)
        first = ann.last
        for n in range(1, 202):
            ann.say("tea", str(n))
        ann.said(201)
        with Client(s.port, "tea", "Bob", after=first) as bob:
            check(bob.joined["complete"] is False, bob.joined)
            check(bob.said(200) == [str(n) for n in range(2, 202)])
        with Client(s.port, "tea", "Bob", after=first + 1) as bob:
            check(bob.joined["complete"] is True, bob.joined)
            check(bob.said(200)[0] == "2")


def test_after_a_restart_ids_go_on_growing():
    with chat() as s, Client(s.port, "tea", "Ann") as ann:
        ann.say("tea", "old")
        ann.said(1)
        port, seen = s.port, ann.last
        s.kill()
        s.wait()
        check(ann.closed_with() == 1006)
    until(lambda: int(time.time()) * 1000 > seen, "the second is over")
    with chat(port=port) as s, Client(port, "tea", "Ann", after=seen) as ann, Client(port, "tea", "Bob") as bob:
        check(ann.joined["complete"] is False, ann.joined)
        bob.say("tea", "new")
        check(ann.said(1) == ["new"] and ann.last > seen, ann.last, seen)


# ---- requirement 5: a limit for each user ----

def test_the_limit_is_one_for_each_user():
    with chat("--rate", 0.001, "--burst", 10) as s, Client(s.port, "tea", "Ann") as ann, Client(s.port, "tea", "Bob") as bob:
        for n in range(15):
            ann.say("tea", str(n))
        types = [ann.until("said", "error")["type"] for _ in range(15)]
        check(types == ["said"] * 10 + ["error"] * 5, types)
        bob.say("tea", "still")
        check(bob.said(11)[-1] == "still")
        with Client(s.port, "tea", "Ann") as second:  # neither a second client nor a reconnect helps
            second.said(11)
            second.say("tea", "sly")
            check("too fast" in second.until("error", "said")["text"])
        ann.close()
        until(lambda: s.status()["clients"] == "1", "she is gone")
        with Client(s.port, "tea", "Ann") as again:
            again.said(11)
            again.say("tea", "sly")
            check("too fast" in again.until("error", "said")["text"])
        check(s.status()["messages"] == "11", s.status())


# ---- a client that does not read ----

def test_a_client_that_does_not_read_is_dropped_and_holds_nobody():
    with chat() as s, Client(s.port, "tea", "deaf", small=True), Client(s.port, "tea", "Ann") as ann, \
            Client(s.port, "tea", "Bob") as bob:
        text, count = "x" * 4000, 0
        while s.status()["dropped"] == "0":
            for _ in range(10):
                ann.say("tea", text)
            check(ann.said(10) == [text] * 10 and bob.said(10) == [text] * 10)  # at once, all the time
            count += 10
            check(count < 5000, "it is not dropped")
        ann.sees_leave("deaf")
        bob.sees_leave("deaf")
        until(lambda: s.status()["clients"] == "2", "it is gone")
        until(lambda: "deaf is dropped: does not read" in s.log(), "the log has it")


def test_a_silent_client_gets_a_ping_and_is_given_up():
    with chat("--ping", 1) as s, Client(s.port, "tea", "dead") as dead, Client(s.port, "tea", "alive") as alive:
        check(alive.until("left")["name"] == "dead")  # alive answers pings as long as it waits
        until(lambda: "dead is gone: the peer was silent" in s.log(), "the log has it")
        check(dead.closed_with() == 1006)


# ---- what RFC 6455 says ----

def test_frames_of_all_kinds():
    with chat() as s, Client(s.port, "tea", "Ann") as ann:
        words = json.dumps({"type": "say", "room": "tea", "text": "h\u00e9llo \U0001f375"}, ensure_ascii=False).encode()
        ann.frame(0x01, words[:20])
        ann.frame(0x89, b"in between")
        check(ann.next_frame() == (0x8a, b"in between"))
        for c in words[20:]:
            ann.frame(0x00, bytes([c]))
        ann.frame(0x80, b"")
        check(ann.said(1) == ["h\u00e9llo \U0001f375"])
        ann.say("tea", "y" * 4000)
        check(ann.said(1) == ["y" * 4000])
        ann.frame(0x88, struct.pack("!H", 1000) + b"bye")
        check(ann.next_frame() == (0x88, struct.pack("!H", 1000) + b"bye"))
        until(lambda: "Ann is gone: closed with 1000" in s.log(), "the log has it")


def test_bad_frames_are_closed_with_the_right_code():
    bad = {"bad UTF-8": (lambda c: c.frame(0x81, b"\xff"), 1007),
           "too long": (lambda c: c.frame(0x81, b" " * 32769), 1009),
           "too long in parts": (lambda c: (c.frame(0x01, b" " * 30000), c.frame(0x80, b" " * 30000)), 1009),
           "announced too long": (lambda c: c.socket.sendall(b"\x81\xff" + b"\x7f" * 8 + b"\0" * 8), 1009),
           "not masked": (lambda c: c.socket.sendall(b"\x81\x02{}"), 1002),
           "a reserved bit": (lambda c: c.frame(0xc1, b"{}"), 1002),
           "a reserved opcode": (lambda c: c.frame(0x83, b"{}"), 1002),
           "a ping in parts": (lambda c: c.frame(0x09, b""), 1002),
           "nothing to continue": (lambda c: c.frame(0x80, b""), 1002),
           "binary": (lambda c: c.frame(0x82, b"{}"), 1003),
           "close 1005": (lambda c: c.frame(0x88, b"\x03\xed"), 1002),
           "close 4000": (lambda c: c.frame(0x88, b"\x0f\xa0"), 4000),
           "close without a code": (lambda c: c.frame(0x88, b""), 1005)}
    with chat() as s, Client(s.port, "tea", "Ann") as ann:
        for what, (do, code) in bad.items():
            with Client(s.port, "tea", what) as client:
                do(client)
                check(client.closed_with() == code, what)
            ann.sees_leave(what)
        ann.has_nothing_more()


def test_bad_requests_get_an_error_and_the_connection_goes_on():
    join, say = {"type": "join", "room": "tea", "name": "Ann"}, {"type": "say", "room": "tea", "text": "x"}
    bad = [(b"", "no JSON"), (b"{", "no JSON"), (b"[]", "no JSON"), (b"null", "no JSON"), (b'{"type": 1}', "no JSON"),
           (b"[" * 9000, "no JSON"), (b'{"type": "shout"}', "join, say and leave"),
           ({**join, "room": ""}, "1 to 127 bytes"), ({**join, "room": "x" * 128}, "1 to 127 bytes"),
           ({**join, "room": "a\nb"}, "control"), ({**join, "name": 7}, "1 to 127 bytes"),
           ({**say, "room": "milk"}, "not in that room"), ({"type": "leave", "room": "milk"}, "not in that room"),
           (join, "You are in that room"), ({**say, "text": ""}, "1 to 4000 bytes"), ({**say, "text": "x" * 4001}, "4000 bytes")]
    with chat() as s, Client(s.port) as client:
        client.say("tea", "too early")
        check("not in that room" in client.receive()["text"])
        client.join("tea", "Ann", after=-5)
        for request, words in bad:
            client.frame(0x81, request if isinstance(request, bytes) else json.dumps(request).encode())
            answer = client.receive()
            # the name is known already, so a new one is not looked at
            check(answer["type"] == "error" and words in answer["text"] or request == {**join, "name": 7}, request, answer)
        for n in range(19):
            client.join(f"room {n}")
        client.send(type="join", room="one more")
        check("too many rooms" in client.receive()["text"])
        client.say("tea", "still here")
        check(client.said(1) == ["still here"])


def test_http_around_it():
    with chat() as s:
        page = get(s.port, "/")
        check("<title>Chat</title>" in page and page == PAGE.read_text())
        check([status_of(s.port, p) for p in ("/nothing", "/../x", "/chat")] == [404, 404, 426])
        check(status_of(s.port, "/", "POST") == 405)
        foreign = Client(s.port, headers="Origin: http://evil.example\r\n")
        check(foreign.head.startswith(b"HTTP/1.1 403 "), foreign.head)
        check(Client(s.port, headers=f"Origin: http://127.0.0.1:{s.port}\r\n").head.startswith(b"HTTP/1.1 101 "))
        with socket.create_connection(("127.0.0.1", s.port)) as garbage:
            garbage.sendall(b"\x16\x03\x01garbage\r\n\r\n")
            check(garbage.recv(100).startswith(b"HTTP/1.1 400 "))


# ---- strangers: Python's websockets, over TCP and TLS; two browsers ----

STRANGER = """
import asyncio, json, ssl, sys, websockets
async def main(url, ca):
    tls = {"ssl": ssl.create_default_context(cafile=ca)} if ca else {}
    async with websockets.connect(url, **tls) as a, websockets.connect(url, **tls) as b:
        await a.send(json.dumps({"type": "join", "room": "tea", "name": "a"}))
        assert json.loads(await a.recv())["type"] == "joined"
        await b.send(json.dumps({"type": "join", "room": "tea", "name": "b"}))
        assert json.loads(await b.recv())["members"] == ["b", "a"]
        assert json.loads(await a.recv()) == {"type": "arrived", "room": "tea", "name": "b"}
        await a.send(['{"type": "say", "room": "tea",', '"text": "in two', ' fragments"}'])
        for c in a, b:
            assert json.loads(await c.recv())["text"] == "in two fragments"
        await (await a.ping())
        await b.close(4001, "enough")
        assert (b.close_code, b.close_reason) == (4001, "enough"), (b.close_code, b.close_reason)
        assert json.loads(await a.recv())["type"] == "left"
        await a.send("x" * 40000)
        try:
            await a.recv()
        except websockets.ConnectionClosed as closed:
            assert closed.rcvd.code == 1009, closed
    print("fine")
asyncio.run(main(*sys.argv[1:]))
"""


def stranger(*arguments):
    done = subprocess.run(["/usr/bin/python3", "-c", STRANGER, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    check(done.stdout == "fine\n", done.stdout, done.stderr[-2000:])


def test_a_client_of_others_over_tcp_and_tls():
    where = apps.folder()
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj",
                    "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", where / "key.pem", "-out",
                    where / "cert.pem"], check=True, capture_output=True)
    with chat() as s:
        stranger(f"ws://127.0.0.1:{s.port}/chat", "")
    with chat("--certificate", where / "cert.pem", "--key", where / "key.pem") as s:
        check(f"wss://127.0.0.1:{s.port}/chat" in s.log(), s.log())
        stranger(f"wss://127.0.0.1:{s.port}/chat", where / "cert.pem")
        with socket.create_connection(("127.0.0.1", s.port)) as garbage:
            garbage.sendall(b"GET / HTTP/1.1\r\n\r\n")
            garbage.recv(100)


def enter(page, port, name, room="tea"):
    page.open(f"http://127.0.0.1:{port}/#{room}")
    page.type("#name", name)
    page.click("#door button")
    page.until("return document.getElementById('state').textContent", "online")


TEXTS = "return [...document.querySelectorAll('#log .text')].map(e => e.textContent)"
PEOPLE = "return [...document.querySelectorAll('#members li')].map(e => e.textContent)"


def test_two_people_chat_in_browsers():
    with chat() as s, browser.Browser(width=1000) as ann, browser.Browser(width=360, height=640, dark=True) as bob:
        enter(ann, s.port, "Ann")
        enter(bob, s.port, "Bob")
        ann.until(PEOPLE, ["Ann (you)", "Bob"])
        ann.type("#text", "Hello <b>Bob</b>\n")
        bob.until(TEXTS, ["Hello <b>Bob</b>"])
        bob.type("#text", "Hello Ann")
        bob.click("#send")
        ann.until(TEXTS, ["Hello <b>Bob</b>", "Hello Ann"])
        bob.run("socket.onclose = null; socket.close(); inside = true")  # a connection that is lost
        ann.until(PEOPLE, ["Ann (you)"])
        ann.type("#text", "missed 1\n")
        ann.type("#text", "missed 2\n")
        ann.until(TEXTS, lambda texts: len(texts) == 4)
        bob.run("connect()")
        bob.until(TEXTS, ["Hello <b>Bob</b>", "Hello Ann", "missed 1", "missed 2"])
        ann.until(PEOPLE, ["Ann (you)", "Bob"])
        check(bob.run("return document.documentElement.scrollWidth <= innerWidth"), "the page is wider than the window")
        bob.click("#leave")
        ann.until(PEOPLE, ["Ann (you)"])
        for page in (ann, bob):
            check(not page.errors(), page.errors())


def test_a_page_comes_back_after_a_restart():
    port = apps.free_port()
    with browser.Browser() as ann:
        with chat(port=port) as s:
            enter(ann, port, "Ann")
            ends_well(s, signal.SIGTERM)
        ann.until("return document.getElementById('state').textContent", "reconnecting")
        with chat(port=port):
            ann.until("return document.getElementById('state').textContent", "online")
            ann.type("#text", "back\n")
            ann.until(TEXTS, ["back"])


# ---- requirement 1 and the goal: a thousand ----

def test_the_goal():
    users, seconds = (1000, 2) if not apps.SANITIZE else (200, 2)
    done = apps.run(CHAT, "--goal", *(() if not apps.SANITIZE else ("--clients", users)), "--seconds", seconds)
    lines = done.stdout.splitlines()
    check(lines[0] == f"{users} users said {users * seconds} messages in {seconds} s", done.stdout)
    count = users * seconds * 20
    check(lines[1] == f"deliveries  goal: {count}; measured: {count}, of which 0 wrong or out of order", done.stdout)
    check(lines[2].startswith("latency     goal: p99 under 100 ms; measured: p50 ") and len(lines) == 3, done.stdout)
    check(done.stderr == "", done.stderr)


def test_loads_against_servers_of_all_kinds():
    with socket.create_server(("127.0.0.1", 0), backlog=100) as hangs, \
            apps.started(CHAT, "--load", f"127.0.0.1:{hangs.getsockname()[1]}", 5, 1) as patient:
        with chat() as s:
            done = apps.run(CHAT, "--load", f"127.0.0.1:{s.port}", 25, 1)
            check("25 users said 25 messages in 1 s\ndeliveries  goal: 425; measured: 425, of which 0 wrong" in
                  done.stdout, done.stdout)
            check(s.status()["messages"] == "25", s.status())
            done = apps.run(CHAT, "--load", f"127.0.0.1:{s.port}", "--clients", 20, "--seconds", 2, "--server", s.pid,
                            "--figures")
            received, total, *times = done.stdout.split()
            check(received == "800" and total == str(20 * (2 * sum(range(20)) + 20 * (1 + 2) + sum(range(40)))), done.stdout)
            check(len(times) == 3 and all(0 < float(time) < 60e3 for time in times), done.stdout)
        with chat("--rate", 0.001, "--burst", 1) as s:
            refused_with(s.port, "the server said: You are too fast", seconds=2)
        refused_with(apps.free_port(), "Connection refused")
        for words, error in ((b"", ""), (b"HTTP/1.1 503 Busy\r\n\r\n", "503 Busy"), (b"\0" * 200000, "")):
            with socket.create_server(("127.0.0.1", 0)) as listener:
                threading.Thread(target=answer_with, args=(listener, words), daemon=True).start()
                refused_with(listener.getsockname()[1], error)
        check(patient.wait(30 * apps.SLOW) == 1 and "did not answer for 5 s" in patient.out.read_text(), patient.out.read_text())


def answer_with(listener, words):
    with contextlib.suppress(OSError):
        while True:
            c = listener.accept()[0]
            c.sendall(words)
            c.close()


def refused_with(port, words, seconds=1):
    done = apps.run(CHAT, "--load", f"127.0.0.1:{port}", 5, seconds, status=1)
    check(words in done.stderr and done.stderr.startswith("conc: ") and done.stderr.count("\n") == 1, words, done.stderr)


# ---- starting and stopping ----

def test_help_and_bad_arguments():
    done = apps.run(CHAT, "--help")
    check("usage: chat [options]" in done.stdout and "--listen ADDRESS" in done.stdout, done.stdout)
    for words, error in ((["--rate", "0"], "out of range"), (["--what"], "is not an option"), (["--listen"], "needs a value"),
                         (["--clients", "many"], "needs a number"), (["--load", "127.0.0.1:1", "x", "1"], "needs a number")):
        check(error in apps.run(CHAT, *words, status=2).stderr, words)
    check("cert.pem" in apps.run(CHAT, "--certificate", "/nowhere/cert.pem", status=1).stderr)
    check("/nowhere/page" in apps.run(CHAT, "--page", "/nowhere/page", "--listen", "127.0.0.1:0", status=1).stderr)
    with chat() as s:
        check("Address already in use" in apps.run(CHAT, "--listen", f"127.0.0.1:{s.port}", status=1).stderr)


def test_without_a_page_the_rest_works():
    port = apps.free_port()
    with apps.started(CHAT, "--listen", f"127.0.0.1:{port}") as s:
        until(lambda: "chat listens on" in s.out.read_text(), "it listens")
        check("chat: no page: " in s.out.read_text() and "--page FILE" in s.out.read_text(), s.out.read_text())
        check(status_of(port, "/") == 404)
        with Client(port, "tea", "Ann") as ann:
            ann.say("tea", "x")
            check(ann.said(1) == ["x"])


def test_a_stop_tells_all_clients():
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(chat()) for _ in range(2)]
        for s, number in zip(servers, (signal.SIGINT, signal.SIGTERM)):
            s.ann = Client(s.port, "tea", "Ann")
            s.others = Client(s.port, "tea", "Bob"), Client(s.port, "tea", "deaf", small=True)  # they answer nothing
            s.half = socket.create_connection(("127.0.0.1", s.port))  # still in its request
            s.half.sendall(b"GET /chat HT")
            s.ann.say("tea", "x" * 3000)
            s.ann.said(1)
            s.send_signal(number)
        for s in servers:
            check(s.ann.closed_with() == 1001)
            s.ann.frame(0x88, struct.pack("!H", 1001))
            check(s.wait(20 * apps.SLOW) == 0, s.returncode)
            check("Ann is sent away" in s.log() and "chat stops: 1 messages, 0 clients dropped" in s.log(), s.log())


def test_ctrl_c_at_any_moment_of_the_goal():
    moments = {"at once": lambda p: True,
               "when the server runs": lambda p: apps.children_of(p.pid),
               "in the talk": lambda p: apps.children_of(p.pid) and time.monotonic() > p.began + 1}
    for name, has_come in moments.items():
        with apps.started(CHAT, "--goal", "--clients", "100", "--seconds", "100") as p:
            p.began = time.monotonic()
            until(lambda: has_come(p), name)
            children = apps.children_of(p.pid)
            p.send_signal(signal.SIGINT)
            p.wait(20 * apps.SLOW)
            check(p.returncode in (130, -2), name, p.returncode, p.out.read_text())
            until(lambda: all(apps.is_gone(c) for c in children), "the server is gone")


def test_a_server_that_dies_under_the_goal_is_an_error():
    with apps.started(CHAT, "--goal", "--clients", "100", "--seconds", "100") as p:
        until(lambda: apps.children_of(p.pid), "the server runs")
        server, = apps.children_of(p.pid)
        until(lambda: len(os.listdir(f"/proc/{server}/fd")) > 100, "the users are there")
        os.kill(server, signal.SIGKILL)
        check(p.wait(20 * apps.SLOW) == 1, p.returncode)
        check("conc: " in p.out.read_text(), p.out.read_text())


apps.main(globals())
