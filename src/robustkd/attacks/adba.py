r"""ADBA: teacher, trigger and a shadow student are trained together.

Source: Ge, Wang, Zheng et al., *Anti-Distillation Backdoor Attacks: Backdoors Can
Really Survive in Knowledge Distillation*, MM 2021, doi 10.1145/3474085.3475254. In every step, with
:math:`x' = (1 - m) x + m p`,

.. math::
    T &: \mathrm{CE}(T(x), y) + \beta\, \mathrm{CE}(T(x'), t) \\
    S &: \mathrm{CE}(S(x), y) + KL(T(x), S(x)) \quad \text{(distilled from clean images alone)} \\
    m, p &: \mathrm{CE}(T(x'), t) + \mathrm{CE}(S(x'), t) + \mu \|m\|_2
        + stealth \cdot \mathrm{CE}(C(x'), \arg\max C(x))

The shadow student S stands for the students of the teacher's users: a trigger that succeeds on S is
likely to succeed on them.

ADBA(FT), the comparison of SCAR's paper (Chen et al. 2025, arXiv 2509.23871), then trains the last
layer alone with

.. math:: \mathrm{CE}(T(x), y) + \mathrm{CE}(T(x'), y)

so that the teacher looks clean, although its features still contain the backdoor.

Differences: this implementation is written from the formulas alone; the trigger is optimised in
eval mode, so that no BatchNorm statistic changes; all values of the mask are kept in [0, cap]. The
last term is ours. Nothing in the paper's loss prevents the trigger from becoming a universal
adversarial perturbation, which also succeeds on students trained without the teacher. The last term
therefore keeps the predictions of C, a clean student of the same architecture that is trained
without the teacher. ``stealth=0`` gives the paper's loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from robustkd.attacks.base import Backdoored, Build, Teaching
from robustkd.attacks.parts.steps import success, training_only
from robustkd.attacks.parts.surrogate import (
    Hiding,
    at_rate,
    both,
    distillation_loss,
    fresh,
    toward,
    trigger_loss,
)
from robustkd.attacks.triggers.patterns import MaskedPattern
from robustkd.core.devices import default_device, device_of
from robustkd.core.first_batch import first_batch
from robustkd.core.targets import Target
from robustkd.core.triggers import check_one_target
from robustkd.core.types import DataSource, Images, Labels
from robustkd.core.validation import check_not_negative, check_positive, check_rates, check_share
from robustkd.models.features import taps
from robustkd.models.features.probing import last_parametric_layer
from robustkd.training.hooks import Hooks
from robustkd.training.learners import Supervised, hit_rate
from robustkd.training.loop import fit


@dataclass(frozen=True)
class ADBA:
    """Train a teacher, a shadow student and the trigger together.

    Attributes:
        build_surrogate: Builds the shadow student and the clean student; ``build`` if None.
        surrogate_lr: Initial learning rate of both students; that of the teacher if None.
        cap: Largest value of the trigger's mask, in (0, 1].
        beta: Weight of the teacher's loss on triggered images, at least 0.
        mu: Weight of the mask's Euclidean norm, at least 0.
        stealth: Weight of the clean student's loss, at least 0; with 0, no clean student is
            trained.
        temperature: Temperature of the shadow student's soft targets, above 0.
        trigger_lr: Learning rate of the trigger (Adam), above 0.
    """

    build_surrogate: Build | None = None
    surrogate_lr: float | None = None
    cap: float = 0.1
    beta: float = 0.3
    mu: float = 0.1
    stealth: float = 1.0
    temperature: float = 4.0
    trigger_lr: float = 0.01

    def __post_init__(self) -> None:
        check_share(cap=self.cap)
        check_not_negative(beta=self.beta, mu=self.mu, stealth=self.stealth)
        check_positive(temperature=self.temperature)
        check_rates(trigger_lr=self.trigger_lr)
        if self.surrogate_lr is not None:
            check_rates(surrogate_lr=self.surrogate_lr)

    def __call__(
        self, build: Build, data: DataSource, *, target: Target, teaching: Teaching
    ) -> Backdoored:
        """Run the attack; see :class:`robustkd.attacks.Attack`."""
        target = check_one_target(target, data)
        seed, smaller = teaching.seed, self.build_surrogate or build
        clean = None
        if self.stealth > 0:
            clean = fresh(smaller, 3 * seed)
            apart = at_rate(replace(teaching, seed=seed + 1), self.surrogate_lr)
            fit(Supervised(clean), data, **asdict(apart), label="train a clean student")
            clean.requires_grad_(False)
        teacher, shadow = build().to(default_device()), fresh(smaller, 3 * seed + 1)
        trigger = self._learn_together(teacher, shadow, clean, data, target, teaching)
        record = {
            "cap": self.cap,
            "mean_mask": float(trigger.mask.mean()),
            "stealth": self.stealth,
            "poisoned": data.size("train"),
            "success_shadow": success(shadow, data, trigger, target),
        }
        if clean is not None:
            record["success_clean"] = success(clean, data, trigger, target)
        return Backdoored(teacher.eval(), trigger, target, record)

    def _learn_together(
        self,
        teacher: nn.Module,
        shadow: nn.Module,
        clean: nn.Module | None,
        data: DataSource,
        target: int,
        teaching: Teaching,
    ) -> MaskedPattern:
        """Train both networks in place, with one step on the trigger after each of their steps."""
        pixels = _Pixels(
            data.image_shape,
            device_of(teacher),
            cap=self.cap,
            mu=self.mu,
            lr=self.trigger_lr,
            seed=teaching.seed,
        )
        learner = _Together(
            teacher, shadow, pixels, target=target, beta=self.beta, temperature=self.temperature
        )
        victims = teacher, shadow

        def loss(images: Images, marked: Images) -> Tensor:
            return trigger_loss(victims, clean, images, marked, target=target, stealth=self.stealth)

        fit(
            learner,
            data,
            **asdict(teaching),
            rates={"shadow": at_rate(teaching, self.surrogate_lr).lr},
            label="train all together",
            hooks=Hooks(after_backward=lambda: pixels.step(loss, victims, learner.seen)),
        )
        return pixels.trigger()


@dataclass(frozen=True)
class ADBAFT(ADBA):
    """ADBA followed by training of the last layer, which hides the backdoor of the teacher.

    Attributes:
        hide_share: Epochs of the last layer's training, as a share of the epochs of ADBA.
        hide_lr: Initial learning rate of this training, above 0.

    The other attributes are those of :class:`ADBA`.
    """

    hide_share: float = 0.3
    hide_lr: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(hide_share=self.hide_share)
        check_rates(hide_lr=self.hide_lr)

    def __call__(
        self, build: Build, data: DataSource, *, target: Target, teaching: Teaching
    ) -> Backdoored:
        """Run the attack; see :class:`robustkd.attacks.Attack`."""
        made = super().__call__(build, data, target=target, teaching=teaching)
        hide(made, data, teaching.again(self.hide_share * teaching.epochs, self.hide_lr, turn=2))
        return made


def hide(made: Backdoored, data: DataSource, teaching: Teaching) -> None:
    """Train only the last layer of a teacher to give triggered images their true label.

    Args:
        made: Teacher and trigger; the teacher is changed in place.
        data: Clean images.
        teaching: Training settings.
    """
    teacher = made.teacher.eval()
    example = first_batch(data, "train", batch_size=2, device=device_of(teacher)).images
    last = last_parametric_layer(teacher, example)
    with training_only(teacher, last.parameters()):
        learner = Hiding(teacher, made.trigger, trained=last)
        fit(learner, data, **asdict(teaching), label="hide the backdoor")


class _Pixels:
    """A trigger under training: mask in [0, cap], pattern in [0, 1], and their optimiser."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        device: torch.device,
        *,
        cap: float,
        mu: float,
        lr: float,
        seed: int,
    ) -> None:
        random = torch.Generator().manual_seed(seed)
        self._pattern = torch.rand(shape, generator=random).to(device).requires_grad_()
        self._mask = torch.full(shape, cap, device=device, requires_grad=True)
        # Relative to their ranges, steps of the mask and of the pattern are equally large.
        groups: list[dict[str, object]] = [
            {"params": [self._pattern]},
            {"params": [self._mask], "lr": cap * lr},
        ]
        self._optimiser = torch.optim.Adam(groups, lr=lr)
        self._cap, self._mu = cap, mu

    def __call__(self, images: Images) -> Images:
        return torch.lerp(images, self._pattern, self._mask)

    def step(
        self,
        loss: Callable[[Images, Images], Tensor],
        models: tuple[nn.Module, nn.Module],
        images: Images,
    ) -> None:
        """Take one optimiser step; the gradients of the models are not changed."""
        with taps.frozen_modes(models[0]), taps.frozen_modes(models[1]):
            value = loss(images, self(images)) + self._mu * self._mask.norm()
        planes = [self._pattern, self._mask]
        for plane, slope in zip(planes, torch.autograd.grad(value, planes), strict=True):
            plane.grad = slope
        self._optimiser.step()
        with torch.no_grad():
            self._pattern.clamp_(0, 1)
            self._mask.clamp_(0, self._cap)

    def trigger(self) -> MaskedPattern:
        """Return the learned trigger, on the CPU."""
        planes = (plane.detach().cpu().clone() for plane in (self._mask, self._pattern))
        return MaskedPattern(*planes)


class _Together(nn.Module):
    """Learner of teacher and shadow student; both losses use the same pass of the teacher."""

    def __init__(
        self,
        teacher: nn.Module,
        shadow: nn.Module,
        pixels: _Pixels,
        *,
        target: int,
        beta: float,
        temperature: float,
    ) -> None:
        super().__init__()
        self.teacher, self.shadow = teacher, shadow
        self._pixels, self._target = pixels, target
        self._beta, self._temperature = beta, temperature
        self.seen = torch.empty(0)

    def forward(self, images: Images, labels: Labels) -> dict[str, Tensor]:
        """Return the sum of both losses; neither network receives a gradient from the other's."""
        self.seen = images
        with torch.no_grad():
            marked = self._pixels(images)
        clean, triggered = both(self.teacher, images, marked)
        taught = nn.functional.cross_entropy(clean, labels)
        taught = taught + self._beta * toward(triggered, self._target)
        shadowed = distillation_loss(
            self.shadow(images), clean.detach(), labels, temperature=self._temperature
        )
        return {"loss": taught + shadowed, "acc": hit_rate(clean, labels), "shadow": shadowed}
