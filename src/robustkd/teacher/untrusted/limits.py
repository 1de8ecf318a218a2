"""Limits that the reading process imposes on itself before it reads the file.

Enforced everywhere: processor time, size of what is written, no further open files (nor sockets,
which are files), and for an ordinary user no further processes. On Linux also: memory; a network
namespace without any network, where the system lets an ordinary user make one; no changes to the
file system, where the kernel has Landlock; and a filter that leaves the process about twenty
system calls on x86-64 and arm64 (reading and writing what is open, memory, and its own end).
Without that filter, as on macOS, which does not limit memory either, nothing is read unless the
user allows it. The report of a run lists the limits that were enforced.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys
from contextlib import suppress

SYSTEM_CALLS = "system calls"
"""Name of the limit of the filter, without which no file is read by default."""
_NEW_USER, _NEW_NET = 0x10000000, 0x40000000
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2
# Instructions of classic BPF: load a word, jump if equal, return.
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _NOT_PERMITTED, _KILL = 0x7FFF0000, 0x00050001, 0x80000000
_NUMBER, _ARCHITECTURE = 0, 4
# The system calls of Landlock have the same numbers on all architectures.
_CREATE_RULES, _APPLY_RULES, _VERSION = 444, 446, 1
# Number of access rights of each version: to files, to the network, to other processes.
_FILES = {1: 13, 2: 14, 3: 15, 4: 15}
_ALL_FILES, _NETWORK, _SCOPES = 16, 2, 2
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""Names of architectures in the kernel; the columns of the table below."""
_CALLS = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "futex": (202, 98),
    "clock_gettime": (228, 113),
    "getrandom": (318, 278),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "getpid": (39, 172),
    "gettid": (186, 178),
}


class _Program(ctypes.Structure):
    """``struct sock_fprog`` of the kernel."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def give_up(*, memory: int, seconds: int, written: int) -> list[str]:
    """Irrevocably limit this process; return the limits that the system enforces.

    Args:
        memory: Largest address space in bytes.
        seconds: Largest processor time in seconds.
        written: Largest file that may be written, in bytes.

    A lower limit that the process already has, such as one of ulimit, stays.
    """
    enforced = ["processor time", "file size", "no further files"]
    if os.geteuid():
        enforced.append("no further processes")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_CPU, seconds, seconds + 1)
    _lower(resource.RLIMIT_FSIZE, written, written)
    if sys.platform != "linux":
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        return enforced
    library = ctypes.CDLL(None, use_errno=True)
    # An ordinary user needs a user namespace to leave the network namespace; root does not.
    if any(library.unshare(flags) == 0 for flags in (_NEW_USER | _NEW_NET, _NEW_NET)):
        enforced.append("no network")
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    if _leave_files(library):
        enforced.append("file system")
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    with suppress(ValueError, OSError):
        _lower(resource.RLIMIT_AS, memory, memory)
        enforced.append("memory")
    if _filter_calls(library):
        enforced.append(SYSTEM_CALLS)
    return enforced


def allowed(kind: int) -> int:
    """Return the limit of this process of a kind such as ``resource.RLIMIT_FSIZE``, in bytes."""
    found = resource.getrlimit(kind)[0]
    return sys.maxsize if found == resource.RLIM_INFINITY else found


def _lower(kind: int, soft: int, hard: int) -> None:
    """Set a limit, but never raise one: neither that of the user nor that of the system."""
    had = (sys.maxsize if n == resource.RLIM_INFINITY else n for n in resource.getrlimit(kind))
    soft, hard = (min(pair) for pair in zip((soft, hard), had, strict=True))
    resource.setrlimit(kind, (soft, hard))


def _leave_files(library: ctypes.CDLL) -> bool:
    """Drop all access to the file system with Landlock; open files stay usable."""
    version = library.syscall(_CREATE_RULES, None, 0, _VERSION)
    if version < 1 or library.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        return False
    kinds = [_FILES.get(version, _ALL_FILES)]
    kinds += [_NETWORK] if version >= 4 else []
    kinds += [_SCOPES] if version >= 6 else []
    # All handled access is refused unless a rule allows it, and there are no rules.
    handled = struct.pack(f"={len(kinds)}Q", *((1 << kind) - 1 for kind in kinds))
    rules = library.syscall(_CREATE_RULES, handled, len(handled), 0)
    if rules < 0:
        return False
    try:
        return bool(library.syscall(_APPLY_RULES, rules, 0) == 0)
    finally:
        os.close(rules)


def _filter_calls(library: ctypes.CDLL) -> bool:
    """Block every system call that is not listed above."""
    if platform.machine() not in _AUDIT or sys.maxsize < 2**32:
        return False
    column = list(_AUDIT).index(platform.machine())
    numbers = [call[column] for call in _CALLS.values()]
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, _AUDIT[platform.machine()]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        *((_JUMP_EQUAL, len(numbers) - place, 0, call) for place, call in enumerate(numbers)),
        (_RETURN, 0, 0, _NOT_PERMITTED),
        (_RETURN, 0, 0, _ALLOW),
    ]
    code = b"".join(struct.pack("=HBBI", *step) for step in steps)
    program = _Program(len(steps), code)
    if library.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        return False
    return bool(library.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0) == 0)
