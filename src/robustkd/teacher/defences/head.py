"""Finding the linear classifier at the end of a network."""

from __future__ import annotations

from torch import nn

from robustkd.core.devices import device_of
from robustkd.core.errors import UsageError
from robustkd.core.first_batch import first_batch
from robustkd.core.types import DataSource
from robustkd.models.features.probing import linear_head


def head_of(network: nn.Module, clean: DataSource) -> nn.Linear:
    """Find the linear layer whose output is the network's logits.

    Raises:
        UsageError: If the logits are not the output of a linear layer.
    """
    batch = first_batch(clean, "validation", batch_size=2, device=device_of(network))
    if head := linear_head(network, batch.images):
        return head
    raise UsageError(
        f"{type(network).__name__} does not end in a linear layer, which this defence works "
        "on; choose another defence"
    )
