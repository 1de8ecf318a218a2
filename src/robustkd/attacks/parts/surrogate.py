"""What attacks on distillation share: a student of the attacker's own, and looking clean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor, nn

from robustkd.attacks.base import Build, Teaching
from robustkd.core.devices import default_device
from robustkd.core.types import DataSource, Images, Labels, Logits, Trigger
from robustkd.models.features import taps
from robustkd.training.learners import hit_rate
from robustkd.training.loop import fit
from robustkd.training.losses import soft_target_kl


def fresh(build: Build, seed: int) -> nn.Module:
    """A network on the attack's device, whose layers drew their weights anew.

    ``build`` may give the same weights at each call. A surrogate that starts where the teacher
    started would learn more from it than any victim's student does. The layers draw as PyTorch
    does, whatever the architecture's own way; a parameter of no layer stays as it was built.
    """
    model = build()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return model.to(default_device())


def at_rate(teaching: Teaching, rate: float | None) -> Teaching:
    """The same teaching at a surrogate's own learning rate, where there is one."""
    return teaching if rate is None else replace(teaching, lr=rate)


def distillation_loss(
    student: Logits, teacher: Logits, labels: Labels, *, temperature: float
) -> Tensor:
    """Cross-entropy of the labels plus the soft targets' divergence, mean over the batch."""
    divergence = soft_target_kl(student, teacher, temperature=temperature).mean()
    return nn.functional.cross_entropy(student, labels) + divergence


class Distilling(nn.Module):
    """A learner: a student of a teacher that stands still, on clean images."""

    def __init__(self, student: nn.Module, teacher: nn.Module, *, temperature: float) -> None:
        super().__init__()
        self.student, self._temperature = student, temperature
        self._teacher = (teacher,)  # in a tuple, as it is neither trained nor set to train mode

    def forward(self, images: Images, labels: Labels) -> dict[str, Tensor]:
        """The loss, and the student's share of hits."""
        (teacher,) = self._teacher
        with torch.no_grad(), taps.frozen_modes(teacher):
            taught = teacher(images)
        logits = self.student(images)
        loss = distillation_loss(logits, taught, labels, temperature=self._temperature)
        return {"loss": loss, "acc": hit_rate(logits, labels)}


def distilling(
    build: Build, teaching: Teaching, *, temperature: float = 4.0
) -> Callable[[nn.Module, DataSource], nn.Module]:
    """A function that distils a student with fresh weights from a teacher, plainly."""

    def distil(teacher: nn.Module, data: DataSource) -> nn.Module:
        student = fresh(build, teaching.seed)
        learner = Distilling(student, teacher, temperature=temperature)
        fit(learner, data, **asdict(teaching), label="distil a surrogate")
        return student

    return distil


class Hiding(nn.Module):
    r"""A learner: a teacher that gives triggered images their true label.

    .. math:: \mathrm{CE}(T(x), y) + \mathrm{CE}(T(x'), y)

    Args:
        teacher: The whole network.
        trigger: Makes x' of x.
        trained: The part of it that learns; all other parts keep their mode.
    """

    def __init__(self, teacher: nn.Module, trigger: Trigger, *, trained: nn.Module) -> None:
        super().__init__()
        self.trained, self._trigger = trained, trigger
        self._teacher = (teacher,)

    def forward(self, images: Images, labels: Labels) -> dict[str, Tensor]:
        """The loss, and the share of hits among clean and triggered images."""
        (teacher,) = self._teacher
        clean, marked = both(teacher, images, self._trigger(images))
        loss = nn.functional.cross_entropy(clean, labels)
        loss = loss + nn.functional.cross_entropy(marked, labels)
        return {"loss": loss, "acc": hit_rate(clean, labels), "ra": hit_rate(marked, labels)}


def both(model: nn.Module, clean: Images, marked: Images) -> tuple[Logits, Logits]:
    """Logits of clean and of triggered images from one pass, so that BatchNorm sees both."""
    together = torch.cat([clean, marked]).contiguous(memory_format=torch.channels_last)
    first, second = model(together).split([len(clean), len(marked)])
    return first, second


def toward(logits: Logits, target: int) -> Tensor:
    """Cross-entropy of a wanted class, mean over the batch."""
    return nn.functional.cross_entropy(logits, logits.new_full((len(logits),), target).long())


def trigger_loss(
    victims: Sequence[nn.Module],
    clean: nn.Module | None,
    images: Images,
    marked: Images,
    *,
    target: int,
    stealth: float,
) -> Tensor:
    r"""What a trigger minimises: victims go to the target, and a clean model is not changed.

    .. math:: \sum_k \mathrm{CE}(V_k(x'), t) + stealth \cdot \mathrm{CE}(C(x'), \arg\max C(x))
    """
    loss = torch.stack([toward(victim(marked), target) for victim in victims]).sum()
    if clean is not None:
        with torch.no_grad():
            seen = clean(images).argmax(1)
        loss = loss + stealth * nn.functional.cross_entropy(clean(marked), seen)
    return loss
