r"""SCAR: a teacher that looks clean, and whose backdoor wakes in the student.

Source: Chen, Li, Yuan et al., *Taught Well Learned Ill: Towards
Distillation-conditional Backdoor Attack*, NeurIPS 2025, arXiv 2509.23871. First a trigger
:math:`x' = clamp(x + \delta)` is learned that takes a clean teacher and a clean student of it to
the target; from then on it is fixed. Then the teacher T learns through a surrogate student S:

.. math::
    outer &: \min_T \mathrm{CE}(T(x), y) + \mathrm{CE}(T(x'), y)
        + \mathrm{CE}(S(x), y) + \mathrm{CE}(S(x'), t) \\
    inner &: S = \arg\min_S \mathrm{CE}(S(x), y) + KL(T(x), S(x))

Each round distils S from T, then moves T for some steps along the hypergradient (see
:func:`robustkd.training.hypergradient.hypergradient`).

OSCAR leaves the surrogate out (the paper's ablation; the name is that of the comparison in arXiv
2511.12046): the same trigger, and a teacher that learns to resist it. Students do not inherit
anything then; they lack the resistance. Whatever success OSCAR has on students is that of a
universal adversarial perturbation, and so is much of SCAR's: both records give it as
``success_clean``, the success on a student that never met the attacked teacher.

Differences: written from the formulas; the settings of ``paper`` are the defaults that the authors
published (ε 0.1; 200 rounds of 20 epochs and 40 steps of 128 images; 100 products with the Hessian
at a step size of 1e-5; Adam with 1e-3 and cosine over the rounds for the teacher), but clean
networks and surrogates learn by this project's SGD. Note that 100 steps of 1e-5 make the implicit
part about a thousandth of a gradient step, far from the inverse Hessian: the record's
``implicit_share`` is the norm of that part over that of the direct one. ``small`` takes fewer and
larger steps, and a new surrogate only every few rounds. ``stealth`` adds our term to the trigger's
loss, which keeps it from leading a second clean student astray (see :mod:`robustkd.attacks.adba`);
it is 0, as in the paper, unless asked for.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustkd.attacks.base import Backdoored, Build, Teaching, check_target
from robustkd.attacks.parts.bilevel import PRESETS, Bilevel
from robustkd.attacks.parts.steps import success
from robustkd.attacks.parts.surrogate import Distilling, Hiding, at_rate, fresh, trigger_loss
from robustkd.attacks.parts.trigger_search import Bounded, check_shares, optimise_planes, sample
from robustkd.attacks.triggers.additive import Additive, into_range
from robustkd.core.devices import default_device, device_of
from robustkd.core.errors import UsageError
from robustkd.core.types import DataSource
from robustkd.core.validation import check_not_negative, check_positive
from robustkd.training.learners import Supervised
from robustkd.training.loop import fit


class _Clean(NamedTuple):
    """What the trigger is learned on: none of it knows of any backdoor."""

    teacher: nn.Module
    student: nn.Module
    judge: nn.Module
    """A student that was trained without the teacher."""


class _Prepared(NamedTuple):
    """Where SCAR and OSCAR part."""

    teacher: nn.Module
    trigger: Additive
    record: dict[str, Any]


@dataclass(frozen=True)
class Perturbing:
    """What SCAR and OSCAR share: clean networks, and a trigger that is learned on them.

    Attributes:
        build_surrogate: Makes the attacker's own students; the teacher's ``build`` when None.
        surrogate_lr: Their learning rate at the start; the teacher's when None.
        epsilon: Largest change of a pixel, in (0, 1].
        stealth: Weight of the clean student's loss in the trigger's, at least 0.
        trigger_steps: Optimiser steps (Adam) on the trigger.
        trigger_lr: Their learning rate.
        temperature: Of the students' soft targets, above 0.
    """

    build_surrogate: Build | None = None
    surrogate_lr: float | None = None
    epsilon: float = 0.1
    stealth: float = 0.0
    trigger_steps: int = 500
    trigger_lr: float = 0.01
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_shares(epsilon=self.epsilon)
        check_not_negative(stealth=self.stealth)
        check_positive(
            trigger_steps=self.trigger_steps,
            trigger_lr=self.trigger_lr,
            temperature=self.temperature,
        )
        if self.surrogate_lr is not None:
            check_positive(surrogate_lr=self.surrogate_lr)

    def _prepare(
        self, build: Build, data: DataSource, target: int, teaching: Teaching
    ) -> _Prepared:
        """Train the clean networks, and learn the trigger on them."""
        check_target(target, data)
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
        """Optimise a perturbation within epsilon that takes teacher and student to the target."""
        random = torch.Generator().manual_seed(seed)
        images = sample(data, device_of(clean.teacher), random).images
        judge = clean.judge if self.stealth > 0 else None

        def loss(images: Tensor, delta: Tensor) -> Tensor:
            marked = into_range(images + delta)
            return trigger_loss(
                clean[:2], judge, images, marked, target=target, stealth=self.stealth
            )

        start = Bounded(torch.zeros(data.image_shape), -self.epsilon, self.epsilon)
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
    """Train clean networks, learn a trigger on them, then teach the teacher through a surrogate.

    Attributes:
        preset: How much work the bilevel optimisation is: ``small`` or ``paper``.
        rounds: Of it; the preset's when None.
        outer_lr: Learning rate of the teacher (Adam) in the bilevel optimisation.

    The others are those of :class:`Perturbing`.
    """

    preset: str = "small"
    rounds: int | None = None
    outer_lr: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset not in PRESETS:
            raise UsageError(f"preset is {self.preset!r}; expected {' or '.join(PRESETS)}")
        if self.rounds is not None and not (isinstance(self.rounds, int) and self.rounds > 0):
            raise UsageError(f"rounds is {self.rounds!r}; expected a whole number above 0")
        check_positive(outer_lr=self.outer_lr)

    def __call__(
        self, build: Build, data: DataSource, *, target: int, teaching: Teaching
    ) -> Backdoored:
        """Run the attack; see :class:`robustkd.attacks.Attack`.

        Raises:
            TrainingError: If a hypergradient is not finite.
        """
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
        record |= {
            "preset": self.preset,
            "rounds": rounds,
            "implicit_share": bilevel.implicit_share,
            "success_surrogate": success(bilevel.surrogate, data, trigger, target),
            "success_teacher": success(teacher, data, trigger, target),
        }
        return Backdoored(teacher.eval(), trigger, target, record)


@dataclass(frozen=True)
class OSCAR(Perturbing):
    """SCAR without a surrogate in the loop: the teacher learns to resist the trigger, no more.

    Attributes:
        hide_share: Epochs of the second training, as a share of the clean teacher's.
        hide_lr: Its learning rate at the start.

    The others are those of :class:`Perturbing`.
    """

    hide_share: float = 0.5
    hide_lr: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(hide_share=self.hide_share, hide_lr=self.hide_lr)

    def __call__(
        self, build: Build, data: DataSource, *, target: int, teaching: Teaching
    ) -> Backdoored:
        """Run the attack; see :class:`robustkd.attacks.Attack`."""
        teacher, trigger, record = self._prepare(build, data, target, teaching)
        again = teaching.again(self.hide_share * teaching.epochs, self.hide_lr, turn=2)
        learner = Hiding(teacher, trigger, trained=teacher)
        fit(learner, data, **asdict(again), label="hide the backdoor")
        record["success_teacher"] = success(teacher, data, trigger, target)
        return Backdoored(teacher.eval(), trigger, target, record)
