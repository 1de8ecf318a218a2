"""Distil students from a plain checkpoint and a folder of images, as a user would.

Fashion-MNIST is written to a folder of PNG files. `plain_teacher.py` trains a torchvision ResNet-18
with a backdoor on it, without RobustKD. Then the command line makes the students. The file of the
trigger is only opened at the end, to measure all networks.

    python benchmarks/outside_teacher.py --seeds 3 --out benchmarks/results/outside

An interrupted run can be continued: finished parts in ``--work`` are kept, so use another
``--work`` for other options.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import plain_teacher
import torch
from PIL import Image

import robustkd
from robustkd import data, report
from robustkd.attacks import MaskedPattern, save_trigger
from robustkd.core.environment import environment
from robustkd.core.files import make_folder, write_json, write_text
from robustkd.data import InMemory
from robustkd.evaluation.measurement import measure

METHODS = ("no-teacher", "ofd", "kd", "paper", "default", "additions", "additions-kd")
CLI = ("-m", "robustkd.cli")
ARCH = "torchvision/resnet18"
_PARTS = {"train": "train", "validation": "val", "test": "test"}


def main() -> None:
    """Make folder, teachers and students, and write ``results.json`` and ``table.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=int, default=10_000)
    parser.add_argument("--val", type=int, default=2_000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--student", default="wrn-10-1")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--work", type=Path, default=Path("build/outside"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/outside"))
    given = parser.parse_args()
    folder = given.work / "fashion-mnist-png"
    if not folder.exists():
        sizes = {"train": given.train, "validation": given.val, "test": given.test}
        write_folder(data.load("fashion-mnist", **sizes), folder)
    found: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        work = make_folder(given.work / f"seed-{seed}")
        if not (work / "teacher.json").exists():
            train_teacher(folder, work, seed)
        for method in given.methods:
            if not (work / method / "report.html").exists():
                distil(folder, work, method, given.student, given.epochs, seed)
        found += measured(folder, work, given.methods)
    config = {name: value for name, value in vars(given).items() if name not in ("work", "out")}
    content = {"runs": found, "environment": environment(), "config": config, "records": {}}
    make_folder(given.out)
    write_json(given.out / "results.json", content)
    table = report.markdown_table(report.aggregate(report.read(given.out).runs))
    write_text(given.out / "table.md", table)
    sys.stdout.write(table)


def write_folder(source: InMemory, folder: Path) -> None:
    """Write a source as grey PNG files in ``train/CLASS/``, ``val/CLASS/`` and ``test/CLASS/``."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for split, part in _PARTS.items():
        images, labels = getattr(source, split)
        places = [make_folder(partial / part / c.replace("/", "_")) for c in source.classes]
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            Image.fromarray(image[0].numpy()).save(places[label] / f"{number:05}.png")
    partial.rename(folder)


def train_teacher(folder: Path, work: Path, seed: int) -> None:
    """Train the teacher in a child process, and record the time."""
    started = time.perf_counter()
    files = ("--out", work / "teacher.pt", "--trigger", work / "trigger.pt")
    run(plain_teacher.__file__, folder, *files, "--seed", seed)
    write_json(work / "teacher.json", {"seconds": time.perf_counter() - started})


def distil(folder: Path, work: Path, method: str, student: str, epochs: int, seed: int) -> None:
    """Make one student by the command line, from the file and the folder."""
    shutil.rmtree(work / method, ignore_errors=True)
    pixels = ("--mean", *plain_teacher.MEAN, "--std", *plain_teacher.STD)
    names = ("--arch", ARCH, "--student", student, "--data", folder, "--method", method)
    numbers = ("--epochs", epochs, "--seed", seed)
    out = ("--out", work / method, "--no-audit")
    run(*CLI, "distill", work / "teacher.pt", *names, *pixels, *numbers, *out)


def measured(folder: Path, work: Path, methods: list[str]) -> list[dict[str, Any]]:
    """Measure the teacher and the saved students under the trigger."""
    revealed = work / "trigger.safetensors"
    untrusted = reveal(folder, work, revealed)
    rows = []
    for method in methods:
        teacher, own = json.loads((work / method / "results.json").read_text())["runs"]
        if not rows:
            rows.append({**teacher, **untrusted})
        student = work / method / "student.safetensors"
        command = (*CLI, "evaluate", student, "--data", folder, "--trigger", revealed, "--json")
        rows.append({**own, **json.loads(run(*command))})
    return [{**row, "attack": "blend"} for row in rows]


def reveal(folder: Path, work: Path, path: Path) -> dict[str, Any]:
    """Convert the trigger to our format, and return the row of the teacher."""
    source = data.load_folder(folder)
    kept = torch.load(work / "trigger.pt", weights_only=True)
    pattern = kept["pattern"].expand(source.image_shape)
    trigger = MaskedPattern(torch.full_like(pattern, kept["alpha"]), pattern)
    target = source.classes.index(kept["target"])
    save_trigger(trigger, target, path)
    teacher = robustkd.load_teacher(
        work / "teacher.pt",
        arch=ARCH,
        classes=len(source.classes),
        image_shape=source.image_shape,
        mean=plain_teacher.MEAN,
        std=plain_teacher.STD,
    )
    figures = measure(teacher, source, trigger=trigger, target=target).fields()
    return {**figures, **json.loads((work / "teacher.json").read_text())}


def run(*arguments: object) -> str:
    """Run a Python process, and return its stdout; its stderr is that of this process."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 (our own)
    sys.stderr.write(done.stdout)
    return done.stdout


if __name__ == "__main__":
    main()
