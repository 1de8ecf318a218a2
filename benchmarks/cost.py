"""Measure the cost of the default methods relative to ordinary distillation.

The methods alternate, so that the load of the machine affects both. Whole runs are measured.

    python benchmarks/cost.py --repeats 5 --out benchmarks/results/cost
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import get_args

from robustkd import data, models
from robustkd.core.environment import environment
from robustkd.core.files import make_folder, write_json, write_text
from robustkd.core.methods import find_method
from robustkd.pipeline.student import make_student
from robustkd.training.config import Precision, TrainingConfig
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit

PAIRS = {"default": "ofd", "learned": "ofd", "additions": "ofd", "additions-kd": "kd"}


def main() -> None:
    """Time every pair of methods and write ``cost.json`` and ``cost.md``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--train", type=int, default=10_000)
    parser.add_argument("--precision", choices=get_args(Precision), default="no")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cost"))
    given = parser.parse_args()
    source = data.load("fashion-mnist", train=given.train, validation=2_000)
    source = replace(source, augmentation=data.CropFlip())
    build = models.builder(source)
    teacher = build("wrn-10-2", 0)
    fit(Supervised(teacher), source, epochs=1, precision=given.precision)

    def seconds(method: str, seed: int) -> float:
        started = time.perf_counter()
        make_student(
            teacher,
            build("wrn-10-1", seed),
            source,
            find_method(method),
            training=TrainingConfig(epochs=given.epochs, batch_size=64, precision=given.precision),
            detoxing={"steps": 40},
            seed=seed,
        )
        return time.perf_counter() - started

    measured: dict[str, list[float]] = {
        name: [] for robust in given.methods for name in (robust, PAIRS[robust])
    }
    for seed in range(given.repeats):
        for name, taken in measured.items():
            taken.append(round(seconds(name, seed), 2))
    make_folder(given.out)
    config = {"repeats": given.repeats, "epochs": given.epochs, "train": given.train}
    content = {"seconds": measured, "environment": environment(), "config": config}
    write_json(given.out / "cost.json", content)
    text = table(measured)
    write_text(given.out / "cost.md", text)
    sys.stdout.write(text)


def table(measured: dict[str, list[float]]) -> str:
    """Format a Markdown table: medians of both methods, and of their ratio in each round."""
    lines = [
        "| Method | Compared with | Seconds | Other seconds | Ratio | Lowest | Highest | n |\n",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    ]
    for robust, ordinary in PAIRS.items():
        if robust not in measured:
            continue
        one, other = measured[robust], measured[ordinary]
        ratios = [a / b for a, b in zip(one, other, strict=True)]
        figures = (median(ratios), min(ratios), max(ratios))
        shown = " | ".join(f"{ratio:.2f}" for ratio in figures)
        names = f"{robust} | {ordinary} | {median(one):.0f} | {median(other):.0f}"
        lines.append(f"| {names} | {shown} | {len(ratios)} |\n")
    return "".join(lines)


if __name__ == "__main__":
    main()
