"""Finding the linear classifier at the end of a network."""

from __future__ import annotations

from torch import nn

from robustkd.core.devices import device_of
from robustkd.core.types import DataSource
from robustkd.models.features.probing import linear_head


def head_of(network: nn.Module, clean: DataSource) -> nn.Linear:
    """Find the linear layer whose output is the network's logits.

    Raises:
        UsageError: If the logits are not the output of a linear layer.
    """
    batch = next(iter(clean.batches("validation", batch_size=2, device=device_of(network))))
    return linear_head(network, batch.images)
