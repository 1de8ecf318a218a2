"""Normalisation of images in a state dict: that of a layer in front of the network."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TypeAlias

from torch import Tensor

from robustkd.core.errors import InputError, quoted

Normalisation: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel."""

ADVICE = (
    "give the right mean and standard deviation with --mean and --std, or save the weights without "
    "these tensors"
)
_MOST_CHANNELS = 3
_OF_BYTES = "pixel_mean"
"""Name in detectors, many of which read pixels in [0, 255] as blue, green and red."""
_PAIRS: Mapping[str, str] = {
    "mean": "std",
    "new_mean": "new_std",
    "mu": "sigma",
    "image_mean": "image_std",
    _OF_BYTES: "pixel_std",
}
"""Names of mean and standard deviation, the last parts of the names of their tensors."""


def pairs_in(
    names: Collection[str],
    tensors: Mapping[str, Tensor],
    *,
    first: str,
    channels: int,
    own: Collection[str],
) -> tuple[str, ...]:
    """Return the names of the means and standard deviations in a state dict, in turn.

    Args:
        names: Names that are not part of the network.
        tensors: All tensors of the file.
        first: A name of the network, which must be in the same part of the file; empty for any.
        channels: Number of channels. Pairs of as many values are preferred, then single values.
        own: Names of the network in its own code, whose last parts are no names of a pair.
    """
    taken = {name.rpartition(".")[2] for name in own}
    known = set(names)
    pairs = []
    for mean in names:
        layer, _, last = mean.rpartition(".")
        if last not in _PAIRS or last in taken:
            continue
        std = f"{mean.removesuffix(last)}{_PAIRS[last]}"
        outer, dot, _ = layer.rpartition(".")
        if std not in known or (first and not first.startswith(f"{outer}{dot}")):
            continue
        if _is_small(tensors[mean]) and _is_small(tensors[std]):
            pairs.append((mean, std))
    for sizes in ({channels}, {1, channels}):
        fitting = [pair for pair in pairs if {tensors[name].numel() for name in pair} <= sizes]
        if fitting:
            return tuple(chain.from_iterable(fitting))
    return tuple(chain.from_iterable(pairs))


def values_in(
    names: Sequence[str], tensors: Mapping[str, Tensor], *, channels: int, path: Path
) -> Normalisation | None:
    """Return mean and standard deviation in a state dict, for pixels in [0, 1].

    Args:
        names: Names of means and standard deviations, in turn; see :func:`pairs_in`.
        tensors: Tensors of the file.
        channels: Number of channels, for which a single value is repeated.
        path: The file, for messages.

    Returns:
        The values; None if there are none.

    Raises:
        InputError: If there are several, which differ, or if they may be for other channels.
    """
    # The file may have changed since its names were read.
    if not names or not all(name in tensors and _is_small(tensors[name]) for name in names):
        return None
    means, stds = names[::2], names[1::2]
    found = [
        (_numbers(tensors[mean], channels), _numbers(tensors[std], channels))
        for mean, std in zip(means, stds, strict=True)
    ]
    for name, other in zip(means, found, strict=True):
        if other != found[0]:
            raise InputError(
                f"{path} has two normalisations of images that differ, in {quoted(means[0])} and "
                f"{quoted(name)}; {ADVICE}"
            )
    mean, std = found[0]
    if max(mean) <= 1:
        return mean, std
    if means[0].rpartition(".")[2] == _OF_BYTES:
        raise InputError(
            f"{path} has a normalisation of pixels in [0, 255] in {quoted(means[0])}, whose "
            "channels may be in the order blue, green, red; images are read as red, green, blue, "
            f"with pixels in [0, 1]: {ADVICE}"
        )
    # A layer for bytes: (255 x - mean) / std equals (x - mean / 255) / (std / 255).
    return tuple(value / 255 for value in mean), tuple(value / 255 for value in std)


def _is_small(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and 0 < tensor.numel() <= _MOST_CHANNELS


def _numbers(tensor: Tensor, channels: int) -> tuple[float, ...]:
    values = tuple(map(float, tensor.flatten().float().tolist()))
    return values * channels if len(values) == 1 else values
