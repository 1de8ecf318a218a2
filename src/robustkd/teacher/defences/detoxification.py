r"""Feature-variance detoxification of a teacher.

Source: Chen, Zhao, Zheng, Li, Xiang, Guo, *Robust Knowledge Distillation Based on Feature
Variance Against Backdoored Teacher Model*, Applied Soft Computing 2024, arXiv 2406.03409,
doi 10.1016/j.asoc.2024.111907.

For each stage l with features :math:`F_l` (N x C x H x W, or N x T x C of tokens), a mask
:math:`m_l` in [0, cap] and a pattern :math:`p_l` (both of one image's shape) give the cleaned
features

.. math:: F'_l = (1 - m_l) F_l + m_l p_l,

from which the next stage is computed. With the teacher frozen, masks and patterns minimise

.. math:: L_{ce}(T'(x), y) + \lambda L_f, \qquad
          L_f = \frac1L \sum_l \mathrm{mean}_{c,h,w} \frac{\mathrm{Var}(F'_l)}{\mathrm{Var}(F_l)}

on clean images. The first term keeps what the task needs. The second removes all other variance,
which a trigger depends on. Choices that the paper leaves open, and differences:

- the form is probably not the paper's own. In the code that its authors released, the features of
  some networks are changed by an additive form, :math:`F'_l = F_l + m_l p_l`, where the pattern
  starts at the mean of the features. This is probably the paper's form, and the mixture above
  probably one of its ablations;
- the caps of the paper's runs are 0.05, 0.2 and 0.9. The defaults of :func:`detoxify`, which the
  defence ``detox`` of the registry has as well, are a cap of 1, ``ratio="position"`` and a budget
  of 0.02. The method ``paper`` has a cap of 0.2, ``ratio="stage"`` and a budget of 0.035;
- the ratio is computed at each position of a feature map and then averaged, so that a channel with
  a small variance on clean images has the same weight as others (``ratio="position"``), or once
  over the whole stage (``ratio="stage"``);
- :math:`\mathrm{Var}(F_l)` is that of the original teacher, measured once;
- lambda follows from a budget of clean validation accuracy: it is raised (or lowered) and then
  bisected, and each step starts from the last masks within the budget;
- the teacher stays in eval mode: its BatchNorm statistics do not change.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, Unpack

import torch
from torch import Tensor, nn

from robustkd.core.devices import device_of
from robustkd.core.errors import TrainingError, UsageError
from robustkd.core.method_settings import DetoxOptions, DetoxSettings, Ratio
from robustkd.core.names import check_options
from robustkd.core.progress import track
from robustkd.core.types import Batch, DataSource
from robustkd.core.usual_state import usual_state
from robustkd.core.validation import check_seed
from robustkd.models.features import taps
from robustkd.models.features.collect import features_on
from robustkd.models.features.stages import check_taps, taps_of
from robustkd.models.features.variance import ALIVE, variance_ratio
from robustkd.teacher.defences.base import within
from robustkd.teacher.defences.batches import training_batches, with_predicted_labels
from robustkd.teacher.defences.masks import DetoxifiedTeacher, FeatureMask
from robustkd.training.beginning import (
    check_finite_start,
    check_gradients,
    check_readable,
    first_images,
)
from robustkd.training.config import Precision, check_precision
from robustkd.training.inference import accuracy_on
from robustkd.training.precision import mixed
from robustkd.training.trial import check_classifier

_STATISTICS_BATCHES = 8


DetoxObjective: TypeAlias = Callable[[DetoxifiedTeacher, Sequence[Tensor], Batch], Tensor]
"""Function that computes the term to minimise in addition to the cross-entropy, a scalar.

Its arguments are the teacher with its masks, the cleaned features of a batch in float32, one tensor
per stage, and the batch of clean images, in which predictions of the original teacher stand for
missing labels. Gradients flow to masks and patterns.
"""


@dataclass(frozen=True)
class Point:
    """Result of one lambda.

    Attributes:
        variance_weight: The lambda, at least 0.
        accuracy: Clean validation accuracy, in [0, 1].
        variance_ratio: Ratio of the variance of the cleaned features to that of the original ones.
        within_budget: Whether the accuracy is within the budget.
    """

    variance_weight: float
    accuracy: float
    variance_ratio: float
    within_budget: bool


@dataclass(frozen=True)
class DetoxRecord:
    """Record of a detoxification, the same for every objective.

    Attributes:
        stages: Module paths of the teacher.
        mean_mask: Mean of each stage's mask, in [0, cap].
        variance_ratio: Ratio of the variance of the cleaned features to that of the original ones,
            for each stage, in [0, 1].
        accuracy_before: Clean validation accuracy of the teacher.
        accuracy_after: Clean validation accuracy of the detoxified teacher.
        curve: Results of all lambdas, in the order in which they were tried.
    """

    stages: tuple[str, ...]
    mean_mask: tuple[float, ...]
    variance_ratio: tuple[float, ...]
    accuracy_before: float
    accuracy_after: float
    curve: tuple[Point, ...]


@dataclass(frozen=True)
class Detoxified:
    """A cleaned teacher and the record of its cleaning.

    Attributes:
        teacher: The teacher with its masks, frozen and in eval mode.
        record: What was measured.
    """

    teacher: DetoxifiedTeacher
    record: DetoxRecord


@dataclass(frozen=True)
class _Cleaning:
    """A detoxification in progress."""

    teacher: DetoxifiedTeacher
    variances: list[Tensor]
    ratio: Ratio
    batches: Callable[[], Batch]
    lr: float
    precision: Precision
    objective: DetoxObjective | None = None

    def ratios(self, cleaned: Sequence[Tensor]) -> list[Tensor]:
        """Compute the ratio of cleaned to original variance, one scalar per stage."""
        return [
            variance_ratio(variance, original, ratio=self.ratio)
            for variance, original in zip(cleaned, self.variances, strict=True)
        ]

    def term(self, features: Sequence[Tensor], batch: Batch) -> Tensor:
        """Compute the objective; without one, the mean ratio of the variances."""
        if self.objective is not None:
            with mixed(self.precision, batch.images.device):
                return self.objective(self.teacher, features, batch)
        return torch.stack(self.ratios([stage.var(dim=0) for stage in features])).mean()

    def run(self, variance_weight: float, steps: int, label: str = "cleaning") -> None:
        """Train masks and patterns for a number of steps with one lambda."""
        optimiser = torch.optim.Adam(self.teacher.masks.parameters(), lr=self.lr)
        with (
            taps.read(self.teacher, self.teacher.taps) as features,
            track(label, steps) as update,
        ):
            for _ in range(steps):
                batch = self.batches()
                with mixed(self.precision, batch.images.device):
                    # The masks are applied only in forward passes of the whole network.
                    batch = with_predicted_labels(batch, self.teacher.teacher)
                    logits = self.teacher(batch.images)
                task = nn.functional.cross_entropy(logits.float(), batch.labels)
                term = self.term([features[name].float() for name in self.teacher.taps], batch)
                loss = task + variance_weight * term
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                for mask in self.teacher.feature_masks:
                    mask.project()
                update(loss=float(loss.detach()), term=float(term.detach()))
        optimiser.zero_grad(set_to_none=True)  # what is returned and copied has no gradients
        if not all(torch.isfinite(parameter).all() for parameter in self.teacher.parameters()):
            raise TrainingError(
                f"detoxification diverged at λ {variance_weight:.3g}; try a smaller lr"
            )


@usual_state
def detoxify(
    teacher: nn.Module,
    clean: DataSource,
    *,
    stages: Sequence[str] | None = None,
    objective: DetoxObjective | None = None,
    mask: type[FeatureMask] = FeatureMask,
    precision: Precision = "no",
    seed: int = 0,
    **settings: Unpack[DetoxOptions],
) -> Detoxified:
    """Detoxify a teacher as far as a budget of clean accuracy allows.

    Args:
        teacher: The network; it is not changed.
        clean: Clean images; masks are trained on ``train``, and lambda is chosen on ``validation``,
            which needs labels. For training images without a label, the prediction of the teacher
            is used.
        stages: Module paths to mask, in order. If None, the ``taps`` of the teacher are used, or
            stages are found by probing.
        objective: Term that is minimised in the place of the variance ratio; None for the ratio.
            Its weight is lambda.
        mask: Class of the masks: :class:`robustkd.teacher.defences.masks.FeatureMask` or a class
            that inherits from it, takes the same arguments, and changes the features in another
            form, which must keep them as they are where the mask is zero. A teacher with masks of
            such a class cannot be saved.
        precision: Mixed precision while masks and patterns are learned; variances and accuracy
            are measured in full precision.
        seed: Seed of the order and the augmentation of images, at least 0.
        settings: Fields of :class:`robustkd.core.method_settings.DetoxSettings`, such as ``cap``
            and ``steps``.

    Returns:
        The detoxified teacher, on the teacher's device, and the record. If no lambda stays within
        the budget, all masks are zero and the logits are those of the teacher; the curve in the
        record shows this.

    Raises:
        UsageError: If a number is out of range, a keyword argument is unknown, the teacher does not
            map the images to logits of the classes, or a stage does not exist or does not vary.
        InputError: If images, or logits of the teacher for some of them, are not finite.
        TrainingError: If masks or patterns are no longer finite.

    Example:
        >>> import robustkd
        >>> data = robustkd.load_data("digits", train=100, validation=100)
        >>> spec = robustkd.Spec("wrn-10-1", 10, data.image_shape)
        >>> teacher = robustkd.build(spec, seed=0)
        >>> cleaned = robustkd.detoxify(teacher, data, steps=1, raises=0)
        >>> len(cleaned.record.mean_mask) == len(cleaned.teacher.taps)
        True
    """
    check_options(settings, DetoxOptions.__annotations__)
    given = DetoxSettings(**settings)
    seed = check_seed(seed)
    check_taps(stages=stages)
    check_precision(precision)
    check_classifier(teacher, clean, name="the teacher")
    check_readable(teacher, name="the teacher")
    check_gradients(teacher, name="the teacher")
    if objective is not None and not callable(objective):
        raise UsageError(f"objective is of type {type(objective).__name__}; expected a function")
    if not (isinstance(mask, type) and issubclass(mask, FeatureMask)):
        raise UsageError(f"mask is {mask!r:.60}; expected a class that inherits from FeatureMask")
    check_finite_start(teacher, first_images(clean, device_of(teacher)), data=clean.name)
    batch_size = given.batch_size
    masked, variances = _masked(teacher, clean, stages, partial(mask, cap=given.cap), batch_size)
    batches = training_batches(clean, batch_size, device_of(teacher), seed)
    cleaning = _Cleaning(masked, variances, given.ratio, batches, given.lr, precision, objective)
    before = accuracy_on(teacher, clean, "validation").value

    def measure() -> tuple[float, tuple[float, ...]]:
        _, cleaned = _statistics(masked, clean, masked.taps, batch_size)
        ratios = tuple(float(ratio) for ratio in cleaning.ratios(cleaned))
        return accuracy_on(masked, clean, "validation").value, ratios

    curve = _search(cleaning, measure, given, floor=before - given.accuracy_budget)
    after, ratios = measure()
    record = DetoxRecord(
        stages=masked.locations,
        mean_mask=tuple(float(mask.mask.detach().mean()) for mask in masked.feature_masks),
        variance_ratio=ratios,
        accuracy_before=before,
        accuracy_after=after,
        curve=tuple(curve),
    )
    return Detoxified(masked.requires_grad_(False), record)


def _masked(
    teacher: nn.Module,
    clean: DataSource,
    stages: Sequence[str] | None,
    mask: Callable[[Tensor], FeatureMask],
    batch_size: int,
) -> tuple[DetoxifiedTeacher, list[Tensor]]:
    """Return the teacher with masks of zero, and the variances of its stages (C x H x W).

    Raises:
        UsageError: If a stage does not exist, or its features are constant.
    """
    names = taps_of(teacher, clean, stages)
    means, variances = _statistics(teacher, clean, names, batch_size)
    for variance, name in zip(variances, names, strict=True):
        if not (variance > ALIVE).any():
            raise UsageError(f"the features of {name!r} do not vary on clean images; leave it out")
    masks = {name: mask(mean) for name, mean in zip(names, means, strict=True)}
    return DetoxifiedTeacher(teacher, masks).to(device_of(teacher)), variances


def _search(
    cleaning: _Cleaning,
    measure: Callable[[], tuple[float, tuple[float, ...]]],
    settings: DetoxSettings,
    *,
    floor: float,
) -> list[Point]:
    """Bracket the lambda at which accuracy falls below ``floor``, then bisect on a log scale.

    The masks of the largest lambda within the budget are kept, or masks of zero if there is none.
    """
    masks = cleaning.teacher.masks
    held = copy.deepcopy(masks.state_dict())
    curve: list[Point] = []
    low = high = 0.0

    def attempt(weight: float) -> None:
        nonlocal low, high, held
        cleaning.run(weight, settings.steps, f"cleaning, strength {len(curve) + 1}/{most}")
        accuracy, ratios = measure()
        holds = within(accuracy, floor)
        curve.append(Point(weight, accuracy, sum(ratios) / len(ratios), holds))
        if holds:
            low, held = weight, copy.deepcopy(masks.state_dict())
        else:
            high = weight
            masks.load_state_dict(held)

    growth, most = settings.growth, settings.most_steps // settings.steps
    attempt(settings.variance_weight)
    for _ in range(settings.raises if low else settings.lowerings):
        if low and high:
            break
        attempt(low * growth if low else high / growth)
    for _ in range(settings.bisections if low and high else 0):
        attempt((low * high) ** 0.5)
    if not low:
        for mask in cleaning.teacher.feature_masks:
            nn.init.zeros_(mask.mask)
    return curve


@torch.no_grad()
def _statistics(
    teacher: nn.Module,
    clean: DataSource,
    names: Sequence[str],
    batch_size: int,
) -> tuple[list[Tensor], list[Tensor]]:
    """Compute mean and variance over clean images at every position of every stage."""
    kept = features_on(teacher, names, clean, batch_size=batch_size, batches=_STATISTICS_BATCHES)
    means, variances = [], []
    # One stage after the other, so that only one is in memory twice.
    while kept:
        stage = torch.cat(kept.pop(0))
        means.append(stage.mean(0))
        variances.append(stage.var(0, unbiased=len(stage) > 1))
    return means, variances
