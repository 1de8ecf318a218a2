"""Versions and machine properties that results depend on."""

from __future__ import annotations

import math
import os
import platform
import re
from pathlib import Path

from robustkd.core.errors import printable
from robustkd.core.launch import launched

_LIBRARIES = "OMP|MKL|KMP|OPENBLAS|ONEDNN|DNNL|ATEN|TORCH|PYTORCH|CUDA|CUDNN|CUBLAS|NVIDIA"
_CHOOSES_KERNELS = re.compile(rf"({_LIBRARIES})_[A-Z0-9_]{{1,60}}")
_CHOOSES_NO_KERNELS = "TORCH_NCCL_"
"""Start of the names that set how processes wait for each other, one of which torchrun sets."""
_CHOOSES_PLACES = ("_HOME", "_DIR", "_PATH", "_CACHE", "_LOGS", "_OUT", "_FILE")
_LONGEST_VALUE = 60
_QUOTAS = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))
"""Files with quota and period of CPU time, in versions 2 and 1 of Linux's control groups."""


def is_kernel_choice(name: str) -> bool:
    """Return whether an environment variable of that name can change the last bits of results."""
    if name.startswith(_CHOOSES_NO_KERNELS) or name.endswith(_CHOOSES_PLACES):
        return False
    return _CHOOSES_KERNELS.fullmatch(name) is not None


def kernel_choices() -> dict[str, str]:
    """Return the environment variables that are set and choose numerical kernels."""
    return {
        name: printable(value)[:_LONGEST_VALUE]
        for name, value in sorted(os.environ.items())
        if is_kernel_choice(name)
    }


def usable_cores(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of cores that this process may use, which a container can restrict.

    A container can restrict the cores themselves, or the CPU time. A quota of 1.5 cores counts as
    two.

    Args:
        groups: Folder in which Linux shows the limits of the container.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, math.ceil(min(cores, _quota(groups))))


def _quota(groups: Path) -> float:
    """Return how many cores the CPU time of the container is worth; infinity without a quota."""
    for names in _QUOTAS:
        try:
            words = " ".join((groups / name).read_text() for name in names).split()
            quota, period = map(int, words)
        except (OSError, ValueError):
            continue  # another version, or the word "max" in place of a quota
        if quota > 0 and period > 0:  # -1 is no quota
            return quota / period
    return math.inf


def environment() -> dict[str, str | int]:
    """Return the versions and machine properties that results depend on besides the code."""
    from importlib.metadata import version

    import torch

    from robustkd.core.devices import default_device

    return {
        "robustkd": version("robustkd"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(default_device()),
        "threads": torch.get_num_threads(),
        "cores": usable_cores(),
        **({"processes": launched().count} if launched().several else {}),
        "machine": platform.machine(),
        "system": platform.system(),
        **kernel_choices(),
    }
