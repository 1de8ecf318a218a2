"""Size of a model: its parameters, and its multiplications for one image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.backends import mha
from torch.utils._python_dispatch import TorchDispatchMode

from robustkd.models.features.taps import frozen_modes

_ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_attention_math_for_mps",
)
"""Kernels of attention for which ``FlopCounterMode`` has no formula."""


def parameters(model: nn.Module) -> int:
    """Number of learnable parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Number of multiply-accumulate operations for one image.

    Convolutions, matrix products and attention are counted during one forward pass in eval mode, by
    the formulas of PyTorch's ``FlopCounterMode``; the device makes no difference. Left out are
    ``nn.Bilinear`` and, on some devices, recurrent layers, such as ``nn.LSTM`` on a CPU.

    Args:
        model: Any network on images.
        image_shape: Channels, height and width in pixels.
    """
    first = next(model.parameters(), None)
    device = "cpu" if first is None else first.device
    counter = _Counter(_formulas())
    with torch.no_grad(), frozen_modes(model), _countable_attention(), counter:
        model(torch.zeros(1, *image_shape, device=device))
    return counter.operations // 2


def operations(model: nn.Module, image_shape: tuple[int, int, int]) -> int | None:
    """Count multiply-accumulate operations for one image; None if they cannot be counted.

    Args:
        model: Any network on images.
        image_shape: Channels, height and width in pixels.
    """
    try:
        return macs(model, image_shape)
    except Exception:
        # PyTorch's counter does not support every operation of the user's own networks. Reports
        # then omit this number.
        return None


def _formulas() -> dict[object, Callable[..., int]]:
    """Return the formula of each operation that is counted."""
    from torch.utils.flop_counter import flop_registry

    aten = torch.ops.aten
    formula = flop_registry[aten._scaled_dot_product_flash_attention]
    more = {getattr(aten, name): formula for name in _ATTENTION if hasattr(aten, name)}
    return {**flop_registry, **more}


@contextmanager
def _countable_attention() -> Iterator[None]:
    """Compute attention by matrix products while the block lasts.

    Other kernels depend on the device; some have no formula, and some pad what they multiply.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    before = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        mha.set_fastpath_enabled(before)


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
