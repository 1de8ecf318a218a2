"""A classifier whose outputs are in another order."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from robustkd.core.types import Images, Logits


class Reordered(nn.Module):
    """A classifier with its outputs in another order, in eval mode.

    Args:
        model: The classifier.
        order: Numbers of its outputs in the new order.
    """

    def __init__(self, model: nn.Module, order: Sequence[int]) -> None:
        super().__init__()
        self.model, self.order = model, list(order)
        self.eval()

    def forward(self, images: Images) -> Logits:
        """Compute the logits, N x classes."""
        logits: Logits = self.model(images)[:, self.order]
        return logits
