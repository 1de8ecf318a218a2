r"""BTI-DBF: trigger inversion by decoupling benign features, and unlearning.

Each round has three steps.

1. A mask m in [0, 1] on the last features f, maps before the pooling, is trained so that they
   suffice for the task, and the others are useless for it; g pools and classifies,

   .. math:: \min_m L_{ce}(g(m \odot f(x)), y) - L_{ce}(g((1 - m) \odot f(x)), y)

2. A generator G changes images such that the benign features stay and the others move:

   .. math:: \min_G \; 0.01 \, \frac{\|m \odot (f(x) - f(G(x)))\|^2}{\|m\|^2}
       - \frac{\|(1 - m) \odot (f(x) - f(G(x)))\|^2}{\|1 - m\|^2}

   Once most of the images that change class go to the same class, this class is the target, and in
   the following rounds the changed images must also go there.
3. The network is trained on clean images, of which some are changed by G and keep their label, and
   features of changed images must stay: :math:`L_{ce}(g(f(x')), y) + \|f(x) - f(x')\|^2`.

Source: Xu, Huang, Li, Qin, Ren, *Towards Reliable and Efficient Backdoor Trigger Inversion via
Decoupling Benign Features*, ICLR 2024, variant U (unlearning); the paper's variant P trains a
purifier of images instead. Settings of the authors' code: 400 steps of the mask (Adam with rate
0.01; 20 epochs of 2,500 images) and 600 of the generator in each round, a weight of 0.01 on the
benign term of the generator, a tenth of each batch changed, features before global average pooling.
Differences:

- The two terms of the generator's loss are means over the benign and over the other features,
  weighted by the squared masks. The authors take means over all features. In a small network, only
  1 to 2 % of the features are not benign, and the benign term then keeps the generator at the
  identity.
- The generator is a small U-Net whose output is added to the image. The authors first train a
  U-Net to copy images. Its change is bounded by construction, to a root mean square of 0.1, and not
  by a penalty. The authors' bound, a mean square of 0.3 of normalised images, is 0.11 on CIFAR-10.
- The authors take the class that most changed images have as the target. Here there is a target
  only if it is clear (:func:`clear_target`); otherwise the next round searches without one again.
- There are 3 rounds instead of 5, and 10 epochs of the network with rate 0.001 instead of 30 with
  0.0001, since networks are small. With 3 epochs, networks of digits lost up to 2.5 points of
  clean validation accuracy (three networks, one seed).

Features of a network without global average pooling are the inputs of its classifier.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkd.core.devices import device_of
from robustkd.core.progress import track
from robustkd.core.types import Batch, DataSource, Features, Labels
from robustkd.core.validation import check_count, check_not_negative, check_rates, check_share
from robustkd.models.features.taps import frozen_modes
from robustkd.teacher.defences.base import ONCE, Defended
from robustkd.teacher.defences.ending import Ending, ending_of
from robustkd.teacher.defences.generator import Generator
from robustkd.teacher.defences.tuning import Cleaning, Tuning, begin, full_batches, tune
from robustkd.training.inference import frozen_copy

_TUNING = Tuning(epochs=10, lr=1e-3, momentum=0.0, weight_decay=0.0)
_LEAST_MOVED = 0.1
"""Smallest share of the images that must change class if there is to be a target."""
_LEAST_TOGETHER = 0.5
"""Share of these that must go to the same class, exceeded."""
_TINY = 1e-12


@dataclass(frozen=True)
class BTIDBF:
    """Invert a trigger by the features that the task does not need, and unlearn it.

    Attributes:
        rounds: Number of rounds, at least 1.
        mask_steps: Steps of the mask in each round, at least 1.
        mask_lr: Learning rate of the mask, above 0.
        generator_steps: Steps of the generator in each round, at least 1.
        generator_lr: Learning rate of the generator, above 0.
        benign: Weight of the benign features in the loss of the generator, at least 0.
        radius: Largest root mean square of the generator's change over an image's values, in
            (0, 1]; that of :class:`robustkd.teacher.defences.i_bau.IBAU`.
        share: Share of each batch that is changed while the network is trained, in (0, 1].
        tuning: Optimiser and number of epochs of the network in each round.
    """

    rounds: int = field(default=3, metadata=ONCE)
    mask_steps: int = field(default=400, metadata=ONCE)
    mask_lr: float = 0.01
    generator_steps: int = field(default=600, metadata=ONCE)
    generator_lr: float = 1e-3
    benign: float = 0.01
    radius: float = 0.1
    share: float = 0.1
    tuning: Tuning = _TUNING

    def __post_init__(self) -> None:
        check_count(
            rounds=self.rounds,
            mask_steps=self.mask_steps,
            generator_steps=self.generator_steps,
        )
        check_rates(mask_lr=self.mask_lr, generator_lr=self.generator_lr)
        check_not_negative(benign=self.benign)
        check_share(radius=self.radius, share=self.share)

    def __call__(self, network: nn.Module, clean: DataSource, *, seed: int) -> Defended:
        """Clean a copy; see :class:`robustkd.teacher.defences.base.Defence`.

        The record has, for each round, the ``targets`` (None where no class was clear), the share
        of images that the generator ``moved`` to another class, and the share of these that went to
        the most frequent class (``together``).
        """
        work = begin(network, clean, batch_size=self.tuning.batch_size, seed=seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(work.seed)
            generator = Generator(clean.image_shape[0], self.radius)
        generator.to(device_of(network))
        targets: list[int | None] = []
        moves: list[Moves] = []
        for turn in range(self.rounds):
            ending = ending_of(frozen_copy(work.network), clean)
            mask = self._decouple(work, ending)
            target = targets[-1] if targets else None
            self._invert(work, ending, mask, generator, target)
            found = count_moves(ending.network, generator, work)
            moves.append(found)
            targets.append(clear_target(found) if target is None else target)
            self._unlearn(work, generator, seed=work.seed + turn)
        return work.finish(
            targets=targets,
            moved=[found.share for found in moves],
            together=[found.together for found in moves],
        )

    def batches(self, images: int) -> int:
        """Return the number of training batches for a number of images."""
        inverted = self.mask_steps + self.generator_steps
        counted = full_batches(images, self.tuning.batch_size)
        return self.rounds * (inverted + counted + self.tuning.batches(images))

    def _decouple(self, work: Cleaning, ending: Ending) -> Tensor:
        """Return the mask of the features that the task needs, one value per feature."""
        weights: Tensor | None = None
        with ending.reader() as read, track("BTI-DBF, features", self.mask_steps) as update:
            for _ in range(self.mask_steps):
                batch = work.batches()
                with torch.no_grad(), frozen_modes(ending.network):
                    features = read(batch.images)
                if weights is None:
                    weights = torch.zeros_like(features[0]).requires_grad_()
                    optimiser = torch.optim.Adam([weights], lr=self.mask_lr)
                loss = decoupling(ending, features, torch.sigmoid(2 * weights), batch.labels)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                update(loss=float(loss.detach()))
        if weights is None:
            raise AssertionError("mask_steps is at least 1")
        return torch.sigmoid(2 * weights).detach()

    def _invert(
        self,
        work: Cleaning,
        ending: Ending,
        mask: Tensor,
        generator: Generator,
        target: int | None,
    ) -> None:
        """Train the generator, in place, to move the other features."""
        optimiser = torch.optim.Adam(generator.parameters(), lr=self.generator_lr)
        with (
            ending.reader() as read,
            frozen_modes(ending.network),
            track("BTI-DBF, trigger", self.generator_steps) as update,
        ):
            for _ in range(self.generator_steps):
                images = work.batches().images
                with torch.no_grad():
                    plain = read(images)
                led = read(generator(images))
                loss = self.benign * mean_gap(plain, led, mask) - mean_gap(plain, led, 1 - mask)
                if target is not None:
                    goal = torch.full((len(images),), target, device=images.device)
                    loss = loss + F.cross_entropy(ending.logits(led), goal)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                update(loss=float(loss.detach()))

    def _unlearn(self, work: Cleaning, generator: Generator, *, seed: int) -> None:
        """Train the network, in place, to ignore what the generator does."""
        ending = ending_of(work.network, work.clean)

        def gradients(batch: Batch) -> Tensor:
            count = max(1, round(self.share * len(batch.images)))
            with torch.no_grad():
                few = generator(batch.images[:count])
            features = read(torch.cat([batch.images, few]))
            plain, led = features[: len(batch.images)], features[len(batch.images) :]
            kept = torch.cat([led, plain[count:]])
            apart = (led - plain[:count]).square().sum() / plain.numel()
            loss = F.cross_entropy(ending.logits(kept), batch.labels) + apart
            loss.backward()
            return loss

        with ending.reader() as read:
            tune(work, gradients, self.tuning, seed=seed, label="BTI-DBF, unlearning")


def decoupling(ending: Ending, features: Features, mask: Tensor, labels: Labels) -> Tensor:
    """Compute the loss of a mask: that of the task with these features, minus that without them."""
    with_them = F.cross_entropy(ending.logits(mask * features), labels)
    return with_them - F.cross_entropy(ending.logits((1 - mask) * features), labels)


def mean_gap(one: Features, other: Features, mask: Tensor) -> Tensor:
    """Compute the mean squared difference of features, weighted by the squares of a mask.

    >>> one, other = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 1.0]])
    >>> mean_gap(one, other, torch.tensor([0.5, 0.0]))
    tensor(9.)
    """
    weights = mask.square()
    gaps = weights * (one - other).square()
    return gaps.mean() / weights.mean().clamp_min(_TINY)


class Moves(NamedTuple):
    """Where changed images go.

    Attributes:
        counts: Number of images that go to each class from another one, as floats.
        seen: Number of all images.
    """

    counts: Tensor
    seen: int

    @property
    def share(self) -> float:
        """Share of the images that change class, in [0, 1]."""
        return float(self.counts.sum()) / self.seen

    @property
    def together(self) -> float:
        """Share of these that go to the most frequent class, in [0, 1]; 0 if there are none."""
        return float(self.counts.max() / self.counts.sum().clamp_min(1))


def clear_target(moves: Moves) -> int | None:
    """Return the class that attracts changed images, or None if there is no clear one.

    At least a tenth of all images must change class, and more than half of these must go to the
    same one.

    >>> clear_target(Moves(torch.tensor([1.0, 6.0, 3.0]), seen=50))
    1
    >>> clear_target(Moves(torch.tensor([0.0, 5.0, 5.0]), seen=50)) is None
    True
    """
    if moves.share < _LEAST_MOVED or moves.together <= _LEAST_TOGETHER:
        return None
    return int(moves.counts.argmax())


@torch.no_grad()
def count_moves(network: nn.Module, generator: nn.Module, work: Cleaning) -> Moves:
    """Count the training images of an epoch that go to another class when they are changed."""
    pairs: list[tuple[Tensor, Tensor]] = []
    with frozen_modes(network):
        for _ in range(work.epoch):
            images = work.batches().images
            pairs.append((network(images), network(generator(images))))
    before, after = (torch.cat(logits) for logits in zip(*pairs, strict=True))
    found = after.argmax(1)
    counts = torch.bincount(found[found != before.argmax(1)], minlength=after.shape[1])
    return Moves(counts.float().cpu(), len(found))
