"""Distillation losses with the modules that they train, such as connectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustkd.core.errors import UsageError
from robustkd.core.types import Features, Logits, PerSample
from robustkd.student.pair import Pair
from robustkd.training import losses

# For CIFAR and a WRN-28-4, the paper divides the sum over the stages by 1000. This is the weighted
# number of elements of these stages: 64 x 32 x 32 / 4 + 128 x 16 x 16 / 2 + 256 x 8 x 8.
_OFD_STRENGTH = 49_152 / 1000


class Outputs(NamedTuple):
    """Outputs of a network for a batch: logits, and the features of its stages in order."""

    logits: Logits
    features: tuple[Features, ...]

    def first(self, count: int) -> Outputs:
        """Return the outputs for the first images."""
        if count == len(self.logits):
            return self
        return Outputs(self.logits[:count], tuple(first_rows(x, count) for x in self.features))

    def repeat_first(self, count: int) -> Outputs:
        """Return all outputs, followed by a copy of those for the first images."""
        if count == 0:
            return self
        logits, *stages = (
            torch.cat([shown, shown[:count]]) for shown in (self.logits, *self.features)
        )
        return Outputs(logits, tuple(stages))


class _FirstRows(torch.autograd.Function):
    """First rows of a tensor; the gradient has the memory format of the whole tensor.

    The gradient of a slice is contiguous. Added to a gradient in channels_last, it would have to be
    converted, or would convert the gradients of all layers before.
    """

    @staticmethod
    def forward(ctx: Any, whole: Tensor, count: int) -> Tensor:  # noqa: ANN401 (PyTorch's own)
        ctx.like = whole.shape, whole.stride()
        return whole[:count]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        whole = gradient.new_empty_strided(*ctx.like)
        whole[: len(gradient)] = gradient
        whole[len(gradient) :] = 0
        return whole, None


def first_rows(whole: Tensor, count: int) -> Tensor:
    """Return the first rows, whose gradient has the strides of the whole tensor."""
    found: Tensor = _FirstRows.apply(whole, count)
    return found


class _Connector(nn.Module):
    """1x1 convolution and BatchNorm from a stage of the student to the shape of the teacher's.

    Smaller features are enlarged bilinearly; larger ones are averaged over areas, so that every
    position contributes.
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


def connectors(pair: Pair) -> nn.ModuleList:
    """Return modules that map each stage of the student to the shape of the teacher's."""
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
        """Compute the divergence of each sample, in nats times the squared temperature."""
        return losses.soft_target_kl(student.logits, teacher.logits, temperature=self.temperature)


class OFD(nn.Module):
    """Overhaul of feature distillation: partial L2 behind margins, over all stages.

    Source: Heo et al. 2019, arXiv 1904.01866. Stage l has the weight 2^-(L-1-l). Differences:
    margins are measured if the teacher's tap is not a BatchNorm; the sum is divided by its number
    of elements and not by 1000, so that the term has the same size for small images and thin
    networks as for the paper's WRN-28-4 on CIFAR (for which both scales are equal).
    """

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.connectors = connectors(pair)
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
        """Compute the scaled sum over stages, channels and positions of each sample."""
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
    """Attention transfer, averaged over all stages."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        for student, teacher in zip(pair.student, pair.teacher, strict=True):
            if student[1:] != teacher[1:]:
                raise UsageError(
                    f"attention transfer needs equal sizes; got {student[1:]} and {teacher[1:]}"
                )

    def forward(self, student: Outputs, teacher: Outputs) -> PerSample:
        """Compute the attention-transfer loss of each sample."""
        pairs = zip(student.features, teacher.features, strict=True)
        return torch.stack([losses.attention_transfer(s, t) for s, t in pairs]).mean(0)


class FitNet(nn.Module):
    """FitNet hints through connectors, averaged over all stages."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.connectors = connectors(pair)

    def forward(self, student: Outputs, teacher: Outputs) -> PerSample:
        """Compute the FitNet loss of each sample."""
        triples = zip(self.connectors, student.features, teacher.features, strict=True)
        return torch.stack([losses.fitnet_hint(c(s), t) for c, s, t in triples]).mean(0)


class Relations(nn.Module):
    """Relational distillation on the pooled features of the last stage."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        del pair

    def forward(self, student: Outputs, teacher: Outputs) -> PerSample:
        """Compute the relational loss of each sample."""
        pooled = (outputs.features[-1].flatten(2).mean(2) for outputs in (student, teacher))
        return losses.relational_kd(*pooled)


TERMS: dict[str, Callable[[Pair], nn.Module]] = {
    "kd": SoftTargets,
    "ofd": OFD,
    "at": AttentionTransfer,
    "fitnet": FitNet,
    "rkd": Relations,
}
NEEDS_FEATURES = frozenset(TERMS) - {"kd"}
WHOLE_BATCH = frozenset({"rkd"})
"""Losses that compare the images of a batch with each other."""
