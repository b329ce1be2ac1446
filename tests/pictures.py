#!/usr/bin/env python3
"""Takes the pictures of the programs' web pages for examples/README.md: examples/pictures/NN_MM_name.png.

    make pictures                    all of them
    tests/pictures.py web_scraper    those with this word in their names

Each picture has a function that starts the program, brings its page into a state worth seeing, and returns once the page shows
it. The programs run on free loopback ports, and are ended afterwards.
"""
import contextlib
import math
import pathlib
import random
import socket
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "apps"))

import apps  # noqa: E402
import browser  # noqa: E402

PICTURES = HERE.parent / "examples" / "pictures"
MOST = 60 * 1024  # bytes of a picture, because the project is cloned often


@contextlib.contextmanager
def page_of(source, *arguments, width=1000, height=640, dark=False):
    """Opens a browser on the page of the program, which listens at `--listen ADDRESS`."""
    port, where = apps.free_port(), apps.folder()
    program = apps.compiled(source)
    server = apps.Server(apps.command(program, "--listen", f"127.0.0.1:{port}", *arguments), port, where)
    with apps.serving(server), browser.Browser(width, height, dark) as page:
        page.open(f"http://127.0.0.1:{port}/")
        yield page


@contextlib.contextmanager
def picture_11_03_web_scraper():
    """In the middle of a crawl."""
    html = HERE.parent / "examples/11_apps/03_web_scraper.html"
    with page_of("11_apps/03_web_scraper.c", "--page", html, "--max-pages", "100", "--delay", "0.1", "--stay", height=560) as page:
        page.until("return +document.querySelector('#page').textContent", lambda pages: pages > 500)
        yield page


@contextlib.contextmanager
def picture_11_07_chat_server():
    """A room with five people. The other four are sockets of the page, which has only one user."""
    html = HERE.parent / "examples/11_apps/07_chat_server.html"
    lines = [("Grace", "Good morning! Is the kettle on?"),
             ("Ada", "Since six. There is Darjeeling, and something green that nobody dares to name."), ("Ada", "Bring cups."),
             ("Alan", "On my way."), ("Margaret", "Five cups for five people, and one more: a guest has come.")]
    with page_of("11_apps/07_chat_server.c", "--page", html, "--quiet", height=520) as page:
        page.type("#name", "Alan")
        page.run("document.querySelector('#room').value = 'tea'")
        page.click("#door button")
        page.until("return document.querySelector('#state').textContent", "online")
        page.run("""const others = {Alan: {socket, name: "Alan"}};
            for (const name of ["Grace", "Ada", "Margaret", "Edsger"]) {
                const s = new WebSocket("ws://" + location.host + "/chat");
                s.onopen = () => s.send(JSON.stringify({type: "join", room: "tea", name}));
                others[name] = {socket: s, name};
            }
            window.others = others;""")
        page.until("return document.querySelectorAll('#members li').length", 5)
        page.run("document.querySelector('#log').replaceChildren()")
        for count, (name, text) in enumerate(lines, 1):
            page.run("others[arguments[0]].socket.send(JSON.stringify({type: 'say', room: 'tea', text: arguments[1]}))", name, text)
            page.until("return document.querySelectorAll('#log .text').length", count)
        page.run("document.activeElement.blur()")
        yield page


@contextlib.contextmanager
def picture_12_01_web_framework():
    """A refused user, an echo, and a stream that has ended."""
    html = HERE.parent / "examples/12_projects/01_web_framework.html"
    with page_of("12_projects/01_web_framework.c", "--page", html, height=780) as page:
        page.type("input[name=name]", "Alan")
        page.type("input[name=age]", "200\n")
        page.until("return document.querySelector('#age-why').textContent", "must be at most 150")
        page.type("input[name=text]", "Hello\n")
        page.until("return document.querySelector('#echoes li')?.textContent", "Hello")
        page.click("#stream")
        page.until("return document.querySelector('#bytes').textContent", "6,888,896")
        page.until("return Number(document.querySelector('#events').textContent) > 1", True)
        page.run("document.activeElement.blur()")
        yield page


@contextlib.contextmanager
def picture_12_03_analytics():
    """A minute of events, sent at once: the sources may be silent for longer than that. Checkouts get slow in it."""
    html, draw, tcp = HERE.parent / "examples/12_projects/03_analytics.html", random.Random(4), apps.free_port()
    arguments = ["--serve", "--page", html, "--idle", "75", "--refresh", "0.2", "--tcp", f"127.0.0.1:{tcp}", "--udp", "127.0.0.1:0"]
    with page_of("12_projects/03_analytics.c", *arguments, width=970, height=400) as page, socket.create_connection(("127.0.0.1", tcp)) as s:
        begin, lines = time.time() - 66, []
        for i in range(6600):
            series, typical = draw.choice((("checkout", 80), ("search", 25), ("login", 50)))
            value = typical * math.exp(draw.gauss(0, 0.5)) * (4 if series == "checkout" and i > 5200 else 1)
            lines.append(f"{series};user=user{(i // 500 + draw.randrange(5)) % 20:02d} {value:.2f} {begin + i / 100:.3f}\n")
        s.sendall("".join(lines).encode())
        page.until("return document.querySelectorAll('.firing .state').length", 1)
        page.until("return document.querySelector('#sources').rows[2].cells[1].textContent", "6,600")
        yield page


@contextlib.contextmanager
def picture_12_04_game_server():
    """In the middle of a match with bots."""
    html = HERE.parent / "examples/12_projects/04_game_server.html"
    with page_of("12_projects/04_game_server.c", "--page", html, "--match", "60", "--seed", "3", height=560) as page:
        page.until("return document.querySelector('#status').textContent.includes('rating')")
        page.type("#name", "Rosa")
        page.click("#go")
        page.until("return game.phase === 'match' && game.tick > 5")
        page.run("dispatchEvent(new KeyboardEvent('keydown', {code: 'Space'}))")
        page.run("setInterval(() => { keys.delete('KeyW'); keys.delete('KeyS'); keys.add(Math.random() < 0.5 ? 'KeyW' : 'KeyS'); }, 400)")
        page.until("return game.tick > 300 && me.energy > 1", limit=60)
        yield page


def main():
    takers = {name[len("picture_"):]: taker for name, taker in globals().items() if name.startswith("picture_")}
    chosen = [name for name in takers if all(word in name for word in sys.argv[1:])]
    apps.check(chosen, "no picture's name contains", *sys.argv[1:])
    PICTURES.mkdir(exist_ok=True)
    for name in chosen:
        path = PICTURES / f"{name}.png"
        with takers[name]() as page:
            page.picture(path)
        size = path.stat().st_size
        print(f"{path.relative_to(HERE.parent)}: {size} bytes", flush=True)
        apps.check(size <= MOST, "the picture has more than", MOST, "bytes")


if __name__ == "__main__":
    main()
