"""Which distillation losses a student learns from, by name and weight.

A term joins a pure loss of :mod:`robustkd.losses` with what has to be learnt or measured for it:
connectors from the student's features to the teacher's, and margins. A new term is one class and
one row in :data:`TERMS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustkd import losses, taps
from robustkd.errors import UsageError
from robustkd.inference import device_of, features_on, layouts_of, stage_layout
from robustkd.layout import Layout
from robustkd.types import DataSource, Features, Logits, PerSample

# OFD's CIFAR runs divide the sum over a WRN-28-4's stages by 1000; these are its elements, each
# stage's times its weight: 64 x 32 x 32 / 4 + 128 x 16 x 16 / 2 + 256 x 8 x 8.
_OFD_STRENGTH = 49_152 / 1000
_MARGIN_BATCHES = 16


class Outputs(NamedTuple):
    """What one network shows of a batch: logits, and the features of its stages in order."""

    logits: Logits
    features: tuple[Features, ...]

    def first(self, count: int) -> Outputs:
        """What it shows of the first images."""
        return Outputs(self.logits[:count], tuple(stage[:count] for stage in self.features))

    def repeat_first(self, count: int) -> Outputs:
        """All of it, and behind it once more what it shows of the first images."""
        if count == 0:
            return self
        logits, *stages = (
            torch.cat([shown, shown[:count]]) for shown in (self.logits, *self.features)
        )
        return Outputs(logits, tuple(stages))


@dataclass(frozen=True)
class Pair:
    """What a term may know of student and teacher before training.

    Attributes:
        student: Shape of each of the student's stages as maps: channels, height and width.
        teacher: Of each of the teacher's stages; as many.
        margins: Measures the mean negative response per channel of each teacher stage.
        temperature: Of soft targets, above 0.
        student_layouts: How the student's features become maps; none if they are maps.
        teacher_layouts: Likewise the teacher's.
    """

    student: tuple[tuple[int, ...], ...]
    teacher: tuple[tuple[int, ...], ...]
    margins: Callable[[], list[Tensor]]
    temperature: float
    student_layouts: tuple[Layout, ...] = ()
    teacher_layouts: tuple[Layout, ...] = ()


class _Connector(nn.Module):
    """1x1 convolution and BatchNorm from the student's stage to the shape of the teacher's.

    A smaller student is enlarged bilinearly; a larger one is averaged over areas, so that every
    position of it has a part.
    """

    def __init__(self, student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
        super().__init__()
        self.size = (teacher[1], teacher[2])
        self.conv = nn.Conv2d(student[0], teacher[0], 1, bias=False)
        self.norm = nn.BatchNorm2d(teacher[0])
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features: Features) -> Features:
        mapped: Tensor = self.norm(self.conv(features))
        if tuple(mapped.shape[2:]) == self.size:
            return mapped
        if mapped.shape[2] >= self.size[0] and mapped.shape[3] >= self.size[1]:
            return nn.functional.adaptive_avg_pool2d(mapped, self.size)
        return nn.functional.interpolate(mapped, self.size, mode="bilinear", align_corners=False)


def _connectors(pair: Pair) -> nn.ModuleList:
    return nn.ModuleList(
        _Connector(student, teacher)
        for student, teacher in zip(pair.student, pair.teacher, strict=True)
    )


class SoftTargets(nn.Module):
    """Soft-target KL divergence on the logits."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.temperature = pair.temperature

    def forward(self, student: Outputs, teacher: Outputs) -> PerSample:
        """Per sample, in nats times the squared temperature."""
        return losses.soft_target_kl(student.logits, teacher.logits, temperature=self.temperature)


class Overhaul(nn.Module):
    """Overhaul of feature distillation: partial L2 behind margins, over all stages.

    Source: Heo et al. 2019, arXiv 1904.01866. Stages weigh 2^-(L-1-l). Differences: where the
    teacher's tap is no BatchNorm, margins are measured; and instead of a division by 1000 for
    every network, the sum is scaled by its number of elements, so that the term weighs as much
    for small images and thin networks as it does in the paper's CIFAR runs with a WRN-28-4
    teacher (for which both scales are the same).
    """

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.connectors = _connectors(pair)
        last = len(pair.teacher) - 1
        self.weights = [2.0 ** (stage - last) for stage in range(len(pair.teacher))]
        elements = sum(
            weight * math.prod(shape)
            for weight, shape in zip(self.weights, pair.teacher, strict=True)
        )
        self.scale = _OFD_STRENGTH / elements
        for stage, margin in enumerate(pair.margins()):
            self.register_buffer(f"margin{stage}", margin)

    def forward(self, student: Outputs, teacher: Outputs) -> PerSample:
        """Per sample, summed over stages, channels and positions, times the scale."""
        distances = [
            weight
            * losses.partial_l2(
                connector(student.features[stage]),
                teacher.features[stage],
                self.get_buffer(f"margin{stage}"),
            )
            for stage, (weight, connector) in enumerate(
                zip(self.weights, self.connectors, strict=True)
            )
        ]
        return torch.stack(distances).sum(0) * self.scale


class AttentionTransfer(nn.Module):
    """Attention transfer, the mean over all stages."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        for student, teacher in zip(pair.student, pair.teacher, strict=True):
            if student[1:] != teacher[1:]:
                raise UsageError(
                    f"attention transfer needs equal sizes; got {student[1:]} and {teacher[1:]}"
                )

    def forward(self, student: Outputs, teacher: Outputs) -> PerSample:
        """Per sample."""
        pairs = zip(student.features, teacher.features, strict=True)
        return torch.stack([losses.attention_transfer(s, t) for s, t in pairs]).mean(0)


class Hints(nn.Module):
    """FitNet hints through connectors, the mean over all stages."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.connectors = _connectors(pair)

    def forward(self, student: Outputs, teacher: Outputs) -> PerSample:
        """Per sample."""
        triples = zip(self.connectors, student.features, teacher.features, strict=True)
        return torch.stack([losses.fitnet_hint(c(s), t) for c, s, t in triples]).mean(0)


class Relations(nn.Module):
    """Relational distillation on the pooled features of the last stage."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        del pair

    def forward(self, student: Outputs, teacher: Outputs) -> PerSample:
        """Per sample."""
        pooled = (outputs.features[-1].flatten(2).mean(2) for outputs in (student, teacher))
        return losses.relational_kd(*pooled)


TERMS: dict[str, Callable[[Pair], nn.Module]] = {
    "kd": SoftTargets,
    "ofd": Overhaul,
    "at": AttentionTransfer,
    "fitnet": Hints,
    "rkd": Relations,
}
NEEDS_FEATURES = frozenset(TERMS) - {"kd"}


class Objective(nn.Module):
    """The chosen terms: called with both networks' outputs, gives each term's batch mean.

    Args:
        weights: Term name to weight, above 0.
        pair: Shapes of both networks.

    Raises:
        UsageError: If a name is unknown, a weight is not above 0, or a term does not fit.
    """

    def __init__(self, weights: Mapping[str, float], pair: Pair) -> None:
        super().__init__()
        check_weights(weights)
        self.weights = dict(weights)
        self.terms = nn.ModuleDict({name: TERMS[name](pair) for name in weights})
        self._layouts = pair.student_layouts, pair.teacher_layouts

    def forward(self, student: Outputs, teacher: Outputs) -> dict[str, Float[Tensor, ""]]:
        """Weighted batch mean of each term, by name; features come as the networks give them."""
        student, teacher = map(_as_maps, (student, teacher), self._layouts)
        return {
            name: self.weights[name] * term(student, teacher).mean()
            for name, term in self.terms.items()
        }


def _as_maps(outputs: Outputs, layouts: tuple[Layout, ...]) -> Outputs:
    if not layouts:
        return outputs
    pairs = zip(layouts, outputs.features, strict=True)
    return Outputs(outputs.logits, tuple(layout.maps(features) for layout, features in pairs))


def check_weights(weights: Mapping[str, float]) -> None:
    """Refuse unknown terms and weights that are not above zero.

    Raises:
        UsageError: Naming the first such term.
    """
    for name, weight in weights.items():
        if name not in TERMS:
            raise UsageError(f"unknown distillation loss {name!r}; expected {', '.join(TERMS)}")
        if not weight > 0:
            raise UsageError(f"weight of distillation loss {name!r} is {weight}; expected above 0")


@torch.no_grad()
def margins(teacher: nn.Module, names: Sequence[str], clean: DataSource) -> list[Tensor]:
    """OFD's margin of each tapped stage, E[x | x < 0] per channel.

    Closed form where the tap is a BatchNorm, else measured on clean training images.
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
    stages = features_on(teacher, names, clean, batch_size=64, batches=_MARGIN_BATCHES)
    layouts = [
        stage_layout(name, stage[0], clean.image_shape)
        for name, stage in zip(names, stages, strict=True)
    ]
    return [
        losses.measured_margin(map(layout.maps, stage))
        for layout, stage in zip(layouts, stages, strict=True)
    ]


def pair_of(
    student: nn.Module,
    student_taps: Sequence[str],
    teacher: nn.Module,
    teacher_taps: Sequence[str],
    clean: DataSource,
    *,
    temperature: float,
) -> Pair:
    """Shapes of both networks' stages on the data's images, and how margins are measured."""
    if len(student_taps) != len(teacher_taps):
        raise UsageError(
            f"student has {len(student_taps)} taps and teacher {len(teacher_taps)}; expected equal"
        )
    device = device_of(teacher)
    batch = next(iter(clean.batches("train", batch_size=2, device=device)))
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
