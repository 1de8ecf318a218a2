"""Finding the linear classifier at the end of a network."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from robustkd.core.devices import device_of
from robustkd.core.errors import UsageError
from robustkd.core.types import DataSource
from robustkd.models.features.taps import frozen_modes


@torch.no_grad()
def head_of(network: nn.Module, clean: DataSource) -> nn.Linear:
    """Find the linear layer whose output is the network's logits.

    Raises:
        UsageError: If the logits are not the output of a linear layer.
    """
    images = next(iter(clean.batches("validation", batch_size=2, device=device_of(network)))).images
    made: list[tuple[nn.Linear, Tensor]] = []

    def keep(module: nn.Linear, _inputs: Any, output: Tensor) -> None:  # noqa: ANN401
        made.append((module, output))

    with ExitStack() as stack, frozen_modes(network):
        for module in network.modules():
            if isinstance(module, nn.Linear):
                stack.callback(module.register_forward_hook(keep).remove)
        logits = network(images)
    found = next((module for module, output in made if output is logits), None)
    if found is None:
        raise UsageError(
            f"{type(network).__name__} does not end in a linear layer, which this defence works "
            "on; choose another defence"
        )
    return found
