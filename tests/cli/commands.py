"""What several tests of commands share: words of a command, and a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.cli.conftest import Said

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"}
FACT = re.compile(
    r"teacher: \S+, (safetensors|torch zip), [\d,]+ bytes, sha256 [0-9a-f]{12}; \d+ tensors "
    r"matched; accuracy \d+\.\d % \[\S+, \S+\] on \d+ validation images of digits\n"
)
"""What is said before the training."""


def shell(*arguments: object, cwd: Path) -> Said:
    """Runs a command as a process of its own."""
    command = [sys.executable, "-m", "robustkd.cli", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, check=False, text=True, cwd=cwd, env=ENVIRONMENT
    )
    return Said(done.returncode, done.stdout, done.stderr)


def distilling(teacher: Path, **changes: object) -> list[object]:
    options = {
        "arch": "wrn-10-1",
        "data": "digits",
        "student": "wrn-10-1",
        "out": "run",
        "method": "ofd",
        "epochs": 1,
    } | changes
    flags = ((f"--{name.replace('_', '-')}", value) for name, value in options.items())
    return ["distill", teacher, *(part for flag in flags for part in flag), "--no-audit"]


def refused(said: Said, code: int, message: str) -> None:
    assert said == Said(code, "", f"robustkd: {message}\n")
