"""Properties of a teacher and a student that distillation losses need before training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from robustkd.core.devices import device_of
from robustkd.core.errors import UsageError
from robustkd.core.first_batch import first_batch
from robustkd.core.types import DataSource
from robustkd.models.features import taps
from robustkd.models.features.collect import feature_batches, layouts_of, stage_layout
from robustkd.models.features.layout import Layout
from robustkd.training import losses
from robustkd.training.inference import batch_size_for

_MARGIN_BATCH, _MARGIN_IMAGES = 64, 1024


@dataclass(frozen=True)
class Pair:
    """Properties of student and teacher for the construction of loss terms.

    Attributes:
        student: Shape of each stage of the student as maps: channels, height and width.
        teacher: Shape of each stage of the teacher; equally many.
        margins: Function that measures the mean negative response per channel of each stage of
            the teacher.
        temperature: Temperature of soft targets, above 0.
        student_layouts: Conversions of the student's features to maps; empty if they are maps.
        teacher_layouts: Conversions of the teacher's features, likewise.
    """

    student: tuple[tuple[int, ...], ...]
    teacher: tuple[tuple[int, ...], ...]
    margins: Callable[[], list[Tensor]]
    temperature: float
    student_layouts: tuple[Layout, ...] = ()
    teacher_layouts: tuple[Layout, ...] = ()


@torch.no_grad()
def margins(teacher: nn.Module, names: Sequence[str], clean: DataSource) -> list[Tensor]:
    """Compute the OFD margin of each stage, E[x | x < 0] per channel.

    The margin has a closed form if the tap is a BatchNorm; otherwise it is measured on clean
    training images.
    """
    measured = [name for name in names if _batchnorm(teacher, name) is None]
    found = dict(zip(measured, _measured(teacher, measured, clean), strict=True))
    for name in names:
        norm = _batchnorm(teacher, name)
        if norm is not None:
            found[name] = losses.margin_from_batchnorm(norm.weight, norm.bias)
    return [found[name] for name in names]


def _batchnorm(model: nn.Module, name: str) -> nn.BatchNorm2d | None:
    module = taps.module_at(model, name)
    return module if isinstance(module, nn.BatchNorm2d) and module.affine else None


def _measured(teacher: nn.Module, names: Sequence[str], clean: DataSource) -> list[Tensor]:
    if not names:
        return []
    size = batch_size_for(clean.image_shape, _MARGIN_BATCH)
    batches = feature_batches(
        teacher, names, clean, batch_size=size, batches=-(-_MARGIN_IMAGES // size)
    )
    found = [losses.NegativeMean() for _ in names]
    layouts: list[Layout] = []
    for stages in batches:
        if not layouts:
            pairs = zip(names, stages, strict=True)
            layouts = [stage_layout(name, stage, clean.image_shape) for name, stage in pairs]
        for mean, layout, stage in zip(found, layouts, stages, strict=True):
            mean.add(layout.maps(stage))
    return [mean.value() for mean in found]


def pair_of(
    student: nn.Module,
    student_taps: Sequence[str],
    teacher: nn.Module,
    teacher_taps: Sequence[str],
    clean: DataSource,
    *,
    temperature: float,
) -> Pair:
    """Determine the shapes of the stages of both networks on the images of the data."""
    if len(student_taps) != len(teacher_taps):
        raise UsageError(
            f"student has {len(student_taps)} taps and teacher {len(teacher_taps)}; expected equal"
        )
    device = device_of(teacher)
    batch = first_batch(clean, "train", batch_size=2, device=device)
    student_layouts = layouts_of(student, student_taps, batch.images.to(device_of(student)))
    teacher_layouts = layouts_of(teacher, teacher_taps, batch.images)
    return Pair(
        student=tuple(layout.shape for layout in student_layouts),
        teacher=tuple(layout.shape for layout in teacher_layouts),
        margins=partial(margins, teacher, teacher_taps, clean),
        temperature=temperature,
        student_layouts=student_layouts,
        teacher_layouts=teacher_layouts,
    )
