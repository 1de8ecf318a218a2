"""Compare ways to spend a budget of clean accuracy on the robustness of a student.

A hardened student is less accurate than the same student without hardening. Three ways to give some
of the accuracy back are measured, for one backdoored teacher and one seed:

- *Two finishes.* At the end of an epoch, the hardened training is copied, and the copy is finished
  without hardening. The weights of both finishes are interpolated; alpha is the share of the
  hardened one. The statistics of BatchNorm are then those of clean training images.
- *Late hardening.* The training begins without hardening, and is then finished both with and
  without. The second finish is exactly the student without hardening.
- *Fewer copies.* The share of the images that get a perturbed copy is smaller.

The attack success rate is measured to compare the ways. No way may choose a strength by it.

    python benchmarks/accuracy_budget.py --teacher ATTACKED/teacher.safetensors \
        --trigger ATTACKED/trigger.safetensors --out budget.json

The folder ATTACKED is one that ``robustkd attack`` writes. The sources of the interpolation are
Wortsman et al. 2022, arXiv 2109.01903 (robust fine-tuning) and arXiv 2203.05482 (model soups).
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from robustkd import data, models
from robustkd.attacks import load_trigger
from robustkd.core.files import write_json
from robustkd.core.methods import METHODS, Method
from robustkd.core.types import Trigger
from robustkd.data import InMemory
from robustkd.evaluation.measurement import measure
from robustkd.pipeline.hardening import make_hardening
from robustkd.student.distillation import distill
from robustkd.student.hardening import UniversalPerturbations
from robustkd.training.checkpoint import State
from robustkd.training.config import TrainingConfig
from robustkd.training.inference import accuracy_on

ALPHAS = (0.75, 0.5, 0.25)
_LEARNED = METHODS["learned"]
_UNHARDENED = replace(_LEARNED, hardening=None)
_COMPANION = "beside."
"""Start of the names of the perturbations' state in a stored state of a training."""
_IMAGES = 2_000
"""Number of clean training images from which the statistics of BatchNorm are re-estimated."""

Row = dict[str, object]


class States:
    """Keeper that holds the state at the end of each epoch in memory."""

    def __init__(self, first: State | None = None) -> None:
        self._first = first
        self.kept: dict[int, State] = {}

    def last(self) -> State | None:
        """Return the state to start from."""
        return self._first

    def is_due(self) -> bool:
        """Return False: only the ends of epochs are kept."""
        return False

    def save(self, state: State) -> None:
        """Keep a copy of a state."""
        tensors = {name: tensor.clone() for name, tensor in state.tensors.items()}
        self.kept[state.values["epoch"]] = State(tensors, copy.deepcopy(dict(state.values)))


class Trained(NamedTuple):
    """A student, its states by epoch, and the time of its training on the processor."""

    student: nn.Module
    states: Mapping[int, State]
    seconds: float


class Bench:
    """Teacher, trigger and data of one comparison."""

    def __init__(
        self,
        teacher: nn.Module,
        trigger: tuple[Trigger, int],
        source: InMemory,
        student: str,
        training: TrainingConfig,
        seed: int,
    ) -> None:
        self.teacher, self.trigger, self.source = teacher, trigger, source
        self.student, self.training, self.seed = student, training, seed

    def train(self, how: Method, state: State | None = None) -> Trained:
        """Distil a student, from its fresh weights or from the state of another training."""
        hardening = make_hardening(how, self.teacher, self.source, seed=self.seed)
        keeper = States(None if state is None else _for(hardening, state))
        network = models.builder(self.source)(self.student, self.seed + 1)
        started = time.process_time()
        distill(
            network,
            self.source,
            teacher=self.teacher,
            losses=how.losses,
            until=how.until,
            hardening=hardening,
            seed=self.seed,
            keeper=keeper,
            **asdict(self.training),
        )
        return Trained(network, keeper.kept, time.process_time() - started)

    def row(self, network: nn.Module, **more: object) -> Row:
        """Measure accuracy and attack success rate."""
        trigger, target = self.trigger
        found = measure(network, self.source, trigger=trigger, target=target)
        return {
            "validation": accuracy_on(network, self.source, "validation").value,
            "acc": found.acc.value,
            "asr": None if found.asr is None else found.asr.value,
            **more,
        }

    def alone(self, name: str, how: Method) -> dict[str, Row]:
        """Measure a method."""
        made = self.train(how)
        return {
            name: self.row(made.student, cpu_seconds=round(made.seconds, 1)),
            f"{name}, clean statistics": self.row(self.clean_statistics(made.student)),
        }

    def finishes(self, first: Method, second: Method, epochs: Sequence[int]) -> dict[str, Row]:
        """Measure a training, its second finishes, and their interpolations."""
        whole, rows = self.train(first), {}
        hardened_first = first.hardening is not None
        begins, ends = ("hardened", "not") if hardened_first else ("unhardened", "hardened")
        rows[f"{begins} throughout"] = self.row(whole.student, cpu_seconds=round(whole.seconds, 1))
        rows[f"{begins} throughout, clean statistics"] = self.row(
            self.clean_statistics(whole.student)
        )
        for epoch in epochs:
            other = self.train(second, whole.states[epoch])
            name = f"{begins} for {epoch} epochs, then {ends}"
            rows[name] = self.row(other.student, cpu_seconds=round(other.seconds, 1))
            rows[f"{name}, clean statistics"] = self.row(self.clean_statistics(other.student))
            both = whole.student, other.student
            hardened, plain = both if hardened_first else both[::-1]
            for alpha in ALPHAS:
                mean = self.clean_statistics(interpolated(hardened, plain, alpha))
                rows[f"{name}, alpha {alpha}"] = self.row(mean)
        return rows

    def clean_statistics(self, network: nn.Module) -> nn.Module:
        """Return a copy whose BatchNorm statistics are means over clean training images."""
        network = copy.deepcopy(network)
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.reset_running_stats()
                module.momentum = None
        network.train()
        order, seen = torch.Generator().manual_seed(0), 0
        with torch.no_grad():
            for batch in self.source.batches("train", batch_size=250, shuffle=order):
                network(batch.images)
                seen += len(batch.images)
                if seen >= _IMAGES:
                    break
        return network.eval()


def _for(hardening: UniversalPerturbations | None, state: State) -> State:
    """Return the state with fresh perturbations for a hardened finish, and without for another."""
    tensors = {
        name: tensor for name, tensor in state.tensors.items() if not name.startswith(_COMPANION)
    }
    if hardening is not None:
        own = hardening.state_dict()
        tensors |= {f"{_COMPANION}{name}": tensor.clone() for name, tensor in own.items()}
    return State(tensors, state.values)


def interpolated(hardened: nn.Module, plain: nn.Module, alpha: float) -> nn.Module:
    """Return a network with alpha times the weights of the first, and the rest of the second."""
    mean, ours, theirs = copy.deepcopy(hardened), hardened.state_dict(), plain.state_dict()
    mean.load_state_dict(
        {
            name: torch.lerp(theirs[name], own, alpha) if own.is_floating_point() else own
            for name, own in ours.items()
        }
    )
    return mean


def _shared(share: float) -> Method:
    hardening = replace(_LEARNED.hardening, share=share) if _LEARNED.hardening else None
    return replace(_LEARNED, hardening=hardening)


GROUPS: dict[str, Callable[[Bench], dict[str, Row]]] = {
    "ordinary": lambda bench: bench.alone("ordinary (mix)", METHODS["mix"]),
    "finishes": lambda bench: bench.finishes(_LEARNED, _UNHARDENED, (3, 2)),
    "late": lambda bench: bench.finishes(_UNHARDENED, _LEARNED, (2, 1)),
    "half": lambda bench: bench.alone("share 0.5", _shared(0.5)),
    "quarter": lambda bench: bench.alone("share 0.25", _shared(0.25)),
    "learned": lambda bench: bench.alone("hardened throughout", _LEARNED),
}
"""Measurements of one or more students each; ``learned`` is the first part of ``finishes``."""


def main() -> None:
    """Measure the groups, and write their rows to a JSON file after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--trigger", type=Path, required=True)
    parser.add_argument("--student", default="mobilenet-v2-0.25")
    parser.add_argument("--only", nargs="*", choices=GROUPS, default=list(GROUPS)[:-1])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    source = data.load("fashion-mnist", train=10_000, validation=2_000)
    source = replace(source, augmentation=data.CropFlip())
    training = TrainingConfig(epochs=4, batch_size=64, lr=models.learning_rate(given.student))
    teacher = models.load(given.teacher).eval()
    bench = Bench(teacher, load_trigger(given.trigger), source, given.student, training, given.seed)
    rows = json.loads(given.out.read_text()) if given.out.exists() else {}
    for name in given.only:
        rows |= GROUPS[name](bench)
        write_json(given.out, rows)


if __name__ == "__main__":
    main()
