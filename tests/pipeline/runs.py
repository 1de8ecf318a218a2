"""A small teacher and runs of it, for the tests of runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from robustkd import data, models
from robustkd.pipeline import run_folder
from robustkd.pipeline.job import DistillJob
from robustkd.pipeline.run import distill_file
from robustkd.training.config import TrainingConfig

CLEAN = data.load("digits", train=200, validation=60, test=50)
FILES = [
    ".lock",
    "MODEL_CARD.md",
    "checkpoint.safetensors",
    "config.yaml",
    "detoxified.safetensors",
    "environment.json",
    "metrics.jsonl",
    "report.html",
    "results.json",
    "run.json",
    "run.log",
    "seal.json",
    "student.safetensors",
    "summary.md",
    "tensorboard",
]
"""Names of what is in the folder of a finished run."""


def build(seed: int, arch: str = "wrn-10-1") -> models.Classifier:
    mean, std = models.pixel_statistics(CLEAN)
    return models.build(models.Spec(arch, 10, CLEAN.image_shape, mean, std), seed=seed)


def run(
    teacher_file: Path,
    out: Path,
    *,
    clean=CLEAN,
    training=None,
    resume=False,
    audited=False,
    **changes,
) -> dict[str, Any]:
    training = TrainingConfig(**(training or {"epochs": 1, "batch_size": 64}))
    settings = {"arch": "wrn-10-1", "student": "wrn-10-1", "method": "ofd"} | changes
    job = DistillJob(teacher_file, training=training, **settings)
    return distill_file(job, clean, out, resume=resume, audited=audited).content()


def stopped_after(times: int) -> Callable[[run_folder.Run], bool]:
    """Return the question of a run whether its state is due, which is stopped after some times."""
    asked = iter(range(times))

    def is_due(found: run_folder.Run) -> bool:
        found.interrupts.asked = next(asked, None) is None
        return found.interrupts.asked

    return is_due
