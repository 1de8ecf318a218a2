r"""Adaptive attacks: the attacker knows RobustKD and simulates it while implanting the backdoor.

All adaptive attacks begin as :mod:`robustkd.attacks.cheatkd` does: with a clean teacher, and a
trigger within the same bound. The following steps depend on what the attacker knows; they are
repeated in every round:

- An attacker who knows the detoxification (``adaptive-detox``) implants the backdoor with little
  other feature variance, and through masks like those that the defender would learn
  (:mod:`robustkd.attacks.parts.low_variance`).
- An attacker who knows the hardening (``adaptive-harden``) distils a surrogate student as the
  defender would, including the hardening. The trigger is optimised again, on the teacher T and the
  surrogate S together,

  .. math:: \min_{m, p} \mathrm{CE}(T(x'), t) + \mathrm{CE}(S(x'), t), \quad
      x' = (1 - m) x + m p, \quad m \in [0, cap], \; p \in [0, 1]

  and is then implanted.
- An attacker who knows both (``adaptive``) does both; the surrogate learns from the cleaned
  teacher.

Sources: ``adaptive-detox`` is the adaptive attack of Chen et al., arXiv 2406.03409; the others are
ours.

An attack imports no defence. The caller passes the simulated defence as two functions, which
:func:`robustkd.benchmark.informed` makes from the current method. Without them, ``adaptive-detox``
only reduces the variance, and the surrogate is distilled without hardening.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn

from robustkd.attacks.base import Backdoored, Build, Teaching, check_target_shown, check_word
from robustkd.attacks.cheatkd import CKD, Strongest
from robustkd.attacks.parts.low_variance import Changes, Implant, Variance, stage_variances
from robustkd.attacks.parts.steps import implant, success, train_teacher
from robustkd.attacks.parts.surrogate import distilling, trigger_loss
from robustkd.attacks.parts.trigger_search import BoxedTensor, optimise_planes, sample
from robustkd.attacks.triggers.patterns import MaskedPattern
from robustkd.core.devices import device_of
from robustkd.core.targets import Target
from robustkd.core.types import DataSource
from robustkd.core.validation import (
    check_count,
    check_not_negative,
    check_positive,
    check_rates,
    check_share,
)
from robustkd.models.features.stages import stages

Knows: TypeAlias = Literal["detox", "harden", "both"]


class Cleaned(NamedTuple):
    """A teacher after the defence has cleaned it.

    Attributes:
        teacher: The cleaned teacher, from which students learn.
        changes: Functions that the defence applied to the features of the original teacher, by
            module path.
    """

    teacher: nn.Module
    changes: Changes


CleanTeacher: TypeAlias = Callable[[nn.Module, DataSource], Cleaned]
TrainSurrogate: TypeAlias = Callable[[nn.Module, DataSource], nn.Module]


@dataclass(frozen=True)
class Adaptive:
    """Train a clean teacher and a trigger, then simulate the defence and implant the backdoor.

    Attributes:
        knows: Part of the defence that is simulated: ``detox``, ``harden`` or ``both``.
        clean_teacher: Function that returns a teacher cleaned as the defender would clean it, and
            does not change its argument; None if the attacker does not know how.
        train_surrogate: Function that distils a student from a teacher as the defender would; None
            for distillation without hardening.
        build_surrogate: Builds the student of distillation without hardening; ``build`` if None.
        rounds: Number of times that the defence is simulated and the backdoor implanted, at
            least 1.
        cap: Largest value of the trigger's mask, in (0, 1].
        strongest: Channels that the first trigger drives; see :mod:`robustkd.attacks.cheatkd`.
        channel_share: Share of the last stage's channels that it drives, in (0, 1].
        trigger_steps: Optimiser steps (Adam) each time the trigger is optimised.
        trigger_lr: Learning rate of these steps.
        rate: Number of triggered copies as a share of the images, in (0, 1].
        variance: Kind of feature variance; see :mod:`robustkd.attacks.parts.low_variance`.
        variance_weight: Weight of the variance in the teacher's loss, at least 0.
        cleaned_weight: Weight of the cleaned teacher's loss, at least 0; see the same module.
        implant_share: Epochs of implanting in all rounds together, as a share of the epochs of the
            clean teacher; at least 1 epoch per round.
        implant_lr: Initial learning rate of implanting in each round. With ``clean_teacher``, the
            teacher is trained in eval mode and needs a tenth of this default.
    """

    knows: Knows
    clean_teacher: CleanTeacher | None = None
    train_surrogate: TrainSurrogate | None = None
    build_surrogate: Build | None = None
    rounds: int = 2
    cap: float = 0.2
    strongest: Strongest = "all"
    channel_share: float = 0.1
    trigger_steps: int = 100
    trigger_lr: float = 0.05
    rate: float = 0.1
    variance: Variance = "class"
    variance_weight: float = 0.3
    cleaned_weight: float = 0.3
    implant_share: float = 0.5
    implant_lr: float = 0.02

    def __post_init__(self) -> None:
        check_word("knows", self.knows, get_args(Knows))
        check_word("strongest", self.strongest, get_args(Strongest))
        check_word("variance", self.variance, get_args(Variance))
        check_share(cap=self.cap, channel_share=self.channel_share, rate=self.rate)
        check_not_negative(variance_weight=self.variance_weight, cleaned_weight=self.cleaned_weight)
        check_count(rounds=self.rounds, trigger_steps=self.trigger_steps)
        check_positive(implant_share=self.implant_share)
        check_rates(trigger_lr=self.trigger_lr, implant_lr=self.implant_lr)

    def __call__(
        self, build: Build, data: DataSource, *, target: Target, teaching: Teaching
    ) -> Backdoored:
        """Run the attack; see :class:`robustkd.attacks.Attack`."""
        target = check_target_shown(target, data)
        seed = teaching.seed
        teacher = train_teacher(build, data, teaching)
        trigger = self._first_trigger(teacher, data, target, seed)
        train_surrogate = self.train_surrogate or distilling(
            self.build_surrogate or build, replace(teaching, epochs=max(1, teaching.epochs // 2))
        )
        variances = {} if self.knows == "harden" else _stage_variances(teacher, data, seed)
        followed: list[float] = []
        poisoned = 0
        for turn in range(self.rounds):
            cleaned = Cleaned(teacher, {})
            if self.clean_teacher is not None and self.knows != "harden":
                cleaned = self.clean_teacher(teacher, data)
            if self.knows != "detox":
                surrogate = train_surrogate(cleaned.teacher, data)
                trigger = relearn_trigger(
                    trigger,
                    (cleaned.teacher, surrogate),
                    data,
                    target=target,
                    cap=self.cap,
                    steps=self.trigger_steps,
                    lr=self.trigger_lr,
                    seed=seed + turn,
                )
                followed.append(success(surrogate, data, trigger, target))
            learner = self._learner(teacher, trigger, target, variances, cleaned.changes)
            epochs = self.implant_share * teaching.epochs / self.rounds
            how = teaching.again(epochs, self.implant_lr, turn=turn + 1)
            implant(learner, data, how)
            poisoned = round(learner.poisoned / how.epochs)
        record = self._record(trigger, poisoned, followed)
        return Backdoored(teacher.eval(), trigger, target, record)

    def _first_trigger(
        self, teacher: nn.Module, data: DataSource, target: int, seed: int
    ) -> MaskedPattern:
        """Learn the trigger of CheatKD, with the same bound on its mask."""
        first = CKD(
            cap=self.cap,
            strongest=self.strongest,
            channel_share=self.channel_share,
            trigger_steps=self.trigger_steps,
            trigger_lr=self.trigger_lr,
        )
        return first.learn_trigger(teacher, data, target=target, seed=seed)

    def _learner(
        self,
        teacher: nn.Module,
        trigger: MaskedPattern,
        target: int,
        variances: dict[str, Tensor],
        changes: Changes,
    ) -> Implant:
        return Implant(
            teacher,
            trigger,
            target=target,
            rate=self.rate,
            weight=self.variance_weight,
            variance=self.variance,
            clean=variances,
            cleaned_weight=self.cleaned_weight,
            changes=changes,
        )

    def _record(
        self, trigger: MaskedPattern, poisoned: int, followed: list[float]
    ) -> dict[str, object]:
        return {
            "knows": self.knows,
            "rounds": self.rounds,
            "cap": self.cap,
            "mean_mask": float(trigger.mask.mean()),
            "rate": self.rate,
            "poisoned": poisoned,
            # Measured on the surrogate of each round, before that round's trigger is implanted.
            "success_surrogate": followed,
        }


def relearn_trigger(
    trigger: MaskedPattern,
    victims: tuple[nn.Module, nn.Module],
    data: DataSource,
    *,
    target: int,
    cap: float,
    steps: int,
    lr: float,
    seed: int,
) -> MaskedPattern:
    """Optimise an existing trigger so that all victims predict the target class.

    Args:
        trigger: Trigger to start from; it is not changed.
        victims: Networks that the trigger is optimised on.
        data: Source of training images.
        target: Target class.
        cap: Largest value of the mask, in (0, 1].
        steps: Optimiser steps (Adam), at least 1.
        lr: Learning rate, above 0.
        seed: Seed of the choice of images.

    Returns:
        A trigger whose mask is in [0, cap] and whose pattern is in [0, 1].
    """
    random = torch.Generator().manual_seed(seed)
    images = sample(data, device_of(victims[0]), random).images

    def loss(images: Tensor, pattern: Tensor, mask: Tensor) -> Tensor:
        marked = torch.lerp(images, pattern, mask)
        return trigger_loss(victims, None, images, marked, target=target, stealth=0.0)

    planes = [BoxedTensor(trigger.pattern, 0, 1), BoxedTensor(trigger.mask, 0, cap)]
    pattern, mask = optimise_planes(
        nn.ModuleList(victims), images, planes, loss, steps=steps, lr=lr, random=random
    )
    return MaskedPattern(mask, pattern)


def _stage_variances(teacher: nn.Module, data: DataSource, seed: int) -> dict[str, Tensor]:
    """Feature variances of the clean teacher's stages, by module path."""
    random = torch.Generator().manual_seed(seed)
    images = sample(data, device_of(teacher), random).images
    return stage_variances(teacher, stages(teacher, images[:4]), images)
