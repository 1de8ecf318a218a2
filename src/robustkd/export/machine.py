"""Properties of the machine on which latencies are measured."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TypedDict

from robustkd.core.environment import usable_cores

# CPU instructions for products of bytes with sums in 32 bits, by their names in Linux.
_INT8 = (
    "avx_vnni",
    "avx512_vnni",
    "avx_vnni_int8",
    "amx_int8",
    "asimddp",
    "i8mm",
)
_VNNI = ("avx_vnni", "avx512_vnni", "avx_vnni_int8")


class Machine(TypedDict):
    """CPU, its instructions for int8, its load, and the versions of the software."""

    cpu: str
    architecture: str
    system: str
    cores: int
    load: float | None
    int8_instructions: list[str] | None
    vnni: bool | None
    python: str
    torch: str
    onnxruntime: str


def machine(cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
    """Return the CPU, its instructions for int8, its load, and the versions of the software.

    ``load`` is the mean number of processes that ran or waited for a core in the last minute.

    Args:
        cpuinfo: File in which Linux describes the CPU. On other systems, the instructions are
            null.
    """
    found = _described(cpuinfo)
    flags = (found.get("flags") or found.get("Features") or "").split()
    return {
        "cpu": found.get("model name") or _cpu_elsewhere(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "cores": usable_cores(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "int8_instructions": [name for name in _INT8 if name in flags] if flags else None,
        "vnni": any(name in flags for name in _VNNI) if flags else None,
        "python": platform.python_version(),
        "torch": version("torch"),
        "onnxruntime": version("onnxruntime"),
    }


def _described(cpuinfo: Path) -> dict[str, str]:
    """Return the description of the first core."""
    try:
        text = cpuinfo.read_text(errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def _cpu_elsewhere() -> str:
    if sys.platform == "darwin":
        asked = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        told = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603 (constant)
        if told.stdout.strip():
            return told.stdout.strip()
    return platform.processor() or "unknown"
