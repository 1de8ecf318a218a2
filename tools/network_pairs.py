"""Try every kind of pair of networks: ``python -m tools.network_pairs``.

For each teacher and student: taps found by probing, one real step of detoxification, of
distillation (OFD from the detoxified teacher) and of the same with hardening, on images of the
right size, with fresh weights (and, in the teacher, BatchNorm statistics of these images). The
script writes ``benchmarks/results/pairs.json`` and the tables in docs. They show which networks fit
and their cost, but not accuracy.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from robustkd import models
from robustkd.core.environment import environment
from robustkd.core.errors import RobustKDError
from robustkd.core.files import make_folder, write_json
from robustkd.data import InMemory, Labelled
from robustkd.models.features import taps
from robustkd.models.features.collect import layouts_of
from robustkd.models.features.stages import stages
from robustkd.student.distillation import distill
from robustkd.student.hardening import UniversalPerturbations
from robustkd.teacher.defences.detoxification import detoxify
from tools import docs_tables

_RESULTS = Path("benchmarks/results/pairs.json")
_PAGE = Path("docs/results/networks.md")
_CLASSES = 10
_BATCH = 4
_T = TypeVar("_T")


class PairOfNetworks(NamedTuple):
    """Two architectures and the size of their square images."""

    teacher: str
    student: str
    side: int


PAIRS = (
    PairOfNetworks("wrn-28-4", "wrn-16-4", 32),
    PairOfNetworks("wrn-28-4", "wrn-28-2", 32),
    PairOfNetworks("wrn-28-4", "wrn-16-2", 32),
    PairOfNetworks("wrn-28-4", "resnet-56", 32),
    PairOfNetworks("pyramidnet-200", "wrn-28-4", 32),
    PairOfNetworks("pyramidnet-200", "pyramidnet-110", 32),
    PairOfNetworks("resnet-50", "resnet-18", 224),
    PairOfNetworks("resnet-50", "mobilenet-v2", 224),
    PairOfNetworks("torchvision/efficientnet_b0", "timm/mobilenetv3_small_100", 224),
    PairOfNetworks("timm/deit_tiny_patch16_224", "timm/mobilenetv3_small_050", 224),
    PairOfNetworks("timm/resnet18", models.OwnCode("tools.network_pairs:example_network"), 224),
)
"""Pairs of the paper, and one pair of each other kind."""


_FIRST = PairOfNetworks("resnet-8", "resnet-8", 8)


def example_network(num_classes: int, in_chans: int = 3) -> nn.Module:
    """Network as users may write it: three strided convolutions and a linear layer."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((in_chans, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))


@dataclass
class _Clock:
    """CPU seconds by name, which do not depend on other processes as wall time does."""

    seconds: dict[str, float]

    def time(self, name: str, act: Callable[[], _T]) -> _T:
        started = time.process_time()
        done = act()
        self.seconds[name] = round(time.process_time() - started, 2)
        return done


def try_pair(pair: PairOfNetworks, *, batch: int = _BATCH) -> dict[str, Any]:
    """Take one step of each part on ``batch`` images of noise; return taps, sizes and seconds.

    Raises:
        RobustKDError: If any step fails.
    """
    shape = (3, pair.side, pair.side)
    data = _noise(shape, batch)
    images = next(data.batches("train", batch_size=batch)).images
    clock = _Clock({})
    teacher, student = (
        models.build(models.Spec(arch, _CLASSES, shape), seed=0)
        for arch in (pair.teacher, pair.student)
    )
    _settle(teacher, images)
    found = clock.time("taps", lambda: [stages(model, images) for model in (teacher, student)])
    cleaned = clock.time(
        "detox",
        lambda: detoxify(
            teacher, data, stages=found[0], steps=1, raises=0, bisections=0, batch_size=batch
        ),
    )
    steps: dict[str, dict[str, float]] = {}
    for name in ("distil", "harden"):
        hardening = UniversalPerturbations(_CLASSES, shape) if name == "harden" else None
        learnt = clock.time(
            name,
            lambda hardening=hardening: distill(  # type: ignore[misc]
                student,
                data,
                teacher=cleaned.teacher,
                student_taps=found[1],
                hardening=hardening,
                epochs=1,
                batch_size=batch,
                lr=0.01,
            ),
        )
        steps[name] = learnt.epochs[0]
    return {
        "image": shape,
        **_described("teacher", teacher, found[0], images),
        **_described("student", student, found[1], images),
        "variance_ratio": cleaned.record.variance_ratio,
        "steps": steps,
        "seconds": clock.seconds,
    }


@torch.no_grad()
def _settle(model: nn.Module, images: torch.Tensor) -> None:
    """Set the statistics of BatchNorm to those of the images; otherwise features may vanish."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    with taps.frozen_modes(model, training=True), torch.random.fork_rng(devices=[]):
        model(images)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum


def _described(
    role: str, model: models.Classifier, names: tuple[str, ...], images: torch.Tensor
) -> dict[str, Any]:
    layouts = layouts_of(model, names, images)
    return {
        role: str(model.spec.arch),
        f"{role}_parameters": models.parameters(model),
        f"{role}_macs": models.macs(model, model.spec.image_shape),
        f"{role}_taps": {
            name: [*layout.shape, layout.kind] for name, layout in zip(names, layouts, strict=True)
        },
    }


def _noise(shape: tuple[int, int, int], count: int) -> InMemory:
    random = torch.Generator().manual_seed(0)
    held = Labelled(
        torch.randint(256, (count, *shape), generator=random, dtype=torch.uint8),
        torch.arange(count) % _CLASSES,
    )
    return InMemory("noise", tuple(map(str, range(_CLASSES))), held, held, held)


def main() -> None:
    """Try every pair, single-threaded; write the results and fill the page of docs."""
    torch.set_num_threads(1)
    try_pair(_FIRST)  # so that the first row does not include imports
    rows: list[dict[str, Any]] = []
    for pair in PAIRS:
        named = {"teacher": str(pair.teacher), "student": str(pair.student)}
        try:
            row = try_pair(pair)
        except RobustKDError as error:
            row = {**named, "error": str(error)}
        rows.append(row)
        said = row.get("error") or row["seconds"]
        sys.stderr.write(f"{pair.teacher} to {pair.student}: {said}\n")
    results = {"batch": _BATCH, "pairs": rows, "environment": environment()}
    make_folder(_RESULTS.parent)
    write_json(_RESULTS, results)
    docs_tables.fill_tables(_PAGE, Path.cwd())
    sys.exit(any("error" in row for row in rows))


if __name__ == "__main__":
    main()
