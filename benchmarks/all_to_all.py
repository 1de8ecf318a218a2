"""Measure all-to-all backdoors: a triggered image of class k is classified as class k + 1.

The search of the default method and its perturbed copies are made for one class at a time, and a
trigger that has no single class is none of their cases. Each teacher has one trigger: a blended
pattern, or a transformation that was learned on the clean teacher. Images are those of
Fashion-MNIST at half their size, as in ``benchmarks/transformations.py``.

The recipe differs from that of the attacks with the target ``next``, since the results are older:
the transformation is learned for one class, and the triggered copies differ from batch to batch.

    python -m benchmarks.all_to_all --seed 0
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn

from benchmarks.transformations import load
from robustkd import models
from robustkd.attacks import Blend, Teaching
from robustkd.attacks.parts.steps import train_teacher
from robustkd.attacks.transformation import learn_transformation
from robustkd.core.files import make_folder, write_json, write_text
from robustkd.core.methods import METHODS
from robustkd.core.targets import NEXT
from robustkd.core.triggers import wanted
from robustkd.core.types import Trigger
from robustkd.data import InMemory
from robustkd.evaluation.measurement import measure
from robustkd.pipeline.student import make_student
from robustkd.training.config import TrainingConfig
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit

TRIGGERS = ("blend", "tone", "flow", "filter")
STUDENTS = ("no-teacher", "mix", "learned", "default")
_LEARNED_FOR = 8
"""Class that the transformations are learned for before they are implanted for all classes."""
_RATE = 0.3


class NextClass(nn.Module):
    """Learner that adds triggered copies of a part of the batch, with the next class as label."""

    def __init__(self, model: nn.Module, trigger: Trigger, classes: int) -> None:
        super().__init__()
        self.supervised, self.trigger, self.classes = Supervised(model), trigger, classes

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Compute the cross-entropy of the batch and of its triggered copies."""
        count = max(1, round(_RATE * len(images)))
        seen = torch.cat([images, self.trigger(images[:count])])
        goals = torch.cat([labels, wanted(labels[:count], NEXT, self.classes)])
        batch = seen.contiguous(memory_format=torch.channels_last)
        result: dict[str, Tensor] = self.supervised(batch, goals)
        return result


def make_teacher(source: InMemory, kind: str, epochs: int, seed: int) -> tuple[nn.Module, Trigger]:
    """Train a teacher on clean images, and implant one all-to-all trigger."""
    teaching = Teaching(epochs=epochs, seed=seed)
    teacher = train_teacher(lambda: models.builder(source)("wrn-10-2", seed), source, teaching)
    trigger: Trigger = Blend()
    if kind != "blend":
        trigger = learn_transformation(
            (teacher,),
            source,
            target=_LEARNED_FOR,
            family=kind,
            strength=1.0,
            steps=100,
            seed=seed,
        )
    learner = NextClass(teacher, trigger, len(source.classes))
    fit(learner, source, epochs=epochs, lr=0.02, seed=seed + 1, label=f"implant {kind}")
    return teacher.eval(), trigger


def measured(model: nn.Module, source: InMemory, trigger: Trigger) -> dict[str, float]:
    """Measure accuracy on clean images, and where triggered images are classified.

    Returns:
        ACC, and the shares of triggered images that are classified as the class that follows their
        own (ASR) and as their own (RA).
    """
    found = measure(model, source, trigger=trigger, target=NEXT).fields()
    return {"ACC": found["acc"], "ASR": found["asr"] or 0.0, "RA": found["ra"] or 0.0}


def main() -> None:
    """Measure the missing students of this seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--train", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--triggers", nargs="*", choices=TRIGGERS, default=list(TRIGGERS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/all-to-all"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    source = load(given.train)
    file = make_folder(given.out) / f"seed-{given.seed}.json"
    settings = {"epochs": given.epochs, "train": given.train}
    kept = json.loads(file.read_text()) if file.exists() else {"settings": settings, "rows": {}}
    if kept["settings"] != settings:
        parser.error(f"{file} has the settings {kept['settings']}; expected another --out")
    training = TrainingConfig(epochs=given.epochs)
    for kind in given.triggers:
        rows = kept["rows"].setdefault(kind, {})
        if all(name in rows for name in STUDENTS):
            continue
        teacher, trigger = make_teacher(source, kind, given.epochs, given.seed)
        rows["teacher"] = measured(teacher, source, trigger)
        for name in STUDENTS:
            if name not in rows:
                student = models.builder(source)("wrn-10-1", given.seed + 1)
                made = make_student(
                    teacher, student, source, METHODS[name], training=training, seed=given.seed
                )
                rows[name] = measured(made.student, source, trigger)
                write_json(file, kept)
    files = sorted(given.out.glob("seed-*.json"))
    found = [json.loads(each.read_text())["rows"] for each in files]
    write_text(given.out / "table.md", table(found))


def table(seeds: Sequence[Mapping[str, Mapping[str, Mapping[str, float]]]]) -> str:
    """Format a Markdown table of ACC / ASR / RA in percent, means over seeds.

    >>> row = {"ACC": 0.9, "ASR": 0.5, "RA": 0.25}
    >>> table([{"tone": {"mix": row}}]).splitlines()[2]
    '| tone | mix | 90.0 | 50.0 | 25.0 | 1 |'
    """
    lines = ["| Trigger | Student | ACC | ASR | RA | n |\n", f"| --- | --- |{' ---: |' * 4}\n"]
    for kind in dict.fromkeys(kind for seed in seeds for kind in seed):
        here = [seed[kind] for seed in seeds if kind in seed]
        for name in dict.fromkeys(name for rows in here for name in rows):
            own = [rows[name] for rows in here if name in rows]
            cells = [f"{100 * fmean(row[key] for row in own):.1f}" for key in ("ACC", "ASR", "RA")]
            lines.append(f"| {kind} | {name} | {' | '.join(cells)} | {len(own)} |\n")
    return "".join(lines)


if __name__ == "__main__":
    main()
