"""Latency, load time and memory of an ONNX file on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from robustkd.core.environment import usable_cores
from robustkd.core.errors import RobustKDError
from robustkd.export.runtime import TELEMETRY

_SECONDS = 2.0
_LONGEST = 600.0


@dataclass(frozen=True)
class Latency:
    """Latency of one image in milliseconds, after warm-up.

    Attributes:
        threads: Number of threads of onnxruntime.
        p50_ms: Median.
        p90_ms: 90th percentile.
        p95_ms: 95th percentile.
        runs: Number of timed runs.
        load_ms: Milliseconds to create the session from the file.
    """

    threads: int
    p50_ms: float
    p90_ms: float
    p95_ms: float
    runs: int
    load_ms: float


@dataclass(frozen=True)
class Running:
    """Cost of a file in a process that does nothing else.

    Attributes:
        memory_before_mib: Peak memory of Python, numpy and onnxruntime without the file, in MiB.
        peak_mib: Peak memory with the file loaded and run by one thread, in MiB.
        latency: Latency with one thread, and with all cores if there are several.
    """

    memory_before_mib: float
    peak_mib: float
    latency: tuple[Latency, ...]

    @property
    def one_thread(self) -> Latency:
        """The latency with one thread."""
        return self.latency[0]

    def record(self) -> dict[str, object]:
        """The figures as JSON values."""
        return {**asdict(self), "latency": [asdict(row) for row in self.latency]}


def running(path: Path, *, seconds: float = _SECONDS) -> Running:
    """Measure an ONNX file on one image, in a new process.

    Args:
        path: The file.
        seconds: Duration of the measurement for each number of threads; 30 to 1,000 runs.

    Raises:
        RobustKDError: If the process fails.
    """
    script = Path(__file__).with_name("stopwatch.py")
    counts = map(str, sorted({1, usable_cores()}))
    # Isolated mode: neither the working directory nor the environment can provide modules.
    command = [sys.executable, "-I", str(script), str(path.absolute()), str(seconds), *counts]
    try:
        done = subprocess.run(  # noqa: S603 (our own script)
            command,
            capture_output=True,
            text=True,
            timeout=_LONGEST,
            check=True,
            env={**TELEMETRY, **os.environ},
        )
        return _parsed(json.loads(done.stdout))
    except subprocess.CalledProcessError as error:
        last = (error.stderr or "").strip().splitlines()[-1:] or [f"exit code {error.returncode}"]
        raise RobustKDError(f"{path.name} cannot be timed: {last[0]}") from error
    except (subprocess.TimeoutExpired, ValueError, KeyError) as error:
        raise RobustKDError(f"{path.name} cannot be timed: {type(error).__name__}") from error


def _parsed(said: Mapping[str, Any]) -> Running:
    rows = tuple(Latency(**row) for row in said["latency"])
    return Running(said["memory_before_mib"], said["peak_mib"], rows)
