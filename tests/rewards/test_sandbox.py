"""What programs in the sandbox can and cannot do, and that ordinary tests work across the process boundary."""

# ruff: noqa: E501 (one program a line reads better)

import os
import signal
import warnings
from pathlib import Path

import pytest

from counterpoint.errors import RewardError
from counterpoint.rewards.sandbox import Limits, Program, Sandbox
from counterpoint.rewards.sandbox import _client as client
from sandbox_helpers import descendants, wait_until

GOOD = "def double(x):\n    return 2 * x\n"
TESTS = ("assert double(2) == 4", "assert double(-1) == -2")


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    sandbox = Sandbox()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        sandbox.run(Program([GOOD], TESTS))
    if client._server().why_weaker:
        pytest.skip(f"the kernel allows no namespaces here: {client._server().why_weaker}")
    return sandbox


def test_the_scan_for_processes_can_find_some(sandbox: Sandbox) -> None:
    server = client._server()
    with client.ThreadPoolExecutor(1) as pool:
        running = pool.submit(sandbox.run, Program(["import time\ntime.sleep(1)\n" + GOOD], TESTS))
        assert server._process is not None
        pid = server._process.pid
        assert wait_until(lambda: len(descendants(pid)) >= 2)
        assert running.result().passed == (True, True)


def test_parent_files_and_environment_are_out_of_reach(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the answer is 42")
    here = Path.cwd()
    os.environ["COUNTERPOINT_TEST_SECRET"] = "sesame"
    probe = f"""
import os, sys
def look():
    found = []
    for path in ({str(secret)!r}, {str(here / "pyproject.toml")!r}, '/proc/{os.getpid()}/environ', '/etc/passwd',
                 '/proc/self/environ', os.path.expanduser('~/.bashrc'), {str(Path(client.__file__))!r}):
        try:
            found.append(open(path, 'rb').read(20))
        except OSError:
            pass
    for folder in ('/home', '/proc', '/sys', '/etc', {str(here)!r}, {str(tmp_path)!r}):
        try:
            found += os.listdir(folder)
        except OSError:
            pass
    return found + list(os.environ) + [path for path in sys.path if 'site-packages' in path or path.endswith('src')]
"""
    verdict = sandbox.run(Program([probe], ("assert look() == [], look()",)))
    assert verdict.passed == (True,), verdict.detail


@pytest.mark.parametrize(
    "action",
    [
        "__import__('socket').socket()",
        "__import__('socket').create_connection(('127.0.0.1', 22), 1)",
        "open('/usr/lib/planted', 'w')",
        "open('/planted', 'w')",
        "__import__('os').setuid(0)",
        "__import__('os').setsid()",
        "__import__('ctypes').CDLL(None, use_errno=True).unshare(0x10000000) and (_ for _ in ()).throw(OSError())",
        "__import__('os').chroot('/tmp')",
    ],
)
def test_refused_actions(sandbox: Sandbox, action: str) -> None:
    source = f"def act():\n    try:\n        {action}\n    except OSError:\n        return 'refused'\n"
    verdict = sandbox.run(Program([source], ("assert act() == 'refused'",)))
    assert verdict.passed == (True,), verdict.detail


def test_no_interface_of_a_network(sandbox: Sandbox) -> None:
    source = "import socket\ndef names():\n    return [name for _, name in socket.if_nameindex()]\n"
    verdict = sandbox.run(Program([source], ("assert names() in ([], ['lo'])",)))
    assert verdict.passed == (True,) or "Operation not permitted" in verdict.detail


def test_programs_start_with_an_empty_directory_of_their_own(sandbox: Sandbox) -> None:
    source = (
        "import os\ndef use():\n    before = os.listdir('.')\n    open('mine', 'w').write('x')\n    return before\n"
    )
    for _ in range(2):
        assert sandbox.run(Program([source], ("assert use() == ['.output']",))).passed == (True,)


# What ordinary tests do with the program: all of it crosses the process boundary.
# fmt: off
ORDINARY = {
    "in place": ("def sort(x):\n    x.sort()\n", "a = [3, 1, 2]\nsort(a)\nassert a == [1, 2, 3]"),
    "containers": (
        "from collections import Counter, OrderedDict\ndef f(x):\n    return (Counter(x), {1: [x]}, {2}, b'z', 1j, 2**70)\n",
        "assert f('aa') == ({'a': 2}, {1: ['aa']}, {2}, b'z', 1j, 2 ** 70)",
    ),
    "objects": (
        "class Node:\n    def __init__(self, v):\n        self.v, self.left = v, None\n"
        "def depth(n):\n    return 0 if n is None else 1 + depth(n.left)\n",
        "root = Node(1)\nroot.left = Node(2)\nroot.left.left = Node(3)\nassert depth(root) == 3 and root.left.v == 2",
    ),
    "objects in lists": (
        "class Pair:\n    def __init__(self, a, b):\n        self.a, self.b = a, b\ndef total(pairs):\n    return sum(p.a for p in pairs)\n",
        "assert total([Pair(1, 2), Pair(3, 4)]) == 4",
    ),
    "builtin functions": ("def apply(f, x):\n    return f(x) + 1\n", "assert apply(len, [1, 2]) == 3"),
    "classes of builtins": (
        "def keep(xs, kind):\n    return [x for x in xs if isinstance(x, kind)]\n",
        "assert keep([1, 'a', 2.0], str) == ['a']",
    ),
    "generators": ("def count(n):\n    yield from range(n)\n", "assert list(count(3)) == [0, 1, 2]"),
    "exceptions": (
        "def f(x):\n    raise ValueError('bad')\n",
        "try:\n    f(1)\nexcept ValueError as error:\n    assert 'bad' in str(error)\nelse:\n    assert False",
    ),
    "module imported by the program": ("import math\ndef f():\n    return 0.1 + 0.2\n", "assert math.isclose(f(), 0.3)"),
    "name of a builtin": ("def sum(a, b):\n    return a + b\n", "assert sum(1, 2) == 3"),
    "floats": ("def f():\n    return float('nan'), float('inf'), -0.0\n", "a, b, c = f()\nassert a != a and b > 1e308 and str(c) == '-0.0'"),
    "constants": ("LIMIT = 10\n", "assert LIMIT == 10"),
    "input": ("def f():\n    try:\n        return input()\n    except EOFError:\n        return 'none'\n", "assert f() == 'none'"),
    "printing": ("def f():\n    print('hello')\n    return 1\n", "assert f() == 1"),
}
# fmt: on


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_tests_pass(sandbox: Sandbox, name: str) -> None:
    source, test = ORDINARY[name]
    verdict = sandbox.run(Program([source], (test,)))
    assert verdict.passed == (True,), verdict.detail


def test_each_test_counts_alone(sandbox: Sandbox) -> None:
    verdict = sandbox.run(Program([GOOD], ("assert double(1) == 2", "assert double(1) == 3", "assert double(0) == 0")))
    assert verdict.passed == (True, False, True)
    assert verdict.detail.startswith("AssertionError")


def test_tests_before_a_hang_count(sandbox: Sandbox) -> None:
    sandbox = Sandbox(Limits(cpu_seconds=1, wall_seconds=3.0))
    hang = "def double(x):\n    while x == 9:\n        pass\n    return 2 * x\n"
    verdict = sandbox.run(Program([hang], ("assert double(1) == 2", "assert double(9) == 18", "assert double(0) == 0")))
    assert verdict.passed == (True, False, False)


def test_a_builtin_keeps_its_meaning_beside_the_tested_function(sandbox: Sandbox) -> None:
    cheat = "def abs(x):\n    return 0\ndef root(x):\n    return 100.0\n"
    assert sandbox.run(Program([cheat], ("assert abs(root(4) - 2.0) < 1e-6",))).passed == (False,)


def test_server_killed_from_outside_is_replaced(sandbox: Sandbox) -> None:
    assert sandbox.run(Program([GOOD], TESTS)).passed == (True, True)
    server = client._server()._process
    assert server is not None
    os.kill(server.pid, signal.SIGKILL)
    assert sandbox.run(Program([GOOD], TESTS)).passed == (True, True)
    assert client._server()._process is not server


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_gets_a_server_of_its_own(sandbox: Sandbox) -> None:
    assert sandbox.run(Program([GOOD], TESTS)).passed == (True, True)
    pid = os.fork()
    if pid == 0:
        ok = sandbox.run(Program([GOOD], TESTS)).passed == (True, True)
        client._server().stop()
        os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert sandbox.run(Program([GOOD], TESTS)).passed == (True, True)


def test_programs_are_deterministic(sandbox: Sandbox) -> None:
    source = "import random\ndef f():\n    return random.random(), list({'a', 'b', 'c', 'd'})\n"
    details = {sandbox.run(Program([source], ("assert f() is None, f()",))).detail for _ in range(3)}
    assert len(details) == 1


def test_limits_are_checked() -> None:
    with pytest.raises(RewardError, match="threads must be a whole number above 0"):
        Limits(threads=0)
