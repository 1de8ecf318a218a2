"""Universal perturbations that lead the teacher, found before the student is trained.

A backdoor leads the teacher from nearly any image to one class, so a search against the teacher
finds a change of this kind if a family of changes contains one. Hardening changes some of its
copies by what was found. Perturbations that are learned against the student during its training
cannot replace them: on natural images, each follows one of many changes that mislead the student,
and never meets the one that the student inherits. Families of few parameters are searched best,
since they contain few changes that mislead a network without a backdoor.

The search is ours. Sources of its parts: Moosavi-Dezfooli et al. 2017, arXiv 1610.08401 (universal
perturbations); Wang et al. 2019, Neural Cleanse, doi 10.1109/SP.2019.00031 (a trigger is searched
for in each class, and unlearned). Differences from Neural Cleanse: families of transformations in
the place of patches; everything found is used in proportion to its success, without deciding
whether there is a backdoor; the student unlearns it while it is distilled.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robustkd.core.devices import device_of
from robustkd.core.types import DataSource, Images, Labels
from robustkd.student.families import Ball, Patch, make_family, members_of
from robustkd.student.families.search import Found, endless, images_at_once, led_shares

STRENGTHS = (1.0, 0.5)
"""Bounds of the search, as shares of the full bounds."""
STEPS = 30
"""Optimiser steps at the first strength; half as many follow at each further one."""
_PER_CLASS, _FEWEST, _MOST = 2, 16, 64
"""Images of a step for each family: as many per class, at least and at most."""
_START, _LEAST, _MEMORY = 0.5, 0.1, 0.7
_MEASURED, _HELD_OUT = 500, 200
_AT_ONCE = 4
"""Number of families that are used in one step of the student."""
_FLOOR = 0.01
"""Least weight of a member, so that every class can be drawn."""


class FoundPerturbations(nn.Module):
    """Fixed perturbations of every class, drawn in proportion to their success on the teacher.

    Args:
        found: Families with learned members, at each strength; the same families everywhere.
        success: Share of images that each member leads to its class on the teacher.
    """

    def __init__(self, found: Found, success: Float[Tensor, "strengths families classes"]) -> None:
        super().__init__()
        self.found = nn.ModuleList(found)
        # On the CPU, where classes and families are drawn, so that no device has to wait.
        self.success = success.cpu().clamp_min(_FLOOR)

    def get_extra_state(self) -> Tensor:
        """Return the success of the members, for ``state_dict``."""
        return self.success

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the success of the members."""
        self.success = state.cpu()

    @torch.no_grad()
    def perturb(
        self, images: Images, labels: Labels, random: torch.Generator
    ) -> tuple[Images, Labels]:
        """Perturb every image towards a class that is not its own.

        A few families are drawn, and each changes an equal part of the images. The weight of a
        family is the success of its best member, and that of a member its success.

        Args:
            images: N x C x H x W in [0, 1].
            labels: Their labels; -1 for none.
            random: Generator of the choice, on the CPU.

        Returns:
            Perturbed images, in the order of ``images``, and their classes.
        """
        success = self.success
        parts = min(_AT_ONCE, success.shape[1])
        best = success.amax((0, 2))
        drawn = torch.multinomial(best, parts, generator=random).tolist()
        changed, toward = [], []
        for kind, some, own in zip(
            drawn, images.tensor_split(parts), labels.tensor_split(parts), strict=True
        ):
            if not len(some):
                continue
            chances = success[:, kind]
            level = int(torch.multinomial(chances.sum(1), 1, generator=random))
            led = _others(own, chances[level], random)
            families = members_of(self.found[level])  # type: ignore[arg-type]
            changed.append(families[kind](some, led))
            toward.append(led)
        return torch.cat(changed), torch.cat(toward)


def find_perturbations(
    teacher: nn.Module,
    data: DataSource,
    names: Sequence[str],
    *,
    epsilon: float | int = 0.2,
    mass: float | int = 0.05,
    seed: int = 0,
    steps: int = STEPS,
) -> FoundPerturbations:
    """Search for perturbations that lead the teacher to each class.

    Every step has images of every family, and classes that the family leads many images to are
    drawn more often.

    Args:
        teacher: The untrusted network; it is not changed.
        data: Clean images; the search uses ``train``.
        names: Families, names of :data:`robustkd.student.families.FAMILIES`, ``additions`` or
            ``patterns``.
        epsilon: Bound of additions.
        mass: Largest mean of the masks of patterns.
        seed: Seed of everything random.
        steps: Optimiser steps at the first strength; half as many follow at each further one.

    Raises:
        UsageError: If a family is unknown.
    """
    frozen = copy.deepcopy(teacher).eval().requires_grad_(False)
    classes, shape = len(data.classes), data.image_shape
    random = torch.Generator().manual_seed(seed)

    def make(name: str) -> nn.Module:
        if name == "additions":
            return Ball(classes, shape, epsilon, random)
        if name == "patterns":
            return Patch(classes, shape, mass, random)
        return make_family(name, classes, shape, random)

    device = device_of(frozen)
    families = nn.ModuleList(map(make, names)).to(device)
    found = _learn(families, frozen, data, random, steps)
    measured = min(_MEASURED, data.size("train"))
    batch = next(iter(data.batches("train", batch_size=measured, device=device, shuffle=random)))
    shares = led_shares(
        [frozen],
        found,
        batch.images,
        batch.labels,
        held_out=max(1, _HELD_OUT // classes),
        seed=seed,
        classes=classes,
    )
    return FoundPerturbations(found, shares[0])


def _learn(
    families: nn.ModuleList,
    network: nn.Module,
    data: DataSource,
    random: torch.Generator,
    steps: int,
) -> Found:
    """Learn all members towards their classes, and those with success on more images."""
    classes, count = len(data.classes), len(families)
    size = count * min(_MOST, max(_FEWEST, _PER_CLASS * classes))
    batches = endless(data, size, count, device_of(network), random)
    success = torch.full((count, classes), _START)
    found: list[nn.ModuleList] = []
    for strength in STRENGTHS:
        with torch.no_grad():
            for family in members_of(families):
                family.bound(strength)
        for _ in range(steps if not found else max(1, steps // 2)):
            images, labels, _rows = next(batches)
            parts = [
                _others(own, chances, random)
                for own, chances in zip(labels.tensor_split(count), success, strict=True)
            ]
            changed = torch.cat(
                [
                    family(some, led)
                    for family, some, led in zip(
                        members_of(families), images.tensor_split(count), parts, strict=True
                    )
                    if len(some)
                ]
            )
            hits = _ascend(network, changed, torch.cat(parts), images_at_once(data.image_shape))
            with torch.no_grad():
                for family in members_of(families):
                    family.advance(strength)
                _remember(success, parts, hits.cpu())
        found.append(copy.deepcopy(families))
    return tuple(found)


def _ascend(network: nn.Module, changed: Images, toward: Labels, at_once: int) -> Tensor:
    """Compute gradients of the members towards their classes; return what reached its class."""
    seen = changed.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    hits = []
    for some, led in zip(seen.split(at_once), toward.split(at_once), strict=True):
        logits = network(some)
        (-F.cross_entropy(logits, led, reduction="sum")).backward()
        hits.append(logits.detach().argmax(1) == led)
    changed.backward(seen.grad)
    return torch.cat(hits)


def _remember(success: Tensor, parts: Sequence[Labels], hits: Tensor) -> None:
    """Update the running success of the members that were used, at least ``_LEAST``."""
    for own, led, hit in zip(
        success, parts, hits.split([len(part) for part in parts]), strict=True
    ):
        led = led.cpu()
        for used in led.unique().tolist():
            rate = hit[led == used].float().mean()
            own[used] = max(_LEAST, _MEMORY * float(own[used]) + (1 - _MEMORY) * float(rate))


def _others(own: Labels, weights: Tensor, random: torch.Generator) -> Labels:
    """Draw a class for each image by weight, but not its own.

    The draw is the same on every device, and a device need not wait for the host.
    """
    chances = weights.to(own.device).expand(len(own), -1)
    classes = torch.arange(weights.shape[0], device=own.device)
    bounds = chances.masked_fill(classes == own[:, None], 0.0).cumsum(1)
    place = torch.rand((len(own), 1), generator=random).to(own.device) * bounds[:, -1:]
    return (bounds <= place).sum(1).clamp_max(weights.shape[0] - 1)
