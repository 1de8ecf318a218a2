"""Distillation by the library mdistiller, for the comparison of speed.

Distillers and wide residual networks are mdistiller's own; the teacher is not trained, which
changes no time. The steps are those of its trainer, which itself runs on CUDA devices only, without
the accuracies that it also computes in each step. The images and the optimiser are those of the
plain script, the settings of the losses mdistiller's defaults. Its class ``OFD`` leaves the teacher
in training mode, unlike its other distillers, and so does this comparison. Nothing of RobustKD
depends on this library.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace

import plain_distillation as plain
import torch
from torch import Tensor, nn

COMMIT = "a08d46f10d6102bd6e3f258ca5ac880b020ea259"
"""Commit of https://github.com/megvii-research/mdistiller that this script was written for."""
SHAPE = (3, 32, 32)
"""Shape of the images that mdistiller's wide residual networks are made for."""
_CONFIG = SimpleNamespace(
    KD=SimpleNamespace(
        TEMPERATURE=plain.TEMPERATURE, LOSS=SimpleNamespace(CE_WEIGHT=0.1, KD_WEIGHT=0.9)
    ),
    OFD=SimpleNamespace(
        LOSS=SimpleNamespace(CE_WEIGHT=1.0, FEAT_WEIGHT=0.001),
        CONNECTOR=SimpleNamespace(KERNEL_SIZE=1),
    ),
)
"""Defaults of mdistiller's configuration, whose module needs further libraries."""


def network(arch: str, classes: int) -> nn.Module:
    """Return a wide residual network of mdistiller; ``arch`` is ``wrn-DEPTH-WIDTH``."""
    from mdistiller.models.cifar.wrn import wrn

    _, depth, width = arch.split("-")
    return wrn(depth=int(depth), widen_factor=int(width), num_classes=classes)


def distiller(loss: str, teacher: nn.Module, student: nn.Module) -> nn.Module:
    """Make the module that computes the losses; ``loss`` is ``kd`` or ``ofd``."""
    from mdistiller.distillers import distiller_dict

    return distiller_dict[loss.upper()](student, teacher, _CONFIG)


def distil(
    learner: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], dtype: torch.dtype | None
) -> None:
    """Take a step on each batch; ``dtype`` is that of autocast."""
    learner.train()
    steps = plain.optimiser(learner.get_learnable_parameters())
    total = 0.0
    for images, labels in batches:
        steps.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            _, losses = learner(image=images, target=labels, epoch=1)
        loss = sum(part.mean() for part in losses.values())
        loss.backward()
        steps.step()
        total += loss.item()
