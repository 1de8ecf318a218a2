r"""Forms of the cleaning that `cleaning.py` compares, beyond those that the package offers.

Each of them is a hypothesis about why the cleaning of arXiv 2406.03409 removes little:

- ``additive``: the masks of the code that its authors released, with the variance of activations;
- :class:`MatchedVariance`: the student's variance follows that of the cleaned teacher, as the
  abstract of the paper may be read;
- :class:`Inversion`: the direction of features that leads to a class, if it is unusually short.

None of them is a method. docs/results/default.md has the figures of the forms that were run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkd.core.method_settings import DetoxSettings
from robustkd.core.methods import METHODS, Method
from robustkd.core.types import Batch, Features, PerSample
from robustkd.data import InMemory
from robustkd.models.features import taps
from robustkd.models.features.stages import taps_of
from robustkd.models.features.variance import variance_ratio, within_class_variance
from robustkd.pipeline.detox_objective import detox_objective
from robustkd.student.pair import Pair
from robustkd.student.terms import TERMS, Outputs, connectors
from robustkd.teacher.defences.batches import training_batches
from robustkd.teacher.defences.detoxification import DetoxObjective, detoxify
from robustkd.teacher.defences.masks import DetoxifiedTeacher, FeatureMask
from robustkd.training.config import Precision
from robustkd.training.inference import accuracy_on

Cleaning: TypeAlias = Callable[
    [nn.Module, InMemory, Precision, int], tuple[nn.Module, dict[str, Any]]
]
"""Function that returns a cleaned teacher and its record, given the teacher and a seed."""
Aim: TypeAlias = Callable[[nn.Module, InMemory, int], DetoxObjective | None]
"""Function that returns the objective of the masks of a teacher."""


@dataclass(frozen=True)
class Form:
    """How the teacher is cleaned, if at all, and how the student learns from it."""

    cleaning: Cleaning | None
    student: Method = METHODS["ofd"]


def masks(
    settings: DetoxSettings | None, aim: Aim | None = None, mask: type[FeatureMask] = FeatureMask
) -> Cleaning:
    """Return the cleaning by masks with an objective."""
    given = asdict(settings or DetoxSettings())

    def clean(
        teacher: nn.Module, source: InMemory, precision: Precision, seed: int
    ) -> tuple[nn.Module, dict[str, Any]]:
        objective = None if aim is None else aim(teacher, source, seed)
        cleaned = detoxify(
            *(teacher, source),
            objective=objective,
            mask=mask,
            precision=precision,
            seed=seed,
            **given,
        )
        record = {
            "teacher ACC": round(cleaned.record.accuracy_after, 4),
            "mean mask": [round(mean, 3) for mean in cleaned.record.mean_mask],
            "lambda": [point.variance_weight for point in cleaned.record.curve],
        }
        return cleaned.teacher, record

    return clean


def perturbed(teacher: nn.Module, source: InMemory, seed: int) -> DetoxObjective | None:
    """Return the objective of the method ``paper-perturbed``."""
    return detox_objective(METHODS["paper-perturbed"], teacher, source, seed=seed)


class Within:
    """Variance within classes, relative to that of the original teacher, mean over positions."""

    def __call__(
        self, teacher: DetoxifiedTeacher, features: Sequence[Tensor], batch: Batch
    ) -> Tensor:
        """Compute the term; see :data:`robustkd.teacher.defences.detoxification.DetoxObjective`."""
        whole = [within_class_variance(stage, batch.labels) for stage in original(teacher, batch)]
        parts = [within_class_variance(stage, batch.labels) for stage in features]
        ratios = [variance_ratio(part, all_of) for part, all_of in zip(parts, whole, strict=True)]
        return torch.stack(ratios).mean()


@torch.no_grad()
def original(teacher: DetoxifiedTeacher, batch: Batch) -> list[Tensor]:
    """Return the features of the teacher without masks."""
    with taps.read(teacher.teacher, teacher.locations) as own:
        teacher.teacher(batch.images)
    return [own[name] for name in teacher.locations]


class AdditiveMask(FeatureMask):
    """``features + mask * pattern``; the pattern starts at the mean of the features."""

    def forward(self, features: Features) -> Features:
        """Apply mask and pattern; the shape is kept."""
        return features + (self.mask * self.pattern).to(features.dtype)[None]


class OfActivations:
    """Variance of the features after ReLU, relative to that of the original teacher.

    An addition does not change the variance of the features themselves.
    """

    def __call__(
        self, teacher: DetoxifiedTeacher, features: Sequence[Tensor], batch: Batch
    ) -> Tensor:
        """Compute the term; see :data:`robustkd.teacher.defences.detoxification.DetoxObjective`."""
        pairs = zip(features, original(teacher, batch), strict=True)
        ratios = [
            variance_ratio(part.relu().var(0), whole.relu().var(0), ratio="stage")
            for part, whole in pairs
        ]
        return torch.stack(ratios).mean()


class MatchedVariance(nn.Module):
    r"""Squared difference of the variances of the student's and the teacher's features.

    .. math:: \frac1L \sum_l \frac{\lVert \mathrm{Var}(C_l(S_l)) - \mathrm{Var}(F'_l) \rVert^2}
        {\lVert \mathrm{Var}(F'_l) \rVert^2}

    with a connector C_l from the student's features S_l to the shape of the teacher's F'_l, and the
    variance of a batch at every position. It is a distillation loss, in addition to OFD.
    """

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.connectors = connectors(pair)

    def forward(self, student: Outputs, teacher: Outputs) -> PerSample:
        """Compute the loss, the same for each sample."""
        parts = []
        for connector, own, theirs in zip(
            self.connectors, student.features, teacher.features, strict=True
        ):
            aim = theirs.float().var(0)
            found = connector(own).float().var(0)
            parts.append((found - aim).square().sum() / aim.square().sum().clamp_min(1e-12))
        return torch.stack(parts).mean().expand(len(student.logits))


TERMS["variance"] = MatchedVariance
MATCHED = replace(METHODS["ofd"], losses={"ofd": 1.0, "variance": 1.0})
"""Ordinary feature distillation with matched variances."""


class Projection(nn.Module):
    """Remove what features have of some directions beyond the mean of clean images.

    Args:
        directions: Orthonormal directions, one in each row, with as many columns as channels.
        means: Mean of each direction's coordinate over clean images.
    """

    def __init__(self, directions: Tensor, means: Tensor) -> None:
        super().__init__()
        self.register_buffer("directions", directions)
        self.register_buffer("means", means)

    def forward(self, features: Features) -> Features:
        """Set the coordinates of the directions to their means at every position."""
        directions, means = self.get_buffer("directions"), self.get_buffer("means")
        along = torch.einsum("kc,nchw->nkhw", directions, features) - means[None, :, None, None]
        return features - torch.einsum("kc,nkhw->nchw", directions, along)


class Inversion:
    r"""Invert each class in the features of each stage, and remove the directions that stand out.

    For every class k, a vector :math:`\delta_k` with one value per channel is added to the features
    at all positions and minimises

    .. math:: L_{ce}(T_{>l}(F_l + \delta_k), k) + 0.01 \lVert \delta_k / \sigma \rVert_2

    on clean images, with the standard deviation :math:`\sigma` of each channel. A class whose norm
    is below the median by more than two standard deviations (1.4826 times the median absolute
    deviation) stands out, as in Neural Cleanse (Wang et al., IEEE S&P 2019), which inverts pixels.
    Of its direction, the part that is orthogonal to the differences between the means of the
    classes is removed from the features, since the task needs the other part. A teacher without
    such a class stays as it is.
    """

    STEPS, BATCH, RATE, WEIGHT, ANOMALY = 200, 128, 0.05, 0.01, 2.0
    LEAST = 0.1
    """Smallest singular value of the differences that counts, relative to the largest."""

    def __call__(
        self, teacher: nn.Module, source: InMemory, precision: Precision, seed: int
    ) -> tuple[nn.Module, dict[str, Any]]:
        """Return the cleaned teacher and its record."""
        del precision
        teacher = teacher.eval().requires_grad_(False)
        # A stage without a direction to remove is kept, since the student learns from every stage.
        masks: dict[str, nn.Module] = {}
        outliers: list[list[int]] = []
        for name in taps_of(teacher, source):
            chosen, projection = self._stage(teacher, source, name, seed)
            outliers.append(chosen)
            masks[name] = projection or nn.Identity()
        cleaned = DetoxifiedTeacher(teacher, masks) if any(outliers) else teacher
        accuracy = accuracy_on(cleaned, source, "validation").value
        return cleaned, {"teacher ACC": round(accuracy, 4), "outliers": outliers}

    def _stage(
        self, teacher: nn.Module, source: InMemory, name: str, seed: int
    ) -> tuple[list[int], Projection | None]:
        """Return the classes that stand out at a stage, and what removes their directions."""
        classes = len(source.classes)
        batches = training_batches(source, self.BATCH, torch.device("cpu"), seed)
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad(), taps.read(teacher, [name]) as features:
            batch = batches()
            teacher(batch.images)
            channels = features[name].transpose(0, 1).flatten(1)
            pooled = features[name].mean((2, 3))
        spread = channels.std(1).clamp_min(1e-6)
        deltas = torch.zeros(classes, len(spread), requires_grad=True)
        optimiser = torch.optim.Adam([deltas], lr=self.RATE)
        for _ in range(self.STEPS):
            images = batches().images
            toward = torch.randint(classes, (len(images),), generator=random)
            added = (deltas * spread)[toward][:, :, None, None]
            with taps.rewrite(teacher, {name: lambda old, added=added: old + added}):
                logits = teacher(images)
            loss = F.cross_entropy(logits, toward) + self.WEIGHT * deltas.norm(dim=1).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        norms = deltas.detach().norm(dim=1).tolist()
        middle = median(norms)
        scale = 1.4826 * median(abs(norm - middle) for norm in norms)
        chosen = [k for k, norm in enumerate(norms) if middle - norm > self.ANOMALY * scale]
        if not chosen:
            return [], None
        means = torch.stack([pooled[batch.labels == k].mean(0) for k in batch.labels.unique()])
        left, sizes, _ = torch.linalg.svd((means - means.mean(0)).T, full_matrices=False)
        natural = left[:, sizes > self.LEAST * sizes[0]]
        found = (deltas.detach() * spread)[chosen].T
        directions = torch.linalg.qr(found - natural @ (natural.T @ found)).Q.T.contiguous()
        return chosen, Projection(directions, (directions @ channels).mean(1).detach())


_PAPER = METHODS["paper"].detox or DetoxSettings()
_PERTURBED = METHODS["paper-perturbed"].detox
_LONG = replace(_PAPER, variance_weight=1.0, raises=3, bisections=2)
"""The former settings of ``paper``, with more weights of the variance term."""
_LONG_PERTURBED = replace(_LONG, cap=1.0)


def _activations(teacher: nn.Module, source: InMemory, seed: int) -> DetoxObjective:
    del teacher, source, seed
    return OfActivations()


def _within(teacher: nn.Module, source: InMemory, seed: int) -> DetoxObjective:
    del teacher, source, seed
    return Within()


def _additive(cap: float) -> Form:
    return Form(masks(replace(_LONG, cap=cap), _activations, AdditiveMask))


FORMS: dict[str, Form] = {
    "paper": Form(masks(_PAPER)),
    "paper, long": Form(masks(_LONG)),
    "cap-1": Form(masks(replace(_LONG, cap=1.0))),
    "within": Form(masks(replace(_LONG, cap=1.0), _within)),
    "additive-0.2": _additive(0.2),
    "additive-0.9": _additive(0.9),
    "paper, matched": Form(masks(_LONG), MATCHED),
    "inversion": Form(Inversion()),
    "perturbed": Form(masks(_PERTURBED, perturbed)),
    "perturbed, long": Form(masks(_LONG_PERTURBED, perturbed)),
    "perturbed-0.2": Form(masks(_LONG, perturbed)),
    "perturbed, matched": Form(masks(_LONG_PERTURBED, perturbed), MATCHED),
    "perturbed, learned": Form(masks(_LONG_PERTURBED, perturbed), METHODS["learned"]),
    "learned": Form(None, METHODS["learned"]),
}
"""Forms by the name under which rows are stored, in the order of the table."""
