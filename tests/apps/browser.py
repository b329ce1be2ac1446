"""A headless Chromium for the tests of pages, driven by chromedriver (WebDriver, www.w3.org/TR/webdriver2).

    with browser.Browser(width=1200, height=800, dark=False) as page:
        page.open("http://127.0.0.1:8080/")
        page.until("return document.title", "Chat")      # waits until the script returns that
        page.run("document.forms[0].submit()")           # a script: what it returns
        page.type("#name", "Ann\n")                      # keys, into the first element that matches
        page.click("button")
        page.picture("page.png")
        apps.check(not page.errors(), page.errors())     # errors on the page's console

Each Browser has its own process, profile and windows, so two of them are two people. It has no network except loopback.
"""
import base64
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

import apps

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element's id in WebDriver's answers


class Browser:
    def __init__(self, width=1200, height=800, dark=False):
        self.width, self.height, self.dark = width, height, dark
        self.process = self.session = self.profile = None

    def __enter__(self):
        for program in ("chromium", "chromedriver"):
            apps.check(shutil.which(program), program, "is missing")
        self.profile = tempfile.mkdtemp(prefix="conc-browser-")
        port = apps.free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(["chromedriver", f"--port={port}", "--log-level=OFF"], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
                                        env={**os.environ, "HOME": self.profile, "TMPDIR": self.profile})
        try:
            apps.until(lambda: apps.answers(port) or self.process.poll() is not None, "chromedriver answers")
            self.begin()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_):
        self.end()

    def begin(self):
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
                   "--no-first-run", "--disable-background-networking", "--force-device-scale-factor=1",
                   "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
                   f"--user-data-dir={self.profile}/data", f"--window-size={self.width},{self.height}"]
        capabilities = {"browserName": "chrome", "acceptInsecureCerts": True, "goog:loggingPrefs": {"browser": "ALL"},
                        "goog:chromeOptions": {"binary": shutil.which("chromium"), "args": options}}
        answer = self.ask("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self.session = answer["sessionId"]
        self.devtools("Emulation.setDeviceMetricsOverride", width=self.width, height=self.height, deviceScaleFactor=1,
                      mobile=self.width < 600)
        scheme = "dark" if self.dark else "light"
        self.devtools("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def end(self):
        if self.session:
            with contextlib.suppress(Exception):  # it may have crashed
                self.ask("DELETE", f"/session/{self.session}")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.profile, ignore_errors=True)
        self.session = None

    def ask(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            value = json.loads(error.read() or b"{}").get("value", {})
            raise apps.Wrong(f"the browser: {value.get('error')}: {str(value.get('message'))[:500]}") from None

    def call(self, path, body=None, method="POST"):
        return self.ask(method, f"/session/{self.session}{path}", {} if body is None and method == "POST" else body)

    def devtools(self, command, **parameters):
        return self.call("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def open(self, url):
        self.call("/url", {"url": url})

    def run(self, script, *arguments):
        return self.call("/execute/sync", {"script": script, "args": list(arguments)})

    def until(self, script, wanted=True, limit=20):
        """Waits until the script returns the wanted value, or one that the given function accepts."""
        end, value = time.monotonic() + limit * apps.SLOW, None
        while time.monotonic() < end:
            value = self.run(script)
            if wanted(value) if callable(wanted) else value == wanted:
                return value
            time.sleep(0.05)
        raise apps.Wrong(f"the page: {script} is {value!r}, not {wanted!r}; errors: {self.errors()}")

    def find(self, selector):
        return self.call("/element", {"using": "css selector", "value": selector})[ELEMENT]

    def type(self, selector, text):
        self.call(f"/element/{self.find(selector)}/value", {"text": text.replace("\n", "\ue007")})

    def click(self, selector):
        self.call(f"/element/{self.find(selector)}/click")

    def picture(self, path):
        pathlib.Path(path).write_bytes(base64.b64decode(self.call("/screenshot", method="GET")))

    def errors(self):
        """Returns the console's errors since the last call."""
        lines = self.call("/se/log", {"type": "browser"})
        return [line["message"] for line in lines if line["level"] == "SEVERE"]

