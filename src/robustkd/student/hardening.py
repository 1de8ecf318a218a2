"""Hardening: training of a student against universal perturbations of every class.

An inherited backdoor is a universal perturbation: one change of the pixels with which any image is
classified as one class. Hardening keeps perturbations for every class. Each batch contains
perturbed copies of some of its images. The student is trained to predict their true label, and the
same backward pass updates each perturbation towards its class. Neither a trigger nor a second pass
is needed.

Without ``families``, there are two, for faint and large or strong and small triggers: additions
within an L-infinity ball, and patterns with a mask of bounded mean. The default method adds warps,
generators, and both in a row, and changes half of the copies by perturbations that mislead the
teacher (:mod:`robustkd.student.found`).

Sources: Moosavi-Dezfooli et al. 2017, arXiv 1610.08401 (universal perturbations); Shafahi et
al. 2020, arXiv 1811.11304 (training against one in a single pass); Brown et al. 2017, arXiv
1712.09665 (universal patches); Dong et al. 2018, arXiv 1710.06081 (momentum). Differences: each
class has a perturbation, which is optimised towards this class and not away from the true class;
perturbed copies are added to the batch and replace no clean image; copies are trained towards their
labels, or in addition towards the teacher's outputs for the clean images, or only away from the
class of their perturbation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustkd.core.errors import UsageError
from robustkd.core.types import UNLABELLED, Images, Labels, Logits, PerSample
from robustkd.core.usual_state import usual_state
from robustkd.core.validation import check_count, check_names, check_seed, check_share
from robustkd.student.families import Ball, Patch, make_family, members_of, stage_of
from robustkd.student.families.bounded import Members
from robustkd.student.found import FoundPerturbations
from robustkd.training.batches import other_classes
from robustkd.training.processes import ONE, Portion, Processes

_ADDITIONS = 2
"""Stage of additions and patterns, which come last in a composition."""
_LEAST = 0.1
"""Share of the copies that remains at the end of a fade."""


class Perturbed(NamedTuple):
    """A batch followed by perturbed copies of its first images, whose classes are ``toward``."""

    images: Images
    toward: Labels


class UniversalPerturbations(nn.Module):
    """Perturbations of every class, updated during the training of the student.

    Args:
        classes: Number of classes, at least 2.
        image_shape: Channels, height and width.
        epsilon: Radius of the L-infinity ball in pixel units, in [0, 1]; 0 disables this family.
        mass: Largest mean of the masks of patterns, in [0, 1]; 0 disables this family.
        share: Number of copies added to a batch, as a share of the batch, in (0, 1].
        distilled: If True, the distillation losses compare copies with the teacher's outputs for
            the clean images; if False, copies are trained on their labels only.
        recovered: If True, copies are trained towards their true label; if False, they are only
            pushed away from the class of the perturbation.
        fade: Share of the training, at its end, over which the copies become fewer until a tenth
            is left, in [0, 1]. At the end, the statistics of BatchNorm are nearly those of clean
            images.
        families: Further families of transformations, names of
            :data:`robustkd.student.families.FAMILIES`.
        composed: If False, each copy is changed by one family. If True, families form stages
            (pixels are moved, then their values are changed, then something is added), and each
            copy passes each stage with probability 1/2, at least one, through a random family.
        found_share: Share of the copies that are changed by ``fixed``, in [0, 1]; ignored if
            ``fixed`` is None.
        fixed: Perturbations that mislead the teacher, of
            :func:`robustkd.find_perturbations`; None for none.
        seed: Seed of the initial perturbations and of the classes that are drawn.

    Raises:
        UsageError: If a number is out of range, there is no family, or ``fixed`` has other classes.
    """

    @usual_state
    def __init__(
        self,
        classes: int,
        image_shape: tuple[int, int, int],
        *,
        epsilon: float | int = 0.2,
        mass: float | int = 0.05,
        share: float | int = 1.0,
        distilled: bool = False,
        recovered: bool = True,
        fade: float | int = 0.0,
        families: tuple[str, ...] = (),
        composed: bool = False,
        found_share: float | int = 0.5,
        fixed: FoundPerturbations | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_count(least=2, classes=classes)
        check_share(zero=True, epsilon=epsilon, mass=mass, fade=fade, found_share=found_share)
        check_share(share=share)
        check_names(families=families)
        seed = check_seed(seed)
        if epsilon == mass == 0 and not families:
            raise UsageError(
                "epsilon and mass are both 0 and families is empty; expected at least one family"
            )
        self.shape = (classes, *image_shape)
        self.share, self.fade = share, fade
        self.distilled, self.recovered = distilled, recovered
        self._random = torch.Generator().manual_seed(seed)
        self.families = nn.ModuleList()
        if epsilon > 0:
            self.families.append(Ball(classes, image_shape, epsilon, self._random))
        if mass > 0:
            self.families.append(Patch(classes, image_shape, mass, self._random))
        self.families.extend(
            make_family(name, classes, image_shape, self._random) for name in families
        )
        added = len(self.families) - len(families)
        stages = [_ADDITIONS] * added + [stage_of(name) for name in families]
        self._stages = tuple(
            tuple(k for k, stage in enumerate(stages) if stage == place)
            for place in sorted(set(stages))
        )
        self.composed = composed
        if fixed is not None and not isinstance(fixed, FoundPerturbations):
            raise UsageError(
                f"fixed is of type {type(fixed).__name__}; expected what find_perturbations returns"
            )
        if fixed is not None and fixed.classes != classes:
            raise UsageError(f"fixed is for {fixed.classes} classes; expected {classes}")
        self.fixed, self.found_share = fixed, found_share
        self._steps = self._all_steps = 0
        self._enough = False

    @torch.no_grad()
    def begin(self, steps: int) -> None:
        """Prepare for a training of this number of steps."""
        self._steps, self._all_steps, self._enough = 0, steps, False
        for family in members_of(self.families):
            family.forget()

    def perturb(self, images: Images, labels: Labels, portion: Portion | None = None) -> Perturbed:
        """Add perturbed copies of the first images, each with a random class that is not its own.

        Their number is the share of the batch, less during the fade, and at least one. The first
        copies are divided among the families, which take turns if every batch has fewer copies.
        Their classes are uniform, and gradients flow to the perturbations. The last copies,
        ``found_share`` of them, are changed by ``fixed``, which draws their classes. Images stay in
        [0, 1]. For an image with the label :data:`robustkd.core.types.UNLABELLED`, any class may be
        drawn.

        The call is remembered until :meth:`advance`, except under ``torch.no_grad()``.

        Args:
            images: N x C x H x W in [0, 1].
            labels: Their labels.
            portion: Which images of a batch these are, if several processes divide it; the classes
                and changes are those that one process would draw for the batch.
        """
        here = Portion(None, len(images)) if portion is None else portion
        count = self.copies(here.total)
        copies = here.before(count)
        own = labels[:copies]
        shift = self._drawn(1, count, here).to(labels.device)
        anyone = self._drawn(0, count, here).to(labels.device)
        toward = other_classes(own, shift, anyone, self.shape[0])
        fixed = 0 if self.fixed is None else round(self.found_share * count)
        first = here.before(count - fixed)
        parts = [images]
        if fixed < count:
            change = self._composed if self.composed else self._apart
            learnt = here.between(0, count - fixed)
            parts.append(change(images[:first], toward[:first], learnt))
        if self.fixed is not None and fixed:
            changed, led = self.fixed.perturb(
                images[first:copies],
                own[first:],
                self._random,
                here.between(count - fixed, count),
            )
            parts.append(changed)
            toward = torch.cat([toward[:first], led])
        seen = torch.cat(parts)
        return Perturbed(seen.contiguous(memory_format=torch.channels_last), toward)

    def copies(self, images: int) -> int:
        """Return the number of copies that are added to a batch of some images in this step."""
        return max(1, round(self._left() * self.share * images))

    def _drawn(self, least: int, count: int, here: Portion) -> Labels:
        """Draw a class, or a distance between two, for the first images of a batch."""
        drawn = torch.randint(least, self.shape[0], (count,), generator=self._random)
        return here.own(drawn)

    def _apart(self, images: Images, toward: Labels, here: Portion) -> Images:
        """Change equal parts of the images by one family each.

        If no batch so far has had an image for each family, the families take turns from step to
        step. The last batch of an epoch may be small without any effect on the others.
        """
        families = list(self.families)
        self._enough |= here.total >= len(families)
        if not self._enough:
            first = self._steps % len(families)
            families = families[first:] + families[:first]
        parts = zip(families, here.split(len(families)), strict=True)
        return torch.cat([family(images[own], toward[own]) for family, (own, _) in parts])

    def _composed(self, images: Images, toward: Labels, here: Portion) -> Images:
        """Change every image by families of random stages, in the order of the stages."""
        count, stages = here.total, len(self._stages)
        passes = torch.rand((count, stages), generator=self._random) < 0.5
        one = torch.randint(stages, (count,), generator=self._random)
        passes[torch.arange(count), one] |= ~passes.any(1)
        for stage, members in enumerate(self._stages):
            drawn = torch.randint(len(members), (count,), generator=self._random)
            for place, index in enumerate(members):
                changed = passes[:, stage] & (drawn == place)
                if changed.any():  # in any process: all have to call the family
                    rows = here.own(changed).nonzero().squeeze(1).to(images.device)
                    after = self.families[index](images[rows], toward[rows])
                    images = images.index_copy(0, rows, after)
        return images

    @torch.no_grad()
    def advance(self, processes: Processes = ONE) -> None:
        """Update every used perturbation along the gradient of the last backward pass.

        Args:
            processes: Processes whose gradients are added up.
        """
        self._steps += 1
        if processes.count > 1:
            for module in self.families.modules():
                if isinstance(module, Members):
                    module.add_up(processes)
        for family in members_of(self.families):
            family.advance(1.0)

    def _left(self) -> float:
        """Return the current number of copies as a share of their full number."""
        fading = self.fade * self._all_steps
        if not fading:
            return 1.0
        over = 1 - (self._all_steps - self._steps) / fading
        return 1 - (1 - _LEAST) * min(1.0, max(0.0, over))

    def get_extra_state(self) -> Tensor:
        """Return what was counted and the generator's state, for ``state_dict``."""
        counted = torch.tensor([self._steps, self._enough]).view(torch.uint8)
        return torch.cat([counted, self._random.get_state()])

    def set_extra_state(self, state: Tensor) -> None:
        """Restore what was counted and the generator's state."""
        counted, random = state.cpu().tensor_split([-len(self._random.get_state())])
        # States of older versions have the number of steps alone.
        steps, *enough = counted.clone().view(torch.int64).tolist()
        self._steps, self._enough = steps, bool(enough and enough[0])
        self._random.set_state(random.clone())


def withstand(
    shown: Logits, perturbed: Logits, labels: Labels, toward: Labels, *, recovered: bool = True
) -> PerSample:
    r"""Compute the loss that the student minimises and the perturbations maximise.

    .. math:: \mathrm{CE}(z', y) + \log(1 + e^{z'_t - z'_y})

    with the logits z' of the perturbed image, and its label y or, if it has none, the student's
    prediction for the clean image. The second term compares the perturbation's class t with y; it
    is omitted if both are equal. The first term is omitted if ``recovered`` is False.

    Args:
        shown: Logits of the clean images, N x classes.
        perturbed: Logits of the perturbed images, N x classes.
        labels: N labels; -1 for none.
        toward: N classes t of the perturbations.
        recovered: If True, the perturbed image is trained towards its label; if False, it is only
            pushed away from t, which is easier for a small student.

    Returns:
        N losses, at least 0.
    """
    truth = torch.where(labels == UNLABELLED, shown.detach().argmax(1), labels)
    gap = perturbed.gather(1, toward[:, None]) - perturbed.gather(1, truth[:, None])
    astray = nn.functional.softplus(gap.squeeze(1)) * (toward != truth)
    if not recovered:
        return astray
    return nn.functional.cross_entropy(perturbed, truth, reduction="none") + astray
