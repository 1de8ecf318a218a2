"""Distillation losses: pure functions of student and teacher outputs, with one value per image.

Every loss takes the student first, returns a value for each image, and leaves weighting and the
mean over the batch to its caller. Half-precision inputs are widened to float32 before they are
squared and summed. Gradients flow into both arguments: read the teacher under ``torch.no_grad``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx

from robustkd.core.errors import UsageError
from robustkd.core.types import Features, Logits, PerSample

LOSSES: Final[dict[str, str]] = {
    "ofd": "partial L2 between stage features before ReLU (Heo et al. 2019)",
    "kd": "KL divergence between softened logits (Hinton et al. 2015)",
    "at": "spatial attention maps of stage features (Zagoruyko & Komodakis 2017)",
    "fitnet": "squared distance between stage features (Romero et al. 2015)",
    "rkd": "distances and angles between pooled last features (Park et al. 2019)",
}
"""Descriptions of the losses by name."""

_ELEMENTS: Final = 2**20
"""Elements of features whose gaps are computed at once."""
_COINCIDENT: Final = 1e-12  # below, embeddings coincide: 1 / distance**3 must fit in float32


def soft_target_kl(student: Logits, teacher: Logits, *, temperature: float) -> PerSample:
    r"""KL divergence between the softened class probabilities of student and teacher.

    .. math:: T^2 \, KL(softmax(teacher / T) \,\|\, softmax(student / T))

    The factor :math:`T^2` makes the size of the gradient nearly independent of the temperature.
    The result is at least 0 (up to rounding), and 0 if the logits are equal up to a constant.

    Args:
        student: Logits, n x classes.
        teacher: Logits of the same shape.
        temperature: T > 0; the paper uses 1 to 20.

    Raises:
        UsageError: If the shapes differ or the temperature is not a positive number.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, arXiv 1503.02531.

    >>> agreeing = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    >>> soft_target_kl(agreeing, agreeing + 3.0, temperature=4.0).tolist()
    [0.0, 0.0]
    """
    if not 0 < temperature < math.inf:
        raise UsageError(f"temperature is {temperature}; expected a positive number, such as 4")
    student, teacher = _alike(student, teacher, "logits", "let both have the same classes")
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True)
    return temperature**2 * divergence.sum(dim=1)


def partial_l2(
    student: Features, teacher: Features, margin: Float[Tensor, " channels"]
) -> PerSample:
    r"""Compute OFD's partial L2 distance, which is 0 where neither network activates.

    With the margin ReLU :math:`T = \max(t, m_c)` of the teacher's feature t in channel c,

    .. math:: \sum_{c, position} d_p(T, s), \quad
        d_p(T, s) = 0 \text{ if } s \le T \le 0, \text{ else } (T - s)^2

    exactly as in the paper: distance and conditions use T, not t. It is also 0 where s = T. The sum
    over channels and positions grows with the resolution. The weights 2^-(L-1-l) of the stages, the
    mean over the batch and the division by 1000 are the caller's.

    Args:
        student: n x channels x ..., before ReLU, after the connector.
        teacher: Features before ReLU of the same shape.
        margin: At most 0 per channel: `margin_from_batchnorm` or `measured_margin`.

    Raises:
        UsageError: If the shapes differ, or the margin does not have one value per channel.

    Source: Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019,
    arXiv 1904.01866.

    >>> teacher = torch.tensor([[[2.0, -0.5, -9.0, -9.0]]])
    >>> student = torch.tensor([[[1.0, -3.0, -3.0, 0.0]]])  # too low, both off, both off, on
    >>> partial_l2(student, teacher, margin=torch.tensor([-1.0])).round(decimals=5)
    tensor([2.])
    """
    student, teacher = _alike(student, teacher, "features", "put a connector after the student")
    if margin.shape != student.shape[1:2]:
        raise UsageError(
            f"margin has shape {tuple(margin.shape)} for features {tuple(student.shape)}; "
            "expected one value per channel, the features' second axis"
        )
    least = margin.view(-1, *[1] * (student.ndim - 2))
    if teacher.requires_grad:
        teacher = torch.maximum(teacher, least)  # for the gradient
    distance: PerSample = _PartialSquares.apply(student, teacher, least)
    return distance


class _PartialSquares(torch.autograd.Function):
    """Sum of the squares of the gaps that count, six times as fast as separate operations.

    Gaps are computed for some images after others, since the student's activations are in memory at
    this time, and the intermediate results of a whole stage would be as large as its features.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
        gap = torch.empty_like(student)
        rows = max(1, _ELEMENTS // max(1, student[:1].numel()))
        pieces = (whole.split(rows) for whole in (gap, student, teacher))
        for part, shown, taught in zip(*pieces, strict=True):
            target = torch.maximum(taught, margin)
            torch.sub(shown, target, out=part)
            # Every gap counts where the target is positive, and only positive ones elsewhere.
            part.clamp_(min=target.clamp_min_(0).mul_(-torch.finfo(target.dtype).max))
        ctx.save_for_backward(gap)
        # Over all axes: flattening would copy channels_last features.
        norms: Tensor = torch.linalg.vector_norm(gap, dim=tuple(range(1, gap.ndim)))
        return norms.square()

    @staticmethod
    def backward(ctx: FunctionCtx, slope: Tensor) -> tuple[Tensor, Tensor | None, None]:
        # Both attributes are documented, but torch's annotations lack them.
        (gap,) = ctx.saved_tensors  # type: ignore[attr-defined]
        student = gap * (2 * slope).view(-1, *[1] * (gap.ndim - 1))
        teacher = -student if ctx.needs_input_grad[1] else None  # type: ignore[attr-defined]
        return student, teacher, None


def margin_from_batchnorm(
    weight: Float[Tensor, " channels"], bias: Float[Tensor, " channels"]
) -> Float[Tensor, " channels"]:
    r"""Mean negative response of each channel, for a BatchNorm with Gaussian output.

    For :math:`x \sim N(b, w^2)` and :math:`a = b / |w|`,

    .. math:: E[x \mid x < 0] = b - |w| \, \phi(a) / \Phi(-a)
        = b - |w| \sqrt{2 / \pi} / erfcx(a / \sqrt 2)

    whose scaled error function does not underflow as :math:`\Phi` does. Beyond a = 1000, where the
    difference cancels, its expansion :math:`-|w| (1/a - 2/a^3)` takes over; the limit for w = 0 is
    min(b, 0). The paper's released code falls back to -3 |w| where :math:`\Phi(-a) \le 0.001`;
    this is the expectation everywhere.

    Args:
        weight: BatchNorm's scale w.
        bias: BatchNorm's shift b.

    Returns:
        At most 0, in the dtype of ``weight`` and without gradient.

    Raises:
        UsageError: If the shapes differ.

    Source: Heo et al. 2019, arXiv 1904.01866, section 3.

    >>> margin_from_batchnorm(torch.tensor([1.0, 0.0]), torch.tensor([0.0, -2.0]))
    tensor([-0.7979, -2.0000])
    """
    _alike(weight, bias, "parameters", "give a BatchNorm's weight and bias", ("weight", "bias"))
    # On the CPU, because some accelerators lack float64; there are few channels.
    shift = bias.detach().cpu().double()
    scale = weight.detach().cpu().double().abs().clamp_min(torch.finfo(torch.float64).tiny)
    a = shift / scale
    exact = shift - scale * math.sqrt(2 / math.pi) / torch.special.erfcx(a / math.sqrt(2))
    far = -scale * (1 / a) * (1 - 2 / a**2)
    return torch.where(a > 1000, far, exact).to(weight)


def measured_margin(batches: Iterable[Float[Tensor, "_ ..."]]) -> Float[Tensor, " channels"]:
    """Mean negative response of each channel, measured on clean images.

    Sum of the negative values over their number, over all images and positions; 0 for a channel
    that is never negative. It serves any architecture, with or without BatchNorm.

    Args:
        batches: Features before ReLU, n x channels x ..., where n may change; read once, in order.

    Returns:
        At most 0, on the device and in the dtype of the last batch (at least float32).

    Raises:
        UsageError: If there is no batch, or a batch has no channel axis.

    Source: Heo et al. 2019, arXiv 1904.01866, section 3.

    >>> measured_margin([torch.tensor([[-1.0, 2.0], [5.0, 3.0]]), torch.tensor([[-3.0, 0.0]])])
    tensor([-2.,  0.])
    """
    found = NegativeMean()
    for batch in batches:
        found.add(batch)
    return found.value()


class NegativeMean:
    """Running mean of the negative values of each channel, for :func:`measured_margin`."""

    def __init__(self) -> None:
        self._total, self._count = torch.zeros(()).double(), torch.zeros(()).double()
        self._last: Tensor | None = None

    @torch.no_grad()
    def add(self, batch: Float[Tensor, "_ ..."]) -> None:
        """Include a batch of features.

        Raises:
            UsageError: If the batch has no channel axis.
        """
        if batch.ndim < 2:
            raise UsageError(f"features have shape {tuple(batch.shape)}; expected n x channels ...")
        widened = _widened(batch)
        axes = [0, *range(2, batch.ndim)]
        self._total = self._total + widened.clamp(max=0).sum(dim=axes).cpu().double()
        self._count = self._count + (widened < 0).sum(dim=axes).cpu()
        self._last = widened[:0]

    def value(self) -> Float[Tensor, " channels"]:
        """Return the means, on the device and in the dtype of the last batch.

        Raises:
            UsageError: If there was no batch.
        """
        if self._last is None:
            raise UsageError("no features to measure a margin on; expected at least one batch")
        return (self._total / self._count.clamp_min(1)).to(self._last)


def attention_transfer(student: Features, teacher: Features) -> PerSample:
    r"""Squared difference between the normalised spatial attention maps of student and teacher.

    .. math:: mean_{position} (Q_s / \|Q_s\|_2 - Q_t / \|Q_t\|_2)^2, \quad Q = \sum_c F_c^2

    The paper states the distance itself, whose gradient is undefined at zero. Its released code
    uses the mean square over positions (with a weight of about 1000), as does this function.

    Args:
        student: n x channels x positions ...
        teacher: Features with the same positions; the number of channels may differ.

    Returns:
        0 (maps agree up to a factor) to 2 / positions.

    Raises:
        UsageError: If the spatial sizes differ or there is no spatial axis.

    Source: Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017,
    arXiv 1612.03928.

    >>> features = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]])
    >>> attention_transfer(features, torch.tensor([[[0.0, 5.0]], [[7.0, 7.0]]]))
    tensor([1., 0.])
    """
    if min(student.ndim, teacher.ndim) < 3 or student.shape[2:] != teacher.shape[2:]:
        raise UsageError(
            f"student features {tuple(student.shape)} and teacher features "
            f"{tuple(teacher.shape)}; expected n x channels x the same spatial size; "
            "pair stages of equal resolution"
        )
    student_map, teacher_map = (
        F.normalize(_widened(features).square().sum(dim=1).flatten(1), dim=1)
        for features in (student, teacher)
    )
    return (student_map - teacher_map).square().mean(dim=1)


def fitnet_hint(student: Features, teacher: Features) -> PerSample:
    r"""Half of the mean squared difference between features.

    .. math:: \frac12 \, mean_{c, position} (s - t)^2

    0 if they agree. The paper takes the sum; the mean lets one weight fit every resolution.

    Args:
        student: n x ..., after the regressor that gives it the teacher's shape.
        teacher: Features of the same shape.

    Raises:
        UsageError: If the shapes differ.

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv 1412.6550.

    >>> fitnet_hint(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]]))
    tensor([1.])
    """
    student, teacher = _alike(student, teacher, "features", "put a connector after the student")
    return (student - teacher).square().flatten(1).mean(dim=1) / 2


def relational_kd(
    student_embedding: Float[Tensor, "n d"],
    teacher_embedding: Float[Tensor, "n e"],
    *,
    distance_weight: float = 25.0,
    angle_weight: float = 50.0,
) -> PerSample:
    r"""Differences of distances and angles between the images of a batch.

    .. math:: w_D \, mean_{j \ne i} h(D^s_{ij}, D^t_{ij})
        + w_A \, mean_{j \ne k; j, k \ne i} h(A^s_{ijk}, A^t_{ijk})

    for image i, with the Huber loss h (delta = 1), distances D divided by their mean over all
    pairs, and the cosine A of the angle at i between j and k. The mean over images is the paper's
    loss as a mean over pairs and triplets of distinct images (released code also counts pairs
    (i, i): a factor (n-1)/n). 0 if the embeddings agree up to scale, rotation and shift, or for
    one image. Coinciding images have distance 0, cosine 0 and no gradient. Memory: n^2 (n + d).

    Args:
        student_embedding: n x d, e.g. pooled last features.
        teacher_embedding: n x e of the same images; the width may differ.
        distance_weight: :math:`w_D`; the paper's ratio to the angles is 1 : 2.
        angle_weight: :math:`w_A`.

    Raises:
        UsageError: If the numbers of images differ.

    Source: Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv 1904.05068.

    >>> triangle = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    >>> relational_kd(triangle, 2 * triangle.flip(1) + 1).tolist()
    [0.0, 0.0, 0.0]
    """
    n = len(student_embedding)
    if n != len(teacher_embedding):
        raise UsageError(
            f"student embedding has {n} rows and teacher embedding {len(teacher_embedding)}; "
            "expected the same images"
        )
    student_distance, student_cosine = _relations(_widened(student_embedding))
    teacher_distance, teacher_cosine = _relations(_widened(teacher_embedding))
    distance = F.smooth_l1_loss(student_distance, teacher_distance, reduction="none").sum(dim=1)
    angle = F.smooth_l1_loss(student_cosine, teacher_cosine, reduction="none").sum(dim=(1, 2))
    pairs, triplets = max(n - 1, 1), max((n - 1) * (n - 2), 1)
    return distance_weight * distance / pairs + angle_weight * angle / triplets


def _relations(
    embedding: Float[Tensor, "n d"],
) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n n"]]:
    """Compute normalised distances and cosines [vertex, j, k]; 0 for an undefined relation."""
    n = len(embedding)
    difference = embedding[None, :, :] - embedding[:, None, :]
    squared = difference.square().sum(dim=2)
    apart = squared > _COINCIDENT**2
    # The inner `where` avoids the infinite derivative at 0 in the backward pass.
    inverse = torch.where(apart, torch.where(apart, squared, 1.0).rsqrt(), 0.0)
    distance = squared * inverse
    mean_distance = distance.sum() / max(n * (n - 1), 1)
    direction = difference * inverse[:, :, None]
    other = 1 - torch.eye(n, dtype=embedding.dtype, device=embedding.device)
    cosine = direction @ direction.transpose(1, 2) * other
    return distance / mean_distance.clamp_min(_COINCIDENT), cosine


def _widened(features: Tensor) -> Tensor:
    """Convert to at least float32, because sums of squares overflow float16."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


def _alike(
    first: Tensor,
    second: Tensor,
    what: str,
    remedy: str,
    names: tuple[str, str] = ("student", "teacher"),
) -> tuple[Tensor, Tensor]:
    """Check that the shapes are equal, and return both tensors widened."""
    if first.shape != second.shape:
        raise UsageError(
            f"{names[0]} {what} have shape {tuple(first.shape)} and {names[1]} {what} "
            f"{tuple(second.shape)}; expected the same shape; {remedy}"
        )
    return _widened(first), _widened(second)
