"""Running a model over a split of a DataSource."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import starmap

import torch
from torch import nn

from robustkd.errors import UsageError
from robustkd.layout import Layout, layout_of
from robustkd.metrics import Proportion, accuracy
from robustkd.taps import frozen_modes, read
from robustkd.types import DataSource, Features, Images, Labels, Logits, Split

_BATCH = 256
_MOST_BYTES = 2**30


def device_of(model: nn.Module) -> torch.device:
    """The device of a model's first parameter; the CPU for a model without any."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def default_device() -> torch.device:
    """Where training happens: the accelerator if there is one."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def predict(
    model: nn.Module,
    data: DataSource,
    split: Split,
    *,
    transform: Callable[[Images], Images] | None = None,
) -> tuple[Logits, Labels]:
    """Logits and labels of a split, in its order, on the CPU.

    The model runs in eval mode without gradients, and keeps the modes that it had.

    Args:
        model: Any classifier of images in [0, 1].
        data: The images.
        split: Which of them; they are not augmented.
        transform: Applied to every batch of images first.
    """
    with torch.inference_mode(), frozen_modes(model):
        found = list(_outputs(model, data, split, transform))
    logits, labels = zip(*found, strict=True)
    return torch.cat(logits).float(), torch.cat(labels)


def accuracy_on(model: nn.Module, data: DataSource, split: Split) -> Proportion:
    """Clean accuracy of a model on a split, counted batch by batch."""
    with torch.inference_mode(), frozen_modes(model):
        counts = starmap(accuracy, _outputs(model, data, split))
        return sum(counts, start=Proportion(0, 0))


def _outputs(
    model: nn.Module,
    data: DataSource,
    split: Split,
    transform: Callable[[Images], Images] | None = None,
) -> Iterator[tuple[Logits, Labels]]:
    """Logits and labels of each batch, on the CPU."""
    for batch in data.batches(split, batch_size=_BATCH, device=device_of(model)):
        images = batch.images if transform is None else transform(batch.images)
        yield model(images).cpu(), batch.labels.cpu()


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
