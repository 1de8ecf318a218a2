"""Parts that attacks on distillation share: surrogate students, and hiding the backdoor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor, nn

from robustkd.attacks.base import Build, Teaching
from robustkd.core.devices import default_device
from robustkd.core.types import DataSource, Images, Labels, Logits, Trigger
from robustkd.models.features import taps
from robustkd.training.learners import Unowned, hit_rate
from robustkd.training.loop import fit
from robustkd.training.losses import soft_target_kl


def fresh(build: Build, seed: int) -> nn.Module:
    """Build a network on the default device and initialise its layers again.

    ``build`` may give the same weights at each call. A surrogate with the initial weights of the
    teacher would learn more from it than the student of a victim. The layers are initialised by
    PyTorch's defaults, even if the architecture has its own initialisation. Parameters outside such
    layers stay as they were built.

    Args:
        build: Builds the network.
        seed: Seed of the new weights; the global random state is restored afterwards.
    """
    model = build()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return model.to(default_device())


def at_rate(teaching: Teaching, rate: float | None) -> Teaching:
    """Return the training settings with a surrogate's own learning rate, if it is not None."""
    return teaching if rate is None else replace(teaching, lr=rate)


def distillation_loss(
    student: Logits, teacher: Logits, labels: Labels, *, temperature: float
) -> Tensor:
    """Cross-entropy with the labels plus divergence from the soft targets, mean over the batch."""
    divergence = soft_target_kl(student, teacher, temperature=temperature).mean()
    return nn.functional.cross_entropy(student, labels) + divergence


class Distilling(nn.Module):
    """Learner of a student that is distilled from a fixed teacher on clean images."""

    def __init__(self, student: nn.Module, teacher: nn.Module, *, temperature: float) -> None:
        super().__init__()
        self.student, self._temperature = student, temperature
        self._teacher = Unowned(teacher)

    def forward(self, images: Images, labels: Labels) -> dict[str, Tensor]:
        """Return the loss and the accuracy of the student."""
        teacher = self._teacher.module
        with torch.no_grad(), taps.frozen_modes(teacher):
            taught = teacher(images)
        logits = self.student(images)
        loss = distillation_loss(logits, taught, labels, temperature=self._temperature)
        return {"loss": loss, "acc": hit_rate(logits, labels)}


def distilling(
    build: Build, teaching: Teaching, *, temperature: float = 4.0
) -> Callable[[nn.Module, DataSource], nn.Module]:
    """Return a function that distils a student with fresh weights from a teacher, undefended."""

    def distil(teacher: nn.Module, data: DataSource) -> nn.Module:
        student = fresh(build, teaching.seed)
        learner = Distilling(student, teacher, temperature=temperature)
        fit(learner, data, **asdict(teaching), label="distil a surrogate")
        return student

    return distil


class Hiding(nn.Module):
    r"""Learner of a teacher that is trained to give triggered images their true label.

    .. math:: \mathrm{CE}(T(x), y) + \mathrm{CE}(T(x'), y)

    Args:
        teacher: The whole network T.
        trigger: Trigger, which makes x' of x.
        trained: Part of the network that is trained; all other parts keep their mode.
    """

    def __init__(self, teacher: nn.Module, trigger: Trigger, *, trained: nn.Module) -> None:
        super().__init__()
        self.trained, self._trigger = trained, trigger
        self._teacher = Unowned(teacher)

    def forward(self, images: Images, labels: Labels) -> dict[str, Tensor]:
        """Return the loss, the accuracy on clean images and that on triggered images (``ra``)."""
        teacher = self._teacher.module
        clean, marked = both(teacher, images, self._trigger(images))
        loss = nn.functional.cross_entropy(clean, labels)
        loss = loss + nn.functional.cross_entropy(marked, labels)
        return {"loss": loss, "acc": hit_rate(clean, labels), "ra": hit_rate(marked, labels)}


def both(model: nn.Module, clean: Images, marked: Images) -> tuple[Logits, Logits]:
    """Logits of clean and of triggered images from one pass with common BatchNorm statistics."""
    together = torch.cat([clean, marked]).contiguous(memory_format=torch.channels_last)
    first, second = model(together).split([len(clean), len(marked)])
    return first, second


def toward(logits: Logits, target: int) -> Tensor:
    """Cross-entropy with the target class as the label of every image, mean over the batch."""
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
    r"""Loss of a trigger that succeeds on the victims and not on a clean model.

    .. math:: \sum_k \mathrm{CE}(V_k(x'), t) + stealth \cdot \mathrm{CE}(C(x'), \arg\max C(x))

    Args:
        victims: Networks V that should predict the target class.
        clean: Network C that should keep its prediction; None to leave out the second term.
        images: Clean images x.
        marked: The same images with the trigger, x'.
        target: Target class t.
        stealth: Weight of the second term, at least 0.
    """
    loss = torch.stack([toward(victim(marked), target) for victim in victims]).sum()
    if clean is not None:
        with torch.no_grad():
            seen = clean(images).argmax(1)
        loss = loss + stealth * nn.functional.cross_entropy(clean(marked), seen)
    return loss
