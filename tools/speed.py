"""Compare the speed of two versions of the source: CPU time of a run, and of reading images.

    git worktree add ../before COMMIT
    python -m tools.speed --before ../before benchmarks/results/speed.json

The versions are measured in turn, so that changes in the speed of the machine affect both alike. A
run is ``robustkd distill`` on the digits. Images are 1,000 small JPEG and PNG files in ten folders,
which are read and decoded five times. The medians are compared, and the fastest measurements, which
other processes on the same machine disturb least.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from tools.kill_and_resume import flags, make_teacher

HERE = Path(__file__).parents[1]
READ = """
import sys, time
from pathlib import Path
from robustkd import data
from robustkd.data import Reading
how = Reading(image_size=64, workers=0, streaming=True)
source = data.load_folder(Path(sys.argv[1]), how)
started = time.process_time()
for _ in range(5):
    for split in ("train", "validation", "test"):
        for _ in source.batches(split, batch_size=50):
            pass
print(time.process_time() - started)
"""


def make_images(root: Path) -> Path:
    """Write 1,000 images in ten folders, half of them JPEG and half PNG; return ``root``."""
    random = np.random.default_rng(0)
    for number in range(1000):
        folder = root / f"class-{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        image = coarse.resize((64, 64), Image.Resampling.BILINEAR)
        image.save(folder / f"{number:04}.{('jpg', 'png')[number // 10 % 2]}")
    return root


def cpu_seconds(tree: Path, command: list[str]) -> tuple[float, str]:
    """Run a command with the source in ``tree``; return CPU seconds, with children, and output."""
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    before = os.times()
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=True
    )
    after = os.times()
    used = (
        after.children_user - before.children_user + after.children_system - before.children_system
    )
    return used, done.stdout


def main() -> None:
    """Measure both versions in turn and write the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--before", type=Path, required=True, help="folder of the older source")
    parser.add_argument("--after", type=Path, default=HERE, help="folder of the newer source")
    parser.add_argument(
        "--repeats", type=int, default=9, help="number of measurements of each version"
    )
    parser.add_argument("--epochs", type=int, default=2, help="number of epochs of each run")
    chosen = parser.parse_args()
    trees = {"before": chosen.before.resolve(), "after": chosen.after.resolve()}
    found: dict[str, dict[str, list[float]]] = {
        "distill, CPU seconds": {name: [] for name in trees},
        "image, CPU microseconds": {name: [] for name in trees},
    }
    run, image = found.values()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        images = make_images(work / "images")
        make_teacher(work / "teacher.safetensors")
        distill = [
            "-m",
            "robustkd.cli",
            "distill",
            *flags(work / "teacher.safetensors", chosen.epochs),
        ]
        for turn in range(chosen.repeats):
            for which, tree in list(trees.items())[:: 1 if turn % 2 else -1]:
                out = ["--out", str(work / f"{which}-{turn}")]
                # Trees before the audit do not know the flag that leaves it out.
                known = (tree / "src/robustkd/pipeline/audits.py").exists()
                words = [word for word in distill if known or word != "--no-audit"]
                run[which].append(cpu_seconds(tree, [*words, *out])[0])
                seconds = float(cpu_seconds(tree, ["-c", READ, str(images)])[1])
                image[which].append(seconds / 5000 * 1e6)
            sys.stderr.write(f"{turn}: {[(w, r[-1], image[w][-1]) for w, r in run.items()]}\n")
            write(chosen.out, found)


def _change(before: float, after: float) -> str:
    return f"{100 * (after / before - 1):+.1f} %"


def write(out: Path, found: dict[str, dict[str, list[float]]]) -> None:
    """Write the medians of the measurements so far."""
    rows = []
    for what, both in found.items():
        before, after = (statistics.median(both[name]) for name in both)
        rows.append(
            {
                "what": what,
                "repeats": min(map(len, both.values())),
                "before": round(before, 2),
                "after": round(after, 2),
                "change": _change(before, after),
                "change of the fastest": _change(*(min(both[name]) for name in both)),
            }
        )
    out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
