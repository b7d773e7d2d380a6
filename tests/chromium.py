"""Headless Chromium under a test's hand, over its debugging pipe: load, set, click, look, photograph."""

import base64
import json
import os
import shutil
import subprocess
import time


def program():
    """Chromium's command, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Chromium:
    """One page in a browser of its own.

    >>> with Chromium(program(), profile) as page:  # doctest: +SKIP
    ...     page.open(url)
    ...     page.run("document.title")
    """

    SIZE = (1160, 900)

    def __init__(self, command, profile, *, width=SIZE[0], height=SIZE[1], dark=False):
        self._command = [
            command, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
            "--no-first-run", "--disable-background-networking", f"--user-data-dir={profile}",
            "--remote-debugging-pipe", "about:blank",
        ]  # fmt: skip
        self._size, self._dark, self._id, self._session = (width, height), dark, 0, None
        self.problems = []  # what the console and the page's errors said

    def __enter__(self):
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # The pipe is at 3 and 4 for the browser, whatever numbers we got.
        wrapped = ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "--", *self._command]
        self._process = subprocess.Popen(
            wrapped, pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer = b""
        try:
            self._attach()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _attach(self):
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        self.resize(*self._size)
        self.theme(self._dark)

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def resize(self, width, height, scale=1):
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale,
            mobile=width < 600,
        )  # fmt: skip

    def theme(self, dark):
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[theme])

    def new(self):
        """Leaves the page, its size, theme and problems for those of a browser that has just started."""
        self.open("about:blank")
        self.resize(*self.SIZE)
        self.theme(False)
        self.problems = []

    def load(self, page):
        """The document of the page at a path once its plots are drawn, and what was written to the console."""
        self.new()
        self.open(page.resolve().as_uri())
        undrawn = "[...document.querySelectorAll('.plot')].filter((item) => !item.querySelector('.main-svg')).length"
        end = time.monotonic() + 60
        while self.run(undrawn) and time.monotonic() < end:
            time.sleep(0.1)
        self.run("new Promise((done) => setTimeout(done, 300))")  # for what a text might have started
        return self.run("document.documentElement.outerHTML"), self.problems

    def open(self, url):
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def run(self, script):
        """The value of a JavaScript expression."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def set(self, selector, value):
        """Sets a control as a reader would."""
        self.run(
            f"(() => {{ const item = document.querySelector({json.dumps(selector)}); item.value = {json.dumps(value)}; "
            "item.dispatchEvent(new Event('input', {bubbles: true})); })()"
        )

    def click(self, selector):
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def wait(self, condition, seconds=120):
        """Until an expression is true; long, for machines with more to do."""
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, f"never became true: {condition}"
            time.sleep(0.05)

    def photograph(self, path, clip=None, scale=1):
        """Writes a PNG of the page, or of ``clip`` (x, y, width, height in CSS pixels)."""
        options = {}
        if clip:
            options = {"clip": dict(zip(("x", "y", "width", "height"), clip, strict=True)) | {"scale": scale}}
        data = self.send("Page.captureScreenshot", captureBeyondViewport=True, **options)["data"]
        path.write_bytes(base64.b64decode(data))

    def send(self, method, **params):
        self._id += 1
        message = {"id": self._id, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._id:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self._note(answer)

    def _note(self, event):
        kind, params = event.get("method"), event.get("params", {})
        if kind == "Runtime.exceptionThrown":
            self.problems.append(params["exceptionDetails"].get("text", "exception"))
        elif kind == "Log.entryAdded":
            self.problems.append(params["entry"]["text"])
        elif kind == "Page.javascriptDialogOpening":
            self.problems.append(f"dialog: {params['message']}")
            answer = {"id": 0, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
            os.write(self._out, json.dumps(answer | {"sessionId": self._session}).encode() + b"\0")
        elif kind == "Runtime.consoleAPICalled":
            self.problems.append(str([item.get("value") for item in params["args"]]))

    def _receive(self):
        while b"\0" not in self._buffer:
            data = os.read(self._in, 1 << 20)
            assert data, "Chromium ended"
            self._buffer += data
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)
