"""Modules that compute the training loss of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from torch import Tensor, nn

from robustkd.core.types import Labels, Logits

if TYPE_CHECKING:
    pass
Learner: TypeAlias = nn.Module
"""Called with images and labels; gives scalars by name, among them ``loss`` and ``acc``."""


class Supervised(nn.Module):
    """The plainest learner: cross-entropy of a classifier."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, labels: Labels) -> dict[str, Tensor]:
        """Mean cross-entropy and share of hits."""
        logits = self.model(images)
        return {
            "loss": nn.functional.cross_entropy(logits, labels),
            "acc": hit_rate(logits, labels),
        }


def hit_rate(logits: Logits, labels: Labels) -> Tensor:
    """Share of images in a batch whose largest logit is their label's, a scalar in [0, 1]."""
    return (logits.detach().argmax(1) == labels).float().mean()
