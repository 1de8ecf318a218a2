"""Measure how much faster several processes of this machine train a student than one.

Runs of ``robustkd distill`` alternate: one process with one thread, one process with several
threads, and as many processes with one thread each. Only the training is timed, between the end of
its first epoch and the end of its last one. The images are noise of 3 x 32 x 32 pixels around a
shade for each class, in PNG files.

    python -m benchmarks.processes
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from robustkd import data, models
from robustkd.core.environment import environment
from robustkd.core.files import make_folder, write_json, write_text
from robustkd.training.checkpoint import load_state
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit

_CLASSES = 10
_COMMANDS = Path(sys.executable).parent


def main() -> None:
    """Time all settings and write ``processes.json`` and ``processes.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2, help="number of processes, and of threads")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--methods", nargs="+", default=["default"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/processes"))
    given = parser.parse_args()
    several = given.count
    settings = {
        "one process, one thread": (1, 1),
        f"one process, {several} threads": (1, several),
        f"{several} processes, one thread each": (several, 1),
    }
    measured: dict[str, dict[str, list[float]]] = {
        method: {name: [] for name in settings} for method in given.methods
    }
    with tempfile.TemporaryDirectory() as folder:
        images = _write_images(Path(folder) / "images", given.images)
        teacher = _teacher(Path(folder), images)
        for repeat in range(given.repeats):
            for method, rows in measured.items():
                for name, (processes, threads) in settings.items():
                    out = Path(folder) / f"{method}-{repeat}-{processes}-{threads}"
                    words = [str(teacher), "--arch", "wrn-10-2", "--data", str(images)]
                    words += ["--student", "wrn-10-1", "--epochs", str(given.epochs)]
                    words += ["--batch-size", "128", "--workers", "0", "--threads", str(threads)]
                    words += ["--no-audit", "--out", str(out)]
                    rows[name].append(_seconds(processes, words, method, out))
    make_folder(given.out)
    config = {"epochs": given.epochs, "images": given.images, "repeats": given.repeats}
    content = {"seconds": measured, "environment": environment(), "config": config}
    write_json(given.out / "processes.json", content)
    text = table(measured)
    write_text(given.out / "processes.md", text)
    sys.stdout.write(text)


def _write_images(root: Path, count: int) -> Path:
    """Write as many training images, and a tenth as many for each of the other splits."""
    noise = np.random.default_rng(0)
    for split, number in {"train": count, "val": count // 10, "test": count // 10}.items():
        for label in range(_CLASSES):
            folder = root / split / f"class-{label}"
            folder.mkdir(parents=True)
            for image in range(number // _CLASSES):
                pixels = 20 * label + noise.integers(0, 60, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{image}.png")
    return root


def _teacher(folder: Path, images: Path) -> Path:
    source = data.open_source(str(images))
    network = models.builder(source)("wrn-10-2", 0)
    fit(Supervised(network), source, epochs=1)
    models.save(network, folder / "teacher.safetensors")
    return folder / "teacher.safetensors"


def _seconds(processes: int, words: list[str], method: str, out: Path) -> float:
    """Return the seconds of an epoch of the training."""
    command = [str(_COMMANDS / "robustkd"), "distill", *words, "--method", method]
    if processes > 1:
        launcher = [str(_COMMANDS / "torchrun"), "--nproc-per-node", str(processes)]
        command = [*launcher, "--no-python", *command]
    variables = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise SystemExit(done.stderr)
    times = load_state(out / "checkpoint.safetensors").values["times"]
    return round((times[-1] - times[0]) / (len(times) - 1), 2)


def table(measured: dict[str, dict[str, list[float]]]) -> str:
    """Format a Markdown table: seconds of an epoch, and the ratio to the first setting."""
    lines = [
        "| Method | Started as | Seconds of an epoch | Ratio | Lowest | Highest | n |\n",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |\n",
    ]
    for method, rows in measured.items():
        first = next(iter(rows.values()))
        for name, seconds in rows.items():
            ratios = [mine / base for mine, base in zip(seconds, first, strict=True)]
            figures = f"{median(seconds):.1f} | {median(ratios):.2f} | {min(ratios):.2f}"
            lines.append(f"| {method} | {name} | {figures} | {max(ratios):.2f} | {len(ratios)} |\n")
    return "".join(lines)


if __name__ == "__main__":
    main()
