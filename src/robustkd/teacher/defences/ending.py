"""Last features of a network, before global average pooling, and the logits that they give."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustkd.core.devices import device_of
from robustkd.core.first_batch import first_batch
from robustkd.core.types import DataSource, Features, Images, Logits
from robustkd.models.features.probing import calls
from robustkd.teacher.defences.head import head_of


class Ending(NamedTuple):
    """The end of a network: from its last features to its logits.

    Attributes:
        network: The network.
        head: Its linear classifier.
        maps: The module whose output is a feature map, N x C x H x W, that only has to be averaged
            over the positions before it enters the classifier; None if there is no such module, as
            in transformers. The features are then the inputs of the classifier, N x d.
    """

    network: nn.Module
    head: nn.Linear
    maps: nn.Module | None

    def logits(self, features: Features) -> Logits:
        """Compute logits from features."""
        pooled = features if self.maps is None else features.mean((2, 3))
        logits: Tensor = self.head(pooled)
        return logits

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """Yield a function that computes the features of images; its hook is removed at the end."""
        reader = Reader(self.network)
        if self.maps is None:
            hook = self.head.register_forward_pre_hook(reader.keep_input)
        else:
            hook = self.maps.register_forward_hook(reader.keep_output)
        try:
            yield reader
        finally:
            hook.remove()


class Reader:
    """Function from images to the last features of a network.

    Args:
        network: The network, which calls one of the two hooks in each forward pass.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._seen: list[Tensor] = []

    def keep_input(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Store the inputs of a module; a forward pre-hook."""
        self._seen = [inputs[0]]

    def keep_output(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        """Store the output of a module, the last one if it runs several times; a forward hook."""
        self._seen = [output]

    def __call__(self, images: Images) -> Features:
        """Run the network."""
        self._network(images)
        return self._seen.pop()


@torch.no_grad()
def ending_of(network: nn.Module, clean: DataSource) -> Ending:
    """Find the last features of a network.

    Raises:
        UsageError: If the logits are not the output of a linear layer.
    """
    images = first_batch(clean, "validation", batch_size=2, device=device_of(network)).images
    head = head_of(network, clean)
    made, _ = calls(network, images)
    pooled = [inputs[0] for module, inputs, *_ in made if module is head][-1]

    def is_averaged(output: object) -> bool:
        """Whether the classifier reads the means of these maps."""
        if not isinstance(output, Tensor) or output.ndim != 4 or output[0, 0].numel() <= 1:
            return False
        means = output.mean((2, 3))
        return means.shape == pooled.shape and torch.allclose(means, pooled, atol=1e-5)

    maps = next((call.module for call in reversed(made) if is_averaged(call.output)), None)
    return Ending(network, head, maps)
