"""Measure which families of transformations must be trained on to resist other families.

One teacher has several learned transformations as triggers, each with a target of its own, so that
one student is measured on all of them. Every candidate is a set of families of the hardening, in
addition to additions and patterns. The leave-out result of a candidate is its ASR for triggers of
families that it lacks. Images are those of Fashion-MNIST at half their size, so that a student
takes about a minute on one core.

    python benchmarks/transformations.py --seed 0 --only ordinary learned default

With ``--triggers compositions``, each trigger is a composition of two of these families. With
``--triggers edits``, it is a fixed function that is not learned, such as a posterised image.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkd import data, models
from robustkd.attacks.base import Teaching
from robustkd.attacks.parts.steps import train_teacher
from robustkd.attacks.transformation import learn_transformation
from robustkd.core.files import make_folder, write_json, write_text
from robustkd.core.methods import METHODS, Method
from robustkd.core.types import Trigger
from robustkd.data import InMemory, Labelled
from robustkd.pipeline.student import make_student
from robustkd.student.families import FAMILIES, FamilyRow
from robustkd.student.families.generator import generator
from robustkd.training.config import TrainingConfig
from robustkd.training.inference import accuracy_on, predict
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit
from robustkd.training.metrics import attack_success

TRIGGERS = {"tone": 8, "flow": 1, "light": 5, "filter": 3, "affine": 7, "smooth": 9}
"""Families of the triggers, and the target class of each."""
COMPOSITIONS = {
    "flow+tone": 8,
    "affine+light": 1,
    "smooth+flow": 5,
    "filter+affine": 3,
    "light+filter": 7,
    "tone+smooth": 9,
}
"""Compositions of two families, applied in this order, and the target class of each."""
EDITS = {"posterise": 8, "pixelate": 1, "erode": 5, "shadow": 3, "stripes": 7, "wave": 9}
"""Fixed changes of an image, and the target class of each; none was used to choose anything."""
_SETS = {"families": TRIGGERS, "compositions": COMPOSITIONS, "edits": EDITS}
SETTINGS = ("epochs", "train", "triggers")
"""Options on which a row depends, so that a continued table has the same for all rows."""
_RATE = 0.1
_STRONGER = 0.7
"""Largest change of a pixel by generators with twice the usual bound."""
_BASE = METHODS["learned"]
_SEARCHED = METHODS["default"].hardening.found
_CHAIN = "filter+colour+light+curves+smooth"
_WITH = {
    "tone": ("tone", "curves", "colour"),
    "light": ("light", "smooth"),
    "filter": ("filter",),
    "affine": ("affine", "flow"),
}
"""Families of the search that can imitate a trigger, and are left out together."""


def _hardened(**changes: object) -> Method:
    """The method ``learned`` with other settings of the hardening."""
    return replace(_BASE, hardening=replace(_BASE.hardening, **changes))


CANDIDATES: dict[str, Method] = {
    "no teacher": METHODS["no-teacher"],
    "ordinary": METHODS["mix"],
    "ordinary, early stop": replace(METHODS["mix"], until=_BASE.until),
    "additions": METHODS["additions"],
    "learned": _BASE,
    "learned, no early stop": replace(_BASE, until={}),
    "learned without additions, patterns": _hardened(epsilon=0.0, mass=0.0),
    "warp": _hardened(families=("warp",)),
    "generator": _hardened(families=("generator",)),
    "warp, generator": _hardened(families=("warp", "generator")),
    "warp, generator, composed": _hardened(families=("warp", "generator"), composed=True),
    "warp, generator, KD until 0.8": replace(
        _hardened(families=("warp", "generator")), until={"ofd": 0.6, "kd": 0.8}
    ),
    "warp, strong generator": _hardened(families=("warp", "generator-0.7")),
    "warp, generator, filter": _hardened(families=("warp", "generator", "filter")),
    "warp, generator, strong generator": _hardened(families=("warp", "generator", "generator-0.7")),
    "warp, generator, both, two generators": _hardened(
        families=("warp", "generator", "warp+generator", "generator+generator")
    ),
    "warp+generator": _hardened(families=("warp+generator",)),
    "warp, warp+generator": _hardened(families=("warp", "warp+generator")),
    "warp+generator, generator": _hardened(families=("warp+generator", "generator")),
    "warp+generator, two generators": _hardened(families=("warp+generator", "generator+generator")),
    "warp+generator, generator, filter": _hardened(
        families=("warp+generator", "generator", "filter")
    ),
    "warp+generator, filter+generator": _hardened(families=("warp+generator", "filter+generator")),
    "warp+strong generator, generator": _hardened(families=("warp+generator-0.7", "generator")),
    "default": METHODS["default"],
    **{
        f"default, no search for {left_out}": _hardened(
            found=tuple(name for name in _SEARCHED if name not in _WITH[left_out])
        )
        for left_out in _WITH
    },
    # Copies of half of the images, more changed by what was found, and two starts of the search.
    "default, share 0.5": _hardened(found=_SEARCHED, share=0.5),
    "default, share 0.5, more found": _hardened(found=_SEARCHED, share=0.5, found_share=0.7),
    "default, share 0.5, all twice": _hardened(found=_SEARCHED * 2, share=0.5),
    "default, share 0.5, all twice, more found": _hardened(
        found=_SEARCHED * 2, share=0.5, found_share=0.7
    ),
    "default, share 1.0, all twice": _hardened(found=_SEARCHED * 2),
    # Changes of colours in a row, alone and after a warp, in the place of their sum after a warp.
    "default, chains searched": _hardened(found=(*_SEARCHED[:-1], _CHAIN, f"warp+{_CHAIN}")),
    "the families of the triggers": _hardened(families=tuple(TRIGGERS)),
    **{
        f"the families of the triggers but {left_out}": _hardened(
            families=tuple(name for name in TRIGGERS if name != left_out)
        )
        for left_out in TRIGGERS
    },
}


def posterise(images: Tensor) -> Tensor:
    """Round each pixel to 0, 1/2 or 1."""
    return (images * 2).round() / 2


def pixelate(images: Tensor) -> Tensor:
    """Replace each block of 2 x 2 pixels by its mean."""
    return F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="nearest")


def erode(images: Tensor) -> Tensor:
    """Replace each pixel by the smallest of itself and its neighbours to the right and below."""
    return -F.max_pool2d(F.pad(-images, (0, 1, 0, 1), mode="replicate"), 2, stride=1)


def shadow(images: Tensor) -> Tensor:
    """Halve the brightness of the right half."""
    factor = torch.ones(images.shape[-1], device=images.device)
    factor[len(factor) // 2 :] = 0.5
    return images * factor


def stripes(images: Tensor) -> Tensor:
    """Reduce the brightness of every second row by 40 %."""
    factor = torch.ones(images.shape[-2], 1, device=images.device)
    factor[::2] = 0.6
    return images * factor


def wave(images: Tensor) -> Tensor:
    """Shift rows to the side by at most one pixel, along a sine of two periods."""
    height = images.shape[-2]
    shift = torch.sin(torch.arange(height) * (4 * math.pi / height)).round().int().tolist()
    rows = [images[..., y, :].roll(by, -1) for y, by in enumerate(shift)]
    return torch.stack(rows, -2)


MADE_BY_HAND: dict[str, Trigger] = {
    edit.__name__: edit for edit in (posterise, pixelate, erode, shadow, stripes, wave)
}


class SeveralTriggers(nn.Module):
    """Learner that adds triggered copies to each batch, some for each trigger."""

    def __init__(self, model: nn.Module, triggers: dict[int, Trigger]) -> None:
        super().__init__()
        self.supervised, self.triggers = Supervised(model), triggers

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Compute the cross-entropy of the batch and of its triggered copies."""
        count = max(1, round(_RATE * len(images)))
        seen, wanted = [images], [labels]
        for place, (target, trigger) in enumerate(self.triggers.items()):
            part = images[place * count : (place + 1) * count]
            seen.append(trigger(part))
            wanted.append(labels.new_full((len(part),), target))
        batch = torch.cat(seen).contiguous(memory_format=torch.channels_last)
        result: dict[str, Tensor] = self.supervised(batch, torch.cat(wanted))
        return result


def halved(part: Labelled) -> Labelled:
    """Downsample images to half their height and width."""
    return Labelled(F.avg_pool2d(part.images.float(), 2).round().to(torch.uint8), part.labels)


def load(train: int) -> InMemory:
    """Load Fashion-MNIST with 14 x 14 pixels."""
    whole = data.load("fashion-mnist", train=train, validation=2_000)
    parts = {name: halved(getattr(whole, name)) for name in ("train", "validation", "test")}
    return replace(whole, **parts, augmentation=data.CropFlip(pad=1))


def make_teacher(
    source: InMemory, targets: Mapping[str, int], epochs: int, seed: int
) -> tuple[nn.Module, dict[int, Trigger]]:
    """Train a teacher with all triggers; return it with the trigger of each target."""
    teaching = Teaching(epochs=epochs, seed=seed)
    teacher = train_teacher(lambda: models.builder(source)("wrn-10-2", seed), source, teaching)
    triggers = {
        target: MADE_BY_HAND[name]
        if name in MADE_BY_HAND
        else learn_transformation(
            (teacher,), source, target=target, family=name, strength=1.0, steps=100, seed=seed
        )
        for name, target in targets.items()
    }
    learner = SeveralTriggers(teacher, triggers)
    fit(learner, source, epochs=epochs, lr=0.02, seed=seed + 1, label="implant the triggers")
    return teacher.eval(), triggers


def measured(
    model: nn.Module, source: InMemory, targets: Mapping[str, int], triggers: dict[int, Trigger]
) -> dict[str, float]:
    """Measure the accuracy, and the attack success rate of each trigger."""
    row = {
        "ACC": accuracy_on(model, source, "test").value,
        "validation ACC": accuracy_on(model, source, "validation").value,
    }
    for family, target in targets.items():
        logits, labels = predict(model, source, "test", transform=triggers[target])
        row[family] = attack_success(logits, labels, target=target).value
    return row


def _strong_generator(
    classes: int, image: tuple[int, int, int], random: torch.Generator
) -> nn.Module:
    """Make generators that may change a pixel by twice as much; for experiments alone."""
    return generator(classes, image[0], _STRONGER, random)


FAMILIES["generator-0.7"] = FamilyRow("generator with twice the bound", _strong_generator)


def main() -> None:
    """Measure the missing candidates of this seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--train", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--triggers", choices=_SETS, default="families")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/leave-one-out"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    source, targets = load(given.train), _SETS[given.triggers]
    file = make_folder(given.out) / f"seed-{given.seed}.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    settings = {name: getattr(given, name) for name in SETTINGS}
    known = kept.get("settings", settings if not kept else "unknown settings")
    if known != settings:
        sys.exit(f"{file} was measured with {known}; use another --out")
    kept["settings"] = settings
    teacher, triggers = make_teacher(source, targets, given.epochs, given.seed)
    kept["teacher"] = measured(teacher, source, targets, triggers)
    training = TrainingConfig(epochs=given.epochs)
    for name in given.only:
        if name not in kept:
            student = models.builder(source)("wrn-10-1", given.seed + 1)
            made = make_student(
                teacher, student, source, CANDIDATES[name], training=training, seed=given.seed
            )
            kept[name] = {
                **measured(made.student, source, targets, triggers),
                "seconds": made.seconds,
            }
        write_json(file, kept)
    files = sorted(given.out.glob("seed-*.json"))
    write_text(
        given.out / "table.md", table([json.loads(each.read_text()) for each in files], targets)
    )


def table(
    seeds: Sequence[Mapping[str, Mapping[str, float]]], triggers: Iterable[str] = TRIGGERS
) -> str:
    """Format a Markdown table in percent: means over seeds, and the mean ASR over the triggers.

    >>> rows = {"teacher": dict.fromkeys(("ACC", *TRIGGERS), 0.5)}
    >>> table([rows, rows]).splitlines()[2]
    '| teacher | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 | 50.0 | 2 |'
    """
    triggers = tuple(triggers)
    heads = ["ACC", *triggers, "mean ASR", "n"]
    lines = [f"| Student | {' | '.join(heads)} |\n", f"| --- |{' ---: |' * len(heads)}\n"]
    for name in dict.fromkeys(name for seed in seeds for name in seed if name != "settings"):
        own = [seed[name] for seed in seeds if name in seed]
        figures = [fmean(row[figure] for row in own) for figure in ("ACC", *triggers)]
        cells = [f"{100 * figure:.1f}" for figure in (*figures, fmean(figures[1:]))]
        lines.append(f"| {name} | {' | '.join(cells)} | {len(own)} |\n")
    return "".join(lines)


if __name__ == "__main__":
    main()
