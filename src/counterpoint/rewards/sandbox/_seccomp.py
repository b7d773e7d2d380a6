"""A system-call filter for tested programs: no network sockets, no signals to others, no way out of the process group.

In a sandbox with namespaces this is a second wall; where the kernel allows no namespaces it is the wall. Refused calls
fail with EPERM, so a program that merely tries is not killed.
"""

import ctypes
import os
import platform
import struct

from counterpoint.rewards.sandbox._linux import PR_SET_NO_NEW_PRIVS, prctl

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_LOAD, _EQUAL, _RETURN, _AT_LEAST = 0x20, 0x15, 0x06, 0x35
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _FIRST_ARGUMENT_OFFSET = 0, 4, 16
_X32_BIT = 0x40000000

# Architecture token, then the numbers of the calls that are always refused, by name for the reader.
_TABLES: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        {"socket": 41, "kill": 62, "tkill": 200, "ptrace": 101, "setpgid": 109, "setsid": 112, "rt_sigqueueinfo": 129}
        | {
            "rt_tgsigqueueinfo": 297,
            "pidfd_send_signal": 424,
            "pidfd_open": 434,
            "pidfd_getfd": 438,
            "unshare": 272,
            "setns": 308,
        }
        | {
            "mount": 165,
            "umount2": 166,
            "pivot_root": 155,
            "chroot": 161,
            "process_vm_readv": 310,
            "process_vm_writev": 311,
        }
        | {"bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "keyctl": 250, "add_key": 248, "request_key": 249}
        | {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_by_handle_at": 304}
        | {"fsopen": 430, "move_mount": 429, "open_tree": 428, "kcmp": 312, "clone3": 435},
    ),
    "aarch64": (
        0xC00000B7,
        {"socket": 198, "kill": 129, "tkill": 130, "ptrace": 117, "setpgid": 154, "setsid": 157, "rt_sigqueueinfo": 138}
        | {
            "rt_tgsigqueueinfo": 240,
            "pidfd_send_signal": 424,
            "pidfd_open": 434,
            "pidfd_getfd": 438,
            "unshare": 97,
            "setns": 268,
        }
        | {
            "mount": 40,
            "umount2": 39,
            "pivot_root": 41,
            "chroot": 51,
            "process_vm_readv": 270,
            "process_vm_writev": 271,
        }
        | {"bpf": 280, "perf_event_open": 241, "userfaultfd": 282, "keyctl": 219, "add_key": 217, "request_key": 218}
        | {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_by_handle_at": 265}
        | {"fsopen": 430, "move_mount": 429, "open_tree": 428, "kcmp": 272, "clone3": 435},
    ),
}
_TGKILL = {"x86_64": 234, "aarch64": 131}
_CLONE = {"x86_64": 56, "aarch64": 220}
_NAMESPACE_FLAGS = 0x7E020000


def is_available() -> bool:
    """Whether this machine's architecture has a table here."""
    return platform.machine() in _TABLES


def install() -> None:
    """Installs the filter for this process and all that it will start, for good. Raises ``OSError`` where refused."""
    program = b"".join(_assemble(platform.machine()))
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    libc = ctypes.CDLL(None, use_errno=True)
    address = ctypes.create_string_buffer(header, len(header))
    if libc.prctl(_PR_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), address, ctypes.c_ulong(0), ctypes.c_ulong(0)):
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {os.strerror(number)}")


def _assemble(machine: str) -> list[bytes]:
    """The filter: each instruction is (code, jump if true, jump if false, constant)."""
    architecture, refused = _TABLES[machine]
    code = [
        (_LOAD, 0, 0, _ARCHITECTURE_OFFSET),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _REFUSE),
        (_LOAD, 0, 0, _NUMBER_OFFSET),
        (_AT_LEAST, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, _REFUSE),
    ]
    for number in refused.values():
        # clone3 hides its flags behind a pointer; "not implemented" makes the C library fall back to clone.
        answer = 0x00050000 | 38 if number == refused["clone3"] else _REFUSE
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, answer)]
    # Signals to the own process stay allowed: abort() and raise() need them.
    code += [(_EQUAL, 0, 4, _TGKILL[machine]), (_LOAD, 0, 0, _FIRST_ARGUMENT_OFFSET), (_EQUAL, 1, 0, os.getpid())]
    code += [(_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    code += [(_EQUAL, 0, 3, _CLONE[machine]), (_LOAD, 0, 0, _FIRST_ARGUMENT_OFFSET)]
    code += [(0x45, 0, 1, _NAMESPACE_FLAGS), (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    return [struct.pack("HBBI", *instruction) for instruction in code]
