r"""Attackers who know RobustKD, and rehearse it on their own teacher before they publish it.

All begin as :mod:`robustkd.attacks.cheatkd`: a clean teacher, and a trigger within the same budget.
Then, round by round,

- who knows the detoxification (``adaptive-detox``) implants the backdoor with little variance
  beside it, and through masks as the defender would learn them
  (:mod:`robustkd.attacks.parts.low_variance`);
- who knows the hardening (``adaptive-harden``) has a surrogate student distilled as the defender
  would, hardening included, learns the trigger anew on teacher T and surrogate S together,

  .. math:: \min_{m, p} \mathrm{CE}(T(x'), t) + \mathrm{CE}(S(x'), t), \quad
      x' = (1 - m) x + m p, \quad m \in [0, cap], \; p \in [0, 1]

  and implants that;
- who knows both (``adaptive``) does both: the surrogate learns from the cleaned teacher.

Source: the first is the adaptive attack of Chen et al., arXiv 2406.03409; the others are ours.

An attack imports no defence. The rehearsal comes from outside, as two functions, so that it is
always that of today's method (:func:`robustkd.benchmark.informed` makes them). Without them,
``adaptive-detox`` is left with the variance alone, and the surrogate is distilled plainly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn

from robustkd.attacks.base import Backdoored, Build, Teaching, check_target_shown, check_word
from robustkd.attacks.cheatkd import CKD, Strongest
from robustkd.attacks.parts.low_variance import Changes, Implant, Variance, stage_variances
from robustkd.attacks.parts.steps import implant, success, train_teacher
from robustkd.attacks.parts.surrogate import distilling, trigger_loss
from robustkd.attacks.parts.trigger_search import Bounded, check_shares, optimise_planes, sample
from robustkd.attacks.triggers.patterns import MaskedPattern
from robustkd.core.devices import device_of
from robustkd.core.types import DataSource
from robustkd.core.validation import check_not_negative, check_positive
from robustkd.models.features.stages import stages

Knows: TypeAlias = Literal["detox", "harden", "both"]


class Cleaned(NamedTuple):
    """A teacher after the defence has cleaned it.

    Attributes:
        teacher: What students learn from.
        changes: What was done to the features of the original, by its module paths.
    """

    teacher: nn.Module
    changes: Changes


CleanTeacher: TypeAlias = Callable[[nn.Module, DataSource], Cleaned]
TrainSurrogate: TypeAlias = Callable[[nn.Module, DataSource], nn.Module]


@dataclass(frozen=True)
class Adaptive:
    """Train a clean teacher and a trigger, then rehearse the defence and implant against it.

    Attributes:
        knows: What is rehearsed: ``detox``, ``harden`` or ``both``.
        clean_teacher: Cleans a teacher as the defender would, and leaves it as it is; None for
            an attacker who cannot tell how.
        train_surrogate: Distils a student from a teacher as the defender would; plain
            distillation when None.
        build_surrogate: Makes the student of that plain distillation; ``build`` when None.
        rounds: Times that the defence is rehearsed and the backdoor implanted, at least 1.
        cap: Largest value of the trigger's mask, in (0, 1].
        strongest: Which channels the first trigger drives, see :mod:`robustkd.attacks.cheatkd`.
        channel_share: Share of the last stage's channels that it drives, in (0, 1].
        trigger_steps: Optimiser steps (Adam) on the trigger, each time that it is learned.
        trigger_lr: Their learning rate.
        rate: Triggered copies, as a share of the images, in (0, 1].
        variance: What counts as variance, see :mod:`robustkd.attacks.parts.low_variance`.
        variance_weight: Its weight in the teacher's loss, at least 0.
        cleaned_weight: Weight of the attack success after cleaning, at least 0; see there.
        implant_share: Epochs of all implanting, as a share of the clean teacher's; at least 1 a
            round.
        implant_lr: Its learning rate at the start of each round. With ``clean_teacher`` the teacher
            is trained in eval mode, and needs a tenth of this default.
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
        check_shares(cap=self.cap, channel_share=self.channel_share, rate=self.rate)
        check_not_negative(variance_weight=self.variance_weight, cleaned_weight=self.cleaned_weight)
        check_positive(
            rounds=self.rounds,
            trigger_steps=self.trigger_steps,
            trigger_lr=self.trigger_lr,
            implant_share=self.implant_share,
            implant_lr=self.implant_lr,
        )

    def __call__(
        self, build: Build, data: DataSource, *, target: int, teaching: Teaching
    ) -> Backdoored:
        """Run the attack; see :class:`robustkd.attacks.Attack`."""
        check_target_shown(target, data)
        seed = teaching.seed
        teacher = train_teacher(build, data, teaching)
        trigger = self._first_trigger(teacher, data, target, seed)
        train_surrogate = self.train_surrogate or distilling(
            self.build_surrogate or build, replace(teaching, epochs=max(1, teaching.epochs // 2))
        )
        variances = {} if self.knows == "harden" else _stage_variances(teacher, data, seed)
        followed: list[float] = []
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
            implant(learner, data, teaching.again(epochs, self.implant_lr, turn=turn + 1))
        record = self._record(trigger, data, followed)
        return Backdoored(teacher.eval(), trigger, target, record)

    def _first_trigger(
        self, teacher: nn.Module, data: DataSource, target: int, seed: int
    ) -> MaskedPattern:
        """CheatKD's, within the same budget."""
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
        self, trigger: MaskedPattern, data: DataSource, followed: list[float]
    ) -> dict[str, Any]:
        return {
            "knows": self.knows,
            "rounds": self.rounds,
            "cap": self.cap,
            "mean_mask": float(trigger.mask.mean()),
            "rate": self.rate,
            "poisoned": max(1, round(self.rate * data.size("train"))),
            # On the surrogate of each round, before that round's trigger was implanted.
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
    """Go on from a trigger until all victims name the target; the mask stays in [0, cap]."""
    random = torch.Generator().manual_seed(seed)
    images = sample(data, device_of(victims[0]), random).images

    def loss(images: Tensor, pattern: Tensor, mask: Tensor) -> Tensor:
        marked = torch.lerp(images, pattern, mask)
        return trigger_loss(victims, None, images, marked, target=target, stealth=0.0)

    planes = [Bounded(trigger.pattern, 0, 1), Bounded(trigger.mask, 0, cap)]
    pattern, mask = optimise_planes(
        nn.ModuleList(victims), images, planes, loss, steps=steps, lr=lr, random=random
    )
    return MaskedPattern(mask, pattern)


def _stage_variances(teacher: nn.Module, data: DataSource, seed: int) -> dict[str, Tensor]:
    """The clean teacher's, by module path."""
    random = torch.Generator().manual_seed(seed)
    images = sample(data, device_of(teacher), random).images
    return stage_variances(teacher, stages(teacher, images[:4]), images)
