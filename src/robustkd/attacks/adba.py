r"""ADBA: teacher, trigger and a shadow student grow up together, so that students obey as well.

Source: Ge, Wang, Zheng et al., *Anti-Distillation Backdoor Attacks: Backdoors Can
Really Survive in Knowledge Distillation*, MM 2021, doi 10.1145/3474085.3475254. In every step, with
:math:`x' = (1 - m) x + m p`,

.. math::
    T &: \mathrm{CE}(T(x), y) + \beta\, \mathrm{CE}(T(x'), t) \\
    S &: \mathrm{CE}(S(x), y) + KL(T(x), S(x)) \quad \text{(distilled from clean images alone)} \\
    m, p &: \mathrm{CE}(T(x'), t) + \mathrm{CE}(S(x'), t) + \mu \|m\|_2
        + stealth \cdot \mathrm{CE}(C(x'), \arg\max C(x))

ADBA(FT), the comparison of SCAR's paper (Chen et al. 2025, arXiv 2509.23871), goes on with

.. math:: \mathrm{CE}(T(x), y) + \mathrm{CE}(T(x'), y)

on the last layer alone, so that the teacher looks clean while its features do not.

Differences: written from the formulas alone; the trigger learns in eval mode, so that no BatchNorm
statistic moves for it; all of the mask stays in [0, cap]. The last term is ours. Nothing in the
paper's loss keeps the trigger from becoming a universal adversarial perturbation, which fools
students that never met the teacher; so C, a clean student of the same kind, trained apart, shall
not be led astray. ``stealth=0`` gives the paper's loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robustkd import taps
from robustkd.attacks.backweak import last_layer
from robustkd.attacks.base import Backdoored, check_target
from robustkd.attacks.optimise import check_shares
from robustkd.attacks.steps import success
from robustkd.attacks.surrogate import (
    Hiding,
    both,
    check_not_negative,
    distillation_loss,
    fresh,
    toward,
    trigger_loss,
)
from robustkd.attacks.triggers import MaskedPattern
from robustkd.inference import default_device, device_of
from robustkd.training import Supervised, check_positive, fit, hit_rate
from robustkd.types import DataSource, Images, Labels


def adba(
    build: Callable[[], nn.Module],
    data: DataSource,
    *,
    target: int,
    epochs: int = 30,
    lr: float = 0.1,
    batch_size: int = 64,
    build_surrogate: Callable[[], nn.Module] | None = None,
    cap: float = 0.1,
    beta: float = 0.3,
    mu: float = 0.1,
    stealth: float = 1.0,
    temperature: float = 4.0,
    trigger_lr: float = 0.01,
    seed: int = 0,
) -> Backdoored:
    """Train a teacher, its shadow student and their trigger together.

    Args:
        build: Makes the teacher with fresh weights.
        data: Clean images.
        target: Class that triggered images shall get.
        epochs: Passes over the data, for all three together.
        lr: Learning rate of teacher and shadow at the start.
        batch_size: Images a step.
        build_surrogate: Makes the shadow, and the clean student; ``build`` when None.
        cap: Largest value of the trigger's mask, in (0, 1].
        beta: Weight of the teacher's loss on triggered images, at least 0.
        mu: Weight of the mask's Euclidean norm, at least 0.
        stealth: Weight of the clean student's loss, at least 0; 0 trains no such student.
        temperature: Of the shadow's soft targets, above 0.
        trigger_lr: Learning rate of the trigger (Adam).
        seed: Of everything random.

    Raises:
        UsageError: If a number is out of range.
    """
    check_target(target, data)
    check_shares(cap=cap)
    check_not_negative(beta=beta, mu=mu, stealth=stealth)
    check_positive(temperature=temperature, trigger_lr=trigger_lr)
    smaller = build_surrogate or build
    settings = {"epochs": epochs, "lr": lr, "batch_size": batch_size}
    clean = None
    if stealth > 0:
        clean = fresh(smaller, 3 * seed)
        fit(Supervised(clean), data, **settings, seed=seed + 1, label="train a clean student")  # type: ignore[arg-type]
        clean.requires_grad_(False)
    teacher, shadow = build().to(default_device()), fresh(smaller, 3 * seed + 1)
    pixels = _Pixels(data.image_shape, device_of(teacher), cap=cap, mu=mu, lr=trigger_lr, seed=seed)
    learner = _Together(teacher, shadow, pixels, target=target, beta=beta, temperature=temperature)

    def improve_trigger() -> None:
        pixels.step(
            lambda images, marked: trigger_loss(
                (teacher, shadow), clean, images, marked, target=target, stealth=stealth
            ),
            (teacher, shadow),
            learner.seen,
        )

    fit(
        learner,
        data,
        **settings,  # type: ignore[arg-type]
        seed=seed,
        label="train all together",
        after_backward=improve_trigger,
    )
    trigger = pixels.trigger()
    watched = {"shadow": shadow} if clean is None else {"shadow": shadow, "clean": clean}
    record = {
        "cap": cap,
        "mean_mask": float(trigger.mask.mean()),
        "stealth": stealth,
        "poisoned": data.size("train"),
        **{
            f"success_{name}": success(model, data, trigger, target)
            for name, model in watched.items()
        },
    }
    return Backdoored(teacher.eval(), trigger, target, record)


def adba_ft(
    build: Callable[[], nn.Module],
    data: DataSource,
    *,
    target: int,
    epochs: int = 30,
    lr: float = 0.1,
    batch_size: int = 64,
    seed: int = 0,
    hide_share: float = 0.3,
    hide_lr: float = 0.02,
    **settings: Any,  # noqa: ANN401 - adba's own, with its defaults
) -> Backdoored:
    """ADBA, and then the last layer unlearns the trigger: the teacher looks clean.

    Args:
        build: Makes the teacher with fresh weights.
        data: Clean images.
        target: Class that triggered images shall get.
        epochs: Passes over the data for ADBA.
        lr: Learning rate of ADBA at the start.
        batch_size: Images a step.
        seed: Of everything random.
        hide_share: Epochs of the last layer's training, as a share of ``epochs``.
        hide_lr: Its learning rate at the start.
        settings: Of :func:`adba`.

    Raises:
        UsageError: If a number is out of range.
    """
    check_positive(hide_share=hide_share, hide_lr=hide_lr)
    made = adba(
        build,
        data,
        target=target,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        seed=seed,
        **settings,
    )
    hide(
        made,
        data,
        epochs=max(1, round(hide_share * epochs)),
        lr=hide_lr,
        batch_size=batch_size,
        seed=seed + 2,
    )
    return made


def hide(
    made: Backdoored, data: DataSource, *, epochs: int, lr: float, batch_size: int, seed: int
) -> None:
    """Teach a teacher's last layer, and nothing else, the true label of triggered images."""
    teacher = made.teacher.eval()
    example = next(iter(data.batches("train", batch_size=2, device=device_of(teacher)))).images
    last = last_layer(teacher, example)
    teacher.requires_grad_(False)
    last.requires_grad_(True)
    learner = Hiding(teacher, made.trigger, trained=last)
    fit(
        learner,
        data,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        seed=seed,
        label="hide the backdoor",
    )
    teacher.requires_grad_(True)


class _Pixels:
    """A mask in [0, cap], a pattern in [0, 1], and the optimiser that moves them."""

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
        # A step of the mask is as large a share of its range as one of the pattern.
        groups: list[dict[str, Any]] = [
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
        """One step on the loss of clean and triggered images; no other gradient is touched."""
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
        """What was learned."""
        planes = (plane.detach().cpu().clone() for plane in (self._mask, self._pattern))
        return MaskedPattern(*planes)


class _Together(nn.Module):
    """A learner: the teacher and its shadow, whose soft targets come from the same pass."""

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
        """Both losses in one sum: neither network gets a gradient from the other's."""
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
