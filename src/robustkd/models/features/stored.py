"""Layers whose weights are stored, and not computed from other tensors in each forward pass."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from robustkd.core.errors import UsageError

_PARTS = ("weight", "bias")


def check_stored(network: nn.Module, layers: Iterable[nn.Module], *, who: str) -> None:
    """Raise an error for a layer whose weight or bias is computed from other tensors.

    Weight and spectral normalisation and ``torch.nn.utils.prune`` compute it in each forward pass,
    so that values that are written into it are lost.

    Args:
        network: The network.
        layers: Some of its layers, into which values will be written.
        who: What writes them, for the message.

    Raises:
        UsageError: Naming the first such layer.
    """
    names = {module: name for name, module in network.named_modules()}
    for layer in layers:
        for part in _PARTS:
            if _is_computed(layer, part):
                raise UsageError(
                    f"module {names[layer]!r} computes its {part} from other tensors, so {who} "
                    f"cannot change it; expected a stored {part}: remove weight or spectral "
                    "normalisation, or another parametrization, first"
                )


def _is_computed(layer: nn.Module, part: str) -> bool:
    """Return whether a parameter is a property (``parametrize``) or an attribute (hooks)."""
    # Reading the value would change the state of spectral normalisation.
    if part in layer._parameters or part in layer._buffers:
        return False
    return part in vars(layer) or hasattr(type(layer), part)
