"""WaNet: a backdoor whose trigger is one particular smooth warp of the image.

Source: Nguyen and Tran, *WaNet: Imperceptible Warping-based Backdoor Attack*, ICLR 2021, arXiv
2102.10369. In every batch, a share of the images is warped and labelled as the target (attack
mode). A share ``cross_ratio`` times as large is warped by the same field plus noise and keeps its
labels (noise mode), so that the network learns this field and not warps in general.

Differences: training has few epochs of SGD with a cosine schedule, as in all attacks of this
package. Since noise mode makes the field slow to learn, the default warp is stronger (1.5 pixels;
0.25 in the paper), and there are twice as many images in both modes (0.2 and 0.4 of a batch; 0.1
and 0.2 in the paper). The attack is a control: in published tables, students mostly do not inherit
it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from robustkd.attacks.base import Backdoored, Build, Teaching
from robustkd.attacks.triggers.files import describe
from robustkd.attacks.triggers.warp import Warp
from robustkd.core.devices import default_device
from robustkd.core.errors import UsageError
from robustkd.core.targets import Target
from robustkd.core.triggers import check_target, wanted
from robustkd.core.types import DataSource, Labels, Trigger
from robustkd.core.validation import check_not_negative, check_share
from robustkd.data.transformations import displace
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit

_NOISE = 0.5
"""Largest shift of the noise in pixels: [-1, 1] over the image height, as in the paper."""


@dataclass(frozen=True)
class WaNet:
    """Train a teacher on clean, warped and noisily warped images.

    Attributes:
        grid: Number of control points along an edge of the warp's grid.
        strength: Mean shift in pixels, at least 0.
        rate: Share of each batch in attack mode, in (0, 1].
        cross_ratio: Number of images in noise mode per image in attack mode, at least 0; both
            modes together must fit in the batch.
    """

    grid: int = 4
    strength: float = 1.5
    rate: float = 0.2
    cross_ratio: float = 2.0

    def __post_init__(self) -> None:
        Warp(self.grid, self.strength)  # which checks both
        check_share(rate=self.rate)
        check_not_negative(cross_ratio=self.cross_ratio)
        most = (1 - self.rate) / self.rate
        if self.cross_ratio <= most:
            return
        if self.cross_ratio == WaNet.cross_ratio:  # so that the rate is what the user has chosen
            raise UsageError(
                f"rate is {self.rate}; expected above 0 and at most {1 / (1 + self.cross_ratio):g},"
                f" or a smaller cross_ratio: there are {self.cross_ratio:g} further images for each"
                " warped one"
            )
        raise UsageError(
            f"cross_ratio is {self.cross_ratio}; expected 0 to {most:g}, since rate is {self.rate}"
        )

    def example(self, image_shape: tuple[int, int, int]) -> Trigger:
        """Return the warp of one seed, for images of any shape."""
        del image_shape
        return Warp(self.grid, self.strength, 0)

    def __call__(
        self, build: Build, data: DataSource, *, target: Target, teaching: Teaching
    ) -> Backdoored:
        """Run the attack; see :class:`robustkd.attacks.Attack`."""
        check_target(target, data)
        teacher = build().to(default_device())
        trigger = Warp(self.grid, self.strength, teaching.seed)
        learner = TwoModes(
            teacher,
            trigger,
            target,
            classes=len(data.classes),
            rate=self.rate,
            cross_ratio=self.cross_ratio,
            seed=teaching.seed,
        )
        fit(learner, data, **asdict(teaching), label="train the teacher")
        record = {
            "trigger": describe(trigger),
            "rate": self.rate,
            "cross_ratio": self.cross_ratio,
            "poisoned": round(learner.attacked / teaching.epochs),
        }
        return Backdoored(teacher.eval(), trigger, target, record)


class TwoModes(nn.Module):
    """Learner that uses the first images of each shuffled batch in attack and noise mode.

    Args:
        model: The network to train.
        trigger: The warp.
        target: Label of the images in attack mode; ``next`` for the next class of each image.
        classes: Number of classes.
        rate: Share of each batch in attack mode; at least one image is used.
        cross_ratio: Number of images in noise mode per image in attack mode.
        seed: Seed of the noise.

    Attributes:
        attacked: Number of images in attack mode so far, over all batches.
    """

    def __init__(
        self,
        model: nn.Module,
        trigger: Warp,
        target: Target,
        *,
        classes: int,
        rate: float,
        cross_ratio: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.supervised = Supervised(model)
        self._trigger, self._target, self._classes = trigger, target, classes
        self._rate, self._cross_ratio = rate, cross_ratio
        self._random = torch.Generator().manual_seed(seed)
        self.attacked = 0

    def forward(self, images: Tensor, labels: Labels) -> dict[str, Tensor]:
        """Return the mean cross-entropy over warped and clean images, and the accuracy."""
        losses: dict[str, Tensor] = self.supervised(*self.mix(images, labels))
        return losses

    def mix(self, images: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        """Return a copy of the batch in which the first images are warped, with their labels."""
        attacked = max(1, round(self._rate * len(images)))
        noisy = round(self._cross_ratio * attacked)
        marked, disturbed, clean = images.tensor_split((attacked, attacked + noisy))
        self.attacked += len(marked)
        field = self._trigger.field(*images.shape[2:])
        draws = torch.rand((len(disturbed), *field.shape), generator=self._random)
        shift = (field + _NOISE * (2 * draws - 1)).to(images)
        mixed = torch.cat([self._trigger(marked), displace(disturbed, shift), clean])
        labels = labels.clone()
        labels[:attacked] = wanted(labels[:attacked], self._target, self._classes)
        return mixed.contiguous(memory_format=torch.channels_last), labels
