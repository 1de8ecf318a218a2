"""How the default method was chosen: clean accuracy, and the student's own universal weaknesses.

No trigger is used. A student is distilled from a teacher, then perturbations of every class are
trained against it, on the user's clean training images, with the student standing still; counted
is how often they lead validation images to their class. The candidate with few successes that
costs little validation accuracy is the default.

    python benchmarks/choose_default.py --teacher TEACHER.safetensors
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from robustkd import data, models, runs, taps
from robustkd.data import InMemory
from robustkd.harden import UniversalPerturbations, withstand
from robustkd.inference import accuracy_on, predict
from robustkd.metrics import attack_success
from robustkd.pipeline import make_student
from robustkd.presets import Preset

DETOX = {"cap": 1.0, "ratio": "position", "accuracy_budget": 0.01}
LIGHT = {**DETOX, "accuracy_budget": 0.005}
CANDIDATES: dict[str, tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]] = {
    "ordinary": (None, None),
    "detox": (DETOX, None),
    "ball 0.1, half": (None, {"epsilon": 0.1, "mass": 0, "share": 0.5}),
    "ball 0.15, half": (None, {"epsilon": 0.15, "mass": 0, "share": 0.5}),
    "ball 0.1, patch 0.05, quarter": (None, {"epsilon": 0.1, "mass": 0.05, "share": 0.25}),
    "ball 0.1, patch 0.05, half": (None, {"epsilon": 0.1, "mass": 0.05, "share": 0.5}),
    "ball 0.1, patch 0.05, all": (None, {"epsilon": 0.1, "mass": 0.05, "share": 1.0}),
    "ball 0.15, patch 0.05, quarter": (None, {"epsilon": 0.15, "mass": 0.05, "share": 0.25}),
    "ball 0.15, patch 0.05, half": (None, {"epsilon": 0.15, "mass": 0.05, "share": 0.5}),
    "ball 0.15, patch 0.05, all": (None, {"epsilon": 0.15, "mass": 0.05, "share": 1.0}),
    "ball 0.15, patch 0.1, all": (None, {"epsilon": 0.15, "mass": 0.1, "share": 1.0}),
    "detox, ball 0.1, patch 0.05, half": (DETOX, {"epsilon": 0.1, "mass": 0.05, "share": 0.5}),
    "light detox, ball 0.15, patch 0.05, all": (
        LIGHT,
        {"epsilon": 0.15, "mass": 0.05, "share": 1.0},
    ),
}
"""Name to arguments of detoxification and of hardening."""
_STEPS = 60
_BATCH = 256


def main() -> None:
    """Measure the candidates that are not measured yet and write ``choice.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--train", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/choice.json"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    source = data.load("fashion-mnist", train=given.train, validation=5_000)
    source = replace(source, augmentation=data.CropFlip())
    for name in given.only:
        rows = json.loads(given.out.read_text()) if given.out.exists() else []
        if (name, given.seed) in {(row["Candidate"], row["Seed"]) for row in rows}:
            continue
        found = measure(name, models.load(given.teacher), source, given.epochs, given.seed)
        rows = json.loads(given.out.read_text()) if given.out.exists() else []
        rows.append(found)
        rows.sort(key=lambda row: (list(CANDIDATES).index(row["Candidate"]), row["Seed"]))
        given.out.parent.mkdir(parents=True, exist_ok=True)
        runs.write_text(given.out, json.dumps(rows, indent=1) + "\n")


def measure(
    name: str, teacher: nn.Module, source: InMemory, epochs: int, seed: int
) -> dict[str, str | int | float]:
    """Distil by one candidate and count what its perturbations can do."""
    detox, hardening = CANDIDATES[name]
    mean, std = models.pixel_statistics(source)
    spec = models.Spec("wrn-10-1", len(source.classes), source.image_shape, mean, std)
    made = make_student(
        teacher,
        models.build(spec, seed=seed + 1),
        source,
        Preset(name, losses={"ofd": 1.0}, detox=detox, hardening=hardening),
        training={"epochs": epochs, "batch_size": 64, "precision": "bf16"},
        detoxing={"steps": 40},
        seed=seed,
    )
    student = made.student.requires_grad_(False)
    led = {
        "Ball 0.1": led_share(student, source, epsilon=0.1, mass=0),
        "Patch 0.05": led_share(student, source, epsilon=0, mass=0.05),
    }
    accuracy = accuracy_on(student, source, "validation").value
    return {
        "Candidate": name,
        "Seed": seed,
        "Validation ACC %": f"{accuracy:.1%}"[:-1],
        **{f"{kind}, led %": f"{share:.1%}"[:-1] for kind, share in led.items()},
    }


def led_share(student: nn.Module, source: InMemory, **bounds: float) -> float:
    """Validation images that one perturbation a class leads to it, the mean over classes."""
    classes = len(source.classes)
    perturbations = UniversalPerturbations(classes, source.image_shape, share=1.0, seed=9, **bounds)
    done = 0
    with taps.frozen_modes(student):
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
            worn: Tensor = family(images, torch.full((len(images),), target))
            return worn.detach()

        return fmean(
            attack_success(
                *predict(student, source, "validation", transform=partial(dressed, target=target)),
                target=target,
            ).value
            for target in range(classes)
        )


if __name__ == "__main__":
    main()
