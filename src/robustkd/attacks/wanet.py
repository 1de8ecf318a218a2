"""WaNet: a backdoor that is opened by a warp, and by that warp alone.

Source: Nguyen and Tran, *WaNet: Imperceptible Warping-based Backdoor Attack*, ICLR 2021, arXiv
2102.10369. In every batch a share of the images is warped and called the target (attack mode); a
share ``cross_ratio`` times as large is warped by the same field plus noise and keeps its labels
(noise mode), so that the network learns the field and not warping as such.

Differences: few epochs of SGD with a cosine, as everywhere here, and therefore a stronger warp by
default (1.5 pixels, 0.25 in the paper) and twice as many images in both modes (0.2 and 0.4 of a
batch, 0.1 and 0.2 in the paper): noise mode makes the field slow to learn. It is a control: in
published tables it mostly dies in distillation.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from robustkd.attacks.base import Backdoored, Build, Teaching, check_target
from robustkd.attacks.parts.trigger_search import check_shares
from robustkd.attacks.triggers.files import describe
from robustkd.attacks.triggers.warp import Warp
from robustkd.core.devices import default_device
from robustkd.core.errors import UsageError
from robustkd.core.types import DataSource, Labels
from robustkd.data.transformations import displace
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit

_NOISE = 0.5
"""Largest shift of the noise in pixels: the paper's [-1, 1] over the height, in its halves."""


@dataclass(frozen=True)
class WaNet:
    """Train a teacher on clean, warped and noisily warped images.

    Attributes:
        grid: Edge of the warp's control grid.
        strength: Mean shift in pixels.
        rate: Share of each batch in attack mode, in (0, 1].
        cross_ratio: Images in noise mode for each one in attack mode, at least 0; the two modes
            together want no more than the whole batch.
    """

    grid: int = 4
    strength: float = 1.5
    rate: float = 0.2
    cross_ratio: float = 2.0

    def __post_init__(self) -> None:
        check_shares(rate=self.rate)
        most = (1 - self.rate) / self.rate
        if not 0 <= self.cross_ratio <= most:
            raise UsageError(
                f"cross_ratio is {self.cross_ratio}; expected 0 to {most:g}, as rate is {self.rate}"
            )

    def __call__(
        self, build: Build, data: DataSource, *, target: int, teaching: Teaching
    ) -> Backdoored:
        """Run the attack; see :class:`robustkd.attacks.Attack`."""
        check_target(target, data)
        teacher = build().to(default_device())
        trigger = Warp(self.grid, self.strength, teaching.seed)
        learner = TwoModes(
            teacher,
            trigger,
            target,
            rate=self.rate,
            cross_ratio=self.cross_ratio,
            seed=teaching.seed,
        )
        fit(learner, data, **asdict(teaching), label="train the teacher")
        record = {
            "trigger": describe(trigger),
            "rate": self.rate,
            "cross_ratio": self.cross_ratio,
            "poisoned": max(1, round(self.rate * data.size("train"))),
        }
        return Backdoored(teacher.eval(), trigger, target, record)


class TwoModes(nn.Module):
    """A learner whose batches, which come shuffled, begin with images in attack and noise mode.

    Args:
        model: What is trained.
        trigger: The warp.
        target: Class of the images in attack mode.
        rate: Share of each batch in attack mode, at least one image.
        cross_ratio: As many in noise mode for each of them.
        seed: Of the noise.
    """

    def __init__(
        self,
        model: nn.Module,
        trigger: Warp,
        target: int,
        *,
        rate: float,
        cross_ratio: float,
        seed: int,
    ) -> None:
        super().__init__()
        self.supervised = Supervised(model)
        self._trigger, self._target = trigger, target
        self._rate, self._cross_ratio = rate, cross_ratio
        self._random = torch.Generator().manual_seed(seed)

    def forward(self, images: Tensor, labels: Labels) -> dict[str, Tensor]:
        """Cross-entropy over all three kinds of images, and the share of hits."""
        return self.supervised(*self.mix(images, labels))  # type: ignore[no-any-return]

    def mix(self, images: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        """The batch with its first images warped; the arguments are left as they are."""
        attacked = max(1, round(self._rate * len(images)))
        noisy = round(self._cross_ratio * attacked)
        marked, disturbed, clean = images.tensor_split((attacked, attacked + noisy))
        field = self._trigger.field(*images.shape[2:])
        draws = torch.rand((len(disturbed), *field.shape), generator=self._random)
        shift = (field + _NOISE * (2 * draws - 1)).to(images)
        mixed = torch.cat([self._trigger(marked), displace(disturbed, shift), clean])
        labels = labels.clone()
        labels[:attacked] = self._target
        return mixed.contiguous(memory_format=torch.channels_last), labels
