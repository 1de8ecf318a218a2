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
:func:`robustkd.attacks.hypergradient.hypergradient`).

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

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustkd.attacks.additive import Additive
from robustkd.attacks.base import Backdoored, check_target
from robustkd.attacks.bilevel import PRESETS, Bilevel
from robustkd.attacks.optimise import Bounded, check_shares, optimise_planes, sample
from robustkd.attacks.steps import success
from robustkd.attacks.surrogate import (
    Distilling,
    Hiding,
    check_not_negative,
    fresh,
    trigger_loss,
)
from robustkd.errors import UsageError
from robustkd.inference import default_device, device_of
from robustkd.training import Supervised, check_positive, fit
from robustkd.types import DataSource


class _Clean(NamedTuple):
    """What the trigger is learned on: none of it knows of any backdoor."""

    teacher: nn.Module
    student: nn.Module
    judge: nn.Module
    """A student that was trained without the teacher."""


def scar(
    build: Callable[[], nn.Module],
    data: DataSource,
    *,
    target: int,
    epochs: int = 30,
    lr: float = 0.1,
    batch_size: int = 64,
    preset: str = "small",
    build_surrogate: Callable[[], nn.Module] | None = None,
    epsilon: float = 0.1,
    stealth: float = 0.0,
    trigger_steps: int = 500,
    trigger_lr: float = 0.01,
    temperature: float = 1.0,
    outer_lr: float = 1e-3,
    seed: int = 0,
) -> Backdoored:
    """Train clean networks, learn a trigger on them, then teach the teacher through a surrogate.

    Args:
        build: Makes the teacher with fresh weights.
        data: Clean images.
        target: Class that triggered images shall get, in students.
        epochs: Passes over the data for each of the clean networks; no more rounds than that are
            done, either.
        lr: Learning rate of these and of the surrogates.
        batch_size: Images a step.
        preset: How much work the bilevel optimisation is: ``small`` or ``paper``.
        build_surrogate: Makes the surrogate and the clean students; ``build`` when None.
        epsilon: Largest change of a pixel, in (0, 1].
        stealth: Weight of the clean student's loss in the trigger's, at least 0.
        trigger_steps: Optimiser steps (Adam) on the trigger.
        trigger_lr: Their learning rate.
        temperature: Of the surrogate's soft targets, above 0.
        outer_lr: Learning rate of the teacher (Adam) in the bilevel optimisation.
        seed: Of everything random.

    Raises:
        UsageError: If a number is out of range, or the preset unknown.
        TrainingError: If a hypergradient is not finite.
    """
    if preset not in PRESETS:
        raise UsageError(f"preset is {preset!r}; expected {' or '.join(PRESETS)}")
    check_positive(outer_lr=outer_lr)
    clean, trigger, record = _prepare(
        build,
        build_surrogate or build,
        data,
        target=target,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        epsilon=epsilon,
        stealth=stealth,
        trigger_steps=trigger_steps,
        trigger_lr=trigger_lr,
        temperature=temperature,
        seed=seed,
    )
    bilevel = Bilevel(
        clean.teacher, build_surrogate or build, data, trigger, target, temperature, PRESETS[preset]
    )
    rounds = min(epochs, PRESETS[preset].rounds)
    bilevel.run(rounds=rounds, lr=lr, batch_size=batch_size, outer_lr=outer_lr, seed=seed)
    record |= {"preset": preset, "rounds": rounds, "implicit_share": bilevel.implicit_share}
    record["success_surrogate"] = success(bilevel.surrogate, data, trigger, target)
    record["success_teacher"] = success(clean.teacher, data, trigger, target)
    return Backdoored(clean.teacher.eval(), trigger, target, record)


def oscar(
    build: Callable[[], nn.Module],
    data: DataSource,
    *,
    target: int,
    epochs: int = 30,
    lr: float = 0.1,
    batch_size: int = 64,
    build_surrogate: Callable[[], nn.Module] | None = None,
    epsilon: float = 0.1,
    stealth: float = 0.0,
    trigger_steps: int = 500,
    trigger_lr: float = 0.01,
    temperature: float = 1.0,
    hide_share: float = 0.5,
    hide_lr: float = 0.02,
    seed: int = 0,
) -> Backdoored:
    """SCAR without a surrogate in the loop: the teacher learns to resist the trigger, no more.

    Args:
        build: Makes the teacher with fresh weights.
        data: Clean images.
        target: Class that triggered images shall get, in students.
        epochs: Passes over the data for each of the clean networks.
        lr: Learning rate of these.
        batch_size: Images a step.
        build_surrogate: Makes the clean students; ``build`` when None.
        epsilon: Largest change of a pixel, in (0, 1].
        stealth: Weight of the clean student's loss in the trigger's, at least 0.
        trigger_steps: Optimiser steps (Adam) on the trigger.
        trigger_lr: Their learning rate.
        temperature: Of the clean student's soft targets, above 0.
        hide_share: Epochs of the second training, as a share of ``epochs``.
        hide_lr: Its learning rate at the start.
        seed: Of everything random.

    Raises:
        UsageError: If a number is out of range.
    """
    check_positive(hide_share=hide_share, hide_lr=hide_lr)
    clean, trigger, record = _prepare(
        build,
        build_surrogate or build,
        data,
        target=target,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        epsilon=epsilon,
        stealth=stealth,
        trigger_steps=trigger_steps,
        trigger_lr=trigger_lr,
        temperature=temperature,
        seed=seed,
    )
    fit(
        Hiding(clean.teacher, trigger, trained=clean.teacher),
        data,
        epochs=max(1, round(hide_share * epochs)),
        lr=hide_lr,
        batch_size=batch_size,
        seed=seed + 2,
        label="hide the backdoor",
    )
    record["success_teacher"] = success(clean.teacher, data, trigger, target)
    return Backdoored(clean.teacher.eval(), trigger, target, record)


def _prepare(
    build: Callable[[], nn.Module],
    build_surrogate: Callable[[], nn.Module],
    data: DataSource,
    *,
    target: int,
    epochs: int,
    lr: float,
    batch_size: int,
    epsilon: float,
    stealth: float,
    trigger_steps: int,
    trigger_lr: float,
    temperature: float,
    seed: int,
) -> tuple[_Clean, Additive, dict[str, Any]]:
    """Train the clean networks, and learn the trigger on them."""
    check_target(target, data)
    check_shares(epsilon=epsilon)
    check_not_negative(stealth=stealth)
    check_positive(trigger_steps=trigger_steps, trigger_lr=trigger_lr, temperature=temperature)
    teacher = build().to(default_device())
    student, judge = fresh(build_surrogate, 3 * seed), fresh(build_surrogate, 3 * seed + 1)
    learners = {
        "train the teacher": Supervised(teacher),
        "train a clean student": Supervised(judge),
        "distil a student": Distilling(student, teacher, temperature=temperature),
    }
    for offset, (label, learner) in enumerate(learners.items()):
        fit(
            learner,
            data,
            epochs=epochs,
            lr=lr,
            batch_size=batch_size,
            seed=seed + offset,
            label=label,
        )
    clean = _Clean(teacher, student, judge)
    trigger = learn_trigger(
        clean,
        data,
        target=target,
        epsilon=epsilon,
        stealth=stealth,
        steps=trigger_steps,
        lr=trigger_lr,
        seed=seed,
    )
    record = {
        "epsilon": epsilon,
        "stealth": stealth,
        "poisoned": data.size("train"),
        "success_before": success(teacher, data, trigger, target),
        "success_clean": success(judge, data, trigger, target),
    }
    return clean, trigger, record


def learn_trigger(
    clean: _Clean,
    data: DataSource,
    *,
    target: int,
    epsilon: float,
    stealth: float,
    steps: int,
    lr: float,
    seed: int,
) -> Additive:
    """Optimise a perturbation within epsilon that takes teacher and student to the target."""
    random = torch.Generator().manual_seed(seed)
    images = sample(data, device_of(clean.teacher), random).images
    judge = clean.judge if stealth > 0 else None

    def loss(images: Tensor, delta: Tensor) -> Tensor:
        marked = (images + delta).clamp(0, 1)
        return trigger_loss(clean[:2], judge, images, marked, target=target, stealth=stealth)

    start = Bounded(torch.zeros(data.image_shape), -epsilon, epsilon)
    (delta,) = optimise_planes(
        nn.ModuleList(clean), images, [start], loss, steps=steps, lr=lr, random=random
    )
    return Additive(delta)
