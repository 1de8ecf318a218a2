"""Versions and machine properties that results depend on."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def environment() -> dict[str, str | int]:
    """What a figure depends on besides the code: versions and the machine."""
    from importlib.metadata import version

    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return {
        "robustkd": version("robustkd"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(accelerator or "cpu"),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count() or 1,
        "machine": platform.machine(),
        "system": platform.system(),
    }
