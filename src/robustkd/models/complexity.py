"""Size of a model: its parameters, and its multiplications for one image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from robustkd.models.features.taps import frozen_modes


def parameters(model: nn.Module) -> int:
    """Number of learnable parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Number of multiply-accumulate operations for one image.

    Convolutions, matrix products and attention are counted during one forward pass in eval mode, by
    the formulas of PyTorch's ``FlopCounterMode``.

    Args:
        model: Any network on images.
        image_shape: Channels, height and width in pixels.
    """
    from torch.utils.flop_counter import flop_registry

    first = next(model.parameters(), None)
    device = "cpu" if first is None else first.device
    counter = _Counter(flop_registry)
    with torch.no_grad(), frozen_modes(model), counter:
        model(torch.zeros(1, *image_shape, device=device))
    return counter.operations // 2


class _Counter(TorchDispatchMode):
    """Counter of multiplications and additions, as ``FlopCounterMode``, but without its imports.

    ``FlopCounterMode`` imports PyTorch's compiler, which takes longer than importing PyTorch.
    """

    def __init__(self, formulas: Mapping[object, Callable[..., int]]) -> None:
        TorchDispatchMode.__init__(self)
        self.formulas, self.operations = formulas, 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        named = kwargs or {}
        formula = self.formulas.get(func.overloadpacket)
        if formula is None:
            with self:
                parts: object = func.decompose(*args, **named)
            if parts is not NotImplemented:
                return parts
        found: object = func(*args, **named)
        if formula is not None:
            self.operations += int(formula(*args, **named, out_val=found))
        return found
