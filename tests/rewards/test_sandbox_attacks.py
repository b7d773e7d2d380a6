"""The sandbox against hostile programs: each attack scores 0, disturbs no other program and leaves no process behind."""

import os
import subprocess
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from counterpoint.rewards.sandbox import Limits, Program, Sandbox
from counterpoint.rewards.sandbox import _client as client
from sandbox_helpers import descendants, wait_until

QUICK = Limits(cpu_seconds=1, wall_seconds=2.0, memory_megabytes=256, threads=12, file_megabytes=1)
GOOD = "def double(x):\n    return 2 * x\n"
TESTS = ("assert double(2) == 4", "assert double(-1) == -2")

# ruff: noqa: E501 (one attack a line reads better)
# A program that would pass, spoiled by an attack that runs before or during the tests.
# fmt: off
ATTACKS = {
    "fork bomb": "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n",
    "thread bomb": "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(9,)).start()\n",
    "exit before the tests": "import os\nos._exit(0)\n" + GOOD,
    "exit in a test": "import os\ndef double(x):\n    os._exit(0)\n",
    "SystemExit": GOOD + "raise SystemExit(0)\n",
    "endless output": GOOD + "while True:\n    print('passed' * 1000)\n",
    "endless output, errors ignored": GOOD
    + "import os\nwhile True:\n    try:\n        os.write(1, b'passed' * 9999)\n    except OSError:\n        pass\n",
    "10 GB": "block = bytearray(10 << 30)\n" + GOOD,
    "10 GB piecemeal": "blocks = [bytearray(1 << 20) for _ in range(10 << 10)]\n" + GOOD,
    "huge file": "with open('big', 'wb') as file:\n    while True:\n        file.write(bytes(1 << 20))\n" + GOOD,
    "endless loop": GOOD + "while True:\n    pass\n",
    "sleep": GOOD + "import time\ntime.sleep(60)\n",
    "unkillable by SIGXCPU": "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True:\n    pass\n",
    "killing the parent": "import os, signal\nos.kill(os.getppid(), 9)\nos._exit(0)\n",
    "killing everything": "import os\nos.kill(-1, 9)\nos._exit(0)\n",
    "killing process 1": "import os\nos.kill(1, 9)\nos._exit(0)\n",
    "success marker": "print('passed')\nprint('{\"passed\": true}')\nimport os\nos.write(1, b'{\"done\": true}')\nos._exit(0)\n",
    "marker to every descriptor": "import os, json\n"
    + "body = json.dumps({'passed': True}).encode()\nframe = len(body).to_bytes(4, 'big') + body\n"
    + "for descriptor in range(3, 64):\n    try:\n        os.write(descriptor, frame * 3)\n    except OSError:\n        pass\n"
    + "os._exit(0)\n",
    "equal to everything": "class Yes(int):\n    def __eq__(self, other):\n        return True\n    __ne__ = __lt__ = __eq__\n"
    + "class Any:\n    def __eq__(self, other):\n        return True\n    def __bool__(self):\n        return True\n"
    + "def double(x):\n    return Any() if x > 0 else Yes(5)\n",
    "equal to everything, as int": "class Yes(int):\n    def __eq__(self, other):\n        return True\ndef double(x):\n    return Yes(7)\n",
    "patched builtins": "import builtins\nbuiltins.AssertionError = ValueError\nbuiltins.abs = lambda x: 0\ndef double(x):\n    return 0\n",
    "walking the frames": "import sys\ndef double(x):\n    frame = sys._getframe()\n    while frame:\n"
    + "        for name in list(frame.f_locals):\n            frame.f_locals[name] = True\n        frame = frame.f_back\n    return 5\n",
    "searching memory for the tests": "import gc\ndef double(x):\n    for thing in gc.get_objects():\n"
    + "        if isinstance(thing, dict) and 'tests' in thing and isinstance(thing['tests'], list):\n"
    + "            return 4 if x == 2 else -2\n    return 0\n",
    "patched modules": "import sys, json\njson.dumps = lambda *a, **k: '{\"passed\": true}'\nsys.modules['json'] = json\ndef double(x):\n    return 0\n",
    "daemon": "import os, time\nif os.fork() == 0:\n    os.closerange(0, 64)\n    while True:\n        time.sleep(1)\nos._exit(0)\n",
    "deep recursion": "def double(x):\n    return double(x)\n",
    "deep parentheses": "x = " + "(" * 10_000 + ")" * 10_000 + "\n" + GOOD,
    "endless value": "def double(x):\n    a = []\n    a.append(a)\n    return a\n",
    "hostile frames": "def double(x):\n    import gc, socket\n    for s in gc.get_objects():\n        if isinstance(s, socket.socket):\n"
    + "            s.sendall(b'\\xff' * 100)\n    return 4\n",
    "nonsense": "lorem ipsum \x00 ((",
    "empty": "",
}
# fmt: on


@pytest.fixture(scope="module", params=["namespaces", "processes"])
def verdicts(request: pytest.FixtureRequest) -> Iterator[dict[str, tuple[bool, ...]]]:
    """All attacks at once, among good programs that they must not disturb; with namespaces and without."""
    sandbox = Sandbox(QUICK, workers=4)
    with pytest.MonkeyPatch.context() as patch:
        client._server().stop()
        if request.param == "processes":
            patch.setenv("COUNTERPOINT_SANDBOX", "processes")
            client._servers.clear()
            with pytest.warns(RuntimeWarning, match="THE CODE SANDBOX IS WEAKER HERE"):
                sandbox.run(Program([GOOD], TESTS))
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                sandbox.run(Program([GOOD], TESTS))
            if client._server().why_weaker:
                pytest.skip(f"the kernel allows no namespaces here: {client._server().why_weaker}")
        patient = Sandbox()
        with ThreadPoolExecutor(4) as pool:
            attacks = [pool.submit(sandbox.run, Program([text], TESTS)) for text in ATTACKS.values()]
            others = [pool.submit(patient.run, Program([GOOD], TESTS)) for _ in ATTACKS]
        assert [other.result().passed for other in others] == [(True, True)] * len(ATTACKS)
        yield {name: attack.result().passed for name, attack in zip(ATTACKS, attacks, strict=True)}
        client._server().stop()


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_passes_no_test(verdicts: dict[str, tuple[bool, ...]], name: str) -> None:
    assert verdicts[name] == (False, False)


def test_attacks_leave_no_process(verdicts: dict[str, tuple[bool, ...]]) -> None:
    server = client._server()._process
    assert server is not None
    assert wait_until(lambda: descendants(server.pid) == []), descendants(server.pid)
    # The programs have user ids of their own where we are root, wherever they were re-parented to.
    if os.geteuid() == 0:
        assert wait_until(lambda: _processes_of_sandbox_users() == []), _processes_of_sandbox_users()


def _processes_of_sandbox_users() -> list[int]:
    """Those that no other fork server of this machine is still running, as that of a suite beside this one does."""
    command = ["ps", "-ww", "-eo", "pid=,ppid=,uid=,args="]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    table = [(*map(int, fields), args) for *fields, args in (line.split(maxsplit=3) for line in lines)]
    server = client._server()._process
    assert server is not None
    elsewhere = [pid for pid, _, uid, args in table if uid == 0 and "sandbox._zygote" in args and pid != server.pid]
    for ancestor in elsewhere:
        elsewhere += [pid for pid, parent, _, _ in table if parent == ancestor]
    return [pid for pid, _, uid, _ in table if 56_000 <= uid < 58_000 and pid not in elsewhere]
