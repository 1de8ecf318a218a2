"""Finding layers by their role in a forward pass, in any network."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from robustkd.core.types import Images
from robustkd.models.features.taps import frozen_modes


class Call(NamedTuple):
    """One call of a module in a forward pass.

    Attributes:
        module: The module.
        inputs: Its positional arguments.
        output: What it returned.
        read: How often its first input had been changed in place.
        written: How often its output had been changed in place.
    """

    module: nn.Module
    inputs: tuple[Any, ...]
    output: object
    read: int
    written: int


@torch.no_grad()
def calls(
    network: nn.Module, images: Images, wanted: Callable[[nn.Module], bool] = lambda _: True
) -> tuple[list[Call], Tensor]:
    """Run a network once, in eval mode and without gradients.

    Args:
        network: The network; its modes are restored afterwards.
        images: A few images.
        wanted: Function that says whether the calls of a module are returned.

    Returns:
        The calls in the order in which they ended, and the output of the network.
    """
    made: list[Call] = []

    def keep(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        read = _changes(inputs[0]) if inputs else 0
        made.append(Call(module, inputs, output, read, _changes(output)))

    with ExitStack() as stack, frozen_modes(network):
        for module in network.modules():
            if wanted(module):
                stack.callback(module.register_forward_hook(keep).remove)
        logits: Tensor = network(images)
    return made, logits


def _changes(value: object) -> int:
    """Return how often a tensor has been changed in place; 0 for everything else."""
    # The identity of a tensor does not show that its values are those of an earlier call.
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0


def linear_head(network: nn.Module, images: Images) -> nn.Linear | None:
    """Return the linear layer whose output is the network's logits; None if there is none."""
    made, logits = calls(network, images, lambda module: isinstance(module, nn.Linear))
    for call in made:
        if call.output is logits and isinstance(call.module, nn.Linear):
            return call.module if call.written == _changes(logits) else None
    return None


def last_parametric_layer(network: nn.Module, images: Images) -> nn.Module:
    """Return the module with weights of its own that runs last in a forward pass."""

    def is_layer(module: nn.Module) -> bool:
        return any(True for _ in module.parameters()) and not any(
            True for child in module.children() for _ in child.parameters()
        )

    made, _ = calls(network, images, is_layer)
    return made[-1].module


Layers = list[tuple[nn.Conv2d, _BatchNorm | None]]


def batchnorm_after(network: nn.Module, images: Images) -> Layers:
    """Return each convolution with the BatchNorm that reads its output, or None.

    An output to which something was added in place, as ``out += shortcut`` does, is no longer that
    of the convolution.
    """
    made, _ = calls(network, images, lambda module: isinstance(module, nn.Conv2d | _BatchNorm))
    source: dict[tuple[int, int], nn.Conv2d] = {}
    pairs: dict[nn.Conv2d, _BatchNorm | None] = {}
    # All outputs are alive, so that no two have the same id.
    for module, inputs, output, read, written in made:
        if isinstance(module, nn.Conv2d):
            source[id(output), written] = module
            pairs.setdefault(module, None)
        elif isinstance(module, _BatchNorm):
            conv = source.get((id(inputs[0]), read))
            if conv is not None and pairs[conv] is None:
                pairs[conv] = module
    return list(pairs.items())
