"""Collecting the features and layouts of some training images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from robustkd.core.devices import device_of
from robustkd.core.errors import UsageError
from robustkd.core.types import DataSource, Features, Images
from robustkd.models.features.layout import Layout, layout_of
from robustkd.models.features.taps import frozen_modes, read

_MOST_BYTES = 2**30


@torch.no_grad()
def features_on(
    model: nn.Module, names: Sequence[str], data: DataSource, *, batch_size: int, batches: int
) -> list[list[Features]]:
    """Features of some training images, not augmented: for each tap, those of each batch.

    Args:
        model: Any network; it runs in eval mode and keeps the modes that it had.
        names: Module paths.
        data: The images; which ones does not depend on any seed.
        batch_size: Images a batch.
        batches: How many at most; fewer, but at least one, where these would hold more than 1 GiB.
    """
    kept: list[list[Features]] = [[] for _ in names]
    held = 0
    order = torch.Generator().manual_seed(0)
    source = data.batches("train", batch_size=batch_size, device=device_of(model), shuffle=order)
    with frozen_modes(model), read(model, names) as features:
        for batch, _ in zip(source, range(batches), strict=False):
            model(batch.images)
            for stage, name in zip(kept, names, strict=True):
                stage.append(features[name])
                held += features[name].nbytes
            if held * (1 + 1 / len(kept[0])) > _MOST_BYTES:
                break
    return kept


@torch.no_grad()
def layouts_of(model: nn.Module, names: Sequence[str], images: Images) -> tuple[Layout, ...]:
    """How the features of each tap are laid out, for images of this size.

    Raises:
        UsageError: If a tap does not exist or shows no features of an image.
    """
    with frozen_modes(model), read(model, names) as features:
        model(images)
        image = tuple(images.shape[1:])
        return tuple(stage_layout(name, features[name], image) for name in names)


def stage_layout(name: str, features: Features, image: tuple[int, ...]) -> Layout:
    """The layout of one tap's features for images of that shape, channels first.

    Raises:
        UsageError: If these are no features of an image.
    """
    shape = tuple(features.shape[1:])
    found = layout_of(shape, (image[1], image[2]))
    if found is None:
        raise UsageError(
            f"module {name!r} gives features of shape {shape}; expected channels x height x width "
            "or tokens x channels: tap a stage"
        )
    return found
