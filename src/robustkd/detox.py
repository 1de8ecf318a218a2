r"""Feature-variance detoxification of a teacher.

Source: Chen, Zhao, Zheng, Li, Xiang, Guo, *Robust Knowledge Distillation Based on Feature
Variance Against Backdoored Teacher Model*, Applied Soft Computing 2024, arXiv 2406.03409,
doi 10.1016/j.asoc.2024.111907.

For each stage l with features :math:`F_l` (N x C x H x W), a mask :math:`m_l` in [0, cap] and a
pattern :math:`p_l` (both C x H x W) give the cleaned features

.. math:: F'_l = (1 - m_l) F_l + m_l p_l,

from which the next stage is computed. With the teacher frozen, masks and patterns minimise

.. math:: L_{ce}(T'(x), y) + \lambda L_f, \qquad
          L_f = \frac1L \sum_l \mathrm{mean}_{c,h,w} \frac{\mathrm{Var}(F'_l)}{\mathrm{Var}(F_l)}

on clean images: the first term keeps what the task needs, the second removes all other variance,
and a trigger lives in that. Where the text leaves a choice, or we differ:

- the ratio is taken at each position of a feature map and then averaged, so that a channel which
  is quiet on clean images counts as much as a loud one (``ratio="position"``), or once over the
  whole stage (``ratio="stage"``);
- :math:`\mathrm{Var}(F_l)` is of the untouched teacher, measured once;
- the user gives a budget of clean validation accuracy; lambda follows from it, by doubling and
  then bisecting, each step starting from the masks of the last one within budget;
- the teacher stays in eval mode: its BatchNorm statistics do not move.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Literal

import torch
from torch import Tensor, nn

from robustkd import taps
from robustkd.errors import TrainingError, UsageError
from robustkd.inference import accuracy_on, device_of
from robustkd.progress import track
from robustkd.training import check_positive
from robustkd.types import Batch, DataSource, Features, Images, Logits

_INITIAL_MASK = 0.02
_STATISTICS_BATCHES = 8
_EPSILON = 1e-6


class FeatureMask(nn.Module):
    """``(1 - mask) * features + mask * pattern``, both C x H x W and broadcast over the batch.

    Args:
        pattern: What masked features become; a copy is learnt further.
        cap: Largest value of the mask, in (0, 1].
    """

    def __init__(self, pattern: Tensor, *, cap: float) -> None:
        super().__init__()
        self.cap = cap
        self.pattern = nn.Parameter(pattern.clone())
        self.mask = nn.Parameter(torch.full_like(pattern, min(_INITIAL_MASK, cap)))

    def forward(self, features: Features) -> Features:
        """Mix the pattern in; the shape is kept."""
        return torch.lerp(features, self.pattern.to(features.dtype), self.mask.to(features.dtype))

    @torch.no_grad()
    def project(self) -> None:
        """Put the mask back into [0, cap] after an optimiser's step."""
        self.mask.clamp_(0.0, self.cap)


class DetoxifiedTeacher(nn.Module):
    """A frozen teacher whose stages pass through feature masks; an ordinary module otherwise.

    Always in eval mode. :attr:`taps` are the paths where its *cleaned* features are read.

    Args:
        teacher: The network; it is copied, so that the original stays as it was.
        masks: For each tapped module path of the teacher, the mask behind it.
    """

    def __init__(self, teacher: nn.Module, masks: dict[str, FeatureMask]) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(teacher).requires_grad_(False)
        self.locations = tuple(masks)
        self.masks = nn.ModuleList(masks.values())
        self.eval()

    @property
    def taps(self) -> tuple[str, ...]:
        """Module paths of the cleaned features, in order of the stages."""
        return tuple(f"masks.{index}" for index in range(len(self.masks)))

    def train(self, mode: bool = True) -> DetoxifiedTeacher:  # noqa: ARG002 (nn.Module's signature)
        """Stay in eval mode, whatever is asked."""
        return super().train(False)

    def forward(self, images: Images) -> Logits:
        """Logits computed from the cleaned features."""
        changes: dict[str, Callable[[Tensor], Tensor]] = dict(
            zip(self.locations, self.masks, strict=True)
        )
        with taps.rewrite(self.teacher, changes):
            logits: Tensor = self.teacher(images)
        return logits


@dataclass(frozen=True)
class Point:
    """One lambda that was tried: clean validation accuracy and variance ratio, as fractions."""

    variance_weight: float
    accuracy: float
    variance_ratio: float
    within_budget: bool


@dataclass(frozen=True)
class DetoxRecord:
    """What detoxification did, without images.

    Attributes:
        stages: Module paths of the teacher.
        mean_mask: Mean of each stage's mask, in [0, cap].
        variance_ratio: Of each stage's cleaned features to the original ones, in [0, 1].
        accuracy_before: Clean validation accuracy of the teacher.
        accuracy_after: Of the detoxified teacher.
        curve: Every lambda that was tried, in order.
    """

    stages: tuple[str, ...]
    mean_mask: tuple[float, ...]
    variance_ratio: tuple[float, ...]
    accuracy_before: float
    accuracy_after: float
    curve: tuple[Point, ...]


@dataclass(frozen=True)
class Detoxified:
    """A cleaned teacher and the record of its cleaning."""

    teacher: DetoxifiedTeacher
    record: DetoxRecord


@dataclass
class _Cleaning:
    """The work in progress: the teacher with its masks, clean statistics and data in order."""

    teacher: DetoxifiedTeacher
    variances: list[Tensor]
    ratio: Literal["position", "stage"]
    batches: Callable[[], Batch]
    lr: float
    last_ratios: list[float] = field(default_factory=list)

    def variance_ratios(self, features: Sequence[Features]) -> list[Tensor]:
        """Cleaned to original variance over the batch, one scalar a stage."""
        ratios = []
        for cleaned, original in zip(features, self.variances, strict=True):
            variance = cleaned.var(dim=0)
            if self.ratio == "stage":
                ratios.append(variance.sum() / original.sum())
            else:
                alive = original > _EPSILON
                ratios.append((variance[alive] / original[alive]).mean())
        return ratios

    def run(self, variance_weight: float, steps: int) -> None:
        """Take optimiser steps on masks and patterns with one lambda."""
        optimiser = torch.optim.Adam(self.teacher.masks.parameters(), lr=self.lr)
        totals = torch.zeros(len(self.variances))
        with (
            taps.read(self.teacher, self.teacher.taps) as features,
            track(f"detoxify, λ {variance_weight:.3g}", steps) as update,
        ):
            for step in range(steps):
                batch = self.batches()
                loss_task = nn.functional.cross_entropy(self.teacher(batch.images), batch.labels)
                ratios = torch.stack(
                    self.variance_ratios([features[name] for name in self.teacher.taps])
                )
                loss = loss_task + variance_weight * ratios.mean()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                for mask in self.teacher.masks:
                    mask.project()  # type: ignore[operator]
                if step >= steps // 2:
                    totals += ratios.detach().cpu()
                update(loss=float(loss.detach()), ratio=float(ratios.detach().mean()))
        self.last_ratios = (totals / (steps - steps // 2)).tolist()
        if not all(torch.isfinite(parameter).all() for parameter in self.teacher.parameters()):
            raise TrainingError(
                f"detoxification diverged at λ {variance_weight:.3g}; try a smaller lr"
            )


def detoxify(
    teacher: nn.Module,
    clean: DataSource,
    *,
    stages: Sequence[str] | None = None,
    cap: float = 1.0,
    ratio: Literal["position", "stage"] = "position",
    accuracy_budget: float = 0.02,
    variance_weight: float = 1.0,
    doublings: int = 6,
    bisections: int = 2,
    steps: int = 60,
    batch_size: int = 128,
    lr: float = 0.05,
    seed: int = 0,
) -> Detoxified:
    """Clean a teacher's features as far as a budget of clean accuracy allows.

    Args:
        teacher: The network; it is not changed.
        clean: Clean images; masks learn on ``train``, lambda is chosen on ``validation``.
        stages: Module paths to mask, in order; found by probing when None.
        cap: Largest value of a mask, in (0, 1].
        ratio: How the variance of a stage is compared, see the module's text.
        accuracy_budget: Share of clean validation accuracy to give at most, in [0, 1).
        variance_weight: Lambda to start from, above 0.
        doublings: Times that lambda may double while the budget holds.
        bisections: Halvings (on a log scale) between the last lambda within the budget and the
            first beyond it.
        steps: Optimiser steps (Adam) a lambda.
        batch_size: Images a step, at least 2.
        lr: Learning rate on masks and patterns.
        seed: Of order and augmentation.

    Returns:
        The detoxified teacher, on the teacher's device, and the record. When no lambda holds the
        budget, masks are those of before: the record's curve shows it.

    Raises:
        UsageError: If a number is out of range or a stage does not exist.
        TrainingError: If masks or patterns stop being finite.
    """
    check_positive(
        cap=cap, variance_weight=variance_weight, steps=steps, batch_size=batch_size - 1, lr=lr
    )
    if cap > 1 or not 0 <= accuracy_budget < 1:
        raise UsageError(
            f"cap is {cap} and accuracy_budget {accuracy_budget}; expected at most 1 and in [0, 1)"
        )
    device = device_of(teacher)
    names = tuple(stages) if stages is not None else _found_stages(teacher, clean)
    means, variances = _statistics(teacher, clean, names, batch_size, device)
    masked = DetoxifiedTeacher(
        teacher,
        {name: FeatureMask(mean, cap=cap) for name, mean in zip(names, means, strict=True)},
    ).to(device)
    batches = _endless(clean, batch_size, device, seed)
    cleaning = _Cleaning(masked, variances, ratio, batches, lr)
    before = float(accuracy_on(teacher, clean, "validation").value)
    curve, ratios = _search(
        cleaning,
        lambda: float(accuracy_on(masked, clean, "validation").value),
        floor=before - accuracy_budget,
        start=variance_weight,
        doublings=doublings,
        bisections=bisections,
        steps=steps,
    )
    record = DetoxRecord(
        stages=names,
        mean_mask=tuple(float(mask.mask.detach().mean()) for mask in masked.masks),  # type: ignore[operator]
        variance_ratio=tuple(ratios),
        accuracy_before=before,
        accuracy_after=float(accuracy_on(masked, clean, "validation").value),
        curve=tuple(curve),
    )
    return Detoxified(masked.requires_grad_(False), record)


def _search(
    cleaning: _Cleaning,
    measure: Callable[[], float],
    *,
    floor: float,
    start: float,
    doublings: int,
    bisections: int,
    steps: int,
) -> tuple[list[Point], list[float]]:
    """Double lambda until accuracy falls below ``floor``, then bisect; keep the last that held."""
    masks = cleaning.teacher.masks
    held, ratios = copy.deepcopy(masks.state_dict()), [1.0] * len(masks)
    curve: list[Point] = []
    low, high = 0.0, 0.0
    # First doubling until one lambda fails, then halving on a log scale between the two.
    phases = chain(repeat("double", 1 + doublings), repeat("bisect", bisections))
    weight = start
    for phase in phases:
        if phase == "double":
            if high:
                continue
            weight = 2 * low if low else start
        else:
            if not (low and high):
                break
            weight = (low * high) ** 0.5
        cleaning.run(weight, steps)
        accuracy = measure()
        holds = accuracy >= floor
        mean_ratio = sum(cleaning.last_ratios) / len(cleaning.last_ratios)
        curve.append(Point(weight, accuracy, mean_ratio, holds))
        if holds:
            low, ratios = weight, cleaning.last_ratios
            held = copy.deepcopy(masks.state_dict())
        else:
            high = weight
            masks.load_state_dict(held)
    return curve, ratios


def _found_stages(teacher: nn.Module, clean: DataSource) -> tuple[str, ...]:
    batch = next(iter(clean.batches("validation", batch_size=4, device=device_of(teacher))))
    return taps.stages(teacher, batch.images)


@torch.no_grad()
def _statistics(
    teacher: nn.Module,
    clean: DataSource,
    names: Sequence[str],
    batch_size: int,
    device: torch.device,
) -> tuple[list[Tensor], list[Tensor]]:
    """Mean and variance over clean images at every position of every stage, each C x H x W."""
    order = torch.Generator().manual_seed(0)
    batches = clean.batches("train", batch_size=batch_size, device=device, shuffle=order)
    kept: list[list[Tensor]] = [[] for _ in names]
    with taps.frozen_modes(teacher), taps.read(teacher, names) as features:
        for batch, _ in zip(batches, range(_STATISTICS_BATCHES), strict=False):
            teacher(batch.images)
            for stage, name in zip(kept, names, strict=True):
                stage.append(features[name])
    stages = [torch.cat(stage) for stage in kept]
    return [stage.mean(0) for stage in stages], [stage.var(0) for stage in stages]


def _endless(
    clean: DataSource, batch_size: int, device: torch.device, seed: int
) -> Callable[[], Batch]:
    """Full training batches without end, shuffled and augmented."""
    order, crops = (torch.Generator().manual_seed(2 * seed + k) for k in (0, 1))
    size = min(batch_size, clean.size("train"))
    passes = (
        clean.batches("train", batch_size=size, device=device, shuffle=order, augment=crops)
        for _ in repeat(None)
    )
    full = (batch for batch in chain.from_iterable(passes) if len(batch.labels) == size)
    return lambda: next(full)
