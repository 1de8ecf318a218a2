r"""SCAR: a teacher that looks clean, and whose backdoor becomes active in the student.

Source: Chen, Li, Yuan et al., *Taught Well Learned Ill: Towards
Distillation-conditional Backdoor Attack*, NeurIPS 2025, arXiv 2509.23871. First, a trigger
:math:`x' = clamp(x + \delta)` is optimised so that a clean teacher and a student distilled from it
predict the target class; the trigger then stays fixed. Second, the teacher T is trained through a
surrogate student S:

.. math::
    outer &: \min_T \mathrm{CE}(T(x), y) + \mathrm{CE}(T(x'), y)
        + \mathrm{CE}(S(x), y) + \mathrm{CE}(S(x'), t) \\
    inner &: S = \arg\min_S \mathrm{CE}(S(x), y) + KL(T(x), S(x))

Each round distils S from T, then takes some steps of T along the hypergradient (see
:func:`robustkd.training.hypergradient.hypergradient`).

OSCAR omits the surrogate (the paper's ablation; the name is that of the comparison in arXiv
2511.12046): it has the same trigger, and a teacher that is trained to resist it. Its students do
not inherit a backdoor; they lack the teacher's resistance. The attack success rate of OSCAR on
students is therefore that of a universal adversarial perturbation, and so is much of the attack
success rate of SCAR. Both records give this part as ``success_clean``: the attack success rate on a
student that was trained without the attacked teacher.

Differences: this implementation is written from the formulas. The settings of ``paper`` are the
defaults that the authors published (ε 0.1; 200 rounds of 20 epochs and 40 steps of 128 images; 100
products with the Hessian at a step size of 1e-5; for the teacher, Adam with a learning rate of 1e-3
and a cosine schedule over the rounds), except that clean networks and surrogates are trained by
this project's SGD. With 100 steps of 1e-5, the implicit part is about a thousandth of a gradient
step, far from the inverse Hessian; ``implicit_share`` in the record is the norm of this part over
the norm of the direct part. ``small`` takes fewer and larger steps, and renews the surrogate only
every few rounds. ``stealth`` adds a term of ours to the trigger's loss, which keeps the predictions
of a second clean student (see :mod:`robustkd.attacks.adba`); it is 0 by default, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustkd.attacks.base import Backdoored, Build, Teaching
from robustkd.attacks.parts.bilevel import PRESETS, Bilevel
from robustkd.attacks.parts.steps import success
from robustkd.attacks.parts.surrogate import Distilling, Hiding, at_rate, fresh, trigger_loss
from robustkd.attacks.parts.trigger_search import BoxedTensor, optimise_planes, sample
from robustkd.attacks.triggers.additive import Additive, into_range
from robustkd.core.devices import default_device, device_of
from robustkd.core.errors import UsageError
from robustkd.core.targets import Target
from robustkd.core.triggers import check_one_target
from robustkd.core.types import DataSource
from robustkd.core.validation import (
    check_count,
    check_not_negative,
    check_positive,
    check_rates,
    check_share,
)
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit


class _Clean(NamedTuple):
    """Clean networks that the trigger is learned on."""

    teacher: nn.Module
    student: nn.Module
    judge: nn.Module
    """A student that was trained without the teacher."""


class _Prepared(NamedTuple):
    """Result of the steps that SCAR and OSCAR have in common."""

    teacher: nn.Module
    trigger: Additive
    record: Mapping[str, object]


@dataclass(frozen=True)
class Perturbing:
    """Common part of SCAR and OSCAR: clean networks, and a trigger that is learned on them.

    Attributes:
        build_surrogate: Builds the attacker's students; ``build``, as for the teacher, if None.
        surrogate_lr: Initial learning rate of these students; that of the teacher if None.
        epsilon: Largest change of a pixel, in (0, 1].
        stealth: Weight of the clean student's term in the trigger's loss, at least 0.
        trigger_steps: Optimiser steps (Adam) on the trigger.
        trigger_lr: Learning rate of these steps, above 0.
        temperature: Temperature of the students' soft targets, above 0.
    """

    build_surrogate: Build | None = None
    surrogate_lr: float | None = None
    epsilon: float = 0.1
    stealth: float = 0.0
    trigger_steps: int = 500
    trigger_lr: float = 0.01
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_share(epsilon=self.epsilon)
        check_not_negative(stealth=self.stealth)
        check_count(trigger_steps=self.trigger_steps)
        check_positive(temperature=self.temperature)
        check_rates(trigger_lr=self.trigger_lr)
        if self.surrogate_lr is not None:
            check_rates(surrogate_lr=self.surrogate_lr)

    def _prepare(
        self, build: Build, data: DataSource, target: int, teaching: Teaching
    ) -> _Prepared:
        """Train the clean networks and learn the trigger on them."""
        seed, smaller = teaching.seed, self.build_surrogate or build
        teacher = build().to(default_device())
        student, judge = fresh(smaller, 3 * seed), fresh(smaller, 3 * seed + 1)
        smaller_teaching = at_rate(teaching, self.surrogate_lr)
        distilling = Distilling(student, teacher, temperature=self.temperature)
        trainings = {
            "train the teacher": (Supervised(teacher), teaching),
            "train a clean student": (Supervised(judge), smaller_teaching),
            "distil a student": (distilling, smaller_teaching),
        }
        for offset, (label, (learner, how)) in enumerate(trainings.items()):
            fit(learner, data, **asdict(replace(how, seed=seed + offset)), label=label)
        clean = _Clean(teacher, student, judge)
        trigger = self._learn_trigger(clean, data, target, seed)
        record = {
            "epsilon": self.epsilon,
            "stealth": self.stealth,
            "poisoned": data.size("train"),
            "success_before": success(teacher, data, trigger, target),
            "success_clean": success(judge, data, trigger, target),
        }
        return _Prepared(teacher, trigger, record)

    def _learn_trigger(self, clean: _Clean, data: DataSource, target: int, seed: int) -> Additive:
        """Optimise a perturbation within epsilon that succeeds on clean teacher and student."""
        random = torch.Generator().manual_seed(seed)
        images = sample(data, device_of(clean.teacher), random).images
        judge = clean.judge if self.stealth > 0 else None

        def loss(images: Tensor, delta: Tensor) -> Tensor:
            marked = into_range(images + delta)
            return trigger_loss(
                clean[:2], judge, images, marked, target=target, stealth=self.stealth
            )

        start = BoxedTensor(torch.zeros(data.image_shape), -self.epsilon, self.epsilon)
        (delta,) = optimise_planes(
            nn.ModuleList(clean),
            images,
            [start],
            loss,
            steps=self.trigger_steps,
            lr=self.trigger_lr,
            random=random,
        )
        return Additive(delta)


@dataclass(frozen=True)
class SCAR(Perturbing):
    """Train clean networks, learn a trigger, then train the teacher through a surrogate student.

    Attributes:
        preset: Effort of the bilevel optimisation: ``small`` or ``paper``.
        rounds: Rounds of the bilevel optimisation; those of the preset if None.
        outer_lr: Learning rate of the teacher (Adam) in the bilevel optimisation, above 0.

    The other attributes are those of :class:`Perturbing`.
    """

    preset: str = "small"
    rounds: int | None = None
    outer_lr: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset not in PRESETS:
            raise UsageError(f"preset is {self.preset!r}; expected {' or '.join(PRESETS)}")
        if self.rounds is not None:
            check_count(rounds=self.rounds)
        check_rates(outer_lr=self.outer_lr)

    def __call__(
        self, build: Build, data: DataSource, *, target: Target, teaching: Teaching
    ) -> Backdoored:
        """Run the attack; see :class:`robustkd.attacks.Attack`.

        Raises:
            TrainingError: If a hypergradient is not finite.
        """
        target = check_one_target(target, data)
        teacher, trigger, record = self._prepare(build, data, target, teaching)
        work = PRESETS[self.preset]
        rounds = self.rounds or work.rounds
        bilevel = Bilevel(
            teacher,
            self.build_surrogate or build,
            data,
            trigger,
            target,
            self.temperature,
            work,
        )
        bilevel.run(rounds, at_rate(teaching, self.surrogate_lr), outer_lr=self.outer_lr)
        found = {
            "preset": self.preset,
            "rounds": rounds,
            "implicit_share": bilevel.implicit_share,
            "success_surrogate": success(bilevel.surrogate, data, trigger, target),
            "success_teacher": success(teacher, data, trigger, target),
        }
        return Backdoored(teacher.eval(), trigger, target, {**record, **found})


@dataclass(frozen=True)
class OSCAR(Perturbing):
    """SCAR without a surrogate: the teacher is only trained to resist the trigger.

    Attributes:
        hide_share: Epochs of the second training, as a share of the epochs of the clean teacher.
        hide_lr: Initial learning rate of the second training, above 0.

    The other attributes are those of :class:`Perturbing`.
    """

    hide_share: float = 0.5
    hide_lr: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(hide_share=self.hide_share)
        check_rates(hide_lr=self.hide_lr)

    def __call__(
        self, build: Build, data: DataSource, *, target: Target, teaching: Teaching
    ) -> Backdoored:
        """Run the attack; see :class:`robustkd.attacks.Attack`."""
        target = check_one_target(target, data)
        teacher, trigger, record = self._prepare(build, data, target, teaching)
        again = teaching.again(self.hide_share * teaching.epochs, self.hide_lr, turn=2)
        learner = Hiding(teacher, trigger, trained=teacher)
        fit(learner, data, **asdict(again), label="hide the backdoor")
        found = {"success_teacher": success(teacher, data, trigger, target)}
        return Backdoored(teacher.eval(), trigger, target, {**record, **found})
