"""Memory of this process."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path


def process_peak_mib() -> float:
    """Return the largest memory that this process has used, in MiB; 0 where it is not known."""
    # On Linux, the peak of `getrusage` includes that of the parent process.
    with suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    if sys.platform == "win32":
        return 0.0
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**20 if sys.platform == "darwin" else 2**10)
