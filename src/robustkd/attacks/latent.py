r"""Latent backdoor: triggered images have the features of the target class.

Source: Yao, Li, Zheng, Zhao, *Latent Backdoor Attacks on Deep Neural Networks*, CCS 2019, doi
10.1145/3319535.3354209. With the features f of the last stage and their mean c over the clean
images of the target class t, on a clean teacher the trigger A minimises

.. math:: \mathrm{MSE}(f(A(x)), c)

and the teacher is then trained on clean and triggered images with

.. math:: \mathrm{CE}(T(x), y) + \mathrm{CE}(T(A(x)), t) + \lambda\, \mathrm{MSE}(f(A(x)), c),
    \quad \lambda = 0.5

so that a student that imitates the features inherits the backdoor.

Differences: this implementation is written from the description alone.

- The mean c is always that of the clean teacher.
- No layer is replaced or frozen, since the teacher is distilled and not transferred.
- The cross-entropy is the mean over clean and triggered images together, and only a share of each
  batch is triggered.
- The MSE is divided by its value on clean images of other classes, so that the weight of 0.5 means
  the same for any network.
- The mask is learned as well, over the whole image and within a cap. With ``shape="square"`` it is
  the opaque square of the paper, which is placed in the corner here.

The authors' public code differs from their formula: it has no cross-entropy of triggered images,
triggers all images, replaces c by the features of one random image of the target class at a late
dense layer, and gives their distance a weight of 0.05.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from robustkd.attacks.base import Backdoored, Build, Teaching, check_target_shown
from robustkd.attacks.parts.steps import implant, success, train_teacher, with_victims
from robustkd.attacks.parts.trigger_search import BoxedTensor, optimise_planes, sample
from robustkd.attacks.triggers.patterns import MaskedPattern
from robustkd.core.devices import device_of
from robustkd.core.errors import UsageError
from robustkd.core.first_batch import first_batch
from robustkd.core.targets import Target
from robustkd.core.types import DataSource, Features, Labels, Trigger
from robustkd.core.validation import (
    check_count,
    check_not_negative,
    check_positive,
    check_rates,
    check_share,
)
from robustkd.models.features import taps
from robustkd.models.features.stages import stages
from robustkd.training.learners import hit_rate

SHAPES = ("whole", "square")
_SQUARE = 0.2
"""Edge of the square as a share of the image's edge: 4 % of the area, as in the paper."""


@dataclass(frozen=True)
class Latent:
    """Train a clean teacher, learn a trigger with the target's features, then implant it.

    Attributes:
        shape: Shape of the trigger: ``whole`` for a learned mask over the whole image, ``square``
            for an opaque square in the lower right corner.
        cap: Largest value of the learned mask, in (0, 1]; the square is always opaque.
        trigger_steps: Optimiser steps (Adam) on the trigger.
        trigger_lr: Learning rate of these steps, above 0.
        rate: Share of each batch that gets a triggered copy, in (0, 1].
        weight: Weight of the distance between features, at least 0.
        implant_share: Epochs of the second training, as a share of the epochs of the first one.
        implant_lr: Initial learning rate of the second training, above 0.
    """

    shape: str = "whole"
    cap: float = 0.2
    trigger_steps: int = 200
    trigger_lr: float = 0.05
    rate: float = 0.1
    weight: float = 0.5
    implant_share: float = 0.5
    implant_lr: float = 0.02

    def __post_init__(self) -> None:
        check_share(cap=self.cap, rate=self.rate)
        check_positive(implant_share=self.implant_share)
        check_rates(trigger_lr=self.trigger_lr, implant_lr=self.implant_lr)
        check_count(trigger_steps=self.trigger_steps)
        check_not_negative(weight=self.weight)
        if self.shape not in SHAPES:
            raise UsageError(f"shape is {self.shape!r}; expected {' or '.join(SHAPES)}")

    def __call__(
        self, build: Build, data: DataSource, *, target: Target, teaching: Teaching
    ) -> Backdoored:
        """Run the attack; see :class:`robustkd.attacks.Attack`."""
        target = check_target_shown(target, data)
        teacher = train_teacher(build, data, teaching)
        goal = Goal(teacher, data, target)
        trigger = learn_trigger(
            teacher,
            data,
            goal,
            shape=self.shape,
            cap=self.cap,
            steps=self.trigger_steps,
            lr=self.trigger_lr,
            seed=teaching.seed,
        )
        before = success(teacher, data, trigger, target)
        learner = _Implant(teacher, goal, trigger, rate=self.rate, weight=self.weight)
        how = teaching.again(self.implant_share * teaching.epochs, self.implant_lr, turn=1)
        implant(learner, data, how)
        record = {
            "shape": self.shape,
            "mean_mask": float(trigger.mask.mean()),
            "success_before": before,
            "rate": self.rate,
            "weight": self.weight,
            "poisoned": round(learner.poisoned / how.epochs),
        }
        return Backdoored(teacher.eval(), trigger, target, record)


class Goal(nn.Module):
    """Mean features of the target class in a teacher, and the distance to them.

    Args:
        teacher: The clean teacher.
        data: Clean images.
        target: The target class.

    Attributes:
        tap: Module path of the teacher's last stage.
        target: The target class.
        mean: Mean features of the target class at this stage, without a batch axis.
        spread: Mean squared distance of the other classes' features from ``mean``.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, teacher: nn.Module, data: DataSource, target: int) -> None:
        super().__init__()
        device = device_of(teacher)
        examples = first_batch(data, "train", batch_size=4, device=device).images
        self.tap = stages(teacher, examples)[-1]
        self.target = target

        def each() -> Iterator[tuple[Features, Bool[Tensor, " batch"]]]:
            for batch in data.batches("train", batch_size=256, device=device):
                teacher(batch.images)
                yield features[self.tap].float(), batch.labels == target

        with (
            torch.no_grad(),
            taps.frozen_modes(teacher),
            taps.read(teacher, [self.tap]) as features,
        ):
            # Two passes over the data, since the features of all images may not fit in memory.
            sums = [(seen[mine].sum(0), mine.sum()) for seen, mine in each()]
            total, count = (torch.stack(part).sum(0) for part in zip(*sums, strict=True))
            self.register_buffer("mean", total / count)
            squares = [
                ((seen[~mine] - self.mean).square().sum(), (~mine).sum() * self.mean.numel())
                for seen, mine in each()
            ]
            total, count = (torch.stack(part).sum() for part in zip(*squares, strict=True))
            self.register_buffer("spread", total / count)

    def forward(self, features: Features) -> Tensor:
        """Mean squared distance from ``mean``, divided by ``spread``."""
        return (features - self.mean).square().mean() / self.spread


def learn_trigger(
    teacher: nn.Module,
    data: DataSource,
    goal: Goal,
    *,
    shape: str,
    cap: float,
    steps: int,
    lr: float,
    seed: int,
) -> MaskedPattern:
    """Optimise the pattern, and the mask if it covers the whole image, towards the goal."""
    device = device_of(teacher)
    random = torch.Generator().manual_seed(seed)
    pattern = torch.rand(data.image_shape, generator=random)
    images = sample(data, device, random).images
    planes = [BoxedTensor(pattern, 0, 1)]
    square = _square(data.image_shape)
    if shape == "whole":
        planes.append(BoxedTensor(torch.full(data.image_shape, cap), 0, cap))
    with taps.read(teacher, [goal.tap]) as features:

        def loss(images: Tensor, pattern: Tensor, *mask: Tensor) -> Tensor:
            teacher(torch.lerp(images, pattern, mask[0] if mask else square.to(images)))
            distance: Tensor = goal(features[goal.tap])
            return distance

        pattern, *mask = optimise_planes(
            teacher, images, planes, loss, steps=steps, lr=lr, random=random
        )
    return MaskedPattern(mask[0] if mask else square, pattern)


def _square(shape: tuple[int, int, int]) -> Tensor:
    mask = torch.zeros(shape)
    edge = max(1, round(_SQUARE * min(shape[1:])))
    mask[:, -edge:, -edge:] = 1
    return mask


class _Implant(nn.Module):
    """Learner with cross-entropy on all images and the feature distance on triggered images.

    Attributes:
        poisoned: Number of triggered images so far, over all batches.
    """

    def __init__(
        self, teacher: nn.Module, goal: Goal, trigger: Trigger, *, rate: float, weight: float
    ) -> None:
        super().__init__()
        self.teacher, self.goal = teacher, goal
        self._trigger, self._rate, self._weight = trigger, rate, weight
        self.poisoned = 0

    def forward(self, images: Tensor, labels: Labels) -> dict[str, Tensor]:
        """Return the loss, the feature distance, and the accuracy on clean and triggered images."""
        everything, wanted = with_victims(
            images, labels, self._trigger, rate=self._rate, target=self.goal.target
        )
        self.poisoned += len(everything) - len(images)
        with taps.read(self.teacher, [self.goal.tap]) as features:
            logits = self.teacher(everything)
        # The distance is zero, and not undefined, if a batch has no image of another class.
        seen = features[self.goal.tap][len(images) :]
        distance = self.goal(seen) if len(seen) else logits.sum() * 0
        loss = nn.functional.cross_entropy(logits, wanted) + self._weight * distance
        return {"loss": loss, "distance": distance, "acc": hit_rate(logits, wanted)}
