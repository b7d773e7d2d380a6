"""Scorers that tests run in the processes of foreign scorers, to see what can be reached from there."""

import json
import os
import resource
import socket
import time
from pathlib import Path

from counterpoint.rewards.sandbox._scorer_process import Foreign


def probe():
    def look(request):
        what, argument = request
        if what == "read":
            return _attempt(lambda: Path(argument).read_text())
        if what == "write":
            return _attempt(lambda: Path(argument).write_text("x"))
        if what == "socket":
            return _attempt(socket.socket)
        if what == "fork":
            return _attempt(os.fork)
        if what == "environment":
            return len(os.environ)
        if what == "descriptors":
            return sum(_attempt(lambda number=number: os.fstat(number)) for number in range(256))
        if what == "kill":
            return _attempt(lambda: os.kill(argument, 9))
        if what == "pid":
            return os.getppid()
        if what == "sleep":
            time.sleep(argument)
            return 1
        if what == "burn":
            while True:
                pass
        if what == "memory":
            return len(bytearray(argument))
        if what == "limit":
            return resource.getrlimit(resource.RLIMIT_AS)[0]
        if what == "remember":
            globals()["SEEN"] = globals().get("SEEN", 0) + 1
            return globals()["SEEN"]
        if what == "raise":
            raise {"exit": SystemExit, "interrupt": KeyboardInterrupt, "value": ValueError, "import": ImportError}[
                argument
            ]
        if what == "answer":
            return argument
        if what == "forge":
            frame = json.dumps({"value": argument}).encode()
            return sum(_attempt(lambda number=number: _send(number, frame)) for number in range(3, 64))
        os.abort()

    return look


def _send(descriptor, frame):
    os.write(descriptor, len(frame).to_bytes(4, "big") + frame)


def _attempt(action):
    try:
        action()
    except OSError:
        return False
    return True


probe_scorer = Foreign(probe)
lasting_scorer = Foreign(probe, requests=5)


def missing():
    raise ImportError("no such package")


missing_scorer = Foreign(missing)
