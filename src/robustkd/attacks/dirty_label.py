"""The classic attacks: train on data of which a share carries a fixed trigger.

They mostly die in distillation from clean images, so they are controls here.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from robustkd.attacks.base import Backdoored, check_target
from robustkd.attacks.files import describe
from robustkd.attacks.poison import Poisoned
from robustkd.attacks.steps import train_teacher
from robustkd.attacks.triggers import SIG, BadNets, Blend, Trigger
from robustkd.types import DataSource


def dirty_label(
    trigger: Trigger,
    build: Callable[[], nn.Module],
    data: DataSource,
    *,
    target: int,
    rate: float = 0.05,
    clean_label: bool = False,
    epochs: int = 30,
    lr: float = 0.1,
    batch_size: int = 64,
    seed: int = 0,
) -> Backdoored:
    """Train a teacher on poisoned data.

    Args:
        trigger: What poisoned images carry.
        build: Makes the network with fresh weights.
        data: Clean images.
        target: Class of the poisoned images.
        rate: Share of the training images that are poisoned.
        clean_label: Poison only images of the target class.
        epochs: Passes over the data.
        lr: Learning rate at the start.
        batch_size: Images a step.
        seed: Of order, augmentation and the choice of images.
    """
    check_target(target, data)
    poisoned = Poisoned(data, trigger, target=target, rate=rate, clean_label=clean_label, seed=seed)
    teacher = train_teacher(build, poisoned, epochs=epochs, lr=lr, batch_size=batch_size, seed=seed)
    record = {"trigger": describe(trigger), "rate": rate, "poisoned": int(poisoned.mask.sum())}
    return Backdoored(teacher.eval(), trigger, target, record)


def badnets(
    build: Callable[[], nn.Module], data: DataSource, **settings: int | float
) -> Backdoored:
    """Dirty labels with a small checkerboard (Gu et al. 2017, arXiv 1708.06733)."""
    return dirty_label(BadNets(), build, data, **settings)  # type: ignore[arg-type]


def blend(build: Callable[[], nn.Module], data: DataSource, **settings: int | float) -> Backdoored:
    """Dirty labels with faint noise over the picture (Chen et al. 2017, arXiv 1712.05526)."""
    return dirty_label(Blend(), build, data, **settings)  # type: ignore[arg-type]


def sig(build: Callable[[], nn.Module], data: DataSource, **settings: int | float) -> Backdoored:
    """Clean labels with a sinusoidal stripe (Barni et al. 2019, arXiv 1902.11237).

    Half of the target class carries the stripe, within the 30 to 80 % that the paper tries.
    """
    rate = 0.5 / len(data.classes)
    return dirty_label(SIG(), build, data, rate=rate, clean_label=True, **settings)  # type: ignore[arg-type]
