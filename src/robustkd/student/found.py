"""Universal perturbations that mislead the teacher, found before the student is trained.

A backdoor makes the teacher predict one class for nearly any image, so a search against the teacher
finds a change of this kind if a family of changes contains one. Hardening changes some of its
copies by what was found. Perturbations that are learned against the student during its training
cannot replace them: on natural images, each follows one of many changes that mislead the student,
and never meets the one that the student inherits. Families of few parameters are searched best,
since they contain few changes that mislead a network without a backdoor.

The search is ours. Sources of its parts: Moosavi-Dezfooli et al. 2017, arXiv 1610.08401 (universal
perturbations); Wang et al. 2019, Neural Cleanse, doi 10.1109/SP.2019.00031 (a trigger is searched
for in each class, and unlearned). Differences from Neural Cleanse: families of transformations in
the place of patches; perturbations with a higher success rate are used more often, without deciding
whether there is a backdoor; the student unlearns them while it is distilled.

A backdoor that is not active in the teacher, such as that of ADBA-FT or SCAR, is not found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from robustkd.core.devices import device_of
from robustkd.core.errors import InputError, UsageError
from robustkd.core.first_batch import first_batch
from robustkd.core.types import DataSource, Images, Labels
from robustkd.core.usual_state import usual_state
from robustkd.core.validation import check_count, check_names, check_seed
from robustkd.student.families import make_family, members_of
from robustkd.student.families.search import LearnedFamilies, learn_at, led_shares
from robustkd.training.batches import endless
from robustkd.training.beginning import check_readable, first_images
from robustkd.training.inference import (
    AT_ONCE,
    Searched,
    batch_size_for,
    frozen_copy,
    passes_gradient,
)
from robustkd.training.processes import Portion
from robustkd.training.trial import check_classifier

STRENGTHS = (1.0, 0.5)
"""Bounds of the search, as shares of the full bounds."""
STEPS = 30
"""Optimiser steps at the first strength; half as many follow at each further one."""
_PER_CLASS, _FEWEST, _MOST = 2, 16, 64
"""Images of a step for each family: as many per class, at least and at most."""
_START, _LEAST, _MEMORY = 0.5, 0.1, 0.7
_MEASURED, _HELD_OUT = 500, 200
_FEW_CLASSES = 20
"""Up to so many classes, success is measured; with more, too few images would be left for each."""
_AT_ONCE = 4
"""Number of families that are used in one step of the student."""
_FLOOR = 0.1
"""Least weight of all members of a family together, so that every class can be drawn."""


class FoundPerturbations(nn.Module):
    """Fixed perturbations of every class, drawn by their success on the teacher.

    Args:
        found: Families with learned members, at each strength; the same families everywhere.
        success: Share of images that each member leads to its class on the teacher, in [0, 1].
            Small shares are raised to 0.1 divided by the number of classes.
    """

    def __init__(
        self, found: LearnedFamilies, success: Float[Tensor, "strengths families classes"]
    ) -> None:
        super().__init__()
        self.found = nn.ModuleList(found)
        # On the CPU, where classes and families are drawn, so that no device has to wait.
        self.success = success.cpu().clamp_min(_FLOOR / success.shape[2])

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.success.shape[2]

    def get_extra_state(self) -> Tensor:
        """Return the success of the members, for ``state_dict``."""
        return self.success

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the success of the members.

        Raises:
            RuntimeError: If it is not of these families and classes, or out of range.
        """
        own, known = self.success, state.cpu()
        if known.shape != own.shape or known.dtype != own.dtype:
            raise RuntimeError("the success of the found perturbations has another shape or type")
        if not bool(((known > 0) & (known <= 1)).all()):
            raise RuntimeError("the success of the found perturbations is out of range")
        self.success = known

    @torch.no_grad()
    def perturb(
        self,
        images: Images,
        labels: Labels,
        random: torch.Generator,
        portion: Portion | None = None,
    ) -> tuple[Images, Labels]:
        """Perturb every image towards a class that is not its own.

        Four families, or all if there are fewer, are drawn without replacement, and each changes an
        equal part of the images. The weight of a family is the success of its best member. Within a
        family, strengths and classes are drawn in proportion to success.

        Args:
            images: N x C x H x W in [0, 1], at least one in all processes together.
            labels: Their labels; -1 for none.
            random: Generator of the choice, on the CPU.
            portion: Which images of a batch these are, if several processes divide it.

        Returns:
            Perturbed images, in the order of ``images``, and their classes.
        """
        here = Portion(None, len(images)) if portion is None else portion
        success = self.success
        parts = min(_AT_ONCE, success.shape[1])
        best = success.amax((0, 2))
        drawn = torch.multinomial(best, parts, generator=random).tolist()
        changed, toward = [images[:0]], [labels[:0]]
        for kind, (own, part) in zip(drawn, here.split(parts), strict=True):
            if not part.total:
                continue
            chances = success[:, kind]
            level = int(torch.multinomial(chances.sum(1), 1, generator=random))
            led = _others(labels[own], chances[level], random, part)
            families = members_of(self.found[level])  # type: ignore[arg-type]
            changed.append(families[kind](images[own], led))
            toward.append(led)
        return torch.cat(changed), torch.cat(toward)


@usual_state
def find_perturbations(
    teacher: nn.Module,
    data: DataSource,
    names: Sequence[str],
    *,
    seed: int = 0,
    steps: int = STEPS,
    tell: Callable[[], None] = lambda: None,
) -> FoundPerturbations:
    """Search for perturbations with which the teacher predicts each class.

    Every step has images for every family, unless there are fewer training images than families.
    Classes that a family reaches for many images are drawn more often. The success is measured on
    500 training images; with more than 20 classes, it is the running success of the search.

    Args:
        teacher: The untrusted network; it is not changed.
        data: Clean images; the search uses ``train``.
        names: Families, names of :data:`robustkd.student.families.FAMILIES`.
        seed: Seed of everything random, at least 0.
        steps: Optimiser steps at the first strength, at least 1; half as many, and at least one,
            follow at each further one.
        tell: Called after each step.

    Returns:
        The perturbations with their success.

    Raises:
        UsageError: If a family is unknown or there is none, ``steps`` or ``seed`` is out of range,
            there are fewer than two classes, or no gradient passes through the teacher.
        InputError: If images, or outputs or gradients of the teacher on transformed images, are not
            finite.

    Example:
        >>> import robustkd
        >>> data = robustkd.load_data("digits", train=100, validation=100)
        >>> teacher = robustkd.build(robustkd.Spec("wrn-10-1", 10, data.image_shape), seed=0)
        >>> found = robustkd.find_perturbations(teacher, data, ("tone", "flow"), steps=1)
        >>> hardening = robustkd.UniversalPerturbations(10, data.image_shape, fixed=found)
    """
    check_names(names=names)
    if not names:
        raise UsageError("names is empty; expected at least one family")
    check_count(steps=steps)
    check_classifier(teacher, data, name="the teacher")
    check_readable(teacher, name="the teacher")
    check_count(least=2, classes=len(data.classes))
    seed = check_seed(seed)
    frozen = Searched(frozen_copy(teacher))
    classes, device = len(data.classes), device_of(frozen)
    random = torch.Generator().manual_seed(seed)
    families = nn.ModuleList(
        make_family(name, classes, data.image_shape, random) for name in names
    ).to(device)
    some = first_images(data, device)
    if not passes_gradient(frozen, some):
        raise UsageError(
            "no gradient passes through the teacher, so it cannot be searched; choose the method "
            "learned, which does without"
        )
    found, running = _learn(families, frozen, data, random, steps, tell)
    if frozen.trouble:
        raise InputError(
            f"the teacher cannot be searched, since {frozen.trouble}; choose the method learned, "
            "which does without"
        )
    if classes > _FEW_CLASSES:
        return FoundPerturbations(found, running)
    measured = min(_MEASURED, data.size("train"))
    batch = first_batch(data, "train", batch_size=measured, device=device, shuffle=random)
    shares = led_shares(
        [frozen],
        found,
        batch.images,
        batch.labels,
        held_out=_HELD_OUT // classes,
        seed=seed,
        classes=classes,
    )
    return FoundPerturbations(found, shares[0])


def search_steps(steps: int) -> int:
    """Return the number of optimiser steps at all strengths, for a number at the first one.

    >>> search_steps(30)
    45
    """
    return sum(_steps_at(strength, steps) for strength in STRENGTHS)


def _steps_at(strength: float, steps: int) -> int:
    """Return the steps at one strength: the members are known after the first one."""
    return steps if strength == STRENGTHS[0] else max(1, steps // 2)


def _learn(
    families: nn.ModuleList,
    network: nn.Module,
    data: DataSource,
    random: torch.Generator,
    steps: int,
    tell: Callable[[], None],
) -> tuple[LearnedFamilies, Float[Tensor, "strengths families classes"]]:
    """Train all members to move images to their classes.

    Members that have had more success are trained on more images.

    Returns:
        The families and their running success, at each strength.
    """
    classes, count = len(data.classes), len(families)
    size = count * min(_MOST, max(_FEWEST, _PER_CLASS * classes))
    batches = endless(data, size, device_of(network), shuffle=random, least=count)
    at_once = batch_size_for(data.image_shape, AT_ONCE)
    # Classes are drawn by an estimate that is hopeful where little is known. What is returned is
    # not: members that were never used, or never reached their class, have no success.
    hopeful = torch.full((count, classes), _START)
    success = torch.zeros(count, classes)

    def ascend() -> None:
        images, labels, _rows = next(batches)
        parts = [
            _others(own, chances, random)
            for own, chances in zip(labels.tensor_split(count), hopeful, strict=True)
        ]
        hits = _ascend(families, network, images, parts, at_once).cpu()
        _remember(hopeful, parts, hits, least=_LEAST)
        _remember(success, parts, hits)

    found: list[nn.ModuleList] = []
    reached = []
    for strength in STRENGTHS:
        success.zero_()
        found.append(learn_at(families, strength, _steps_at(strength, steps), ascend, tell))
        reached.append(success.clone())
    return tuple(found), torch.stack(reached)


def _ascend(
    families: nn.ModuleList,
    network: nn.Module,
    images: Images,
    parts: Sequence[Tensor],
    at_once: int,
) -> Tensor:
    """Compute the gradients of the members towards their classes.

    Returns:
        Whether each image reached its class.
    """
    own = [
        (family, some, led)
        for family, some, led in zip(
            members_of(families), images.tensor_split(len(families)), parts, strict=True
        )
        if len(some)
    ]
    # Large images pass one family after another, so that they fit into memory.
    groups = [own] if len(images) <= at_once else [[each] for each in own]
    hits = []
    for group in groups:
        changed = torch.cat([family(some, led) for family, some, led in group])
        toward = torch.cat([led for _family, _some, led in group])
        seen = changed.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        for some, led in zip(seen.split(at_once), toward.split(at_once), strict=True):
            logits = network(some.clone())
            (-F.cross_entropy(logits, led, reduction="sum")).backward()
            hits.append(logits.detach().argmax(1) == led)
        changed.backward(seen.grad)
    return torch.cat(hits)


@torch.no_grad()
def _remember(
    success: Tensor, parts: Sequence[Tensor], hits: Tensor, *, least: float = 0.0
) -> None:
    """Update the running success of the members that were used, at least ``least``."""
    for own, led, hit in zip(
        success, parts, hits.split([len(part) for part in parts]), strict=True
    ):
        led = led.cpu()
        for used in led.unique().tolist():
            rate = hit[led == used].float().mean()
            own[used] = max(least, _MEMORY * float(own[used]) + (1 - _MEMORY) * float(rate))


def _others(
    own: Labels, weights: Tensor, random: torch.Generator, portion: Portion | None = None
) -> Labels:
    """Draw a class for each image by weight, but not its own, without waiting for a device."""
    chances = weights.to(own.device).expand(len(own), -1)
    classes = torch.arange(weights.shape[0], device=own.device)
    bounds = chances.masked_fill(classes == own[:, None], 0.0).cumsum(1)
    here = Portion(None, len(own)) if portion is None else portion
    drawn = here.own(torch.rand((here.total, 1), generator=random))
    place = drawn.to(own.device) * bounds[:, -1:]
    return (bounds <= place).sum(1).clamp_max(weights.shape[0] - 1)
