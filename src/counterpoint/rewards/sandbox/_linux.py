"""The Linux system calls the sandbox needs and that Python 3.11 lacks, through ctypes.

Everything here raises ``OSError`` where the kernel refuses. Flag values are those of the kernel's user interface
headers.
"""

import ctypes
import os
import sys
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
MS_REC, MS_PRIVATE = 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Moves the process into new namespaces."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def prctl(option: int, value: int) -> None:
    """Sets a property of the process."""
    _check(_libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)), "prctl")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Mounts ``source`` on ``target``."""
    arguments = [ctypes.c_char_p(text.encode() or None) for text in (source, target, kind)]
    result = _libc.mount(*arguments, ctypes.c_ulong(flags), ctypes.c_char_p(data.encode() or None))
    _check(result, f"mount {target}")


def map_identity(proc: int, uid: int, gid: int) -> None:
    """Maps ``uid`` and ``gid`` to themselves in this process's new user namespace.

    Arguments:
        proc: A descriptor of a mounted ``/proc`` (it may no longer be reachable by path).
        uid: The effective user id that the process had when it made the namespace.
        gid: The same for the group.
    """
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        file = os.open(f"{os.getpid()}/{name}", os.O_WRONLY, dir_fd=proc)
        os.write(file, text.encode())
        os.close(file)


def drop_privileges() -> None:
    """Gives up all capabilities, and the way back to any through set-user-id programs."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def readable_paths() -> list[str]:
    """What a program in the sandbox can read: the standard library, the shared libraries it needs, harmless devices."""
    library = str(Path(os.__file__).resolve().parent)
    paths = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo", library]
    paths += [str(Path(sys.base_prefix).resolve() / "lib")]
    paths += [f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")]
    present = sorted({path for path in paths if os.path.exists(path)})  # noqa: PTH110
    return [path for path in present if not any(path.startswith(other + "/") for other in present)]


def enter_private_root(paths: list[str]) -> None:
    """Replaces the root of this mount namespace by one that holds ``paths`` read-only, and an empty ``/tmp``."""
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    # Any directory would do as the mount point; /proc exists everywhere, is empty of Python, and must vanish anyway.
    root = "/proc"
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=1m")
    for path in paths:
        inside = Path(root + path)
        inside.parent.mkdir(parents=True, exist_ok=True)
        if Path(path).is_symlink():
            inside.symlink_to(os.readlink(path))  # noqa: PTH115
            continue
        if Path(path).is_dir():
            inside.mkdir(exist_ok=True)
        else:
            inside.touch()
        mount(path, str(inside), flags=MS_BIND | MS_REC)
        _make_read_only(str(inside))
    Path(root, "tmp").mkdir()
    os.chdir(root)
    _check(_libc.pivot_root(b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", MNT_DETACH), "umount")
    os.chdir("/")
    mount("none", "/", flags=MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def _make_read_only(path: str) -> None:
    # A user namespace may not drop restrictions of an inherited mount, so those that it has are repeated.
    kept = os.statvfs(path).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("none", path, flags=kept | MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID)
