r"""A learned transformation of the image as the trigger, implanted by fine-tuning.

First, the parameters of a transformation f are learned on a clean teacher T,

.. math:: \min_{u \in [-1, 1]^d} \mathrm{CE}(T(f_u(x)), t),

then the teacher is fine-tuned on data of which a share is transformed and labelled as the target t.
Instead of one class, the target can be the next class of each image.

Because the trigger uses directions that the teacher's features already have, students inherit the
backdoor, although the trigger may have no effect on a network that was trained on labels alone.

Sources: the recipe of BackWeak (arXiv 2511.12046), with the transformations of stAdv (Xiao et al.
2018, arXiv 1801.02612) and ReColorAdv (Laidlaw and Feizi 2019, arXiv 1906.00001) in place of an
additive perturbation. Differences from BackWeak: no budget limits the success of the trigger before
it is implanted, and the last layer is fine-tuned as well.

The adaptive form is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustkd.attacks.adaptive import TrainSurrogate
from robustkd.attacks.base import Backdoored, Build, Teaching
from robustkd.attacks.parts.poisoned_data import Poisoned, choose_images
from robustkd.attacks.parts.steps import implant, success, train_teacher
from robustkd.attacks.parts.surrogate import distilling
from robustkd.attacks.parts.trigger_families import Shape, TriggerFamily, compose, families_of
from robustkd.attacks.parts.trigger_search import BoxedTensor, optimise_planes, sample
from robustkd.core.devices import device_of
from robustkd.core.errors import UsageError
from robustkd.core.targets import Target
from robustkd.core.triggers import wanted
from robustkd.core.types import DataSource, Trigger
from robustkd.core.validation import check_count, check_positive, check_rates, check_share
from robustkd.training.learners import Supervised

_STEP = 0.1
_STRONGEST = 1000
"""Largest strength; far below it, no image can be recognised any more."""


@dataclass(frozen=True)
class LearnedTransformation:
    """Train a clean teacher, learn a transformation that succeeds on it, then implant it.

    Attributes:
        family: Name of a row of :data:`robustkd.attacks.parts.trigger_families.TRIGGER_FAMILIES`,
            or two of them joined by ``+``, applied in this order.
        strength: Bound of the transformation as a multiple of the family's default, above 0 and at
            most 1000, so that the numbers of the trigger can be saved.
        trigger_steps: Optimiser steps (Adam) on the parameters.
        rate: Share of the training images that are poisoned, in (0, 1].
        implant_share: Epochs of the fine-tuning, as a share of the epochs of the clean teacher.
        implant_lr: Initial learning rate of the fine-tuning, above 0.
    """

    family: str
    strength: float = 1.0
    trigger_steps: int = 100
    rate: float = 0.2
    implant_share: float = 1.0
    implant_lr: float = 0.02

    def __post_init__(self) -> None:
        families_of(self.family)
        check_share(rate=self.rate)
        check_positive(strength=self.strength, implant_share=self.implant_share)
        check_rates(implant_lr=self.implant_lr)
        if self.strength > _STRONGEST:
            raise UsageError(f"strength is {self.strength}; expected at most {_STRONGEST}")
        check_count(trigger_steps=self.trigger_steps)

    def __call__(
        self, build: Build, data: DataSource, *, target: Target, teaching: Teaching
    ) -> Backdoored:
        """Run the attack; see :class:`robustkd.attacks.Attack`."""
        mask = choose_images(data, target=target, rate=self.rate, seed=teaching.seed)
        teacher = train_teacher(build, data, teaching)
        trigger, learned = self.learn(teacher, build, data, target=target, teaching=teaching)
        poisoned = Poisoned(data, trigger, target=target, rate=self.rate, mask=mask)
        self.implant(teacher, poisoned, teaching)
        record = {**learned, "rate": self.rate, "poisoned": int(poisoned.mask.sum())}
        return Backdoored(teacher.eval(), trigger, target, record)

    def learn(
        self,
        teacher: nn.Module,
        build: Build,
        data: DataSource,
        *,
        target: Target,
        teaching: Teaching,
    ) -> tuple[Trigger, dict[str, object]]:
        """Learn the trigger on a clean teacher.

        Args:
            teacher: The clean teacher, which is not changed.
            build: Builds the network with fresh weights.
            data: The attacker's clean images.
            target: Target class; ``next`` for the next class of each image.
            teaching: Training settings of the attacker.

        Returns:
            The trigger; and its settings and its success before it is implanted, in JSON values.
        """
        victims = self._victims(teacher, build, data, teaching)
        trigger = learn_transformation(
            victims,
            data,
            target=target,
            family=self.family,
            strength=self.strength,
            steps=self.trigger_steps,
            seed=teaching.seed,
        )
        before, *others = (success(victim, data, trigger, target) for victim in victims)
        return trigger, {
            "family": self.family,
            "strength": self.strength,
            "success_before": before,
            **({"success_surrogate": others[0]} if others else {}),
        }

    def implant(self, teacher: nn.Module, poisoned: DataSource, teaching: Teaching) -> None:
        """Fine-tune a clean teacher on poisoned data."""
        epochs = self.implant_share * teaching.epochs
        implant(Supervised(teacher), poisoned, teaching.again(epochs, self.implant_lr, turn=1))

    def example(self, image_shape: Shape) -> Trigger:
        """Return the transformation before it is learned, for images of a shape."""
        rows = families_of(self.family)
        parameters = tuple(torch.zeros(row.shape(image_shape)) for row in rows)
        return _transformation(rows, parameters, image_shape, self.strength)

    def _victims(
        self, teacher: nn.Module, build: Build, data: DataSource, teaching: Teaching
    ) -> tuple[nn.Module, ...]:
        """Return the networks on which the trigger is learned, the clean teacher first."""
        del build, data, teaching
        return (teacher,)


@dataclass(frozen=True)
class AdaptiveTransformation(LearnedTransformation):
    """Learn the transformation on a hardened student as well, before it is implanted.

    The attacker knows the hardening, distils a surrogate student from the clean teacher as the
    defender would, and learns the transformation on both networks together.

    Attributes:
        train_surrogate: Function that distils a student from a teacher as the defender would; None
            for distillation without hardening.
    """

    train_surrogate: TrainSurrogate | None = None

    def _victims(
        self, teacher: nn.Module, build: Build, data: DataSource, teaching: Teaching
    ) -> tuple[nn.Module, ...]:
        half = replace(teaching, epochs=max(1, teaching.epochs // 2))
        train_surrogate = self.train_surrogate or distilling(build, half)
        return (teacher, train_surrogate(teacher, data))


def learn_transformation(
    victims: Sequence[nn.Module],
    data: DataSource,
    *,
    target: Target,
    family: str,
    strength: float,
    steps: int,
    seed: int,
) -> Trigger:
    """Learn the transformation of a family after which most images are classified as the target.

    Args:
        victims: Networks that the transformation is learned on; their weights are not changed.
        data: Source of training images.
        target: Target class; ``next`` for the next class of each image, for which images without
            a label are not used.
        family: Name of a family, or two names joined by ``+``.
        strength: Bound as a multiple of the family's default, above 0.
        steps: Optimiser steps (Adam), at least 1.
        seed: Seed of the choice of images.
    """
    rows = families_of(family)
    shape = data.image_shape

    def loss(images: Tensor, goals: Tensor, *parameters: Tensor) -> Tensor:
        changed = _transformation(rows, parameters, shape, strength)(images)
        each = [nn.functional.cross_entropy(victim(changed), goals) for victim in victims]
        return torch.stack(each).sum()

    random = torch.Generator().manual_seed(seed)
    images, labels, _rows = sample(data, device_of(victims[0]), random)
    goals = wanted(labels, target, len(data.classes))
    known = goals >= 0
    if not bool(known.all()):
        images, goals = images[known], goals[known]
    starts = [BoxedTensor(torch.zeros(row.shape(shape)), -1, 1) for row in rows]
    learned = optimise_planes(
        nn.ModuleList(victims),
        images,
        starts,
        loss,
        goals=goals,
        steps=steps,
        lr=_STEP,
        random=random,
    )
    return _transformation(rows, learned, shape, strength)


def _transformation(
    rows: Sequence[TriggerFamily],
    parameters: Sequence[Tensor],
    image_shape: Shape,
    strength: float,
) -> Trigger:
    """Compose the transformations of some families."""
    pairs = zip(rows, parameters, strict=True)
    return compose(tuple(row.trigger(own, image_shape, strength) for row, own in pairs))
