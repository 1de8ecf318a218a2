"""Training of a student by several processes of this machine, in double precision."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, multiprocessing

from robustkd import data, models
from robustkd.core.types import Batch, Split
from robustkd.student.distillation import distill
from robustkd.student.found import find_perturbations
from robustkd.student.hardening import UniversalPerturbations
from robustkd.training.processes import Processes, start
from tests.wrapped import Wrapped

CASES: dict[str, dict[str, Any]] = {
    "labels and logits": {"train": 64, "losses": {"kd": 1.0}},
    "features, a last batch of one image": {"train": 65, "losses": {"ofd": 1.0}},
    "hardening, a short last batch, two parts of each": {
        **{"train": 71, "losses": {"kd": 1.0, "ofd": 1.0}},
        **{"hardened": {"families": ("warp", "generator")}, "accumulate": 2},
    },
    "compositions": {
        **{"train": 64, "losses": {"kd": 1.0}},
        **{"hardened": {"families": ("warp", "tone"), "composed": True}},
    },
    "average of the weights": {"train": 64, "losses": {"kd": 1.0}, "ema": 0.9},
}
"""Settings in which several processes should train the student of one process."""


class Doubles(Wrapped):
    """Images in double precision, so that the order of additions hardly matters."""

    def batches(self, split: Split, **how: Any) -> Iterator[Batch]:
        for batch in self.source.batches(split, **how):
            yield batch._replace(images=batch.images.double())

    def portions(self, split: Split, **how: Any) -> Iterator[Batch]:
        for batch in self.source.portions(split, **how):
            yield batch._replace(images=batch.images.double())


def train(case: str, processes: Processes) -> dict[str, Any]:
    """Train a student for two epochs; return weights, perturbations and records."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # for connectors and perturbations
    try:
        return _train(processes, **CASES[case])
    finally:
        torch.set_default_dtype(usual)


def _train(
    processes: Processes, *, train: int, hardened: dict[str, Any] | None = None, **given: Any
) -> dict[str, Any]:
    clean = Doubles(data.load("digits", train=train, validation=30, test=20))
    shape = clean.image_shape
    teacher, student = (
        models.build(models.Spec("wrn-10-1", 10, shape), seed=seed).double() for seed in (1, 0)
    )
    hardening = None
    if hardened is not None:
        found = find_perturbations(teacher, clean, ("tone", "flow"), steps=1)  # type: ignore[arg-type]
        hardening = UniversalPerturbations(
            10, shape, fixed=found, distilled=True, fade=0.5, **hardened
        )
    made = distill(
        student,
        clean,  # type: ignore[arg-type]  # a source by its attributes
        teacher=teacher,
        hardening=hardening,
        processes=processes,
        **{"epochs": 2, "batch_size": 32, "lr": 0.01, **given},
    )
    changes = {} if hardening is None else dict(hardening.families.state_dict())
    return {"student": dict(student.state_dict()), "changes": changes, "epochs": made.epochs}


def together(count: int, case: str) -> list[dict[str, Any]]:
    """Train a student in several processes; return what each of them has at the end."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        multiprocessing.spawn(_one, (count, port, case, folder), nprocs=count)
        return [torch.load(Path(folder) / str(rank)) for rank in range(count)]


def _one(rank: int, count: int, port: int, case: str, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        **{"RANK": str(rank), "WORLD_SIZE": str(count)},
        **{"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count), "ACCELERATE_USE_CPU": "true"},
    )
    torch.save(train(case, start()), Path(folder) / str(rank))


def furthest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the largest distance of two tensors of one name, relative to their norm."""
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())
    return max(
        float((found[name] - tensor).norm() / tensor.norm().clamp_min(1e-6))
        for name, tensor in expected.items()
        if tensor.is_floating_point()
    )
