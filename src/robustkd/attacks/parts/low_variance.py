r"""Implanting a backdoor so that nothing is left over for feature-variance detoxification to cut.

Source: the adaptive attacker of Chen et al., arXiv 2406.03409, who adds the defence's
:math:`L_f` to the teacher's own training. With x' the triggered images and t the target, the
teacher T minimises

.. math:: \mathrm{CE}(T(x), y) + \mathrm{CE}(T(x'), t) + w \, L_f
        + c \, (\mathrm{CE}(T'(x), y) + \mathrm{CE}(T'(x'), t))

where T' is T with its features cleaned as the defence would clean them, if the attacker can tell.

Differences: written from that one sentence. A defence compares cleaned features to the teacher's
own, so that features that merely shrink gain nothing; therefore :math:`L_f` is here the variance
within classes as a share of the whole variance, triggered images counting as the target
(``variance="class"``): what is left then carries the task, and the trigger with it.
``variance="batch"`` is the literal reading: the variance of clean and triggered images together,
in units of the clean teacher's. T' is ours. The masks are made for the BatchNorm statistics of the
teacher that was cleaned, so where there is a T', both networks keep them, in eval mode: with
statistics of the batch in T and running ones in T', the two drift apart, and the teacher's accuracy
on Fashion-MNIST fell to 34 % in one seed of two. Without BatchNorm's own scaling the learning rate
must be low: 0.01 gave no number there, 0.002 kept 86.8 %. With c = 1 the second pass cost the
teacher a quarter of its accuracy on the digits.
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
"""What a defence does to a teacher's features, by module path."""


def stage_variances(teacher: nn.Module, names: Sequence[str], images: Images) -> dict[str, Tensor]:
    """Variance over images at every position of the named stages, in eval mode."""
    with torch.no_grad(), taps.frozen_modes(teacher), taps.read(teacher, names) as features:
        teacher(images)
        return {name: features[name].var(dim=0) for name in names}


class Implant(nn.Module):
    """A learner: a teacher whose backdoor uses features that hold nothing else.

    Args:
        teacher: What is trained.
        trigger: Makes x' of x.
        target: Class that triggered images are sent to.
        rate: Triggered copies in a batch, as a share of it.
        weight: Of the features' variance, at least 0.
        variance: Which variance, see the module's text.
        clean: Variance of each stage of the clean teacher, by module path; empty for an attacker
            who does not mind it.
        cleaned_weight: Of T', at least 0.
        changes: What the defence does to the teacher's features; empty where that is not known.
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
        self._changes = dict(changes)  # a dictionary registers nothing: it is not trained

    def train(self, mode: bool = True) -> Implant:
        """Leave the teacher in eval mode where it is trained through masks."""
        super().train(mode)
        if self._changes:
            self.teacher.eval()
        return self

    def forward(self, images: Images, labels: Labels) -> dict[str, Tensor]:
        """The loss, the variance's share, and the share of hits among clean and triggered."""
        seen, wanted = with_victims(
            images, labels, self._trigger, rate=self._rate, target=self._target
        )
        with taps.read(self.teacher, list(self._clean)) as features:
            logits = self.teacher(seen)
            share = self.share(features, wanted)
        loss = nn.functional.cross_entropy(logits, wanted) + self._weight * share
        if self._changes:
            # Clean images as well: with triggered ones alone, every image would go to the target.
            clean, marked = self.cleaned(seen).tensor_split([len(images)])
            through = nn.functional.cross_entropy(clean, labels)
            if len(marked):
                through = through + toward(marked, self._target)
            loss = loss + self._cleaned_weight * through
        return {"loss": loss, "variance": share, "acc": hit_rate(logits, wanted)}

    def share(self, features: Mapping[str, Features], wanted: Labels) -> Tensor:
        """The variance that the attacker wants gone, as a share; mean over the stages."""
        if not self._clean or len(wanted) < 2:  # one image has no variance
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
        """What the teacher says once the defence has cleaned its features."""
        with taps.frozen_modes(self.teacher), taps.rewrite(self.teacher, self._changes):
            logits: Tensor = self.teacher(images)
        return logits
