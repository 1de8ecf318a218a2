"""Distillation by the library torchdistill, for the comparison of speed.

The networks, the images and the optimiser are those of the plain script, and so are temperature and
weights of the loss. Data loader, loss, optimiser and step are torchdistill's own, made from a
configuration as in its examples. Nothing of RobustKD depends on this library:
``pip install torchdistill`` installs it for the comparison. Written for its version 1.1.5.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import plain_distillation as plain
import torch
from torch import Tensor, nn
from torch.utils.data import RandomSampler

if TYPE_CHECKING:
    from torchdistill.core.distillation import DistillationBox


def box(
    teacher: nn.Module, student: nn.Module, pictures: plain.Pictures, batch_size: int
) -> DistillationBox:
    """Make the object that holds the networks and the data loader, and takes the steps."""
    from torchdistill.core.distillation import get_distillation_box

    logits = {
        f"{whose}_module_{key}": value
        for whose in ("student", "teacher")
        for key, value in (("path", "."), ("io", "output"))
    }
    # Cross-entropy plus the soft loss, which torchdistill multiplies by the squared temperature.
    weights = {"temperature": plain.TEMPERATURE, "alpha": 1.0, "beta": 1.0}
    kd = {"criterion": {"key": "KDLoss", "kwargs": {**logits, **weights}}, "weight": 1.0}
    config = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "pictures",
            "sampler": {"class_or_func": RandomSampler},
            "kwargs": {"batch_size": batch_size, "drop_last": True},
        },
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": dict(plain.SGD)},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": kd}}},
    }
    # The mode of the teacher is left to the caller.
    return get_distillation_box(
        teacher.eval(),
        student,
        {"pictures": pictures},
        config,
        device=torch.device("cpu"),
        device_ids=None,
        distributed=False,
        lr_factor=1,
    )


def distil(
    trainer: DistillationBox,
    batches: Iterable[tuple[Tensor, Tensor, dict[str, object]]],
    dtype: torch.dtype | None,
    memory_format: torch.memory_format,
) -> None:
    """Take a step on each batch; ``dtype`` is that of autocast."""
    trainer.pre_epoch_process(epoch=0)
    total = 0.0
    for images, labels, extra in batches:
        shown = images.contiguous(memory_format=memory_format)
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = trainer.forward_process(shown, labels, extra)
        trainer.post_forward_process(loss=loss)
        total += loss.item()
