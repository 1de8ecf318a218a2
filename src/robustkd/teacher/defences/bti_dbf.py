r"""BTI-DBF: trigger inversion by decoupling benign features, and unlearning.

Each round has three steps.

1. A mask m in [0, 1] on the features f of the last layer is trained so that they suffice for the
   task, and the others are useless for it; with the linear classifier g,

   .. math:: \min_m L_{ce}(g(m \odot f(x)), y) - L_{ce}(g((1 - m) \odot f(x)), y)

2. A generator G changes images such that the benign features stay and the others move:

   .. math:: \min_G \|m \odot (f(x) - f(G(x)))\|^2 - \|(1 - m) \odot (f(x) - f(G(x)))\|^2

   From the second round, the changed images must also go to the class that most of the first ones
   went to.
3. The network is trained on clean images, of which some are changed by G and keep their label, and
   features of changed images must stay: :math:`L_{ce}(g(f(x')), y) + \|f(x) - f(x')\|^2`.

Source: Xu, Huang, Li, Qin, Ren, *Towards Reliable and Efficient Backdoor Trigger Inversion via
Decoupling Benign Features*, ICLR 2024, variant U (unlearning); the paper's variant P trains a
purifier of images instead. Settings of the authors' code: 5 rounds with 20 epochs of the mask (Adam
with rate 0.01), 30 of the generator and 30 of the network (Adam), a tenth of each batch changed.
Differences: features are the inputs of the linear classifier, one value per channel, and not maps;
the generator is a small residual network, whose changes are bounded by construction, instead of a
U-Net that is first trained to copy images and then kept near them by a penalty; the benign features
have the same weight as the others; there are fewer epochs and a larger learning rate, since
networks are small.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robustkd.core.errors import UsageError
from robustkd.core.progress import track
from robustkd.core.types import Batch, DataSource, Images
from robustkd.core.validation import check_positive
from robustkd.models.features.taps import frozen_modes
from robustkd.teacher.defences.base import Defended
from robustkd.teacher.defences.head import head_of
from robustkd.teacher.defences.tuning import (
    Cleaning,
    Tuning,
    begin,
    frozen_copy,
    full_batches,
    tune,
)

_TUNING = Tuning(epochs=3, lr=1e-3, momentum=0.0, weight_decay=0.0)
_HIDDEN = 16


@dataclass(frozen=True)
class BTIDBF:
    """Invert a trigger by the features that the task does not need, and unlearn it.

    Attributes:
        rounds: Number of rounds, at least 1.
        mask_epochs: Epochs of the mask in each round, at least 1.
        mask_lr: Learning rate of the mask, above 0.
        generator_epochs: Epochs of the generator in each round, at least 1.
        generator_lr: Learning rate of the generator, above 0.
        bound: Largest change of a pixel by the generator, in (0, 1].
        share: Share of each batch that is changed while the network is trained, in (0, 1].
        tuning: Optimiser and number of epochs of the network in each round.
    """

    rounds: int = 3
    mask_epochs: int = 1
    mask_lr: float = 0.01
    generator_epochs: int = 2
    generator_lr: float = 1e-3
    bound: float = 0.3
    share: float = 0.1
    tuning: Tuning = _TUNING

    def __post_init__(self) -> None:
        check_positive(
            rounds=self.rounds,
            mask_epochs=self.mask_epochs,
            mask_lr=self.mask_lr,
            generator_epochs=self.generator_epochs,
            generator_lr=self.generator_lr,
            bound=self.bound,
            share=self.share,
        )
        if self.bound > 1 or self.share > 1:
            raise UsageError(
                f"bound is {self.bound} and share {self.share}; expected at most 1 of both"
            )

    def __call__(self, network: nn.Module, clean: DataSource, *, seed: int) -> Defended:
        """Clean a copy; see :class:`robustkd.teacher.defences.base.Defence`."""
        work = begin(network, clean, batch_size=self.tuning.batch_size, seed=seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            generator = Generator(clean.image_shape[0], self.bound)
        generator.to(next(network.parameters()).device)
        head_of(work.network, clean)
        targets: list[int] = []
        changed: list[float] = []
        for turn in range(self.rounds):
            scratch = frozen_copy(work.network)
            head = head_of(scratch, clean)
            mask = self._decouple(work, scratch, head)
            target = targets[0] if targets else None
            self._invert(work, scratch, head, mask, generator, target)
            found, share = led_to(scratch, generator, work)
            targets.append(found)
            changed.append(share)
            self._unlearn(work, generator, seed=seed + turn)
        return work.finish(targets=targets, changed=changed)

    def batches(self, images: int) -> int:
        """Return the number of training batches for a number of images."""
        epochs = self.mask_epochs + self.generator_epochs + 1
        inverted = epochs * full_batches(images, self.tuning.batch_size)
        return self.rounds * (inverted + self.tuning.batches(images))

    def _decouple(self, work: Cleaning, network: nn.Module, head: nn.Linear) -> Tensor:
        """Return the mask of the features that the task needs, one value per channel."""
        weights = torch.zeros(head.in_features, device=head.weight.device, requires_grad=True)
        optimiser = torch.optim.Adam([weights], lr=self.mask_lr)
        steps = self.mask_epochs * work.epoch
        with features_of(network, head) as read, track("BTI-DBF, features", steps) as update:
            for _ in range(steps):
                batch = work.batches()
                with torch.no_grad(), frozen_modes(network):
                    features = read(batch.images)
                loss = decoupling(head, features, torch.sigmoid(2 * weights), batch.labels)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                update(loss=float(loss.detach()))
        return torch.sigmoid(2 * weights).detach()

    def _invert(
        self,
        work: Cleaning,
        network: nn.Module,
        head: nn.Linear,
        mask: Tensor,
        generator: Generator,
        target: int | None,
    ) -> None:
        """Train the generator, in place, to move the other features."""
        optimiser = torch.optim.Adam(generator.parameters(), lr=self.generator_lr)
        steps = self.generator_epochs * work.epoch
        with (
            features_of(network, head) as read,
            frozen_modes(network),
            track("BTI-DBF, trigger", steps) as update,
        ):
            for _ in range(steps):
                images = work.batches().images
                with torch.no_grad():
                    plain = read(images)
                moved = read(generator(images))
                gap = (moved - plain).square()
                loss = (mask.square() * gap).mean() - ((1 - mask).square() * gap).mean()
                if target is not None:
                    goal = torch.full((len(images),), target, device=images.device)
                    loss = loss + F.cross_entropy(head(moved), goal)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                update(loss=float(loss.detach()))

    def _unlearn(self, work: Cleaning, generator: Generator, *, seed: int) -> None:
        """Train the network, in place, to ignore what the generator does."""
        head = head_of(work.network, work.clean)

        def gradients(batch: Batch) -> Tensor:
            count = max(1, round(self.share * len(batch.images)))
            with torch.no_grad():
                few = generator(batch.images[:count])
            features = read(torch.cat([batch.images, few]))
            plain, led = features[: len(batch.images)], features[len(batch.images) :]
            kept = torch.cat([led, plain[count:]])
            apart = (led - plain[:count]).square().sum() / plain.numel()
            loss = F.cross_entropy(head(kept), batch.labels) + apart
            loss.backward()
            return loss

        with features_of(work.network, head) as read:
            tune(work, gradients, self.tuning, seed=seed, label="BTI-DBF, unlearning")


class Generator(nn.Module):
    """Network that changes every pixel by at most a bound; images stay in [0, 1].

    Args:
        channels: Channels of the images.
        bound: Largest change, in (0, 1].
    """

    def __init__(self, channels: int, bound: float) -> None:
        super().__init__()
        self.bound = bound
        self.layers = nn.Sequential(
            nn.Conv2d(channels, _HIDDEN, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(_HIDDEN, _HIDDEN, 3, padding=2, dilation=2),
            nn.ReLU(),
            nn.Conv2d(_HIDDEN, channels, 3, padding=4, dilation=4),
        )

    def forward(self, images: Images) -> Images:
        """Change images (N x C x H x W, in [0, 1])."""
        change: Tensor = self.layers(images - 0.5)
        return (images + self.bound * change.tanh()).clamp(0, 1)


class Read:
    """Function from images to the inputs of a network's linear classifier, n x d."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._seen: list[Tensor] = []

    def keep(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Store the inputs of the classifier; a forward pre-hook."""
        self._seen = [inputs[0]]

    def __call__(self, images: Images) -> Float[Tensor, "n d"]:
        """Run the network."""
        self._network(images)
        return self._seen.pop()


@contextmanager
def features_of(network: nn.Module, head: nn.Linear) -> Iterator[Read]:
    """Yield a function that computes the inputs of the classifier; the hook is removed after."""
    read = Read(network)
    hook = head.register_forward_pre_hook(read.keep)
    try:
        yield read
    finally:
        hook.remove()


def decoupling(
    head: nn.Linear, features: Float[Tensor, "n d"], mask: Tensor, labels: Tensor
) -> Tensor:
    """Compute the loss of a mask: that of the task with these features, minus that without them."""
    with_them = F.cross_entropy(head(mask * features), labels)
    return with_them - F.cross_entropy(head((1 - mask) * features), labels)


@torch.no_grad()
def led_to(network: nn.Module, generator: nn.Module, work: Cleaning) -> tuple[int, float]:
    """Return the class that most changed images go to, and the share of images that move."""
    counts: Tensor | None = None
    moved = seen = 0
    with frozen_modes(network):
        for _ in range(work.epoch):
            images = work.batches().images
            before, logits = network(images).argmax(1), network(generator(images))
            after = logits.argmax(1)
            found = torch.bincount(after[after != before], minlength=logits.shape[1])
            counts = found if counts is None else counts + found
            moved += int((after != before).sum())
            seen += len(images)
    if counts is None:
        raise AssertionError("an epoch has at least one batch")
    return int(counts.argmax()), moved / seen
