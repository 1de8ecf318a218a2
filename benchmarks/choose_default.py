"""Compare candidates for hardening against additions and patterns, by clean images alone.

No trigger is used. A student is distilled from a teacher. Then perturbations of every class are
trained against the frozen student on clean training images. The measure is the share of validation
images that they move to their class. The settings of ``additions`` are those of a candidate with a
low share that costs little validation accuracy.

    python benchmarks/choose_default.py --teacher TEACHER.safetensors --losses kd --seed 1
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from robustkd import data, models
from robustkd.core.devices import device_of
from robustkd.core.files import make_folder, write_json, write_text
from robustkd.core.method_settings import DetoxSettings, HardeningSettings
from robustkd.core.methods import Method
from robustkd.data import InMemory
from robustkd.models.features import taps
from robustkd.pipeline.student import make_student
from robustkd.student.hardening import UniversalPerturbations, withstand
from robustkd.training.config import TrainingConfig
from robustkd.training.inference import accuracy_on, predict
from robustkd.training.metrics import attack_success
from robustkd.training.precision import Precision, mixed

DETOX = {"cap": 1.0, "ratio": "position", "accuracy_budget": 0.01}
LIGHT = {**DETOX, "accuracy_budget": 0.005}


@dataclass(frozen=True)
class Candidate:
    """Settings of one candidate, and its losses if they differ from the given one."""

    detox: Mapping[str, Any] | None = None
    hardening: Mapping[str, Any] | None = None
    losses: Mapping[str, float] | None = None


CANDIDATES = {
    "ordinary": Candidate(),
    "detox": Candidate(DETOX),
    **{
        f"ball {epsilon}, half": Candidate(
            None, {"epsilon": epsilon, "mass": 0, "share": 0.5, "distilled": True}
        )
        for epsilon in (0.1, 0.15)
    },
    **{
        f"ball {epsilon}, patch {mass}, {words}": Candidate(
            None,
            {"epsilon": epsilon, "mass": mass, "share": share, "distilled": distilled},
        )
        for epsilon, mass in ((0.1, 0.05), (0.15, 0.05), (0.15, 0.1), (0.2, 0.05), (0.25, 0.05))
        for distilled, copies in ((True, ""), (False, ", labels alone"))
        for share, words in (
            (0.25, f"quarter{copies}"),
            (0.5, f"half{copies}"),
            (1.0, f"all{copies}"),
        )
    },
    "ball 0.2, patch 0.05, all, labels alone, light": Candidate(
        None, {"epsilon": 0.2, "mass": 0.05, "share": 1.0, "distilled": False}, {"ofd": 0.3}
    ),
    **{
        f"ball 0.2, patch 0.05, all, {aim}{words}{end}": Candidate(
            None,
            {
                "epsilon": 0.2,
                "mass": 0.05,
                "share": 1.0,
                "distilled": False,
                "recovered": recovered,
                "fade": fade,
            },
            losses,
        )
        for recovered, aim in ((True, "labels alone"), (False, "pushed away only"))
        for words, losses in (("", None), (", mixed", {"kd": 1.0, "ofd": 0.3}))
        for fade, end in ((0.0, ""), (0.5, ", fading"))
    },
    "detox, ball 0.1, patch 0.05, half": Candidate(
        DETOX, {"epsilon": 0.1, "mass": 0.05, "share": 0.5, "distilled": True}
    ),
    "light detox, ball 0.15, patch 0.05, all": Candidate(
        LIGHT, {"epsilon": 0.15, "mass": 0.05, "share": 1.0, "distilled": True}
    ),
}
ATTACKS = {
    "moved by ball 0.1": {"epsilon": 0.1, "mass": 0.0},
    "moved by ball 0.2": {"epsilon": 0.2, "mass": 0.0},
    "moved by patch 0.05": {"epsilon": 0.0, "mass": 0.05},
}
"""Perturbations of the measurement. 0.2 is the largest mask of published triggers."""
_STEPS = 60
_BATCH = 256
_PRECISION: Precision = "bf16"


def main() -> None:
    """Measure the missing candidates; write a JSON file and a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--student", default="wrn-10-1")
    parser.add_argument("--losses", choices=("ofd", "kd"), default="ofd")
    parser.add_argument("--only", nargs="*", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, help="default: that of the architecture")
    parser.add_argument("--train", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/choice"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    source = data.load("fashion-mnist", train=given.train, validation=5_000)
    source = replace(source, augmentation=data.CropFlip())
    training = {
        "epochs": given.epochs,
        "lr": given.lr or models.learning_rate(given.student),
        "batch_size": 64,
    }
    teacher = hashlib.sha256(given.teacher.read_bytes()).hexdigest()
    shared = {"teacher": teacher, "student": given.student, "train": given.train, **training}
    make_folder(given.out)
    file = given.out / f"{given.losses}.json"
    for name in given.only:
        kept = json.loads(file.read_text()) if file.exists() else {**shared, "rows": []}
        rows = kept["rows"]
        if kept != {**shared, "rows": rows}:
            parser.error(f"{file} is of another teacher, student or training; name another --out")
        if (name, given.seed) not in {(row["candidate"], row["seed"]) for row in rows}:
            network = models.load(given.teacher)
            rows.append(
                measure(name, given.losses, network, given.student, source, training, given.seed)
            )
            rows.sort(key=lambda row: (list(CANDIDATES).index(row["candidate"]), row["seed"]))
            write_json(file, kept)
            write_text(file.with_suffix(".md"), table(rows))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format a Markdown table: mean and standard deviation over seeds, one line per candidate."""
    measures = [key for key in rows[0] if key not in ("candidate", "seed")]
    lines = [
        f"| candidate | {' | '.join(measures)} | n |\n",
        f"| --- | {'---: | ' * len(measures)}---: |\n",
    ]
    for name in dict.fromkeys(row["candidate"] for row in rows):
        own = [row for row in rows if row["candidate"] == name]
        shown = []
        for measure_ in measures:
            values = [100 * row[measure_] for row in own]
            spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
            shown.append(f"{fmean(values):.1f}{spread}")
        lines.append(f"| {name} | {' | '.join(shown)} | {len(own)} |\n")
    return "".join(lines)


def measure(
    name: str,
    losses: str,
    teacher: nn.Module,
    student: str,
    source: InMemory,
    training: Mapping[str, Any],
    seed: int,
) -> dict[str, str | int | float]:
    """Distil a student by one candidate, and measure the perturbations against it."""
    how = CANDIDATES[name]
    made = make_student(
        teacher,
        models.builder(source)(student, seed + 1),
        source,
        Method(
            name,
            losses=how.losses or {losses: 1.0},
            detox=None if how.detox is None else DetoxSettings(**how.detox),
            hardening=None if how.hardening is None else HardeningSettings(**how.hardening),
        ),
        training=TrainingConfig(**training, precision=_PRECISION),
        detoxing={"steps": 40},
        seed=seed,
    )
    network = made.student.requires_grad_(False)
    return {
        "candidate": name,
        "seed": seed,
        "validation ACC": accuracy_on(network, source, "validation").value,
        **{name: led_share(network, source, **bounds) for name, bounds in ATTACKS.items()},
    }


def led_share(student: nn.Module, source: InMemory, **bounds: float) -> float:
    """Compute the share of images that a perturbation moves to its class, averaged over classes."""
    classes = len(source.classes)
    perturbations = UniversalPerturbations(classes, source.image_shape, share=1.0, seed=9, **bounds)
    done = 0
    # Half precision is sufficient for predictions and takes half of the time.
    with taps.frozen_modes(student), mixed(_PRECISION, device_of(student)):
        while done < _STEPS:
            order = torch.Generator().manual_seed(done)
            for images, labels, _rows in source.batches("train", batch_size=_BATCH, shuffle=order):
                seen, toward = perturbations.perturb(images, labels)
                logits = student(seen[len(images) :])
                withstand(logits, logits, labels, toward).sum().backward()
                perturbations.advance()
                done += 1
                if done == _STEPS:
                    break
        (family,) = perturbations.families

        def dressed(images: Tensor, target: int) -> Tensor:
            perturbed: Tensor = family(images, torch.full((len(images),), target))
            return perturbed.detach()

        return fmean(
            attack_success(
                *predict(student, source, "validation", transform=partial(dressed, target=target)),
                target=target,
            ).value
            for target in range(classes)
        )


if __name__ == "__main__":
    main()
