"""Script that measures one ONNX file; it imports onnxruntime and numpy, but not robustkd.

Run as ``python -I stopwatch.py FILE SECONDS THREADS [THREADS ...]``; prints one JSON object.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import numpy as np
import onnxruntime

_WARM_UP = 20
_FEWEST, _MOST = 30, 1000


def _session(path: str, threads: int) -> tuple[onnxruntime.InferenceSession, float]:
    """Return a session and its load time in milliseconds."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    started = time.perf_counter()
    loaded = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return loaded, 1e3 * (time.perf_counter() - started)


def _latencies(session: onnxruntime.InferenceSession, seconds: float) -> list[float]:
    """Return the milliseconds of each run on one image, after warm-up."""
    (asked,) = session.get_inputs()
    image = np.random.default_rng(0).random((1, *asked.shape[1:]), dtype=np.float32)
    for _ in range(_WARM_UP):
        session.run(None, {asked.name: image})
    found: list[float] = []
    began = time.perf_counter()
    while len(found) < _MOST and (len(found) < _FEWEST or time.perf_counter() - began < seconds):
        started = time.perf_counter()
        session.run(None, {asked.name: image})
        found.append(1e3 * (time.perf_counter() - started))
    return found


def _peak_mib() -> float:
    """Return the peak memory of this process."""
    try:
        # On Linux, the peak of `getrusage` includes that of the parent process.
        with open("/proc/self/status", encoding="ascii") as file:
            (kib,) = (line.split()[1] for line in file if line.startswith("VmHWM:"))
        return int(kib) / (1 << 10)
    except (OSError, ValueError):
        unit = 1 << 20 if sys.platform == "darwin" else 1 << 10  # bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main() -> None:
    """Measure the file that the arguments name."""
    path, seconds, *counts = sys.argv[1:]
    before = _peak_mib()
    found: dict[str, object] = {"memory_before_mib": before}
    rows = []
    for count in map(int, counts):
        session, load_ms = _session(path, count)
        runs = _latencies(session, float(seconds))
        p50, p90, p95 = (float(np.percentile(runs, share)) for share in (50, 90, 95))
        row = {"threads": count, "p50_ms": p50, "p90_ms": p90, "p95_ms": p95, "runs": len(runs)}
        rows.append({**row, "load_ms": load_ms})
        found.setdefault("peak_mib", _peak_mib())
    sys.stdout.write(json.dumps({**found, "latency": rows}))


if __name__ == "__main__":
    main()
