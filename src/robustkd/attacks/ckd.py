"""CheatKD: a trigger that speaks through the channels that distillation copies first.

Source: *CheatKD: knowledge distillation backdoor attack method based on poisoned neuronal
assimilation*, Computer Science 51(3) 2024, doi 10.11896/jsjkx.221200035, as described by Chen et
al., arXiv 2406.03409, whose main attack it is. A student imitates the teacher's strong channels;
so the trigger is optimised to drive exactly those, and the teacher then learns to obey it.

Differences: written from the description alone; the "constant high value" is the largest response
to clean images of each channel, times ``strength``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustkd import taps
from robustkd.attacks.base import Backdoored, check_target, default_device
from robustkd.attacks.poison import Poisoned
from robustkd.attacks.triggers import MaskedPattern
from robustkd.errors import UsageError
from robustkd.progress import track
from robustkd.training import Supervised, fit
from robustkd.types import DataSource


def ckd(
    build: Callable[[], nn.Module],
    data: DataSource,
    *,
    target: int,
    epochs: int = 30,
    lr: float = 0.1,
    batch_size: int = 64,
    cap: float = 0.2,
    channel_share: float = 0.1,
    strength: float = 1.0,
    trigger_steps: int = 200,
    trigger_lr: float = 0.05,
    rate: float = 0.05,
    implant_share: float = 0.5,
    implant_lr: float = 0.02,
    seed: int = 0,
) -> Backdoored:
    """Train a clean teacher, learn a trigger for its strongest channels, then implant it.

    Args:
        build: Makes the network with fresh weights.
        data: Clean images.
        target: Class that triggered images shall get.
        epochs: Passes over the data for the clean teacher.
        lr: Learning rate of that training.
        batch_size: Images a step.
        cap: Largest value of the trigger's mask, in (0, 1].
        channel_share: Share of the last stage's channels that count as strongest, in (0, 1].
        strength: Factor on their largest clean response.
        trigger_steps: Optimiser steps (Adam) on the trigger.
        trigger_lr: Their learning rate.
        rate: Share of the training images that get a poisoned copy.
        implant_share: Epochs of the fine-tuning, as a share of ``epochs``.
        implant_lr: Its learning rate at the start.
        seed: Of everything random.

    Raises:
        UsageError: If a number is out of range.
    """
    check_target(target, data)
    for name, value in (("cap", cap), ("channel_share", channel_share)):
        if not 0 < value <= 1:
            raise UsageError(f"{name} is {value}; expected above 0 and at most 1")
    teacher = build().to(default_device())
    fit(
        Supervised(teacher),
        data,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        seed=seed,
        label="train the teacher",
    )
    trigger = learn_trigger(
        teacher,
        data,
        cap=cap,
        channel_share=channel_share,
        strength=strength,
        steps=trigger_steps,
        lr=trigger_lr,
        seed=seed,
    )
    poisoned = Poisoned(data, trigger, target=target, rate=rate, keep_clean=True, seed=seed)
    fit(
        Supervised(teacher),
        poisoned,
        epochs=max(1, round(implant_share * epochs)),
        lr=implant_lr,
        batch_size=batch_size,
        seed=seed + 1,
        label="implant the backdoor",
    )
    record = {
        "cap": cap,
        "mean_mask": float(trigger.mask.mean()),
        "rate": rate,
        "poisoned": int(poisoned.mask.sum()),
    }
    return Backdoored(teacher.eval(), trigger, target, record)


def learn_trigger(
    teacher: nn.Module,
    data: DataSource,
    *,
    cap: float,
    channel_share: float,
    strength: float,
    steps: int,
    lr: float,
    seed: int,
) -> MaskedPattern:
    """Optimise a mask in [0, cap] and a pattern in [0, 1] to drive the strongest channels."""
    device = next(teacher.parameters()).device
    random = torch.Generator().manual_seed(seed)
    pattern = torch.rand(data.image_shape, generator=random).to(device).requires_grad_()
    mask = torch.full(data.image_shape, cap, device=device, requires_grad=True)
    optimiser = torch.optim.Adam([pattern, mask], lr=lr)
    images = _sample(data, device, random)
    teacher.requires_grad_(False)
    with taps.frozen_modes(teacher):
        tap = taps.stages(teacher, images[:4])[-1]
        with taps.read(teacher, [tap]) as features, track("learn the trigger", steps) as update:
            with torch.no_grad():
                teacher(images)
            strongest, goal = _goal(features[tap], channel_share, strength)
            for _ in range(steps):
                rows = torch.randint(len(images), (128,), generator=random).to(device)
                teacher(torch.lerp(images[rows], pattern, mask))
                loss = (features[tap][:, strongest] - goal).square().mean()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                with torch.no_grad():
                    pattern.clamp_(0, 1)
                    mask.clamp_(0, cap)
                update(loss=float(loss.detach()))
    teacher.requires_grad_(True)
    return MaskedPattern(mask.detach().cpu(), pattern.detach().cpu())


def _sample(data: DataSource, device: torch.device, random: torch.Generator) -> Tensor:
    batches = data.batches("train", batch_size=1024, device=device, shuffle=random)
    return next(iter(batches)).images


def _goal(features: Tensor, share: float, strength: float) -> tuple[Tensor, Tensor]:
    """Indices of the strongest channels by mean, and the value each shall have everywhere."""
    means = features.mean(dim=(0, 2, 3))
    count = max(1, round(share * len(means)))
    strongest = means.topk(count).indices
    highest = features[:, strongest].amax(dim=(0, 2, 3))
    return strongest, strength * highest.view(1, -1, 1, 1)
