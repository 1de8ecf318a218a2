"""Settings of the C library's memory allocator for a process that trains networks."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of ``mallopt`` in the GNU C library."""
_LARGEST_BLOCK = 32 << 20
"""Largest block, in bytes, that is taken from the heap; the library accepts no larger value."""
_KEPT = 512 << 20
"""Free memory, in bytes, at the end of the heap that the process keeps."""


def keep_freed_memory() -> bool:
    """Let the process keep freed memory for its next allocations, and return whether it does.

    By default, the GNU C library returns large freed blocks to the operating system. Each step of a
    training allocates blocks of the same sizes again, and the operating system has to clear their
    pages each time. With these settings the process keeps at most 512 MiB of free memory. Other C
    libraries are left as they are. The setting holds for the whole process, so only programs
    change it, and not the functions of the library.

    Source: the manual page mallopt(3).
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return all(
        library.mallopt(parameter, size) == 1
        for parameter, size in ((_MMAP_THRESHOLD, _LARGEST_BLOCK), (_TRIM_THRESHOLD, _KEPT))
    )
