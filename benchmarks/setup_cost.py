"""Measure the work around a training: poisoning of 50,000 images, and detoxification.

Poisoning: a pass over 50,000 images of 3 x 32 x 32 pixels in batches of 128, of which a tenth or
all receive the trigger and the target's label, alternating with a pass over the clean images. The
difference is the time of the poisoning, with the choice of the images. It is CPU time, which other
programs change less than the wall time; with one thread on a free machine, both are the same.

Detoxification: whole detoxifications of a teacher with 10,000 images, alternating with trainings of
a student by the same distillation loss for a few epochs. The time of 30 epochs is computed from the
seconds of one epoch, with its validation.

    OMP_NUM_THREADS=1 python benchmarks/setup_cost.py --out benchmarks/results/setup-cost
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn

from robustkd import data, models
from robustkd.attacks import SIG, BadNets, Blend, Warp
from robustkd.attacks.parts.poisoned_data import Poisoned
from robustkd.attacks.parts.trigger_families import TRIGGER_FAMILIES
from robustkd.core.environment import environment
from robustkd.core.files import make_folder, write_json, write_text
from robustkd.core.method_settings import DetoxSettings
from robustkd.core.methods import find_method
from robustkd.core.types import DataSource, Trigger
from robustkd.data.labelled import Labelled
from robustkd.pipeline.detox_objective import detox_objective
from robustkd.pipeline.student import make_student
from robustkd.teacher.defences.detoxification import detoxify
from robustkd.training.config import TrainingConfig
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit

SHAPE = (3, 32, 32)
CLASSES = tuple("0123456789")
IMAGES, POISONED, VALIDATION, EPOCHS = 10_000, 50_000, 2_000, 30
METHODS = ("paper", "paper-perturbed")
RATES = {"a tenth": 0.1, "all": 1.0}
PARTS = ("poisoning", "detoxification")
TAUGHT = 2
"""Epochs of the trainings that are measured."""


def main() -> None:
    """Measure both, and write all seconds and the rows of both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Text)
    parser.add_argument("--poisonings", type=int, default=9, help="repeats for each trigger")
    parser.add_argument("--repeats", type=int, default=3, help="repeats of the rest")
    parser.add_argument("--pair", nargs=2, default=["wrn-10-2", "wrn-10-1"])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/setup-cost"))
    given = parser.parse_args()
    make_folder(given.out)
    if "poisoning" in given.parts:
        clean = images(POISONED)
        marked = {name: poison(how, clean, given.poisonings) for name, how in triggers().items()}
        rows = [_poisoning_row(name, taken) for name, taken in marked.items()]
        _write(given.out, "poisoning", rows, marked)
    if "detoxification" in given.parts:
        taken = detox(given.pair, given.repeats)
        rows = [_detox_row(name, given.pair, taken[name], taken["epoch"]) for name in METHODS]
        _write(given.out, "detoxification", rows, taken)


class _Text(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Show the description as it is written, and the defaults."""


def images(train: int, validation: int = 1) -> data.InMemory:
    """Make images that a small network learns within one epoch: a smooth pattern and noise."""
    random = torch.Generator().manual_seed(0)
    patterns = F.interpolate(torch.rand((9, 3, 8, 8), generator=random), SHAPE[1:], mode="bicubic")

    def split(count: int) -> Labelled:
        # No image has the label 0, the target, so that all can be poisoned.
        labels = torch.randint(1, 10, (count,), generator=random)
        pixels = 60 + 120 * patterns[labels - 1]
        pixels += 40 * torch.randn((count, *SHAPE), generator=random)
        return Labelled(pixels.clamp(0, 255).to(torch.uint8), labels)

    parts = (split(train), split(validation), split(1))
    return data.InMemory("patterns", CLASSES, *parts)


def triggers() -> dict[str, Trigger]:
    """Return the fixed triggers, and one of each family that attacks learn."""
    random = torch.Generator().manual_seed(0)
    found: dict[str, Trigger] = {
        "badnets": BadNets(),
        "blend": Blend(),
        "sig": SIG(),
        "wanet": Warp(strength=1.5),
    }
    for name, family in TRIGGER_FAMILIES.items():
        parameters = 2 * torch.rand(family.shape(SHAPE), generator=random) - 1
        found[name] = family.trigger(parameters, SHAPE, 1.0)
    return found


def poison(trigger: Trigger, clean: DataSource, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of poisoned passes by rate, and of clean passes, in turn."""

    def poisoned(rate: float) -> None:
        _pass(Poisoned(clean, trigger, target=0, rate=rate))

    work = {name: partial(poisoned, rate) for name, rate in RATES.items()}
    work["clean"] = partial(_pass, clean)
    return _in_turn(work, repeats, warm=True, clock=time.process_time)


def _pass(source: DataSource) -> None:
    for _ in source.batches("train", batch_size=128):
        pass


def detox(pair: Sequence[str], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of detoxifications by method, and of an ``epoch`` of a training."""
    source = images(IMAGES, VALIDATION)
    build = models.builder(source)
    teacher: nn.Module = build(pair[0], 0)
    fit(Supervised(teacher), source, epochs=1)

    def clean(name: str) -> None:
        how = find_method(name)
        objective = detox_objective(how, teacher, source, seed=0)
        settings = asdict(how.detox or DetoxSettings())
        detoxify(teacher, source, objective=objective, seed=0, **settings)

    def train() -> None:
        training = TrainingConfig(epochs=TAUGHT)
        make_student(teacher, build(pair[1], 1), source, find_method("ofd"), training=training)

    work = {**{name: partial(clean, name) for name in METHODS}, "epoch": train}
    taken = _in_turn(work, repeats, warm=False, clock=time.perf_counter)
    return {**taken, "epoch": [seconds / TAUGHT for seconds in taken["epoch"]]}


def _in_turn(
    work: Mapping[str, Callable[[], None]],
    repeats: int,
    *,
    warm: bool,
    clock: Callable[[], float],
) -> dict[str, list[float]]:
    """Return the seconds of each function in each turn; with ``warm``, after one more turn."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats + warm):
        for name, do in work.items():
            started = clock()
            do()
            taken[name].append(clock() - started)
    return {name: seconds[warm:] for name, seconds in taken.items()}


def _poisoning_row(name: str, taken: dict[str, list[float]]) -> dict[str, object]:
    def beyond(rate: str) -> str:
        turns = zip(taken[rate], taken["clean"], strict=True)
        return _range([both - clean for both, clean in turns])

    return {
        "trigger": name,
        "CPU_seconds,_a_tenth_is_poisoned": beyond("a tenth"),
        "CPU_seconds,_all_are_poisoned": beyond("all"),
        "CPU_seconds_of_a_clean_pass": _range(taken["clean"]),
        "n": len(taken["clean"]),
    }


def _detox_row(
    name: str, pair: Sequence[str], cleaned: Sequence[float], epochs: Sequence[float]
) -> dict[str, object]:
    turns = zip(cleaned, epochs, strict=True)
    shares = [100 * once / (once + EPOCHS * epoch) for once, epoch in turns]
    return {
        "method": name,
        "pair": " to ".join(pair),
        "seconds_of_detoxification": _range(cleaned, 1),
        "seconds_of_an_epoch": _range(epochs, 1),
        "share_of_30_epochs,_%": _range(shares, 1),
        "n": len(shares),
    }


def _range(values: Sequence[float], digits: int = 2) -> str:
    shown = (f"{value:.{digits}f}" for value in (median(values), min(values), max(values)))
    return "{} ({} to {})".format(*shown)


def _write(
    out: Path, part: str, rows: list[dict[str, object]], seconds: Mapping[str, object]
) -> None:
    write_text(out / f"{part}.json", json.dumps(rows, indent=1) + "\n")
    write_json(out / f"{part}-seconds.json", {**seconds, "environment": environment()})
    sys.stdout.write(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
