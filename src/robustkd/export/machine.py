"""Properties of the machine on which latencies are measured."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
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
    """CPU, its instructions for int8, its load, and the versions of the software.

    ``vnni`` is None for other CPUs than those of x86, as is everything that is unknown.
    """

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


def machine(
    cpuinfo: Path = Path("/proc/cpuinfo"), board: Path = Path("/proc/device-tree/model")
) -> Machine:
    """Return the CPU, its instructions for int8, its load, and the versions of the software.

    ``load`` is the mean number of processes that ran or waited for a core in the last minute.

    Args:
        cpuinfo: File in which Linux describes the CPU. On other systems, the instructions are
            null.
        board: File with the name of the machine, where the system has a device tree.
    """
    found = _described(cpuinfo)
    x86 = found.get("flags", "").split()
    flags = x86 or found.get("Features", "").split()
    return {
        "cpu": found.get("model name") or _arm(found, board) or _cpu_elsewhere(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "cores": usable_cores(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "int8_instructions": [name for name in _INT8 if name in flags] if flags else None,
        "vnni": any(name in x86 for name in _VNNI) if x86 else None,
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


def _arm(found: Mapping[str, str], board: Path) -> str:
    """Return board and numbers of an ARM CPU, which has no name in Linux; empty without any.

    >>> _arm({"CPU implementer": "0x41", "CPU part": "0xd0c"}, Path("none"))
    'CPU implementer 0x41, CPU part 0xd0c'
    """
    try:
        name = board.read_text(errors="replace").strip("\0\n ")
    except OSError:
        name = ""
    numbers = [f"{key} {found[key]}" for key in ("CPU implementer", "CPU part") if key in found]
    return ", ".join(filter(None, (name, *numbers)))


def _cpu_elsewhere() -> str:
    if sys.platform == "darwin":
        asked = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        told = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603 (constant)
        if told.stdout.strip():
            return told.stdout.strip()
    return platform.processor() or "unknown"
