"""Modules that compute the training loss of a batch."""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor, nn

from robustkd.core.types import Labels, Logits

Learner: TypeAlias = nn.Module
"""Module that maps images and labels to named scalars, among them ``loss`` and ``acc``."""


class Supervised(nn.Module):
    """Learner with the cross-entropy of a classifier."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, labels: Labels) -> dict[str, Tensor]:
        """Compute mean cross-entropy and accuracy."""
        logits = self.model(images)
        return {
            "loss": nn.functional.cross_entropy(logits, labels),
            "acc": hit_rate(logits, labels),
        }


def hit_rate(logits: Logits, labels: Labels) -> Tensor:
    """Compute the accuracy on a batch, a scalar in [0, 1]."""
    return (logits.detach().argmax(1) == labels).float().mean()
