"""Collection of features and layouts on a sample of training images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from robustkd.core.devices import device_of
from robustkd.core.errors import UsageError
from robustkd.core.types import DataSource, Features, Images
from robustkd.models.features.layout import Layout, layout_of
from robustkd.models.features.taps import check_ran, frozen_modes, read

_MOST_BYTES = 2**30


@torch.no_grad()
def feature_batches(
    model: nn.Module, names: Sequence[str], data: DataSource, *, batch_size: int, batches: int
) -> Iterator[tuple[Features, ...]]:
    """Compute the features of some training images, without augmentation.

    Args:
        model: Any network; it runs in eval mode, and its modes are restored afterwards.
        names: Module paths of the taps.
        data: Source of the images; their choice does not depend on any seed.
        batch_size: Images per batch.
        batches: Largest number of batches. There are fewer, but at least one, if the features
            would take more than 1 GiB together.

    Yields:
        For each batch, the features of each tap.
    """
    held = 0
    order = torch.Generator().manual_seed(0)
    source = data.batches("train", batch_size=batch_size, device=device_of(model), shuffle=order)
    with frozen_modes(model), read(model, names) as features:
        for batch, number in zip(source, range(1, batches + 1), strict=False):
            model(batch.images)
            held += sum(features[name].nbytes for name in names)
            yield tuple(features[name] for name in names)
            if held * (1 + 1 / number) > _MOST_BYTES:
                break


def features_on(
    model: nn.Module, names: Sequence[str], data: DataSource, *, batch_size: int, batches: int
) -> list[list[Features]]:
    """Collect the features of :func:`feature_batches`.

    Returns:
        For each tap, the features of each batch.
    """
    found = feature_batches(model, names, data, batch_size=batch_size, batches=batches)
    return [list(stage) for stage in zip(*found, strict=True)]


@torch.no_grad()
def layouts_of(model: nn.Module, names: Sequence[str], images: Images) -> tuple[Layout, ...]:
    """Return the layout of the features of each tap, for images of this size.

    Raises:
        UsageError: If a tap does not exist, or its output does not have the shape of features.
    """
    with frozen_modes(model), read(model, names) as features:
        model(images)
        check_ran(features, names)
        image = tuple(images.shape[1:])
        return tuple(stage_layout(name, features[name], image) for name in names)


def stage_layout(name: str, features: Features, image: tuple[int, ...]) -> Layout:
    """Return the layout of one tap's features.

    Args:
        name: Module path of the tap, for messages.
        features: Features of a batch.
        image: Channels, height and width of the images.

    Raises:
        UsageError: If the output does not have the shape of features.
    """
    shape = tuple(features.shape[1:])
    found = layout_of(shape, (image[1], image[2]))
    if found is None:
        raise UsageError(
            f"module {name!r} gives features of shape {shape}; expected channels x height x width "
            "or tokens x channels: tap a stage"
        )
    return found
