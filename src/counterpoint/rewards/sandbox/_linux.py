"""The Linux system calls the sandbox needs and that Python 3.11 lacks, through ctypes.

Everything here raises ``OSError`` where the kernel refuses. Flag values are those of the kernel's user interface
headers.
"""

import contextlib
import ctypes
import importlib
import os
import shutil
import sys
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
MS_REC, MS_PRIVATE = 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 1, 4, 38
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


def standard_library() -> list[str]:
    """Folders of the standard library: pure Python, and extension modules where they stand apart."""
    folders = {Path(os.__file__).resolve().parent}
    folders |= {Path(path).resolve() for path in sys.path if path.endswith("lib-dynload") and Path(path).is_dir()}
    return [str(path) for path in sorted(folders) if not any(parent in folders for parent in path.parents)]


# Where the loader looks for shared libraries; readable where there are no namespaces.
LIBRARY_FOLDERS = [
    "/lib",
    "/lib64",
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/etc/ld.so.cache",
]
DEVICES = [f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")]


def shared_libraries() -> list[str]:
    """Files of the shared libraries that the interpreter and the standard library's extension modules need.

    They are found by importing all extension modules in a process of their own and reading what it mapped.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write_end, "\n".join(_mapped_by_extensions()).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        found = pipe.read().decode().splitlines()
    os.waitpid(pid, 0)
    return found


def _mapped_by_extensions() -> list[str]:
    null = os.open("/dev/null", os.O_RDWR)
    for target in (0, 1, 2):
        os.dup2(null, target)
    before = _mapped()  # loaded for good: nobody opens these again
    for folder in {path for path in sys.path if path.endswith("lib-dynload")}:
        for name in sorted(path.name for path in Path(folder).iterdir()):
            # Terminals and windows have no place in the cage; modules of tests crash on purpose.
            if not name.startswith(("_test", "_tkinter", "_curses", "readline", "_xxtest", "xx")):
                with contextlib.suppress(ImportError):
                    importlib.import_module(name.partition(".")[0])
    library = tuple(f"{folder}/" for folder in standard_library())
    return sorted(path for path in _mapped() - before if not path.startswith(library))


def _mapped() -> set[str]:
    fields = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    return {field[5] for field in fields if len(field) == 6 and ".so" in field[5]}


def enter_private_root(library: list[str], copied: list[str], bound: list[str]) -> None:
    """Replaces the root of this mount namespace by one that holds only what Python needs, all read-only.

    Arguments:
        library: Folders of the standard library; their ``site-packages`` and ``dist-packages`` are hidden.
        copied: Files of shared libraries, found again under each of their names.
        bound: Other files and folders to show.
    """
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    names = {path: _names_of(path) for path in copied}
    # Any directory would do as the mount point; /proc exists everywhere, is empty of Python, and must vanish anyway.
    root = "/proc"
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=256m")
    for path in ("/lib", "/lib64", "/usr/lib64"):
        if Path(path).is_symlink():
            Path(root, "usr").mkdir(exist_ok=True)
            Path(root + path).symlink_to(os.readlink(path))  # noqa: PTH115
    for path in [*library, *bound]:
        _bind(path, root)
    for folder in library:
        for hidden in ("site-packages", "dist-packages"):
            if Path(folder, hidden).is_dir() and f"{folder}/{hidden}" not in bound:
                mount("tmpfs", f"{root}{folder}/{hidden}", "tmpfs", MS_NOSUID | MS_NODEV | MS_RDONLY, "size=4k")
    for path, others in names.items():
        _copy(path, others, root)
    Path(root, "tmp").mkdir(exist_ok=True)
    os.chdir(root)
    _check(_libc.pivot_root(b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", MNT_DETACH), "umount")
    os.chdir("/")
    mount("none", "/", flags=MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def _names_of(path: str) -> list[str]:
    """Names beside a shared library that lead to it: the loader asks for ``libz.so.1``, not ``libz.so.1.2.13``."""
    folder = Path(path).parent
    stem = Path(path).name.partition(".so")[0]
    return [
        str(other) for other in folder.glob(f"{stem}*.so*") if other.is_symlink() and os.path.realpath(other) == path
    ]


def _bind(path: str, root: str) -> None:
    inside = Path(root + path)
    inside.parent.mkdir(parents=True, exist_ok=True)
    if Path(path).is_dir():
        inside.mkdir(exist_ok=True)
    else:
        inside.touch()
    mount(path, str(inside), flags=MS_BIND | MS_REC)
    # A user namespace may not drop restrictions of an inherited mount, so those that it has are repeated.
    kept = os.statvfs(inside).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("none", str(inside), flags=kept | MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID)


def _copy(path: str, others: list[str], root: str) -> None:
    inside = Path(root + path)
    if inside.exists():  # in a folder that is shown anyway
        return
    inside.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, inside)
    inside.chmod(0o755)
    for other in others:
        Path(root + other).symlink_to(inside.name)
