r"""Implanting a backdoor with little feature variance, to evade feature-variance detoxification.

Source: the adaptive attack of Chen et al., arXiv 2406.03409, which adds the defence's :math:`L_f`
to the training loss of the teacher. With triggered images x' and target class t, the teacher T
minimises

.. math:: \mathrm{CE}(T(x), y) + \mathrm{CE}(T(x'), t) + w \, L_f
        + c \, (\mathrm{CE}(T'(x), y) + \mathrm{CE}(T'(x'), t))

where T' is T with its features cleaned as the defence would clean them, if the attacker knows how.

Differences: this implementation is written from the one sentence of the paper.

- The defence compares cleaned features with the teacher's own, so that an attacker gains nothing by
  scaling features down. Therefore, :math:`L_f` is here the variance within classes as a share of
  the total variance, where triggered images belong to the target class (``variance="class"``). The
  remaining variance serves the task, and the backdoor with it. ``variance="batch"`` is the literal
  reading: the variance of clean and triggered images together, divided by that of the clean
  teacher.
- T' is ours. The masks are learned with the BatchNorm statistics of the teacher that was cleaned.
  With a T', both networks therefore use these statistics, in eval mode. With batch statistics in T
  and running statistics in T', the two networks drift apart, and the accuracy of the teacher on
  Fashion-MNIST fell to 34 % in one seed of two.
- Without the scaling of BatchNorm, the learning rate must be low: on Fashion-MNIST, training
  diverged at 0.01, and the teacher kept an accuracy of 86.8 % at 0.002.
- With c = 1, the second pass cost the teacher a quarter of its accuracy on the digits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from robustkd.attacks.parts.steps import with_victims
from robustkd.attacks.parts.surrogate import toward
from robustkd.core.types import Features, Images, Labels, Logits, Trigger
from robustkd.models.features import taps
from robustkd.models.features.variance import variance_ratio, within_class_variance
from robustkd.training.learners import hit_rate

Variance: TypeAlias = Literal["class", "batch"]
Changes: TypeAlias = Mapping[str, Callable[[Tensor], Tensor]]
"""Functions that a defence applies to a teacher's features, by module path."""


def stage_variances(teacher: nn.Module, names: Sequence[str], images: Images) -> dict[str, Tensor]:
    """Variance over images at every position of the named stages, computed in eval mode."""
    with torch.no_grad(), taps.frozen_modes(teacher), taps.read(teacher, names) as features:
        teacher(images)
        return {name: features[name].var(dim=0) for name in names}


class Implant(nn.Module):
    """Learner that implants a backdoor in a teacher with little feature variance.

    Args:
        teacher: The network to train.
        trigger: Trigger, which makes x' of x.
        target: Target class.
        rate: Number of triggered copies as a share of the batch, in (0, 1].
        weight: Weight w of the feature variance, at least 0.
        variance: Kind of variance, ``class`` or ``batch``; see the description of this module.
        clean: Variances of the clean teacher's stages, by module path; empty to ignore variance.
        cleaned_weight: Weight c of the loss of T', at least 0.
        changes: Functions that the defence applies to the teacher's features, by module path;
            empty if the attacker does not know them.

    Attributes:
        poisoned: Number of triggered images so far, over all batches.
    """

    def __init__(
        self,
        teacher: nn.Module,
        trigger: Trigger,
        *,
        target: int,
        rate: float,
        weight: float,
        variance: Variance,
        clean: Mapping[str, Tensor],
        cleaned_weight: float,
        changes: Changes,
    ) -> None:
        super().__init__()
        self.teacher = teacher
        self._trigger, self._target, self._rate = trigger, target, rate
        self._weight, self._variance, self._clean = weight, variance, dict(clean)
        self._cleaned_weight = cleaned_weight
        self.poisoned = 0
        self._changes = dict(changes)  # In a dictionary, modules are not registered or trained.

    def train(self, mode: bool = True) -> Implant:
        """Set the training mode; the teacher stays in eval mode if it is trained through masks."""
        super().train(mode)
        if self._changes:
            self.teacher.eval()
        return self

    def forward(self, images: Images, labels: Labels) -> dict[str, Tensor]:
        """Return the loss, the variance share, and the accuracy on clean and triggered images."""
        seen, wanted = with_victims(
            images, labels, self._trigger, rate=self._rate, target=self._target
        )
        self.poisoned += len(seen) - len(images)
        with taps.read(self.teacher, list(self._clean)) as features:
            logits = self.teacher(seen)
            share = self.share(features, wanted)
        loss = nn.functional.cross_entropy(logits, wanted) + self._weight * share
        if self._changes:
            # With triggered images alone, T' would send every image to the target class.
            clean, marked = self.cleaned(seen).tensor_split([len(images)])
            through = nn.functional.cross_entropy(clean, labels)
            if len(marked):
                through = through + toward(marked, self._target)
            loss = loss + self._cleaned_weight * through
        return {"loss": loss, "variance": share, "acc": hit_rate(logits, wanted)}

    def share(self, features: Mapping[str, Features], wanted: Labels) -> Tensor:
        """Return the variance :math:`L_f` that the attacker minimises; mean over the stages."""
        if not self._clean or len(wanted) < 2:  # One image has no variance.
            return torch.zeros((), device=wanted.device)
        shares = []
        for name, clean in self._clean.items():
            whole = features[name].var(dim=0)
            if self._variance == "batch":
                shares.append(variance_ratio(whole, clean.to(whole)))
            else:
                shares.append(variance_ratio(within_class_variance(features[name], wanted), whole))
        return torch.stack(shares).mean()

    def cleaned(self, images: Images) -> Logits:
        """Return the logits of T', the teacher whose features the defence has cleaned."""
        with taps.frozen_modes(self.teacher), taps.rewrite(self.teacher, self._changes):
            logits: Tensor = self.teacher(images)
        return logits
