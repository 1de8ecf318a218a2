"""Measure the peak memory of streaming many small images, and of a whole distillation.

python -m tools.streaming_memory benchmarks/results/streaming.json

Each value is measured in a process of its own, on Linux, and the sizes alternate.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from tests.data.images.image_files import picture

if TYPE_CHECKING:
    import torch

    from robustkd.core.types import DataSource

CLASSES = 10
SIZES = (2_000, 20_000, 200_000)
ROUNDS = 2
_VARIANTS = 50
_WARM_UP = 40


def write_many(root: Path, n: int) -> Path:
    """Write a folder of ``n`` files in ten classes, most of which are hard links to a few."""
    models = root / "models"
    models.mkdir(parents=True)
    for k in range(_VARIANTS):
        Image.fromarray(picture(k, 8)).save(models / f"{k}.png")
    for label in range(CLASSES):
        (root / "data" / f"class-{label}").mkdir(parents=True)
    for i in range(n):
        goal = root / "data" / f"class-{i % CLASSES}" / f"{i:08d}.png"
        # File systems limit the links to one file, so a new copy is made after some of them.
        source = models / f"{i % _VARIANTS}.png"
        if i // _VARIANTS % 500 == 499:
            content = source.read_bytes()
            source.unlink()
            source.write_bytes(content)
        os.link(source, goal)
    return root / "data"


def memory(key: str, pid: int | str = "self") -> float:
    """Read a value of /proc/PID/status in MiB: VmRSS is the current memory, VmHWM the peak."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(key)


def stream(folder: Path, small: Path, workers: int) -> dict[str, float]:
    """Open a folder and pass over its training images once, in a random order with crops.

    Args:
        folder: The images.
        small: A folder of few images, which is streamed first until the peak memory of the code
            itself has been reached.
        workers: Number of worker processes.
    """
    import torch

    from robustkd.data import Reading, load_folder

    reading = Reading(streaming=True, workers=workers)
    generator = torch.Generator()
    few = load_folder(small, reading)
    for _ in range(_WARM_UP):
        list(one_pass(few, generator))
    before, before_workers = memory("VmHWM"), max(one_pass(few, generator))
    started = time.perf_counter()
    data = load_folder(folder, reading)
    opened = time.perf_counter() - started
    peak_workers = max(one_pass(data, generator))
    return {
        "files": sum(data.size(split) for split in ("train", "validation", "test")),
        "seen": data.size("train"),
        "before_mib": before,
        "peak_mib": memory("VmHWM"),
        "before_worker_mib": before_workers,
        "worker_mib": peak_workers,
        "open_seconds": opened,
    }


def one_pass(data: DataSource, generator: torch.Generator) -> Iterator[float]:
    """Yield the peak memory of the largest worker, in MiB, during one pass over the images."""
    batches = data.batches("train", batch_size=64, shuffle=generator, augment=generator)
    for number, _ in enumerate(batches):
        if number % 10 == 0:
            workers = multiprocessing.active_children()
            yield max((memory("VmHWM", worker.pid) for worker in workers), default=0.0)


def streamed(folder: Path, small: Path, workers: int) -> dict[str, float]:
    """Run `stream` in a process of its own, and return its result."""
    done = subprocess.run(
        [sys.executable, "-m", "tools.streaming_memory", str(folder), str(small), str(workers)],
        capture_output=True,
        check=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[1],
    )
    return json.loads(done.stdout)


def train(folder: Path, path: Path) -> None:
    """Write a teacher of the classes, in a child process, because peak memory is inherited."""
    child = os.fork()
    if not child:
        from robustkd import data, models
        from robustkd.training.learners import Supervised
        from robustkd.training.loop import fit

        model = models.build(models.Spec("wrn-10-1", CLASSES, (3, 8, 8)), seed=0)
        fit(Supervised(model), data.load_folder(folder), epochs=10, batch_size=64)
        models.save(model, path)
        os._exit(0)
    os.waitpid(child, 0)


def distilled(folder: Path, teacher: Path, out: Path) -> float:
    """Measure the peak memory in MiB of a `robustkd distill` that streams a folder."""
    command = ["distill", str(teacher), "--arch", "wrn-10-1", "--student", "wrn-10-1", "--epochs"]
    command += ["1", "--data", str(folder), "--out", str(out), "--streaming", "--workers", "0"]
    command += ["--no-audit"]
    process = subprocess.Popen(
        [sys.executable, "-m", "robustkd.cli", *command],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[1],
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{folder}: distill ended with exit code {process.returncode}")
    return used.ru_maxrss / 1024


def main(out: Path) -> None:
    """Write one row per number of files after every round: medians, with lowest and highest."""
    found: dict[int, list[dict[str, float]]] = {n: [] for n in SIZES}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        folders = {n: write_many(work / str(n), n) for n in SIZES}
        small = write_many(work / "small", 1000)
        train(folders[SIZES[0]], work / "teacher.safetensors")
        for number in range(ROUNDS):
            for n, folder in folders.items():
                alone, helped = (streamed(folder, small, workers) for workers in (0, 2))
                run = work / f"run-{n}-{number}"
                row = {
                    "no workers": alone["peak_mib"] - alone["before_mib"],
                    "two workers": helped["peak_mib"] - helped["before_mib"],
                    "each worker": helped["worker_mib"] - helped["before_worker_mib"],
                    "distill": distilled(folder, work / "teacher.safetensors", run),
                    "seconds to open": alone["open_seconds"],
                }
                found[n].append(row)
                sys.stderr.write(f"{n} {row}\n")
            rows = [{"files": f"{n:,}", **_spreads(runs)} for n, runs in found.items()]
            out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def _spreads(runs: list[dict[str, float]]) -> dict[str, str]:
    """Format the median (lowest to highest) of each value."""
    spreads = {"runs": str(len(runs))}
    for key in runs[0]:
        values = sorted(run[key] for run in runs)
        middle, least, most = statistics.median(values), values[0], values[-1]
        spreads[key] = f"{middle:z.2f} ({least:z.2f} to {most:z.2f})"
    return spreads


if __name__ == "__main__":
    if len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        print(json.dumps(stream(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
