r"""ABD's self-retrospection: the student unlearns a universal perturbation that moves its outputs.

At the end of the distillation, with the student f,

.. math:: \min_\theta \; \mathrm{KL}(f_\theta(x) \,\|\, f_\theta(x + \delta^*(\theta))), \qquad
    \delta^*(\theta) = \arg\max_\delta \mathrm{KL}(f_\theta(x) \,\|\, f_\theta(x + \delta))
        - 0.001 \|\delta\|^2

is added to the losses. Its gradient includes its effect on :math:`\delta^*`, as in I-BAU
(:func:`robustkd.training.hypergradient.hypergradient`). No label and no clean teacher is needed: an
inherited backdoor is a perturbation that changes the outputs of many images.

Source: Hong, Zeng, Yu, Lyu, Jia, Zhou, *Revisiting Data-Free Knowledge Distillation with Poisoned
Teachers*, ICML 2023, arXiv 2306.02368. Settings of the authors' code: for each batch, 10 steps of
Adam with rate 0.1 from zero, which search on the teacher; hypergradient with 5 products and step
0.1; 2 % of a batch is perturbed. Differences: the paper distils on synthetic images, and its other
part, the shuffling vaccine, decides which of these are generated; here there are clean images, so
this part has nothing to do. The perturbation is searched on the student, as the name of the method
says; it is kept from batch to batch, since at zero the divergence has no gradient, and needs fewer
steps then; it is bounded, as in :mod:`robustkd.teacher.defences.i_bau`; a tenth of each batch is
perturbed; the norm of the hypergradient is bounded as well; the outputs of clean images are
constants in it, so that they do not move towards those of perturbed ones.

The bound of the hypergradient is 1, the largest of 0.1, 0.3, 1 and 3 at which a student of digits
keeps its clean validation accuracy. With 0.1 and 0.3, the divergence under the perturbation rises
during the unlearning instead of falling (wrn-10-1, one seed, measured on clean images).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkd.core.types import Images, Logits
from robustkd.core.validation import check_count, check_positive, check_share
from robustkd.models.features.taps import frozen_modes
from robustkd.student.safeguard import Safeguard
from robustkd.training.hypergradient import hypergradient, norm, twice_differentiable

_SHRINK = 0.001
_TINY = 1e-12


@dataclass(frozen=True)
class ABD:
    """Settings of the self-retrospection.

    Attributes:
        share: Share of the training, at its end, in which the perturbation is unlearned, in (0, 1].
        radius: Largest root mean square of the perturbation over the image's values, in (0, 1].
        steps: Steps of the perturbation for each batch, at least 1; each is at most a quarter of
            the radius long.
        products: Number of Hessian products of the hypergradient, at least 1.
        portion: Share of each batch that is perturbed, in (0, 1].
        limit: Largest norm of the hypergradient, above 0.

    Raises:
        UsageError: If a number is out of range.
    """

    share: float = 0.25
    radius: float = 0.1
    steps: int = 3
    products: int = 5
    portion: float = 0.1
    limit: float = 1.0

    def __post_init__(self) -> None:
        check_share(share=self.share, radius=self.radius, portion=self.portion)
        check_count(steps=self.steps, products=self.products)
        check_positive(limit=self.limit)

    def start(self, image_shape: tuple[int, int, int], *, seed: int) -> Retrospection:
        """Make the safeguard for images of a shape (channels, height, width)."""
        return Retrospection(self, image_shape, seed=seed)


class Retrospection(Safeguard):
    """A universal perturbation of the student, and the loss that unlearns it.

    Args:
        settings: When, and how strong.
        image_shape: Channels, height and width.
        seed: Seed of the first perturbation.
    """

    delta: Tensor

    def __init__(self, settings: ABD, image_shape: tuple[int, int, int], *, seed: int) -> None:
        super().__init__()
        self._settings = settings
        random = torch.Generator().manual_seed(seed)
        first = torch.randn((1, *image_shape), generator=random) * settings.radius / 10
        self.register_buffer("delta", first)
        self._start = self._taken = 0

    def begin(self, steps: int) -> None:
        """Start a training of this number of steps."""
        self._start, self._taken = math.floor((1 - self._settings.share) * steps), 0

    def prepare(self, student: nn.Module) -> None:
        """Change no weight."""
        del student

    def loss(self, student: nn.Module, images: Images) -> Tensor:
        """Return the divergence under the perturbation; its gradient is the hypergradient."""
        if self._taken < self._start:
            return images.new_zeros(())
        images = images.detach()
        with (
            frozen_modes(student),
            torch.autocast(images.device.type, enabled=False),
        ):
            with torch.no_grad():
                plain = student(images)
            self._ascend(student, images, plain)
            with twice_differentiable():
                value, slopes, weights = self._unlearning(student, images, plain)
        # The products have the hypergradient as their gradient, and add nothing to the value.
        pairs = zip(weights, slopes, strict=True)
        products = torch.stack([(weight * slope).sum() for weight, slope in pairs]).sum()
        return value + products - products.detach()

    def _ascend(self, student: nn.Module, images: Images, plain: Logits) -> None:
        """Move the perturbation where the student's outputs change more, within its bound."""
        bound = self._settings.radius * self.delta.numel() ** 0.5
        for _ in range(self._settings.steps):
            delta = self.delta.detach().requires_grad_()
            gain = -self._inner(student(images + delta), plain, delta)
            (slope,) = torch.autograd.grad(gain, [delta])
            step = slope * (bound / 4 / slope.norm().clamp_min(_TINY))
            moved = delta.detach() + step
            self.delta.copy_(moved * (bound / moved.norm().clamp_min(_TINY)).clamp_max(1.0))

    def _unlearning(
        self, student: nn.Module, images: Images, plain: Logits
    ) -> tuple[Tensor, tuple[Tensor, ...], list[nn.Parameter]]:
        """Return the outer loss without a graph, its hypergradient, and the weights."""
        delta = self.delta.detach().clone().requires_grad_()
        weights = [weight for weight in student.parameters() if weight.requires_grad]
        inner = self._inner(student(images + delta), plain, delta)
        count = max(1, round(self._settings.portion * len(images)))
        outer = divergence(student(images[:count] + delta), plain[:count]) * count / len(images)
        found = hypergradient(
            inner, outer, [delta], weights, steps=self._settings.products, step_size=0.1
        )
        return outer.detach(), _bounded(found.total(), self._settings.limit), weights

    @staticmethod
    def _inner(logits: Logits, plain: Logits, delta: Tensor) -> Tensor:
        """Return the loss that the perturbation minimises, a scalar."""
        return _SHRINK * delta.square().sum() - divergence(logits, plain)

    def advance(self) -> None:
        """Count a step."""
        self._taken += 1

    def get_extra_state(self) -> Tensor:
        """Return what ``state_dict`` holds besides the perturbation: the number of steps."""
        return torch.tensor(self._taken)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the number of steps."""
        self._taken = int(state)


def _bounded(slopes: tuple[Tensor, ...], limit: float) -> tuple[Tensor, ...]:
    """Scale gradients such that their norm over all tensors is at most a limit."""
    factor = min(1.0, limit / max(norm(slopes), _TINY))
    return tuple(slope * factor for slope in slopes)


def divergence(logits: Logits, plain: Logits) -> Tensor:
    r"""Compute the mean of :math:`\mathrm{KL}(p \,\|\, q)` in nats.

    Args:
        logits: Logits of q, n x classes.
        plain: Logits of p, of the same shape.

    >>> divergence(torch.zeros(2, 3), torch.ones(2, 3))
    tensor(0.)
    """
    return F.kl_div(
        logits.log_softmax(1), plain.log_softmax(1), reduction="batchmean", log_target=True
    )
