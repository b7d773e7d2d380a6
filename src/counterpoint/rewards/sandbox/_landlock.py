"""Landlock: what of the file system a process may still read or write, whatever its user may; and no signals outside.

It needs no namespaces and no privileges (Linux 5.13 and newer; network and signals from 6.7 and 6.12). With
namespaces it is a second wall around what the cage shows; without them it is the wall.
"""

import ctypes
import os
import struct
from collections.abc import Iterable

from counterpoint.rewards.sandbox._linux import PR_SET_NO_NEW_PRIVS, prctl

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_TRUNCATE = 1 << 14
_FILE_ACCESSES = _WRITE_FILE | _READ_FILE | _TRUNCATE
# Number of file accesses that each version of the interface knows (versions 1 to 5).
_NUM_ACCESSES = (13, 14, 15, 15, 16)
_ALL_NETWORK, _ALL_SCOPES = 3, 3

_libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """Version of the kernel's interface; 0 where there is none."""
    return max(0, int(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))))


def ruleset(readable: Iterable[str], writable: Iterable[str], signals: bool = False) -> int:
    """A descriptor for ``enforce``, in this process or in any forked from it; -1 where the kernel has no Landlock.

    Arguments:
        readable: Folders and files that stay readable. No program can be started.
        writable: Folders and files that stay readable and writable.
        signals: Whether signals to processes outside stay possible.
    """
    interface = version()
    if not interface:
        return -1
    accesses = (1 << _NUM_ACCESSES[min(interface, len(_NUM_ACCESSES)) - 1]) - 1
    scopes = 0 if interface < 6 else (_ALL_SCOPES & ~2 if signals else _ALL_SCOPES)
    attributes = struct.pack("QQQ", accesses, _ALL_NETWORK if interface >= 4 else 0, scopes)
    size = 8 if interface < 4 else 16 if interface < 6 else 24
    rules = _call(_CREATE_RULESET, attributes, ctypes.c_size_t(size), ctypes.c_uint32(0))
    for path in readable:
        _allow(rules, path, _READ_FILE | _READ_DIR)
    for path in writable:
        _allow(rules, path, accesses & ~_EXECUTE)
    return rules


def enforce(rules: int) -> None:
    """Leaves this process and what it starts only what ``ruleset`` named, for good."""
    if rules >= 0:
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        _call(_RESTRICT_SELF, ctypes.c_int(rules), ctypes.c_uint32(0))


def _allow(ruleset: int, path: str, accesses: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):  # nothing to allow
        return
    try:
        allowed = accesses if os.path.isdir(path) else accesses & _FILE_ACCESSES  # noqa: PTH112
        _call(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(1), struct.pack("=Qi", allowed, descriptor), 0)
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"landlock: {os.strerror(error)}")
    return result
