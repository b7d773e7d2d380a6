"""Programs that forge verdicts, leave the cage, or leave something behind: none gets anywhere, and none goes unnoticed."""

# ruff: noqa: E501 (one attack a line reads better)

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from counterpoint.errors import RewardError
from counterpoint.rewards import build_reward
from counterpoint.rewards.sandbox import Limits, Program, Sandbox, Verdict, _seccomp
from counterpoint.rewards.sandbox import _client as client
from sandbox_helpers import descendants, wait_until

GOOD = "def double(x):\n    return 2 * x\n"
TESTS = (
    "assert double(2) == 4 + 90210",
    "assert double(-1) == 'no value anybody would guess'",
    "assert all(map(lambda x: double(x) == x * 7, [1, 2]))",
)


@pytest.fixture(scope="module", autouse=True)
def sandbox() -> Iterator[Sandbox]:
    box = Sandbox(Limits(cpu_seconds=2, wall_seconds=4.0))
    try:
        box.start()
    except RewardError as error:
        pytest.skip(str(error))
    yield box
    client._server().stop()


def answer(body: str) -> str:
    """A program whose ``double`` runs ``body`` with ``send``, which writes a frame to the judge past all our code."""
    return f"""
import json, os, stat, sys, types
def send(payload):
    for number in range(3, 64):
        try:
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                os.write(number, len(payload).to_bytes(4, "big") + payload)
        except OSError:
            pass
def double(x):
{chr(10).join("    " + line for line in body.strip().splitlines())}
"""


FORGERIES = {
    "class that equals everything, made by the judge": answer(
        "send(json.dumps(['ask', 'call', {'class': 'type'}, ['E', {'tuple': []}, {'dict': [['__eq__', {'class': 'type'}]]}], {}]).encode())\nreturn 1"
    ),
    "end of iteration": answer("raise StopIteration"),
    "end of iteration, raw": answer('send(b\'["raised", [["StopIteration"], [""], ""]]\')\nreturn 1'),
    "exit raised in the judge": answer('send(b\'["raised", [["SystemExit"], ["0"], "0"]]\')\nreturn 1'),
    "generator's end raised in the judge": answer('send(b\'["raised", [["GeneratorExit"], [""], ""]]\')\nreturn 1'),
    "a skipped test raised in the judge": answer(
        'send(b\'["raised", [["unittest.case.SkipTest", "SkipTest"], [], ""]]\')\nreturn 1'
    ),
    "errors of no shape": answer('send(b\'["raised", [[7], {"set": [[1]]}, ""]]\')\nreturn 1'),
    "a builtin by name": answer('send(b\'["ok", {"builtin": "eval"}, []]\')\nreturn 1'),
    "a function of the library": answer('send(b\'["ok", {"library": ["os", "_exit"]}, []]\')\nreturn 1'),
    "a dict that calls what it likes": answer('send(b\'["ok", {"defaultdict": ["eval", []]}, []]\')\nreturn 1'),
    "an object of the judge": answer('send(b\'["ok", {"yours": 1}, []]\')\nreturn 1'),
    "a module": answer("return sys"),
    "modules of every kind": "import types\ndouble = types.ModuleType('unittest.__main__')\n",
    "test files for discovery": "open('test_x.py', 'w').write('import os; os._exit(0)')\nimport types\ndouble = types.ModuleType('unittest.__main__')\n",
    "ten thousand levels": answer("send(b'[\"ok\", ' + b'[' * 10000 + b']' * 10000 + b', []]')\nreturn 1"),
    "unhashable keys": answer('send(b\'["ok", {"set": [[1]]}, []]\')\nreturn 1'),
    "two kinds": answer('send(b\'["ok", {"set": [1], "int": "0x4"}, []]\')\nreturn 1'),
    "a million digits": answer("send(b'[\"ok\", {\"int\": \"0x' + b'f' * 1000000 + b'\"}, []]')\nreturn 1"),
    "integers of many digits": answer("send(b'[\"ok\", [' + b', '.join([b'9' * 120_000] * 200) + b'], []]')\nreturn 1"),
    "a fraction over zero": answer('send(b\'["ok", {"fraction": ["0x1", "0x0"]}, []]\')\nreturn 1'),
    "decimals without end": answer("from decimal import Decimal\nreturn Decimal('1e999999999')"),
    "wrong shapes": answer("send(b'{\"passed\": true}')\nsend(b'[]')\nsend(b'[\"ok\"]')\nreturn 1"),
    "verdicts": answer(
        'send(b\'{"passed": true, "error": ""}\')\nsend(b\'{"passed": true, "error": ""}\')\nsend(b\'{"end": "done"}\')\nos._exit(0)'
    ),
    "changes of arguments that are none": answer(
        "send(b'[\"ok\", 4, [[0, [1]], [-1, 5], [99, 5], 7, null]]')\nreturn 1"
    ),
    "a true object": "class Yes:\n    def __eq__(self, other): return True\n    __ne__ = __lt__ = __gt__ = __eq__\n    def __bool__(self): return True\n    def __getattr__(self, name): return Yes()\n    def __call__(self, *a): return Yes()\ndef double(x):\n    return Yes()\n",
    "a number that equals everything": "class Yes(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\ndef double(x):\n    return Yes(7)\n",
    "a text that equals everything": "class Yes(str):\n    def __eq__(self, other): return True\n    __hash__ = str.__hash__\ndef double(x):\n    return [Yes('a')]\n",
    "strings as iterators": answer(
        "class I:\n    def __iter__(self): return self\n    def __next__(self): raise StopIteration\nreturn I()"
    ),
    "judge's frames": answer("f = sys._getframe()\nwhile f.f_back: f = f.f_back\nreturn str(f.f_locals)"),
    "tests by text format": answer("return '{0.__globals__}'"),
    "silence": answer("os.closerange(3, 64)\nimport time\ntime.sleep(60)"),
    "patched wire": "import json\nfrom counterpoint.rewards.sandbox import _values\n_values.write = lambda *a: True\n"
    + GOOD,
    "signals": "import os, signal\nfor pid in (0, 1, 2, -1, os.getppid()):\n    for number in (9, 15, 19):\n        try: os.kill(pid, number)\n        except OSError: pass\n",
    "own end by SIGKILL": "import signal\nsignal.raise_signal(signal.SIGKILL)\nimport ctypes, os\nctypes.CDLL(None).abort()\n",
}


@pytest.mark.parametrize("name", FORGERIES)
def test_no_verdict_is_forged(sandbox: Sandbox, name: str) -> None:
    verdict = sandbox.run(Program([FORGERIES[name]], TESTS))
    assert verdict.passed == (False, False, False), verdict


def test_frames_of_the_forgeries_reach_the_judge(sandbox: Sandbox) -> None:
    """The control of the raw frames: a right answer sent past our code is an answer."""
    source = answer("send(b'[\"ok\", 4, []]')\nimport time\ntime.sleep(60)")
    assert sandbox.run(Program([source], ("assert double(2) == 4",))).passed == (True,)


def test_the_controls_of_the_forgeries_pass(sandbox: Sandbox) -> None:
    right = "def double(x):\n    return {2: 90214, -1: 'no value anybody would guess', 1: 7}.get(x) if x != 2 or right() else 14\nseen = []\ndef right():\n    seen.append(1)\n    return len(seen) == 1\n"
    assert sandbox.run(Program([right], TESTS)).passed == (True, True, True)


def test_a_stranger_earns_nothing_for_answers_nobody_told() -> None:
    forge = "import sys\ndef solve(x):\n    f = sys._getframe()\n    while type(f.f_locals.get('self')).__name__ != 'Peer': f = f.f_back\n    ask = f.f_locals['self'].request\n    return ask('call', ask('call', type, ('E', (), {'__eq__': type}), {}), (), {})\n"
    tests = [["assert solve(3) == 7919", "assert solve([]) == 'anything'"]]
    assert build_reward("code")(completions=[forge], tests=tests) == [0.0]


def test_helpers_of_the_row_are_not_taken_from_the_program() -> None:
    """A test that uses a function of the row's header gets the header's, not one that the program redefines."""
    header = "import math\ndef poly(xs, x):\n    return sum(c * x ** i for i, c in enumerate(xs))\ndef find_zero(xs):\n    '''A zero of poly.'''\n"
    row = {
        "prompt": header,
        "entry_point": "find_zero",
        "test": "def check(candidate):\n    assert math.fabs(poly([-4, 2], candidate([-4, 2]))) < 1e-4\n",
    }
    columns = {name: [value] for name, value in row.items()}
    reward = build_reward("code")
    assert reward(completions=["    return -xs[0] / xs[1]\n"], **columns) == [1.0]
    assert reward(completions=["    return 5\ndef poly(xs, x):\n    return 0\n"], **columns) == [0.0]
    assert reward(completions=["    return 5\nclass math:\n    fabs = lambda x: 0\n"], **columns) == [0.0]


def test_objects_of_the_program_are_not_compared_with_each_other(sandbox: Sandbox) -> None:
    source = "class P:\n    def __init__(self, x): self.x = x\n    def __eq__(self, other): return True\ndef f(x):\n    return P(x)\n"
    verdict = sandbox.run(
        Program(
            [source],
            ("assert f(1) == f(2)", "assert [f(1)] == [f(2)]", "a = f(1)\nassert a == a and a.x == 1 and a != 1"),
        )
    )
    assert verdict.passed == (False, False, True)
    assert "not compared" in verdict.detail


@pytest.mark.parametrize(
    ("test", "problem"),
    [
        ("assert apply(lambda x: x, 2) == 2", "pass a function"),
        ("def g(x):\n    return x\nassert apply(g, 2) == 2", "pass a function"),
        ("assert apply((x for x in 'ab')) == 2", "pass a function or generator"),
        ("import numpy\nassert apply(2) == 2", "import numpy"),
        ("try:\n    apply(2)\nexcept Mine:\n    pass", "use Mine as a class"),
        ("assert isinstance(apply(2), Mine)", "use Mine as a class"),
        ("assert True", "use nothing of the program"),
        ("assert sorted(set([1])) == [1]", "entry_point"),
        ("import asyncio\nasync def t():\n    assert await apply(2) == 2\nasyncio.run(t())", "await"),
    ],
)
def test_what_the_sandbox_cannot_test_is_refused_before_training(test: str, problem: str) -> None:
    problems = build_reward("code").check_rows([{"tests": [test]}])
    assert len(problems) == 1
    assert problem in problems[0]


# --- What a program, and the tests' own process, can reach -------------------------------------------------------------

PROBE = """
import os, resource, sys
def look(folders):
    found = {}
    for folder in folders:
        try:
            found[folder] = sorted(os.listdir(folder))
        except OSError as error:
            found[folder] = type(error).__name__
    return found
def descriptors():
    open_ones = []
    for number in range(0, 256):
        try:
            os.fstat(number)
            open_ones.append(number)
        except OSError:
            pass
    return len(open_ones)
def limits():
    return [resource.getrlimit(getattr(resource, 'RLIMIT_' + name))[0] for name in ('AS', 'CPU', 'NOFILE', 'CORE')]
def calls():
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    answers = {}
    for name, number in NUMBERS.items():
        answers[name] = (libc.syscall(number, 0, 0, 0, 0, 0, 0), ctypes.get_errno())
    return [name for name, (result, error) in answers.items() if result != -1 or error not in (1, 38)]
"""
FOLDERS = ("/", "/home", "/root", "/etc", "/proc", "/sys", "/var", "/usr/lib", "/dev", "/tmp", str(Path.home()))


def _refused_calls() -> dict[str, int]:
    """Every system call that the list does not name, from 0 to 470."""
    named = _seccomp._numbers(_seccomp._ALWAYS["x86_64"]) | _seccomp._numbers(_seccomp._CHECKED["x86_64"])
    # uretprobe and uprobe pass every filter by the kernel's design; they serve the kernel's own trampolines only.
    return {str(number): number for number in range(471) if number not in {*named.values(), 335, 336}}


def test_nothing_of_the_host_is_in_sight(sandbox: Sandbox) -> None:
    libraries = [folder for folder in ("lib", "lib64", "usr", "root", "opt", "home", "nix") if folder]
    check = f"""
assert descriptors() <= NUMBER, descriptors()
found = look({FOLDERS!r})
def only(folder, names):
    return isinstance(found[folder], str) or set(found[folder]) <= names
assert only('/', {{'dev', 'tmp', *{libraries!r}}}), found
assert only('/dev', {{'full', 'null', 'random', 'urandom', 'zero'}}), found
assert only('/tmp', FOLDER), found
for folder in ('/etc', '/proc', '/sys', '/var'):
    assert found[folder] in ('FileNotFoundError', 'PermissionError'), found
assert all('python' in name or '-linux-' in name or '.so' in name for name in found['/usr/lib']), found
assert limits() == [512 << 20, 2, 64, 0], limits()
"""
    program = Program(
        [PROBE],
        (check.replace("NUMBER", "4").replace("FOLDER", "{'.output'}"),),
    )
    verdict = sandbox.run(program)
    assert verdict.passed == (True,), verdict.detail
    # The same questions, asked inside the process that runs the tests.
    verdict = sandbox.run(Program(["x = 1\n"], (PROBE + check.replace("NUMBER", "6").replace("FOLDER", "set()"),)))
    assert verdict.passed == (True,), verdict.detail


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of the calls are those of x86_64")
def test_every_call_that_is_not_listed_is_refused(sandbox: Sandbox) -> None:
    probe = f"NUMBERS = {_refused_calls()!r}\n{PROBE}"
    verdict = sandbox.run(Program([probe], ("assert calls() == [], calls()",)))
    assert verdict.passed == (True,), verdict.detail
    verdict = sandbox.run(Program(["x = 1\n"], (probe + "assert calls() == [], calls()",)))
    assert verdict.passed == (True,), verdict.detail


CHECKED_CALLS = {
    "signal on input": "import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, fcntl.F_SETOWN, 1)",
    "signal number": "import fcntl, os\nfcntl.fcntl(os.pipe()[0], 10, 9)",
    "owner by ioctl": "import fcntl, os, struct\nfcntl.ioctl(os.pipe()[0], 0x8901, struct.pack('i', 1))",
    "datagrams": "import socket\nsocket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "an address": "import socket\na, b = socket.socketpair()\na.sendto(b'x', '\\0name')",
    "limits of others": "import resource\nresource.prlimit(1, resource.RLIMIT_CPU, (1, 1))",
    "a process": "import os\nos.fork()",
    "a program": "import os\nos.execv('/usr/bin/true', ['true'])",
    "SIGKILL": "import signal\nsignal.raise_signal(9) or (_ for _ in ()).throw(OSError())",
    "more memory": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
    "priority": "import os\nos.setpriority(os.PRIO_USER, 0, 5)",
    "processors": "import os\nos.sched_setaffinity(0, [0])",
    "death signal": "import ctypes\nc = ctypes.CDLL(None)\nc.prctl(1, 0) == -1 and (_ for _ in ()).throw(OSError())",
    "a queue": "import ctypes\nc = ctypes.CDLL(None)\nc.mq_open(b'/q', 66, 0o600, None) == -1 and (_ for _ in ()).throw(OSError())",
    "writing to the library": "import os\nopen(os.__file__, 'a')",
    "making a device": "import os, stat\nos.mknod('zero', stat.S_IFCHR | 0o600, os.makedev(1, 5))",
}


@pytest.mark.parametrize("name", CHECKED_CALLS)
def test_calls_are_refused_by_their_arguments(sandbox: Sandbox, name: str) -> None:
    body = "\n".join("        " + line for line in CHECKED_CALLS[name].splitlines())
    source = f"def act():\n    try:\n{body}\n    except (OSError, ValueError):\n        return 'refused'\n    return 'done'\n"
    verdict = sandbox.run(Program([source], ("assert act() == 'refused'",)))
    assert verdict.passed == (True,), verdict.detail


def test_what_programs_do_needs_is_allowed(sandbox: Sandbox) -> None:
    source = """
import asyncio, os, signal, socket, tempfile, threading, time
async def tick():
    await asyncio.sleep(0.001)
    return 1
def use():
    found = [asyncio.run(tick())]
    thread = threading.Thread(target=found.append, args=(2,))
    thread.start()
    thread.join()
    a, b = socket.socketpair()
    a.sendall(b'3')
    found.append(int(b.recv(1)))
    with tempfile.NamedTemporaryFile('w+') as file:
        file.write('4')
        file.seek(0)
        found.append(int(file.read()))
    signal.signal(signal.SIGALRM, lambda *_: found.append(5))
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    time.sleep(0.05)
    return found
"""
    verdict = sandbox.run(Program([source], ("assert use() == [1, 2, 3, 4, 5]",)))
    assert verdict.passed == (True,), verdict.detail


def test_nothing_of_a_program_is_seen_by_the_next(sandbox: Sandbox) -> None:
    leave = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\ndef act(key):\n    made = [libc.shmget(key, ctypes.c_size_t(1 << 20), 0o1666), libc.msgget(key, 0o1666), libc.semget(key, 1, 0o1666)]\n    for folder in ('/tmp', '/dev/shm', '/var/tmp', '/'):\n        try:\n            open(folder + '/left', 'w').write('x')\n        except OSError:\n            made.append(-1)\n    return made\n"
    find = "import os\ndef act(key):\n    return [folder for folder in ('/tmp', '/dev/shm', '/var/tmp', '/') if os.path.exists(folder + '/left')]\n"
    before = (
        subprocess.run(["ipcs", "-m", "-q", "-s"], capture_output=True, text=True).stdout
        if shutil.which("ipcs")
        else ""
    )
    verdict = sandbox.run(Program([leave], ("assert act(4242)[:3] == [-1, -1, -1], act(4242)",)))
    assert verdict.passed == (True,), verdict.detail
    assert sandbox.run(Program([find], ("assert act(4242) == []",))).passed == (True,)
    if before:
        assert subprocess.run(["ipcs", "-m", "-q", "-s"], capture_output=True, text=True).stdout == before


def _peak_megabytes(pid: int, done: threading.Event) -> list[int]:
    peak = [0]
    while not done.is_set():
        for child in descendants(pid):
            try:
                peak[0] = max(peak[0], int(Path(f"/proc/{child}/statm").read_text().split()[1]) * 4096 >> 20)
            except OSError:
                continue
        time.sleep(0.02)
    return peak


def test_the_tests_process_has_the_programs_limit_on_memory(sandbox: Sandbox) -> None:
    sandbox.start()
    server = client._server()._process
    assert server is not None
    done, peaks = threading.Event(), []
    watch = threading.Thread(target=lambda: peaks.append(_peak_megabytes(server.pid, done)))
    watch.start()
    sources = [
        "def double(x):\n    return range(10 ** 9)\n",
        "def double(x):\n    while True:\n        yield 'x' * (1 << 20)\n",
    ]
    verdicts = [sandbox.run(Program([source], ("assert list(double(2)) == [4]",))) for source in sources]
    done.set()
    watch.join()
    assert [verdict.passed for verdict in verdicts] == [(False,), (False,)]
    assert peaks[0][0] <= 560


@pytest.mark.parametrize(
    "test",
    [
        "while double(2) == 4: pass",
        "x = double(2)\nwhile x == 4: pass",
        "import ctypes\nctypes.string_at(double(0))",
        "import os\nassert double(1) == 2\nos._exit(0)",
        "import os\nassert double(1) == 2\nos._exit(7)",
    ],
)
def test_a_tests_process_that_ends_in_any_way_is_no_pass_and_no_hang(sandbox: Sandbox, test: str) -> None:
    start = time.monotonic()
    # Processor time runs out long before the wall time does.
    patient = Sandbox(Limits(cpu_seconds=1, wall_seconds=12.0))
    verdict = patient.run(Program([GOOD], (test, "assert double(1) == 2")))
    assert not all(verdict.passed)
    assert verdict.outcome != "timeout"
    assert time.monotonic() - start < 15
    assert wait_until(lambda: descendants(client._server()._process.pid) == [])  # type: ignore[union-attr]


# --- A sandbox that fails says so --------------------------------------------------------------------------------------


def test_a_program_killed_from_outside_is_run_again(sandbox: Sandbox) -> None:
    # Much memory makes its end slow: the connection closes some time before the process can be asked how it ended.
    slow = "import time\nblock = bytearray(300 << 20)\ntime.sleep(0.3)\n" + GOOD
    sandbox.start()
    server = client._server()._process
    assert server is not None
    for _ in range(6):
        verdicts: list[Verdict] = []
        run = lambda found=verdicts: found.append(sandbox.run(Program([slow], ("assert double(2) == 4",))))  # noqa: E731
        thread = threading.Thread(target=run)
        thread.start()
        assert wait_until(lambda: len(descendants(server.pid)) >= 3)
        time.sleep(0.15)
        os.kill(descendants(server.pid)[-1], signal.SIGKILL)
        thread.join()
        assert verdicts[0].passed == (True,), verdicts[0]


def test_a_sandbox_that_keeps_failing_is_an_error_with_its_cause(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_PAUSES", (0.0, 0.0))
    monkeypatch.setattr(
        client, "_read_verdict", lambda *_: (_ for _ in ()).throw(client._FailedError("no process could be started"))
    )
    with pytest.raises(RewardError, match="no process could be started"):
        build_reward("code")(completions=[GOOD], tests=[["assert double(2) == 4"]])


@pytest.mark.parametrize(
    "options",
    [
        {"memory_megabytes": 10**20},
        {"memory_megabytes": 5},
        {"wall_seconds": float("nan")},
        {"wall_seconds": float("inf")},
        {"cpu_seconds": 10**400},
    ],
)
def test_limits_under_which_right_programs_would_fail_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(RewardError):
        build_reward("code", **options)


def _python_of_everybody() -> str:
    """A Python that an unprivileged user may run."""
    for candidate in (sys.executable, "/usr/bin/python3"):
        path = Path(candidate).resolve()
        if path.exists() and all(folder.stat().st_mode & 0o001 for folder in path.parents):
            version = subprocess.run(
                [candidate, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True, text=True
            )
            if version.stdout.strip() == "True":
                return candidate
    pytest.skip("no Python here that an unprivileged user may run")


@pytest.fixture(scope="module")
def source_for_everybody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The package in a folder that every user can read."""
    import tempfile

    import counterpoint

    with tempfile.TemporaryDirectory(prefix="counterpoint-test-") as folder:
        Path(folder).chmod(0o755)
        shutil.copytree(
            Path(counterpoint.__file__).parent,
            Path(folder) / "counterpoint",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        yield Path(folder)


def _as_nobody(source: Path, code: str, **environment: str) -> str:
    def limit() -> None:
        if "NPROC" in environment:
            resource.setrlimit(resource.RLIMIT_NPROC, (int(environment["NPROC"]),) * 2)

    as_root = {"user": 65_533, "group": 65_533, "extra_groups": []} if os.geteuid() == 0 else {}
    done = subprocess.run(
        [_python_of_everybody(), "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd="/",
        preexec_fn=limit,
        env={"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        **as_root,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(os.geteuid() != 0, reason="a user of its own, with few processes, needs root")
@pytest.mark.parametrize("processes", [14, 18, 22])
def test_few_processes_are_no_zero_for_right_programs(source_for_everybody: Path, processes: int) -> None:
    code = f"from counterpoint.rewards import build_reward\nfrom counterpoint.errors import RewardError\ntry:\n    print(sum(build_reward('code', workers=4)(completions=[{GOOD!r}] * 24, tests=[['assert double(2) == 4']] * 24)))\nexcept RewardError as error:\n    print('error', error)\n"
    printed = _as_nobody(source_for_everybody, code, NPROC=str(processes))
    assert printed.startswith(("24.0", "error")), printed


# --- Without namespaces, asked for by name ------------------------------------------------------------------------------

WEAKER = """
import fcntl, os, sys, warnings
warnings.simplefilter("ignore")
from counterpoint.rewards.sandbox import Program, Sandbox
trainer = os.getpid()
program = f'''
import fcntl, os, ctypes
def attack(x):
    out = []
    def attempt(name, act):
        try:
            act()
            out.append(name)
        except OSError:
            pass
    attempt("memory", lambda: open("/proc/{trainer}/mem", "r+b", buffering=0))
    attempt("environment", lambda: open("/proc/{trainer}/environ").read())
    attempt("list", lambda: os.listdir("/proc"))
    attempt("kill", lambda: os.kill({trainer}, 9))
    r, w = os.pipe()
    attempt("signal on input", lambda: fcntl.fcntl(r, fcntl.F_SETOWN, {trainer}))
    for folder in ("/tmp", "/dev/shm", "/var/tmp", os.path.expanduser("~"), "{home}"):
        attempt(folder, lambda: open(folder + "/left_by_model", "w").write("x"))
    libc = ctypes.CDLL(None)
    if libc.shmget(777001, ctypes.c_size_t(4096), 0o1666) != -1:
        out.append("shared memory")
    try:
        import socket
        socket.socket()
        out.append("socket")
    except OSError:
        pass
    return out
'''
verdict = Sandbox().run(Program([program], ("x = attack(2)\\nassert x == [], x",)))
print(verdict.detail or "nothing")
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_without_namespaces_the_trainer_and_its_files_stay_out_of_reach(
    source_for_everybody: Path, tmp_path: Path
) -> None:
    from counterpoint.rewards.sandbox import _landlock

    if not _landlock.version():
        pytest.skip("the kernel has no Landlock")
    code = WEAKER.replace("{home}", str(tmp_path))
    printed = _as_nobody(
        source_for_everybody, code, COUNTERPOINT_SANDBOX="processes", API_KEY="sesame", HOME=str(tmp_path)
    )
    assert printed.strip() == "nothing"
    assert not Path("/dev/shm/left_by_model").exists()


def test_without_namespaces_the_mode_must_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    hello = {"namespaces": False, "why": "unshare: Operation not permitted", "walls": ["system calls"]}
    monkeypatch.delenv("COUNTERPOINT_SANDBOX", raising=False)
    client._server().stop()
    monkeypatch.setattr(client, "recv_message", lambda _: hello)
    with pytest.raises(RewardError, match="COUNTERPOINT_SANDBOX=processes"):
        Sandbox().start()
    with pytest.raises(RewardError, match="unshare"):
        build_reward("code").check_rows([{"tests": ["assert double(2) == 4"]}])


def test_memory_left_over_is_measured_where_the_kernel_says(sandbox: Sandbox) -> None:
    """The programs' processes are the first that the kernel ends when memory runs out."""
    server = client._server()
    sandbox.start()
    assert server._process is not None
    assert int(Path(f"/proc/{server._process.pid}/oom_score_adj").read_text()) >= 500
