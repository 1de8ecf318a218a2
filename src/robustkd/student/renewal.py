r"""BCU: weights are partly re-initialised, and learned again from the teacher's outputs.

A random share p of the weights of each layer is replaced by fresh ones. The share grows with the
depth, since a backdoor is encoded mostly in late layers:

.. math:: p_i = p_1 \left( \frac{p_n}{p_1} \right)^{(i - 1) / (n - 1)}, \qquad i = 1, ..., n

for the n convolutions in their order; the classifier has a share of its own.

Source: Pang, Sun, Ling, Chen, *Backdoor Cleansing with Unlabeled Data*, CVPR 2023, arXiv
2211.12044. Settings of the authors' code for ResNet-18: shares 0.01, 0.01, 0.03, 0.09 and 0.27 for
stem and stages, 0.1 for the classifier; soft targets alone, with a temperature that grows from 1 to
4; BatchNorm is kept. The code also finds images that the teacher classifies with a probability of
at least 0.99, for a loss on its predictions, but this loss is not part of the total. Differences:
the paper starts from a copy of the teacher. Here, the student has another architecture, so the
first part of the training, which makes a student that has learned from the teacher, stands for the
copy; the weights are renewed after it, and the rest of the training is the paper's distillation.
Labels are used as in any other method, and the temperature is constant. The momentum of the
optimiser is kept.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from robustkd.core.errors import UsageError
from robustkd.core.types import Images
from robustkd.core.validation import check_share
from robustkd.models.features.stored import check_stored
from robustkd.student.safeguard import Safeguard

_APART = 2**20
"""Added to the seed of fresh weights, so that they are not the first weights of the student."""


@dataclass(frozen=True)
class BCU:
    """Settings of the re-initialisation.

    Attributes:
        at: Share of the training after which weights are renewed, in (0, 1).
        first: Share of the weights of the first convolution that is renewed, in (0, 1].
        last: Share of the last convolution, in (0, 1].
        head: Share of linear layers, in (0, 1].

    Raises:
        UsageError: If a number is out of range.
    """

    at: float = 0.5
    first: float = 0.01
    last: float = 0.27
    head: float = 0.1

    def __post_init__(self) -> None:
        check_share(one=False, at=self.at)
        check_share(first=self.first, last=self.last, head=self.head)

    def start(self, image_shape: tuple[int, int, int], *, seed: int) -> Renewal:
        """Make the safeguard; it does not depend on the shape of the images."""
        del image_shape
        return Renewal(self, seed=seed)


class Renewal(Safeguard):
    """Re-initialisation of a share of the student's weights, once in the training.

    Args:
        settings: When, and how many weights.
        seed: Seed of the choice of weights and of their new values.
    """

    def __init__(self, settings: BCU, *, seed: int) -> None:
        super().__init__()
        self._settings, self._seed = settings, seed
        self._when = self._taken = 0
        self._done = False

    def begin(self, steps: int) -> None:
        """Start a training of this number of steps.

        Raises:
            UsageError: If there is a single step, so that none would follow the renewal.
        """
        if steps < 2:
            raise UsageError("the training has one step; bcu needs at least two: train for longer")
        self._when = min(steps - 1, max(1, math.ceil(self._settings.at * steps)))
        self._taken, self._done = 0, False

    def prepare(self, student: nn.Module) -> None:
        """Renew the weights when the share of the training is over.

        Raises:
            UsageError: In the first step, if weights are computed from other tensors.
        """
        if self._taken == 0:
            check_stored(student, _renewed(student), who="bcu")
        if self._taken == self._when and not self._done:
            renew(student, self._settings, seed=self._seed)
            self._done = True

    def loss(self, student: nn.Module, images: Images) -> None:
        """Add nothing to the loss."""
        del student, images

    def advance(self) -> None:
        """Count a step."""
        self._taken += 1

    def get_extra_state(self) -> Tensor:
        """Return what ``state_dict`` holds: the number of steps, and whether weights are new."""
        return torch.tensor([self._taken, int(self._done)])

    def set_extra_state(self, state: Tensor) -> None:
        """Restore what :meth:`get_extra_state` returned."""
        self._taken, done = map(int, state)
        self._done = bool(done)


@torch.no_grad()
def renew(network: nn.Module, settings: BCU, *, seed: int) -> None:
    """Replace random weights of convolutions and linear layers by fresh ones, in place.

    Fresh weights have PyTorch's default initialisation; BatchNorm and other layers are kept.

    Args:
        network: The network.
        settings: Shares by depth.
        seed: Seed of the choice of weights and of their new values.
    """
    layers = _renewed(network)
    total = sum(isinstance(layer, _ConvNd) for layer in layers)
    chosen = torch.Generator().manual_seed(seed)
    place = 0
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed + _APART)
        for layer in layers:
            share = settings.head
            if isinstance(layer, _ConvNd):
                share = share_of(place, total, settings)
                place += 1
            fresh = copy.deepcopy(layer).cpu()
            fresh.reset_parameters()
            for old, new in zip(layer.parameters(), fresh.parameters(), strict=True):
                where = torch.rand(new.shape, generator=chosen) < share
                old.copy_(torch.where(where.to(old.device), new.to(old.device), old))


def _renewed(network: nn.Module) -> list[_ConvNd | nn.Linear]:
    """Return the layers whose weights are renewed."""
    return [module for module in network.modules() if isinstance(module, _ConvNd | nn.Linear)]


def share_of(place: int, total: int, settings: BCU) -> float:
    """Return the share of weights of a convolution that is renewed, in (0, 1].

    Args:
        place: Number of the convolution in its order, from 0.
        total: Number of convolutions.
        settings: Shares of the first and of the last one.

    >>> [round(share_of(place, 4, BCU()), 2) for place in range(4)]
    [0.01, 0.03, 0.09, 0.27]
    """
    depth = place / (total - 1) if total > 1 else 1.0
    return float(settings.first * (settings.last / settings.first) ** depth)
