"""Modules that compute the training loss of a batch."""

from __future__ import annotations

from typing import Generic, TypeAlias, TypeVar

from torch import Tensor, nn

from robustkd.core.types import UNLABELLED, Labels, Logits

Learner: TypeAlias = nn.Module
"""Module that maps images and labels to named scalars, among them ``loss`` and ``acc``."""


_Module = TypeVar("_Module", bound=nn.Module | None)


class Unowned(Generic[_Module]):
    """Holder of a module that a learner uses without owning it.

    PyTorch registers each module that is an attribute of another one. The module in this holder is
    not: the learner's optimiser does not train it, and the learner's ``state_dict`` does not
    contain it.

    Args:
        module: The module; None if there is none.
    """

    def __init__(self, module: _Module) -> None:
        self.module = module


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
    """Compute the accuracy on the labelled images of a batch, a scalar in [0, 1]."""
    hits = (logits.detach().argmax(1) == labels).sum()
    return hits / (labels != UNLABELLED).sum().clamp_min(1)
