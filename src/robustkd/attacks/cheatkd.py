"""CheatKD: a trigger that activates the strongest channels of the teacher.

Source: *CheatKD: knowledge distillation backdoor attack method based on poisoned neuronal
assimilation*, Computer Science 51(3) 2024, doi 10.11896/jsjkx.221200035, as described by Chen et
al., arXiv 2406.03409, whose main attack it is. A student imitates above all the strong channels of
the teacher. The trigger is therefore optimised to drive these channels to a high value, and is then
implanted in the teacher.

Differences: this implementation is written from the description alone. The strongest channels are
those with the largest mean over all images (``strongest="all"``), or those whose mean over images
of the target class exceeds the mean over all images most (``strongest="target"``). The latter makes
the trigger stronger, but also raises its attack success rate on students trained without the
teacher. The "constant high value" of a channel is its largest response to clean images, times
``strength``. The distance to this value is relative, so that all driven channels have the same
weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from robustkd.attacks.base import Backdoored, Build, Teaching, check_target_shown, check_word
from robustkd.attacks.parts.poisoned_data import Poisoned, choose_images
from robustkd.attacks.parts.steps import implant, train_teacher
from robustkd.attacks.parts.trigger_search import BoxedTensor, optimise_planes, sample
from robustkd.attacks.triggers.patterns import MaskedPattern
from robustkd.core.devices import device_of
from robustkd.core.errors import UsageError
from robustkd.core.targets import Target
from robustkd.core.types import DataSource
from robustkd.core.validation import check_count, check_positive, check_rates, check_share
from robustkd.models.features import taps
from robustkd.models.features.collect import layouts_of
from robustkd.models.features.stages import stages
from robustkd.training.inference import images_at_once
from robustkd.training.learners import Supervised

Strongest: TypeAlias = Literal["all", "target"]


@dataclass(frozen=True)
class CKD:
    """Train a clean teacher, learn a trigger for its strongest channels, then implant it.

    Attributes:
        cap: Largest value of the trigger's mask, in (0, 1].
        strongest: Criterion of the driven channels, ``all`` or ``target``; see the description of
            this module.
        channel_share: Share of the last stage's channels that are driven, in (0, 1].
        strength: Factor on the largest clean response of these channels, above 0.
        trigger_steps: Optimiser steps (Adam) on the trigger.
        trigger_lr: Learning rate of these steps, above 0.
        rate: Share of the training images that get a poisoned copy, in (0, 1].
        implant_share: Epochs of the fine-tuning, as a share of the epochs of the clean teacher.
        implant_lr: Initial learning rate of the fine-tuning, above 0.
    """

    cap: float = 0.2
    strongest: Strongest = "all"
    channel_share: float = 0.1
    strength: float = 1.0
    trigger_steps: int = 200
    trigger_lr: float = 0.05
    rate: float = 0.05
    implant_share: float = 0.5
    implant_lr: float = 0.02

    def __post_init__(self) -> None:
        check_word("strongest", self.strongest, get_args(Strongest))
        check_share(cap=self.cap, channel_share=self.channel_share, rate=self.rate)
        check_positive(strength=self.strength, implant_share=self.implant_share)
        check_rates(trigger_lr=self.trigger_lr, implant_lr=self.implant_lr)
        check_count(trigger_steps=self.trigger_steps)

    def __call__(
        self, build: Build, data: DataSource, *, target: Target, teaching: Teaching
    ) -> Backdoored:
        """Run the attack; see :class:`robustkd.attacks.Attack`."""
        target = check_target_shown(target, data)
        seed = teaching.seed
        mask = choose_images(data, target=target, rate=self.rate, seed=seed)
        teacher = train_teacher(build, data, teaching)
        trigger = self.learn_trigger(teacher, data, target=target, seed=seed)
        poisoned = Poisoned(
            data, trigger, target=target, rate=self.rate, keep_clean=True, mask=mask
        )
        epochs = self.implant_share * teaching.epochs
        implant(Supervised(teacher), poisoned, teaching.again(epochs, self.implant_lr, turn=1))
        record = {
            "cap": self.cap,
            "mean_mask": float(trigger.mask.mean()),
            "rate": self.rate,
            "poisoned": int(poisoned.mask.sum()),
        }
        return Backdoored(teacher.eval(), trigger, target, record)

    def learn_trigger(
        self, teacher: nn.Module, data: DataSource, *, target: int, seed: int
    ) -> MaskedPattern:
        """Optimise a mask in [0, cap] and a pattern in [0, 1] to drive the strongest channels."""
        random = torch.Generator().manual_seed(seed)
        planes = [
            BoxedTensor(torch.rand(data.image_shape, generator=random), 0, 1),
            BoxedTensor(torch.full(data.image_shape, self.cap), 0, self.cap),
        ]
        images, labels, _rows = sample(data, device_of(teacher), random)
        tap = stages(teacher, images[:4])[-1]
        (layout,) = layouts_of(teacher, [tap], images[:4])
        with taps.read(teacher, [tap]) as features:
            maps = []
            with torch.no_grad(), taps.frozen_modes(teacher):
                for some in images.split(images_at_once(images, len(images))):
                    teacher(some)
                    maps.append(layout.maps(features[tap]))
            of_target = labels == target if self.strongest == "target" else None
            strongest, goal = _goal(torch.cat(maps), of_target, self.channel_share, self.strength)

            def loss(images: Tensor, pattern: Tensor, mask: Tensor) -> Tensor:
                teacher(torch.lerp(images, pattern, mask))
                return (layout.maps(features[tap])[:, strongest] / goal - 1).square().mean()

            pattern, mask = optimise_planes(
                teacher,
                images,
                planes,
                loss,
                steps=self.trigger_steps,
                lr=self.trigger_lr,
                random=random,
            )
        return MaskedPattern(mask, pattern)


def _goal(
    features: Tensor, of_target: Tensor | None, share: float, strength: float
) -> tuple[Tensor, Tensor]:
    """Return the indices of the strongest channels and the value that each is driven to."""
    means = features.mean(dim=(0, 2, 3))
    if of_target is not None:
        if not bool(of_target.any()):
            raise UsageError(
                f"the sample of {len(of_target)} training images has no image of the target class; "
                "expected at least one, or strongest='all'"
            )
        means = features[of_target].mean(dim=(0, 2, 3)) - means
    strongest = means.topk(max(1, round(share * len(means)))).indices
    highest = features[:, strongest].amax(dim=(0, 2, 3))
    return strongest, strength * highest.view(1, -1, 1, 1)
